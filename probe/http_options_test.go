// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// quoted returns a text as JSON.
func quoted(tb testing.TB, text string) string {
	tb.Helper()
	encoded, err := json.Marshal(text)
	if err != nil {
		tb.Fatal(err)
	}
	return string(encoded)
}

// The body of a request is sent as written, with its length in bytes, by every probe.
// Braces that are no placeholder stay, as in JSON; global placeholders are resolved.
func TestHTTP_RequestBodyIsSentAsWritten(t *testing.T) {
	t.Setenv("PROBE_TOKEN", "s3cret")
	t.Setenv("PROBE_EMPTY", "")
	type sent struct {
		method, body, length string
		chunked              bool
	}
	requests := make(chan sent, 1)
	addr := serve(t, func(conn net.Conn, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		requests <- sent{r.Method, string(body), r.Header.Get("Content-Length"), len(r.TransferEncoding) > 0}
		io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
	})
	up := newUpstream(t, "tcp", addr, nil)
	for _, test := range []struct{ method, config, want string }{
		{"POST", "ping", "ping"},
		{"PUT", " two\nlines \n", " two\nlines \n"},
		{"POST", "größer", "größer"},
		{"GET", "of a search", "of a search"},
		{"POST", `{"query":{"match_all":{}}}`, `{"query":{"match_all":{}}}`},
		{"POST", `{"a":{"b":"{env.PROBE_TOKEN}"},"c":[{}]}`, `{"a":{"b":"s3cret"},"c":[{}]}`},
		{"POST", "{env.PROBE_TOKEN}{env.PROBE_TOKEN}", "s3crets3cret"},
		{"POST", "<{env.PROBE_EMPTY}>", "<>"},
		{"POST", "{health}", "{health}"},
		{"POST", `\{env.PROBE_TOKEN\}`, `\{env.PROBE_TOKEN\}`},
		{"POST", strings.Repeat("x", 64<<10), strings.Repeat("x", 64<<10)},
	} {
		h := load(t, fmt.Sprintf(`{"uri":"/","method":%q,"request_body":%s}`, test.method, quoted(t, test.config)))
		for range 2 {
			if err := run(t, h, up, long); err != nil {
				t.Errorf("%s %.80q: %v", test.method, test.config, err)
				break
			}
			got, want := testkit.Wait(t, requests, grace), sent{test.method, test.want, fmt.Sprint(len(test.want)), false}
			if got != want {
				t.Errorf("%s %.80q:\n got %.200v\nwant %.200v", test.method, test.config, got, want)
			}
		}
	}
}

