// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// call asks the admin API, and returns the status and the body of the answer.
func (c *instance) call(method, path string, query url.Values, body string) (status int, text string) {
	c.t.Helper()
	request, err := http.NewRequestWithContext(c.t.Context(), method, "http://"+c.admin+path+"?"+query.Encode(), strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		c.t.Fatal(err)
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return response.StatusCode, string(read)
}

// parseEntries reads the list of an answer.
func parseEntries(text []byte) (entries []view.Upstream, err error) {
	err = json.Unmarshal(text, &entries)
	return entries, err
}

// entries asks for the list of upstreams.
func (c *instance) entries(query url.Values) []view.Upstream {
	c.t.Helper()
	status, text := c.call(http.MethodGet, "/alive/upstreams", query, "")
	if status != http.StatusOK {
		c.t.Fatalf("status %d: %s", status, text)
	}
	entries, err := parseEntries([]byte(text))
	if err != nil {
		c.t.Fatal(err)
	}
	return entries
}

// patch changes an upstream.
func (c *instance) patch(upstream, body string) []view.Upstream {
	c.t.Helper()
	status, text := c.call(http.MethodPatch, "/alive/upstreams", url.Values{"upstream": {upstream}}, body)
	if status != http.StatusOK {
		c.t.Fatalf("PATCH %s %s: status %d: %s", upstream, body, status, text)
	}
	entries, err := parseEntries([]byte(text))
	if err != nil {
		c.t.Fatal(err)
	}
	return entries
}

// one returns the entry of an upstream.
func (c *instance) one(upstream string) view.Upstream {
	c.t.Helper()
	entries := c.entries(url.Values{"upstream": {upstream}})
	if len(entries) != 1 {
		c.t.Fatalf("%s: %d entries, want 1: %+v", upstream, len(entries), entries)
	}
	return entries[0]
}

const operated = `
http:// {
	reverse_proxy %s {
		lb_policy alive {
			name shop
			check http /healthz {
				interval 50ms
			}
		}
	}
}`

// The list has everything that the documentation says, under those names.
func TestCaddyAdminList(t *testing.T) {
	all := startBackends(t, "a", "b")
	c := startOperated(t, "", fmt.Sprintf(operated, addresses(all...)))
	all[1].set(sick)
	eventually(t, patience, "one is down", func() bool {
		return is(health.Up, all[0].addr) && is(health.Down, all[1].addr)
	})
	_, text := c.call(http.MethodGet, "/alive/upstreams", nil, "")
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
		has(e, "pool", "upstream", "status", "mode", "weight", "effective_weight", "backup", "serving", "why", "requests", "fails", "since", "checks")
		check := e["checks"].([]any)[0].(map[string]any)
		has(check, "check", "status", "consecutive_passes", "consecutive_fails", "last", "next")
		has(check["last"].(map[string]any), "at", "duration_ms", "passed", "reason")
	}

	up, down := c.one(all[0].addr), c.one(all[1].addr)
	if up.Status != "up" || !up.Serving || up.EffectiveWeight != 1 || up.Why != "up: gets requests in turn" || up.Since == nil {
		t.Errorf("the one that is up: %+v", up)
	}
	if down.Status != "down" || down.Serving || down.EffectiveWeight != 0 || down.Why != "check 'http /healthz' failed: status 503, want 2xx" {
		t.Errorf("the one that is down: %+v", down)
	}
	if last := down.Checks[0].Last; last == nil || last.Passed || last.Reason != "status 503, want 2xx" {
		t.Errorf("its last result: %+v", last)
	}
	for query, want := range map[string]int{"pool=shop": 2, "pool=other": 0, "upstream=nobody": 0, "pool=shop&upstream=" + url.QueryEscape(all[0].addr): 1} {
		values, _ := url.ParseQuery(query)
		if got := len(c.entries(values)); got != want {
			t.Errorf("%s: %d entries, want %d", query, got, want)
		}
	}
}

