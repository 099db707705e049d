// SPDX-License-Identifier: Apache-2.0

package alive

import "fmt"

// poolService is how well a pool serves at present, as commands and the page say it.
type poolService struct {
	title    string // as the entries of the pool are shown below it
	serving  bool   // at least one upstream serves
	gets     bool   // at least one gets requests
	failOpen bool   // health is ignored
}

// alarm is what must not be overlooked of a pool, empty if there is nothing.
func (p poolService) alarm() string {
	switch {
	case p.failOpen && !p.serving:
		return "Fail-open: no upstream serves, so requests go to upstreams whatever their health."
	case p.failOpen:
		return "Fail-open: too few upstreams serve, so requests go to upstreams whatever their health."
	case p.serving:
		return ""
	case p.gets:
		return "No upstream serves: requests go to upstreams that drain, or have no verdict yet."
	default:
		return "No upstream serves, and none gets requests: they are answered 503."
	}
}

// services returns how well each pool serves, in the order of the entries. Pools that
// balance nothing at present are left out: what was set at run time for a pool that is
// gone, and upstreams that requests do not bring now.
func services(entries []entry) []poolService {
	var pools []poolService
	at := make(map[string]int) // by title
	for i := range entries {
		e := &entries[i]
		if e.Gone || e.Idle {
			continue
		}
		place, seen := at[e.title()]
		if !seen {
			place = len(pools)
			at[e.title()] = place
			pools = append(pools, poolService{title: e.title()})
		}
		p := &pools[place]
		p.serving = p.serving || e.Serving
		p.gets = p.gets || e.EffectiveWeight > 0
		p.failOpen = p.failOpen || e.FailOpen
	}
	return pools
}

// alarms returns the alarms of the pools that have one, by title.
func alarms(entries []entry) map[string]string {
	all := make(map[string]string)
	for _, p := range services(entries) {
		if alarm := p.alarm(); alarm != "" {
			all[p.title] = alarm
		}
	}
	return all
}

// outages returns one line for each pool in which no upstream serves.
func outages(entries []entry) (lines []string) {
	for _, p := range services(entries) {
		if !p.serving {
			lines = append(lines, fmt.Sprintf("pool %s: %s", p.title, p.alarm()))
		}
	}
	return lines
}
