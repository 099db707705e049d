// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// The kinds are registered under the names that check blocks use. Their modules can
// probe and can be configured by a Caddyfile.
func TestKinds_AreRegisteredByName(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		module caddy.Module
		id     caddy.ModuleID
	}{
		{HTTP{}, "alive.probes.http"},
		{TCP{}, "alive.probes.tcp"},
		{TLS{}, "alive.probes.tls"},
		{GRPC{}, "alive.probes.grpc"},
	} {
		info := test.module.CaddyModule()
		if info.ID != test.id {
			t.Errorf("%T: got the ID %s, want %s", test.module, info.ID, test.id)
		}
		first, second := info.New(), info.New()
		if _, ok := first.(Prober); !ok {
			t.Errorf("%s: %T is no Prober", test.id, first)
		}
		if _, ok := first.(caddyfile.Unmarshaler); !ok {
			t.Errorf("%s: %T is no caddyfile.Unmarshaler", test.id, first)
		}
		if _, ok := first.(UpstreamValidator); !ok {
			t.Errorf("%s: %T is no UpstreamValidator", test.id, first)
		}
		if _, ok := first.(fmt.Stringer); !ok {
			t.Errorf("%s: %T is no fmt.Stringer", test.id, first)
		}
		if err := json.Unmarshal([]byte(`{"uri":"/changed","send":"changed","tls_server_name":"changed"}`), first); err != nil {
			t.Fatal(err)
		}
		if got, err := json.Marshal(second); err != nil || string(got) != "{}" {
			t.Errorf("%s: two modules share their options: got %s, %v; want {}", test.id, got, err)
		}
	}
}

