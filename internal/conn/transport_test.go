// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A connection is used again for requests that can be sent twice. Any other request has
// one of its own and says so, as every request does without MaxAge.
func TestTransport_ReusesConnectionIfRepeatable(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		method string
		key    bool
		maxAge time.Duration
		conns  int64 // for three requests
	}{
		"GET":             {http.MethodGet, false, time.Hour, 1},
		"no method":       {"", false, time.Hour, 1},
		"HEAD":            {http.MethodHead, false, time.Hour, 1},
		"OPTIONS":         {http.MethodOptions, false, time.Hour, 1},
		"TRACE":           {http.MethodTrace, false, time.Hour, 1},
		"POST":            {http.MethodPost, false, time.Hour, 3},
		"PUT":             {http.MethodPut, false, time.Hour, 3},
		"another":         {"PROPFIND", false, time.Hour, 3},
		"POST with a key": {http.MethodPost, true, time.Hour, 1},
		"no age":          {http.MethodGet, false, 0, 3},
		"negative age":    {http.MethodGet, false, -1, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var closing atomic.Int64
			s := serve(t, func(c *client) {
				for {
					req, _ := c.request()
					if req == nil {
						return
					}
					if req.Close {
						closing.Add(1)
					}
					if req.Method == http.MethodHead {
						c.send(ready[:len(ready)-5])
					} else {
						c.send(ready)
					}
				}
			})
			transport := plain(t, s.addr)
			transport.MaxAge = test.maxAge
			for range 3 {
				req := request(t, test.method, "")
				if test.key {
					req.Header["Idempotency-Key"] = nil // counts, and is not sent
				}
				fetch(t, transport, req)
				equal(t, "the request was changed", req.Close, false)
			}
			equal(t, "connections", s.accepted.Load(), test.conns)
			equal(t, "requests that say close", closing.Load(), test.conns/3*3) // all or none
			if test.conns == 3 && !eventually(func() bool { return s.open.Load() == 0 }) {
				t.Error("a connection is kept")
			}
		})
	}
}

// If the server ends an idle connection, or sends on it, the next request uses a new
// one, gets its own answer, and has no error.
func TestTransport_ReconnectsAfterIdleConnectionEnded(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		idle   func(c *client) // after the first answer
		second func(c *client) // after the second request
	}{
		"closes":              {idle: func(c *client) { c.Close() }},
		"resets":              {idle: func(c *client) { c.SetLinger(0); c.Close() }},
		"closes half":         {idle: func(c *client) { c.CloseWrite() }},
		"sends 408":           {idle: func(c *client) { c.send("HTTP/1.1 408 Request Timeout\r\n\r\n"); c.Close() }},
		"sends another":       {idle: func(c *client) { c.send(ready) }},
		"closes on request":   {second: func(c *client) { c.Close() }},
		"resets on request":   {second: func(c *client) { c.SetLinger(0); c.Close() }},
		"breaks off":          {second: func(c *client) { c.send("HTTP/1.1 200 OK\r\nCont") }},
		"garbage for request": {second: func(c *client) { c.send("garbage\r\n") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := make(chan struct{})
			s := serve(t, func(c *client) {
				for n := 1; ; n++ {
					if c.nth == 1 && n == 2 && test.idle != nil {
						<-begin // so that the first answer was read
						test.idle(c)
						c.gone()
						return
					}
					if req, _ := c.request(); req == nil {
						return
					}
					if c.nth == 1 && n == 2 {
						test.second(c)
						return
					}
					c.send(named(c))
				}
			})
			transport := plain(t, s.addr)
			equal(t, "first", get(t, transport), "connection 1")
			close(begin)
			if test.idle != nil && !eventually(func() bool { return !idle(transport).Usable() }) {
				t.Fatal("the connection stays usable")
			}
			equal(t, "second", get(t, transport), "connection 2")
			equal(t, "third", get(t, transport), "connection 2")
			equal(t, "connections", s.accepted.Load(), 2)
		})
	}
}

