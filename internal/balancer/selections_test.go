// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// Every pick is counted once, also over answers that are dropped while requests use them,
// and that change meanwhile.
func TestSelections_DroppedAnswersCountOnce(t *testing.T) {
	p := newPolicy(t, "")
	members := make([]*pool.Member, 3)
	dials := []string{"a:80", "b:80", "c:80"}
	p.dynamic.mu.Lock()
	for i, dial := range dials {
		members[i] = &pool.Member{Address: dial, Weight: 1}
		p.dynamic.observed[dial] = &observed{member: members[i]}
	}
	p.dynamic.mu.Unlock()
	var over atomic.Bool
	var changing, picking sync.WaitGroup
	changing.Go(func() {
		for !over.Load() {
			p.Refresh()
		}
	})
	changing.Go(func() { // no answer is kept for long
		for !over.Load() {
			p.dynamic.mu.Lock()
			p.dynamic.answers.replace(nil)
			p.dynamic.mu.Unlock()
		}
	})
	changing.Go(func() { // what was counted is never taken back
		before := make(map[string]uint64)
		for !over.Load() {
			now := p.Selections()
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
				upstreams := brought(dials...)
				rand.Shuffle(len(upstreams), func(i, j int) { upstreams[i], upstreams[j] = upstreams[j], upstreams[i] })
				got[slices.Index(dials, p.Select(upstreams, testkit.Get(), nil).Dial)].Add(1)
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
	if counted := p.Selections(); !maps.Equal(counted, want) {
		t.Errorf("counted %v, picked %v", counted, want)
	}
}

// Every answer begins at a random offset: the first requests of many answers, as with a name
// for each client, do not all go to the first upstream, or all to the second.
func TestDynamic_OrdersBeginAtRandom(t *testing.T) {
	p := newPolicy(t, "")
	first := make(map[int]int)
	const pools = 300
	for i := range pools {
		upstreams := brought(address(3*i), address(3*i+1), address(3*i+2))
		first[slices.Index(upstreams, p.Select(upstreams, testkit.Get(), nil))]++
	}
	for i := range 3 {
		if first[i] < pools/10 {
			t.Errorf("the first picks of %d pools, by position: %v, want about the same for each", pools, first)
		}
	}
}
