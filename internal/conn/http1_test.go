// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"bufio"
	"context"
	"errors"
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
	"testing/synctest"
	"time"
)

// The body is what the framing of the answer says. Another request can follow only an
// answer whose end is known, that allows it, and that nothing follows.
func TestHTTP1_FramingDecidesBodyAndReuse(t *testing.T) {
	t.Parallel()
	const early = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
	for name, test := range map[string]struct {
		method string // GET
		answer string
		close  bool // the server closes after the answer
		status int
		body   string
		usable bool
	}{
		"length":             {answer: ready, status: 200, body: "ready", usable: true},
		"empty":              {answer: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", status: 200, usable: true},
		"no content":         {answer: "HTTP/1.1 204 No Content\r\n\r\n", status: 204, usable: true},
		"not modified":       {answer: "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", status: 304, usable: true},
		"an error":           {answer: "HTTP/1.1 503 Down\r\nContent-Length: 2\r\n\r\nno", status: 503, body: "no", usable: true},
		"HEAD":               {method: "HEAD", answer: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", status: 200, usable: true},
		"HEAD, no length":    {method: "HEAD", answer: "HTTP/1.1 200 OK\r\n\r\n", status: 200, usable: true},
		"HEAD, chunked":      {method: "HEAD", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", status: 200, usable: true},
		"HEAD with a body":   {method: "HEAD", answer: ready, status: 200},
		"204 with a body":    {answer: "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nready", status: 204},
		"chunked":            {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nrea\r\n2\r\ndy\r\n0\r\n\r\n", status: 200, body: "ready", usable: true},
		"trailer":            {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n5\r\nready\r\n0\r\nA: b\r\n\r\n", status: 200, body: "ready", usable: true},
		"closes":             {answer: "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nready", status: 200, body: "ready"},
		"ends by closing":    {answer: "HTTP/1.1 200 OK\r\n\r\nready", close: true, status: 200, body: "ready"},
		"1.0":                {answer: "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nready", status: 200, body: "ready"},
		"1.0, kept":          {answer: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nready", status: 200, body: "ready", usable: true},
		"1.0, by closing":    {answer: "HTTP/1.0 200 OK\r\n\r\nready", close: true, status: 200, body: "ready"},
		"continue":           {answer: "HTTP/1.1 100 Continue\r\n\r\n" + ready, status: 200, body: "ready", usable: true},
		"many interim":       {answer: strings.Repeat(early, 1000) + ready, status: 200, body: "ready", usable: true},
		"switches":           {answer: "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", status: 101},
		"interim, switches":  {answer: early + "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", status: 101},
		"two answers":        {answer: ready + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", status: 200, body: "ready"},
		"one byte too much":  {answer: ready + "\n", status: 200, body: "ready"},
		"more after chunks":  {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nx", status: 200},
		"lines end in LF":    {answer: "HTTP/1.1 200 OK\nContent-Length: 5\n\nready", status: 200, body: "ready", usable: true},
		"larger than buffer": {answer: "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 100_000), status: 200, body: strings.Repeat("x", 100_000), usable: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(c *client) {
				c.request()
				if c.send(test.answer); !test.close {
					c.gone()
				}
			})
			conn := dial(t, s.addr)
			defer conn.Close()
			resp, err := conn.RoundTrip(request(t, test.method, ""))
			if err != nil {
				t.Fatal(err)
			}
			if conn.Usable() {
				t.Error("usable before the body was closed")
			}
			equal(t, "status", resp.StatusCode, test.status)
			if got := drain(t, resp); got != test.body {
				t.Errorf("body: got %.99q, want %.99q", got, test.body)
			}
			equal(t, "usable", conn.Usable(), test.usable)
		})
	}
}

// An invalid answer is an error, and no other request can follow.
func TestHTTP1_InvalidAnswerIsError(t *testing.T) {
	t.Parallel()
	const (
		closed    = "the connection was closed before an answer was complete"
		malformed = "malformed"
	)
	for name, test := range map[string]struct {
		answer string
		want   string
	}{
		"nothing":            {"", closed},
		"no end":             {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", closed},
		"part of a line":     {"HTTP/1", malformed},
		"interim only":       {"HTTP/1.1 100 Continue\r\n\r\n", closed},
		"too many interim":   {strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", maxHeader/25) + ready, "the header of the answer is too long"},
		"another protocol":   {"SSH-2.0-OpenSSH_9.9\r\n", malformed},
		"HTTP/2":             {"\x00\x00\x12\x04\x00\x00\x00\x00\x00\r\n", malformed},
		"TLS alert":          {"\x15\x03\x01\x00\x02\x02\x16\n", malformed},
		"no status":          {"HTTP/1.1 ok\r\n\r\n", malformed},
		"no version":         {"HTTP/x 200 OK\r\n\r\n", malformed},
		"no name of a field": {"HTTP/1.1 200 OK\r\n: x\r\n\r\n", malformed},
		"negative length":    {"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nready", "Content-Length"},
		"two lengths":        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 4\r\n\r\nready", "Content-Length"},
		"unknown coding":     {"HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\n\r\nready", "transfer encoding"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(c *client) {
				c.request()
				c.send(test.answer)
				c.CloseWrite() // closing one half is enough
				c.gone()
			})
			conn := dial(t, s.addr)
			defer conn.Close()
			resp, err := conn.RoundTrip(request(t, http.MethodGet, ""))
			if err == nil {
				t.Fatalf("an answer of status %d", resp.StatusCode)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want %q", err, test.want)
			}
			equal(t, "usable", conn.Usable(), false)
		})
	}
}

// An incomplete body is an error when it is read, and no other request can follow.
func TestHTTP1_IncompleteBodyIsError(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"length":     "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nready",
		"chunk":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nready",
		"last chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nready\r\n",
		"trailer":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nready\r\n0\r\n",
		"bad chunk":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nreadyx\r\n0\r\n\r\n",
		"bad length": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfive\r\nready\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(c *client) {
				c.request()
				c.send(answer)
				c.CloseWrite()
				c.gone() // and the client closes its half
			})
			conn := dial(t, s.addr)
			resp, err := conn.RoundTrip(request(t, http.MethodGet, ""))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("a whole body: %q", got)
			}
			resp.Body.Close()
			equal(t, "usable", conn.Usable(), false)
		})
	}
}

