// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// route is a handler of a config, below a path of its own.
type route struct {
	path      string // which is also the name of its pool
	upstreams []*testkit.Backend
	policy    string // options of the policy
	handler   string // further options of the handler
	before    string // directives that come before it
}

func routePath(r route) string { return r.path }

// burstCheck is a check that runs once, and then only when the traffic accuses.
const burstCheck = `check http /healthz {
	interval 10m
	fast_interval 40ms
	timeout 5s
}`

// sites is a config with these routes.
func sites(routes ...route) string {
	var s strings.Builder
	s.WriteString("http:// {\n")
	for _, r := range routes {
		fmt.Fprintf(&s, "handle /%s* {\n%s\nreverse_proxy %s {\nlb_policy alive {\nname %s\n%s\n}\n%s\n}\n}\n",
			r.path, r.before, testkit.Addresses(r.upstreams...), r.path, r.policy, r.handler)
	}
	s.WriteString("}\n")
	return s.String()
}

// startRoutes runs Caddy with these routes, and returns when all their upstreams are up.
func startRoutes(t *testing.T, global string, routes ...route) *testkit.Caddy {
	t.Helper()
	c := testkit.StartCaddyWith(t, global, sites(routes...))
	awaitUp(t, c, routes...)
	return c
}

// awaitUp returns when all upstreams of the routes are up.
func awaitUp(t *testing.T, c *testkit.Caddy, routes ...route) {
	t.Helper()
	for _, r := range routes {
		for _, b := range r.upstreams {
			testkit.Eventually(t, testkit.Patience, b.Addr+" is up", func() bool { return c.Up(b.Addr) })
		}
	}
}

// three starts backends a, b and c.
func three(t *testing.T) []*testkit.Backend { return testkit.StartBackends(t, "a", "b", "c") }

// together runs a subtest for each of some, all at once: testing itself runs only a few
// parallel tests at a time.
func together[T any](t *testing.T, all []T, name func(T) string, run func(*testing.T, T)) {
	t.Helper()
	var wg sync.WaitGroup
	for _, one := range all {
		wg.Go(func() { t.Run(name(one), func(t *testing.T) { run(t, one) }) })
	}
	wg.Wait()
}

// asks returns a function that sends a request with a client of its own.
func asks(c *testkit.Caddy, method, path, body string) func() testkit.Answer {
	client := c.Client()
	return func() testkit.Answer { return send(client, method, c.URL()+"/"+path, body) }
}

// send sends a request with a body, unless that is empty.
func send(client *http.Client, method, url, body string) testkit.Answer {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return testkit.Answer{Err: err}
	}
	return testkit.Do(client, req)
}

// failures returns the requests that have failed.
func failures(sent []testkit.Sent) []testkit.Sent {
	return slices.DeleteFunc(slices.Clone(sent), func(s testkit.Sent) bool { return !s.Failed() })
}

// rounds returns how many failures there are, those that were in flight together counted as
// one: each was sent after the one before had its answer.
func rounds(failed []testkit.Sent) (n int) {
	failed = slices.Clone(failed)
	slices.SortFunc(failed, func(a, b testkit.Sent) int { return a.Ended.Compare(b.Ended) })
	var last testkit.Sent
	for _, f := range failed {
		if n == 0 || f.Began.After(last.Ended) {
			n++
			last = f
		}
	}
	return n
}

// wantRounds fails the test if more requests failed, one after the other, than that. It logs
// how many failed in all.
func wantRounds(t *testing.T, what string, sent []testkit.Sent, most int) {
	t.Helper()
	failed := failures(sent)
	t.Logf("%s: %d of %d requests failed, %d of them one after the other", what, len(failed), len(sent), rounds(failed))
	if n := rounds(failed); n > most {
		t.Errorf("%s: %d requests failed one after the other, want at most %d: %v", what, n, most, failed)
	}
}

// rowOf returns the row of an upstream in a pool.
func rowOf(c *testkit.Caddy, pool, upstream string) testkit.Upstream {
	c.T.Helper()
	rows := c.List(url.Values{"upstream": {upstream}, "pool": {pool}})
	if len(rows) != 1 {
		c.T.Errorf("%s of %s: %d rows, want 1: %+v", upstream, pool, len(rows), rows)
		return testkit.Upstream{}
	}
	return rows[0]
}

// series is the name of a metric with its labels, in order.
func series(name string, labels ...string) string {
	var pairs []string
	for i := 0; i < len(labels); i += 2 {
		pairs = append(pairs, fmt.Sprintf("%s=%q", labels[i], labels[i+1]))
	}
	return name + "{" + strings.Join(pairs, ",") + "}"
}

// metric returns the value of a metric, 0 if there is none.
func metric(c *testkit.Caddy, name string, labels ...string) float64 {
	c.T.Helper()
	return c.Metrics()[series(name, labels...)]
}

// accusations returns how often the traffic of a pool accused an upstream of a cause.
func accusations(c *testkit.Caddy, pool, upstream, cause string) float64 {
	c.T.Helper()
	return metric(c, "accusations_total", "cause", cause, "pool", pool, "upstream", upstream)
}

// wantUndisturbed fails the test unless no upstream of a route went down, and at most so many
// were ejected. It returns how many were.
func wantUndisturbed(t *testing.T, metrics map[string]float64, r route, most int) (ejected int) {
	t.Helper()
	for _, b := range r.upstreams {
		for name, n := range metrics {
			if n > 0 && strings.HasPrefix(name, "transitions_total{") && strings.Contains(name, b.Addr) && strings.Contains(name, `to="down"`) {
				t.Errorf("%s: %s went down: %s is %v", r.path, b.Name, name, n)
			}
		}
		ejected += int(metrics[series("ejections_total", "pool", r.path, "upstream", b.Addr)])
	}
	if ejected > most {
		t.Errorf("%s: %d ejections, want %d at most", r.path, ejected, most)
	}
	return ejected
}
