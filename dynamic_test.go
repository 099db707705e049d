// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/probe"
)

// network is a kind of check: who is alive is up to the test, and every probe is
// counted.
type network struct {
	mu     sync.Mutex
	alive  map[string]bool
	probes map[string]int
}

func newNetwork(alive ...string) *network {
	n := &network{alive: make(map[string]bool), probes: make(map[string]int)}
	for _, address := range alive {
		n.alive[address] = true
	}
	return n
}

func (n *network) Probe(_ context.Context, up probe.Upstream) error {
	time.Sleep(100 * time.Millisecond) // of virtual time
	n.mu.Lock()
	defer n.mu.Unlock()
	n.probes[up.Address]++
	if !n.alive[up.Address] {
		return errors.New("not alive")
	}
	return nil
}

// probed returns who was probed since it was last asked.
func (n *network) probed() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	addresses := slices.Sorted(maps.Keys(n.probes))
	clear(n.probes)
	return addresses
}

// newDynamicPolicy makes a policy that has no upstreams but those that requests
// bring along.
func newDynamicPolicy(t *testing.T, n *network, source string, configure ...func(*Selection)) *policy {
	t.Helper()
	p := newPolicy(t, "", append(configure, func(s *Selection) {
		s.Checks = []*HealthCheck{checkBy(n, "network", health.Settings{
			Interval: 10 * time.Second, FastInterval: time.Second, DownInterval: 10 * time.Second,
			Timeout: time.Second, Passes: 2, Fails: 3,
		})}
	})...)
	p.proxy.DynamicUpstreamsRaw = []byte(source)
	if err := p.resumeDynamic(); err != nil {
		t.Fatal(err)
	}
	for _, w := range p.run(true) {
		w.Start(0)
	}
	return p
}

// end ends the config of a policy.
func (p *policy) end(t *testing.T) {
	t.Helper()
	p.unload()
	release([]*Selection{p.Selection})
	if err := p.Cleanup(); err != nil {
		t.Error(err)
	}
}

// brought is a pool as a source makes it: new values every time.
func brought(dials ...string) reverseproxy.UpstreamPool {
	var pool reverseproxy.UpstreamPool
	for _, dial := range dials {
		pool = append(pool, &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: dial})
	}
	return pool
}

// served returns who got n requests over pools of these addresses.
func (p *policy) served(n int, dials ...string) map[string]int {
	served := make(map[string]int)
	for range n {
		served[p.Select(brought(dials...), get(), nil).Dial]++
	}
	return served
}

// bubble runs a test in virtual time, and checks that it leaves nothing behind.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
	for name, pool := range map[string]interface {
		Range(f func(key, value any) bool)
	}{"targets": shared.Targets, "watch lists": shared.WatchLists} {
		pool.Range(func(key, _ any) bool {
			t.Errorf("%s: %v is left", name, key)
			return true
		})
	}
}

// Every address is checked from when it first appears. One that is dead gets no
// request, and one that is alive gets its share after its first pass.
func TestDynamicUpstreamsAreWatched(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "d:80")
		p := newDynamicPolicy(t, n, "x")
		defer p.end(t)
		for _, step := range []struct {
			pool []string
			want map[string]int
		}{
			{[]string{"a:80", "b:80"}, map[string]int{"a:80": 60}}, // held for the first verdicts
			{[]string{"a:80", "b:80", "c:80"}, map[string]int{"a:80": 60}},
			{[]string{"a:80", "b:80", "c:80", "d:80"}, map[string]int{"a:80": 60}}, // no verdict yet
		} {
			if got := p.served(60, step.pool...); !maps.Equal(got, step.want) {
				t.Errorf("%v: served by %v, want %v", step.pool, got, step.want)
			}
		}
		time.Sleep(time.Second)
		if got, want := p.served(60, "a:80", "b:80", "c:80", "d:80"), map[string]int{"a:80": 30, "d:80": 30}; !maps.Equal(got, want) {
			t.Errorf("after its first pass: served by %v, want %v", got, want)
		}
		if got, want := n.probed(), []string{"a:80", "b:80", "c:80", "d:80"}; !slices.Equal(got, want) {
			t.Errorf("probed %v, want %v", got, want)
		}
	})
}

