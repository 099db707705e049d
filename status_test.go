// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"net/http"
	"strings"
	"testing"

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
