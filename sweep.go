// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"maps"
	"slices"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
)

const (
	// missingFor is how long requests have to see pools without an address until
	// it is forgotten.
	missingFor = 5 * time.Minute
	// idleFor is how long there has to be no request until all are.
	idleFor = time.Hour
	// sweepInterval is how often that is looked after.
	sweepInterval = 30 * time.Second
	// sweepAgain is when a sweep that is due is tried again while the config does not
	// run.
	sweepAgain = time.Second
)

// startSweeper has the sweeps begin, once there is something to look after. d.mu must
// be held.
func (d *dynamic) startSweeper() {
	if !d.sweeping && !d.closed && len(d.sightings) > 0 {
		d.sweeping = true
		d.sweeper.Go(d.sweepUntilClosed)
	}
}

// note remembers when requests brought the upstreams of a pool. d.mu must be held.
func (d *dynamic) note(p *dynamicPool) {
	when := p.set.presence()
	d.lastUse = max(d.lastUse, when.last)
	for _, dial := range p.dials {
		if s := d.sightings[dial]; s != nil {
			s.merge(when)
		}
	}
}

// noteAll does so for all pools. d.mu must be held.
func (d *dynamic) noteAll() {
	for _, p := range *d.pools.Load() {
		d.note(p)
	}
}

// flush shows the list what requests brought until now.
func (d *dynamic) flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.noteAll()
		d.list.update(d.sightings, d.lastUse, d.lastSweep)
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
		case <-d.stop:
			return
		case <-timer.C:
		}
		if !d.policy.running.Load() { // it is up to those that do
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
	gone := make(map[*member]bool)
	for dial, s := range d.sightings {
		switch {
		case d.closed: // the list is no longer this policy's business
			continue
		case !idle && s.last > d.lastSweep:
			s.missing = 0
		case !idle && used && s.missing == 0:
			s.missing = d.lastSweep
		}
		if idle || s.missing != 0 && d.lastUse-s.missing >= missingFor {
			gone[s.member] = true
			delete(d.sightings, dial)
			d.list.remove(dial)
		}
	}
	d.lastSweep = now
	if !d.closed {
		d.list.update(d.sightings, d.lastUse, d.lastSweep)
	}
	if len(gone) > 0 {
		gone[d.unchecked] = true // there is room again for those past the limit
		pools := maps.Clone(*d.pools.Load())
		maps.DeleteFunc(pools, func(_ uint64, p *dynamicPool) bool {
			return slices.ContainsFunc(p.members, func(m *member) bool { return gone[m] })
		})
		d.pools.Store(&pools)
	}
	d.unlock()
	d.takeBackPast()
	var watches []*monitor.Monitor
	for m := range gone {
		watches = append(watches, m.watches...)
	}
	d.policy.unwatch(watches)
	for m := range gone {
		d.policy.app.forget(m.address)
	}
}

// close ends it: nothing is watched any more that was not before.
func (d *dynamic) close() {
	d.mu.Lock()
	if !d.closed {
		d.list.leave(d)
		d.closed = true
		close(d.stop)
		for dial := range d.sightings {
			d.list.remove(dial)
		}
	}
	d.mu.Unlock()
	d.sweeper.Wait()
}

// takeBackPast takes back what was said of pools that are past. It is said again when
// requests bring them again. It waits for a sweep, so that answers that alternate are
// known as such before that.
func (d *dynamic) takeBackPast() {
	present := d.presentSets()
	d.mu.Lock()
	sets := slices.Collect(maps.Values(d.sets))
	d.mu.Unlock()
	for _, set := range sets {
		if !present(set) && d.policy.unsay(&set.said) {
			d.policy.logger.Info("requests bring other upstreams now than those of which too few were alive")
		}
	}
}
