// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/pool"
)

const (
	// missingFor is how long requests must not bring an address before it is forgotten.
	missingFor = 5 * time.Minute
	// idleFor is how long there must be no request before all are.
	idleFor = time.Hour
	// sweepInterval is the time between two sweeps.
	sweepInterval = 30 * time.Second
	// sweepAgain is when a sweep that is due is tried again while the config does not
	// run.
	sweepAgain = time.Second
)

// sweeper is the goroutine that forgets addresses.
type sweeper struct {
	stop    chan struct{} // closed when the config ends
	running sync.WaitGroup
	started bool // guarded by dynamic.mu
}

// startSweeper starts the sweeps once an address is watched. d.mu must be held.
func (d *dynamic) startSweeper() {
	if !d.sweeper.started && !d.closed && len(d.observed) > 0 {
		d.sweeper.started = true
		d.sweeper.running.Go(d.sweepUntilClosed)
	}
}

// sweepUntilClosed forgets addresses until the config ends.
func (d *dynamic) sweepUntilClosed() {
	d.mu.Lock()
	due := d.lastSweep + sweepInterval // that of an earlier config, maybe
	d.mu.Unlock()
	timer := time.NewTimer(due - elapsed(time.Now()))
	defer timer.Stop()
	for {
		select {
		case <-d.sweeper.stop:
			return
		case <-timer.C:
		}
		if !d.balancer.handler.IsRunning() { // it is up to the configs that run
			timer.Reset(sweepAgain)
			continue
		}
		d.sweep(elapsed(time.Now()))
		timer.Reset(sweepInterval)
	}
}

// sweep forgets what requests have not brought for long.
func (d *dynamic) sweep(now time.Duration) {
	d.mu.Lock()
	d.noteAll()
	idle := now-d.lastUse >= idleFor
	used := d.lastUse > d.lastSweep
	gone := make(map[*pool.Member]bool)
	var monitors []*monitor.Monitor
	for dial, o := range d.observed {
		switch {
		case d.closed: // the list is no longer this balancer's
			continue
		case !idle && o.last > d.lastSweep:
			o.missing = 0
		case !idle && used && o.missing == 0:
			o.missing = d.lastSweep
		}
		if idle || o.missing != 0 && d.lastUse-o.missing >= missingFor {
			gone[o.member] = true
			monitors = append(monitors, o.monitors...)
			delete(d.observed, dial)
			d.list.remove(dial)
			d.balancer.traffic.brought.Delete(dial)
		}
	}
	d.lastSweep = now
	if !d.closed {
		d.list.update(d.observed, d.lastUse, d.lastSweep)
	}
	if len(gone) > 0 {
		gone[d.unchecked] = true // there is room again for addresses past the limit
		d.answers.retain(func(a *answer) bool {
			return !slices.ContainsFunc(a.Members(), func(m *pool.Member) bool { return gone[m] })
		})
	}
	d.unlock()
	d.resetStale()
	d.balancer.release(monitors)
	for m := range gone {
		d.balancer.traffic.remove(m)
		d.balancer.registry.forgetSettings(m.Address)
	}
}

// note remembers when requests brought the upstreams of an answer. d.mu must be held.
func (d *dynamic) note(a *answer) {
	when := a.set.times()
	d.lastUse = max(d.lastUse, when.last)
	for _, dial := range a.dials {
		if o := d.observed[dial]; o != nil {
			o.merge(when)
		}
	}
}

// noteAll does so for all answers. d.mu must be held.
func (d *dynamic) noteAll() {
	for _, a := range d.answers.all() {
		d.note(a)
	}
}

// flush shows the list what requests brought until now.
func (d *dynamic) flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.noteAll()
		d.list.update(d.observed, d.lastUse, d.lastSweep)
	}
}

// resetStale takes back what was logged of answers that are stale. It is logged again
// when requests bring them again. It waits for a sweep, so that answers that alternate
// are known as such before that.
func (d *dynamic) resetStale() {
	isPresent := d.presentSets()
	d.mu.Lock()
	sets := slices.Collect(maps.Values(d.sets))
	d.mu.Unlock()
	for _, set := range sets {
		if !isPresent(set) && set.logged.Reset(&d.balancer.handler) {
			d.balancer.config.Logger.Info("the pool with too few upstreams alive is no longer used: requests bring other upstreams")
		}
	}
}

// presentSets returns a function that reports whether requests bring addresses at
// present.
func (d *dynamic) presentSets() func(*addressSet) bool {
	pools := d.balancer.handler.Awaited()
	awaited := make(map[*addressSet]bool)
	for _, a := range d.answers.all() {
		if pools[a.Pool] {
			awaited[a.set] = true
		}
	}
	if d.balancer.source.isNone() {
		return func(a *addressSet) bool { return awaited[a] }
	}
	newest := d.answers.newest.Load()
	if newest == nil {
		return func(*addressSet) bool { return true }
	}
	used := time.Duration(newest.set.last.Load())
	return func(a *addressSet) bool {
		when := a.times()
		return a == newest.set || awaited[a] || used-when.last < when.window()
	}
}

// lastUsed returns when a request last brought any answer. d.mu must be held.
func (d *dynamic) lastUsed() time.Duration {
	if newest := d.answers.newest.Load(); newest != nil {
		return max(d.lastUse, time.Duration(newest.set.last.Load()))
	}
	return d.lastUse
}

// split returns the answers that requests bring at present, the last one first, and the
// stale ones. Of those with the same addresses in another order, it returns the last one.
func (d *dynamic) split() (present, stale []*answer) {
	isPresent := d.presentSets()
	seen := make(map[*addressSet]bool)
	for _, a := range d.answers.byLastUse() {
		if seen[a.set] {
			continue
		}
		if seen[a.set] = true; isPresent(a.set) {
			present = append(present, a)
		} else {
			stale = append(stale, a)
		}
	}
	return present, stale
}

// watchedMember is an upstream that is watched, and whether it is stale.
type watchedMember struct {
	*pool.Member
	stale bool
}

// watched returns the upstreams that are watched, by their addresses.
func (d *dynamic) watched() []watchedMember {
	present, _ := d.split()
	members := make(map[*pool.Member]bool)
	for _, a := range present {
		for _, m := range a.Members() {
			members[m] = true
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	used := d.lastUsed()
	all := make([]watchedMember, 0, len(d.observed))
	for _, o := range d.observed {
		all = append(all, watchedMember{o.member, !members[o.member] && used-o.last > o.window()})
	}
	slices.SortFunc(all, func(a, b watchedMember) int { return strings.Compare(a.Address, b.Address) })
	return all
}

// isStale reports whether requests no longer bring the upstream at a dial address.
func (d *dynamic) isStale(dial string) bool {
	present, _ := d.split()
	d.mu.Lock()
	defer d.mu.Unlock()
	o := d.observed[dial]
	if o == nil {
		return true
	}
	for _, a := range present {
		if slices.Contains(a.Members(), o.member) {
			return false
		}
	}
	return d.lastUsed()-o.last > o.window()
}
