// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// A restart of an upstream, or of all, is over for clients soon after it is over: long before
// the next check would have been due.
func TestRestart_IsOverSoon(t *testing.T) {
	type restart struct {
		route
		down     time.Duration
		all      bool
		failOpen string
	}
	var cases []restart
	var routes []route
	for _, down := range []time.Duration{300 * time.Millisecond, 600 * time.Millisecond} {
		for _, failOpen := range []string{"none_up", "off"} {
			for _, all := range []bool{false, true} {
				r := restart{down: down, all: all, failOpen: failOpen, route: route{
					path: fmt.Sprintf("%s-%s-%v", down, failOpen, all), upstreams: three(t),
					policy: "check http /healthz {\ninterval 30s\nfast_interval 200ms\ntimeout 5s\n}\nretries off\nfail_open " + failOpen,
				}}
				cases, routes = append(cases, r), append(routes, r.route)
			}
		}
	}
	c := startRoutes(t, "", routes...)
	together(t, cases, func(r restart) string { return r.path }, func(t *testing.T, r restart) {
		c, some := c.For(t), r.upstreams[:1]
		if r.all {
			some = r.upstreams
		}
		load := testkit.OpenLoop(t, 20*time.Millisecond, asks(c, http.MethodGet, r.path, ""))
		load.Await(t, 20)
		for _, b := range some {
			b.Set(testkit.Refusing)
		}
		time.Sleep(r.down) // this is how long a restart takes
		for _, b := range some {
			b.Set(testkit.Well)
		}
		over := time.Now()
		testkit.Eventually(t, time.Second+testkit.Slack, "all serve again", func() bool {
			for _, b := range r.upstreams {
				if row := rowOf(c, r.path, b.Addr); !row.Serving || row.Suspect {
					return false
				}
			}
			return true
		})
		back := time.Now()
		load.Await(t, 20)
		sent := load.Stop()
		failed := failures(sent)
		t.Logf("%d of %d requests failed; back %s after the restart", len(failed), len(sent), back.Sub(over).Round(time.Millisecond))
		for _, f := range failed {
			if f.Began.After(back) {
				t.Errorf("failed after the restart: %v", f)
			}
		}
		if !r.all && rounds(failed) > 1 {
			t.Errorf("%d requests failed one after the other, want 1, since others serve: %v", rounds(failed), failed)
		}
		if r.all && len(failed) == 0 {
			t.Error("no request failed, so nothing was restarted")
		}
	})
}
