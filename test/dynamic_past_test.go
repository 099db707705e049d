// SPDX-License-Identifier: Apache-2.0

package test

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// 400 requests at once over a dynamic source, at the cold start: all of them go on
// soon after the first upstream passed.
func TestCaddyHold_DynamicPoolWakesAll(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "c")
	checked := testkit.NewGate(t)
	for _, b := range backends {
		b.Hook = func(r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/healthz") {
				checked.Pass(r)
			}
		}
	}
	s := testkit.NewSource(t, backends[0].Addr, backends[1].Addr, backends[2].Addr)
	c := testkit.StartCaddy(t, testkit.DynamicSite(s.Name(), "check http /healthz {\ntimeout 1m\n}\nhold 30s"))
	const requests = 400
	answers := make(chan testkit.Answer, requests)
	var asking sync.WaitGroup
	for range requests {
		asking.Go(func() { answers <- testkit.Ask(c.Client(), c.URL()) })
	}
	testkit.Eventually(t, testkit.Patience, "all requests are held", func() bool {
		var held float64
		for name, n := range c.Metrics() {
			if strings.HasPrefix(name, "held_requests_total") {
				held += n
			}
		}
		return held == requests
	})
	checked.Open()
	began := time.Now()
	asking.Wait()
	if took := time.Since(began); took > testkit.Slack {
		t.Errorf("the last one was answered %s after the first pass, want soon, and not after the hold of 30s", took)
	}
	for range requests {
		if a := <-answers; a.Status != http.StatusOK {
			t.Errorf("got %v, want 200", a)
		}
	}
}

// A deployment behind a dynamic source: new addresses, and the old ones stop. No
// request fails, and nothing is an alarm: no gauge, no line, no event.
func TestCaddyPast_Deployment(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "c", "d", "e", "f")
	old, next := backends[:3], backends[3:]
	dials := func(backends []*testkit.Backend) (dials []string) {
		for _, b := range backends {
			dials = append(dials, b.Addr)
		}
		return dials
	}
	s := testkit.NewSource(t, dials(old)...)
	site := strings.Replace(testkit.DynamicSite(s.Name(), testkit.QuickCheck), "lb_policy alive {", "lb_policy alive {\nname shop", 1)
	c := testkit.StartCaddyWith(t, "", site)
	clients := testkit.StartTraffic(t, 2, func() testkit.Answer { return testkit.Ask(c.Client(), c.URL()) })
	testkit.Eventually(t, testkit.Patience, "the old ones serve", func() bool { return c.Statuses(dials(old)...)["up"] == 3 })
	s.Set(dials(next)...)
	testkit.Eventually(t, testkit.Patience, "requests bring the next ones", func() bool { return c.Statuses(dials(next)...)["up"] == 3 })
	answered := clients.Answered()
	testkit.Eventually(t, testkit.Patience, "no request has the old ones any more", func() bool { return clients.Answered() > answered+100 })
	for _, b := range old {
		b.Set(testkit.Refusing)
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
		c.WantMetrics("after the deployment", want)
		for _, e := range c.List(nil) {
			past := strings.HasPrefix(e.Why, "requests bring other upstreams now")
			if isOld := e.Upstream == old[0].Addr || e.Upstream == old[1].Addr || e.Upstream == old[2].Addr; past != isOld || e.FailOpen {
				t.Errorf("%s: %q, fail-open %v", e.Upstream, e.Why, e.FailOpen)
			}
		}
	}
	testkit.Eventually(t, testkit.Patience, "the old ones are down", func() bool {
		watch()
		return c.Statuses(dials(old)...)["down"] == 3
	})
	watch()
	clients.Stop()
	if err := clients.Err(); err != nil {
		t.Errorf("of %d requests: %v", clients.Answered(), err)
	}
	if n := c.Logged("upstream is down") + c.Logged("no upstream is alive"); n > 0 {
		t.Errorf("%d lines of the log are alarms, want none", n)
	}
}
