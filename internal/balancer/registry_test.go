// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/fleet"
	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// Requests may come before the registry of their config starts. Even then, what is known
// by a check that the config before had counts for the check that takes its place, and
// what another handler goes on checking does not.
func TestRegistry_StatusIsCarriedOverBeforeTheStart(t *testing.T) {
	for _, first := range []string{"the handler whose check changes", "the handler whose check stays"} {
		t.Run(first, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				stays := newNetwork() // nothing is alive for this check
				load := func(changes *network, more ...func(*setup)) (one, other *policy) {
					more = append(more, in(newRegistry(t, settings.NewSet())))
					with := func(n *network) *policy {
						return newPolicy(t, "", append(more, checking(n.check(), "a:80"))...)
					}
					if first == "the handler whose check changes" {
						one = with(changes)
						return one, with(stays)
					}
					other = with(stays)
					return with(changes), other
				}
				one, other := load(newNetwork("a:80"))
				answering(t, one.registry)
				time.Sleep(time.Minute)
				want := func(when string) {
					t.Helper()
					if a, b := one.Member("a:80").Status(), other.Member("a:80").Status(); a != health.Up || b != health.Down {
						t.Errorf("%s: %s and %s, want up and down", when, a, b)
					}
				}
				want("before the reload")
				one, other = load(newNetwork("a:80"), idle)
				want("before the start of the next config")
			})
		})
	}
}

// However many probes go on after they were cut off, the end of a config and the removal
// of upstreams from it wait a second for all of them together.
func TestStragglers_DelayAnEndByASecond(t *testing.T) {
	for name, end := range map[string]func(p *policy){
		"the end of a config":  func(p *policy) { p.end(t) },
		"addresses that leave": func(p *policy) { p.release(p.monitors.all()) },
	} {
		t.Run(name, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				var dials []string
				for i := range 50 {
					dials = append(dials, fmt.Sprintf("app%d:80", i))
				}
				endless := checkBy("endless", "endless", newProber().check().Settings, func(context.Context, *monitor.Route) error {
					time.Sleep(time.Minute) // whatever becomes of the context
					return nil
				})
				p := newPolicy(t, "", checking(endless, dials...))
				time.Sleep(10 * time.Second)
				synctest.Wait()
				for _, m := range p.monitors.all() {
					if m.Target.Status() != health.Down {
						t.Fatalf("%s is not down although its probe did not end", m.Upstream.Address)
					}
				}
				began := time.Now()
				end(p)
				if took := time.Since(began); took != time.Second {
					t.Errorf("it took %v, want a second", took)
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

// A handler that cannot be provisioned leaves nothing behind, and ends nothing of a
// registry that runs.
func TestBalancer_FailedInitEndsNothingElse(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80")
		p := newDynamicPolicy(t, n, "x", func(s *setup) { s.Proxy.Upstreams = brought("a:80") })
		refuses := n.check()
		refuses.Identity, refuses.Validate = "refuses", func(r *monitor.Route) error {
			if r.Address == "c:80" {
				return errors.New("not this one")
			}
			return nil
		}
		c := p.config
		c.Checks, c.Proxy = []*monitor.Check{n.check(), refuses}, &reverseproxy.Handler{Upstreams: brought("b:80", "c:80")}
		failing := new(Balancer)
		if err := failing.Init(p.registry, c); err == nil {
			t.Fatal("no error")
		}
		if err := failing.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		n.probed()
		time.Sleep(time.Minute)
		if got, want := n.probed(), []string{"a:80"}; !slices.Equal(got, want) {
			t.Errorf("probed %v, want %v", got, want)
		}
	})
}

// What a config before has in flight counts for the fleet until it has ended, also for an
// upstream that the newest config does not have.
func TestInFleet_CountsRequestsOfTheConfigBefore(t *testing.T) {
	before, now := newPolicy(t, "u"), newPolicy(t, "")
	answering(t, before.registry)
	answering(t, now.registry)
	p := InFleet{now.registry}
	if r := p.Requests(address(0)); r != (fleet.Requests{}) {
		t.Errorf("nothing is in flight: %+v", r)
	}
	testkit.SetRequests(before.listed[0], 3)
	if r := p.Requests(address(0)); r != (fleet.Requests{InFlight: 3}) {
		t.Errorf("three are in flight: %+v", r)
	}
	testkit.SetRequests(before.listed[0], 0)
}
