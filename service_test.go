// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// Each pool is said to serve or not, and what is no pool at present has no alarm.
func TestServices_SayWhatEachPoolServes(t *testing.T) {
	up := entry{Upstream: "a:80", Serving: true, EffectiveWeight: 1}
	down := entry{Upstream: "b:80"}
	gets := entry{Upstream: "c:80", EffectiveWeight: 1}
	open := entry{Upstream: "d:80", EffectiveWeight: 1, FailOpen: true}
	for _, tc := range []struct {
		rule    string
		entries []entry
		alarm   string
		outage  bool
	}{
		{"one serves", []entry{down, up}, "", false},
		{"some drain, and get requests", []entry{gets, down}, "No upstream serves: requests go to ", true},
		{"none gets requests", []entry{down}, "No upstream serves, and none gets requests", true},
		{"fail-open, and none serves", []entry{open}, "Fail-open: no upstream serves, ", true},
		{"fail-open, and one serves", []entry{open, up}, "Fail-open: too few upstreams serve, ", false},
		{"requests bring it no more", []entry{{Upstream: "e:80", Idle: true}}, "", false},
		{"one that requests bring no more serves", []entry{{Serving: true, Idle: true}, down}, "No upstream serves, and", true},
		{"only what was set", []entry{{Upstream: "f:80", Gone: true}}, "", false},
		{"nothing", nil, "", false},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			for i := range tc.entries {
				tc.entries[i].Pool = "shop"
			}
			entries := append([]entry{{Pool: "other", Upstream: "x:80", Serving: true, EffectiveWeight: 1}}, tc.entries...)
			if got := alarms(entries)["shop"]; !strings.HasPrefix(got, tc.alarm) || (got == "") != (tc.alarm == "") {
				t.Errorf("alarm %q, want %q", got, tc.alarm)
			}
			lines := outages(entries)
			if (len(lines) == 1) != tc.outage || tc.outage && !strings.HasPrefix(lines[0], "pool shop: "+tc.alarm) {
				t.Errorf("outages %q, want some: %v", lines, tc.outage)
			}

			var table bytes.Buffer
			screen{}.writeTable(&table, entries, time.Now())
			page, err := renderStatus(entries, []byte("[]"), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if shown := strings.Contains(table.String(), "!! "); shown != (tc.alarm != "") {
				t.Errorf("the table:\n%s", table.String())
			}
			if shown := bytes.Contains(page, []byte(`<p class="alarm" role="alert">`)); shown != (tc.alarm != "") {
				t.Errorf("the page:\n%s", page)
			}
		})
	}
}

// The page says it in its title, the script says the same as the server.
func TestSummary_SaysHowManyPoolsServeNothing(t *testing.T) {
	entries := []entry{
		{Pool: "a", Upstream: "a:80", Serving: true, EffectiveWeight: 1},
		{Pool: "b", Upstream: "b:80"},
		{Pool: "c", Upstream: "c:80", EffectiveWeight: 1, FailOpen: true},
	}
	if got, want := summary(entries), "No upstream serves in 1 of 3 pools. Fail-open in 1 of 3 pools: 1 of 3 upstreams serve"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, p := range []poolService{{failOpen: true}, {failOpen: true, serving: true}, {gets: true}, {}} {
		if !strings.Contains(statusJS, fmt.Sprintf("return %q;", p.alarm())) {
			t.Errorf("the script does not say %q", p.alarm())
		}
	}
}

