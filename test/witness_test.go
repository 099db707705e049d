// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// One of three upstreams fails, and no request is retried. The first request that fails is
// the last one: those that were sent before it had its answer may fail, too.
func TestWitness_OneFailedRequest(t *testing.T) {
	const check = "check http /healthz {\ninterval 10s\nfast_interval 200ms\ntimeout 5s\n}\nretries off\n"
	type fault struct {
		path    string
		conduct testkit.Conduct
		most    int // failed requests, one after the other
	}
	cases := []fault{
		{"refused", testkit.Refusing, 1},
		{"resets", testkit.Resetting, 1},
		{"unavailable", testkit.Unavailable, 3}, // one status is none
		// its checks pass, so five in a row decide; and the first of them may have begun before
		// the acquittal of a burst
		{"shallow", testkit.Shallow, 6},
	}
	var routes []route
	for _, test := range cases {
		routes = append(routes, route{path: test.path, upstreams: three(t), policy: check})
	}
	c := startRoutes(t, "", routes...)
	together(t, cases, func(f fault) string { return f.path }, func(t *testing.T, f fault) {
		c, bad := c.For(t), routes[slices.Index(cases, f)].upstreams[0]
		load := testkit.OpenLoop(t, 10*time.Millisecond, asks(c, http.MethodGet, f.path, ""))
		load.Await(t, 50)
		bad.Set(f.conduct)
		testkit.Eventually(t, testkit.Patience, "it serves no more", func() bool {
			row := rowOf(c, f.path, bad.Addr)
			return row.Status == "down" || row.EjectedUntil != nil
		})
		load.Await(t, 100)
		sent := load.Stop()
		if len(failures(sent)) == 0 {
			t.Error("no request failed, so nothing was to be noticed")
		}
		wantRounds(t, f.path, sent, f.most)
	})
}

// Clients that ask without a pause lose one request each. A client that is told of a failure
// while the others are being told may lose one more.
func TestWitness_ClosedLoop(t *testing.T) {
	const clients = 16
	r := route{path: "closed", upstreams: three(t), policy: "retries off"}
	c := startRoutes(t, "", r)
	load := testkit.ClosedLoop(t, clients, asks(c, http.MethodGet, r.path, ""))
	load.Await(t, 500)
	r.upstreams[0].Set(testkit.Refusing)
	load.Await(t, 1000)
	sent := load.Stop()
	wantRounds(t, "killed", sent, 2)
	if n := len(failures(sent)); n == 0 || n > clients*5/4 {
		t.Errorf("%d of %d requests failed, want at least 1, and at most %d", n, len(sent), clients*5/4)
	}
}

// The smallest Caddyfile retries. A GET request that fails at one upstream does not fail.
func TestWitness_SmallestCaddyfile(t *testing.T) {
	conducts := map[string]testkit.Conduct{"refused": testkit.Refusing, "resets": testkit.Resetting}
	var routes []route
	for path := range conducts {
		routes = append(routes, route{path: path, upstreams: three(t)})
	}
	text := "http:// {\n"
	for _, r := range routes {
		text += fmt.Sprintf("handle /%s {\nreverse_proxy %s {\nlb_policy alive\n}\n}\n", r.path, testkit.Addresses(r.upstreams...))
	}
	c := testkit.StartCaddy(t, text+"}")
	awaitUp(t, c, routes...)
	together(t, routes, routePath, func(t *testing.T, r route) {
		c, bad := c.For(t), r.upstreams[0]
		load := testkit.ClosedLoop(t, 4, asks(c, http.MethodGet, r.path, ""))
		load.Await(t, 100)
		bad.Set(conducts[r.path])
		testkit.Eventually(t, testkit.Patience, "a request has accused it", func() bool {
			row := c.One(bad.Addr)
			return row.Suspect || row.Status == "down" || row.EjectedUntil != nil ||
				accusations(c, row.Pool, bad.Addr, "outcome")+accusations(c, row.Pool, bad.Addr, "connect") > 0
		})
		load.Await(t, 300)
		if failed := failures(load.Stop()); len(failed) > 0 {
			t.Errorf("%d requests failed: %v", len(failed), failed)
		}
	})
}

// An upstream that stops answering, as a stopped process does, gets no more requests soon
// after its time to stall is over.
func TestWitness_Stalls(t *testing.T) {
	const stall = 200 * time.Millisecond
	const late = 5 * testkit.Slack // while this process is late, nothing counts as a stall
	routes := []route{
		{path: "fixed", policy: "check http /healthz {\ninterval 10m\ntimeout 5s\n}\nretries off\nobserve {\nstall " + stall.String() + "\n}"},
		{path: "auto", policy: "check http /healthz {\ninterval 10m\ntimeout 5s\n}\nretries off"}, // 500 ms at this pace
		{path: "single", policy: "check http /healthz {\ninterval 10m\ntimeout 5s\n}\nretries off\nobserve {\nstall " + stall.String() + "\n}"},
	}
	for i := range routes {
		routes[i].upstreams = three(t)
	}
	c := startRoutes(t, "", routes...)
	together(t, routes, routePath, func(t *testing.T, r route) {
		c, bad := c.For(t), r.upstreams[0]
		ask := asks(c, http.MethodGet, r.path, "")
		if r.path == "single" { // one request that waits is enough, and no further one comes
			bad.Set(testkit.Hanging)
			load := testkit.ClosedLoop(t, 1, ask)
			testkit.Eventually(t, testkit.Patience, "the request has reached it", func() bool { return bad.History().Requests > 0 })
			began := time.Now()
			testkit.Eventually(t, stall*5/4+late, "it is suspect", func() bool { return rowOf(c, r.path, bad.Addr).Suspect })
			t.Logf("suspect after %s", time.Since(began).Round(time.Millisecond))
			bad.Set(testkit.Well)
			load.Stop()
			return
		}
		load := testkit.OpenLoop(t, 10*time.Millisecond, ask)
		load.Await(t, 100)
		bad.Set(testkit.Hanging)
		began := time.Now()
		testkit.Eventually(t, 500*time.Millisecond*5/4+late, "it is suspect", func() bool {
			row := rowOf(c, r.path, bad.Addr)
			return row.Suspect && row.EffectiveWeight == 0 // requests know it, too
		})
		noticed := time.Now()
		load.Await(t, 100)
		suspect := rowOf(c, r.path, bad.Addr).Suspect
		bad.Set(testkit.Well)
		failed := failures(load.Stop())
		t.Logf("suspect after %s, %d requests failed", noticed.Sub(began).Round(time.Millisecond), len(failed))
		for _, f := range failed {
			if suspect && f.Began.After(noticed) {
				t.Errorf("failed, and was sent after the upstream was suspect: %v", f)
			}
		}
		if len(failed) == 0 {
			t.Error("no request failed, so nothing was to be noticed")
		}
	})
}
