// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// Whatever bytes an upstream answers with, the probe returns, leaves no connection
// open, and passes only what looks like HTTP with a 2xx status.
func FuzzHTTPAnswer(f *testing.F) {
	for _, seed := range []string{
		"",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready",
		"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nready",
		"HTTP/1.0 204 No Content\n\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n5;x=y\r\nready\r\n0\r\nA: b\r\n\r\n",
		"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\n\r\nready",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nready",
		"HTTP/1.1 302 Found\r\nLocation: /ready\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x00",
		"HTTP/1.1 100\r\n\r\nHTTP/1.1 100\r\n\r\nHTTP/1.1 100\r\n\r\nHTTP/1.1 100\r\n\r\nHTTP/1.1 100\r\n\r\nHTTP/1.1 100\r\n\r\n",
		"HTTP/2.0 200 OK\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
		"\x15\x03\x01\x00\x02\x02\x16",
		"SSH-2.0-OpenSSH_9.9\r\n",
	} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	expecting := load(f, `{"uri":"/","expect_body":"ready"}`)
	reading := load(f, `{"uri":"/","max_size":4}`)
	success := regexp.MustCompile(`^(?s:.*\n)?HTTP/\d\.\d +2\d\d`)
	f.Fuzz(func(t *testing.T, answer []byte, expect bool) {
		h := reading
		if expect {
			h = expecting
		}
		var upstream sync.WaitGroup
		transport := &http.Transport{
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
			DialContext: func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				upstream.Go(func() {
					if _, err := http.ReadRequest(bufio.NewReader(server)); err == nil {
						server.Write(answer)
					}
					server.Close()
				})
				return client, nil
			},
		}
		up := Upstream{Address: "app1:80", Scheme: "http", Host: "app1:80", Transport: transport}
		err := run(t, h, up, long)
		if err == nil && !success.Match(answer) {
			t.Errorf("passes: %q", answer)
		}
		if err == nil && expect && !strings.Contains(string(answer), "ready") && !strings.Contains(string(answer), "chunked") {
			t.Errorf("passes without the body: %q", answer)
		}
		closed := make(chan struct{})
		go func() {
			upstream.Wait()
			close(closed)
		}()
		testkit.Wait(t, closed, grace)
	})
}

// A text that parses gives codes within the bounds, and matches at both ends and not
// beyond.
func FuzzParseStatus(f *testing.F) {
	for _, seed := range []string{"204", "2xx", "200-399", "1xx", "xx", "-", "600", "2xx-3xx", "200-", " 200", "\u0662xx"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := limits.ParseStatus("status", text)
		if err != nil {
			return
		}
		if r.First < 200 || r.Last > 599 || r.First > r.Last {
			t.Errorf("ParseStatus(%q) = %v, want codes from 200 to 599", text, r)
		}
		ranges := []limits.StatusRange{r}
		if !matches(ranges, r.First) || !matches(ranges, r.Last) || matches(ranges, r.First-1) || matches(ranges, r.Last+1) {
			t.Errorf("%q does not match from %d to %d exactly", text, r.First, r.Last)
		}
	})
}

// Whatever a Caddyfile contains, the parser returns. What it accepts also loads, so
// that errors have file and line.
func FuzzHTTPCaddyfile(f *testing.F) {
	for _, seed := range []string{
		"/healthz",
		"/healthz {\n}",
		"/x {\n\tmethod HEAD\n\theader Host a\n\theader host b\n\tstatus 2xx 300-399 404\n\texpect_body \"a{2,3}\"\n\tmax_size 64KiB\n}",
		"/x {\n\tmethod POST\n\texpect_body `\\d+`\n}",
		"{env.PROBE_UNSET} {\n\theader A {http.request.host}\n}",
		"/x?a=b#c {\n\tmax_size 1.5 KiB\n}",
		"//x {\n\tmethod GET {\n\t\tmethod GET\n\t}\n}",
		"/x {\n\tmax_size \"99999999999 EiB\"\n\tstatus 2xx\n}\n}",
		"\"\" {\n\tstatus\n",
		"/x { method GET }",
		"/0 { method 0{",
		"/x {\n\trequest_body `{\"a\":{}}`\n\tscheme https\n\tfollow_redirects\n\tfresh_connection\n\ttls_server_name a\n\ttls_insecure_skip_verify\n}",
		"/x {\n\tdrain_status 503 5xx\n\texpect_header A ^b$\n\texpect_header a c\n\texpect_header B d\n}",
		"/x {\n\texpression \"status == 200 && json.db == 'ok'\"\n\tmethod HEAD\n}",
		"/x {\n\texpression \"headers['A'].all(v, v.matches('b')) && duration < duration('1s')\"\n}",
		"/x {\n\texpression `{'a': body}.a`\n\trequest_body {env.PROBE_UNSET}\n\ttls_server_name {http.request.host}\n}",
		"/x {\n\trequest_body \"\"\n\tscheme {\n\texpect_header \"\" \"\"\n}",
		"<<END\n/x\nEND\n{\n\texpect_body <<E\n\ta\n\tE\n}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, input string) {
		if strings.Contains(input, "{file.") {
			t.Skip("reads whatever file it names")
		}
		tokens, err := caddyfile.Tokenize([]byte("http "+input), "Testfile")
		if err != nil || len(tokens) == 0 {
			return
		}
		h := new(HTTP)
		if h.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)) != nil {
			return
		}
		config, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		loaded := decode(t, string(config))
		err = loaded.Provision(caddy.Context{})

		// placeholders and escaped braces can have any value
		values := slices.Concat([]string{h.URI, h.Method, h.RequestBody, h.ExpectBody, h.Expression, h.TLSServerName}, h.Status, h.DrainStatus)
		values = slices.AppendSeq(values, maps.Values(h.ExpectHeader))
		for _, header := range h.Header {
			values = append(values, header...)
		}
		open := slices.ContainsFunc(values, func(value string) bool { return strings.ContainsAny(value, "{}") })
		if err != nil && !open {
			t.Errorf("%q parses as %s, but does not load: %v", input, config, err)
		}
		if loaded.URI == "" || loaded.URI[0] != '/' && !open {
			t.Errorf("%q parses as %s: there is no path", input, config)
		}
		if scheme := loaded.Overrides().Scheme; scheme != "" && scheme != "http" && scheme != "https" {
			t.Errorf("%q parses as %s: there is no such scheme", input, config)
		}
		if err != nil {
			return
		}
		if (loaded.Expression != "") != (loaded.expression != nil) || len(loaded.header) != len(h.ExpectHeader) || len(loaded.draining) != len(h.DrainStatus) {
			t.Errorf("%q parses as %s: an expectation is not checked", input, config)
		}
		if !open && loaded.RequestBody != h.RequestBody || len(loaded.RequestBody) > maxRequestBody {
			t.Errorf("%q parses as %s: the request would have another body", input, config)
		}
	})
}