// Every option of the Caddyfile has its JSON field. Defaults are left out, because
// Provision sets them, and placeholders stay as written. What the parser accepts also
// loads, if its placeholders are known.
func TestHTTP_CaddyfileGivesJSONThatLoads(t *testing.T) {
	t.Setenv("PROBE_PATH", "/healthz")
	t.Setenv("PROBE_TOKEN", "secret")
	t.Setenv("PROBE_WORD", "ready")
	for _, test := range []struct{ input, want string }{
		{"http /healthz", `{"uri":"/healthz"}`},
		{"http /", `{"uri":"/"}`},
		{"http /healthz?full=1&deep", `{"uri":"/healthz?full=1\u0026deep"}`},
		{"http /healthz {\n}", `{"uri":"/healthz"}`},
		{"http {env.PROBE_PATH}", `{"uri":"{env.PROBE_PATH}"}`},
		{"http /x/{env.PROBE_WORD}", `{"uri":"/x/{env.PROBE_WORD}"}`},

		{"http /x {\n\tmethod HEAD\n}", `{"uri":"/x","method":"HEAD"}`},
		{"http /x {\n\tmethod PROPFIND\n}", `{"uri":"/x","method":"PROPFIND"}`},

		{"http /x {\n\theader Host app.internal\n}", `{"uri":"/x","header":{"Host":["app.internal"]}}`},
		{"http /x {\n\theader Host {env.PROBE_WORD}.internal:80\n}", `{"uri":"/x","header":{"Host":["{env.PROBE_WORD}.internal:80"]}}`},
		// all spellings of a name are one field
		{"http /x {\n\theader host app.internal\n}", `{"uri":"/x","header":{"Host":["app.internal"]}}`},
		{
			"http /x {\n\theader Accept text/plain\n\theader ACCEPT text/html\n\theader X-Token {env.PROBE_TOKEN}\n}",
			`{"uri":"/x","header":{"Accept":["text/plain","text/html"],"X-Token":["{env.PROBE_TOKEN}"]}}`,
		},
		{"http /x {\n\theader X-Empty \"\"\n}", `{"uri":"/x","header":{"X-Empty":[""]}}`},

		{"http /x {\n\tstatus 204\n}", `{"uri":"/x","status":["204"]}`},
		{"http /x {\n\tstatus 200 204 3xx 400-404\n}", `{"uri":"/x","status":["200","204","3xx","400-404"]}`},

		{"http /x {\n\texpect_body ready\n}", `{"uri":"/x","expect_body":"ready"}`},
		{"http /x {\n\texpect_body `\"db\": ?\"ok\"`\n}", `{"uri":"/x","expect_body":"\"db\": ?\"ok\""}`},
		{"http /x {\n\texpect_body a{2,3}\n}", `{"uri":"/x","expect_body":"a{2,3}"}`},
		{"http /x {\n\texpect_body \"^{env.PROBE_WORD}$\"\n}", `{"uri":"/x","expect_body":"^{env.PROBE_WORD}$"}`},

		{"http /x {\n\tmax_size 1\n}", `{"uri":"/x","max_size":1}`},
		{"http /x {\n\tmax_size 1000\n}", `{"uri":"/x","max_size":1000}`},
		{"http /x {\n\tmax_size 1KB\n}", `{"uri":"/x","max_size":1000}`},
		{"http /x {\n\tmax_size 64KiB\n}", `{"uri":"/x","max_size":65536}`},
		{"http /x {\n\tmax_size 64MiB\n}", `{"uri":"/x","max_size":67108864}`},

		{
			"http /x {\n\tmethod POST\n\theader A b\n\tstatus 2xx\n\texpect_body c\n\tmax_size 1KiB\n}",
			`{"uri":"/x","method":"POST","header":{"A":["b"]},"status":["2xx"],"expect_body":"c","max_size":1024}`,
		},

		{"http /x {\n\trequest_body ping\n}", `{"uri":"/x","request_body":"ping"}`},
		{"http /x {\n\trequest_body `{\"token\":\"{env.PROBE_TOKEN}\"}`\n}", `{"uri":"/x","request_body":"{\"token\":\"{env.PROBE_TOKEN}\"}"}`},
		{"http /x {\n\trequest_body <<JSON\n\t{\n\t  \"a\": {}\n\t}\n\tJSON\n}", `{"uri":"/x","request_body":"{\n  \"a\": {}\n}"}`},
		{"http /x {\n\trequest_body " + strings.Repeat("x", 64<<10) + "\n}", `{"uri":"/x","request_body":"` + strings.Repeat("x", 64<<10) + `"}`},

		{"http /x {\n\tscheme http\n}", `{"uri":"/x","scheme":"http"}`},
		{"http /x {\n\tscheme https\n}", `{"uri":"/x","scheme":"https"}`},
		{"http /x {\n\tversion 1.1\n}", `{"uri":"/x","version":"1.1"}`},
		{"http /x {\n\tscheme https\n\tversion 2\n}", `{"uri":"/x","scheme":"https","version":"2"}`},
		{"http /x {\n\tversion h2c\n}", `{"uri":"/x","version":"h2c"}`},
		{
			"http /x/{http.reverse_proxy.upstream.host} {\n\theader Host {http.reverse_proxy.upstream.hostport}\n\trequest_body {http.reverse_proxy.active.target_upstream}\n}",
			`{"uri":"/x/{http.reverse_proxy.upstream.host}","header":{"Host":["{http.reverse_proxy.upstream.hostport}"]},"request_body":"{http.reverse_proxy.active.target_upstream}"}`,
		},
		{"http /x {\n\tfollow_redirects\n}", `{"uri":"/x","follow_redirects":true}`},
		{"http /x {\n\tfresh_connection\n}", `{"uri":"/x","fresh_connection":true}`},
		{"http /x {\n\ttls_server_name {env.PROBE_WORD}.internal\n}", `{"uri":"/x","tls_server_name":"{env.PROBE_WORD}.internal"}`},
		{"http /x {\n\ttls_insecure_skip_verify\n}", `{"uri":"/x","tls_insecure_skip_verify":true}`},

		{"http /x {\n\tdrain_status 503\n}", `{"uri":"/x","drain_status":["503"]}`},
		{"http /x {\n\tstatus 2xx 503\n\tdrain_status 429 500-503 2xx\n}", `{"uri":"/x","status":["2xx","503"],"drain_status":["429","500-503","2xx"]}`},

		{"http /x {\n\texpect_header X-Role ^primary$\n}", `{"uri":"/x","expect_header":{"X-Role":"^primary$"}}`},
		{
			"http /x {\n\texpect_header x-role \"a{2} {env.PROBE_WORD}\"\n\texpect_header Content-Type ^application/json\n}",
			`{"uri":"/x","expect_header":{"Content-Type":"^application/json","X-Role":"a{2} {env.PROBE_WORD}"}}`,
		},

		{"http /x {\n\texpression \"status == 200 && json.db == 'ok'\"\n}", `{"uri":"/x","expression":"status == 200 \u0026\u0026 json.db == 'ok'"}`},
		{"http /x {\n\texpression `headers[\"X-Role\"][0] == \"{env.PROBE_WORD}\"`\n}", `{"uri":"/x","expression":"headers[\"X-Role\"][0] == \"{env.PROBE_WORD}\""}`},
		{"http /x {\n\texpression \"{'a': status}.a == 200\"\n}", `{"uri":"/x","expression":"{'a': status}.a == 200"}`},
		{"http /x {\n\texpression <<CEL\n\tstatus == 200 ||\n\t  json.ok\n\tCEL\n}", `{"uri":"/x","expression":"status == 200 ||\n  json.ok"}`},
		// options that do not read the body are allowed with HEAD
		{"http /x {\n\tmethod HEAD\n\texpect_header A b\n\texpression \"headers['B'][0] == 'c'\"\n}", `{"uri":"/x","method":"HEAD","expect_header":{"A":"b"},"expression":"headers['B'][0] == 'c'"}`},
	} {
		h := new(HTTP)
		if err := h.UnmarshalCaddyfile(caddyfile.NewTestDispenser(test.input)); err != nil {
			t.Errorf("%q: %v", test.input, err)
			continue
		}
		got, err := json.Marshal(h)
		if err != nil || string(got) != test.want {
			t.Errorf("%q: got %s, %v; want %s", test.input, got, err, test.want)
			continue
		}
		if err := decode(t, string(got)).Provision(caddy.Context{}); err != nil {
			t.Errorf("%q: the parser accepts what does not load: %v", test.input, err)
		}
	}
}

