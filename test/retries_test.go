// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// TestCaddyRetries_ADownOneThatIsBackAnswers is the case of an upstream that was down,
// is up again without a probe that has seen it, and the only other one stops.
func TestCaddyRetries_ADownOneThatIsBackAnswers(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b")
	a, b := backends[0], backends[1]
	b.Set(testkit.Refusing)
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 10m
				fast_interval 10m
			}
		}
		lb_retries 2
		transport http {
			keepalive off
		}
	}
}`, testkit.Addresses(backends...)))
	testkit.Eventually(t, testkit.Patience, "a verdict on both", func() bool { return c.Up(a.Addr) && c.Down(b.Addr) })
	client := c.Client()
	if got := testkit.Tally(client, c.URL(), 10); got["a"] != 10 {
		t.Fatalf("served by %v, want a alone", got)
	}
	b.Set(testkit.Well)
	a.Set(testkit.Refusing)
	if got := testkit.Tally(client, c.URL(), 120); got["b"] != 120 {
		t.Errorf("served by %v, want b always: it is asked when the other has failed", got)
	}
}

// TestCaddyFailOpen_ByCaddysOwnHealth runs the two ways by which Caddy's own health
// leaves no upstream, and looks at what people see: the list, the metric, the event and
// the log, and that health_uri beside the policy is a warning.
func TestCaddyFailOpen_ByCaddysOwnHealth(t *testing.T) {
	for _, tc := range []struct {
		name, options string
		warns         bool
	}{
		{"passive", "fail_duration 30s\nmax_fails 1\nunhealthy_latency 1ns", false},
		{"a leftover health_uri", "health_uri /gone\nhealth_interval 50ms\nhealth_status 418", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.warns && !mayCheckItself {
				t.Skip("the race detector finds that Caddy's health checks emit events before its events app starts")
			}
			testkit.RecordEvents(t, nil)
			backends := testkit.StartBackends(t, "a", "b")
			c := testkit.StartCaddyWith(t, testkit.EventsOption, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive /healthz {
			name shop
		}
		%s
	}
}`, testkit.Addresses(backends...), tc.options))
			testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(backends[0].Addr, backends[1].Addr) })
			client := c.Client()
			testkit.Eventually(t, testkit.Patience, "the last resort", func() bool {
				if got := testkit.Tally(client, c.URL(), 4); got["error"] > 0 {
					t.Fatalf("served by %v, want no error", got)
				}
				return c.One(backends[0].Addr).FailOpen
			})
			const why = "up, but Caddy's own health checks hold it unhealthy; gets requests all the same, as the last resort: no upstream serves"
			for _, b := range backends {
				if e := c.One(b.Addr); e.Why != why || e.Serving || e.EffectiveWeight != 1 {
					t.Errorf("entry %+v, want it to get requests, and to say: %s", e, why)
				}
			}
			c.WantMetrics("as the last resort", map[string]float64{`pool_fail_open{pool="shop"}`: 1})
			testkit.Tally(client, c.URL(), 4)
			testkit.Eventually(t, testkit.Patience, "one event", func() bool {
				events := 0
				for _, e := range testkit.RecordedEvents() {
					if e.Name() == "fail_open" && e.Data["active"] == true {
						events++
					}
				}
				return events == 1
			})
			if lines := c.Lines("Caddy's own health checks hold every upstream unhealthy that is alive"); len(lines) != 1 {
				t.Errorf("%d lines, want one", len(lines))
			}
			if got := len(c.Lines("lb_policy alive has health checks of its own, and the handler has Caddy's")) > 0; got != tc.warns {
				t.Errorf("warned of health_uri: %v, want %v", got, tc.warns)
			}
		})
	}
}