// An address is forgotten when requests have seen the pool without it for five
// minutes. Without requests nobody can tell, so it is kept, for an hour.
func TestDynamicUpstreamsAreForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80")
		p := newDynamicPolicy(t, n, "x")
		defer p.end(t)
		p.served(1, "a:80", "b:80")
		minutes := func(minutes int, pool ...string) []string {
			for range minutes * 6 {
				time.Sleep(10 * time.Second)
				if len(pool) > 0 {
					p.served(1, pool...)
				}
			}
			n.probed()
			time.Sleep(30 * time.Second)
			return n.probed()
		}
		for _, step := range []struct {
			what string
			got  []string
			want []string
		}{
			{"10 minutes without a request", minutes(10), []string{"a:80", "b:80"}},
			{"a request without b", minutes(1, "a:80"), []string{"a:80", "b:80"}},
			{"3 minutes without b", minutes(3, "a:80"), []string{"a:80", "b:80"}},
			{"b is back", minutes(1, "a:80", "b:80"), []string{"a:80", "b:80"}},
			{"4 minutes without b", minutes(4, "a:80"), []string{"a:80", "b:80"}},
			{"6 minutes without b", minutes(2, "a:80"), []string{"a:80"}},
			{"c instead of a", minutes(7, "c:80"), []string{"c:80"}},
			{"50 minutes without a request", minutes(50), []string{"c:80"}},
			{"over an hour without a request", minutes(12), nil},
			{"c again", minutes(1, "c:80"), []string{"c:80"}},
		} {
			if !slices.Equal(step.got, step.want) {
				t.Errorf("%s: probed %v, want %v", step.what, step.got, step.want)
			}
		}
	})
}

// Pools that alternate are all seen, and none is made anew for a request.
func TestDynamicPoolsAlternate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80")
		p := newDynamicPolicy(t, n, "x")
		defer p.end(t)
		p.served(1, "a:80", "b:80")
		p.served(1, "c:80")
		time.Sleep(time.Second)
		first, second := p.snapshotOf(brought("a:80", "b:80")), p.snapshotOf(brought("c:80"))
		for range 10 * 60 {
			time.Sleep(time.Second)
			if p.snapshotOf(brought("a:80", "b:80")) != first || p.snapshotOf(brought("c:80")) != second {
				t.Fatal("a pool was made anew although nothing changed")
			}
		}
		n.probed()
		time.Sleep(time.Minute)
		if got, want := n.probed(), []string{"a:80", "b:80", "c:80"}; !slices.Equal(got, want) {
			t.Errorf("probed %v, want %v", got, want)
		}
		for i := range 3 * maxPools { // many pools: those that were not seen for long go
			p.served(1, fmt.Sprintf("x%d:80", i%37), "a:80", fmt.Sprintf("y%d:80", i/37))
		}
		if got := len(*p.dynamic.pools.Load()); got > maxPools || got < maxPools/2 {
			t.Errorf("%d pools kept, want them to be many, but %d at most", got, maxPools)
		}
	})
}

// The watch list outlives a reload: the next config knows who is dead before its
// first request, and goes on probing.
func TestDynamicWatchListSurvivesAReload(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork("a:80")
		p := newDynamicPolicy(t, n, "x")
		p.served(1, "a:80", "b:80")
		time.Sleep(time.Second)

		other := newDynamicPolicy(t, n, "y")
		defer other.end(t)
		next := newDynamicPolicy(t, n, "x")
		defer next.end(t)
		p.end(t)
		if got := len(other.run(true)); got != 0 {
			t.Errorf("a policy with another source watches %d, want 0", got)
		}
		if got := len(next.run(true)); got != 2 {
			t.Errorf("the next config watches %d, want 2", got)
		}
		began := time.Now()
		if got, want := next.served(60, "a:80", "b:80"), map[string]int{"a:80": 60}; !maps.Equal(got, want) || time.Since(began) != 0 {
			t.Errorf("served by %v after %v, want %v at once", got, time.Since(began), want)
		}
		n.probed()
		time.Sleep(15 * time.Second)
		if got, want := n.probed(), []string{"a:80", "b:80"}; !slices.Equal(got, want) {
			t.Errorf("probed %v, want %v", got, want)
		}

		// requests of the old config that are still in flight start nothing
		if u := p.Select(brought("z:80"), get(), nil); u == nil {
			t.Error("nil for a request in flight after Cleanup")
		}
		time.Sleep(15 * time.Second)
		if got := n.probed(); slices.Contains(got, "z:80") {
			t.Error("a config that has ended began to watch")
		}
	})
}

