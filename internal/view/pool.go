// SPDX-License-Identifier: Apache-2.0

package view

import "fmt"

// Pool is how well a pool serves at present.
type Pool struct {
	Title     string // the heading above its rows
	Serving   bool   // at least one upstream serves
	Receiving bool   // at least one upstream gets requests
	FailOpen  bool   // health is ignored
}

// Pools returns how well each pool serves, in the order of the rows. Pools that
// balance nothing at present are left out: those that are gone, and upstreams that
// requests do not bring now.
func Pools(rows []Upstream) []Pool {
	var pools []Pool
	at := make(map[string]int) // by title
	for i := range rows {
		row := &rows[i]
		if row.Gone || row.Idle {
			continue
		}
		place, seen := at[row.Title()]
		if !seen {
			place = len(pools)
			at[row.Title()] = place
			pools = append(pools, Pool{Title: row.Title()})
		}
		p := &pools[place]
		p.Serving = p.Serving || row.Serving
		p.Receiving = p.Receiving || row.EffectiveWeight > 0
		p.FailOpen = p.FailOpen || row.FailOpen
	}
	return pools
}

// Alarm is what must not be overlooked of a pool, empty if there is nothing.
func (p Pool) Alarm() string {
	switch {
	case p.FailOpen && !p.Serving:
		return "Fail-open: no upstream serves, so requests go to upstreams whatever their health."
	case p.FailOpen:
		return "Fail-open: too few upstreams serve, so requests go to upstreams whatever their health."
	case p.Serving:
		return ""
	case p.Receiving:
		return "No upstream serves: requests go to upstreams that drain, are ejected, or have no verdict yet."
	default:
		return "No upstream serves, and none gets requests: they are answered 503."
	}
}

// Alarms returns the alarms of the pools that have one, by title.
func Alarms(rows []Upstream) map[string]string {
	alarms := make(map[string]string)
	for _, p := range Pools(rows) {
		if alarm := p.Alarm(); alarm != "" {
			alarms[p.Title] = alarm
		}
	}
	return alarms
}

// Outages returns one line for each pool in which no upstream serves.
func Outages(rows []Upstream) (lines []string) {
	for _, p := range Pools(rows) {
		if !p.Serving {
			lines = append(lines, fmt.Sprintf("pool %s: %s", p.Title, p.Alarm()))
		}
	}
	return lines
}

// Summary says in one sentence how many upstreams serve, and what is wrong.
func Summary(rows []Upstream) string {
	serving, all := 0, 0
	states := make(map[string]int)
	for i := range rows {
		if rows[i].Gone {
			continue
		}
		all++
		if rows[i].Serving {
			serving++
		}
		if !rows[i].Idle {
			states[rows[i].State()]++
		}
	}
	text := fmt.Sprintf("%d of %d upstreams serve", serving, all)
	for _, state := range []string{"suspect", "ejected"} {
		switch n := states[state]; n {
		case 0:
		case 1:
			text += ", 1 is " + state
		default:
			text += fmt.Sprintf(", %d are %s", n, state)
		}
	}
	open, out := 0, 0
	pools := Pools(rows)
	for _, p := range pools {
		switch {
		case p.FailOpen:
			open++
		case !p.Serving:
			out++
		}
	}
	if open > 0 {
		text = fmt.Sprintf("Fail-open in %d of %d pools: %s", open, len(pools), text)
	}
	if out > 0 {
		text = fmt.Sprintf("No upstream serves in %d of %d pools. %s", out, len(pools), text)
	}
	return text
}