// A request is sent again once, and only if a kept connection failed it. Its body is
// sent again, too; a request with a body that is gone is not.
func TestTransport_SendsAgainOnceAfterKeptConnectionFailed(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		first    bool // a request that is answered comes before
		method   string
		body     string
		once     bool // the body cannot be read again
		dies     func(nth int64) bool
		requests []string // bodies that the server sees
		fails    bool
	}{
		"kept":           {first: true, method: "GET", dies: only(1), requests: []string{"", ""}},
		"again and over": {first: true, method: "GET", dies: all, requests: []string{"", ""}, fails: true},
		"new":            {method: "GET", dies: all, requests: []string{""}, fails: true},
		"POST":           {first: true, method: "POST", body: "x", dies: all, requests: []string{"x"}, fails: true},
		"key":            {first: true, method: "KEY", body: "all of it", dies: only(1), requests: []string{"all of it", "all of it"}},
		"GET, body":      {first: true, method: "GET", body: "all of it", dies: only(1), requests: []string{"all of it", "all of it"}},
		"body is gone":   {first: true, method: "KEY", body: "all of it", once: true, dies: only(1), requests: []string{"all of it"}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seen := make(chan string, 9)
			s := serve(t, func(c *client) {
				for {
					req, body := c.request()
					if req == nil {
						return
					}
					if req.Header.Get("X-First") == "" {
						seen <- body
						if test.dies(c.nth) {
							return
						}
					}
					c.send(ready)
				}
			})
			transport := plain(t, s.addr)
			if test.first {
				req := request(t, http.MethodGet, "")
				req.Header.Set("X-First", "1")
				fetch(t, transport, req)
			}
			req := request(t, test.method, test.body)
			if test.method == "KEY" {
				req.Method = http.MethodPost
				req.Header.Set("Idempotency-Key", "1")
			}
			if test.once {
				req.GetBody = nil
			}
			resp, err := transport.RoundTrip(req)
			equal(t, "fails", err != nil, test.fails)
			if err == nil {
				equal(t, "body", drain(t, resp), "ready")
			}
			var got []string
			for len(seen) > 0 {
				got = append(got, <-seen)
			}
			equal(t, "requests", strings.Join(got, "|"), strings.Join(test.requests, "|"))
			equal(t, "number of requests", len(got), len(test.requests))
		})
	}
}

func all(int64) bool { return true }

func only(nth int64) func(int64) bool { return func(n int64) bool { return n == nth } }

