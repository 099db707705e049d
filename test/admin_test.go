// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// The list has all documented fields, under their documented names.
func TestAdmin_ListHasWhatIsDocumented(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...)))
	all[1].Set(testkit.Sick)
	testkit.Eventually(t, testkit.Patience, "one is down", func() bool {
		return c.Up(all[0].Addr) && c.Down(all[1].Addr)
	})
	_, text := c.Call(http.MethodGet, "/alive/upstreams", nil, "")
	var list []map[string]any
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) != 2 {
		t.Fatalf("%v: %s", err, text)
	}
	has := func(object map[string]any, keys ...string) {
		t.Helper()
		for _, key := range keys {
			if _, there := object[key]; !there {
				t.Errorf("%q is missing in %v", key, object)
			}
		}
	}
	for _, e := range list {
		has(e, "pool", "upstream", "status", "mode", "mode_since", "weight", "effective_weight", "group", "backup", "serving", "why", "requests", "limit", "bound", "fails", "requests_per_second", "recent_failures", "since", "checks")
		check := e["checks"].([]any)[0].(map[string]any)
		has(check, "check", "status", "consecutive_passes", "consecutive_fails", "last", "next")
		has(check["last"].(map[string]any), "at", "duration_ms", "passed", "reason")
	}

	up, down := c.One(all[0].Addr), c.One(all[1].Addr)
	if up.Status != "up" || !up.Serving || up.EffectiveWeight != 1 || up.Why != "up: gets requests in turn" || up.Since == nil {
		t.Errorf("the one that is up: %+v", up)
	}
	if down.Status != "down" || down.Serving || down.EffectiveWeight != 0 || down.Why != "check 'http /healthz' failed: status 503, want 2xx" {
		t.Errorf("the one that is down: %+v", down)
	}
	if last := down.Checks[0].Last; last == nil || last.Passed || last.Reason != "status 503, want 2xx" {
		t.Errorf("its last result: %+v", last)
	}
	for query, want := range map[string]int{"pool=shop": 2, "pool=other": 0, "upstream=unknown": 0, "pool=shop&upstream=" + url.QueryEscape(all[0].Addr): 1, "serving=false": 1, "serving=true": 1, "pool=shop&serving=false": 1, "serving=false&upstream=" + url.QueryEscape(all[0].Addr): 0, "serving=true&upstream=" + url.QueryEscape(all[0].Addr): 1} {
		values, _ := url.ParseQuery(query)
		if got := len(c.List(values)); got != want {
			t.Errorf("%s: %d entries, want %d", query, got, want)
		}
	}
}