// Whatever an upstream answers, an expression about it is evaluated without a panic. It
// passes only if it is true, and each failure has a reason.
func FuzzExpression(f *testing.F) {
	for _, body := range []string{
		"", "null", "true", `"\ud800"`, "[[[[]]]]", "\xff\x00", "1e999", "-0", "9007199254740993", "\ufeff{}",
		`{"ok":true,"n":1,"items":[{"ok":true}]}`, `{"ok":"true","n":"1","items":{"a":{"ok":1}}}`,
		`{"n":1,"n":2,"items":[{},null,1]}`, `{"re":"(","format":"%.99f%s%d","items":["a",1e308,{"ok":[]}]}`,
	} {
		f.Add(body, 200, "X-A", "b")
		f.Add(body, -1, "json", "\xff")
	}
	type answer struct {
		body   string
		status int
		header http.Header
	}
	parsed := func(body string) (value any) {
		if json.Unmarshal([]byte(body), &value) != nil {
			return nil // the rest is unknown if a number is too large
		}
		return value
	}
	// the results of some expressions, computed in another way
	tests := map[*expression]func(a answer) bool{
		compileCEL(f, "status >= 200 && status < 300"):                                func(a answer) bool { return a.status >= 200 && a.status < 300 },
		compileCEL(f, "body == ''"):                                                   func(a answer) bool { return a.body == "" },
		compileCEL(f, "body.size() >= 0 && body == body && body.matches('(?s)^.*$')"): func(answer) bool { return true },
		compileCEL(f, "'X-A' in headers && headers['X-A'].exists(v, v == 'b')"): func(a answer) bool {
			return slices.Contains(a.header["X-A"], "b")
		},
		compileCEL(f, "json"): func(a answer) bool { return parsed(a.body) == true },
		compileCEL(f, "type(json) == map"): func(a answer) bool {
			_, ok := parsed(a.body).(map[string]any)
			return ok
		},
		compileCEL(f, "true || json"):         func(answer) bool { return true },
		compileCEL(f, "has(json.ok) || true"): func(answer) bool { return true },
	}
	for _, source := range []string{
		"json.ok", "json == json && json.n == json.n", "json.items.all(i, i.ok)", "json.items[json.n].ok", "json[body]",
		"json.items.map(i, i.ok).exists_one(b, b)", "json.n + json.n > json.n", "int(json.n) / int(json.n) == 1",
		"body.matches(json.re)", "body.split('').size() > body.lowerAscii().trim().size()", "json.format.format([json.n, body, headers])  != ''",
		"timestamp(json.n) < timestamp(body)", "duration(json.n) < duration", "string(json.items) == body", "body.substring(int(json.n)) == ''",
		"headers.all(k, headers[k].all(v, v.size() < 1000 && v.charAt(0) != body))", "double(body) > 0.0", "bytes(body).size() > 0", "json.items.join(',') == body",
	} {
		tests[compileCEL(f, source)] = nil
	}
	f.Fuzz(func(t *testing.T, body string, status int, name, value string) {
		a := answer{body: body, status: status, header: http.Header{}}
		a.header.Add(name, value)
		a.header.Add(name, body)
		ctx, cancel := context.WithTimeout(t.Context(), long)
		defer cancel()
		for e, passes := range tests {
			err := e.check(ctx, reply{status: status, header: a.header, body: []byte(body)})
			if passes != nil && passes(a) != (err == nil) {
				t.Errorf("%s, %+v: got %v, want a pass: %t", e.text, a, err, passes(a))
			}
			if err != nil && strings.TrimSpace(err.Error()) == "" {
				t.Errorf("%s, %+v: fails without a reason", e.text, a)
			}
			if ctx.Err() != nil {
				t.Fatalf("%s, %+v: takes longer than %s", e.text, a, long)
			}
		}
	})
}