// A request ends with its context, with the error of the context, and its connection
// closes, even if the body is not closed.
func TestTransport_ContextEndsRequest(t *testing.T) {
	t.Parallel()
	trickle := func(first, then string) func(c *client) {
		return func(c *client) {
			ticker := time.NewTicker(time.Millisecond)
			defer ticker.Stop()
			for err := c.send(first); err == nil; err = c.send(then) {
				<-ticker.C
			}
		}
	}
	for name, test := range map[string]struct {
		answer func(c *client)
		body   bool // it ends while the body is read
	}{
		"silence":       {answer: (*client).gone},
		"half a header": {answer: func(c *client) { c.send("HTTP/1.1 200"); c.gone() }},
		"slow header":   {answer: trickle("HTTP/1.1 200 OK\r\nA: ", "b")},
		"half a body":   {answer: func(c *client) { c.send(ready[:len(ready)-1]); c.gone() }, body: true},
		"slow body":     {answer: trickle("HTTP/1.1 200 OK\r\n\r\n", "b"), body: true},
		"slow chunks":   {answer: trickle("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nb\r\n"), body: true},
		"slow trailer":  {answer: trickle("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "A"), body: true},
	} {
		for _, kept := range []bool{false, true} {
			for _, cancels := range []bool{false, true} {
				t.Run(name+map[bool]string{true: ", kept"}[kept]+map[bool]string{true: ", canceled"}[cancels], func(t *testing.T) {
					t.Parallel()
					asked := make(chan struct{}, 2) // a kept connection that is silent: the request is sent again
					over := make(chan struct{}, 2)
					s := serve(t, func(c *client) {
						for {
							req, _ := c.request()
							if req == nil {
								return
							}
							if req.Header.Get("X-First") != "" {
								c.send(ready)
								continue
							}
							asked <- struct{}{}
							test.answer(c)
							over <- struct{}{}
							return
						}
					})
					transport := plain(t, s.addr)
					if kept {
						req := request(t, http.MethodGet, "")
						req.Header.Set("X-First", "1")
						fetch(t, transport, req)
					}
					ctx, cancel := context.WithTimeout(t.Context(), short)
					want := context.DeadlineExceeded
					if cancels {
						cancel()
						ctx, cancel = context.WithCancel(t.Context())
						want = context.Canceled
						go func() { <-asked; cancel() }()
					}
					defer cancel()
					began := time.Now()
					resp, err := transport.RoundTrip(request(t, http.MethodGet, "").WithContext(ctx))
					if err == nil {
						_, err = io.Copy(io.Discard, resp.Body) // and the body is not closed
						if !test.body {
							t.Error("an answer")
						}
					}
					if !errors.Is(err, want) {
						t.Errorf("got %v, want %v", err, want)
					}
					if took := time.Since(began); took > grace {
						t.Errorf("took %s", took)
					}
					wait(t, over)
				})
			}
		}
	}
}

// The connection of a request whose body is not read or closed ends with the
// context, and no other request is sent over it.
func TestTransport_ContextEndsUnclosedAnswer(t *testing.T) {
	t.Parallel()
	s := serve(t, func(c *client) {
		c.request()
		c.send(named(c))
		c.gone()
	})
	transport := plain(t, s.addr)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := transport.RoundTrip(request(t, http.MethodGet, "").WithContext(ctx)); err != nil {
		t.Fatal(err)
	}
	equal(t, "open", s.open.Load(), 1)
	cancel()
	if !eventually(func() bool { return s.open.Load() == 0 }) {
		t.Error("the connection stays open")
	}
	equal(t, "next", get(t, transport), "connection 2")
}

// A request that fails leaves no connection open, even if the server does.
func TestTransport_FailedRequestLeavesNoConnection(t *testing.T) {
	t.Parallel()
	s := serve(t, func(c *client) {
		c.request()
		c.send("garbage\r\n")
		c.gone()
	})
	for _, age := range []time.Duration{0, time.Hour} {
		transport := plain(t, s.addr)
		transport.MaxAge = age
		if _, err := transport.RoundTrip(request(t, http.MethodGet, "")); err == nil {
			t.Errorf("age %s: an answer", age)
		}
		if !eventually(func() bool { return s.open.Load() == 0 }) {
			t.Errorf("age %s: the connection stays open", age)
		}
	}
}

// A request fails with the error of Open.
func TestTransport_ErrorOfOpenIsReturned(t *testing.T) {
	t.Parallel()
	want := errors.New("no way")
	for _, age := range []time.Duration{0, time.Hour} {
		transport := &Transport{MaxAge: age, Open: func(context.Context) (Conn, error) { return nil, want }}
		if _, err := transport.RoundTrip(request(t, http.MethodGet, "")); !errors.Is(err, want) {
			t.Errorf("age %s: got %v, want %v", age, err, want)
		}
	}
}

// fake is a connection with given answers.
type fake struct {
	requests int
	closed   atomic.Bool
}

func (f *fake) RoundTrip(*http.Request) (*http.Response, error) {
	if f.closed.Load() {
		return nil, net.ErrClosed
	}
	f.requests++
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("ready"))}, nil
}

func (f *fake) Usable() bool { return !f.closed.Load() }

func (f *fake) Close() error {
	f.closed.Store(true)
	return nil
}

// fakes is a transport of fake connections, and those that it has opened.
type fakes struct {
	Transport
	mu    sync.Mutex
	conns []*fake
}

func newFakes() *fakes {
	f := new(fakes)
	f.MaxAge = time.Minute
	f.Open = func(context.Context) (Conn, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.conns = append(f.conns, new(fake))
		return f.conns[len(f.conns)-1], nil
	}
	return f
}

// state shows the connections: a letter for each one that is open.
func (f *fakes) state() string {
	synctest.Wait()
	var s strings.Builder
	for i, conn := range f.conns {
		if conn.closed.Load() {
			s.WriteByte('-')
		} else {
			s.WriteByte("abcdefgh"[i])
		}
	}
	return s.String()
}

// begin sends a request. The caller closes its body.
func (f *fakes) begin(tb testing.TB) io.Closer {
	tb.Helper()
	resp, err := f.RoundTrip(request(tb, http.MethodGet, ""))
	if err != nil {
		tb.Fatal(err)
	}
	return resp.Body
}