// The error of a wrong change says what is allowed, and the change has no effect.
func TestAdmin_ErrorsSayWhatIsAllowed(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	site := func(port int, more string) string {
		return fmt.Sprintf("http://127.0.0.1:%d {\n\treverse_proxy %s {\n\t\tlb_policy alive {\n\t\t\t%s\n\t\t}\n\t}\n}\n", port, testkit.Addresses(all...), more)
	}
	c := testkit.StartCaddyWith(t, "", site(testkit.FreePort(t), "name first")+site(testkit.FreePort(t), "name second")+
		strings.Replace(site(testkit.FreePort(t), "name third\n\t\t\tselect least_conn"), testkit.Addresses(all...), "127.0.0.1:1", 1))
	a := url.Values{"upstream": {all[0].Addr}}
	for _, tc := range []struct {
		method, path string
		query        url.Values
		body         string
		status       int
		says         string
	}{
		{"PATCH", "upstreams", nil, `{"mode":"drain"}`, 400, "name one upstream"},
		{"PATCH", "upstreams", url.Values{"upstream": {"unknown:1"}}, `{"mode":"drain"}`, 404, "unknown upstream 'unknown:1'"},
		{"PATCH", "upstreams", url.Values{"upstream": {"127.0.0.1"}, "pool": {"third"}}, `{"mode":"drain"}`, 404, "lists all upstreams; did you mean '127.0.0.1:1'?"},
		{"PATCH", "upstreams", a, `{"mode":"off"}`, 400, "mode must be ready, drain, maintenance or null"},
		{"PATCH", "upstreams", a, `{"mode":3}`, 400, "mode must be ready, drain, maintenance or null"},
		{"PATCH", "upstreams", a, `{"rebind":true}`, 400, `rebind is part of the mode drain; give both, like {\"mode\": \"drain\", \"rebind\": true}`},
		{"PATCH", "upstreams", a, `{"mode":"ready","rebind":true}`, 400, "rebind is part of the mode drain"},
		{"PATCH", "upstreams", a, `{"mode":"maintenance","rebind":false}`, 400, "rebind is part of the mode drain"},
		{"PATCH", "upstreams", a, `{"mode":null,"rebind":true}`, 400, "rebind is part of the mode drain"},
		{"PATCH", "upstreams", a, `{"weight":3,"rebind":true}`, 400, "rebind is part of the mode drain"},
		{"PATCH", "upstreams", a, `{"mode":"drain","rebind":"yes"}`, 400, `rebind must be true, false or null; got \"yes\"`},
		{"PATCH", "upstreams", a, `{"mode":"drain","rebind":1}`, 400, "rebind must be true, false or null; got 1"},
		{"GET", "pools", url.Values{"pool": {"frist"}}, "", 404, "unknown pool 'frist'; caddy alive status (GET /alive/pools) lists all pools; did you mean 'first'?"},
		{"GET", "pools", url.Values{"pool": {"zzz"}}, "", 404, "unknown pool 'zzz'; caddy alive status (GET /alive/pools) lists all pools\""},
		{"GET", "pools", a, "", 400, "unknown parameter 'upstream'; allowed: pool"},
		{"PATCH", "pools", url.Values{"pool": {"first"}}, `{"mode":"drain"}`, 405, "allowed: GET, HEAD"},
		{"PATCH", "upstreams", a, `{"weight":-1}`, 400, "weight must be a whole number from 0 to 256, or null"},
		{"PATCH", "upstreams", a, `{"weight":257}`, 400, "weight must be a whole number from 0 to 256, or null"},
		{"PATCH", "upstreams", a, `{"weight":1.5}`, 400, "weight must be a whole number from 0 to 256, or null"},
		{"PATCH", "upstreams", a, `{"mode":"drain","weight":"x"}`, 400, "weight must be a whole number from 0 to 256, or null"},
		{"PATCH", "upstreams", a, `{"mode":"drain","weight":3}`, 409, "several pools have the upstream"},
		{"PATCH", "upstreams", url.Values{"upstream": {"127.0.0.1:1"}}, `{"mode":"drain","weight":3}`, 400, "only a weight of 0 or null"},
		{"PATCH", "upstreams", a, `{}`, 400, "nothing to change"},
		{"PATCH", "upstreams", a, `{"mode":"drain"`, 400, "decoding the body"},
		{"PATCH", "upstreams", a, `{"mode":"drain"}{}`, 400, "more than one value"},
		{"PATCH", "upstreams", a, `{"mode":"drain"}}`, 400, "more than one value"},
		{"PATCH", "upstreams", a, `{"mode":"drain"}]x`, 400, "more than one value"},
		{"PATCH", "upstreams", a, `{"colour":"red"}`, 400, `unknown field \"colour\"`},
		{"PATCH", "upstreams", a, `{"mode":"` + strings.Repeat("x", 64<<10) + `"}`, 413, "larger than 65536 bytes"},
		{"PATCH", "upstreams", url.Values{"upstream": {all[0].Addr}, "up": {"1"}}, `{"mode":"drain"}`, 400, "unknown parameter 'up'"},
		{"PATCH", "upstreams", url.Values{"upstream": {all[0].Addr, all[1].Addr}}, `{"mode":"drain"}`, 400, "given twice"},
		{"POST", "upstreams", a, `{"mode":"drain"}`, 405, "allowed: GET, HEAD, PATCH"},
		{"GET", "check", a, "", 405, "allowed: POST"},
		{"POST", "check", nil, "", 400, "name one upstream"},
		{"POST", "check", url.Values{"upstream": {"unknown:1"}}, "", 404, "unknown upstream"},
	} {
		status, text := c.Call(tc.method, "/alive/"+tc.path, tc.query, tc.body)
		if status != tc.status || !strings.Contains(text, tc.says) {
			t.Errorf("%s %s %v %.60s: got %d %s, want %d and %q", tc.method, tc.path, tc.query, tc.body, status, text, tc.status, tc.says)
		}
	}
	for _, e := range c.List(nil) {
		if e.Mode != "ready" || e.Weight != 1 {
			t.Errorf("it was changed: %+v", e)
		}
	}
	entries := c.List(nil)
	if len(entries) != 5 {
		t.Errorf("%d entries, want 5", len(entries))
	}
	status, text := c.Call("PATCH", "/alive/upstreams", url.Values{"upstream": {all[0].Addr}, "pool": {"second"}}, `{"weight":3}`)
	if changed, _ := testkit.ParseList(text); status != 200 || len(changed) != 1 || changed[0].Pool != "second" || changed[0].Weight != 3 {
		t.Errorf("with a pool: %d %s", status, text)
	}
}

