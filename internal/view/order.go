// SPDX-License-Identifier: Apache-2.0

package view

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Section is what a list shows below one heading: a pool, or what was set at run time for
// addresses that are in no pool.
type Section struct {
	Title string
	Pool  *Pool // nil if the rows are in no pool
	Rows  []*Upstream
}

// WorstFirst returns what to show of rows and their pools, what is wrong first: pools with an
// alarm, then those with the worst upstream, and in each of them the worst upstreams. Otherwise
// the order is that of the rows. Pools without rows are there, too. Rows that are in no pool
// come last.
func WorstFirst(rows []Upstream, pools []Pool) []Section {
	var sections []Section
	at := make(map[string]int, len(pools)) // by name
	for i := range pools {
		at[pools[i].Pool] = len(sections)
		sections = append(sections, Section{Title: pools[i].Pool, Pool: &pools[i]})
	}
	var gone []*Upstream
	for i := range rows {
		row := &rows[i]
		if row.Gone {
			gone = append(gone, row)
			continue
		}
		place, known := at[row.Pool]
		if !known {
			place = len(sections)
			at[row.Pool] = place
			sections = append(sections, Section{Title: row.Title()})
		}
		sections[place].Rows = append(sections[place].Rows, row)
	}
	for i := range sections {
		slices.SortStableFunc(sections[i].Rows, func(a, b *Upstream) int { return cmp.Compare(a.severity(), b.severity()) })
	}
	slices.SortStableFunc(sections, func(a, b Section) int { return slices.Compare(a.severity(), b.severity()) })
	if len(gone) > 0 {
		sections = append(sections, Section{Title: gone[0].Title(), Rows: gone})
	}
	return sections
}

// severity orders sections, the worst first: by the alarm, then by the worst upstream.
func (s *Section) severity() []int {
	alarm := 2
	switch p := s.Pool; {
	case p == nil || p.Alarm() == "":
	case p.Receiving > 0:
		alarm = 1
	default:
		alarm = 0
	}
	worst := 4 * len(States) // of those without rows
	if len(s.Rows) > 0 {
		worst = s.Rows[0].severity()
	}
	return []int{alarm, worst}
}

// severity orders rows, the worst first: by the state, but a primary that does not serve although
// it is up comes before those that do. What requests do not bring at present needs no look.
func (u *Upstream) severity() int {
	rank := 2 * slices.Index(States, u.State())
	if u.State() == "up" && !u.Serving && u.Group == 0 {
		rank--
	}
	if u.Idle || u.Stale {
		rank += 2 * len(States)
	}
	return rank
}

// Totals are sums over all pools.
type Totals struct {
	// Pools is how many pools balance over anything at present. Out are those in which no
	// upstream serves and none gets requests by fail-open, and FailOpen those that ignore health.
	Pools, Out, FailOpen int
	// Upstreams is how many there are, each in each of its pools. Idle are those that requests
	// do not bring at present. Those that requests no longer bring do not count.
	Upstreams, Idle int
	// Serving is how many serve.
	Serving int
	// States is how many are in each of the [States], without those that are idle.
	States map[string]int
	// Requests are those in flight.
	Requests int
}

// NewTotals sums up rows and their pools.
func NewTotals(rows []Upstream, pools []Pool) Totals {
	t := Totals{States: make(map[string]int, len(States))}
	inFlight := make(map[string]int) // Caddy counts by address
	for i := range rows {
		row := &rows[i]
		if row.Gone {
			continue
		}
		inFlight[row.Upstream] = max(inFlight[row.Upstream], row.Requests)
		if row.Stale {
			continue
		}
		t.Upstreams++
		if row.Serving {
			t.Serving++
		}
		if row.Idle {
			t.Idle++
		} else {
			t.States[row.State()]++
		}
	}
	for _, n := range inFlight {
		t.Requests += n
	}
	for i := range pools {
		switch p := &pools[i]; {
		case p.Empty || p.isOut() && !p.FailOpen:
			t.Out++
		case !p.isPresent():
			continue
		case p.FailOpen:
			t.FailOpen++
		}
		t.Pools++
	}
	return t
}

// Facts say in a few words how all pools are: how many upstreams there are, and how many are in
// each state, the worst first.
func (t Totals) Facts() []string {
	facts := []string{fmt.Sprintf("%s in %s", count(t.Upstreams, "upstream"), count(t.Pools, "pool"))}
	facts = append(facts, t.words(States)...)
	if t.Idle > 0 {
		facts = append(facts, fmt.Sprintf("%d idle", t.Idle))
	}
	return append(facts, fmt.Sprintf("%d in flight", t.Requests))
}

// words say how many upstreams are in each of these states, without those in which none is.
func (t Totals) words(states []string) (words []string) {
	for _, state := range states {
		switch n := t.States[state]; {
		case n == 0:
		case state == "maintenance":
			words = append(words, fmt.Sprintf("%d in maintenance", n))
		default:
			words = append(words, fmt.Sprintf("%d %s", n, state))
		}
	}
	return words
}

// Summary says in one sentence how all pools are, and begins with what is wrong.
func (t Totals) Summary() string {
	text := fmt.Sprintf("%d of %d upstreams serve", t.Serving, t.Upstreams)
	if wrong := t.words([]string{"down", "ejected", "suspect"}); len(wrong) > 0 {
		text = strings.Join(wrong, ", ") + "; " + text
	}
	if t.FailOpen > 0 {
		text = fmt.Sprintf("Fail-open in %d of %s: %s", t.FailOpen, count(t.Pools, "pool"), text)
	}
	if t.Out > 0 {
		text = fmt.Sprintf("No upstream serves in %d of %s. %s", t.Out, count(t.Pools, "pool"), text)
	}
	return text
}