// A redirect is followed if the option says so, and the last answer is judged. All
// requests go to the upstream, whatever host a redirect names; the Host header is that
// of the redirect. A redirect that cannot be followed fails with a reason. Without the
// option, a redirect is judged like any other answer.
func TestHTTP_RedirectsAreFollowedToTheUpstreamOnly(t *testing.T) {
	t.Parallel()
	var (
		mu  sync.Mutex
		log []string
	)
	up := newHTTPUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		log = append(log, strings.TrimSpace(fmt.Sprintf("%s %s%s %s", r.Method, r.Host, r.URL.RequestURI(), body)))
		mu.Unlock()
		if hop, ok := strings.CutPrefix(r.URL.Path, "/hops/"); ok && hop != "0" {
			var left int
			fmt.Sscan(hop, &left)
			w.Header().Set("Location", fmt.Sprintf("/hops/%d", left-1))
			w.WriteHeader(http.StatusFound)
			return
		}
		code, location := http.StatusFound, map[string]string{
			"/relative":  "/ok?a=b",
			"/a/nearby":  "ok",
			"/host":      "http://other.test:81/ok",
			"/same":      "//third.test/ok",
			"/and-on":    "http://other.test/relative",
			"/loop":      "/loop",
			"/scheme":    "https://app1.test/ok",
			"/secret":    "ftp://user:word@app1.test/ok",
			"/bad":       ":",
			"/sick":      "/500",
			"/keeps":     "/ok",
			"/drops":     "/ok",
			"/unchanged": "/ok",
			"/nowhere":   "",
		}[r.URL.Path]
		switch r.URL.Path {
		case "/500":
			code = http.StatusInternalServerError
		case "/keeps":
			code = http.StatusTemporaryRedirect
		case "/drops":
			code = http.StatusSeeOther
		case "/unchanged":
			code = http.StatusNotModified
		case "/nowhere":
		default:
			if location == "" {
				io.WriteString(w, "arrived")
				return
			}
		}
		if location != "" {
			w.Header().Set("Location", location)
		}
		w.WriteHeader(code)
	})
	up.Host = "app1.test:8080"

	hops := func(from, to int) (requests []string) {
		for i := from; i >= to; i-- {
			requests = append(requests, fmt.Sprintf("GET app1.test:8080/hops/%d", i))
		}
		return requests
	}
	const follow = `,"follow_redirects":true`
	for _, test := range []struct {
		uri, options, want string
		requests           []string
	}{
		{"/relative", "", `status 302, want 2xx; Location "/ok?a=b"`, []string{"GET app1.test:8080/relative"}},
		{"/relative", `,"status":["3xx"]`, "", []string{"GET app1.test:8080/relative"}},
		{"/relative", `,"follow_redirects":false`, `status 302, want 2xx; Location "/ok?a=b"`, []string{"GET app1.test:8080/relative"}},

		{"/relative", follow, "", []string{"GET app1.test:8080/relative", "GET app1.test:8080/ok?a=b"}},
		{"/a/nearby", follow, "", []string{"GET app1.test:8080/a/nearby", "GET app1.test:8080/a/ok"}},
		{"/host", follow, "", []string{"GET app1.test:8080/host", "GET other.test:81/ok"}},
		{"/same", follow, "", []string{"GET app1.test:8080/same", "GET third.test/ok"}},
		{"/and-on", follow, "", []string{"GET app1.test:8080/and-on", "GET other.test/relative", "GET other.test/ok?a=b"}},
		{"/ok", follow, "", []string{"GET app1.test:8080/ok"}},
		// a configured host is kept until a redirect names another
		{"/relative", follow + `,"header":{"Host":["a.test"]}`, "", []string{"GET a.test/relative", "GET a.test/ok?a=b"}},
		{"/host", follow + `,"header":{"Host":["a.test"]}`, "", []string{"GET a.test/host", "GET other.test:81/ok"}},
		// the status of a redirect decides whether method and body are kept
		{"/keeps", follow + `,"method":"POST","request_body":"b"`, "", []string{"POST app1.test:8080/keeps b", "POST app1.test:8080/ok b"}},
		{"/drops", follow + `,"method":"POST","request_body":"b"`, "", []string{"POST app1.test:8080/drops b", "GET app1.test:8080/ok"}},
		{"/relative", follow + `,"method":"HEAD"`, "", []string{"HEAD app1.test:8080/relative", "HEAD app1.test:8080/ok?a=b"}},

		// everything that is expected is expected of the last answer
		{"/sick", follow, "status 500, want 2xx", []string{"GET app1.test:8080/sick", "GET app1.test:8080/500"}},
		{"/relative", follow + `,"status":["3xx"]`, "status 200, want 3xx", []string{"GET app1.test:8080/relative", "GET app1.test:8080/ok?a=b"}},
		{"/relative", follow + `,"expect_body":"^arrived$"`, "", []string{"GET app1.test:8080/relative", "GET app1.test:8080/ok?a=b"}},
		{"/sick", follow + `,"drain_status":["500"]`, "status 500: " + ErrDraining.Error(), []string{"GET app1.test:8080/sick", "GET app1.test:8080/500"}},

		// not every 3xx is a redirect
		{"/nowhere", follow, "status 302, want 2xx", []string{"GET app1.test:8080/nowhere"}},
		{"/unchanged", follow, `status 304, want 2xx; Location "/ok"`, []string{"GET app1.test:8080/unchanged"}},
		{"/bad", follow, `failed to parse Location header ":": parse ":": missing protocol scheme`, []string{"GET app1.test:8080/bad"}},

		{"/hops/10", follow, "", hops(10, 0)},
		{"/hops/11", follow, "more than 10 redirects", hops(11, 1)},
		{"/loop", follow, "more than 10 redirects", slices.Repeat([]string{"GET app1.test:8080/loop"}, 11)},
		{"/scheme", follow, "redirect to another scheme: https://app1.test/ok", []string{"GET app1.test:8080/scheme"}},
		// reasons show no credentials
		{"/secret", follow, "redirect to another scheme: ftp://user:xxxxx@app1.test/ok", []string{"GET app1.test:8080/secret"}},
	} {
		mu.Lock()
		log = nil
		mu.Unlock()
		h := load(t, fmt.Sprintf(`{"uri":%q%s}`, test.uri, test.options))
		if got := text(run(t, h, up, long)); got != test.want {
			t.Errorf("%s%s: got %q, want %q", test.uri, test.options, got, test.want)
		}
		mu.Lock()
		if !slices.Equal(log, test.requests) {
			t.Errorf("%s%s: requests\n got %q\nwant %q", test.uri, test.options, log, test.requests)
		}
		mu.Unlock()
	}
}