// What is wrong with a change is said, with what is allowed; and then nothing is
// changed.
func TestCaddyAdminErrors(t *testing.T) {
	all := startBackends(t, "a", "b")
	site := func(port int, more string) string {
		return fmt.Sprintf("http://127.0.0.1:%d {\n\treverse_proxy %s {\n\t\tlb_policy alive {\n\t\t\t%s\n\t\t}\n\t}\n}\n", port, addresses(all...), more)
	}
	c := startOperated(t, "", site(freePort(t), "name first")+site(freePort(t), "name second")+
		strings.Replace(site(freePort(t), "name third\n\t\t\tselect least_conn"), addresses(all...), "127.0.0.1:1", 1))
	a := url.Values{"upstream": {all[0].addr}}
	for _, tc := range []struct {
		method, path string
		query        url.Values
		body         string
		status       int
		says         string
	}{
		{"PATCH", "upstreams", nil, `{"mode":"drain"}`, 400, "name one upstream"},
		{"PATCH", "upstreams", url.Values{"upstream": {"nobody:1"}}, `{"mode":"drain"}`, 404, "unknown upstream 'nobody:1'"},
		{"PATCH", "upstreams", url.Values{"upstream": {"127.0.0.1"}, "pool": {"third"}}, `{"mode":"drain"}`, 404, "lists those there are; did you mean '127.0.0.1:1'?"},
		{"PATCH", "upstreams", a, `{"mode":"off"}`, 400, "mode must be ready, drain, maintenance or null"},
		{"PATCH", "upstreams", a, `{"mode":3}`, 400, "mode must be ready, drain, maintenance or null"},
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
		{"PATCH", "upstreams", a, `{"mode":"` + strings.Repeat("x", maxBody) + `"}`, 413, "larger than 65536 bytes"},
		{"PATCH", "upstreams", url.Values{"upstream": {all[0].addr}, "up": {"1"}}, `{"mode":"drain"}`, 400, "unknown parameter 'up'"},
		{"PATCH", "upstreams", url.Values{"upstream": {all[0].addr, all[1].addr}}, `{"mode":"drain"}`, 400, "given twice"},
		{"POST", "upstreams", a, `{"mode":"drain"}`, 405, "allowed: GET, HEAD, PATCH"},
		{"GET", "check", a, "", 405, "allowed: POST"},
		{"POST", "check", nil, "", 400, "name one upstream"},
		{"POST", "check", url.Values{"upstream": {"nobody:1"}}, "", 404, "unknown upstream"},
	} {
		status, text := c.call(tc.method, "/alive/"+tc.path, tc.query, tc.body)
		if status != tc.status || !strings.Contains(text, tc.says) {
			t.Errorf("%s %s %v %.60s: got %d %s, want %d and %q", tc.method, tc.path, tc.query, tc.body, status, text, tc.status, tc.says)
		}
	}
	for _, e := range c.entries(nil) {
		if e.Mode != settings.Ready || e.Weight != 1 {
			t.Errorf("it was changed: %+v", e)
		}
	}
	entries := c.entries(nil)
	if len(entries) != 5 {
		t.Errorf("%d entries, want 5", len(entries))
	}
	status, text := c.call("PATCH", "/alive/upstreams", url.Values{"upstream": {all[0].addr}, "pool": {"second"}}, `{"weight":3}`)
	if changed, _ := parseEntries([]byte(text)); status != 200 || len(changed) != 1 || changed[0].Pool != "second" || changed[0].Weight != 3 {
		t.Errorf("with a pool: %d %s", status, text)
	}
}

