// SPDX-License-Identifier: Apache-2.0

package test

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// Deleting an upstream that an option names is an error that names the option. The config
// stays as it was.
func TestAdmin_DeletingANamedUpstreamIsAnError(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	c := testkit.StartCaddyWith(t, "", "http:// {\n\treverse_proxy "+testkit.Addresses(all...)+" {\n\t\tlb_policy alive {\n\t\t\tweight "+all[1].Addr+" 3\n\t\t}\n\t}\n}")
	path := "/config/apps/http/servers/srv0/routes/0/handle/0/upstreams/1"
	status, text := c.Call(http.MethodDelete, path, nil, "")
	// Caddy answers 500 for whatever makes a config fail to load here
	want := "weights: " + all[1].Addr + " is not one of the upstreams, which are " + all[0].Addr
	if status != http.StatusInternalServerError || !strings.Contains(text, want) {
		t.Errorf("status %d: %s, want one that says %s", status, text, want)
	}
	if status, text := c.Call(http.MethodGet, path, nil, ""); status != http.StatusOK || !strings.Contains(text, all[1].Addr) {
		t.Errorf("afterwards: status %d: %s, want the upstream", status, text)
	}
	if got := c.One(all[1].Addr); got.Weight != 3 {
		t.Errorf("afterwards: weight %d, want 3", got.Weight)
	}
}

// Reasons in the list and the log show the address of a check with its placeholders, not
// with their values.
func TestCheckAddress_ReasonsShowItAsWritten(t *testing.T) {
	t.Setenv("PROBE_SECRET", "hunter2")
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(`http://127.0.0.1:%d {
	reverse_proxy 127.0.0.1:1 {
		lb_policy alive {
			check http /healthz {
				address unix//nowhere/{env.PROBE_SECRET}.sock
			}
		}
	}
}
`, testkit.FreePort(t)))
	if !testkit.Poll(testkit.Patience, func() bool { return len(c.Lines("upstream is down")) == 1 }) {
		t.Fatal("the upstream does not go down")
	}
	_, list := c.Call("GET", "/alive/upstreams", url.Values{}, "")
	for what, text := range map[string]string{"list": list, "log": c.Lines("upstream is down")[0].Reason} {
		if strings.Contains(text, "hunter2") || !strings.Contains(text, "{env.PROBE_SECRET}.sock") {
			t.Errorf("the %s has the value, or not the placeholder: %s", what, text)
		}
	}
}

// Two checks of one upstream with different ports each have a row, a gauge and counters.
func TestLabels_TellPortsApart(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	_, port, _ := strings.Cut(all[1].Addr, ":")
	c := testkit.StartCaddyWith(t, "", "http:// {\n\treverse_proxy "+all[0].Addr+" {\n\t\tlb_policy alive {\n\t\t\tcheck http /healthz {\n\t\t\t\tinterval 50ms\n\t\t\t}\n\t\t\tcheck http /healthz {\n\t\t\t\tinterval 50ms\n\t\t\t\tport "+port+"\n\t\t\t}\n\t\t}\n\t}\n}")
	all[1].Set(testkit.Sick)
	other := "http /healthz port " + port
	testkit.Eventually(t, testkit.Patience, "one check fails and the other passes", func() bool {
		states := make(map[string]string)
		for _, check := range c.One(all[0].Addr).Checks {
			states[check.Check] = check.Status
		}
		return len(states) == 2 && states["http /healthz"] == "up" && states[other] == "down"
	})
	status, text := c.Call(http.MethodGet, "/metrics", nil, "")
	for _, want := range []string{
		`caddy_alive_upstream_up{check="http /healthz",upstream="` + all[0].Addr + `"} 1`,
		`caddy_alive_upstream_up{check="` + other + `",upstream="` + all[0].Addr + `"} 0`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics (status %d): %s is missing", status, want)
		}
	}
}

// A query that does not parse is an error, not a query for everything.
func TestAdmin_MalformedQueriesAreErrors(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...)))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	for _, query := range []string{
		"pool=shop%zz", "pool=%", "upstream=" + all[0].Addr + "%zz", "pool=shop;upstream=x", ";", "pool=shop&%zz=1",
		"pool, upstream=x", "pool%2C%20upstream=x", "%2C=x", "Pool=shop", "pool%20=shop", "=shop", "pools=shop", "poo=shop",
	} {
		for method, path := range map[string]string{http.MethodGet: "upstreams", http.MethodHead: "upstreams", http.MethodPatch: "upstreams", http.MethodPost: "check"} {
			request, err := http.NewRequestWithContext(t.Context(), method, "http://"+c.Admin+"/alive/"+path, strings.NewReader(`{"mode":"drain"}`))
			if err != nil {
				t.Fatal(err)
			}
			request.URL.RawQuery = strings.ReplaceAll(query, ", ", ",%20")
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != http.StatusBadRequest {
				t.Errorf("%s %s: status %d", method, query, response.StatusCode)
			}
		}
	}
	for _, e := range c.List(nil) {
		if e.Mode != "ready" {
			t.Errorf("it was changed: %+v", e)
		}
	}
}

