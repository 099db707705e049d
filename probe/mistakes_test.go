// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// The methods of HTTP itself can be written in lower case, everywhere.
func TestHTTP_StandardMethodsAreUppercased(t *testing.T) {
	t.Setenv("PROBE_METHOD", "head")
	for method, want := range map[string]string{
		"get": "GET", "Head": "HEAD", "options": "OPTIONS", "post": "POST", "GET": "GET",
		"{env.PROBE_METHOD}": "HEAD",
		"propfind":           "propfind", // names of other methods are case-sensitive
	} {
		h := new(HTTP)
		if err := h.UnmarshalCaddyfile(caddyfile.NewTestDispenser("http / {\n\tmethod " + method + "\n}")); err != nil {
			t.Errorf("%s: %v", method, err)
			continue
		}
		if !strings.Contains(method, "{") && h.Method != want {
			t.Errorf("%s: parsed as %s, want %s", method, h.Method, want)
		}
		config, err := json.Marshal(map[string]string{"uri": "/", "method": method})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		up := Upstream{Scheme: "http", Host: "app1", Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			got = r.Method
			return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
		})}
		if err := load(t, string(config)).Probe(t.Context(), up); err != nil || got != want {
			t.Errorf("%s: asked by %s, %v; want %s", method, got, err, want)
		}
	}
	err := new(HTTP).UnmarshalCaddyfile(caddyfile.NewTestDispenser("http / {\n\tmethod head\n\texpect_body a\n}"))
	if got, want := text(err), "expect_body: an answer to HEAD has no body to look at, at Testfile:4"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A full URL is a common mistake: the error says what to write.
func TestHTTP_FullURLsGetAHint(t *testing.T) {
	t.Parallel()
	const must = "uri must be a path that begins with one '/', optionally with a query; give only the path, like "
	for uri, want := range map[string]string{
		"http://app/healthz":         must + "/healthz: the request always goes to the upstream; got 'http://app/healthz', at Testfile:1",
		"https://app:8443/healthz?a": must + "/healthz?a: the request always goes to the upstream; got 'https://app:8443/healthz?a', at Testfile:1",
		"http://app":                 must + "/: the request always goes to the upstream; got 'http://app', at Testfile:1",
		"http://{env.HOST}/healthz":  must + "/healthz: the request always goes to the upstream; got 'http://{env.HOST}/healthz', at Testfile:1",
		"app:80/healthz":             "uri must be a path that begins with one '/', optionally with a query; got 'app:80/healthz', at Testfile:1",
	} {
		if got := text(new(HTTP).UnmarshalCaddyfile(caddyfile.NewTestDispenser("http " + uri))); got != want {
			t.Errorf("%s:\n got %q\nwant %q", uri, got, want)
		}
	}
}

// An unknown option gets the closest name, of the kind or of all kinds, and the list of
// names.
func TestKinds_UnknownOptionsGetTheCloseName(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		kind   caddyfile.Unmarshaler
		config string
		option string
		meant  string
		own    string
	}{
		{new(HTTP), "http /", "intervall", "interval", "an http check has method, header, request_body,"},
		{new(HTTP), "http /", "expect_bdy", "expect_body", "an http check has method, header, request_body,"},
		{new(HTTP), "http /", "exspression", "expression", "an http check has method, header, request_body,"},
		{new(HTTP), "http /", "keepconnection", "keep_connection", "an http check has method"},
		{new(HTTP), "http /", "versions", "version", "an http check has method"},
		{new(GRPC), "grpc", "heeder", "header", "a grpc check has authority, header, scheme,"},
		{new(HTTP), "http /", "nonsense", "", "an http check has method"},
		{new(TCP), "tcp", "timout", "timeout", "a tcp check has send and expect"},
		{new(TCP), "tcp", "sent", "send", "a tcp check has send and expect"},
		{new(TLS), "tls", "tls_servername", "tls_server_name", "a tls check has tls_server_name and tls_insecure_skip_verify"},
		{new(GRPC), "grpc", "authorety", "authority", "a grpc check has authority, header, scheme,"},
	} {
		err := text(test.kind.UnmarshalCaddyfile(caddyfile.NewTestDispenser(test.config + " {\n\t" + test.option + " a\n}")))
		want, hint := "unrecognized option '"+test.option+"': "+everyCheck+test.own, ""
		if test.meant != "" {
			hint = "; did you mean '" + test.meant + "'?"
		}
		if !strings.HasPrefix(err, want) || !strings.HasSuffix(err, hint+", at Testfile:2") || strings.Contains(err, "did you mean") != (hint != "") {
			t.Errorf("%s, %s: got %q, want %q and %q", test.config, test.option, err, want, hint)
		}
	}
}

// Text of an upstream is shown without invisible characters.
func TestVisible_EscapesWhatCannotBeSeen(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                         "",
		`it's "all" well \ größer`: `it's "all" well \ größer`,
		"a\tb\r\n\x00\x1b[31m":     `a\tb\r\n\x00\x1b[31m`,
		"\u202e\u200b\u2028\ufeff": `\u202e\u200b\u2028\ufeff`,
		"\xff\uFFFD":               `\xff` + "\uFFFD",
	} {
		if got := visible(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
