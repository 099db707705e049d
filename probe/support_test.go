// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

const (
	// short is the deadline of probes that are meant to run into it.
	short = 300 * time.Millisecond
	// long is the deadline of probes that are meant not to.
	long = 30 * time.Second
	// grace is how much later than its deadline a probe may end. It is large, so
	// that a busy machine fails no test: what the tests look for never ends.
	grace = 10 * time.Second
)

// everyCheck is how errors list the options that all checks have.
const everyCheck = "besides the options of every check (name, interval, fast_interval, down_interval, timeout, passes, fails, jitter, port, address, proxy_protocol, keep_connection), "

// decode reads a probe from JSON as Caddy does: unknown fields are errors.
func decode(tb testing.TB, config string) *HTTP {
	tb.Helper()
	h := new(HTTP)
	decoder := json.NewDecoder(strings.NewReader(config))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(h); err != nil {
		tb.Fatalf("decoding %s: %v", config, err)
	}
	return h
}

// load is decode and Provision.
func load(tb testing.TB, config string) *HTTP {
	tb.Helper()
	h := decode(tb, config)
	if err := h.Provision(caddy.Context{}); err != nil {
		tb.Fatalf("provisioning %s: %v", config, err)
	}
	return h
}

// newUpstream is an upstream as the proxy makes it: it is reached at addr
// whatever host a URL names, over a connection of its own for every probe, and
// with the same bound on the header of an answer.
func newUpstream(tb testing.TB, network, addr string, config *tls.Config) Upstream {
	tb.Helper()
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	transport := &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		TLSClientConfig:        config,
		ForceAttemptHTTP2:      config != nil,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	tb.Cleanup(transport.CloseIdleConnections)
	up := Upstream{Address: addr, Scheme: "http", Host: addr, Transport: transport, Dial: dial}
	if config != nil {
		up.Scheme = "https"
	}
	return up
}

// run probes once. A probe that outlives its deadline ends the test.
func run(tb testing.TB, p Prober, up Upstream, timeout time.Duration) error {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), timeout)
	defer cancel()
	return wait(tb, start(ctx, p, up), timeout+grace)
}

// start probes in the background.
func start(ctx context.Context, p Prober, up Upstream) <-chan error {
	result := make(chan error, 1)
	go func() { result <- p.Probe(ctx, up) }()
	return result
}

// wait returns the next value, or ends the test.
func wait[T any](tb testing.TB, values <-chan T, limit time.Duration) T {
	tb.Helper()
	select {
	case value := <-values:
		return value
	case <-time.After(limit):
		tb.Fatalf("nothing within %s", limit)
		panic("unreachable")
	}
}

// text is what an error says; that of none is empty.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// serve has every connection handled once its request was read, and returns
// where. No connection may be left open at the end of the test, for that would
// be one that a probe has forgotten.
func serve(tb testing.TB, handle func(conn net.Conn, request *http.Request)) (addr string) {
	tb.Helper()
	listener := listen(tb)
	var (
		handlers sync.WaitGroup
		mu       sync.Mutex
		open     = make(map[net.Conn]bool)
	)
	handlers.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			handlers.Go(func() {
				if request, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					handle(conn, request)
				}
				conn.Close()
				mu.Lock()
				delete(open, conn)
				mu.Unlock()
			})
		}
	})
	tb.Cleanup(func() {
		listener.Close()
		done := make(chan struct{})
		go func() {
			handlers.Wait()
			close(done)
		}()
		select {
		case <-done:
			return
		case <-time.After(grace):
		}
		mu.Lock()
		tb.Errorf("%d connections of probes are left open", len(open))
		for conn := range open {
			conn.Close()
		}
		mu.Unlock()
		<-done
	})
	return listener.Addr().String()
}

// listen returns a listener on the loopback interface.
func listen(tb testing.TB) net.Listener {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { listener.Close() })
	return listener
}

// refusing returns an address where nobody listens. It is taken by the client
// end of a connection, so that no other test can come to listen there.
func refusing(tb testing.TB) string {
	tb.Helper()
	conn, err := net.Dial("tcp", listen(tb).Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	return conn.LocalAddr().String()
}

// answer sends text and hangs up.
func answer(text string) func(net.Conn, *http.Request) {
	return func(conn net.Conn, _ *http.Request) { io.WriteString(conn, text) }
}

// endless sends the first text and then the second for as long as the other
// side takes it.
func endless(first, then string) func(net.Conn, *http.Request) {
	return func(conn net.Conn, _ *http.Request) {
		for next := first; ; next = then {
			if _, err := io.WriteString(conn, next); err != nil {
				return
			}
		}
	}
}

// trickle sends the first text at once, and then the second again and again, a
// byte every few milliseconds, for as long as the other side listens.
func trickle(first, then string) func(net.Conn, *http.Request) {
	return func(conn net.Conn, _ *http.Request) {
		ticker := time.NewTicker(5 * time.Millisecond)
		defer ticker.Stop()
		_, err := io.WriteString(conn, first)
		for i := 0; err == nil; i++ {
			<-ticker.C
			at := i % len(then)
			_, err = io.WriteString(conn, then[at:at+1])
		}
	}
}
