// SPDX-License-Identifier: Apache-2.0

package test

import (
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// What SECURITY.md promises of the page is so.

// quoted is a piece of code in Markdown.
var quoted = regexp.MustCompile("`([^`]+)`")

// promisedHeaders returns what the table of SECURITY.md says of the headers of one form: for
// each its value, or its beginning if words follow.
func promisedHeaders(t *testing.T, form string) map[string]string {
	t.Helper()
	promised := make(map[string]string)
	column := -1
	for line := range strings.SplitSeq(testkit.Documents(t, "SECURITY.md")[0].Text, "\n") {
		if !strings.HasPrefix(line, "|") {
			column = -1
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if cells[0] == "header" {
			column = slices.Index(cells, form)
			continue
		}
		if column < 0 || !strings.HasPrefix(cells[0], "`") || cells[column] == "none" {
			continue
		}
		value := quoted.FindStringSubmatch(cells[column])
		if value == nil {
			t.Fatalf("SECURITY.md has no value in %q", line)
		}
		promised[strings.Trim(cells[0], "`")] = value[1]
	}
	if len(promised) == 0 {
		t.Fatalf("SECURITY.md has no table of headers with the column %q", form)
	}
	return promised
}

// The answers of the page have exactly the headers that SECURITY.md lists, and it can only be
// read.
func TestSecurity_PageHasThePromisedHeaders(t *testing.T) {
	backend := testkit.StartBackend(t, "a", nil)
	c := testkit.StartCaddyWith(t, "", "http:// {\n\talive_status /status\n\treverse_proxy "+backend.Addr+" {\n\t\tlb_policy alive\n\t}\n}")
	usual := []string{"Alt-Svc", "Content-Length", "Content-Type", "Date", "Server"}
	for form, accept := range map[string]string{"page": "text/html", "JSON": "application/json"} {
		promised := promisedHeaders(t, form)
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			header, status := ask(t, c, method, accept)
			if status != http.StatusOK {
				t.Errorf("%s of the %s: status %d", method, form, status)
			}
			for name, value := range promised {
				if got := header.Get(name); got != value && !strings.HasPrefix(got, value+";") {
					t.Errorf("%s of the %s: %s is %q, want %q", method, form, name, got, value)
				}
			}
			for name := range header {
				if _, ok := promised[name]; !ok && !slices.Contains(usual, name) {
					t.Errorf("%s of the %s: SECURITY.md does not list %s; it lists %v", method, form, name, slices.Sorted(maps.Keys(promised)))
				}
			}
		}
	}
	header, _ := ask(t, c, http.MethodGet, "text/html")
	policy := strings.Split(header.Get("Content-Security-Policy"), "; ")
	for _, want := range []string{"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"} {
		if !slices.Contains(policy, want) {
			t.Errorf("the policy %v lacks %s", policy, want)
		}
	}
	for _, directive := range policy {
		if name, sources, _ := strings.Cut(directive, " "); (name == "style-src" || name == "script-src") && !strings.HasPrefix(sources, "'sha256-") {
			t.Errorf("the page runs more than its own: %s", directive)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions} {
		if _, status := ask(t, c, method, "text/html"); status != http.StatusMethodNotAllowed {
			t.Errorf("%s: status %d, want 405", method, status)
		}
	}
}

// ask sends a request to the page and returns the headers and the status of the answer.
func ask(t *testing.T, c *testkit.Caddy, method, accept string) (http.Header, int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, c.URL()+"/status", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	resp, err := c.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.Header, resp.StatusCode
}