// One connection is kept, until it is MaxAge old, Renew or Close. None of these ends a
// request in flight.
func TestTransport_KeepsOneConnection(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(t *testing.T, f *fakes){
		"expires idle": func(t *testing.T, f *fakes) {
			f.begin(t).Close()
			time.Sleep(time.Minute - 1)
			equal(t, "before", f.state(), "a")
			time.Sleep(time.Nanosecond)
			equal(t, "then", f.state(), "-")
			f.begin(t).Close()
			equal(t, "next", f.state(), "-b")
		},
		"age counts from the start": func(t *testing.T, f *fakes) {
			for range 59 {
				f.begin(t).Close()
				time.Sleep(time.Second)
			}
			f.begin(t).Close()
			equal(t, "before", f.state(), "a")
			equal(t, "requests", f.conns[0].requests, 60)
			time.Sleep(time.Second)
			equal(t, "then", f.state(), "-")
		},
		"expires in use": func(t *testing.T, f *fakes) {
			body := f.begin(t)
			time.Sleep(time.Hour)
			equal(t, "in use", f.state(), "a")
			body.Close()
			equal(t, "after", f.state(), "-")
		},
		"overlapping": func(t *testing.T, f *fakes) {
			first, second, third := f.begin(t), f.begin(t), f.begin(t)
			equal(t, "in use", f.state(), "abc")
			second.Close()
			equal(t, "one is done", f.state(), "abc")
			first.Close()
			third.Close()
			equal(t, "all are done", f.state(), "-b-")
			f.begin(t).Close()
			equal(t, "next", f.state(), "-b-")
			time.Sleep(time.Minute)
			equal(t, "expired", f.state(), "---")
		},
		"another one expires": func(t *testing.T, f *fakes) {
			first := f.begin(t)
			time.Sleep(30 * time.Second)
			f.begin(t).Close()
			time.Sleep(30 * time.Second)
			equal(t, "first is too old", f.state(), "ab")
			first.Close()
			equal(t, "first is done", f.state(), "-b")
		},
		"closed twice": func(t *testing.T, f *fakes) {
			body := f.begin(t)
			body.Close()
			body.Close()
			equal(t, "after", f.state(), "a")
			second := f.begin(t)
			body.Close()
			f.begin(t).Close()
			equal(t, "one is in use", f.state(), "ab")
			second.Close()
		},
		"context ends afterwards": func(t *testing.T, f *fakes) {
			ctx, cancel := context.WithCancel(t.Context())
			resp, err := f.RoundTrip(request(t, http.MethodGet, "").WithContext(ctx))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			cancel()
			equal(t, "after", f.state(), "a")
		},
		"renew": func(t *testing.T, f *fakes) {
			f.Renew() // nothing is kept
			f.begin(t).Close()
			f.Renew()
			equal(t, "after", f.state(), "-")
			f.begin(t).Close()
			equal(t, "next", f.state(), "-b")
		},
		"renew in use": func(t *testing.T, f *fakes) {
			body := f.begin(t)
			f.Renew()
			equal(t, "in use", f.state(), "a")
			body.Close()
		},
		"close": func(t *testing.T, f *fakes) {
			f.begin(t).Close()
			f.Close()
			equal(t, "after", f.state(), "-")
			f.Close()
		},
		"close in use": func(t *testing.T, f *fakes) {
			body := f.begin(t)
			f.Close()
			equal(t, "in use", f.state(), "a")
			body.Close()
			equal(t, "done", f.state(), "-")
			second := f.begin(t)
			equal(t, "next", f.state(), "-b")
			second.Close()
			equal(t, "next is done", f.state(), "--")
		},
		"not usable": func(t *testing.T, f *fakes) {
			f.begin(t).Close()
			f.conns[0].closed.Store(true)
			f.begin(t).Close()
			equal(t, "next", f.state(), "-b")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFakes()
				test(t, f)
				f.Close()
				if state := f.state(); strings.Trim(state, "-") != "" {
					t.Errorf("left open: %s", state)
				}
			})
		})
	}
}

// Concurrent requests, with Renew and Close between them, all have their own answers,
// and leave no connection open.
func TestTransport_ConcurrentRequests(t *testing.T) {
	t.Parallel()
	s := serve(t, answering(ready))
	transport := plain(t, s.addr)
	var requests sync.WaitGroup
	for i := range 4 {
		requests.Go(func() {
			for n := range 50 {
				resp, err := transport.RoundTrip(request(t, http.MethodGet, ""))
				if err != nil {
					t.Errorf("no answer: %v", err)
					return
				}
				equal(t, "body", drain(t, resp), "ready")
				if n%10 == i {
					transport.Renew()
				}
			}
		})
	}
	requests.Wait()
	transport.Close()
	if !eventually(func() bool { return s.open.Load() == 0 }) {
		t.Error("connections are open")
	}
}

