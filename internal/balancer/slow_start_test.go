// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"math"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// runningBalancer adds a balancer that lists these upstreams to a registry, and returns it and
// what ends it.
func runningBalancer(t *testing.T, r *Registry, check *monitor.Check, dials ...string) (b *Balancer, end func()) {
	t.Helper()
	b = new(Balancer)
	c := Config{
		Name: t.Name(), Checks: []*monitor.Check{check}, Transport: defaultTransport,
		Proxy: &reverseproxy.Handler{Upstreams: brought(dials...)}, Logger: zap.NewNop(),
	}
	if err := b.Init(r, c); err != nil {
		t.Fatal(err)
	}
	return b, func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

// wantOriginal compares which upstreams have no slow start because all of their pool
// began together.
func wantOriginal(t *testing.T, when string, want []bool, b *Balancer) {
	t.Helper()
	var got []bool
	for _, m := range b.pool.Members() {
		got = append(got, m.Checks[0].Target.Original())
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: original %v, want %v", when, got, want)
	}
}

// TestSlowStart_ColdStartIsOfAPool: upstreams that begin together have no slow start. One
// that joins them in a later config has one, in whatever handler, and so has one that
// comes back.
func TestSlowStart_ColdStartIsOfAPool(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		all := []string{"a:80", "b:80", "c:80", "d:80", "e:80", "x:80", "y:80"}
		n := newNetwork(all...)
		check := n.check()
		begin := func(r *Registry) {
			r.Start()
			r.ConfigStarted()
		}
		first := newRegistry(t, settings.NewSet())
		defer first.Close()
		old, end := runningBalancer(t, first, check, "a:80", "b:80")
		defer end()
		begin(first)
		time.Sleep(500 * time.Millisecond)
		wantOriginal(t, "a cold start", []bool{true, true}, old)

		time.Sleep(time.Second)
		next := newRegistry(t, settings.NewSet())
		defer next.Close()
		other, end := runningBalancer(t, next, check, "d:80", "e:80") // d alone is new in both
		defer end()
		again, end := runningBalancer(t, next, check, "a:80", "b:80", "c:80", "d:80")
		defer end()
		apart, end := runningBalancer(t, next, check, "x:80", "y:80")
		defer end()
		begin(next)
		time.Sleep(time.Second)
		wantOriginal(t, "a reload adds two", []bool{true, true, false, false}, again)
		wantOriginal(t, "one of another new handler joins a running one", []bool{false, true}, other)
		wantOriginal(t, "a handler of its own", []bool{true, true}, apart)

		n.kill(all...)
		time.Sleep(time.Minute)
		n.mu.Lock()
		for _, address := range all {
			n.alive[address] = true
		}
		n.mu.Unlock()
		time.Sleep(time.Minute)
		wantOriginal(t, "all were down", []bool{false, false}, old)
	})
}

// TestSlowStart_DynamicPools: an upstream that a dynamic source adds to a running pool
// ramps. An answer of which nothing is known does not, whatever other pools there are.
func TestSlowStart_DynamicPools(t *testing.T) {
	slowly := func(s *setup) { s.Rules.SlowStart, s.Rules.Floor = 20*time.Second, 0.1 }
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80", "d:80", "e:80", "x:80", "y:80")
		p := newDynamicPolicy(t, n, "slow", slowly)
		defer p.end(t)
		other := newDynamicPolicy(t, n, "other", slowly)
		defer other.end(t)
		begin := func(p *policy, dials ...string) {
			t.Helper()
			p.Select(brought(dials...), testkit.Get(), nil)
			time.Sleep(200 * time.Millisecond)
		}
		// shares of the weight, of which the slow start begins with a tenth
		want := func(when string, p *policy, dials []string, shares ...float64) {
			t.Helper()
			upstreams := brought(dials...)
			a := p.dynamic.find(upstreams)
			now := a.Situation(a.Peek())
			for i, u := range upstreams {
				if got := now.Weight(i, u); math.Abs(got-shares[i]) > 1e-9 {
					t.Errorf("%s: the weight of %s is %g, want %g", when, u.Dial, got, shares[i])
				}
			}
		}
		upstreams := []string{"a:80", "b:80"}
		begin(p, upstreams...)
		want("a cold start", p, upstreams, 1, 1)
		upstreams = append(upstreams, "c:80")
		begin(p, upstreams...)
		want("one joins", p, upstreams, 1, 1, 0.1)
		begin(p, "x:80", "y:80")
		want("a deployment replaces all", p, []string{"x:80", "y:80"}, 1, 1)
		begin(p, "x:80", "d:80")
		want("answers change by one", p, []string{"x:80", "d:80"}, 1, 0.1)
		// the address that is new comes first, and the one that another policy knows last
		begin(other, "e:80", "a:80")
		want("it joins what another policy knows", other, []string{"e:80", "a:80"}, 0.1, 1)
	})
}
