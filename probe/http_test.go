// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// newHTTPUpstream returns an upstream that a handler serves.
func newHTTPUpstream(t *testing.T, handle http.HandlerFunc) Upstream {
	t.Helper()
	server := httptest.NewServer(handle)
	t.Cleanup(server.Close)
	return newUpstream(t, "tcp", server.Listener.Addr().String(), nil)
}

// The listed codes mean alive, 2xx if none is listed. Any other fails with a reason
// that names the status and the list.
func TestHTTP_ListedStatusPasses(t *testing.T) {
	t.Parallel()
	up := newHTTPUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		var code int
		fmt.Sscanf(r.URL.Path, "/%d", &code)
		w.WriteHeader(code)
	})
	for _, test := range []struct {
		status string // JSON
		code   int
		want   string
	}{
		{`[]`, 200, ""},
		{`[]`, 204, ""},
		{`[]`, 299, ""},
		{`[]`, 303, "status 303, want 2xx"},
		{`[]`, 404, "status 404, want 2xx"},
		{`[]`, 500, "status 500, want 2xx"},
		{`[]`, 600, "status 600, want 2xx"},
		{`["2xx","3xx"]`, 204, ""},
		{`["2xx","3xx"]`, 303, ""},
		{`["2xx","3xx"]`, 304, ""},
		{`["2xx","3xx"]`, 404, "status 404, want 2xx 3xx"},
		{`["404"]`, 404, ""},
		{`["404"]`, 405, "status 405, want 404"},
		// a list replaces the default
		{`["404"]`, 200, "status 200, want 404"},
		{`["200-399"]`, 200, ""},
		{`["200-399"]`, 399, ""},
		{`["200-399"]`, 400, "status 400, want 200-399"},
		{`["204","301-302","5xx"]`, 302, ""},
		{`["204","301-302","5xx"]`, 599, ""},
		{`["204","301-302","5xx"]`, 303, "status 303, want 204 301-302 5xx"},
	} {
		h := load(t, fmt.Sprintf(`{"uri":"/%d","status":%s}`, test.code, test.status))
		if got := text(run(t, h, up, long)); got != test.want {
			t.Errorf("status %s, answer %d: got %q, want %q", test.status, test.code, got, test.want)
		}
	}
}

