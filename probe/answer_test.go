// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// If nothing is expected of the body, the status decides. The body is neither waited
// for nor judged.
func TestHTTP_StatusDecidesWithoutExpectation(t *testing.T) {
	t.Parallel()
	const ok = "HTTP/1.1 200 OK\r\n"
	block := strings.Repeat("x", 32<<10)
	for name, handle := range map[string]func(net.Conn, *http.Request){
		"cut off":                answer(ok + "Content-Length: 42\r\n\r\n0123456789abcdef"),
		"cut off, left open":     hangAfter(ok + "Content-Length: 42\r\n\r\n0123456789abcdef"),
		"not begun, left open":   hangAfter(ok + "Content-Length: 42\r\n\r\n"),
		"chunks without an end":  answer(ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nready\r\n"),
		"chunks left open":       hangAfter(ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nready\r\n"),
		"bad chunk":              answer(ok + "Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
		"event stream":           trickle(ok+"Content-Type: text/event-stream\r\n\r\n", "data: ok\n\n"),
		"silent event stream":    hangAfter(ok + "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"),
		"endless":                endless(ok+"\r\n", block),
		"more than max_size":     endless(ok+"Content-Length: 9223372036854775807\r\n\r\n", block),
		"empty":                  answer("HTTP/1.1 204 No Content\r\n\r\n"),
		"whole":                  answer(ok + "Content-Length: 5\r\n\r\nready"),
		"until the end, dribble": trickle(ok+"Content-Length: 100000\r\n\r\n", "x"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, handle)
			for _, config := range []string{
				`{"uri":"/"}`,
				`{"uri":"/","expression":"status in [200, 204] && duration < duration('1m')"}`,
				`{"uri":"/","drain_status":["2xx"],"expect_body":"ready","expression":"json.ok"}`,
			} {
				ctx, cancel := context.WithCancel(t.Context())
				began := time.Now()
				got, want := text(testkit.Wait(t, start(ctx, load(t, config), newUpstream(t, "tcp", addr, nil)), grace)), ""
				if strings.Contains(config, "drain") {
					want = "alive, but no new requests are wanted"
				}
				if got != want && !strings.HasSuffix(got, want) || want == "" && got != "" {
					t.Errorf("%s: got %q, want %q", config, got, want)
				}
				if took := time.Since(began); took > grace/2 {
					t.Errorf("%s: took %s, want some milliseconds", config, took)
				}
				cancel()
			}
		})
	}
}

// hangAfter sends text and waits until the client closes the connection.
func hangAfter(text string) func(net.Conn, *http.Request) {
	return func(conn net.Conn, _ *http.Request) {
		io.WriteString(conn, text)
		io.Copy(io.Discard, conn)
	}
}

// The rest of an answer is read if it comes soon, so that the upstream sees an orderly
// end and the connection can be used again.
func TestHTTP_RestOfTheBodyIsRead(t *testing.T) {
	t.Parallel()
	for _, config := range []string{`{"uri":"/"}`, `{"uri":"/","drain_status":["200"]}`} {
		body := &countedBody{Reader: strings.NewReader(strings.Repeat("x", 40<<10))}
		up := Upstream{Scheme: "http", Host: "app1", Transport: roundTripper(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusOK, Body: body, ContentLength: 40 << 10}, nil
		})}
		_ = load(t, config).Probe(t.Context(), up)
		if !body.ended || !body.closed {
			t.Errorf("%s: read to the end: %t, closed: %t; want both", config, body.ended, body.closed)
		}
	}
}

// countedBody records whether a body was read to its end and closed.
type countedBody struct {
	io.Reader
	ended, closed bool
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.ended = b.ended || err == io.EOF
	return n, err
}

func (b *countedBody) Close() error {
	b.closed = true
	return nil
}