// Addresses that are not UTF-8 are shown, counted and set by their escaped form, and
// /metrics works.
func TestList_ShowsAddressesThatAreNotUTF8(t *testing.T) {
	b := testkit.StartBackend(t, "b", nil)
	const shown = `\xff\xfe.invalid:80`
	t.Setenv("ALIVE_TEST_DIAL", "\xff\xfe.invalid:80")
	for _, name := range []string{"name shop", "# no name"} {
		c := testkit.StartCaddyWith(t, "", fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		to {env.ALIVE_TEST_DIAL}
		lb_policy alive {
			%s
			check http /healthz {
				interval 50ms
			}
		}
	}
}`, b.Addr, name))
		testkit.Eventually(t, testkit.Patience, "the other one is up", func() bool { return c.Up(b.Addr) })
		if got := c.One(shown); got.Upstream != shown {
			t.Errorf("%s: %+v", name, got)
		}
		if got := c.Patch(shown, `{"mode":"drain"}`); got[0].Mode != "drain" || got[0].Persisted != nil {
			t.Errorf("%s: %+v", name, got)
		}
		found := 0
		for series := range c.Metrics() { // fails unless the status is 200
			if strings.Contains(series, `\\xff\\xfe`) {
				found++
			}
		}
		if found == 0 {
			t.Errorf("%s: no series has it", name)
		}
		c.Stop()
	}
}

// One URL is the page and the list. It can only be read.
func TestStatusPage_IsPageAndList(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	all[1].Set(testkit.Sick)
	c := testkit.StartCaddyWith(t, "", strings.Replace(fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...)), "http:// {", "http:// {\n\talive_status /status", 1))
	testkit.Eventually(t, testkit.Patience, "all have a verdict", func() bool { return c.Up(all[0].Addr) && c.Down(all[1].Addr) })
	get := func(method, accept string) (*http.Response, string) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, c.URL()+"/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Accept", accept)
		response, err := c.Client().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response, string(text)
	}
	response, page := get(http.MethodGet, "text/html")
	for _, want := range []string{"<h2><bdi>shop</bdi></h2>", all[0].Addr, all[1].Addr, "1 down; 1 of 2 upstreams serve", "</svg>100 %", "status 503, want 2xx", ", 0 failed"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	for name, want := range map[string]string{
		"Content-Type": "text/html; charset=utf-8", "Vary": "Accept, Accept-Encoding", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
	} {
		if got := response.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	// the policy of the page allows what is in it, and nothing else
	policy := response.Header.Get("Content-Security-Policy")
	for _, of := range []string{"style", "script"} {
		_, source, _ := strings.Cut(page, "<"+of+">")
		source, _, _ = strings.Cut(source, "</"+of+">")
		hash := sha256.Sum256([]byte(source))
		if want := of + "-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "';"; !strings.Contains(policy, want) {
			t.Errorf("policy: got %q, want one with %q", policy, want)
		}
	}
	if want := "default-src 'none';"; !strings.HasPrefix(policy, want) {
		t.Errorf("policy: got %q, want one that begins with %q", policy, want)
	}
	response, text := get(http.MethodGet, "*/*")
	entries, err := testkit.ParseList(text)
	if err != nil || len(entries) != 2 || response.Header.Get("Content-Type") != "application/json" || response.Header.Get("Vary") != "Accept, Accept-Encoding" {
		t.Errorf("as JSON: %v %s %v", response.Header, text, err)
	}
	if response, text := get(http.MethodHead, "text/html"); response.StatusCode != http.StatusOK || text != "" {
		t.Errorf("HEAD: %d %s", response.StatusCode, text)
	}
	for _, method := range []string{http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete} {
		if response, _ := get(method, "text/html"); response.StatusCode != http.StatusMethodNotAllowed || response.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %d, allowed: %s", method, response.StatusCode, response.Header.Get("Allow"))
		}
	}
}