// drain: no new request while anybody else serves, and checks go on; when all others
// die, it serves. ready ends it.
func TestCaddyDrainMode(t *testing.T) {
	all := startBackends(t, "a", "b")
	a, b := all[0], all[1]
	c := startOperated(t, "", fmt.Sprintf(operated, addresses(all...)))
	eventually(t, patience, "both are up", func() bool { return statuses(a.addr, b.addr)[health.Up] == 2 })
	client := c.plain()

	changed := c.patch(b.addr, `{"mode":"drain"}`)
	if len(changed) != 1 || changed[0].Mode != settings.Drain || changed[0].Serving || changed[0].Persisted != nil ||
		!strings.HasPrefix(changed[0].Why, "draining since ") {
		t.Errorf("the answer: %+v", changed)
	}
	shares(t, "while it drains", tally(client, c.url(), 20), map[string]int{"a": 20})
	_, probes := b.seen()
	eventually(t, patience, "checks go on", func() bool { _, now := b.seen(); return now > probes+2 })

	a.set(sick)
	eventually(t, patience, "the other one is down", func() bool { return is(health.Down, a.addr) })
	shares(t, "alone", tally(client, c.url(), 20), map[string]int{"b": 20})
	if got := c.one(b.addr); got.EffectiveWeight != 1 || !strings.Contains(got.Why, "no other upstream serves") {
		t.Errorf("alone: %+v", got)
	}

	a.set(well)
	eventually(t, patience, "the other one is up", func() bool { return is(health.Up, a.addr) })
	c.patch(b.addr, `{"mode":null}`)
	shares(t, "ready again", tally(client, c.url(), 20), map[string]int{"a": 10, "b": 10})
}

// maintenance: not a request and not a probe arrives, not even as the last resort,
// but for those asked for; ready again means unknown until probed.
func TestCaddyMaintenance(t *testing.T) {
	all := startBackends(t, "a", "b")
	a, b := all[0], all[1]
	c := startOperated(t, "", fmt.Sprintf(operated, addresses(all...)))
	eventually(t, patience, "both are up", func() bool { return statuses(a.addr, b.addr)[health.Up] == 2 })
	client := c.plain()
	c.patch(b.addr, `{"mode":"maintenance"}`)
	b.set(sick) // counts anew
	_, probes := a.seen()
	eventually(t, patience, "the other one is probed", func() bool { _, now := a.seen(); return now > probes+5 })
	shares(t, "in maintenance", tally(client, c.url(), 20), map[string]int{"a": 20})
	a.set(sick)
	eventually(t, patience, "nobody is up", func() bool { return is(health.Down, a.addr) })
	shares(t, "as the last resort", tally(client, c.url(), 20), map[string]int{"a": 20})
	if got := b.history(); got.probes > 0 || got.requests > 0 {
		t.Errorf("in maintenance it got %d probes and %d requests, want none", got.probes, got.requests)
	}
	if got := c.one(b.addr); got.Status != "unknown" || got.Checks[0].Next != nil {
		t.Errorf("in maintenance: %+v", got)
	}

	status, text := c.call(http.MethodPost, "/alive/check", url.Values{"upstream": {b.addr}}, "")
	checked, err := parseEntries([]byte(text))
	if status != http.StatusOK || err != nil || len(checked) != 1 || checked[0].Status != "unknown" ||
		checked[0].Checks[0].Last.Reason != "status 503, want 2xx" {
		t.Errorf("a check: %d %s", status, text)
	}
	if got := b.history(); got.probes != 1 {
		t.Errorf("a check made %d probes, want 1", got.probes)
	}

	b.set(well)
	c.patch(b.addr, `{"mode":"ready"}`)
	eventually(t, patience, "it is up", func() bool { return is(health.Up, b.addr) })
	shares(t, "ready again", tally(client, c.url(), 20), map[string]int{"b": 20})
}

