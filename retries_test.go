// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
)

// TestRetries_LeastRecentlyFailedFirst: those that are down are tried after all that
// serve, the one whose checks failed the longest ago first, backups too; never one in
// maintenance, of weight 0, drained or full.
func TestRetries_LeastRecentlyFailedFirst(t *testing.T) {
	for _, tc := range []struct {
		rule      string
		configure func(*Selection)
		want      []int
	}{
		{"fail_open none_up", func(*Selection) {}, []int{0, 3, 1, 2, 0, 3, 1, 2}},
		{"fail_open off", func(s *Selection) { s.rules.failOpen.never = true }, []int{0, 0, 0, 0, 0, 0, 0, 0}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPolicy(t, "uuuuuuuu", following(t), retrying, tc.configure, withWeights(1, 1, -1, 1, 0, 1, 1, 1))
				for _, i := range []int{4, 5, 6, 7, 3, 1, 2} { // in this order
					p.decide("????????"[:i] + "d")
					time.Sleep(time.Second)
				}
				p.set(5, settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
				p.set(6, settings.Change{Mode: new(settings.Mode(settings.Drain))})
				p.upstreams[7].MaxRequests = 1
				setRequests(p.upstreams[7], 1)
				if got := p.picks(same(), 8); !slices.Equal(got, tc.want) {
					t.Errorf("one request tried %v, want %v", got, tc.want)
				}
			})
		})
	}
}

// TestRetries_HeldUnhealthyByCaddyIsTriedAtLast: what does not serve by Caddy's own
// health is like what is down; an open circuit breaker is never bypassed.
func TestRetries_HeldUnhealthyByCaddyIsTriedAtLast(t *testing.T) {
	b := new(breaker)
	p := newPolicy(t, "uuu", retrying, func(s *Selection) { s.proxy.CB = b })
	setHealthy(p.upstreams[1], false)
	got := p.picks(same(), 3)
	slices.Sort(got[:2])
	if want := []int{0, 2, 1}; !slices.Equal(got, want) {
		t.Errorf("one request tried %v, want %v", got, want)
	}
	b.open.Store(true) // of which these upstreams do not know
	if got := p.picks(same(), 6); slices.Contains(got, 1) {
		t.Errorf("one request tried %v with the breaker open, want those that serve", got)
	}
}

// TestRetries_AFullOneThatServesKeepsTheDownOnesOut: it was not tried, so not all that
// serve were.
func TestRetries_AFullOneThatServesKeepsTheDownOnesOut(t *testing.T) {
	p := newPolicy(t, "uud", retrying)
	p.upstreams[1].MaxRequests = 1
	setRequests(p.upstreams[1], 1)
	r := same()
	if got, want := p.picks(r, 3), []int{0, 0, 0}; !slices.Equal(got, want) {
		t.Errorf("one request tried %v, want %v", got, want)
	}
	setRequests(p.upstreams[1], 0)
	if got, want := p.picks(r, 2), []int{1, 2}; !slices.Equal(got, want) {
		t.Errorf("when a slot was free it tried %v, want %v", got, want)
	}
}

// TestRetries_TheDownOnesAreProbedAtOnce when the last one that serves has failed a
// request, and not before: also before draining ones have their turn, and where health
// is never ignored.
func TestRetries_TheDownOnesAreProbedAtOnce(t *testing.T) {
	for _, tc := range []struct {
		rule      string
		verdicts  string
		draining  int // position, -1 for none
		configure func(*Selection)
		probed    [4]int // by how many picks of one request
	}{
		{"two serve", "uudd", -1, func(*Selection) {}, [4]int{0, 0, 2, 2}},
		{"one serves", "uddd", -1, func(*Selection) {}, [4]int{0, 3, 3, 3}},
		{"one serves, and another drains", "uudd", 1, func(*Selection) {}, [4]int{0, 2, 2, 2}},
		{"fail_open off", "uudd", -1, func(s *Selection) { s.rules.failOpen.never = true }, [4]int{0, 0, 2, 2}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPolicy(t, tc.verdicts, retrying, tc.configure)
				if tc.draining >= 0 {
					refuse(p.targets[tc.draining], true)
				}
				probed := make([]int, len(p.targets))
				for i, target := range p.targets {
					draining := i == tc.draining
					defer target.Attach(health.Driver{Probe: func(context.Context, bool) (bool, error) {
						probed[i]++
						if tc.verdicts[i] == 'd' {
							return false, http.ErrServerClosed
						}
						return draining, nil
					}}, 0)()
				}
				time.Sleep(time.Hour / 2) // so that none is put off
				clear(probed)
				r := same()
				for n, want := range tc.probed {
					p.picks(r, 1)
					synctest.Wait()
					down := 0
					for i, count := range probed {
						if tc.verdicts[i] == 'd' {
							down += count
						}
					}
					if down != want {
						t.Errorf("after %d picks: %d probes of those that are down, want %d", n+1, down, want)
					}
				}
			})
		})
	}
}

