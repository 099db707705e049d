// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
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

			page, err := renderStatus(entries, []byte("[]"), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if shown := bytes.Contains(page, []byte(`<p class="alarm" role="alert">`)); shown != (tc.alarm != "") {
				t.Errorf("the page:\n%s", page)
			}
		})
	}
}

// The page says it in its title, the script says the same as the server.
func TestSummary_SaysHowManyPoolsServeNothing(t *testing.T) {
	entries := []view.Upstream{
		{Pool: "a", Upstream: "a:80", Serving: true, EffectiveWeight: 1},
		{Pool: "b", Upstream: "b:80"},
		{Pool: "c", Upstream: "c:80", EffectiveWeight: 1, FailOpen: true},
	}
	if got, want := view.Summary(entries), "No upstream serves in 1 of 3 pools. Fail-open in 1 of 3 pools: 1 of 3 upstreams serve"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, p := range []view.Pool{{FailOpen: true}, {FailOpen: true, Serving: true}, {Receiving: true}, {}} {
		if !strings.Contains(statusJS, fmt.Sprintf("return %q;", p.Alarm())) {
			t.Errorf("the script does not say %q", p.Alarm())
		}
	}
}

// exitStatus returns the status with which Caddy's main function exits.
func exitStatus(err error) int {
	if err == nil {
		return 0
	}
	if v := reflect.Indirect(reflect.ValueOf(err)); v.Kind() == reflect.Struct {
		if code := v.FieldByName("ExitCode"); code.IsValid() { // its type is Caddy's own
			return int(code.Int())
		}
	}
	return 1
}

// A pool whose only upstream is in maintenance, or whose last one drains, is told of
// by every view of a running Caddy.
func TestCaddyLastServingUpstream(t *testing.T) {
	all := startBackends(t, "a", "b")
	c := startOperated(t, "", fmt.Sprintf(operated, addresses(all...)))
	eventually(t, patience, "both are up", func() bool { return statuses(all[0].addr, all[1].addr)[health.Up] == 2 })
	check := func(want int, says string) {
		t.Helper()
		stdout, stderr, err := command(t.Context(), c.admin, "status", "--check")
		if exitStatus(err) != want || !strings.HasPrefix(stdout, says) || stderr != "" {
			t.Errorf("status --check: exit status %d, printed %q and %q; want %d and %q", exitStatus(err), stdout, stderr, want, says)
		}
	}
	run := func(stderr string, args ...string) {
		t.Helper()
		if _, got, err := command(t.Context(), c.admin, args...); err != nil || got != stderr {
			t.Errorf("%v: printed %q, %v, want %q", args, got, err, stderr)
		}
	}
	check(0, "")
	run("", "maintenance", all[0].addr)
	check(0, "")
	run("warning: it still gets new requests: no other upstream of the pool shop serves\n", "drain", all[1].addr)
	check(3, "pool shop: No upstream serves: requests go to upstreams that drain")
	shares(t, "the last one drains", tally(c.plain(), c.url(), 5), map[string]int{"b": 5})
	run("warning: pool shop: No upstream serves, and none gets requests: they are answered 503.\n", "maintenance", all[1].addr)
	check(3, "pool shop: No upstream serves, and none gets requests")
	if got := ask(c.plain(), c.url()); got.status != http.StatusServiceUnavailable {
		t.Errorf("a request: %v", got)
	}
	run("", "ready", all[1].addr)
	eventually(t, patience, "one is up", func() bool { return is(health.Up, all[1].addr) })
	check(0, "")
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