// listOf serves a list of upstreams as Caddy does.
func listOf(t *testing.T, entries ...entry) (address string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown := []entry{}
		for _, e := range entries {
			if pool := r.URL.Query().Get("pool"); pool == "" || pool == e.Pool {
				shown = append(shown, e)
			}
		}
		if err := json.NewEncoder(w).Encode(shown); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// status --check is for scripts: 3 if a pool serves nothing, with a line that says
// which; 0 and nothing otherwise; 1 if that is not known.
func TestCommandStatusCheck_ExitStatus(t *testing.T) {
	well := entry{Pool: "shop", Upstream: "a:80", Serving: true, EffectiveWeight: 1}
	dead := entry{Pool: "api", Upstream: "b:80", Status: "down"}
	const line = "pool api: No upstream serves, and none gets requests: they are answered 503.\n"
	for _, tc := range []struct {
		address        string
		args           string
		exit           int
		stdout, stderr string
	}{
		{listOf(t, well), "status --check", 0, "", ""},
		{listOf(t), "status --check", 0, "", ""},
		{listOf(t, dead, well), "status --check", 3, line, ""},
		{listOf(t, entry{Pool: "x", Gone: true}, well), "status --check", 0, "", ""},
		{listOf(t, dead, well), "status --check --json", 3, "[", line},
		{listOf(t, well), "status --check --json", 0, "[", ""},
		{listOf(t, dead, well), "status", 0, "pool api\n!! No upstream serves, and none gets requests", ""},
		{testkit.Refused(t), "status --check", 1, "", "Error: cannot reach Caddy"},
		{testkit.Refused(t), "status --check --watch", 1, "", "Error: if any flags in the group [watch check] are set none of the others can be"},
	} {
		stdout, stderr, err := testkit.Command(t.Context(), tc.address, strings.Fields(tc.args)...)
		if got := testkit.ExitStatus(err); got != tc.exit {
			t.Errorf("%s: exit status %d (%v), want %d", tc.args, got, err, tc.exit)
		}
		if !strings.HasPrefix(stdout, tc.stdout) || (stdout == "") != (tc.stdout == "") || !strings.HasPrefix(stderr, tc.stderr) || (stderr == "") != (tc.stderr == "") {
			t.Errorf("%s: printed %q and %q, want %q and %q", tc.args, stdout, stderr, tc.stdout, tc.stderr)
		}
	}
}

// To take the last upstream that serves out of a pool is done, and the command says
// plainly what comes of that, by pool.
func TestCommandWarnsOfTheLastServingUpstream(t *testing.T) {
	gets := entry{Pool: "shop", Upstream: "a:80", Mode: modeDrain, EffectiveWeight: 1}
	also := entry{Pool: "api", Upstream: "a:80", Mode: modeDrain, EffectiveWeight: 1}
	none := entry{Pool: "api", Upstream: "a:80"}
	well := entry{Pool: "api", Upstream: "b:80", Serving: true, EffectiveWeight: 1}
	for _, tc := range []struct {
		args    string
		entries []entry
		stderr  string
	}{
		{"drain a:80", []entry{none, gets}, "warning: it still gets new requests: no other upstream of the pool shop serves\n"},
		{"drain a:80", []entry{also, gets}, "warning: it still gets new requests: no other upstream serves in the pools api, shop\n"},
		{"drain a:80", []entry{none}, ""},
		{"maintenance a:80", []entry{none}, "warning: pool api: No upstream serves, and none gets requests: they are answered 503.\n"},
		{"maintenance a:80", []entry{none, well}, ""},
		{"weight a:80 0", []entry{none}, "warning: pool api: No upstream serves, and none gets requests: they are answered 503.\n"},
		{"weight a:80 2", []entry{none}, ""},
	} {
		// the server of the test answers a change with the whole list
		_, stderr, err := testkit.Command(t.Context(), listOf(t, tc.entries...), strings.Fields(tc.args)...)
		if err != nil || stderr != tc.stderr {
			t.Errorf("%s: printed %q, %v, want %q", tc.args, stderr, err, tc.stderr)
		}
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
	if entries := p.entries(filter{}); len(entries) != 1 || !entries[0].Idle || len(outages(entries)) > 0 {
		t.Errorf("before a request: %+v", entries)
	}
	p.app.operations.set(dial, change{mode: new(modeMaintenance)})
	p.snapshotOf(reverseproxy.UpstreamPool{{Host: new(reverseproxy.Host), Dial: dial}})
	if entries := p.entries(filter{}); len(entries) != 1 || entries[0].Idle || len(outages(entries)) != 1 {
		t.Errorf("after a request: %+v", entries)
	}
}
