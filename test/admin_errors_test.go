// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// errorCode returns the code of an answer that is a text and a code, and nothing else.
func errorCode(answer string) string {
	var object struct{ Error, Code string }
	decoder := json.NewDecoder(strings.NewReader(answer))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&object); err != nil || object.Error == "" || decoder.More() {
		return ""
	}
	return object.Code
}

// documentedCodes returns the codes in the table of errors of the documentation.
func documentedCodes(t *testing.T) (codes []string) {
	t.Helper()
	text, err := os.ReadFile("../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n| code |")
	table, _, _ = strings.Cut(table, "\n\n")
	for _, row := range strings.Split(table, "\n")[1:] {
		cell, _, _ := strings.Cut(strings.TrimPrefix(row, "|"), "|")
		for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(cell, -1) {
			codes = append(codes, m[1])
		}
	}
	return codes
}

// Each error has the code and the status that the documentation says, and a line in
// Caddy's log.
func TestAdminErrors_HaveCodes(t *testing.T) {
	const placeholder = "{http.request.header.Backend}"
	all := testkit.StartBackends(t, "a", "b", "c")
	a, b, c := all[0].Addr, all[1].Addr, all[2].Addr
	site := func(name, upstreams string) string {
		return fmt.Sprintf("http://127.0.0.1:%d {\n\treverse_proxy %s {\n\t\tlb_policy alive {\n\t\t\tname %s\n\t\t}\n\t}\n}\n", testkit.FreePort(t), upstreams, name)
	}
	caddy := testkit.StartCaddyWith(t, "", site("past", a+" "+b))
	caddy.Patch(a, `{"weight":2}`)
	caddy.Patch(b, `{"mode":"drain"}`)
	caddy.Load(site("first", a+" "+c+" "+placeholder) + site("second", c))
	if status, text := caddy.Call("DELETE", "/config/logging/logs/default/exclude", nil, ""); status != 200 {
		t.Fatalf("to log what the admin API does: %d %s", status, text)
	}
	var codes []string
	for _, tc := range []struct {
		method, path, upstream, pool, body string
		status                             int
		code                               string
	}{
		{"POST", "upstreams", "", "", "", 405, "method_not_allowed"},
		{"GET", "check", "", "", "", 405, "method_not_allowed"},
		{"GET", "upstreams?%", "", "", "", 400, "invalid_query"},
		{"GET", "upstreams?serving=no", "", "", "", 400, "invalid_query"},
		{"GET", "upstreams?up=1", "", "", "", 400, "unknown_parameter"},
		{"GET", "upstreams?pool=a&pool=b", "", "", "", 400, "duplicate_parameter"},
		{"PATCH", "upstreams", "", "", `{"mode":"drain"}`, 400, "missing_upstream"},
		{"POST", "check", "", "", "", 400, "missing_upstream"},
		{"PATCH", "upstreams", "x:1", "", `{"mode":"drain"}`, 404, "unknown_upstream"},
		{"POST", "check", "x:1", "", "", 404, "unknown_upstream"},
		{"PATCH", "upstreams", b, "", `{"mode":"maintenance"}`, 404, "upstream_gone"},
		{"PATCH", "upstreams", a, "past", `{"mode":null}`, 400, "pool_gone"},
		{"PATCH", "upstreams", c, "", `{"weight":2}`, 409, "ambiguous_pool"},
		{"PATCH", "upstreams", a, "", `{`, 400, "invalid_body"},
		{"PATCH", "upstreams", a, "", strings.Repeat(" ", 64<<10+1), 413, "body_too_large"},
		{"POST", "check", a, "", strings.Repeat(" ", 64<<10+1), 413, "body_too_large"},
		{"PATCH", "upstreams", a, "", `{}`, 400, "nothing_to_change"},
		{"PATCH", "upstreams", a, "", `{"mode":"off"}`, 400, "invalid_mode"},
		{"PATCH", "upstreams", a, "", `{"rebind":true}`, 400, "invalid_rebind"},
		{"PATCH", "upstreams", a, "", `{"wait":"60s"}`, 400, "invalid_wait"},
		{"PATCH", "upstreams", a, "", `{"mode":"drain","wait":"60s"}`, 404, "no_fleet"},
		{"GET", "fleet", "", "", "", 404, "no_fleet"},
		{"POST", "fleet", "", "", "", 405, "method_not_allowed"},
		{"GET", "pools", "", "frist", "", 404, "unknown_pool"},
		{"PATCH", "upstreams", a, "", `{"weight":-1}`, 400, "invalid_weight"},
		{"POST", "check", placeholder, "", "", 400, "not_checked"},
	} {
		query := make(url.Values)
		if tc.upstream != "" {
			query.Set("upstream", tc.upstream)
		}
		if tc.pool != "" {
			query.Set("pool", tc.pool)
		}
		status, text := caddy.Call(tc.method, "/alive/"+tc.path, query, tc.body)
		if status != tc.status || errorCode(text) != tc.code {
			t.Errorf("%s %s %v %.40s: got %d %s, want %d and %s", tc.method, tc.path, query, tc.body, status, text, tc.status, tc.code)
		}
		codes = append(codes, tc.code)
	}
	if n := caddy.Logged(`"logger":"admin.api","msg":"request error","error":"unknown upstream 'x:1'; `); n != 2 {
		t.Errorf("logged: %d errors of an unknown upstream, want 2", n)
	}

	// a check that is given up, and more waits than a fleet allows
	codes = append(codes, "check_failed", "wait_failed")
	slices.Sort(codes)
	documented := documentedCodes(t)
	slices.Sort(documented)
	if codes = slices.Compact(codes); !slices.Equal(documented, codes) {
		t.Errorf("documented: %q, want %q", documented, codes)
	}
}