// The request is what the options say, and nothing else. Names of header fields are
// case-insensitive. Only global placeholders are replaced, once, when the config is
// loaded.
func TestHTTP_RequestFollowsTheOptions(t *testing.T) {
	t.Setenv("PROBE_PATH", "/healthz")
	t.Setenv("PROBE_TOKEN", "{env.PROBE_PATH}")
	requests := make(chan *http.Request, 1)
	addr := serve(t, func(conn net.Conn, request *http.Request) {
		requests <- request
		io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
	})
	up := newUpstream(t, "tcp", addr, nil)
	up.Host = "app1:8080"
	for _, test := range []struct {
		config, method, uri, host string // these default to GET, / and the upstream's
		header                    http.Header
	}{
		{config: `{"uri":"/"}`},
		{config: `{"uri":"/healthz?full=1&name=a%20b"}`, uri: "/healthz?full=1&name=a%20b"},
		{config: `{"uri":"/a%2Fb"}`, uri: "/a%2Fb"},
		{config: `{"uri":"/a%20b"}`, uri: "/a%20b"},
		{config: `{"uri":"{env.PROBE_PATH}?deep"}`, uri: "/healthz?deep"},

		{config: `{"uri":"/","method":"HEAD"}`, method: "HEAD"},
		{config: `{"uri":"/","method":"OPTIONS"}`, method: "OPTIONS"},
		// servers may reject a POST without a length
		{config: `{"uri":"/","method":"POST"}`, method: "POST", header: http.Header{"Content-Length": {"0"}}},

		{config: `{"uri":"/","header":{"Host":["app.internal"]}}`, host: "app.internal"},
		{config: `{"uri":"/","header":{"hOST":["app.internal:81"]}}`, host: "app.internal:81"},
		{config: `{"uri":"/","header":{"Host":[""]}}`, host: "app1:8080"},
		// an empty value leaves the field out
		{config: `{"uri":"/","header":{"User-Agent":[""]}}`, header: http.Header{"User-Agent": {""}}},
		{config: `{"uri":"/","header":{"user-agent":["curl/8"]}}`, header: http.Header{"User-Agent": {"curl/8"}}},
		{
			config: `{"uri":"/","header":{"x-token":["a","b c"],"ACCEPT":["*/*"]}}`,
			header: http.Header{"X-Token": {"a", "b c"}, "Accept": {"*/*"}},
		},
		{
			config: `{"uri":"/","header":{"X-Token":["<{env.PROBE_TOKEN}>"]}}`,
			header: http.Header{"X-Token": {"<{env.PROBE_PATH}>"}},
		},
		{
			config: `{"uri":"/","header":{"X-Token":["\\{literal\\}"]}}`,
			header: http.Header{"X-Token": {"{literal}"}},
		},
	} {
		if err := run(t, load(t, test.config), up, long); err != nil {
			t.Errorf("%s: %v", test.config, err)
			continue
		}
		got := testkit.Wait(t, requests, grace)
		if want := cmp.Or(test.method, "GET"); got.Method != want {
			t.Errorf("%s: got the method %s, want %s", test.config, got.Method, want)
		}
		if want := cmp.Or(test.uri, "/"); got.RequestURI != want {
			t.Errorf("%s: got the URI %s, want %s", test.config, got.RequestURI, want)
		}
		if want := cmp.Or(test.host, "app1:8080"); got.Host != want {
			t.Errorf("%s: got the host %s, want %s", test.config, got.Host, want)
		}
		want := maps.Clone(test.header)
		if want == nil {
			want = make(http.Header)
		}
		if _, given := want["User-Agent"]; !given {
			want["User-Agent"] = []string{"caddy-alive"}
		} else if want.Get("User-Agent") == "" {
			want.Del("User-Agent")
		}
		want["Connection"] = []string{"close"} // the transport's
		if !maps.EqualFunc(got.Header, want, slices.Equal) {
			t.Errorf("%s: got the header %v, want %v", test.config, got.Header, want)
		}
	}
}

// One probe is used for all upstreams at once. None gets the host of another, and the
// race detector finds what they share.
func TestHTTP_ConcurrentProbesShareNothing(t *testing.T) {
	t.Parallel()
	h := load(t, `{"uri":"/","header":{"X-Shared":["a"]},"expect_body":"^ok$"}`)
	var results []<-chan error
	for i := range 16 {
		host := fmt.Sprintf("app%d.test", i)
		up := newHTTPUpstream(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Host != host || r.Header.Get("X-Shared") != "a" {
				w.WriteHeader(http.StatusMisdirectedRequest)
			}
			io.WriteString(w, "ok")
		})
		up.Host = host
		for range 4 {
			results = append(results, start(t.Context(), h, up))
		}
	}
	for _, result := range results {
		if err := testkit.Wait(t, result, long); err != nil {
			t.Error(err)
		}
	}
}

