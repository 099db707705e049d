// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
)

// What requests bring at present, and what is past.
//
// A pool is an answer of a dynamic source. It is present while it is the last one that
// a request brought, or a request waits for its verdicts. Any other is past at once, as
// after a deployment that replaces all upstreams: nothing that happens to them is a
// reason for an alarm. The exception are sources whose answers alternate, be it that a
// name server rotates them or that they depend on the request. They are known by what
// they do: a pool that came back after an absence stays present for twice that long,
// but not longer than pastAfter. A pool that has come back, but not in the last
// returnsFor of its use, does not alternate any more.
//
// An upstream is present while a pool that is present has it, or while the same rule
// says so of the upstream: answers that are never the same twice can have the same
// upstreams in turn.
//
// Time counts from request to request: without requests, nothing becomes past.

const (
	// pastAfter is how long a pool whose answers alternate is present at most, after
	// a request brought it.
	pastAfter = time.Minute
	// returnsFor is how long it counts that something came back after an absence.
	returnsFor = 5 * time.Minute
)

// clockStart is what the times of dynamic upstreams are measured from: a hundred years
// before the process starts, so that 0 is before all of them, on a virtual clock, too.
var clockStart = time.Now().Add(-100 * 365 * 24 * time.Hour)

// elapsed returns a time as the duration since clockStart. It goes by the monotonic
// clock: a wall clock that is set moves no time.
func elapsed(t time.Time) time.Duration { return t.Sub(clockStart) }

// presence is when requests brought something. All times are durations since clockStart.
type presence struct {
	last    time.Duration // when a request last brought it
	missing time.Duration // since when requests bring others only, 0 if they do not
	back    time.Duration // when it last came back after an absence, 0 if it never did
	away    time.Duration // the longest of the recent absences
}

// cameBack notes that a request brings it again, after others.
func (p *presence) cameBack(at time.Duration) {
	away := at - p.last
	if at-p.back <= returnsFor {
		away = max(away, p.away)
	}
	p.back, p.away = at, away
}

// window is how long it stays present when requests bring others.
func (p *presence) window() time.Duration {
	if p.last-p.back > returnsFor {
		return 0
	}
	return min(2*p.away, pastAfter)
}

// merge adds what another observer of the same requests knows.
func (p *presence) merge(other presence) {
	switch {
	case other.last > p.last:
		p.last, p.missing = other.last, other.missing
	case other.last == p.last && other.missing != 0 && (p.missing == 0 || other.missing < p.missing):
		p.missing = other.missing
	}
	p.back, p.away = max(p.back, other.back), max(p.away, other.away)
}

// presence returns when requests brought the addresses.
func (a *addressSet) presence() presence {
	a.mu.Lock()
	defer a.mu.Unlock()
	return presence{last: time.Duration(a.last.Load()), back: a.back, away: a.away}
}

// brought notes that a request brings a pool.
func (d *dynamic) brought(p *dynamicPool, now time.Time) {
	at, a := elapsed(now), p.set
	p.last.Store(int64(at))
	last := time.Duration(a.last.Swap(int64(at)))
	before := d.newest.Load()
	if before == p {
		return
	}
	d.newest.Store(p)
	if before == nil || before.set == a || at <= last { // it comes first, in another order, or is new
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	was := presence{last: last, back: a.back, away: a.away}
	was.cameBack(at)
	a.back, a.away = was.back, was.away
}

// presentSets returns a function that reports whether requests bring addresses at
// present.
func (d *dynamic) presentSets() func(*addressSet) bool {
	awaited := make(map[*addressSet]bool)
	for p := range d.waiters.pools() {
		awaited[p.set] = true
	}
	newest := d.newest.Load()
	if newest == nil {
		return func(*addressSet) bool { return true }
	}
	used := time.Duration(newest.set.last.Load())
	return func(a *addressSet) bool {
		when := a.presence()
		return a == newest.set || awaited[a] || used-when.last < when.window()
	}
}

// lastUsed returns when a request last brought any pool. d.mu must be held.
func (d *dynamic) lastUsed() time.Duration {
	if newest := d.newest.Load(); newest != nil {
		return max(d.lastUse, time.Duration(newest.set.last.Load()))
	}
	return d.lastUse
}

// byLastUse returns the pools that are kept ready, or that requests wait for, the last
// one that a request brought first.
func (d *dynamic) byLastUse() []*dynamicPool {
	last := make(map[*dynamicPool]int64) // requests may bring one meanwhile
	for _, p := range *d.pools.Load() {
		last[p] = p.last.Load()
	}
	for p := range d.waiters.pools() {
		last[p] = p.last.Load()
	}
	pools := slices.Collect(maps.Keys(last))
	slices.SortFunc(pools, func(a, b *dynamicPool) int { return cmp.Compare(last[b], last[a]) })
	return pools
}

// split returns the pools that requests bring at present, the last one first, and the
// others. Of those with the same addresses in another order, it returns the last one.
func (d *dynamic) split() (present, past []*dynamicPool) {
	isPresent := d.presentSets()
	seen := make(map[*addressSet]bool)
	for _, p := range d.byLastUse() {
		if seen[p.set] {
			continue
		}
		if seen[p.set] = true; isPresent(p.set) {
			present = append(present, p)
		} else {
			past = append(past, p)
		}
	}
	return present, past
}

// watchedMember is an upstream that is watched, and whether requests bring it.
type watchedMember struct {
	*member
	past bool
}

// watchedNow returns the upstreams that are watched, by their addresses.
func (d *dynamic) watchedNow() []watchedMember {
	present, _ := d.split()
	members := membersOf(present)
	d.mu.Lock()
	defer d.mu.Unlock()
	used := d.lastUsed()
	all := make([]watchedMember, 0, len(d.sightings))
	for _, s := range d.sightings {
		all = append(all, watchedMember{s.member, !members[s.member] && used-s.last > s.window()})
	}
	slices.SortFunc(all, func(a, b watchedMember) int { return cmp.Compare(a.address, b.address) })
	return all
}

// isPast reports whether requests no longer bring the upstream at a dial address.
func (d *dynamic) isPast(dial string) bool {
	present, _ := d.split()
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.sightings[dial]
	if s == nil {
		return true
	}
	for _, p := range present {
		if slices.Contains(p.members, s.member) {
			return false
		}
	}
	return d.lastUsed()-s.last > s.window()
}

// membersOf returns the members of pools.
func membersOf(pools []*dynamicPool) map[*member]bool {
	members := make(map[*member]bool)
	for _, p := range pools {
		for _, m := range p.members {
			members[m] = true
		}
	}
	return members
}

// isStale reports whether no handler has the upstream of a monitor of s at present:
// neither in its own list nor brought by requests. Monitors of several handlers can share
// a target, and only one of them reports its changes.
func (s *Selection) isStale(m *monitor.Monitor) bool {
	if !s.isPast(m.Upstream.Dial) {
		return false
	}
	app := newestApp()
	if app == nil {
		return true
	}
	for _, other := range app.all() {
		for _, w := range other.allWatches() {
			if w != m && w.Target == m.Target && !other.isPast(w.Upstream.Dial) {
				return false
			}
		}
	}
	return true
}

// isPast reports whether s does not list the upstream at a dial address, and requests no
// longer bring it.
func (s *Selection) isPast(dial string) bool {
	return s.byDial[dial] == nil && s.dynamic != nil && s.dynamic.isPast(dial)
}