// The reason shows the body that came instead of one that matches: its size, its
// encoding and how it begins, and whether it was cut.
func TestHTTP_ReasonsShowTheBodyThatCame(t *testing.T) {
	t.Parallel()
	const ok = "HTTP/1.1 200 OK\r\n"
	long64 := strings.Repeat("0123456789abcdef", 4)
	for _, test := range []struct{ config, answer, want string }{
		{`"expect_body":"^OK$"`, ok + "Content-Length: 3\r\n\r\nOK\n", `body does not match '^OK$'; got 3 bytes: "OK\n"`},
		{`"expect_body":"^OK$"`, ok + "Content-Length: 0\r\n\r\n", `body does not match '^OK$'; got an empty body`},
		{
			`"expect_body":"OK"`, ok + "Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
			`body does not match 'OK'; got 4 bytes, Content-Encoding "gzip": "\x1f\x8b\b\x00"`,
		},
		{
			`"expect_body":"OK"`, ok + "Content-Length: 6\r\n\r\n\xff\xfeO\x00K\x00",
			`body does not match 'OK'; got 6 bytes: "\xff\xfeO\x00K\x00"`,
		},
		// invisible characters are escaped
		{
			`"expect_body":"^OK$"`, ok + "Content-Length: 11\r\n\r\nO\u200bK\u202e\u2028",
			`body does not match '^OK$'; got 11 bytes: "O\u200bK\u202e\u2028"`,
		},
		{`"expect_body":"y"`, ok + "Content-Length: 64\r\n\r\n" + long64, `body does not match 'y'; got 64 bytes: "` + long64 + `"`},
		{`"expect_body":"y"`, ok + "Content-Length: 65\r\n\r\n" + long64 + "g", `body does not match 'y'; got 65 bytes: "` + long64 + `"…`},
		// a body of exactly max_size is whole
		{`"expect_body":"y","max_size":3`, ok + "Content-Length: 3\r\n\r\nabc", `body does not match 'y'; got 3 bytes: "abc"`},
		{`"expect_body":"y","max_size":3`, ok + "Content-Length: 4\r\n\r\nabcd", `body does not match 'y' in its first 3 B; got more than 3 bytes: "abc"`},
		{`"expect_body":"` + strings.Repeat("y", 200) + `"`, ok + "Content-Length: 1\r\n\r\nx", `body does not match '` + strings.Repeat("y", 160) + `…'; got 1 byte: "x"`},
		{`"expression":"body == 'OK'"`, ok + "Content-Length: 3\r\n\r\nOK\n", `expression is false: body == 'OK'; got 3 bytes: "OK\n"`},
		{`"expression":"json.ok"`, ok + "Content-Length: 3\r\n\r\n<p>", `expression: the body is not JSON: invalid character '<' looking for beginning of value; got 3 bytes: "<p>"`},
		{`"expression":"status == 204"`, ok + "Content-Length: 3\r\n\r\nOK\n", `expression is false: status == 204`},

		{`"expect_header":{"X-A":"^a$"}`, ok + "X-A: \u202eb\r\nContent-Length: 0\r\n\r\n", `header X-A is "\u202eb", want '^a$'`},
		{`"expect_header":{"X-A":"^a$"}`, ok + "X-A: " + long64 + "g\r\nContent-Length: 0\r\n\r\n", `header X-A is "` + long64 + `"…, want '^a$'`},
	} {
		up := newUpstream(t, "tcp", serve(t, answer(test.answer)), nil)
		if got := text(run(t, load(t, `{"uri":"/",`+test.config+`}`), up, long)); got != test.want {
			t.Errorf("%s:\n got %s\nwant %s", test.config, got, test.want)
		}
	}
}

// The reason of a redirect that is not followed shows its location, without
// credentials.
func TestHTTP_ReasonsShowTheLocationOfARedirect(t *testing.T) {
	t.Parallel()
	for location, want := range map[string]string{
		"/login":                         `; Location "/login"`,
		"https://app1/healthz?a=b":       `; Location "https://app1/healthz?a=b"`,
		"https://user:hunter2@app1/x":    `; Location "https://xxxxx@app1/x"`,
		"https://hunter2@app1/x":         `; Location "https://xxxxx@app1/x"`,
		"//user:hunter2@app1/x":          `; Location "//xxxxx@app1/x"`,
		"https://user:hunter2@app1:x/y":  `; Location "xxxxx@app1:x/y"`,
		"mailto:hunter2@app1":            `; Location "xxxxx@app1"`,
		"/\u202exyz":                     `; Location "/\u202exyz"`,
		"/" + strings.Repeat("x", 100):   `; Location "/` + strings.Repeat("x", 63) + `"…`,
		"":                               "",
		"https://app1/a@b?c@d":           `; Location "https://app1/a@b?c@d"`,
		"https://app1/" + "?user:pass@x": `; Location "https://app1/?user:pass@x"`,
	} {
		up := newUpstream(t, "tcp", serve(t, answer("HTTP/1.1 301 Moved\r\nLocation: "+location+"\r\nContent-Length: 0\r\n\r\n")), nil)
		if got, want := text(run(t, load(t, `{"uri":"/"}`), up, long)), "status 301, want 2xx"+want; got != want {
			t.Errorf("%s:\n got %s\nwant %s", location, got, want)
		}
	}
	// a Location of another status is not shown
	up := newUpstream(t, "tcp", serve(t, answer("HTTP/1.1 503 Oh\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n")), nil)
	if got, want := text(run(t, load(t, `{"uri":"/"}`), up, long)), "status 503, want 2xx"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A transport may answer after the end of the context. The probe then does not begin to
// judge, which could take as long again.
func TestHTTP_AnswerAfterTheEndIsNotJudged(t *testing.T) {
	t.Parallel()
	for _, config := range []string{`{"uri":"/","expect_body":"^a"}`, `{"uri":"/","expression":"body == ''"}`, `{"uri":"/","expression":"status == 204"}`} {
		ctx, cancel := context.WithCancel(t.Context())
		up := Upstream{Scheme: "http", Host: "app1", Transport: roundTripper(func(*http.Request) (*http.Response, error) {
			cancel()
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("b"))}, nil
		})}
		if got, want := text(load(t, config).Probe(ctx, up)), context.Canceled.Error(); got != want {
			t.Errorf("%s: got %q, want %q", config, got, want)
		}
	}
}
