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

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

const (
	// short is the timeout of probes that are expected to time out.
	short = time.Second
	// long is the timeout of probes that are expected to end before it.
	long = 30 * time.Second
	// grace is how much later than its timeout a probe may end. It is large, so that no
	// test fails on a busy machine: the tests look for probes that never end.
	grace = 10 * time.Second
)

// everyCheck is the list of the options that all checks have, as errors show it.
const everyCheck = "besides the options of every check (name, interval, fast_interval, down_interval, timeout, passes, fails, jitter, port, address, proxy_protocol, keep_connection), "

// decode reads a probe from JSON as Caddy does, with an error for unknown fields.
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

// load decodes and provisions a probe.
func load(tb testing.TB, config string) *HTTP {
	tb.Helper()
	h := decode(tb, config)
	if err := h.Provision(caddy.Context{}); err != nil {
		tb.Fatalf("provisioning %s: %v", config, err)
	}
	return h
}

// newUpstream returns an upstream as the proxy makes it: requests go to addr, whatever
// host a URL names, each over a connection of its own, and with the limit of the proxy
// for the header of an answer.
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

// run probes once. It ends the test if the probe does not return after its timeout.
func run(tb testing.TB, p Prober, up Upstream, timeout time.Duration) error {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), timeout)
	defer cancel()
	return testkit.Wait(tb, start(ctx, p, up), timeout+grace)
}

// start probes in the background.
func start(ctx context.Context, p Prober, up Upstream) <-chan error {
	result := make(chan error, 1)
	go func() { result <- p.Probe(ctx, up) }()
	return result
}

// text returns the text of an error, and "" if there is none.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// serve reads the request of every connection, calls the handler, and returns the
// address. A connection that is open at the end of the test is an error, because its
// probe has not closed it.
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

// answer sends text and closes the connection.
func answer(text string) func(net.Conn, *http.Request) {
	return func(conn net.Conn, _ *http.Request) { io.WriteString(conn, text) }
}

// endless sends the first text, and then the second until the client closes the
// connection.
func endless(first, then string) func(net.Conn, *http.Request) {
	return func(conn net.Conn, _ *http.Request) {
		for next := first; ; next = then {
			if _, err := io.WriteString(conn, next); err != nil {
				return
			}
		}
	}
}

// trickle sends the first text at once, and then the second again and again, a byte
// every few milliseconds, until the client closes the connection.
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
