// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// A verdict that another handler's probe gives, right after a request has brought an
// upstream here, wakes the request.
func TestArrival_VerdictOfAnotherHandlerIsNotMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork("a:80")
		other := newDynamicPolicy(t, n, "other")
		p := newDynamicPolicy(t, n, "this")
		go other.Select(brought("a:80"), testkit.Get(), nil) // its first probe takes 100 ms
		time.Sleep(50 * time.Millisecond)
		// a first request is about to start the monitors of what it brought
		d, upstreams, dials := p.dynamic, brought("a:80"), []string{"a:80"}
		d.mu.Lock()
		for openNew(d, dials) {
		}
		d.add(upstreams, dials, d.answers.hash(upstreams))
		deferred := d.deferred
		d.deferred = nil
		d.mu.Unlock()

		began := time.Now()
		picked := make(chan *reverseproxy.Upstream)
		go func() { picked <- p.Select(brought("a:80"), testkit.Get(), nil) }()
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		for _, do := range deferred {
			do()
		}
		u := <-picked
		if took := time.Since(began); u == nil || took > 100*time.Millisecond {
			t.Errorf("got %v after %s, want the upstream as soon as it is up", u, took)
		}
		began = time.Now()
		p.Select(brought("a:80"), testkit.Get(), nil)
		if took := time.Since(began); took > 0 {
			t.Errorf("a later request is held for %s", took)
		}
	})
}

// Logging of an answer goes on while a request waits for it, even if many other answers
// arrive.
func TestArrival_AwaitedAnswerIsStillLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDynamicPolicy(t, newNetwork(), "many", func(s *setup) {
			settings := health.Settings{Interval: time.Hour, FastInterval: time.Hour, DownInterval: time.Hour, Timeout: 3 * time.Second, Passes: 1, Fails: 1}
			s.Checks = []*monitor.Check{checkBy("silent", "silent", settings, func(ctx context.Context, _ *monitor.Route) error {
				<-ctx.Done()
				return ctx.Err()
			})}
			s.Rules.Hold = time.Second
		})
		go p.Select(brought("a:80"), testkit.Get(), nil)
		time.Sleep(100 * time.Millisecond)
		p.dynamic.mu.Lock()
		for i := range maxObserved {
			p.dynamic.sets[uint64(i)] = new(addressSet)
		}
		p.dynamic.mu.Unlock()
		p.Select(brought("b:80"), testkit.Get(), nil) // a new set: those before it are dropped
		time.Sleep(5 * time.Second)
		p.Select(brought("a:80"), testkit.Get(), nil)
		a := p.dynamic.find(brought("a:80"))
		if now := a.Situation(a.Peek()).State; now != pool.LastResort {
			t.Fatalf("state %v, so this tests nothing", now)
		}
		if n := p.logs.FilterMessageSnippet("as the last resort").Len(); n == 0 {
			t.Errorf("the last resort is not logged: %v", p.logs.All())
		}
		if n := len(p.dynamic.sets); n > maxObserved/2 {
			t.Errorf("%d sets are kept", n)
		}
	})
}