// roundTripper is a third-party transport.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// expect_body has to match somewhere in the first max_size bytes of the body; the rest
// is not read.
func TestHTTP_ExpectBodyMatchesWithinMaxSize(t *testing.T) {
	t.Setenv("PROBE_WORD", "re.dy")
	kilobytes := func(n int) string { return strings.Repeat("x", n<<10) }
	cut := `"` + strings.Repeat("x", 64) + `"…`
	for _, test := range []struct{ config, body, want string }{
		{`"expect_body":"ready"`, "I am ready.", ""},
		{`"expect_body":"^ready$"`, "ready", ""},
		{`"expect_body":"(?i)READY|fine"`, "all fine", ""},
		{`"expect_body":"\"db\": ?\"ok\""`, `{"db":"ok"}`, ""},
		{`"expect_body":"^$"`, "", ""},
		{`"expect_body":"ready"`, "", "body does not match 'ready'; got an empty body"},
		{`"expect_body":"ready"`, "READY", `body does not match 'ready'; got 5 bytes: "READY"`},
		{`"expect_body":"^ready$"`, "not ready", `body does not match '^ready$'; got 9 bytes: "not ready"`},

		// braces that are no placeholder are part of the expression
		{`"expect_body":"^a{2,3}$"`, "aaa", ""},
		{`"expect_body":"^a{2,3}$"`, "a", `body does not match '^a{2,3}$'; got 1 byte: "a"`},
		{`"expect_body":"^a{2,3}$"`, "a{2,3}", `body does not match '^a{2,3}$'; got 6 bytes: "a{2,3}"`},
		{`"expect_body":"^a{2}b{3}$"`, "aabbb", ""},
		{`"expect_body":"^\\p{Lu}\\d{2}$"`, "A12", ""},
		// and so is a backslash before one
		{`"expect_body":"^a\\{2\\}$"`, "a{2}", ""},
		{`"expect_body":"^a\\{2\\}$"`, "aa", `body does not match '^a\{2\}$'; got 2 bytes: "aa"`},
		{`"expect_body":"^\\{\"ok\":true\\}$"`, `{"ok":true}`, ""},
		{`"expect_body":"^\\{env.PROBE_WORD\\}$"`, "{env.PROBE_WORD}", ""},
		// a placeholder stands for an expression
		{`"expect_body":"^{env.PROBE_WORD}$"`, "ready", ""},
		{`"expect_body":"^{env.PROBE_WORD}$"`, "steady", "body does not match '^{env.PROBE_WORD}$'; got 6 bytes"},

		{`"expect_body":"ready","max_size":8`, "   ready and more", ""},
		{`"expect_body":"ready","max_size":8`, "    ready", `body does not match 'ready' in its first 8 B; got more than 8 bytes: "    read"`},
		// a cut body ends where it is cut
		{`"expect_body":"^ready$","max_size":5`, "ready, or not", ""},
		{`"expect_body":"ready"`, kilobytes(64)[5:] + "ready", ""},
		{`"expect_body":"ready"`, kilobytes(64)[4:] + "ready", "body does not match 'ready' in its first 64 KiB; got more than 65536 bytes: " + cut},
		{`"expect_body":"ready","max_size":1048576`, kilobytes(1000) + "ready", ""},
		{`"expect_body":"ready","max_size":1048576`, kilobytes(1024) + "ready", "body does not match 'ready' in its first 1.0 MiB; got more than 1048576 bytes: " + cut},

		// without expect_body, any body of any size passes
		{`"max_size":1`, "", ""},
		{`"max_size":1`, kilobytes(1000), ""},
		{`"method":"HEAD"`, kilobytes(1), ""},

		// the status is judged first
		{`"expect_body":"ready","status":["204"]`, "ready", "status 200, want 204"},
	} {
		up := newHTTPUpstream(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, test.body) })
		h := load(t, `{"uri":"/",`+test.config+`}`)
		if got := text(run(t, h, up, long)); got != test.want {
			t.Errorf("%s, %d bytes: got %q, want %q", test.config, len(test.body), got, test.want)
		}
	}
}

// A body of which something is expected has to arrive in full, up to max_size bytes,
// even if it already matches. A body of which nothing is expected decides nothing.
func TestHTTP_ExpectedBodyHasToArriveInFull(t *testing.T) {
	t.Parallel()
	const (
		sized     = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nready"
		chunked   = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nready\r\n"
		truncated = "reading the body: unexpected EOF"
	)
	for _, test := range []struct{ config, answer, want string }{
		{`{"uri":"/"}`, sized, ""},
		{`{"uri":"/"}`, chunked, ""},
		{`{"uri":"/"}`, chunked + "0\r\n\r\n", ""},
		{`{"uri":"/","expect_body":"ready"}`, sized, truncated},
		{`{"uri":"/","expect_body":"ready"}`, chunked, truncated},
		{`{"uri":"/","expect_body":"ready"}`, chunked + "0\r\n\r\n", ""},
		// that the body is incomplete is a better reason than that it does not match
		{`{"uri":"/","expect_body":"fine"}`, sized, truncated},
		{`{"uri":"/","max_size":6}`, sized, ""},
		{`{"uri":"/","max_size":6,"expect_body":"ready"}`, sized, truncated},
		{`{"uri":"/","max_size":5}`, sized, ""},
		{`{"uri":"/","max_size":5,"expect_body":"ready"}`, sized, ""},
		// here the end of the connection is the end of the body
		{`{"uri":"/","expect_body":"^ready$"}`, "HTTP/1.0 200 OK\r\n\r\nready", ""},
	} {
		up := newUpstream(t, "tcp", serve(t, answer(test.answer)), nil)
		if got := text(run(t, load(t, test.config), up, long)); got != test.want {
			t.Errorf("%s, answer %q: got %q, want %q", test.config, test.answer, got, test.want)
		}
	}
}

