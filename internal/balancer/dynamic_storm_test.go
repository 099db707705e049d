// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// Every pick is counted once, also over pools that are dropped while requests use them,
// and that change meanwhile.
func TestSelections_DroppedPoolsCountOnce(t *testing.T) {
	p := newPolicy(t, "")
	members := handMade("u1 u1 u1")
	dials := []string{"a:80", "b:80", "c:80"}
	p.dynamic.mu.Lock()
	for i, dial := range dials {
		members[i].address = dial
		p.dynamic.sightings[dial] = &sighting{member: members[i]}
	}
	p.dynamic.mu.Unlock()
	var over atomic.Bool
	var changing, picking sync.WaitGroup
	changing.Go(func() {
		for !over.Load() {
			p.refresh()
		}
	})
	changing.Go(func() { // no pool stays for long
		for !over.Load() {
			p.dynamic.mu.Lock()
			p.dynamic.pools.Store(new(map[uint64]*dynamicPool))
			p.dynamic.mu.Unlock()
		}
	})
	changing.Go(func() { // what was counted is never taken back
		before := make(map[string]uint64)
		for !over.Load() {
			now := p.selections()
			for upstream, n := range before {
				if now[upstream] < n {
					t.Errorf("%s went from %d to %d", upstream, n, now[upstream])
				}
			}
			before = now
		}
	})
	var got [3]atomic.Uint64
	for range 4 {
		picking.Go(func() {
			for range 2000 {
				pool := brought(dials...)
				rand.Shuffle(len(pool), func(i, j int) { pool[i], pool[j] = pool[j], pool[i] })
				got[slices.Index(dials, p.Select(pool, get(), nil).Dial)].Add(1)
			}
		})
	}
	picking.Wait()
	over.Store(true)
	changing.Wait()
	want := make(map[string]uint64)
	for i, dial := range dials {
		want[dial] = got[i].Load()
	}
	if counted := p.selections(); !maps.Equal(counted, want) {
		t.Errorf("counted %v, picked %v", counted, want)
	}
}

// Every pool begins at a random offset: the first requests of many pools, as with a name
// for each client, do not all go to the first upstream, or all to the second.
func TestDynamicPool_BeginsAtRandom(t *testing.T) {
	p := newPolicy(t, "")
	first := make(map[int]int)
	const pools = 300
	for i := range pools {
		pool := brought(address(3*i), address(3*i+1), address(3*i+2))
		first[slices.Index(pool, p.Select(pool, get(), nil))]++
	}
	for i := range 3 {
		if first[i] < pools/10 {
			t.Errorf("the first picks of %d pools, by position: %v, want about the same for each", pools, first)
		}
	}
}