// An upstream in drain gets no new request while another one serves, and its checks go
// on. When all others are down, it serves. The mode ready ends that.
func TestDrain_EndsNewRequests(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	a, b := all[0], all[1]
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...)))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(a.Addr, b.Addr) })
	client := c.Client()

	changed := c.Patch(b.Addr, `{"mode":"drain"}`)
	if len(changed) != 1 || changed[0].Mode != "drain" || changed[0].Serving || changed[0].Persisted != nil ||
		!strings.HasPrefix(changed[0].Why, "draining since ") {
		t.Errorf("the answer: %+v", changed)
	}
	testkit.Shares(t, "while it drains", testkit.Tally(client, c.URL(), 20), map[string]int{"a": 20})
	_, probes := b.Seen()
	testkit.Eventually(t, testkit.Patience, "checks go on", func() bool { _, now := b.Seen(); return now > probes+2 })

	a.Set(testkit.Sick)
	// the status is seen a moment before requests follow it
	testkit.Eventually(t, testkit.Patience, "the other one is down", func() bool { return c.Down(a.Addr) && c.One(b.Addr).EffectiveWeight == 1 })
	testkit.Shares(t, "alone", testkit.Tally(client, c.URL(), 20), map[string]int{"b": 20})
	if got := c.One(b.Addr); got.EffectiveWeight != 1 || !strings.Contains(got.Why, "no other upstream serves") {
		t.Errorf("alone: %+v", got)
	}

	a.Set(testkit.Well)
	testkit.Eventually(t, testkit.Patience, "the other one is up", func() bool { return c.Up(a.Addr) })
	c.Patch(b.Addr, `{"mode":null}`)
	testkit.Shares(t, "ready again", testkit.Tally(client, c.URL(), 20), map[string]int{"a": 10, "b": 10})
}

// An upstream in maintenance gets no request, not even as the last resort, and no probe
// except those that an operator asks for. When it is ready again, its status is unknown
// until it is probed.
func TestMaintenance_EndsRequestsAndProbes(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	a, b := all[0], all[1]
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...)))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(a.Addr, b.Addr) })
	client := c.Client()
	c.Patch(b.Addr, `{"mode":"maintenance"}`)
	awaitQuiet(t, func() int { _, n := b.Seen(); return n })
	b.Set(testkit.Sick) // counts anew
	_, probes := a.Seen()
	testkit.Eventually(t, testkit.Patience, "the other one is probed", func() bool { _, now := a.Seen(); return now > probes+5 })
	testkit.Shares(t, "in maintenance", testkit.Tally(client, c.URL(), 20), map[string]int{"a": 20})
	a.Set(testkit.Sick)
	testkit.Eventually(t, testkit.Patience, "none is up", func() bool { return c.Down(a.Addr) })
	testkit.Shares(t, "as the last resort", testkit.Tally(client, c.URL(), 20), map[string]int{"a": 20})
	if got := b.History(); got.Probes > 0 || got.Requests > 0 {
		t.Errorf("in maintenance it got %d probes and %d requests, want none", got.Probes, got.Requests)
	}
	if got := c.One(b.Addr); got.Status != "unknown" || got.Checks[0].Next != nil {
		t.Errorf("in maintenance: %+v", got)
	}

	status, text := c.Call(http.MethodPost, "/alive/check", url.Values{"upstream": {b.Addr}}, "")
	checked, err := testkit.ParseList(text)
	if status != http.StatusOK || err != nil || len(checked) != 1 || checked[0].Status != "unknown" ||
		checked[0].Checks[0].Last.Reason != "status 503, want 2xx" {
		t.Errorf("a check: %d %s", status, text)
	}
	if got := b.History(); got.Probes != 1 {
		t.Errorf("a check made %d probes, want 1", got.Probes)
	}

	b.Set(testkit.Well)
	c.Patch(b.Addr, `{"mode":"ready"}`)
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(b.Addr) })
	testkit.Shares(t, "ready again", testkit.Tally(client, c.URL(), 20), map[string]int{"b": 20})
}