// TestRetries_ProbesAtOnceAreBounded: of thousands that are down, a request has a few
// probed, another request others.
func TestRetries_ProbesAtOnceAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 100
		verdicts := make([]byte, n)
		for i := range verdicts {
			verdicts[i] = 'd'
		}
		verdicts[0] = 'u'
		p := newPolicy(t, string(verdicts), retrying)
		var mu sync.Mutex // guards probed
		probed := make(map[int]bool)
		for i, target := range p.targets[1:] {
			defer target.Attach(health.Driver{Probe: func(context.Context, bool) (bool, error) {
				mu.Lock()
				defer mu.Unlock()
				probed[i] = true
				return false, http.ErrServerClosed
			}}, time.Hour)()
		}
		time.Sleep(time.Hour / 2) // so that none is put off
		for request := range 3 {
			p.picks(same(), 2)
			time.Sleep(time.Second)
			mu.Lock()
			got := len(probed)
			mu.Unlock()
			if want := (request + 1) * maxProbedDown; got != want {
				t.Errorf("after %d requests %d are probed, want %d", request+1, got, want)
			}
		}
	})
}

// TestRetries_OverDynamicPoolsAskTheDown: the same where the values are new for every
// try.
func TestRetries_OverDynamicPoolsAskTheDown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80")
		p := newDynamicPolicy(t, n, "retries", following(t), retrying)
		defer p.end(t)
		p.served(1, "a:80", "b:80", "c:80")
		time.Sleep(time.Second)
		r := get()
		var got []string
		for range 3 {
			got = append(got, p.Select(brought("a:80", "b:80", "c:80"), r, nil).Dial)
		}
		slices.Sort(got[:2])
		if want := []string{"a:80", "b:80", "c:80"}; !slices.Equal(got, want) {
			t.Errorf("tried %v, want the one that is down at last", got)
		}
	})
}

// TestCaddyRetries_ADownOneThatIsBackAnswers is the case of an upstream that was down,
// is up again without a probe that has seen it, and the only other one stops.
func TestCaddyRetries_ADownOneThatIsBackAnswers(t *testing.T) {
	backends := startBackends(t, "a", "b")
	a, b := backends[0], backends[1]
	b.set(refusing)
	c := startCaddy(t, fmt.Sprintf(`
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
}`, addresses(backends...)))
	eventually(t, patience, "a verdict on both", func() bool { return is(health.Up, a.addr) && is(health.Down, b.addr) })
	client := c.plain()
	if got := tally(client, c.url(), 10); got["a"] != 10 {
		t.Fatalf("served by %v, want a alone", got)
	}
	b.set(well)
	a.set(refusing)
	if got := tally(client, c.url(), 120); got["b"] != 120 {
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
			record(t, nil)
			backends := startBackends(t, "a", "b")
			c := startOperated(t, recordEvents, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive /healthz {
			name shop
		}
		%s
	}
}`, addresses(backends...), tc.options))
			eventually(t, patience, "both are up", func() bool { return statuses(backends[0].addr, backends[1].addr)[health.Up] == 2 })
			client := c.plain()
			eventually(t, patience, "the last resort", func() bool {
				if got := tally(client, c.url(), 4); got["error"] > 0 {
					t.Fatalf("served by %v, want no error", got)
				}
				return c.one(backends[0].addr).FailOpen
			})
			const why = "up, but Caddy's own health checks hold it unhealthy; gets requests all the same, as the last resort: no upstream serves"
			for _, b := range backends {
				if e := c.one(b.addr); e.Why != why || e.Serving || e.EffectiveWeight != 1 {
					t.Errorf("entry %+v, want it to get requests, and to say: %s", e, why)
				}
			}
			c.wantMetrics("as the last resort", map[string]float64{`pool_fail_open{pool="shop"}`: 1})
			tally(client, c.url(), 4)
			eventually(t, patience, "one event", func() bool {
				recorded.Lock()
				defer recorded.Unlock()
				events := 0
				for _, e := range recorded.events {
					if e.Name() == "fail_open" && e.Data["active"] == true {
						events++
					}
				}
				return events == 1
			})
			if lines := c.lines("Caddy's own health checks hold every upstream unhealthy that is alive"); len(lines) != 1 {
				t.Errorf("%d lines, want one", len(lines))
			}
			if got := len(c.lines("lb_policy alive has health checks of its own, and the handler has Caddy's")) > 0; got != tc.warns {
				t.Errorf("warned of health_uri: %v, want %v", got, tc.warns)
			}
		})
	}
}