// A source that never ends cannot make the watch list grow without bound.
func TestDynamicUpstreamsHaveALimit(t *testing.T) {
	if testkit.RaceDetector {
		t.Skip("the race detector crashes by itself over thousands of timers of virtual time")
	}
	bubble(t, func(t *testing.T) {
		n := newNetwork()
		p := newDynamicPolicy(t, n, "x")
		defer p.end(t)
		for i := range 3 * maxDynamic {
			p.Select(brought(fmt.Sprintf("a%d:80", i)), get(), nil)
		}
		if got := len(p.run(true)); got != maxDynamic {
			t.Errorf("%d watches, want %d", got, maxDynamic)
		}
		warnings := p.logs.FilterMessageSnippet("too many upstreams from a dynamic source").Len()
		if warnings != 1 {
			t.Errorf("%d warnings of too many upstreams, want 1", warnings)
		}
	})
}

// When there is room again, those past the limit are watched, too.
func TestDynamicUpstreamsPastTheLimit(t *testing.T) {
	if testkit.RaceDetector {
		t.Skip("the race detector crashes by itself over thousands of timers of virtual time")
	}
	bubble(t, func(t *testing.T) {
		n := newNetwork()
		p := newDynamicPolicy(t, n, "x")
		defer p.end(t)
		for i := range maxDynamic {
			p.Select(brought(fmt.Sprintf("a%d:80", i)), get(), nil)
		}
		for range 10 * 60 {
			p.Select(brought("z:80"), get(), nil)
			time.Sleep(time.Second)
		}
		n.probed()
		time.Sleep(time.Minute)
		if got, want := n.probed(), []string{"z:80"}; !slices.Equal(got, want) {
			t.Errorf("probed %v, want %v", got, want)
		}
	})
}

// picky is a check that takes no upstream at all.
type picky struct{ *network }

func (picky) ValidateUpstream(probe.Upstream) error { return errors.New("not this one") }

// An upstream that one of the checks refuses leaves no watch of the others.
func TestAWatchThatFailsIsUndone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newDynamicPolicy(t, newNetwork(), "x")
		defer p.end(t)
		refuses := *p.Checks[0]
		refuses.prober = picky{}
		p.Checks = append(p.Checks, &refuses)
		p.Select(brought("a:80"), get(), nil)
		if got := len(p.run(true)); got != 0 {
			t.Errorf("%d watches, want none", got)
		}
	})
}

// A retry probes the upstream that failed, from a dynamic source, too.
func TestDynamicSuspects(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork("a:80")
		p := newDynamicPolicy(t, n, "x")
		defer p.end(t)
		p.retries = true
		p.served(1, "a:80")
		time.Sleep(5 * time.Second)
		n.probed()
		r := get()
		p.Select(brought("a:80"), r, nil)
		p.Select(brought("a:80"), r, nil)
		time.Sleep(time.Second)
		if got, want := n.probed(), []string{"a:80"}; !slices.Equal(got, want) {
			t.Errorf("probed %v after a retry, want %v", got, want)
		}
	})
}

