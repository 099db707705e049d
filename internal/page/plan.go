// SPDX-License-Identifier: Apache-2.0

package page

import (
	"fmt"
	"strings"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// How much the page shows: what is wrong fits, and what is well is summed up where it does not.
const (
	// Without a filter, a page has so many rows and pools, and at most so many rows of a pool that
	// need a look. Of these, each pool has the first few before another one has more.
	roomOfOverview, poolsOfOverview = 40, 30
	mostOfPool, fewOfPool           = 24, 5
	// With a filter, it has so many rows and pools.
	roomOfFilter, poolsOfFilter = 1000, 1000
)

// section is what the page shows below one heading.
type section struct {
	Key   string
	Title string // the beginning, if it is long
	Facts []fact
	Alarm string
	Trend chart
	Scale string // what the full height of the charts of its checks is
	Rows  []row
	More  string // what is left out, empty if nothing is
	// MoreURL is the address of the page that shows all of it, empty if that shows no more.
	MoreURL string
}

// fact is a few words on a pool. Its class is empty if it is nothing special.
type fact struct{ Text, Class string }

// plan returns the sections to show of all, in their order, what is left out after them, and how
// many upstreams the filter wants.
func plan(all []view.Section, f Filter, now time.Time) (sections []section, rest string, matching int) {
	room, most := roomOfOverview, poolsOfOverview
	chosen := f.IsSet() || f.All
	if chosen {
		room, most = roomOfFilter, poolsOfFilter
	}
	wanted := make([]weighed, 0, len(all))
	for _, s := range all {
		total := 0.0
		for _, u := range s.Rows {
			total += u.EffectiveWeight
		}
		if f.IsSet() {
			s.Rows = f.rows(&s)
			if len(s.Rows) == 0 && keyOf(s.Title) != f.Pool {
				continue
			}
		}
		matching += len(s.Rows)
		wanted = append(wanted, weighed{s, total})
	}
	if len(wanted) > most {
		rest = restOf(wanted[most:])
		wanted = wanted[:most]
	}
	counts := share(wanted, room, chosen)
	for i := range wanted {
		sections = append(sections, newSection(&wanted[i], counts[i], f, now))
	}
	return sections, rest, matching
}

// weighed is a section with the rows that a filter wants, and the effective weights of all of them.
type weighed struct {
	view.Section
	total float64
}

// share returns how many rows of each section fit. Those that need a look come first, but of a
// section that has very many of them only a part, so that there is room for others. What is well
// is shown of sections that fit as a whole. If all says so, there is no such limit for a section.
func share(sections []weighed, room int, all bool) []int {
	counts := make([]int, len(sections))
	give := func(i, most int) {
		n := min(most, counts[i]+room) - counts[i]
		if n > 0 {
			counts[i] += n
			room -= n
		}
	}
	troubled := make([]int, len(sections))
	for i, s := range sections {
		for troubled[i] < len(s.Rows) && needsLook(s.Rows[troubled[i]]) {
			troubled[i]++
		}
	}
	limits := []int{fewOfPool, mostOfPool}
	if all {
		limits = []int{roomOfFilter}
	}
	for _, limit := range limits {
		for i := range sections {
			give(i, min(limit, troubled[i]))
		}
	}
	for i, s := range sections {
		if all || len(s.Rows)-counts[i] <= room && counts[i] == troubled[i] {
			give(i, len(s.Rows))
		}
	}
	return counts
}

// newSection returns a section with its first rows.
func newSection(s *weighed, count int, f Filter, now time.Time) section {
	shown := section{Key: keyOf(s.Title), Title: view.Cut(s.Title, maxKey), Facts: factsOf(s.Pool), Alarm: s.Pool.Alarm()}
	if s.Pool != nil {
		shown.Trend = newTrend(s.Pool.Trend)
	}
	slowest := slowestOf(s.Rows[:count])
	if slowest > 0 {
		shown.Scale = milliseconds(slowest)
	}
	shown.Rows = make([]row, 0, count)
	for _, u := range s.Rows[:count] {
		shown.Rows = append(shown.Rows, newRow(u, s.Pool, s.total, slowest, now))
	}
	if left := s.Rows[count:]; len(left) > 0 {
		shown.More = moreOf(left)
		if s.Pool != nil && !f.IsSet() && !f.All {
			shown.MoreURL = Filter{Pool: shown.Key}.URL()
		}
	}
	return shown
}

// factsOf returns what there is to say of a pool, which can be nil.
func factsOf(p *view.Pool) (facts []fact) {
	for i, text := range p.Facts() {
		class := ""
		switch {
		case i == 0:
			class = "main"
		case strings.HasSuffix(text, " down"), strings.HasSuffix(text, " ejected"), text == "fail-open":
			class = "bad"
		}
		facts = append(facts, fact{text, class})
	}
	if p == nil {
		return facts
	}
	facts = append(facts, fact{fmt.Sprintf("%s requests/s", rate(p.RequestsPerSecond)), ""})
	if p.RecentFailures > 0 {
		facts = append(facts, fact{fmt.Sprintf("%s of the last minute failed", percent(p.FailureShare)), "bad"})
	}
	return facts
}

// moreOf says how many rows are left out, by state.
func moreOf(rows []*view.Upstream) string {
	states, idle := make(map[string]int), 0
	for _, u := range rows {
		if u.Idle || u.Stale {
			idle++
		} else {
			states[u.State()]++
		}
	}
	var words []string
	for _, state := range view.States {
		if n := states[state]; n > 0 {
			words = append(words, fmt.Sprintf("%d %s", n, state))
		}
	}
	if idle > 0 {
		words = append(words, fmt.Sprintf("%d idle", idle))
	}
	if len(words) == 1 {
		return words[0]
	}
	return fmt.Sprintf("%d: %s", len(rows), strings.Join(words, ", "))
}

// restOf says what the sections have that are left out.
func restOf(sections []weighed) string {
	serving, all := 0, 0
	for _, s := range sections {
		all += len(s.Rows)
		for _, u := range s.Rows {
			if u.Serving {
				serving++
			}
		}
	}
	pools := "1 more pool"
	if len(sections) > 1 {
		pools = fmt.Sprintf("%d more pools", len(sections))
	}
	return fmt.Sprintf("%s, in which %d of %d upstreams serve", pools, serving, all)
}