// An upstream that refuses connections is down, and the reason has its address.
func TestHTTP_RefusedConnectionIsTheReason(t *testing.T) {
	t.Parallel()
	addr := testkit.Refused(t)
	err := run(t, load(t, `{"uri":"/"}`), newUpstream(t, "tcp", addr, nil), long)
	if err == nil || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), addr) {
		t.Errorf("got %v, want an error that says that %s refused", err, addr)
	}
}

// An invalid answer fails with a reason, and no later than the deadline.
func TestHTTP_InvalidAnswerFailsWithinTheDeadline(t *testing.T) {
	t.Parallel()
	const (
		ok       = "HTTP/1.1 200 OK\r\n"
		body     = ok + "Content-Length: 1000000\r\n\r\n"
		chunked  = ok + "Transfer-Encoding: chunked\r\n\r\n"
		hint     = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
		deadline = "context deadline exceeded"
	)
	line := "X-Line: " + strings.Repeat("x", 1000) + "\r\n"
	for name, test := range map[string]struct {
		handle func(net.Conn, *http.Request)
		want   string // a part of the reason
	}{
		"silence":            {func(conn net.Conn, _ *http.Request) { io.Copy(io.Discard, conn) }, deadline},
		"slow status":        {trickle("HTTP/1.1 200 ", "O"), deadline},
		"slow header":        {trickle(ok, "X-Slow: 1\r\n"), deadline},
		"slow body":          {trickle(body, "x"), "reading the body: " + deadline},
		"slow chunks":        {trickle(chunked, "1\r\nx\r\n"), "reading the body: " + deadline},
		"slow 1xx":           {trickle("", hint), deadline},
		"endless status":     {endless("HTTP/1.1 200 ", "O"), "exceeded 65536 bytes"},
		"endless line":       {endless(ok+"X-Long: ", "xxxxxxxx"), "exceeded 65536 bytes"},
		"endless header":     {endless(ok, line), "exceeded 65536 bytes"},
		"endless 1xx":        {endless("", hint), "exceeded 65536 bytes"},
		"endless trailer":    {endless(chunked+"0\r\n", line), "reading the body: http: suspiciously long trailer"},
		"endless extension":  {endless(chunked+"1;", "xxxxxxxx"), "reading the body: header line too long"},
		"endless length":     {endless(chunked, "00000000"), "reading the body: header line too long"},
		"hangs up":           {answer(""), "EOF"},
		"only a part":        {answer("HTTP/1.1 200 OK\r\nContent-Type: text"), "unexpected EOF"},
		"binary":             {answer("\x00\x01\xfe\xff\x00\x00\r\n\r\n"), `malformed HTTP response "\x00\x01\xfe\xff\x00\x00"`},
		"TLS alert":          {answer("\x15\x03\x01\x00\x02\x02\x16"), "malformed HTTP response"},
		"SSH":                {answer("SSH-2.0-OpenSSH_9.9\r\n"), `malformed HTTP response "SSH-2.0-OpenSSH_9.9"`},
		"HTTP/0.9":           {answer("<p>Works!</p>\n"), `malformed HTTP response "<p>Works!</p>"`},
		"bad version":        {answer("HTTP/x 200 OK\r\n\r\n"), `malformed HTTP version "HTTP/x"`},
		"no number":          {answer("HTTP/1.1 two OK\r\n\r\n"), `malformed HTTP status code "two"`},
		"negative number":    {answer("HTTP/1.1 -20 OK\r\n\r\n"), `malformed HTTP status code "-20"`},
		"no colon":           {answer(ok + "garbage\r\n\r\n"), "malformed MIME header"},
		"bad length":         {answer(ok + "Content-Length: -1\r\n\r\n"), `bad Content-Length "-1"`},
		"two lengths":        {answer(ok + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"), "Content-Length"},
		"unknown encoding":   {answer(ok + "Transfer-Encoding: rot13\r\n\r\n"), `unsupported transfer encoding: "rot13"`},
		"bad chunk":          {answer(chunked + "zz\r\n"), "reading the body: invalid byte in chunk length"},
		"switches protocols": {answer("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"), "status 101, want 2xx"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := newUpstream(t, "tcp", serve(t, test.handle), nil)
			limit := long
			if strings.Contains(test.want, deadline) {
				limit = short
			}
			config := `{"uri":"/"}`
			if strings.HasPrefix(test.want, "reading the body") { // such a body decides nothing unless something is expected of it
				config = `{"uri":"/","expect_body":"."}`
			}
			err := run(t, load(t, config), up, limit)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
			if limit == short && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want it to be %v", err, context.DeadlineExceeded)
			}
		})
	}
}

