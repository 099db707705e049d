// SPDX-License-Identifier: Apache-2.0

package observer_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/observer"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// watched is an upstream without checks, with an observer around a transport to it. One
// outcome that counts ejects it, so that a test sees what counts.
type watched struct {
	*observer.Transport
	settings witness.Settings
	upstream *reverseproxy.Upstream
	witness  *witness.Upstream // nil: it is not observed

	mu      sync.Mutex
	accused []string // causes
	ejected int
	tried   []bool // whether each failed
}

// watch observes a transport. The configuration can change what is observed.
func watch(tb testing.TB, inner http.RoundTripper, configure ...func(*watched, *observer.Hooks)) *watched {
	tb.Helper()
	w := &watched{settings: witness.DefaultSettings(), upstream: &reverseproxy.Upstream{Dial: "app:80"}}
	w.settings.EjectAfter = 1
	hooks := observer.Hooks{
		Upstream: func(u *reverseproxy.Upstream) *witness.Upstream {
			if u != w.upstream {
				tb.Errorf("asked of another upstream, %v", u)
			}
			return w.witness
		},
		Tried: func(_ *http.Request, u *reverseproxy.Upstream, failed bool, _ witness.Counted) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if u != w.upstream {
				tb.Errorf("tried another upstream, %v", u)
			}
			w.tried = append(w.tried, failed)
		},
	}
	for _, f := range configure {
		f(w, &hooks)
	}
	h := &witness.Handler{Settings: w.settings, Hooks: witness.Hooks{
		Changed:  func() {},
		MayEject: func(*witness.Upstream) bool { return true },
		Accused: func(_ string, cause witness.Cause, reason string, _ bool) {
			tb.Logf("accused by %v: %s", cause, reason)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.accused = append(w.accused, cause.String())
		},
		Acquitted: func(string) {},
		Ejected: func(string, string, time.Time, int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.ejected++
		},
		Returned: func(string) {},
	}}
	pool, err := witness.Join(tb.Name(), h)
	if err != nil {
		tb.Fatal(err)
	}
	pool.Follow(h)
	h.SetRunning(true)
	w.witness = pool.Add(h, w.upstream.Dial, nil)
	tb.Cleanup(func() {
		pool.Remove(h, w.witness)
		if err := pool.Leave(h); err != nil {
			tb.Error(err)
		}
	})
	w.Transport = observer.New(inner, &w.settings, hooks)
	return w
}

// causes returns what accused the upstream so far.
func (w *watched) causes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.accused)
}

// ejections returns how often it was ejected.
func (w *watched) ejections() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ejected
}

// tries returns whether the tries that were noted failed.
func (w *watched) tries() []bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.tried)
}

// proxied returns the context of a request as the handler sends it.
func (w *watched) proxied(ctx context.Context) context.Context {
	ctx = context.WithValue(ctx, caddyhttp.ServerCtxKey, new(caddyhttp.Server)) // as probes of Caddy have it, too
	ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, make(map[string]any))
	ctx = context.WithValue(ctx, caddy.CtxKey("reverse_proxy.dial_info"), reverseproxy.DialInfo{Upstream: w.upstream})
	return httptrace.WithClientTrace(ctx, new(httptrace.ClientTrace))
}

// request returns a request as the handler sends it.
func (w *watched) request(tb testing.TB, method, url string, body io.Reader) *http.Request {
	tb.Helper()
	r, err := http.NewRequestWithContext(w.proxied(tb.Context()), method, url, body)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// roundTrip sends a request, and reads the answer. Its status is 0 after an error.
func (w *watched) roundTrip(tb testing.TB, r *http.Request) (status int, err error) {
	tb.Helper()
	res, err := w.RoundTrip(r)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	return res.StatusCode, err
}

// transport returns a transport that the test closes.
func transport(tb testing.TB) *http.Transport {
	t := new(http.Transport)
	tb.Cleanup(t.CloseIdleConnections)
	return t
}

// function is a transport.
type function func(*http.Request) (*http.Response, error)

// RoundTrip calls it.
func (f function) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// listen calls a function for each connection, until the test ends, and returns the URL.
// The function gets what reads the connection.
func listen(tb testing.TB, serve func(conn *net.TCPConn, reader *bufio.Reader)) (url string) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var running sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			running.Go(func() {
				defer func() { _ = conn.Close() }()
				serve(conn.(*net.TCPConn), bufio.NewReader(conn))
			})
		}
	})
	tb.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, conn := range conns {
			_ = conn.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return "http://" + l.Addr().String()
}

// answers returns a server that reads a request without its body, and writes a text.
func answers(text string) func(*net.TCPConn, *bufio.Reader) {
	return func(conn *net.TCPConn, reader *bufio.Reader) {
		for {
			if _, err := http.ReadRequest(reader); err != nil {
				return
			}
			if _, err := io.WriteString(conn, text); err != nil || text == "" {
				return
			}
		}
	}
}

// status returns an answer without a body.
func status(code int, fields string) string {
	return fmt.Sprintf("HTTP/1.1 %d Text\r\nContent-Length: 0\r\n%s\r\n", code, fields)
}