// A connection closes if its answer is not read to its end.
func TestHTTP1_UnreadBodyClosesConnection(t *testing.T) {
	t.Parallel()
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nready\r\n0\r\n\r\n"
	for name, test := range map[string]struct {
		answer string
		read   int64
		usable bool
	}{
		"nothing read":        {ready, 0, false},
		"half":                {ready, 3, false},
		"all":                 {ready, 5, true},
		"half of a chunk":     {chunked, 3, false},
		"chunks to their end": {chunked, 6, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			over := make(chan struct{})
			s := serve(t, func(c *client) {
				c.request()
				c.send(test.answer)
				c.gone()
				close(over)
			})
			conn := dial(t, s.addr)
			defer conn.Close()
			resp, err := conn.RoundTrip(request(t, http.MethodGet, ""))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, test.read)); err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			equal(t, "usable", conn.Usable(), test.usable)
			if !test.usable {
				wait(t, over) // the server sees the end
			}
		})
	}
}

// A closed body returns nothing any more, whatever its buffer is used for by then, and
// can be closed again.
func TestHTTP1_ClosedBodyGivesNothing(t *testing.T) {
	t.Parallel()
	s := serve(t, answering(ready))
	conn := dial(t, s.addr)
	defer conn.Close()
	first, err := conn.RoundTrip(request(t, http.MethodGet, ""))
	if err != nil {
		t.Fatal(err)
	}
	drain(t, first)
	second, err := conn.RoundTrip(request(t, http.MethodGet, ""))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := first.Body.Read(make([]byte, 9)); n != 0 || !errors.Is(err, http.ErrBodyReadAfterClose) {
		t.Errorf("Read after Close: got %d, %v, want %v", n, err, http.ErrBodyReadAfterClose)
	}
	if err := first.Body.Close(); err != nil {
		t.Errorf("Close after Close: %v", err)
	}
	equal(t, "usable while the next answer is read", conn.Usable(), false)
	equal(t, "next body", drain(t, second), "ready")
	equal(t, "usable", conn.Usable(), true)
}