// A slow answer is no failure: one that arrives byte by byte within the timeout passes.
func TestHTTP_SlowAnswerPasses(t *testing.T) {
	t.Parallel()
	const all = "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready"
	addr := serve(t, func(conn net.Conn, _ *http.Request) {
		for i := range all {
			if _, err := io.WriteString(conn, all[i:i+1]); err != nil {
				return
			}
		}
	})
	if err := run(t, load(t, `{"uri":"/","expect_body":"^ready$"}`), newUpstream(t, "tcp", addr, nil), long); err != nil {
		t.Error(err)
	}
}

// A canceled probe returns at once, and not at its deadline.
func TestHTTP_CanceledProbeReturnsAtOnce(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]string{
		"before the answer": "",
		"in the body":       "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan struct{})
			addr := serve(t, func(conn net.Conn, _ *http.Request) {
				io.WriteString(conn, first)
				close(asked)
				io.Copy(io.Discard, conn)
			})
			ctx, cancel := context.WithTimeout(t.Context(), 10*grace)
			defer cancel()
			result := start(ctx, load(t, `{"uri":"/","expect_body":"."}`), newUpstream(t, "tcp", addr, nil))
			testkit.Wait(t, asked, grace)
			cancel()
			if err := testkit.Wait(t, result, grace); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want %v", err, context.Canceled)
			}
		})
	}
}

