// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// Every pick is counted once, for whom it was: by the fast way and by the slow one,
// with weights, with upstreams that are full or unhealthy, with retries and with
// another policy, and while verdicts change all the time.
func TestSelectionsAreExact(t *testing.T) {
	for _, tc := range []struct {
		rule      string
		verdicts  string
		configure func(*Selection)
		during    func(p *policy) // changes something, again and again
	}{
		{"round robin", "uuu", nil, nil},
		{"weights", "uuu", func(s *Selection) { s.members[0].weight = 5 }, nil},
		{"one is down", "udu", nil, nil},
		{"nobody is up", "ddd", nil, nil},
		{"backups", "ddu", func(s *Selection) { s.members[2].backup = true }, nil},
		{"retries", "uuuu", func(s *Selection) { s.retries = true }, nil},
		{"unhealthy at the pick", "uuuu", nil, func(p *policy) { setHealthy(p.upstreams[1], rand.IntN(2) == 0) }},
		{"full at the pick", "uuuu", func(s *Selection) { s.upstreams[2].MaxRequests = 1 }, func(p *policy) { setRequests(p.upstreams[2], rand.IntN(2)) }},
		{"verdicts change", "uuuu", nil, func(p *policy) { decide(p.targets[rand.IntN(3)], rand.IntN(2) == 0) }},
		{"another policy", "uuuu", func(s *Selection) { s.inner = new(reverseproxy.RandomSelection) }, nil},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			configure := []func(*Selection){}
			if tc.configure != nil {
				configure = append(configure, tc.configure)
			}
			p := newPolicy(t, tc.verdicts, configure...)
			var over atomic.Bool
			var changing, picking sync.WaitGroup
			if tc.during != nil {
				changing.Go(func() {
					for !over.Load() {
						tc.during(p)
					}
				})
			}
			var got [4]atomic.Uint64
			for range 4 {
				picking.Go(func() {
					for range 2500 {
						if u := p.Select(p.upstreams, get(), nil); u != nil {
							for i := range p.upstreams {
								if p.upstreams[i] == u {
									got[i].Add(1)
								}
							}
						}
					}
				})
			}
			picking.Wait()
			over.Store(true)
			changing.Wait()
			want := make(map[string]uint64)
			for i, u := range p.upstreams {
				want[u.Dial] = got[i].Load()
			}
			if counted := p.selections(); !maps.Equal(counted, want) {
				t.Errorf("counted %v, picked %v", counted, want)
			}
		})
	}
}

// What is retired is counted as well after it was added up, and those who bring their
// own upstreams count, too.
func TestSelectionsOfManySnapshots(t *testing.T) {
	p := newPolicy(t, "uu")
	brought := reverseproxy.UpstreamPool{
		{Dial: "10.9.0.1:80", Host: new(reverseproxy.Host)},
		{Dial: "10.9.0.2:80", Host: new(reverseproxy.Host)},
	}
	want := make(map[string]uint64)
	for range 3 * maxRetired {
		p.refresh()
		for range 3 {
			want[p.Select(p.upstreams, get(), nil).Dial]++
			want[p.Select(brought, get(), nil).Dial]++
		}
	}
	if got := p.selections(); !maps.Equal(got, want) {
		t.Errorf("counted %v, picked %v", got, want)
	}
	if n := len(p.retired); n > maxRetired {
		t.Errorf("%d snapshots wait to be counted", n)
	}
}

// A counter never goes back, though tickets count before it is known whether they are
// followed.
func TestSelectionsNeverGoBack(t *testing.T) {
	p := newPolicy(t, "uuuuuuuuuu", func(s *Selection) {
		s.pool = t.Name()
		if err := s.joinPool(); err != nil {
			t.Fatal(err)
		}
	})
	defer func() {
		if err := p.leavePool(); err != nil {
			t.Error(err)
		}
	}()
	setHealthy(p.upstreams[1], false)
	var over atomic.Bool
	var picking sync.WaitGroup
	for range 2 {
		picking.Go(func() {
			for !over.Load() {
				p.Select(p.upstreams, get(), nil)
			}
		})
	}
	before := make(map[string]uint64)
	for range 300 {
		now := p.counters.Selections()
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