// A weight and a mode set at run time apply over reloads and restarts until they are
// reset. Those of addresses that no pool has are listed and can be reset.
func TestSettings_LastOverReloadsAndRestarts(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	a, b := all[0], all[1]
	sites := fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...))
	c := testkit.StartCaddyWith(t, "alive {\n fleet shops\n}", sites)
	up := func() {
		t.Helper()
		testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(a.Addr, b.Addr) })
	}
	up()
	client := c.Client()
	c.Patch(a.Addr, `{"weight":3}`)
	testkit.Shares(t, "with a weight", testkit.Tally(client, c.URL(), 40), map[string]int{"a": 30, "b": 10})
	c.Load(sites + "\n# reloaded")
	up()
	testkit.Shares(t, "after a reload", testkit.Tally(c.Client(), c.URL(), 40), map[string]int{"a": 30, "b": 10})

	c.Patch(b.Addr, `{"mode":"drain"}`)
	c.Stop()
	c.Load(sites)
	up()
	if got, want := c.One(b.Addr).Mode, "drain"; got != want {
		t.Errorf("after a restart: mode %s, want %s", got, want)
	}
	testkit.Shares(t, "after a restart", testkit.Tally(c.Client(), c.URL(), 20), map[string]int{"a": 20})

	c.Load(fmt.Sprintf(testkit.ShopSite, a.Addr))
	if got := c.One(b.Addr); got.Pool != "" || got.Mode != "drain" || !strings.HasPrefix(got.Why, "not in any pool") {
		t.Errorf("when it is gone: %+v", got)
	}
	if status, text := c.Call(http.MethodPatch, "/alive/upstreams", url.Values{"upstream": {b.Addr}}, `{"mode":"maintenance"}`); status != http.StatusNotFound {
		t.Errorf("another mode when it is gone: %d %s", status, text)
	}
	if got := c.Patch(b.Addr, `{"mode":null}`); len(got) != 0 {
		t.Errorf("after it was cleared: %+v", got)
	}
	c.Load(sites)
	up()
	c.Patch(a.Addr, `{"weight":null}`)
	testkit.Shares(t, "taken back", testkit.Tally(c.Client(), c.URL(), 20), map[string]int{"a": 10, "b": 10})
}

// While the storage fails, a change applies in this process and is shown as not
// persisted. It is stored when the storage works again.
func TestSettings_HoldWhileTheStorageFails(t *testing.T) {
	b := testkit.StartBackend(t, "b", nil)
	c := testkit.StartCaddyWith(t, "alive {\n fleet shops\n sync_interval 100ms\n}", fmt.Sprintf(testkit.ShopSite, b.Addr))
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(b.Addr) })
	// not even root can write below a file
	folder := filepath.Join(c.Dir, "alive")
	testkit.Eventually(t, testkit.Patience, "a file is in place of the folder, in which Caddy writes", func() bool {
		_ = os.RemoveAll(folder)
		return os.WriteFile(folder, nil, 0o600) == nil
	})
	changed := c.Patch(b.Addr, `{"mode":"drain"}`)
	if changed[0].Mode != "drain" || changed[0].Persisted == nil || *changed[0].Persisted {
		t.Errorf("while the storage fails: %+v", changed)
	}
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, testkit.Patience, "it is stored", func() bool { return c.One(b.Addr).Persisted == nil })
	stored, _ := filepath.Glob(filepath.Join(folder, "fleets", "shops", "*.json"))
	if len(stored) != 1 {
		t.Fatalf("stored: %v", stored)
	}
	if text, _ := os.ReadFile(stored[0]); !strings.Contains(string(text), `"mode":"drain"`) {
		t.Errorf("stored: %s", text)
	}
	testkit.Eventually(t, testkit.Patience, "the return is logged", func() bool { return c.Logged("the storage works again") == 1 })
	if warned := c.Logged("the storage fails"); warned != 1 {
		t.Errorf("logged: %d failures, want one", warned)
	}
}