// An error names what is allowed, and file and line.
func TestHTTP_CaddyfileErrorsNameWhatIsAllowed(t *testing.T) {
	t.Parallel()
	const (
		uri    = "uri must be a path that begins with one '/', optionally with a query"
		status = "status must be a code from 200 to 599, a class like 2xx or a range like 200-399; got "
		size   = "max_size must be a size from 1 byte to 64MiB, like 64KiB; got "
		header = "header takes a name and a value, like header Host app.internal"
		method = "method must be an HTTP method, like GET or HEAD; got "
		cel    = "expression must be CEL over status, headers, body, json and duration: line "
		drain  = "drain_status must be a code from 200 to 599, a class like 2xx or a range like 200-399; got "
		exp    = "expect_header takes a name and a regular expression, like expect_header Content-Type ^application/json"
		known  = ": " + everyCheck + "an http check has method, header, request_body, scheme, version, follow_redirects, status, drain_status, expect_header, expect_body, expression, max_size, tls_server_name and tls_insecure_skip_verify"
	)
	for _, test := range []struct{ input, want string }{
		{"http", "an http check needs the URI to ask for, like http /healthz, at Testfile:1"},
		{"http {\n\tmethod GET\n}", "an http check needs the URI to ask for, like http /healthz, at Testfile:1"},
		{"http healthz", uri + "; got 'healthz', at Testfile:1"},
		{"http *", uri + "; got '*', at Testfile:1"},
		{"http app1/{env.PROBE_UNSET}", uri + "; got 'app1/{env.PROBE_UNSET}', at Testfile:1"},
		{"http /healthz /ready", "an http check takes one URI; got '/ready' too, at Testfile:1"},

		{"http /x {\n\tmethod\n}", "method takes one HTTP method, like HEAD, at Testfile:2"},
		{"http /x {\n\tmethod GET HEAD\n}", "method takes one HTTP method, like HEAD, at Testfile:2"},
		{"http /x {\n\tmethod \"GET /\"\n}", method + "'GET /', at Testfile:2"},
		{"http /x {\n\tmethod GET\n\tmethod GET\n}", "option 'method' is given twice, at Testfile:3"},

		{"http /x {\n\theader\n}", header + ", at Testfile:2"},
		{"http /x {\n\theader Host\n}", header + ", at Testfile:2"},
		{"http /x {\n\theader Host a b\n}", header + ", at Testfile:2"},
		{"http /x {\n\theader Host: a\n}", "header: a field name has letters, digits and hyphens; got 'Host:', at Testfile:2"},
		{"http /x {\n\theader A \"b\nC: d\"\n}", "header A must not have line breaks or other control characters in its value, at Testfile:2"},

		{"http /x {\n\theader Host a\n\theader host b\n}", "header Host is given twice, at Testfile:3"},

		{"http /x {\n\tstatus\n}", "status takes codes, classes and ranges, like 204 2xx 200-399, at Testfile:2"},
		{"http /x {\n\tstatus 200 teapot\n}", status + "'teapot', at Testfile:2"},
		// a second list would replace the first
		{"http /x {\n\tstatus 200\n\tstatus 204\n}", "option 'status' is given twice, at Testfile:3"},

		{"http /x {\n\texpect_body\n}", "expect_body takes one regular expression; put it into quotes if it has spaces, at Testfile:2"},
		{"http /x {\n\texpect_body all is well\n}", "expect_body takes one regular expression; put it into quotes if it has spaces, at Testfile:2"},
		{"http /x {\n\texpect_body \"\"\n}", "expect_body must not be empty: it would match anything, at Testfile:2"},
		{"http /x {\n\texpect_body (\n}", "expect_body must be a regular expression in RE2 syntax: error parsing regexp: missing closing ): `(`, at Testfile:2"},
		{"http /x {\n\texpect_body (?!a)\n}", "expect_body must be a regular expression in RE2 syntax: error parsing regexp: invalid or unsupported Perl syntax: `(?!`, at Testfile:2"},
		{"http /x {\n\texpect_body a\n\texpect_body b\n}", "option 'expect_body' is given twice, at Testfile:3"},

		{"http /x {\n\texpect_body a\n\tmethod HEAD\n}", "expect_body: an answer to HEAD has no body to look at, at Testfile:4"},

		{"http /x {\n\tmax_size\n}", "max_size takes one size from 1 byte to 64MiB, like 64KiB, at Testfile:2"},
		{"http /x {\n\tmax_size 64 KiB\n}", "max_size takes one size from 1 byte to 64MiB, like 64KiB, at Testfile:2"},
		{"http /x {\n\tmax_size 0\n}", size + "'0', at Testfile:2"},
		{"http /x {\n\tmax_size 0.5\n}", size + "'0.5', at Testfile:2"},
		{"http /x {\n\tmax_size -1\n}", size + "'-1', at Testfile:2"},
		{"http /x {\n\tmax_size much\n}", size + "'much', at Testfile:2"},
		{"http /x {\n\tmax_size 67108865\n}", size + "'67108865', at Testfile:2"},
		{"http /x {\n\tmax_size 65MiB\n}", size + "'65MiB', at Testfile:2"},
		{"http /x {\n\tmax_size 16EiB\n}", size + "'16EiB', at Testfile:2"}, // more than an int64 holds
		{"http /x {\n\tmax_size 1KiB\n\tmax_size 1KiB\n}", "option 'max_size' is given twice, at Testfile:3"},

		{"http /x {\n\trequest_body\n}", "request_body takes one text; put it into quotes if it has spaces, at Testfile:2"},
		{"http /x {\n\trequest_body two words\n}", "request_body takes one text; put it into quotes if it has spaces, at Testfile:2"},
		{"http /x {\n\trequest_body \"\"\n}", "request_body takes one text; put it into quotes if it has spaces, at Testfile:2"},
		{"http /x {\n\trequest_body " + strings.Repeat("x", 64<<10+1) + "\n}", "request_body must not be longer than 64 KiB, at Testfile:2"},
		{"http /x {\n\trequest_body a\n\trequest_body b\n}", "option 'request_body' is given twice, at Testfile:3"},

		{"http /x {\n\tscheme\n}", "scheme takes http or https, at Testfile:2"},
		{"http /x {\n\tscheme http https\n}", "scheme takes http or https, at Testfile:2"},
		{"http /x {\n\tscheme \"\"\n}", "scheme takes http or https, at Testfile:2"},
		{"http /x {\n\tscheme ftp\n}", "scheme must be http or https; got 'ftp', at Testfile:2"},
		{"http /x {\n\tscheme http\n\tscheme http\n}", "option 'scheme' is given twice, at Testfile:3"},

		{"http /x {\n\tfollow_redirects yes\n}", "follow_redirects takes no argument; got 'yes', at Testfile:2"},
		{"http /x {\n\tfollow_redirects\n\tfollow_redirects\n}", "option 'follow_redirects' is given twice, at Testfile:3"},
		{"http /x {\n\tfresh_connection off\n}", "fresh_connection takes no argument; got 'off', at Testfile:2"},
		{"http /x {\n\tfresh_connection\n\tfresh_connection\n}", "option 'fresh_connection' is given twice, at Testfile:3"},
		{"http /x {\n\ttls_insecure_skip_verify no\n}", "tls_insecure_skip_verify takes no argument; got 'no', at Testfile:2"},
		{"http /x {\n\ttls_insecure_skip_verify\n\ttls_insecure_skip_verify\n}", "option 'tls_insecure_skip_verify' is given twice, at Testfile:3"},
		{"http /x {\n\ttls_server_name\n}", "tls_server_name takes one name, like app.internal, at Testfile:2"},
		{"http /x {\n\ttls_server_name a b\n}", "tls_server_name takes one name, like app.internal, at Testfile:2"},
		{"http /x {\n\ttls_server_name \"\"\n}", "tls_server_name takes one name, like app.internal, at Testfile:2"},
		{"http /x {\n\ttls_server_name a\n\ttls_server_name a\n}", "option 'tls_server_name' is given twice, at Testfile:3"},

		{"http /x {\n\tdrain_status\n}", "drain_status takes codes, classes and ranges, like 204 2xx 200-399, at Testfile:2"},
		{"http /x {\n\tdrain_status 503 teapot\n}", drain + "'teapot', at Testfile:2"},
		{"http /x {\n\tdrain_status 503\n\tdrain_status 504\n}", "option 'drain_status' is given twice, at Testfile:3"},

		{"http /x {\n\texpect_header\n}", exp + ", at Testfile:2"},
		{"http /x {\n\texpect_header A\n}", exp + ", at Testfile:2"},
		{"http /x {\n\texpect_header A b c\n}", exp + ", at Testfile:2"},
		{"http /x {\n\texpect_header A:  b\n}", "expect_header: a field name has letters, digits and hyphens; got 'A:', at Testfile:2"},
		{"http /x {\n\texpect_header A \"\"\n}", "expect_header A must not be empty: it would match anything, at Testfile:2"},
		{"http /x {\n\texpect_header A (\n}", "expect_header A must be a regular expression in RE2 syntax: error parsing regexp: missing closing ): `(`, at Testfile:2"},
		{"http /x {\n\texpect_header A b\n\texpect_header B b\n\texpect_header a c\n}", "expect_header A is given twice, at Testfile:4"},

		{"http /x {\n\texpression\n}", "expression takes one CEL expression, in quotes, like \"json.db == 'ok'\", at Testfile:2"},
		{"http /x {\n\texpression status == 200\n}", "expression takes one CEL expression, in quotes, like \"json.db == 'ok'\", at Testfile:2"},
		{"http /x {\n\texpression \"\"\n}", "expression takes one CEL expression, in quotes, like \"json.db == 'ok'\", at Testfile:2"},
		{"http /x {\n\texpression `state == 'ok'`\n}", cel + "1, column 1: undeclared reference to 'state' (in container ''); got 'state == 'ok'', at Testfile:2"},
		{"http /x {\n\texpression <<CEL\n\tstatus == 200 ||\n\t  state\n\tCEL\n}", cel + "2, column 3: undeclared reference to 'state' (in container ''); got 'status == 200 ||\n  state', at Testfile:2"},
		{"http /x {\n\texpression status\n}", "expression must be true or false, and not a value of the type int; got 'status', at Testfile:2"},
		{"http /x {\n\texpression json.a\n\texpression json.b\n}", "option 'expression' is given twice, at Testfile:3"},
		{"http /x {\n\texpression json.a\n\tmethod HEAD\n}", "expression: an answer to HEAD has no body to look at, at Testfile:4"},
		{"http /x {\n\tmethod HEAD\n\texpression \"status == 200 || body == ''\"\n}", "expression: an answer to HEAD has no body to look at, at Testfile:4"},

		{"http /x {\n\tauthority a\n}", "unrecognized option 'authority'" + known + ", at Testfile:2"},
		{"http /x {\n\tbody ok\n}", "unrecognized option 'body'" + known + ", at Testfile:2"},
		{"http /x {\n\tMETHOD GET\n}", "unrecognized option 'METHOD'" + known + "; did you mean 'method'?, at Testfile:2"},
		{"http /x {\n\n\n\tmethod GET {\n\t}\n}", "unrecognized option '{'" + known + ", at Testfile:4"},
	} {
		err := new(HTTP).UnmarshalCaddyfile(caddyfile.NewTestDispenser(test.input))
		if got := text(err); got != test.want {
			t.Errorf("%.200q:\n got %q\nwant %q", test.input, got, test.want)
		}
	}
}