// A weight and a mode that were set hold over reloads and restarts, until they are
// taken back; those of addresses that are gone are listed, and can be cleared.
func TestCaddySettingsLast(t *testing.T) {
	all := startBackends(t, "a", "b")
	a, b := all[0], all[1]
	sites := fmt.Sprintf(operated, addresses(all...))
	c := startOperated(t, "alive {\n fleet shops\n}", sites)
	up := func() {
		t.Helper()
		eventually(t, patience, "both are up", func() bool { return statuses(a.addr, b.addr)[health.Up] == 2 })
	}
	up()
	client := c.plain()
	c.patch(a.addr, `{"weight":3}`)
	shares(t, "with a weight", tally(client, c.url(), 40), map[string]int{"a": 30, "b": 10})
	c.load(sites + "\n# reloaded")
	up()
	shares(t, "after a reload", tally(c.plain(), c.url(), 40), map[string]int{"a": 30, "b": 10})

	c.patch(b.addr, `{"mode":"drain"}`)
	c.stop()
	c.load(sites)
	up()
	if got, want := c.one(b.addr).Mode, settings.Drain; got != want {
		t.Errorf("after a restart: mode %s, want %s", got, want)
	}
	shares(t, "after a restart", tally(c.plain(), c.url(), 20), map[string]int{"a": 20})

	c.load(fmt.Sprintf(operated, a.addr))
	if got := c.one(b.addr); got.Pool != "" || got.Mode != settings.Drain || !strings.HasPrefix(got.Why, "no pool has it") {
		t.Errorf("when it is gone: %+v", got)
	}
	if status, text := c.call(http.MethodPatch, "/alive/upstreams", url.Values{"upstream": {b.addr}}, `{"mode":"maintenance"}`); status != http.StatusNotFound {
		t.Errorf("another mode when it is gone: %d %s", status, text)
	}
	if got := c.patch(b.addr, `{"mode":null}`); len(got) != 0 {
		t.Errorf("after it was cleared: %+v", got)
	}
	c.load(sites)
	up()
	c.patch(a.addr, `{"weight":null}`)
	shares(t, "taken back", tally(c.plain(), c.url(), 20), map[string]int{"a": 10, "b": 10})
}

// While the storage fails, a change holds here and says that it is not persisted; it
// is stored when the storage returns.
func TestCaddyStorageFails(t *testing.T) {
	b := startBackend(t, "b", nil)
	c := startOperated(t, "alive {\n fleet shops\n sync_interval 100ms\n}", fmt.Sprintf(operated, b.addr))
	eventually(t, patience, "it is up", func() bool { return is(health.Up, b.addr) })
	// nobody, not even root, can write below a file
	folder := filepath.Join(c.dir, "alive")
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(folder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	changed := c.patch(b.addr, `{"mode":"drain"}`)
	if changed[0].Mode != settings.Drain || changed[0].Persisted == nil || *changed[0].Persisted {
		t.Errorf("while the storage fails: %+v", changed)
	}
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "it is stored", func() bool { return c.one(b.addr).Persisted == nil })
	stored, _ := filepath.Glob(filepath.Join(folder, "fleets", "shops", "*.json"))
	if len(stored) != 1 {
		t.Fatalf("stored: %v", stored)
	}
	if text, _ := os.ReadFile(stored[0]); !strings.Contains(string(text), `"mode":"drain"`) {
		t.Errorf("stored: %s", text)
	}
	eventually(t, patience, "the return is logged", func() bool { return c.logged("the storage works again") == 1 })
	if warned := c.logged("the storage fails"); warned != 1 {
		t.Errorf("logged: %d failures, want one", warned)
	}
}

// Handlers whose pools have one name are one pool: each upstream is listed once, with
// the checks of all.
func TestCaddyPoolsOfOneName(t *testing.T) {
	all := startBackends(t, "a", "b")
	site := func(pool, check string) string {
		return fmt.Sprintf("http://127.0.0.1:%d {\n\treverse_proxy %s {\n\t\tlb_policy alive {\n\t\t\tname %s\n\t\t\tcheck %s\n\t\t}\n\t}\n}\n", freePort(t), addresses(all...), pool, check)
	}
	// another pool stands between the handlers
	c := startOperated(t, "", site("shop", "tcp")+site("market", "tcp")+site("shop", "http /healthz"))
	eventually(t, patience, "all are up", func() bool { return statuses(all[0].addr, all[1].addr)[health.Up] == 4 })
	entries := c.entries(nil)
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

// A unix socket has slashes, and an address of IPv6 has colons and brackets: they are
// shown as the config names them, and taken by that name.
func TestCaddyAdminAddresses(t *testing.T) {
	serve := func(network, address string) string {
		stream, err := net.Listen(network, address)
		if err != nil {
			t.Skipf("skipped, for there is no %s here: %v", network, err)
		}
		server := &httptest.Server{Listener: stream, Config: &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}}
		server.Start()
		t.Cleanup(server.Close)
		return stream.Addr().String()
	}
	socket := "unix/" + serve("unix", filepath.Join(t.TempDir(), "a b.sock"))
	six := serve("tcp6", "[::1]:0")
	c := startOperated(t, "", fmt.Sprintf(operated, "`"+socket+"` "+six))
	for _, e := range c.entries(nil) {
		if e.Upstream != socket && e.Upstream != six {
			t.Fatalf("the list has %q", e.Upstream)
		}
		for _, m := range []settings.Mode{settings.Drain, settings.Maintenance, settings.Ready} {
			if _, _, err := command(t.Context(), c.admin, string(m), e.Upstream); err != nil {
				t.Error(err)
			}
			if got := c.one(e.Upstream).Mode; got != string(m) {
				t.Errorf("%s: mode %s, want %s", e.Upstream, got, m)
			}
		}
		if _, _, err := command(t.Context(), c.admin, "check", e.Upstream); err != nil {
			t.Error(err)
		}
	}
}

