// SPDX-License-Identifier: Apache-2.0

package placeholder

import (
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// of returns the placeholders of an upstream.
func of(upstream reverseproxy.DialInfo) func(string) (any, bool) {
	return func(name string) (any, bool) { return Of(upstream, name) }
}

// Placeholders of the upstream are replaced for each, by the values that Caddy gives them.
func TestText_IsFilledForEachUpstream(t *testing.T) {
	t.Setenv("ALIVE_TEST_WORD", "word")
	t.Setenv("ALIVE_TEST_BRACES", "{http.reverse_proxy.upstream.host} \\{x\\}")
	tcp := reverseproxy.DialInfo{Network: "tcp", Address: "[::1]:80", Host: "::1", Port: "80"}
	socket := reverseproxy.DialInfo{Network: "unix", Address: "/run/app.sock", Host: "/run/app.sock", Port: "0"}
	for _, test := range []struct{ written, tcp, socket string }{
		{"", "", ""},
		{"a", "a", "a"},
		{"{env.ALIVE_TEST_WORD}", "word", "word"},
		{"{http.reverse_proxy.upstream.hostport}", "[::1]:80", "/run/app.sock"},
		{"<{http.reverse_proxy.upstream.host}|{http.reverse_proxy.upstream.port}>", "<::1|80>", "</run/app.sock|0>"},
		{"{http.reverse_proxy.active.target_upstream}", "[::1]:80", "unix//run/app.sock"},
		{"{env.ALIVE_TEST_WORD}-{http.reverse_proxy.upstream.port}-{http.reverse_proxy.upstream.port}", "word-80-80", "word-0-0"},
		// the value of a global placeholder is text
		{"{env.ALIVE_TEST_BRACES}", "{http.reverse_proxy.upstream.host} \\{x\\}", "{http.reverse_proxy.upstream.host} \\{x\\}"},
		{"{env.ALIVE_TEST_BRACES} {http.reverse_proxy.upstream.port}", "{http.reverse_proxy.upstream.host} \\{x\\} 80", "{http.reverse_proxy.upstream.host} \\{x\\} 0"},
	} {
		text, err := Parse("header A", test.written)
		if err != nil {
			t.Errorf("%s: %v", test.written, err)
			continue
		}
		if got, err := text.For(of(tcp)); got != test.tcp || err != nil {
			t.Errorf("%s: got %q, %v, want %q", test.written, got, err, test.tcp)
		}
		if got, err := text.For(of(socket)); got != test.socket || err != nil {
			t.Errorf("%s: got %q, %v, want %q", test.written, got, err, test.socket)
		}
		_, constant := text.Constant()
		if want := !strings.Contains(test.written, "{http."); constant != want {
			t.Errorf("%s: constant: got %t, want %t", test.written, constant, want)
		}
		if text.String() != test.written || text.IsEmpty() != (test.written == "") {
			t.Errorf("%s: got %q, empty: %t", test.written, text, text.IsEmpty())
		}
	}
}

// In a text with braces of its own, only placeholders that are known are replaced.
func TestParseKnown_KeepsOtherBraces(t *testing.T) {
	t.Setenv("ALIVE_TEST_WORD", "word")
	upstream := of(reverseproxy.DialInfo{Network: "tcp", Address: "app:80", Host: "app", Port: "80"})
	for written, want := range map[string]string{
		`{"a":{}}`:        `{"a":{}}`,
		`{"a":"{other}"}`: `{"a":"{other}"}`,
		`\{"a"\}`:         `\{"a"\}`,
		`{"of":"{http.reverse_proxy.upstream.hostport}","w":"{env.ALIVE_TEST_WORD}"}`: `{"of":"app:80","w":"word"}`,
	} {
		text, err := ParseKnown("request_body", written)
		if err != nil {
			t.Errorf("%s: %v", written, err)
			continue
		}
		if got, err := text.For(upstream); got != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", written, got, err, want)
		}
	}
}

// Placeholders of a request, and those that are unknown or empty, are errors that say what
// is allowed.
func TestParse_OtherPlaceholdersAreErrors(t *testing.T) {
	t.Setenv("ALIVE_TEST_EMPTY", "")
	for _, test := range []struct {
		written, want string
		allowed       bool // the error lists what is
	}{
		{"{http.request.host}", "header A: unrecognized placeholder {http.request.host}", true},
		{"a{http.reverse_proxy.upstream.address}", "header A: unrecognized placeholder {http.reverse_proxy.upstream.address}", true},
		{"{http.reverse_proxy.upstream.port}{http.vars.a}", "header A: unrecognized placeholder {http.vars.a}", true},
		{"{nosuch}", "header A: unrecognized placeholder {nosuch}", true},
		{"{env.ALIVE_TEST_EMPTY}", "header A: evaluated placeholder {env.ALIVE_TEST_EMPTY} is empty", false},
	} {
		_, err := Parse("header A", test.written)
		if err == nil || !strings.HasPrefix(err.Error(), test.want) || strings.Contains(err.Error(), "{http.reverse_proxy.active.target_upstream}") != test.allowed {
			t.Errorf("%s: got %v, want %q", test.written, err, test.want)
		}
	}
	if _, err := ParseKnown("request_body", `{"a":"{http.request.host}"}`); err == nil {
		t.Error("request_body with a placeholder of a request: got no error")
	}
	if err := Check("uri", `/\{http.request.host\}`); err != nil {
		t.Errorf("escaped braces: got %v", err)
	}
	text, _ := Parse("uri", "/{http.reverse_proxy.upstream.port}")
	if _, err := text.For(nil); err == nil {
		t.Error("an upstream without placeholders: got no error")
	}
}
