// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// 400 requests at once over a dynamic source, at the cold start: all of them go on
// soon after the first upstream passed.
func TestCaddyHold_DynamicPoolWakesAll(t *testing.T) {
	backends := startBackends(t, "a", "b", "c")
	checked := newGate(t)
	for _, b := range backends {
		b.hook = func(r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/healthz") {
				checked.pass(r)
			}
		}
	}
	s := newSource(t, backends[0].addr, backends[1].addr, backends[2].addr)
	c := startDynamic(t, dynamically(s.name(), "check http /healthz {\ntimeout 1m\n}\nhold 30s"))
	const requests = 400
	answers := make(chan answer, requests)
	var asking sync.WaitGroup
	for range requests {
		asking.Go(func() { answers <- ask(c.plain(), c.url()) })
	}
	eventually(t, patience, "all requests are held", func() bool {
		policy := s.selection.Load()
		if policy == nil || policy.counters == nil {
			return false
		}
		return policy.counters.Held() == requests
	})
	checked.open()
	began := time.Now()
	asking.Wait()
	if took := time.Since(began); took > slack {
		t.Errorf("the last one was answered %s after the first pass, want soon, and not after the hold of 30s", took)
	}
	for range requests {
		if a := <-answers; a.status != http.StatusOK {
			t.Errorf("got %v, want 200", a)
		}
	}
}

// A deployment behind a dynamic source: new addresses, and the old ones stop. No
// request fails, and nothing is an alarm: no gauge, no line, no event.
func TestCaddyPast_Deployment(t *testing.T) {
	backends := startBackends(t, "a", "b", "c", "d", "e", "f")
	old, next := backends[:3], backends[3:]
	dials := func(backends []*backend) (dials []string) {
		for _, b := range backends {
			dials = append(dials, b.addr)
		}
		return dials
	}
	s := newSource(t, dials(old)...)
	site := strings.Replace(dynamically(s.name(), quick), "lb_policy alive {", "lb_policy alive {\nname shop", 1)
	c := startOperated(t, "", site)
	clients := startTraffic(t, 2, func() answer { return ask(c.plain(), c.url()) })
	eventually(t, patience, "the old ones serve", func() bool { return statuses(dials(old)...)[health.Up] == 3 })
	s.set(dials(next)...)
	eventually(t, patience, "requests bring the next ones", func() bool { return statuses(dials(next)...)[health.Up] == 3 })
	answered := clients.answered()
	eventually(t, patience, "no request has the old ones any more", func() bool { return clients.answered() > answered+100 })
	for _, b := range old {
		b.set(refusing)
	}
	watch := func() {
		t.Helper()
		want := map[string]float64{
			`pool_fail_open{pool="shop"}`: 0, `pool_upstreams{pool="shop",state="down"}`: 0, `pool_upstreams{pool="shop",state="up"}`: 3,
		}
		for _, dial := range dials(old) {
			want[`upstream_up{check="http /healthz",upstream="`+dial+`"}`] = -1
		}
		for _, dial := range dials(next) {
			want[`upstream_up{check="http /healthz",upstream="`+dial+`"}`] = 1
		}
		c.wantMetrics("after the deployment", want)
		for _, e := range c.entries(nil) {
			past := strings.HasPrefix(e.Why, "requests bring other upstreams now")
			if isOld := e.Upstream == old[0].addr || e.Upstream == old[1].addr || e.Upstream == old[2].addr; past != isOld || e.FailOpen {
				t.Errorf("%s: %q, fail-open %v", e.Upstream, e.Why, e.FailOpen)
			}
		}
	}
	eventually(t, patience, "the old ones are down", func() bool {
		watch()
		return statuses(dials(old)...)[health.Down] == 3
	})
	watch()
	clients.stop()
	if err := clients.err(); err != nil {
		t.Errorf("of %d requests: %v", clients.answered(), err)
	}
	if n := c.logged("upstream is down") + c.logged("no upstream is alive"); n > 0 {
		t.Errorf("%d lines of the log are alarms, want none", n)
	}
}