// Redirects share the deadline of the probe, also if the body of one or the answer
// after it never ends. They leave no connection open.
func TestHTTP_RedirectsShareTheDeadline(t *testing.T) {
	t.Parallel()
	const found = "HTTP/1.1 302 Found\r\nLocation: /next\r\n"
	silence := func(conn net.Conn, _ *http.Request) { io.Copy(io.Discard, conn) }
	for name, test := range map[string]struct {
		first, next func(net.Conn, *http.Request)
		want        error
	}{
		"silence behind it": {answer(found + "Content-Length: 0\r\n\r\n"), silence, context.DeadlineExceeded},
		"slow behind it":    {answer(found + "Content-Length: 0\r\n\r\n"), trickle("", "HTTP/1.1"), context.DeadlineExceeded},
		"slow body":         {trickle(found+"\r\n", "x"), silence, context.DeadlineExceeded},
		"endless body":      {endless(found+"\r\n", strings.Repeat("x", 4<<10)), answer("HTTP/1.1 204 No Content\r\n\r\n"), nil},
		"body that is cut":  {answer(found + "Content-Length: 10\r\n\r\nx"), answer("HTTP/1.1 204 No Content\r\n\r\n"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, func(conn net.Conn, r *http.Request) {
				if r.URL.Path == "/next" {
					test.next(conn, r)
				} else {
					test.first(conn, r)
				}
			})
			limit := long
			if test.want != nil {
				limit = short
			}
			err := run(t, load(t, `{"uri":"/","follow_redirects":true}`), newUpstream(t, "tcp", addr, nil), limit)
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// A status of drain_status means alive, but no new requests, whatever else is expected
// and even if it is also in status. Its body decides nothing.
func TestHTTP_DrainStatusPrecedesOtherExpectations(t *testing.T) {
	t.Parallel()
	const (
		ok      = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		drain   = "HTTP/1.1 503 Leaving\r\nContent-Length: 5\r\nX-State: leaving\r\n\r\nlater"
		cut     = "HTTP/1.1 503 Leaving\r\nContent-Length: 50\r\n\r\nlater"
		chunked = "HTTP/1.1 503 Leaving\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nlater\r\n"
		wanted  = ": alive, but no new requests are wanted"
	)
	for _, test := range []struct {
		config, answer, want string
		draining             bool
	}{
		{`"drain_status":["503"]`, drain, "status 503" + wanted, true},
		{`"drain_status":["503"]`, ok, "", false},
		{`"drain_status":["503"]`, "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "status 500, want 2xx", false},
		{`"drain_status":["5xx"]`, drain, "status 503" + wanted, true},
		{`"drain_status":["204","500-503"]`, drain, "status 503" + wanted, true},
		{`"drain_status":["429"]`, drain, "status 503, want 2xx", false},
		{`"method":"HEAD","drain_status":["503"]`, drain, "status 503" + wanted, true},
		// a status in both lists drains
		{`"status":["200","503"],"drain_status":["503"]`, drain, "status 503" + wanted, true},
		{`"status":["2xx"],"drain_status":["2xx"]`, ok, "status 200" + wanted, true},
		{`"drain_status":["200-299"]`, ok, "status 200" + wanted, true},
		// nothing else is expected of it
		{`"drain_status":["503"],"expect_header":{"X-Role":"primary"}`, drain, "status 503" + wanted, true},
		{`"drain_status":["503"],"expect_header":{"X-State":"ready"}`, drain, "status 503" + wanted, true},
		{`"drain_status":["503"],"expect_body":"ready"`, drain, "status 503" + wanted, true},
		{`"drain_status":["503"],"expression":"json.ok"`, drain, "status 503" + wanted, true},
		{`"drain_status":["503"],"expression":"status == 200"`, drain, "status 503" + wanted, true},
		// other answers are judged
		{`"drain_status":["503"],"expect_body":"ready"`, ok, `body does not match 'ready'; got 2 bytes: "ok"`, false},
		// even its end is not expected
		{`"drain_status":["503"]`, cut, "status 503" + wanted, true},
		{`"drain_status":["503"]`, chunked, "status 503" + wanted, true},
		{`"drain_status":["503"]`, chunked + "0\r\n\r\n", "status 503" + wanted, true},
		{`"drain_status":["503"],"expect_body":"later"`, cut, "status 503" + wanted, true},
		{`"drain_status":["503"],"max_size":5`, cut, "status 503" + wanted, true},
	} {
		up := newUpstream(t, "tcp", serve(t, answer(test.answer)), nil)
		err := run(t, load(t, `{"uri":"/",`+test.config+`}`), up, long)
		if got := text(err); got != test.want {
			t.Errorf("%s, answer %q: got %q, want %q", test.config, test.answer, got, test.want)
		}
		if got := errors.Is(err, ErrDraining); got != test.draining {
			t.Errorf("%s, answer %q: got draining %t, want %t", test.config, test.answer, got, test.draining)
		}
	}
}

// A header field has to be there, in any spelling of its name, and its expression has
// to match one of its values.
func TestHTTP_ExpectHeaderMatchesAnyValue(t *testing.T) {
	t.Setenv("PROBE_WORD", "prim.ry")
	for _, test := range []struct{ config, header, want string }{
		{`{"X-Role":"primary"}`, "X-Role: primary\r\n", ""},
		{`{"X-Role":"primary"}`, "x-role: the primary one\r\n", ""},
		{`{"x-rOLE":"^primary$"}`, "X-ROLE: primary\r\n", ""},
		{`{"X-Role":"^primary$"}`, "X-Role: \t primary \t\r\n", ""},
		{`{"X-Role":"^a{2}$"}`, "X-Role: aa\r\n", ""},
		{`{"X-Role":"^{env.PROBE_WORD}$"}`, "X-Role: primary\r\n", ""},
		{`{"X-Role":"^{env.PROBE_WORD}$"}`, "X-Role: replica\r\n", "header X-Role does not match '^{env.PROBE_WORD}$'"},
		{`{"X-Role":"^primary$"}`, "X-Role: PRIMARY\r\n", `header X-Role is "PRIMARY", want '^primary$'`},
		{`{"X-Role":"^primary$"}`, "X-Role: replica\r\nX-Role: primary\r\n", ""},
		{`{"X-Role":"^primary$"}`, "X-Role: replica\r\nX-Role: spare\r\n", `header X-Role is "replica", want '^primary$'`},
		// fields are not joined: no single value has both
		{`{"X-Role":"replica.*spare"}`, "X-Role: replica\r\nX-Role: spare\r\n", `header X-Role is "replica", want 'replica.*spare'`},
		{`{"X-Role":"primary"}`, "X-Other: primary\r\n", "header X-Role is missing, want 'primary'"},
		{`{"X-Role":"^$"}`, "", "header X-Role is missing, want '^$'"},
		{`{"X-Role":"^$"}`, "X-Role:\r\n", ""},
		{`{"X-Role":"."}`, "X-Role:\r\n", `header X-Role is "", want '.'`},
		{`{"x-role":"primary"}`, "", "header X-Role is missing, want 'primary'"},
		// all fields are checked, and the first by name is the reason
		{`{"X-B":"b","X-A":"a"}`, "X-A: a\r\nX-B: b\r\n", ""},
		{`{"X-B":"b","X-A":"a"}`, "X-A: a\r\n", "header X-B is missing, want 'b'"},
		{`{"X-B":"b","X-A":"a"}`, "", "header X-A is missing, want 'a'"},
		{`{"X-A":"a","x-a":"b"}`, "X-A: a\r\n", `header X-A is "a", want 'b'`},
		{`{"Content-Type":"^application/json\\b"}`, "Content-Type: application/json; charset=utf-8\r\n", ""},
		{`{"X-Role":"\\xff"}`, "X-Role: \xff\r\n", `header X-Role is "\xff", want '\xff'`},
	} {
		up := newUpstream(t, "tcp", serve(t, answer("HTTP/1.1 200 OK\r\n"+test.header+"\r\nready")), nil)
		h := load(t, `{"uri":"/","expect_header":`+test.config+`}`)
		if got := text(run(t, h, up, long)); got != test.want {
			t.Errorf("%s, header %q: got %q, want %q", test.config, test.header, got, test.want)
		}
	}
}

// All expectations have to be met. The first that is not is the reason, in the order
// status, header, body, expression.
func TestHTTP_FirstFailedExpectationIsTheReason(t *testing.T) {
	t.Parallel()
	const config = `{"uri":"/","status":["200"],"expect_header":{"X-Role":"^primary$"},"expect_body":"\"db\":\"ok\"",` +
		`"expression":"status == 200 && headers['X-Role'][0] == 'primary' && json.queue < 10"}`
	response := func(code int, role, body string) string {
		return fmt.Sprintf("HTTP/1.1 %d Answer\r\nX-Role: %s\r\nContent-Length: %d\r\n\r\n%s", code, role, len(body), body)
	}
	for _, test := range []struct{ answer, want string }{
		{response(200, "primary", `{"db":"ok","queue":9}`), ""},
		{response(500, "replica", `{"db":"down","queue":10}`), "status 500, want 200"},
		{response(200, "replica", `{"db":"down","queue":10}`), `header X-Role is "replica", want '^primary$'`},
		{response(200, "primary", `{"db":"down","queue":10}`), `body does not match '"db":"ok"'; got 24 bytes: "{\"db\":\"down\",\"queue\":10}"`},
		{response(200, "primary", `{"db":"ok","queue":10}`), `expression is false: status == 200 && headers['X-Role'][0] == 'primary' && json.queue < 10; got 22 bytes: "{\"db\":\"ok\",\"queue\":10}"`},
		{response(200, "primary", `{"db":"ok"}`), `expression: no such key: queue; got 11 bytes: "{\"db\":\"ok\"}"`},
	} {
		up := newUpstream(t, "tcp", serve(t, answer(test.answer)), nil)
		if got := text(run(t, load(t, config), up, long)); got != test.want {
			t.Errorf("answer %q:\n got %q\nwant %q", test.answer, got, test.want)
		}
	}
}

// An expression reads the answer as it was received: the header fields, the body as far
// as it is read, and the time that the probe took.
func TestHTTP_ExpressionReadsTheAnswer(t *testing.T) {
	t.Setenv("PROBE_WORD", "primary")
	const head = "HTTP/1.1 200 OK\r\nx-role: primary\r\nX-Role: second\r\n"
	sized := func(body string) string { return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(body), body) }
	for _, test := range []struct{ options, expression, answer, want string }{
		{"", "status == 200", sized(""), ""},
		{"", "headers['X-Role'] == ['primary', 'second']", sized(""), ""},
		{"", "headers['X-Role'][0] == '{env.PROBE_WORD}'", sized(""), ""},
		{"", "{'ok': true}['ok'] && status == 200", sized(""), ""},
		{"", "body == 'ready'", sized("ready"), ""},
		{"", "body == 'ready'", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nre\r\n3\r\nady\r\n0\r\n\r\n", ""},
		{"", "duration > duration('0s') && duration < duration('30s')", sized("ready"), ""},
		{`"status":["2xx","5xx"],`, "status == 500", "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", ""},
		{`"method":"HEAD",`, "headers['Content-Length'] == ['5']", sized("")[:len(head)] + "Content-Length: 5\r\n\r\n", ""},
		// the status is judged first
		{"", "status == 500", "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "status 500, want 2xx"},
		// a cut body ends where it is cut
		{`"max_size":5,`, "body == 'ready'", sized("ready, or not"), ""},
		{`"max_size":11,`, "json.ok", sized(`{"ok":true}`), ""},
		{`"max_size":11,`, "json.ok", sized(`{"ok":true}    `), ""},
		{`"max_size":10,`, "json.ok", sized(`{"ok":true}`), `expression: the body is not JSON: unexpected end of JSON input; got more than 10 bytes: "{\"ok\":true"`},
		{"", "json.ok", sized(""), "expression: the body is not JSON: unexpected end of JSON input; got an empty body"},
		{"", "json.ok", sized("<p>Works!</p>"), `expression: the body is not JSON: invalid character '<' looking for beginning of value; got 13 bytes: "<p>Works!</p>"`},
		// a body that is not read cannot fail the probe, even if it is cut
		{"", "status == 200 || json.ok", sized("<p>Works!</p>"), ""},
		{"", "status == 200", sized("ready")[:len(sized("ready"))-1], ""},
		{"", "body == 'read'", sized("ready")[:len(sized("ready"))-1], "reading the body: unexpected EOF"},
		{"", "status == 204", sized(""), "expression is false: status == 204"},
		// a placeholder is shown as written
		{"", "headers['X-Role'][1] == '{env.PROBE_WORD}'", sized(""), "expression is false: headers['X-Role'][1] == '{env.PROBE_WORD}'"},
	} {
		up := newUpstream(t, "tcp", serve(t, answer(test.answer)), nil)
		h := load(t, fmt.Sprintf(`{"uri":"/",%s"expression":%s}`, test.options, quoted(t, test.expression)))
		if got := text(run(t, h, up, long)); got != test.want {
			t.Errorf("%s%s, answer %q:\n got %q\nwant %q", test.options, test.expression, test.answer, got, test.want)
		}
	}
}

// The options that say how to reach the upstream are returned, each as it is, and none
// by default.
func TestHTTP_OverridesFollowTheOptions(t *testing.T) {
	t.Setenv("PROBE_WORD", "app")
	for _, test := range []struct {
		config string
		want   Overrides
	}{
		{`{"uri":"/"}`, Overrides{}},
		{`{"uri":"/","scheme":"http"}`, Overrides{Scheme: "http"}},
		{`{"uri":"/","scheme":"https"}`, Overrides{Scheme: "https"}},
		{`{"uri":"/","tls_server_name":"{env.PROBE_WORD}.internal"}`, Overrides{ServerName: "app.internal"}},
		{`{"uri":"/","tls_insecure_skip_verify":true}`, Overrides{InsecureSkipVerify: true}},
		{`{"uri":"/","fresh_connection":true}`, Overrides{FreshConnection: true}},
		{
			`{"uri":"/","scheme":"https","tls_server_name":"a","tls_insecure_skip_verify":true,"fresh_connection":true}`,
			Overrides{Scheme: "https", ServerName: "a", InsecureSkipVerify: true, FreshConnection: true},
		},
		// options of the request and the answer do not change how it is reached
		{
			`{"uri":"/","method":"POST","header":{"Host":["a"]},"request_body":"b","follow_redirects":true,"drain_status":["503"],"expression":"status == 200"}`,
			Overrides{},
		},
	} {
		if got := load(t, test.config).Overrides(); got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.config, got, test.want)
		}
	}
}

// The scheme of the request is that of the upstream. The policy has already applied the
// option to it.
func TestHTTP_SchemeIsThatOfTheUpstream(t *testing.T) {
	t.Parallel()
	var got string
	up := Upstream{Address: "app1:80", Scheme: "https", Host: "app1:80", Transport: roundTripper(
		func(r *http.Request) (*http.Response, error) {
			got = r.URL.String()
			return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
		},
	)}
	for _, follow := range []string{"false", "true"} {
		if err := run(t, load(t, `{"uri":"/healthz?a","follow_redirects":`+follow+`}`), up, long); err != nil {
			t.Error(err)
		}
		if want := "https://app1:80/healthz?a"; got != want {
			t.Errorf("follow_redirects %s: got %s, want %s", follow, got, want)
		}
	}
}

// JSON is not checked by the Caddyfile parser, and placeholders have values only when
// the config is loaded. So Provision checks the options again.
func TestHTTP_ProvisionRejectsInvalidOptions(t *testing.T) {
	t.Setenv("PROBE_EMPTY", "")
	t.Setenv("PROBE_LONG", strings.Repeat("x", 64<<10+1))
	t.Setenv("PROBE_OPEN", "(")
	const (
		global     = "; only global placeholders, such as {env.*}, can be used in a check"
		ofUpstream = "; only global placeholders, such as {env.*}, and those of the upstream that is probed can be used here: {http.reverse_proxy.upstream.hostport}, {http.reverse_proxy.upstream.host}, {http.reverse_proxy.upstream.port}, {http.reverse_proxy.active.target_upstream}"
		drain      = "drain_status must be a code from 200 to 599, a class like 2xx or a range like 200-399; got "
		regex      = "expect_header X must be a regular expression in RE2 syntax: error parsing regexp: "
		length     = "request_body must not be longer than 64 KiB"
		cel        = "expression must be CEL over status, headers, body, json and duration: line 1, column "
		noBody     = "an answer to HEAD has no body to look at"
	)
	for _, test := range []struct{ options, want string }{
		{`"request_body":"` + strings.Repeat("x", 64<<10+1) + `"`, length},
		{`"request_body":"{env.PROBE_LONG}"`, length},
		{`"request_body":"{\"host\":\"{http.request.host}\"}"`, "request_body: unrecognized placeholder {http.request.host}" + ofUpstream},

		{`"version":"1"`, "version must be 1.1, 2 or h2c; got '1'"},
		{`"version":"3"`, "version must be 1.1, 2 or h2c; got '3'"},
		{`"version":"{env.PROBE_OPEN}"`, "version must be 1.1, 2 or h2c; got '{env.PROBE_OPEN}'"},
		{`"version":"2","scheme":"http"`, errVersion2.Error()},
		{`"version":"h2c","scheme":"https"`, errVersionH2C.Error()},
		{`"scheme":"ftp"`, "scheme must be http or https; got 'ftp'"},
		{`"scheme":"HTTPS"`, "scheme must be http or https; got 'HTTPS'"},
		{`"scheme":"h2c"`, "scheme must be http or https; got 'h2c'"},

		{`"drain_status":["503","teapot"]`, drain + "'teapot'"},
		{`"drain_status":["600"]`, drain + "'600'"},
		{`"drain_status":["1xx"]`, drain + "'1xx'"},
		{`"drain_status":["503-500"]`, drain + "'503-500'"},
		{`"drain_status":[""]`, drain + "''"},
		{`"drain_status":["{env.PROBE_EMPTY}"]`, "drain_status: evaluated placeholder {env.PROBE_EMPTY} is empty" + global},
		{`"drain_status":["{http.request.host}"]`, "drain_status: unrecognized placeholder {http.request.host}" + global},

		{`"expect_header":{"A b":"c"}`, "expect_header: a field name has letters, digits and hyphens; got 'A b'"},
		{`"expect_header":{"":"c"}`, "expect_header: a field name has letters, digits and hyphens; got ''"},
		{`"expect_header":{"X":"("}`, regex + "missing closing ): `(`"},
		{`"expect_header":{"A":"a","X":"{env.PROBE_OPEN}"}`, "expect_header X must be a regular expression in RE2 syntax, also with its placeholders replaced: missing closing ); got '{env.PROBE_OPEN}'"},
		{`"expect_header":{"X":""}`, "expect_header X must not be empty: it would match anything"},
		{`"expect_header":{"X":"{env.PROBE_EMPTY}"}`, "expect_header X must not be empty, as it is with its placeholders replaced"},
		{`"expect_header":{"X":"^{http.request.host}$"}`, "expect_header X: unrecognized placeholder {http.request.host}" + global},

		{`"expression":"status = 200"`, cel + "8: Syntax error: token recognition error at: '= '; line 1, column 10: Syntax error: extraneous input '200' expecting <EOF>; got 'status = 200'"},
		{`"expression":"{env.PROBE_OPEN}true"`, cel + "6; counted with its placeholders replaced; got '{env.PROBE_OPEN}true'"},
		{`"expression":"status == {http.request.port}"`, "expression: unrecognized placeholder {http.request.port}" + global},
		{`"expression":"status"`, "expression must be true or false, and not a value of the type int; got 'status'"},

		{`"method":"HEAD","expression":"body == ''"`, "expression: " + noBody},
		{`"method":"HEAD","expression":"status == 200 || json.ok"`, "expression: " + noBody},
		{`"method":"HEAD","expect_body":"a","expression":"json.ok"`, "expect_body: " + noBody},

		{`"tls_server_name":"{http.request.host}"`, "tls_server_name: unrecognized placeholder {http.request.host}" + global},
		{`"tls_server_name":"{env.PROBE_EMPTY}"`, "tls_server_name: evaluated placeholder {env.PROBE_EMPTY} is empty" + global},
	} {
		if got := text(decode(t, `{"uri":"/",`+test.options+`}`).Provision(caddy.Context{})); got != test.want {
			t.Errorf("%.200s:\n got %q\nwant %q", test.options, got, test.want)
		}
	}
	// options of another kind, of all kinds, or of another type
	for _, options := range []string{`"authority":"a"`, `"send":"a"`, `"interval":"1s"`, `"port":1`, `"follow_redirects":"yes"`, `"status":"2xx"`, `"expect_header":{"A":["b"]}`} {
		decoder := json.NewDecoder(strings.NewReader(`{"uri":"/",` + options + `}`))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(new(HTTP)); err == nil {
			t.Errorf("%s: got no error, want one", options)
		}
	}
}