// A connection that the other side closed, or sent something on that no request asked
// for, is not usable. An idle one is.
func TestHTTP1_UsableOnlyWhileIdle(t *testing.T) {
	t.Parallel()
	for name, then := range map[string]func(c *client){
		"closes":       func(c *client) { c.Close() },
		"closes half":  func(c *client) { c.CloseWrite() },
		"resets":       func(c *client) { c.SetLinger(0); c.Close() },
		"sends a byte": func(c *client) { c.send("\n") },
		"sends more":   func(c *client) { c.send("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"); c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := make(chan struct{})
			s := serve(t, func(c *client) {
				c.request()
				c.send(ready)
				<-begin
				then(c)
				c.gone()
			})
			conn := dial(t, s.addr)
			defer conn.Close()
			get(t, conn)
			equal(t, "usable before", conn.Usable(), true)
			close(begin)
			if !eventually(func() bool { return !conn.Usable() }) {
				t.Error("still usable")
			}
		})
	}
	t.Run("closed here", func(t *testing.T) {
		t.Parallel()
		conn := dial(t, serve(t, answering(ready)).addr)
		get(t, conn)
		conn.Close()
		equal(t, "usable", conn.Usable(), false)
	})
	t.Run("a past deadline", func(t *testing.T) {
		t.Parallel()
		conn := dial(t, serve(t, answering(ready)).addr)
		defer conn.Close()
		get(t, conn)
		conn.Conn.SetReadDeadline(time.Now().Add(-time.Second)) // as connections with timeouts of their own do
		equal(t, "usable", conn.Usable(), true)
		equal(t, "next body", get(t, conn), "ready")
	})
}

// A request with Close set ends its connection.
func TestHTTP1_RequestWithCloseEndsConnection(t *testing.T) {
	t.Parallel()
	conn := dial(t, serve(t, answering(ready)).addr)
	defer conn.Close()
	req := request(t, http.MethodGet, "")
	req.Close = true
	fetch(t, conn, req)
	equal(t, "usable", conn.Usable(), false)
}

// The request is sent as it was given.
func TestHTTP1_RequestIsSentAsGiven(t *testing.T) {
	t.Parallel()
	seen := make(chan *http.Request, 1)
	s := serve(t, func(c *client) {
		req, body := c.request()
		req.Body = io.NopCloser(strings.NewReader(body))
		seen <- req
		c.send(ready)
		c.gone()
	})
	conn := dial(t, s.addr)
	defer conn.Close()
	req := request(t, http.MethodPut, "are you there?")
	req.URL.RawQuery = "a=b&c"
	req.Host = "www.example.com"
	req.Header.Set("X-Probe", "1")
	req.Header.Set("User-Agent", "tester")
	fetch(t, conn, req)
	got := wait(t, seen)
	body, _ := io.ReadAll(got.Body)
	equal(t, "method", got.Method, http.MethodPut)
	equal(t, "uri", got.RequestURI, "/healthz?a=b&c")
	equal(t, "host", got.Host, "www.example.com")
	equal(t, "field", got.Header.Get("X-Probe"), "1")
	equal(t, "user agent", got.Header.Get("User-Agent"), "tester")
	equal(t, "length", got.ContentLength, int64(len(body)))
	equal(t, "body", string(body), "are you there?")
	equal(t, "closes", got.Close, false)
}