// Handlers with pools of one name are one pool: each upstream is listed once, with all
// checks.
func TestPools_OfOneNameAreOnePool(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	site := func(pool, check string) string {
		return fmt.Sprintf("http://127.0.0.1:%d {\n\treverse_proxy %s {\n\t\tlb_policy alive {\n\t\t\tname %s\n\t\t\tcheck %s\n\t\t}\n\t}\n}\n", testkit.FreePort(t), testkit.Addresses(all...), pool, check)
	}
	// another pool stands between the handlers
	c := testkit.StartCaddyWith(t, "", site("shop", "tcp")+site("market", "tcp")+site("shop", "http /healthz"))
	testkit.Eventually(t, testkit.Patience, "all are up", func() bool { return c.Statuses(all[0].Addr, all[1].Addr)["up"] == 4 })
	entries := c.List(nil)
	if len(entries) != 4 || entries[0].Pool != "market" || entries[1].Pool != "market" {
		t.Fatalf("entries of the pools shop and market: %+v", entries)
	}
	for _, e := range entries[2:] {
		var checks []string
		for _, check := range e.Checks {
			checks = append(checks, check.Check)
		}
		if !slices.Equal(checks, []string{"http /healthz", "tcp"}) || e.Pool != "shop" || e.EffectiveWeight != 1 {
			t.Errorf("%+v", e)
		}
	}
}

// The list shows addresses as the config names them, and the commands take them by that
// name: a unix socket has slashes, an IPv6 address has colons and brackets.
func TestAdmin_TakesAddressesAsListed(t *testing.T) {
	serve := func(network, address string) string {
		stream, err := net.Listen(network, address)
		if err != nil {
			t.Skipf("no %s here: %v", network, err)
		}
		server := &httptest.Server{Listener: stream, Config: &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}}
		server.Start()
		t.Cleanup(server.Close)
		return stream.Addr().String()
	}
	socket := "unix/" + serve("unix", filepath.Join(t.TempDir(), "a b.sock"))
	six := serve("tcp6", "[::1]:0")
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(testkit.ShopSite, "`"+socket+"` "+six))
	for _, e := range c.List(nil) {
		if e.Upstream != socket && e.Upstream != six {
			t.Fatalf("the list has %q", e.Upstream)
		}
		for _, m := range []string{"drain", "maintenance", "ready"} {
			if _, _, err := testkit.Command(t.Context(), c.Admin, m, e.Upstream); err != nil {
				t.Error(err)
			}
			if got := c.One(e.Upstream).Mode; got != m {
				t.Errorf("%s: mode %s, want %s", e.Upstream, got, m)
			}
		}
		if _, _, err := testkit.Command(t.Context(), c.Admin, "check", e.Upstream); err != nil {
			t.Error(err)
		}
	}
}

// A config that does not load does not change the modes of upstreams that the running
// config has, even if it is of another fleet with other modes.
func TestFailedReload_LeavesModesAlone(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	site := fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...))
	c := testkit.StartCaddyWith(t, "alive {\n fleet one\n}\n", site)
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	c.Patch(all[0].Addr, `{"mode":"maintenance"}`)
	c.Global = "alive {\n fleet two\n}\n"
	for i := range 6 { // Caddy starts apps in any order
		taken := fmt.Sprintf("\nhttp://%s {\n respond hi\n}\n%s", all[1].Addr, strings.Repeat("\n", i))
		if err := c.TryLoad(site + taken); err == nil {
			t.Fatal("it loads")
		}
	}
	_, before := all[0].Seen()
	testkit.Stays(t, 300*time.Millisecond, "no probe", func() bool {
		_, now := all[0].Seen()
		return now == before
	})
	if e := c.One(all[0].Addr); e.Mode != "maintenance" || e.Status != "unknown" {
		t.Errorf("%+v", e)
	}
	if e := c.One(all[1].Addr); e.Mode != "ready" || e.Status != "up" {
		t.Errorf("%+v", e)
	}
}