// A probe with a verdict closes its connection itself, whatever is left of the answer,
// and not only when its context ends.
func TestHTTP_VerdictClosesTheConnection(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ config, answer, want string }{
		"rest of the body":  {`{"uri":"/","max_size":5}`, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nready", ""},
		"whole body":        {`{"uri":"/","max_size":5}`, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready", ""},
		"unwanted status":   {`{"uri":"/"}`, "HTTP/1.1 500 Oh\r\nContent-Length: 10\r\n\r\n", "status 500, want 2xx"},
		"switched protocol": {`{"uri":"/"}`, "HTTP/1.1 101 Oh\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "status 101, want 2xx"},
		"garbage":           {`{"uri":"/"}`, "HTTP/1.1 two\r\n\r\n", `net/http: HTTP/1.x transport connection broken: malformed HTTP status code "two"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hungUp := make(chan struct{})
			addr := serve(t, func(conn net.Conn, _ *http.Request) {
				io.WriteString(conn, test.answer)
				io.Copy(io.Discard, conn)
				close(hungUp)
			})
			result := start(t.Context(), load(t, test.config), newUpstream(t, "tcp", addr, nil))
			if got := text(testkit.Wait(t, result, grace)); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			testkit.Wait(t, hungUp, grace)
		})
	}
}

// Memory and the bytes that are read are bounded: an endless body is judged by its
// first max_size bytes, long before the deadline. The test is not parallel, because it
// measures what the whole process allocates.
func TestHTTP_MemoryIsBounded(t *testing.T) {
	block := strings.Repeat("x", 32<<10)
	for _, test := range []struct {
		name, config string
		handle       func(net.Conn, *http.Request)
		pass         bool
	}{
		{"body", `{"uri":"/"}`, endless("HTTP/1.1 200 OK\r\n\r\n", block), true},
		{"body with a length", `{"uri":"/"}`, endless("HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\n", block), true},
		{"body that matches", `{"uri":"/","expect_body":"^x+$"}`, endless("HTTP/1.1 200 OK\r\n\r\n", block), true},
		{"body that does not match", `{"uri":"/","expect_body":"y"}`, endless("HTTP/1.1 200 OK\r\n\r\n", block), false},
		{"body of another status", `{"uri":"/"}`, endless("HTTP/1.1 500 Oh\r\n\r\n", block), false},
		{"header", `{"uri":"/"}`, endless("HTTP/1.1 200 OK\r\n", "X-Line: 1\r\n"), false},
		{"line", `{"uri":"/"}`, endless("HTTP/1.1 200 OK\r\nX-Line: ", block), false},
		{"1xx", `{"uri":"/"}`, endless("", "HTTP/1.1 100 Continue\r\n\r\n"), false},
		{"garbage", `{"uri":"/"}`, endless("", block), false},
	} {
		h := load(t, test.config)
		up := newUpstream(t, "tcp", serve(t, test.handle), nil)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began := time.Now()
		err := run(t, h, up, long)
		took := time.Since(began)
		runtime.ReadMemStats(&after)
		if (err == nil) != test.pass {
			t.Errorf("%s: got %v, want a pass: %t", test.name, err, test.pass)
		}
		if took >= long {
			t.Errorf("%s: took %s, want an end before the deadline", test.name, took)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
			t.Errorf("%s: %d bytes were allocated, want some 64 KiB and no more than 8 MiB", test.name, got)
		}
	}
}

// JSON is not checked by the Caddyfile parser, and placeholders have values only when
// the config is loaded. So Provision checks everything again.
func TestHTTP_ProvisionRejectsInvalidConfig(t *testing.T) {
	t.Setenv("PROBE_EMPTY", "")
	t.Setenv("PROBE_WORD", "word")
	t.Setenv("PROBE_LINES", "a\r\nInjected: b")
	const (
		uri        = "uri must be a path that begins with one '/', optionally with a query"
		global     = "; only global placeholders, such as {env.*}, can be used in a check"
		ofUpstream = "; only global placeholders, such as {env.*}, and those of the upstream that is probed can be used here: {http.reverse_proxy.upstream.hostport}, {http.reverse_proxy.upstream.host}, {http.reverse_proxy.upstream.port}, {http.reverse_proxy.active.target_upstream}"
		status     = "status must be a code from 200 to 599, a class like 2xx or a range like 200-399; got "
		size       = "max_size must be a size from 1 byte to 64MiB, like 64KiB"
		regex      = "expect_body must be a regular expression in RE2 syntax: error parsing regexp: "
	)
	for _, test := range []struct{ config, want string }{
		{`{}`, uri + "; got ''"},
		{`{"uri":"healthz"}`, uri + "; got 'healthz'"},
		{`{"uri":"http://app1/healthz"}`, uri + "; give only the path, like /healthz: the request always goes to the upstream; got 'http://app1/healthz'"},
		{`{"uri":"//app1/healthz"}`, uri + "; got '//app1/healthz'"},
		{`{"uri":"/a b"}`, uri + "; got '/a b'"},
		{`{"uri":"/?a b"}`, uri + "; got '/?a b'"},
		{`{"uri":"/?a#f"}`, uri + "; got '/?a#f'"},
		{`{"uri":"/","method":"{http.request.method}"}`, "method: unrecognized placeholder {http.request.method}" + global},
		{`{"uri":"/","status":["{env.PROBE_WORD}"]}`, status + "'{env.PROBE_WORD}'"},
		{`{"uri":"/","header":{"Host":["a"],"host":["b"]}}`, "header Host is given twice"},
		{`{"uri":"/","expect_body":"{env.PROBE_EMPTY}"}`, "expect_body must not be empty, as it is with its placeholders replaced"},
		{`{"uri":"/","expect_body":"` + strings.Repeat("{", 102) + `"}`, "expect_body must not be empty, as it is with its placeholders replaced"},
		{`{"uri":"/","expect_body":"^{http.request.host}$"}`, "expect_body: unrecognized placeholder {http.request.host}" + global},
		{`{"uri":"/%zz"}`, uri + `: parse "/%zz": invalid URL escape "%zz"`},
		{`{"uri":"/a\nb"}`, uri + `: parse "/a\nb": net/url: invalid control character in URL`},
		{`{"uri":"/{http.request.host}"}`, "uri: unrecognized placeholder {http.request.host}" + ofUpstream},
		{`{"uri":"/{host}"}`, "uri: unrecognized placeholder {host}" + ofUpstream},
		{`{"uri":"/{env.PROBE_EMPTY}"}`, "uri: evaluated placeholder {env.PROBE_EMPTY} is empty"},
		{`{"uri":"{env.PROBE_WORD}"}`, uri + "; got '{env.PROBE_WORD}'"},

		{`{"uri":"/","method":"GET /"}`, "method must be an HTTP method, like GET or HEAD; got 'GET /'"},
		{`{"uri":"/","method":"GET\r\n"}`, "method must be an HTTP method, like GET or HEAD; got 'GET\r\n'"},

		{`{"uri":"/","header":{"":["a"]}}`, "header: a field name has letters, digits and hyphens; got ''"},
		{`{"uri":"/","header":{"A b":["a"]}}`, "header: a field name has letters, digits and hyphens; got 'A b'"},
		{`{"uri":"/","header":{"A:":["a"]}}`, "header: a field name has letters, digits and hyphens; got 'A:'"},
		{`{"uri":"/","header":{"A":["b","c\r\nD: e"]}}`, "header A must not have line breaks or other control characters in its value"},
		{`{"uri":"/","header":{"A":["{env.PROBE_LINES}"]}}`, "header A must not have line breaks or other control characters in its value"},
		{`{"uri":"/","header":{"Host":["{http.request.host}"]}}`, "header Host: unrecognized placeholder {http.request.host}" + ofUpstream},
		{`{"uri":"/","header":{"A":["{env.PROBE_EMPTY}"]}}`, "header A: evaluated placeholder {env.PROBE_EMPTY} is empty"},

		{`{"uri":"/","header":{"Host":["a b"]}}`, "header Host must be a host, optionally with a port; got 'a b'"},
		{`{"uri":"/","header":{"host":["a/b"]}}`, "header Host must be a host, optionally with a port; got 'a/b'"},
		{`{"uri":"/","header":{"host":["a","b"]}}`, "header Host is given twice"},

		{`{"uri":"/","status":["200","teapot"]}`, status + "'teapot'"},
		{`{"uri":"/","status":["1xx"]}`, status + "'1xx'"},
		{`{"uri":"/","status":[""]}`, status + "''"},

		{`{"uri":"/","expect_body":"("}`, regex + "missing closing ): `(`"},
		{`{"uri":"/","expect_body":"a{2,1}"}`, regex + "invalid repeat count: `{2,1}`"},
		{`{"uri":"/","method":"HEAD","expect_body":"a"}`, "expect_body: an answer to HEAD has no body to look at"},

		{`{"uri":"/","max_size":-1}`, size},
		{`{"uri":"/","max_size":67108865}`, size},
		{`{"uri":"/","max_size":9223372036854775807}`, size},
	} {
		if got := text(decode(t, test.config).Provision(caddy.Context{})); got != test.want {
			t.Errorf("%s:\n got %q\nwant %q", test.config, got, test.want)
		}
	}
}

// unmeasured answers with an endless body of unknown length.
type unmeasured struct{ read atomic.Int64 }

func (e *unmeasured) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(e)}, nil
}

func (e *unmeasured) Read(p []byte) (int, error) {
	e.read.Add(int64(len(p)))
	return len(p), nil
}

// No more than max_size bytes of a body are read, whatever length a third-party
// transport reports.
func TestHTTP_MaxSizeHoldsForAnyTransport(t *testing.T) {
	t.Parallel()
	for _, h := range []*HTTP{{URI: "/"}, {URI: "/", ExpectBody: "^\\x00+$"}} {
		h.MaxSize = 1000
		if err := h.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		e := new(unmeasured)
		if err := h.Probe(t.Context(), Upstream{Scheme: "http", Host: "app1", Transport: e}); err != nil {
			t.Error(err)
		}
		if got := e.read.Load(); got > 64<<10 {
			t.Errorf("%d bytes were read", got)
		}
	}
}