// counted is a connection that counts what is read from it.
type counted struct {
	net.Conn
	read *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// The header of an answer, with those of interim ones, has a limit, and no more than
// that is read of a longer one. The error says so.
func TestHTTP1_HeaderIsLimited(t *testing.T) {
	t.Parallel()
	const limit = 10_000
	// sized returns a header of this many bytes, and the body
	sized := func(bytes int, body string) string {
		start, end := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nA: ", len(body)), "\r\n\r\n"
		return start + strings.Repeat("x", bytes-len(start)-len(end)) + end + body
	}
	for name, test := range map[string]struct {
		answer string
		repeat string // without end
		want   error
	}{
		"fits":              {answer: sized(limit, "ready")},
		"fits, long body":   {answer: sized(limit, strings.Repeat("y", 3*limit))},
		"fits, no body":     {answer: sized(limit, "")},
		"one byte too many": {answer: sized(limit+1, "ready"), want: errLongHeader},
		"endless fields":    {answer: "HTTP/1.1 200 OK\r\n", repeat: "A: b\r\n", want: errLongHeader},
		"endless field":     {answer: "HTTP/1.1 200 OK\r\nA: ", repeat: "bbbbbbbb", want: errLongHeader},
		"endless name":      {answer: "HTTP/1.1 200 OK\r\n", repeat: "AAAAAAAA", want: errLongHeader},
		"endless line":      {answer: "HTTP/1.1 200 ", repeat: "OOOOOOOO", want: errLongHeader},
		"endless lines":     {repeat: "HTTP/1.1 200 OK", want: errLongHeader},
		"long interim ones": {repeat: "HTTP/1.1 103 Early Hints\r\nA: " + strings.Repeat("b", limit/3) + "\r\n\r\n", want: errLongHeader},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(c *client) {
				c.request()
				err := c.send(test.answer)
				for err == nil && test.repeat != "" {
					err = c.send(test.repeat)
				}
				c.gone()
			})
			conn := dial(t, s.addr)
			defer conn.Close()
			var read atomic.Int64
			conn.Conn, conn.MaxHeader = counted{conn.Conn, &read}, limit
			resp, err := conn.RoundTrip(request(t, http.MethodGet, ""))
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if read.Load() > limit {
				t.Errorf("%d bytes were read, want %d at most", read.Load(), limit)
			}
			if err == nil {
				drain(t, resp)
				equal(t, "usable", conn.expired, false)
			}
		})
	}
}

// A body without an end can be read in part. Closing it ends the connection and
// reads no more of it.
func TestHTTP1_EndlessBodyCanBeClosed(t *testing.T) {
	t.Parallel()
	const part = 1 << 20
	for name, test := range map[string]struct{ header, repeat string }{
		"length":  {"HTTP/1.1 200 OK\r\nContent-Length: 9000000000000000000\r\n\r\n", strings.Repeat("x", 1024)},
		"closing": {"HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("x", 1024)},
		"chunked": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "400\r\n" + strings.Repeat("x", 1024) + "\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(c *client) {
				c.request()
				err := c.send(test.header)
				for err == nil {
					err = c.send(test.repeat)
				}
			})
			conn := dial(t, s.addr)
			defer conn.Close()
			resp, err := conn.RoundTrip(request(t, http.MethodGet, ""))
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, io.LimitReader(resp.Body, part))
			if n != part || err != nil {
				t.Errorf("got %d bytes, %v, want %d", n, err, part)
			}
			resp.Body.Close()
			equal(t, "usable", conn.Usable(), false)
		})
	}
}

