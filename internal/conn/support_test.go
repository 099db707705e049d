// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	// short is the timeout of requests that are expected to time out.
	short = 500 * time.Millisecond
	// grace is how long to wait for what has to happen. It is large, so that no test fails
	// on a busy machine.
	grace = 10 * time.Second
	// maxHeader is the limit in most tests.
	maxHeader = 64 << 10
	// ready is the usual answer.
	ready = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready"
)

// No goroutine of a connection or a request is left.
func TestMain(m *testing.M) {
	code := m.Run()
	var left string
	if code == 0 && !eventually(func() bool { left = strays(); return left == "" }) {
		fmt.Fprintf(os.Stderr, "goroutines are left:\n%s\n", left)
		code = 1
	}
	os.Exit(code)
}

// strays returns the stacks of goroutines that serve a connection or a request.
func strays() string {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	var found []string
	for i, stack := range strings.Split(string(stacks), "\n\n") {
		// the first is this one
		if i > 0 && (strings.Contains(stack, "/internal/conn.") || strings.Contains(stack, "net/http.")) {
			found = append(found, stack)
		}
	}
	return strings.Join(found, "\n\n")
}

// eventually reports whether the condition becomes true in time.
func eventually(condition func() bool) bool {
	for deadline := time.Now().Add(grace); ; time.Sleep(time.Millisecond) {
		if condition() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// wait returns the next value, or ends the test.
func wait[T any](tb testing.TB, values <-chan T) T {
	tb.Helper()
	select {
	case value := <-values:
		return value
	case <-time.After(grace):
		tb.Fatalf("nothing within %s", grace)
		panic("unreachable")
	}
}

// server is a TCP server with a handler for each connection.
type server struct {
	addr     string
	accepted atomic.Int64 // connections
	requests atomic.Int64 // that were read to their end
	open     atomic.Int64 // connections that are open
}

// client is a connection to a client.
type client struct {
	*net.TCPConn
	server *server
	nth    int64 // connection of the server, from 1
	reader *bufio.Reader
}

// request reads one request and its body. It is nil when there is none.
func (c *client) request() (*http.Request, string) {
	req, err := http.ReadRequest(c.reader)
	if err != nil {
		return nil, ""
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, ""
	}
	c.server.requests.Add(1)
	return req, string(body)
}

func (c *client) send(text string) error {
	_, err := io.WriteString(c, text)
	return err
}

// gone waits until the client closes the connection.
func (c *client) gone() {
	_ = c.SetReadDeadline(time.Now().Add(2 * grace))
	_, _ = io.Copy(io.Discard, c.reader)
}

// serve handles every connection, and then closes it. At the end of the test the client
// must have closed all of them.
func serve(tb testing.TB, handle func(c *client)) *server {
	tb.Helper()
	listener := listen(tb)
	s := &server{addr: listener.Addr().String()}
	var (
		handlers sync.WaitGroup
		mu       sync.Mutex
		conns    []net.Conn
	)
	handlers.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.open.Add(1)
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			nth := s.accepted.Add(1)
			handlers.Go(func() {
				handle(&client{TCPConn: conn.(*net.TCPConn), server: s, nth: nth, reader: bufio.NewReader(conn)})
				conn.Close()
				s.open.Add(-1)
			})
		}
	})
	tb.Cleanup(func() {
		listener.Close()
		if !eventually(func() bool { return s.open.Load() == 0 }) {
			tb.Errorf("%d connections are left open", s.open.Load())
			mu.Lock()
			for _, conn := range conns {
				conn.Close()
			}
			mu.Unlock()
		}
		handlers.Wait()
	})
	return s
}

// answering answers every request of a connection with the text.
func answering(text string) func(c *client) {
	return func(c *client) {
		for {
			if req, _ := c.request(); req == nil || c.send(text) != nil {
				return
			}
		}
	}
}

// named returns an answer that names the connection.
func named(c *client) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nconnection %d", c.nth)
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

// dial returns a connection to the address, which the test is to close.
func dial(tb testing.TB, addr string) *HTTP1 {
	tb.Helper()
	conn, err := new(net.Dialer).DialContext(tb.Context(), "tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	return &HTTP1{Conn: conn, MaxHeader: maxHeader}
}

// plain returns a transport of plain HTTP/1.1 to the address, closed at the end
// of the test.
func plain(tb testing.TB, addr string) *Transport {
	tb.Helper()
	t := &Transport{MaxAge: time.Hour, Open: func(ctx context.Context) (Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return &HTTP1{Conn: conn, MaxHeader: maxHeader}, nil
	}}
	tb.Cleanup(t.Close)
	return t
}

// request returns a request, with a body if there is a text.
func request(tb testing.TB, method, text string) *http.Request {
	tb.Helper()
	var body io.Reader
	if text != "" {
		body = strings.NewReader(text)
	}
	req, err := http.NewRequestWithContext(tb.Context(), method, "http://app1/healthz", body)
	if err != nil {
		tb.Fatal(err)
	}
	return req
}

// get sends a GET, and returns the whole body.
func get(tb testing.TB, over http.RoundTripper) string {
	tb.Helper()
	return fetch(tb, over, request(tb, http.MethodGet, ""))
}

// fetch sends a request and returns the whole body of the answer.
func fetch(tb testing.TB, over http.RoundTripper, req *http.Request) string {
	tb.Helper()
	resp, err := over.RoundTrip(req)
	if err != nil {
		tb.Fatalf("no answer: %v", err)
	}
	return drain(tb, resp)
}

// drain reads a body to its end and closes it.
func drain(tb testing.TB, resp *http.Response) string {
	tb.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Errorf("reading the body: %v", err)
	}
	if err := resp.Body.Close(); err != nil {
		tb.Errorf("closing the body: %v", err)
	}
	return string(body)
}

// idle returns the connection that a transport keeps, or nil.
func idle(t *Transport) *keptConn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kept
}

// equal compares a value that is named.
func equal[T comparable](tb testing.TB, what string, got, want T) {
	tb.Helper()
	if got != want {
		tb.Errorf("%s: got %v, want %v", what, got, want)
	}
}
