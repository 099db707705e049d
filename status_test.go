// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// The page is for those who accept HTML by name; all others get the list.
func TestWantsHTML(t *testing.T) {
	for accept, want := range map[string]bool{
		"":                                  false,
		"*/*":                               false,
		"text/*":                            false,
		"application/json":                  false,
		"text/html":                         true,
		"text/html;q=0":                     false,
		"text/html;q=0.5":                   true,
		"text/html;q=x":                     false,
		"text/html;q=NaN":                   false,
		"text/html;q=Inf":                   false,
		"text/html;q=-1":                    false,
		"text/html;q=0.5, application/json": false,
		"application/json;q=0.5, text/html": true,
		"application/json, text/html":       true,
		"application/json;q=NaN, text/html;q=0.1": true,
		"TEXT/HTML":         true,
		"a, text/html":      true,
		"text/htmlx, */*":   false,
		";;;, text/html; x": false,
		"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": true,
	} {
		if got := wantsHTML(http.Header{"Accept": {accept}}); got != want {
			t.Errorf("%q: got %v, want %v", accept, got, want)
		}
	}
}

// One URL is the page and the list; it can be read, and nothing else.
func TestCaddyStatusPage(t *testing.T) {
	all := startBackends(t, "a", "b")
	all[1].set(sick)
	c := startOperated(t, "", strings.Replace(fmt.Sprintf(operated, addresses(all...)), "http:// {", "http:// {\n\talive_status /status", 1))
	eventually(t, patience, "all have a verdict", func() bool { return is(health.Up, all[0].addr) && is(health.Down, all[1].addr) })
	get := func(method, accept string) (*http.Response, string) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, c.url()+"/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Accept", accept)
		response, err := c.plain().Do(request)
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
	for _, want := range []string{"<h2><bdi>shop</bdi></h2>", all[0].addr, all[1].addr, "1 of 2 upstreams serve", "share 100 %", "last failure: <bdi>status 503, want 2xx</bdi>", "results, 0 failed"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	for name, want := range map[string]string{
		"Content-Type": "text/html; charset=utf-8", "Vary": "Accept", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
		"Content-Security-Policy": statusPolicy,
	} {
		if got := response.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	response, text := get(http.MethodGet, "*/*")
	entries, err := parseEntries([]byte(text))
	if err != nil || len(entries) != 2 || response.Header.Get("Content-Type") != "application/json" || response.Header.Get("Vary") != "Accept" {
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

// Names and reasons can be anything; on the page they are text.
func TestStatusPageEscapes(t *testing.T) {
	const hostile = `</script><script>alert(1)</script>"'><img src=x onerror=alert(1)>`
	entries := []view.Upstream{{
		Pool: "pool " + hostile, Upstream: "upstream " + hostile, Status: "down", Mode: settings.Ready, Why: "why " + hostile, FailOpen: true,
		Checks: []view.Check{{Check: "check " + hostile, Status: "down", LastFailed: &view.Result{Reason: "reason " + hostile}, Recent: []float64{1, -2}}},
	}}
	page := rendered(t, entries)
	if strings.Contains(page, "<img") || strings.Contains(page, "<script>alert") {
		t.Errorf("it is not escaped:\n%s", page)
	}
	if n := strings.Count(page, "</script>"); n != 2 {
		t.Errorf("%d scripts end, want the 2 of the page", n)
	}
	if !strings.Contains(page, `role="alert"`) {
		t.Error("fail-open is not shown")
	}
	// what the policy of the page allows is what is in it
	for _, source := range []string{"<style>" + statusCSS + "</style>", "<script>" + statusJS + "</script>"} {
		if !strings.Contains(page, source) {
			t.Errorf("the page has not: %.60s", source)
		}
	}
	if !strings.Contains(page, "<title>Fail-open in 1 of 1 pools: 0 of 1 upstreams serve</title>") {
		t.Error("the title does not tell of fail-open")
	}
	if page := rendered(t, []view.Upstream{}); !strings.Contains(page, "No reverse_proxy uses lb_policy alive.") {
		t.Errorf("without any: %s", page)
	}
}

// rendered returns the page that shows entries.
func rendered(t *testing.T, entries []view.Upstream) string {
	t.Helper()
	l := &listing{entries: entries}
	page, err := l.htmlPage()
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}
