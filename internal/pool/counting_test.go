// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"maps"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/telemetry"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// selections returns how often each of some members was picked, by address.
func (p *policy) selections(members []*Member) map[string]uint64 {
	all := make(map[string]uint64)
	for m, n := range p.Picks(members) {
		all[m.Address] += n
	}
	return all
}

// TestCounting_IsExact: each pick is counted once, and for its upstream: by the fast path
// and by the slow one, with weights, with upstreams that are full or unhealthy, with
// retries and with another policy, and while verdicts change all the time.
func TestCounting_IsExact(t *testing.T) {
	for _, tc := range []struct {
		rule      string
		verdicts  string
		configure func(*policy)
		during    func(p *policy) // changes something, again and again
	}{
		{"round robin", "uuu", nil, nil},
		{"weights", "uuu", func(p *policy) { p.members[0].Weight = 5 }, nil},
		{"one is down", "udu", nil, nil},
		{"none is up", "ddd", nil, nil},
		{"backups", "ddu", func(p *policy) { p.members[2].Group = 1 }, nil},
		{"retries", "uuuu", retrying, nil},
		{"the slow path", "uuuu", slow, nil},
		{"unhealthy at the pick", "uuuu", nil, func(p *policy) { testkit.SetHealthy(p.list[1], rand.IntN(2) == 0) }},
		{"full at the pick", "uuuu", func(p *policy) { p.list[2].MaxRequests = 1 }, func(p *policy) { testkit.SetRequests(p.list[2], rand.IntN(2)) }},
		{"verdicts change", "uuuu", nil, func(p *policy) { testkit.Decide(p.targets[rand.IntN(3)], rand.IntN(2) == 0) }},
		{"another policy", "uuuu", func(p *policy) { p.handler.Rules.Select = new(reverseproxy.RandomSelection) }, nil},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			configure := []func(*policy){}
			if tc.configure != nil {
				configure = append(configure, tc.configure)
			}
			p := newPolicy(t, tc.verdicts, configure...)
			var over atomic.Bool
			var changing, picking sync.WaitGroup
			var begun [4]atomic.Int64 // picks of each goroutine; 0 once it has ended
			if tc.during != nil {
				changing.Go(func() {
					for n := 1; !over.Load(); n++ {
						tc.during(p)
						if n%(maxRetired/2) == 0 { // no pick takes longer than so many snapshots
							awaitProgress(begun[:])
						}
					}
				})
			}
			var got [4]atomic.Uint64
			for n := range begun {
				begun[n].Store(1)
				picking.Go(func() {
					defer begun[n].Store(0)
					for range 2500 {
						begun[n].Add(1)
						if i := p.pickIndex(testkit.Get()); i >= 0 {
							got[i].Add(1)
						}
					}
				})
			}
			picking.Wait()
			over.Store(true)
			changing.Wait()
			want := make(map[string]uint64)
			for i, u := range p.list {
				want[u.Dial] = got[i].Load()
			}
			if counted := p.selections(p.members); !maps.Equal(counted, want) {
				t.Errorf("counted %v, picked %v", counted, want)
			}
		})
	}
}

// awaitProgress waits until each goroutine has begun another pick, or has ended.
func awaitProgress(begun []atomic.Int64) {
	for i := range begun {
		for before := begun[i].Load(); before != 0 && begun[i].Load() == before; {
			runtime.Gosched()
		}
	}
}

// TestCounting_ManySnapshots: a snapshot that was replaced is counted also after it was
// added up, and so are picks of a pool that requests bring.
func TestCounting_ManySnapshots(t *testing.T) {
	p := newPolicy(t, "uu")
	brought := reverseproxy.UpstreamPool{
		{Dial: "10.9.0.1:80", Host: new(reverseproxy.Host)},
		{Dial: "10.9.0.2:80", Host: new(reverseproxy.Host)},
	}
	members := []*Member{{Address: brought[0].Dial, Weight: 1}, {Address: brought[1].Dial, Weight: 1}}
	other := New(p.handler, members, brought, new(LoggedState))
	want := make(map[string]uint64)
	for range 3 * maxRetired {
		p.changed()
		for range 3 {
			want[p.pick(testkit.Get()).Dial]++
			want[other.Pick(Attempt{Upstreams: brought, Request: testkit.Get()}).Upstream.Dial]++
		}
	}
	if got := p.selections(append(members, p.members...)); !maps.Equal(got, want) {
		t.Errorf("counted %v, picked %v", got, want)
	}
	if n := len(p.counters.retired); n > maxRetired {
		t.Errorf("%d snapshots wait to be counted", n)
	}
}

// Selections is what the counters of a pool ask for.
func (p *policy) Selections() map[string]uint64 { return p.selections(p.members) }

// QueueLength is also what they ask for.
func (p *policy) QueueLength() int { return p.handler.Rules.Queue.Length }

// TestCounting_NeverGoesBack: a counter never goes back, though tickets count before it
// is known whether they are followed.
func TestCounting_NeverGoesBack(t *testing.T) {
	p := newPolicy(t, "uuuuuuuuuu")
	counters, err := telemetry.JoinPool(t.Name(), p)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := counters.Leave(p, func(bool) {}); err != nil {
			t.Error(err)
		}
	}()
	testkit.SetHealthy(p.list[1], false)
	var over atomic.Bool
	var picking sync.WaitGroup
	for range 2 {
		picking.Go(func() {
			for !over.Load() {
				p.pick(testkit.Get())
			}
		})
	}
	before := make(map[string]uint64)
	for range 300 {
		now := counters.Selections()
		for upstream, n := range now {
			if n < before[upstream] {
				t.Fatalf("%s went from %d to %d", upstream, before[upstream], n)
			}
		}
		before = now
	}
	over.Store(true)
	picking.Wait()
}