// A config that does not load changes nothing for upstreams that it shares with the
// running one, though it be of another fleet, which has other modes.
func TestCaddyAConfigThatFailsLeavesModesAlone(t *testing.T) {
	all := startBackends(t, "a", "b")
	site := fmt.Sprintf(operated, addresses(all...))
	c := startOperated(t, "alive {\n fleet one\n}\n", site)
	eventually(t, patience, "both are up", func() bool { return statuses(all[0].addr, all[1].addr)[health.Up] == 2 })
	c.patch(all[0].addr, `{"mode":"maintenance"}`)
	c.global = "alive {\n fleet two\n}\n"
	for i := range 6 { // Caddy starts apps in any order
		taken := fmt.Sprintf("\nhttp://%s {\n respond hi\n}\n%s", all[1].addr, strings.Repeat("\n", i))
		if err := c.tryLoad(site + taken); err == nil {
			t.Fatal("it loads")
		}
	}
	_, before := all[0].seen()
	stays(t, 300*time.Millisecond, "no probe", func() bool {
		_, now := all[0].seen()
		return now == before
	})
	if e := c.one(all[0].addr); e.Mode != settings.Maintenance || e.Status != "unknown" {
		t.Errorf("%+v", e)
	}
	if e := c.one(all[1].addr); e.Mode != settings.Ready || e.Status != "up" {
		t.Errorf("%+v", e)
	}
}

// What requests of the last config brought is listed, and can be changed, before one
// of this config does.
func TestCaddyDynamicUpstreamsAreListedAfterAReload(t *testing.T) {
	port, all := startLoopbacks(t, well)
	n, name := startNameServer(t), newName()
	n.set(name, nameAnswer{a: []string{"127.0.0.1"}})
	site := fmt.Sprintf("http:// {\n\treverse_proxy {\n\t\tdynamic %s\n\t\tlb_policy alive {\n\t\t\tname shop\n\t\t\tcheck http /healthz\n\t\t}\n\t}\n}\n", n.a(name, port))
	c := startOperated(t, "", site)
	ask(c.plain(), c.url())
	eventually(t, patience, "it is up", func() bool { return is(health.Up, all[0].addr) })
	c.patch(all[0].addr, `{"mode":"drain"}`)
	c.load(site + "\n# reloaded")
	if e := c.one(all[0].addr); e.Mode != settings.Drain || e.Status != "up" || e.Serving || !strings.HasPrefix(e.Why, "no request has brought it") {
		t.Errorf("%+v", e)
	}
	if e := c.patch(all[0].addr, `{"mode":"ready"}`); len(e) != 1 || e[0].Mode != settings.Ready {
		t.Errorf("%+v", e)
	}
	ask(c.plain(), c.url())
	if e := c.one(all[0].addr); !e.Serving || e.EffectiveWeight != 1 {
		t.Errorf("%+v", e)
	}
}