// An upstream in maintenance is not probed: neither when a source brings it for the
// first time, nor by the next config. Its mode is forgotten with it, unless another
// policy has it.
func TestDynamicUpstreamsHaveModes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80")
		p := newDynamicPolicy(t, n, "x", following(t))
		app, o := p.app, p.app.operations
		for _, address := range []string{"b:80", "c:80"} {
			o.Change(address, settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
		}
		if got, want := p.served(60, "a:80", "b:80", "c:80"), map[string]int{"a:80": 60}; !maps.Equal(got, want) {
			t.Errorf("served by %v, want %v", got, want)
		}
		time.Sleep(time.Minute)
		if got, want := n.probed(), []string{"a:80"}; !slices.Equal(got, want) {
			t.Errorf("probed %v, want %v", got, want)
		}

		same := func(s *Selection) {
			s.app, s.rules.operations = app, o
			app.policies = append(app.policies, s)
		}
		next := newDynamicPolicy(t, n, "x", same)
		defer next.end(t)
		app.policies = []*Selection{next.Selection}
		drive(app.policies)
		p.end(t)
		n.probed()
		time.Sleep(time.Minute)
		if got, want := n.probed(), []string{"a:80"}; !slices.Equal(got, want) {
			t.Errorf("the next config probed %v, want %v", got, want)
		}

		other := newDynamicPolicy(t, n, "y", same)
		defer other.end(t)
		other.served(1, "a:80", "c:80")
		for range 60 { // b and c are gone from one, and c is not from the other
			time.Sleep(10 * time.Second)
			next.served(1, "a:80")
			other.served(1, "a:80", "c:80")
		}
		if got := o.Of("b:80").ModeNow(); got != settings.Ready {
			t.Errorf("the mode of one that was forgotten: %s", got)
		}
		if got := o.Of("c:80").ModeNow(); got != settings.Maintenance {
			t.Errorf("the mode of one that another policy has: %s", got)
		}
	})
}

// A deployment that replaces all upstreams leaves dead ones behind: they are watched
// for a while, but nobody is told that a pool has no upstream alive, and what was told
// is taken back.
func TestDynamicPoolsThatArePast(t *testing.T) {
	for _, tc := range []struct {
		rule   string
		dies   int // after so many requests with the next upstreams
		events []string
	}{
		{"they die while requests bring them", 0, []string{"true", "false"}},
		{"they die when requests bring others", 100, nil},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				n := newNetwork("a:80", "b:80", "c:80", "d:80")
				p := newDynamicPolicy(t, n, "x", following(t), func(s *Selection) {
					if err := s.joinPool(); err != nil {
						t.Fatal(err)
					}
				})
				defer p.end(t)
				die := func() {
					n.mu.Lock()
					delete(n.alive, "a:80")
					delete(n.alive, "b:80")
					n.mu.Unlock()
				}
				p.served(2, "a:80", "b:80")
				time.Sleep(time.Minute)
				if tc.dies == 0 {
					die()
					time.Sleep(time.Minute)
					p.served(2, "a:80", "b:80")
				}
				for i := range 24 { // 4 minutes
					if i == tc.dies/10 {
						die()
					}
					time.Sleep(10 * time.Second)
					p.served(2, "c:80", "d:80")
					p.served(2, "d:80", "c:80")
					_ = p.entries(filter{})
				}
				var told []string
				for _, e := range p.emitted() {
					if e.Name == "fail_open" {
						told = append(told, fmt.Sprint(e.Data["active"]))
					}
				}
				if !slices.Equal(told, tc.events) || p.counters.FailOpen() != 0 {
					t.Errorf("told of fail-open: %v, want %v; %d pools are", told, tc.events, p.counters.FailOpen())
				}
				got := make(map[string]string)
				for _, e := range p.entries(filter{}) {
					got[e.Upstream] += fmt.Sprintf("%s %v %g %v ", e.Status, e.FailOpen, e.EffectiveWeight, e.Past)
				}
				if want := map[string]string{
					"a:80": "down false 0 true ", "b:80": "down false 0 true ",
					"c:80": "up false 1 false ", "d:80": "up false 1 false ",
				}; !maps.Equal(got, want) {
					t.Errorf("entries %v, want %v", got, want)
				}
				if n := p.logs.FilterLevelExact(zap.WarnLevel).FilterMessageSnippet("last resort").Len(); n != len(tc.events)/2 {
					t.Errorf("%d warnings: %v", n, p.logs.All())
				}
			})
		})
	}
}
