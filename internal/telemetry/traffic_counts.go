// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"maps"
	"slices"
	"sync"
)

// pruneFrom is the number of upstreams with counts from which on those that left the pool
// are looked for.
const pruneFrom = 64

// trafficCounts count what requests say of the upstreams of a pool.
type trafficCounts struct {
	mu      sync.Mutex // guards what follows
	of      map[string]*trafficCount
	pruneAt int // the number of upstreams, 0 for pruneFrom
}

// trafficCount is that of one upstream.
type trafficCount struct {
	ejections   uint64
	accusations map[string]uint64 // by cause
}

// add changes the count of an upstream. It reports whether there are so many that those
// that left should be removed.
func (t *trafficCounts) add(upstream string, change func(*trafficCount)) (prune bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.of[upstream]
	if c == nil {
		if t.of == nil {
			t.of = make(map[string]*trafficCount)
		}
		c = &trafficCount{accusations: make(map[string]uint64)}
		t.of[upstream] = c
		prune = len(t.of) > max(t.pruneAt, pruneFrom)
	}
	change(c)
	return prune
}

// read returns the counts at this moment.
func (t *trafficCounts) read() map[string]trafficCount {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make(map[string]trafficCount, len(t.of))
	for upstream, c := range t.of {
		all[upstream] = trafficCount{c.ejections, maps.Clone(c.accusations)}
	}
	return all
}

// upstreams returns those with counts.
func (t *trafficCounts) upstreams() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.of))
}

// forget removes the counts of upstreams.
func (t *trafficCounts) forget(upstreams []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, upstream := range upstreams {
		delete(t.of, upstream)
	}
	t.pruneAt = 2 * len(t.of)
}