// tracked is a listener that records its connections.
type tracked struct {
	net.Listener
	mu       sync.Mutex
	accepted int
	open     map[net.Conn]bool
}

type trackedConn struct {
	net.Conn
	of *tracked
}

func (l *tracked) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepted++
	conn = &trackedConn{conn, l}
	l.open[conn] = true
	return conn, nil
}

func (c *trackedConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// count returns how many connections there were, and how many are open.
func (l *tracked) count() (accepted, open int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accepted, len(l.open)
}

// drop closes all connections.
func (l *tracked) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn := range l.open {
		_ = conn.(*trackedConn).Conn.Close()
	}
}

// Connections of net/http are kept, left and ended as HTTP1 is, with every protocol.
func TestStandard_BehavesAsHTTP1(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		scheme, proto string
		set           func(p *http.Protocols)
	}{
		"HTTP/1.1":          {"http", "HTTP/1.1", func(p *http.Protocols) { p.SetHTTP1(true) }},
		"HTTP/1.1 over TLS": {"https", "HTTP/1.1", func(p *http.Protocols) { p.SetHTTP1(true) }},
		"HTTP/2 over TLS":   {"https", "HTTP/2.0", func(p *http.Protocols) { p.SetHTTP2(true) }},
		"h2c":               {"http", "HTTP/2.0", func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stuck := make(chan struct{})
			backend := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/stuck" {
					http.NewResponseController(w).Flush()
					<-r.Context().Done()
					close(stuck)
					panic(http.ErrAbortHandler) // otherwise the client could still read the end of the answer
				}
				io.WriteString(w, r.Proto)
			}))
			backend.Config.ErrorLog = log.New(io.Discard, "", 0)
			listener := &tracked{Listener: backend.Listener, open: make(map[net.Conn]bool)}
			backend.Listener = listener
			backend.Config.Protocols = new(http.Protocols)
			test.set(backend.Config.Protocols)
			base := &http.Transport{Protocols: backend.Config.Protocols, DisableCompression: true}
			if test.scheme == "https" {
				backend.EnableHTTP2 = test.proto == "HTTP/2.0"
				backend.StartTLS()
				base.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
				base.TLSClientConfig.RootCAs.AddCert(backend.Certificate())
			} else {
				backend.Start()
			}
			t.Cleanup(backend.Close)
			addr := listener.Addr().String()
			transport := &Transport{MaxAge: time.Hour, Open: func(ctx context.Context) (Conn, error) {
				conn, err := base.NewClientConn(ctx, test.scheme, addr)
				if err != nil {
					return nil, err
				}
				return Standard{conn}, nil
			}}
			t.Cleanup(transport.Close)
			send := func(path string, ctx context.Context) *http.Response {
				t.Helper()
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, test.scheme+"://"+addr+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := transport.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				return resp
			}
			ask := func(what string, conns int) {
				t.Helper()
				if got := drain(t, send("/", t.Context())); got != test.proto {
					t.Errorf("%s: got %q, want %q", what, got, test.proto)
				}
				accepted, _ := listener.count()
				equal(t, what+": connections", accepted, conns)
			}
			gone := func(what string) {
				t.Helper()
				if !eventually(func() bool { _, open := listener.count(); return open == 0 }) {
					t.Errorf("%s: a connection stays open", what)
				}
			}
			ask("first", 1)
			ask("second", 1)
			ask("third", 1)
			listener.drop()
			ask("dropped", 2)
			listener.drop()
			if !eventually(func() bool { return !idle(transport).Usable() }) {
				t.Error("usable, though the server has closed it")
			}
			ask("dropped long ago", 3)
			transport.Renew()
			gone("renewed")
			ask("after Renew", 4)

			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			resp := send("/stuck", ctx)
			cancel()
			if _, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want %v", err, context.Canceled)
			}
			wait(t, stuck)
			gone("canceled") // and the body was not closed
			ask("after cancel", 5)

			transport.Close()
			gone("closed")
			ask("after Close", 6)
			gone("its own")
			transport.MaxAge = 0
			ask("no age", 7)
			gone("no age")
		})
	}
}