// Upstreams that requests of the last config brought are listed and can be changed before
// a request of the new config brings them.
func TestDynamic_UpstreamsAreListedAfterAReload(t *testing.T) {
	port, all := testkit.StartLoopbacks(t, testkit.Well)
	n, name := testkit.StartNameServer(t), testkit.NewName()
	n.Set(name, testkit.Records{A: []string{"127.0.0.1"}})
	site := fmt.Sprintf("http:// {\n\treverse_proxy {\n\t\tdynamic %s\n\t\tlb_policy alive {\n\t\t\tname shop\n\t\t\tcheck http /healthz\n\t\t}\n\t}\n}\n", n.Source(name, port))
	c := testkit.StartCaddyWith(t, "", site)
	testkit.Ask(c.Client(), c.URL())
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(all[0].Addr) })
	c.Patch(all[0].Addr, `{"mode":"drain"}`)
	c.Load(site + "\n# reloaded")
	if e := c.One(all[0].Addr); e.Mode != "drain" || e.Status != "up" || e.Serving || !strings.HasPrefix(e.Why, "no request has brought it") {
		t.Errorf("%+v", e)
	}
	if e := c.Patch(all[0].Addr, `{"mode":"ready"}`); len(e) != 1 || e[0].Mode != "ready" {
		t.Errorf("%+v", e)
	}
	testkit.Ask(c.Client(), c.URL())
	if e := c.One(all[0].Addr); !e.Serving || e.EffectiveWeight != 1 {
		t.Errorf("%+v", e)
	}
}

// A weight of a pool that the config has renamed is listed, and can be taken back.
func TestWeights_OfGonePoolsAreListed(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	site := func(name string) string {
		return fmt.Sprintf("http:// {\n\treverse_proxy %s {\n\t\tlb_policy alive {\n\t\t\tname %s\n\t\t}\n\t}\n}\n", testkit.Addresses(all...), name)
	}
	c := testkit.StartCaddyWith(t, "", site("first"))
	c.Patch(all[0].Addr, `{"weight":0}`)
	c.Patch(all[0].Addr, `{"mode":"drain"}`)
	c.Load(site("second"))
	entries := c.List(url.Values{"upstream": {all[0].Addr}})
	if len(entries) != 2 || entries[0].Weight != 1 || entries[1].Weight != 0 || !strings.HasPrefix(entries[1].Why, "not in the pool 'first'") || !entries[1].Gone || entries[0].Gone {
		t.Fatalf("%+v", entries)
	}
	query := url.Values{"upstream": {all[0].Addr}, "pool": {entries[1].Pool}}
	if status, text := c.Call(http.MethodPatch, "/alive/upstreams", query, `{"weight":3}`); status != http.StatusNotFound {
		t.Errorf("a weight for a pool that is gone: status %d: %s", status, text)
	}
	if status, text := c.Call(http.MethodPatch, "/alive/upstreams", query, `{"weight":null}`); status != http.StatusOK {
		t.Errorf("taking it back: status %d: %s", status, text)
	}
	if e := c.One(all[0].Addr); e.Mode != "drain" {
		t.Errorf("the mode is gone, too: %+v", e)
	}
	c.Load(site("first"))
	if e := c.One(all[0].Addr); e.Weight != 1 {
		t.Errorf("it is back: %+v", e)
	}
}

// The generated name of a large pool has a maximum length, so the size of the metrics has
// one, too.
func TestMetrics_OfLargePoolsAreBounded(t *testing.T) {
	var upstreams []string
	for i := range 1000 {
		upstreams = append(upstreams, fmt.Sprintf("10.1.%d.%d:8080", i/250, i%250))
	}
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf("http:// {\n\treverse_proxy %s {\n\t\tlb_policy alive\n\t}\n}\n", strings.Join(upstreams, " ")))
	_, text := c.Call(http.MethodGet, "/metrics", nil, "")
	if name := c.List(nil)[0].Pool; len(name) > 200 || len(text) > 2<<20 {
		t.Errorf("the pool is called %q; metrics have %d bytes", name, len(text))
	}
}