// A weight of a pool whose name the config has changed is listed, and can be taken back.
func TestCaddyWeightsOfPoolsThatAreGone(t *testing.T) {
	all := startBackends(t, "a", "b")
	site := func(name string) string {
		return fmt.Sprintf("http:// {\n\treverse_proxy %s {\n\t\tlb_policy alive {\n\t\t\tname %s\n\t\t}\n\t}\n}\n", addresses(all...), name)
	}
	c := startOperated(t, "", site("first"))
	c.patch(all[0].addr, `{"weight":0}`)
	c.patch(all[0].addr, `{"mode":"drain"}`)
	c.load(site("second"))
	entries := c.entries(url.Values{"upstream": {all[0].addr}})
	if len(entries) != 2 || entries[0].Weight != 1 || entries[1].Weight != 0 || !strings.HasPrefix(entries[1].Why, "no pool 'first' has it") || !entries[1].Gone || entries[0].Gone {
		t.Fatalf("%+v", entries)
	}
	query := url.Values{"upstream": {all[0].addr}, "pool": {entries[1].Pool}}
	if status, text := c.call(http.MethodPatch, "/alive/upstreams", query, `{"weight":3}`); status != http.StatusNotFound {
		t.Errorf("a weight for a pool that is gone: status %d: %s", status, text)
	}
	if status, text := c.call(http.MethodPatch, "/alive/upstreams", query, `{"weight":null}`); status != http.StatusOK {
		t.Errorf("taking it back: status %d: %s", status, text)
	}
	if e := c.one(all[0].addr); e.Mode != settings.Drain {
		t.Errorf("the mode is gone, too: %+v", e)
	}
	c.load(site("first"))
	if e := c.one(all[0].addr); e.Weight != 1 {
		t.Errorf("it is back: %+v", e)
	}
}

// Many at once that take back the same are all answered.
func TestCaddyManyAtOnce(t *testing.T) {
	all := startBackends(t, "a", "b")
	c := startOperated(t, "", fmt.Sprintf(operated, addresses(all...)))
	var clients sync.WaitGroup
	for i := range 32 {
		clients.Go(func() {
			for range 20 {
				body := []string{`{"mode":"ready"}`, `{"weight":null}`, `{"mode":"drain"}`}[i%3]
				if status, text := c.call(http.MethodPatch, "/alive/upstreams", url.Values{"upstream": {all[0].addr}}, body); status != http.StatusOK {
					t.Errorf("%s: status %d: %s", body, status, text)
				}
			}
		})
	}
	clients.Wait()
}

// Without a folder to write to, requests are balanced all the same, and what is set
// holds until Caddy ends.
func TestCaddyWithoutADataFolder(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skipped, for it takes a folder that not even root can write to")
	}
	t.Setenv("XDG_DATA_HOME", "/proc/nowhere")
	all := startBackends(t, "a", "b")
	c := startOperated(t, "", fmt.Sprintf(operated, addresses(all...)))
	eventually(t, patience, "both are up", func() bool { return statuses(all[0].addr, all[1].addr)[health.Up] == 2 })
	e := c.patch(all[0].addr, `{"mode":"drain"}`)[0]
	if e.Mode != settings.Drain || e.Persisted == nil || *e.Persisted {
		t.Errorf("%+v", e)
	}
	shares(t, "one drains", tally(c.plain(), c.url(), 4), map[string]int{"b": 4})
}

// A name that a pool is given has a bound, so that metrics of large pools have, too.
func TestCaddyLargePools(t *testing.T) {
	var upstreams []string
	for i := range 1000 {
		upstreams = append(upstreams, fmt.Sprintf("10.1.%d.%d:8080", i/250, i%250))
	}
	c := startOperated(t, "", fmt.Sprintf("http:// {\n\treverse_proxy %s {\n\t\tlb_policy alive\n\t}\n}\n", strings.Join(upstreams, " ")))
	_, text := c.call(http.MethodGet, "/metrics", nil, "")
	if name := c.entries(nil)[0].Pool; len(name) > limits.MaxName || len(text) > 2<<20 {
		t.Errorf("the pool is called %q; metrics have %d bytes", name, len(text))
	}
	if a, b := limits.ShortName(strings.Repeat("a", 300)), limits.ShortName(strings.Repeat("a", 301)); a == b || limits.ShortName("a b") != "a b" {
		t.Errorf("%s and %s", a, b)
	}
}