// If an upstream rejects a request before it has read all of it, the answer counts,
// although the rest could not be sent. The connection is closed.
func TestHTTP1_AnswerBeforeEndOfRequestCounts(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere a reset may discard what was received before it")
	}
	s := serve(t, func(c *client) {
		if _, err := http.ReadRequest(c.reader); err != nil {
			t.Error(err)
		}
		c.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nready")
	})
	conn := dial(t, s.addr)
	defer conn.Close()
	resp, err := conn.RoundTrip(request(t, http.MethodPost, strings.Repeat("x", 32<<20)))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "status", resp.StatusCode, http.StatusRequestEntityTooLarge)
	equal(t, "body", drain(t, resp), "ready")
	equal(t, "over", conn.expired, true) // only half of the request was sent
}

// A request that cannot be sent, and that is not answered, fails with the reason why it
// cannot be sent.
func TestHTTP1_SendErrorIsReturned(t *testing.T) {
	t.Parallel()
	conn := dial(t, serve(t, (*client).gone).addr)
	conn.Close()
	_, err := conn.RoundTrip(request(t, http.MethodGet, ""))
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want %v", err, net.ErrClosed)
	}
	equal(t, "usable", conn.Usable(), false)
}

// HeaderTimeout is the time from the end of the request to the end of the header:
// neither the request nor the body counts. No goroutine stays.
func TestHTTP1_HeaderTimeoutCoversHeaderOnly(t *testing.T) {
	t.Parallel()
	const limit = 10 * time.Second
	for name, test := range map[string]struct {
		request time.Duration // until the server reads it
		interim time.Duration // until an interim answer, if any
		header  time.Duration
		body    time.Duration
		late    bool
	}{
		"in time":         {header: limit - 1},
		"late":            {header: limit + 1, late: true},
		"never":           {header: 1000 * limit, late: true},
		"slow request":    {request: 2 * limit, header: limit - 1},
		"slow body":       {header: limit - 1, body: 3 * limit},
		"interim":         {interim: limit - 1, header: 0},
		"interim is none": {interim: limit - 1, header: 2, late: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				here, there := net.Pipe()
				var serving sync.WaitGroup
				defer serving.Wait()
				serving.Go(func() {
					defer there.Close()
					c := client{server: new(server), reader: bufio.NewReader(there)}
					time.Sleep(test.request)
					c.request()
					if test.interim > 0 {
						time.Sleep(test.interim)
						io.WriteString(there, "HTTP/1.1 103 Early Hints\r\n\r\n")
					}
					time.Sleep(test.header)
					io.WriteString(there, ready[:len(ready)-5])
					time.Sleep(test.body)
					io.WriteString(there, ready[len(ready)-5:])
				})
				conn := &HTTP1{Conn: here, MaxHeader: maxHeader, HeaderTimeout: limit}
				defer conn.Close()
				start := time.Now()
				resp, err := conn.RoundTrip(request(t, http.MethodGet, ""))
				if !test.late {
					if err != nil {
						t.Fatal(err)
					}
					equal(t, "body", drain(t, resp), "ready")
					return
				}
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("got %v, want %v", err, os.ErrDeadlineExceeded)
				}
				equal(t, "time", time.Since(start), limit)
			})
		})
	}
}

// The timeout of one answer does not count for the next.
func TestHTTP1_HeaderTimeoutIsPerRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			c := client{server: new(server), reader: bufio.NewReader(there)}
			for {
				if req, _ := c.request(); req == nil {
					return
				}
				time.Sleep(6 * time.Second)
				io.WriteString(there, ready)
			}
		}()
		conn := &HTTP1{Conn: here, MaxHeader: maxHeader, HeaderTimeout: 10 * time.Second}
		defer conn.Close()
		for range 3 {
			equal(t, "body", get(t, conn), "ready")
			time.Sleep(time.Minute)
		}
	})
}

// Between requests there is no goroutine, and no buffer is held.
func TestHTTP1_IdleHoldsNoGoroutineOrBuffer(t *testing.T) {
	t.Parallel()
	// the bubble ends when its last goroutine does, which cannot be one that reads
	// from a connection that stays open
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			c := client{server: new(server), reader: bufio.NewReader(there)}
			c.request()
			io.WriteString(there, ready)
		}()
		conn := &HTTP1{Conn: here, MaxHeader: maxHeader}
		resp, err := conn.RoundTrip(request(t, http.MethodGet, ""))
		if err != nil {
			t.Fatal(err)
		}
		<-served
		drain(t, resp)
		if held := resp.Body.(*body).buffer; held != nil {
			t.Error("the buffer is held after Close")
		}
	})
}

