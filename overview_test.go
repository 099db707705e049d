// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// Handlers of one pool are one: what counts twice is counted once, and the worst of
// what differs is shown. It serves if it does for one of them.
func TestEntriesMerge(t *testing.T) {
	early, late := new(time.Unix(1, 0)), new(time.Unix(2, 0))
	e := view.Upstream{
		Status: "up", Serving: true, Why: "up", Weight: 2, EffectiveWeight: 1, Requests: 3, Fails: 1, Backup: true, Since: early,
		Checks: []view.Check{{Check: "tcp", Status: "up"}, {Check: "http /", Status: "up"}},
	}
	e.Merge(view.Upstream{
		Status: "down", Why: "refused", Weight: 3, EffectiveWeight: 0, Requests: 3, Fails: 2, Since: late, FailOpen: true,
		Checks: []view.Check{{Check: "http /", Status: "down"}, {Check: "tls", Status: "unknown"}},
	})
	if e.Status != "down" || e.Since != late || !e.Serving || e.Why != "up; elsewhere in this pool: refused" || !e.FailOpen || e.Backup ||
		e.Weight != 3 || e.EffectiveWeight != 1 || e.Requests != 3 || e.Fails != 2 {
		t.Errorf("merged: %+v", e)
	}
	var checks []string
	for _, c := range e.Checks {
		checks = append(checks, c.Check+" "+c.Status)
	}
	if want := "http / down, tcp up, tls unknown"; strings.Join(checks, ", ") != want {
		t.Errorf("checks %v, want %s", checks, want)
	}
	e.Merge(view.Upstream{Status: "up", Serving: true, Why: "up", Since: early, Checks: []view.Check{{Check: "http /", Status: "up"}}})
	if e.Status != "down" || e.Since != late || !e.Serving || e.Checks[0].Status != "down" || e.Why != "up; elsewhere in this pool: refused" {
		t.Errorf("merged with a better one: %+v", e)
	}
}

// A failure is told from a result by its sign, however quick it was.
func TestRecentResultsHaveASign(t *testing.T) {
	c := newCheckEntry("tcp", health.View{Recent: []health.PastResult{{Took: 1, Passed: true}, {Took: 1}, {Took: 12 * time.Millisecond, Passed: true}, {Took: 3456 * time.Microsecond}}})
	if want := []float64{0.01, -0.01, 12, -3.46}; !slices.Equal(c.Recent, want) {
		t.Errorf("recent %v, want %v", c.Recent, want)
	}
}

// An upstream that is listed twice is one, with the weight of both.
func TestAnUpstreamListedTwice(t *testing.T) {
	p := newPolicy(t, "uu", following(t))
	p.upstreams = append(p.upstreams, &reverseproxy.Upstream{Host: p.upstreams[0].Host, Dial: p.upstreams[0].Dial})
	p.members = append(p.members, p.members[0])
	p.refresh()
	all := p.entries(filter{})
	if len(all) != 2 || all[0].EffectiveWeight != 2 || all[1].EffectiveWeight != 1 {
		t.Errorf("entries %+v", all)
	}
}

// A check at once has the time that the check has, and that of the probe that may be
// in flight.
func TestChecksAtOnceHaveTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := health.NewTarget(health.Settings{
			Interval: time.Hour, FastInterval: time.Hour, DownInterval: time.Hour,
			Timeout: 3 * time.Second, Passes: 1, Fails: 1,
		})
		defer target.Attach(health.Driver{Probe: func(context.Context, bool) (bool, error) {
			time.Sleep(2900 * time.Millisecond)
			return false, errors.New("refused")
		}}, 0)()
		synctest.Wait() // the first is in flight
		if err := checkAll(t.Context(), map[*health.Target]time.Duration{target: 3 * time.Second}); err != nil {
			t.Error(err)
		}
		if v := target.View(); v.Fails != 2 {
			t.Errorf("%d probes failed, want the one in flight, and the one that was asked for", v.Fails)
		}
	})
}

// Whoever reads the list learns why an upstream gets requests, or none.
func TestWhy(t *testing.T) {
	p := newPolicy(t, "uuuduu", following(t), withWeights(1, 1, 1, 1, -1, 0))
	setHealthy(p.upstreams[1], false)
	p.upstreams[2].MaxRequests = 2
	setRequests(p.upstreams[2], 2)
	want := []string{
		"up: gets requests in turn",
		"up, but Caddy's own health checks hold it unhealthy: no requests",
		"up, but has as many requests as it may have at once: 2",
		"check 'test' failed: ",
		"up, and a backup: gets requests when no primary can serve",
		"its weight is 0: no requests",
	}
	serving := []bool{true, false, true, false, false, false}
	for i, e := range p.entries(filter{}) {
		if !strings.HasPrefix(e.Why, want[i]) || e.Serving != serving[i] {
			t.Errorf("%d: %q, serving %v, want %q, %v", i, e.Why, e.Serving, want[i], serving[i])
		}
	}
	p.set(0, settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
	p.set(2, settings.Change{Mode: new(settings.Mode(settings.Drain))})
	p.set(5, settings.Change{Pool: "shop", Weight: new(new(3))})
	p.decide("????d?")
	for i, want := range []string{"in maintenance since ", "", "draining since ", "", "check 'test' failed: ", "up: gets requests in turn"} {
		if e := p.entries(filter{})[i]; !strings.HasPrefix(e.Why, want) && want != "" {
			t.Errorf("%d: %q, want %q", i, e.Why, want)
		}
	}
}
