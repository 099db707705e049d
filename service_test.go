// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/page"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// Each pool is said to serve or not, and what is no pool at present has no alarm.
func TestServices_SayWhatEachPoolServes(t *testing.T) {
	up := view.Upstream{Upstream: "a:80", Serving: true, EffectiveWeight: 1}
	down := view.Upstream{Upstream: "b:80"}
	gets := view.Upstream{Upstream: "c:80", EffectiveWeight: 1}
	open := view.Upstream{Upstream: "d:80", EffectiveWeight: 1, FailOpen: true}
	for _, tc := range []struct {
		rule    string
		entries []view.Upstream
		alarm   string
		outage  bool
	}{
		{"one serves", []view.Upstream{down, up}, "", false},
		{"some drain, and get requests", []view.Upstream{gets, down}, "No upstream serves: requests go to ", true},
		{"none gets requests", []view.Upstream{down}, "No upstream serves, and none gets requests", true},
		{"fail-open, and none serves", []view.Upstream{open}, "Fail-open: no upstream serves, ", true},
		{"fail-open, and one serves", []view.Upstream{open, up}, "Fail-open: too few upstreams serve, ", false},
		{"requests bring it no more", []view.Upstream{{Upstream: "e:80", Idle: true}}, "", false},
		{"one that requests bring no more serves", []view.Upstream{{Serving: true, Idle: true}, down}, "No upstream serves, and", true},
		{"only what was set", []view.Upstream{{Upstream: "f:80", Gone: true}}, "", false},
		{"nothing", nil, "", false},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			for i := range tc.entries {
				tc.entries[i].Pool = "shop"
			}
			entries := append([]view.Upstream{{Pool: "other", Upstream: "x:80", Serving: true, EffectiveWeight: 1}}, tc.entries...)
			if got := view.Alarms(entries)["shop"]; !strings.HasPrefix(got, tc.alarm) || (got == "") != (tc.alarm == "") {
				t.Errorf("alarm %q, want %q", got, tc.alarm)
			}
			lines := view.Outages(entries)
			if (len(lines) == 1) != tc.outage || tc.outage && !strings.HasPrefix(lines[0], "pool shop: "+tc.alarm) {
				t.Errorf("outages %q, want some: %v", lines, tc.outage)
			}

			html, err := page.Render(entries, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if shown := bytes.Contains(html, []byte(`<p class="alarm" role="alert"`)); shown != (tc.alarm != "") {
				t.Errorf("the page:\n%s", html)
			}
		})
	}
}

// The summary counts the upstreams that serve, and the pools in which none does.
func TestSummary_SaysHowManyPoolsServeNothing(t *testing.T) {
	entries := []view.Upstream{
		{Pool: "a", Upstream: "a:80", Serving: true, EffectiveWeight: 1},
		{Pool: "b", Upstream: "b:80"},
		{Pool: "c", Upstream: "c:80", EffectiveWeight: 1, FailOpen: true},
	}
	if got, want := view.Summary(entries), "No upstream serves in 1 of 3 pools. Fail-open in 1 of 3 pools: 1 of 3 upstreams serve"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What an earlier config was brought, but no request of this one, is no outage; once a
// request brings it, it counts.
func TestServices_LeaveOutWhatRequestsDoNotBring(t *testing.T) {
	p := newPolicy(t, "", following(t))
	p.Checks = []*HealthCheck{} // nothing is known of it: it counts as alive
	const dial = "10.9.9.9:80"
	p.dynamic.mu.Lock()
	p.dynamic.sight(dial, elapsed(time.Now()))
	p.dynamic.mu.Unlock()
	if entries := p.entries(filter{}); len(entries) != 1 || !entries[0].Idle || len(view.Outages(entries)) > 0 {
		t.Errorf("before a request: %+v", entries)
	}
	p.app.operations.Change(dial, settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
	p.snapshotOf(reverseproxy.UpstreamPool{{Host: new(reverseproxy.Host), Dial: dial}})
	if entries := p.entries(filter{}); len(entries) != 1 || entries[0].Idle || len(view.Outages(entries)) != 1 {
		t.Errorf("after a request: %+v", entries)
	}
}