// An answer that comes before the request is read: some servers send as soon as they are
// connected to.
func TestHTTP1_AnswerBeforeTheRequestIsRead(t *testing.T) {
	t.Parallel()
	for _, early := range []bool{false, true} {
		sent := make(chan struct{})
		s := serve(t, func(c *client) {
			c.send(ready)
			close(sent)
			c.gone()
		})
		conn := dial(t, s.addr)
		if early {
			wait(t, sent)
		}
		stop := time.AfterFunc(grace, func() { conn.Close() }).Stop
		equal(t, "body", get(t, conn), "ready")
		stop()
		conn.Close()
	}
}

// The other side may close its half just before the next request is sent, and go on
// reading. The request fails without a wait.
func TestHTTP1_ClosedJustBeforeTheRequest(t *testing.T) {
	t.Parallel()
	begin, closed := make(chan struct{}), make(chan struct{})
	s := serve(t, func(c *client) {
		c.request()
		c.send(ready)
		<-begin
		c.CloseWrite()
		close(closed)
		c.gone()
	})
	conn := dial(t, s.addr)
	defer conn.Close()
	equal(t, "body", get(t, conn), "ready")
	equal(t, "usable", conn.Usable(), true)
	close(begin)
	wait(t, closed)
	defer time.AfterFunc(grace, func() { conn.Close() }).Stop()
	began := time.Now()
	if resp, err := conn.RoundTrip(request(t, http.MethodGet, "")); err == nil {
		t.Errorf("got %v, want an error", resp)
	}
	if took := time.Since(began); took > grace/2 {
		t.Errorf("it took %v, want no wait", took)
	}
}

// timed is a connection that sets a deadline before each Read, as those of Caddy with
// read_timeout do.
type timed struct{ *net.TCPConn }

func (c timed) Read(p []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(grace))
	return c.TCPConn.Read(p)
}

// A connection with timeouts of its own is usable after these have passed, and finding
// that out does not wait for them.
func TestHTTP1_ConnectionWithDeadlinesOfItsOwn(t *testing.T) {
	t.Parallel()
	conn := dial(t, serve(t, answering(ready)).addr)
	defer conn.Close()
	conn.Conn = timed{conn.Conn.(*net.TCPConn)}
	for range 3 {
		equal(t, "body", get(t, conn), "ready")
		conn.Conn.SetReadDeadline(time.Now().Add(-time.Second))
		began := time.Now()
		equal(t, "usable", conn.Usable(), true)
		if took := time.Since(began); took > grace/2 {
			t.Errorf("it took %s", took)
		}
	}
}

// benchmarked answers requests without a body at little cost, so that what is
// measured is the client.
func benchmarked(b *testing.B) string {
	return serve(b, func(c *client) {
		request := make([]byte, 4<<10)
		for {
			if _, err := c.TCPConn.Read(request); err != nil || c.send(ready) != nil {
				return
			}
		}
	}).addr
}

func benchmark(b *testing.B, over http.RoundTripper) {
	b.ReportAllocs()
	req := request(b, http.MethodGet, "")
	for b.Loop() {
		resp, err := over.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
	}
}

// One request on a kept connection; to be compared with BenchmarkNetHTTP.
func BenchmarkHTTP1(b *testing.B) {
	benchmark(b, plain(b, benchmarked(b)))
}

// The same by net/http.
func BenchmarkNetHTTP(b *testing.B) {
	addr := benchmarked(b)
	t := &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		},
	}
	b.Cleanup(t.CloseIdleConnections)
	benchmark(b, t)
}
