// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A request is mostly the same as the one before on its connection, and is then not
// put into bytes again; whatever of it differs is on the wire nevertheless, be it in
// the very header or URL that the last one had.
func TestHTTP1RequestsInARow(t *testing.T) {
	t.Parallel()
	needsKept(t)
	seen := make(chan string, 1)
	s := serve(t, func(c *client) {
		for {
			var text bytes.Buffer
			c.reader.Reset(io.TeeReader(c.TCPConn, &text))
			if req, _ := c.request(); req == nil {
				return
			}
			seen <- text.String()
			c.send(ready)
		}
	})
	line := dial(t, s.addr)
	defer line.Close()
	req := request(t, http.MethodGet, "")
	req.Header.Set("X-Probe", "1")
	for _, step := range []struct {
		what   string
		change func()
	}{
		{"first", func() {}},
		{"the same", func() {}},
		{"another value", func() { req.Header["X-Probe"][0] = "2" }},
		{"a second value", func() { req.Header.Add("X-Probe", "3") }},
		{"another field", func() { req.Header.Set("X-Other", "1") }},
		{"without it", func() { req.Header.Del("X-Probe") }},
		{"another host", func() { req.Host = "www.example.com" }},
		{"another path", func() { req.URL.Path = "/ready" }},
		{"a query", func() { req.URL.RawQuery = "a=b" }},
		{"another URL", func() { req.URL = &url.URL{Scheme: "http", Host: "app2", Path: "/"} }},
		{"another method", func() { req.Method = http.MethodHead }},
		{"a body", func() {
			req.Method, req.ContentLength = http.MethodPut, 3
			req.Body = io.NopCloser(strings.NewReader("abc"))
		}},
		{"no body, but a method that has one", func() { req.Body, req.ContentLength = nil, 0 }},
		{"the same without a body", func() { req.Body = http.NoBody }},
		{"as at first", func() { req.Method, req.Body = http.MethodGet, nil }},
	} {
		step.change()
		var want bytes.Buffer
		again := *req
		if req.ContentLength > 0 {
			again.Body = io.NopCloser(strings.NewReader("abc"))
		}
		if err := again.Write(&want); err != nil {
			t.Fatal(err)
		}
		resp, err := line.RoundTrip(req)
		if err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		if got := wait(t, seen); got != want.String() {
			t.Errorf("%s: got %q, want %q", step.what, got, want.String())
		}
		if req.Method == http.MethodHead { // the server sends a body all the same
			line.Close()
			line = dial(t, s.addr)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

// A request that is larger than what the system takes at once is sent whole.
func TestHTTP1LargeRequest(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	begin := make(chan struct{})
	s := serve(t, func(c *client) {
		<-begin
		req, _ := c.request()
		if req == nil || len(req.Header.Get("X-Large")) != size {
			c.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			return
		}
		c.send(ready)
		c.gone()
	})
	line := dial(t, s.addr)
	defer line.Close()
	req := request(t, http.MethodGet, "")
	req.Header.Set("X-Large", strings.Repeat("x", size))
	time.AfterFunc(short, func() { close(begin) })
	defer time.AfterFunc(grace, func() { line.Close() }).Stop()
	equal(t, "body", fetch(t, line, req), "ready")
}

// A connection that is reset instead of an answer says so, as net does.
func TestHTTP1Reset(t *testing.T) {
	t.Parallel()
	s := serve(t, func(c *client) {
		c.request()
		c.SetLinger(0)
	})
	line := dial(t, s.addr)
	defer line.Close()
	_, err := line.RoundTrip(request(t, http.MethodGet, ""))
	failed, ok := errors.AsType[*net.OpError](err)
	if !ok || failed.Op != "read" || failed.Addr.String() != s.addr || failed.Source.String() != line.Conn.LocalAddr().String() {
		t.Errorf("got %v, want the error of a read", err)
	}
	if keeps && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

// What comes before a request is sent is read, and not waited for: some servers speak
// as soon as they are connected to.
func TestHTTP1AnsweredBeforeItIsAsked(t *testing.T) {
	t.Parallel()
	s := serve(t, func(c *client) {
		c.send(ready)
		c.gone()
	})
	for _, wait := range []bool{false, false, false, keeps} {
		line := dial(t, s.addr)
		if wait {
			here := newSocket(line.Conn)
			eventually(func() bool { return !here.quiet() })
		}
		stop := time.AfterFunc(grace, func() { line.Close() }).Stop
		equal(t, "body", get(t, line), "ready")
		stop()
		line.Close()
	}
}

// The other side may close its half just when the next request is about to be sent, and
// go on reading: that is the end of the connection, and not to be waited out.
func TestHTTP1ClosedJustBefore(t *testing.T) {
	t.Parallel()
	needsKept(t)
	begin := make(chan struct{})
	s := serve(t, func(c *client) {
		c.request()
		c.send(ready)
		<-begin
		c.CloseWrite()
		c.gone()
	})
	line := dial(t, s.addr)
	defer line.Close()
	equal(t, "body", get(t, line), "ready")
	equal(t, "usable", line.Usable(), true)
	close(begin)
	eventually(func() bool { return !line.socket.quiet() })
	defer time.AfterFunc(grace, func() { line.Close() }).Stop()
	began := time.Now()
	if resp, err := line.RoundTrip(request(t, http.MethodGet, "")); err == nil {
		t.Errorf("got %v, want an error", resp)
	}
	if took := time.Since(began); took > grace/2 {
		t.Errorf("it took %v, want no wait", took)
	}
}

// A request with a body has its connection kept, too, if it may be sent twice.
func TestTransportReuseWithBody(t *testing.T) {
	t.Parallel()
	needsKept(t)
	s := serve(t, answering(ready))
	over := plain(t, s.addr)
	for range 3 {
		equal(t, "body", fetch(t, over, request(t, http.MethodGet, "are you there?")), "ready")
	}
	equal(t, "connections", s.accepted.Load(), 1)
}
