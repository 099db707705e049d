// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// script is a connection with answers that a test sets, one after the other.
type script struct {
	answer func(nth int, closed <-chan struct{}) (status int, err error)
	asked  int
	closed chan struct{}
	over   atomic.Bool
}

func (s *script) RoundTrip(*http.Request) (*http.Response, error) {
	s.asked++
	status, err := s.answer(s.asked, s.closed)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: status, Body: http.NoBody}, nil
}

func (s *script) Usable() bool { return !s.over.Load() }

func (s *script) Close() error {
	if !s.over.Swap(true) {
		close(s.closed)
	}
	return nil
}

// silent answers nothing until the connection is closed.
func silent(closed <-chan struct{}) (int, error) {
	<-closed
	return 0, net.ErrClosed
}

// ask sends a GET with a timeout of a second, and returns the status and how long it
// took.
func ask(t *testing.T, over http.RoundTripper) (status int, took time.Duration, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	began := time.Now()
	resp, err := over.RoundTrip(request(t, http.MethodGet, "").WithContext(ctx))
	if err == nil {
		status = resp.StatusCode
		resp.Body.Close()
	}
	return status, time.Since(began), err
}

// If a kept connection is silent, is reset, is closed, or answers that it was idle for
// too long, the request is sent again at once over a new one. Silence takes half of the
// time at most.
func TestTransport_FailureOfKeptConnectionIsAskedAnew(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		second func(closed <-chan struct{}) (int, error) // answer on the kept connection
		took   time.Duration
	}{
		"silence":    {silent, time.Second / 2},
		"reset":      {func(<-chan struct{}) (int, error) { return 0, errors.New("reset") }, 0},
		"status 408": {func(<-chan struct{}) (int, error) { return http.StatusRequestTimeout, nil }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				opened := 0
				transport := &Transport{MaxAge: time.Minute}
				transport.Open = func(context.Context) (Conn, error) {
					opened++
					first := opened == 1
					return &script{closed: make(chan struct{}), answer: func(nth int, closed <-chan struct{}) (int, error) {
						if first && nth == 2 {
							return test.second(closed)
						}
						return http.StatusOK, nil
					}}, nil
				}
				defer transport.Close()
				for i, took := range []time.Duration{0, test.took, 0} {
					status, got, err := ask(t, transport)
					if err != nil || status != http.StatusOK {
						t.Errorf("request %d: got status %d, %v, want 200", i+1, status, err)
					}
					equal(t, fmt.Sprintf("time of request %d", i+1), got, took)
				}
				equal(t, "connections", opened, 2)
			})
		})
	}
}

// The answer on the new connection counts, also a status 408, and so does silence.
func TestTransport_NewConnectionDecides(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		transport := &Transport{MaxAge: time.Minute, GaveUp: func(error) { t.Error("gave up, though new connections are no better") }}
		failing := silent
		asked := 0
		transport.Open = func(context.Context) (Conn, error) {
			return &script{closed: make(chan struct{}), answer: func(_ int, closed <-chan struct{}) (int, error) {
				if asked++; asked == 1 {
					return http.StatusOK, nil
				}
				return failing(closed)
			}}, nil
		}
		defer transport.Close()
		ask(t, transport)
		_, took, err := ask(t, transport)
		if !errors.Is(err, context.DeadlineExceeded) || took != time.Second {
			t.Errorf("got %v after %s, want the deadline", err, took)
		}
		equal(t, "asked", asked, 3)
		failing = func(<-chan struct{}) (int, error) { return http.StatusRequestTimeout, nil }
		status, _, err := ask(t, transport)
		equal(t, "status on a new connection", status, http.StatusRequestTimeout)
		equal(t, "error", err, nil)
	})
}

// If two requests in a row needed a new connection, no connection is kept from then on.
// One such request, with an answer on a kept connection between, changes nothing.
func TestTransport_KeepsNoMoreAfterTwoMisses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const good, bad = true, false
		var gaveUp []error
		transport := &Transport{MaxAge: time.Hour, GaveUp: func(err error) { gaveUp = append(gaveUp, err) }}
		kept := []bool{good, bad, good, bad, good, good, bad, bad} // how a kept connection answers
		opened := 0
		var open atomic.Int64
		transport.Open = func(context.Context) (Conn, error) {
			opened++
			open.Add(1)
			s := &script{closed: make(chan struct{})}
			s.answer = func(nth int, closed <-chan struct{}) (int, error) {
				if nth == 1 {
					return http.StatusOK, nil
				}
				ok := kept[0]
				kept = kept[1:]
				if !ok {
					return silent(closed)
				}
				return http.StatusOK, nil
			}
			go func() { <-s.closed; open.Add(-1) }()
			return s, nil
		}
		defer transport.Close()
		for range 9 {
			if _, _, err := ask(t, transport); err != nil {
				t.Fatal(err)
			}
			if len(kept) > 0 {
				equal(t, "gave up before", len(gaveUp), 0)
			}
		}
		if len(gaveUp) != 1 || !errors.Is(gaveUp[0], errSilent) {
			t.Errorf("gave up: got %v, want once, with the reason", gaveUp)
		}
		equal(t, "connections", opened, 5)
		for range 3 {
			transport.Renew()
			_, took, err := ask(t, transport)
			equal(t, "error", err, nil)
			equal(t, "time", took, 0)
			synctest.Wait()
			equal(t, "open connections between requests", open.Load(), 0)
		}
		equal(t, "connections", opened, 8)
		equal(t, "gave up", len(gaveUp), 1)
	})
}

// If an answer takes more than half of the time, a second one would come too late: no
// connection is kept, so that each request has all of the time.
func TestTransport_SlowAnswersHaveAllTheTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		opened := 0
		transport := &Transport{MaxAge: time.Minute}
		slow := 700 * time.Millisecond
		transport.Open = func(context.Context) (Conn, error) {
			opened++
			return &script{closed: make(chan struct{}), answer: func(int, <-chan struct{}) (int, error) {
				time.Sleep(slow)
				return http.StatusOK, nil
			}}, nil
		}
		defer transport.Close()
		for range 3 {
			_, took, err := ask(t, transport)
			equal(t, "error", err, nil)
			equal(t, "time", took, slow)
		}
		equal(t, "connections of slow answers", opened, 3)
		slow = 400 * time.Millisecond
		for range 3 {
			_, _, err := ask(t, transport)
			equal(t, "error", err, nil)
		}
		equal(t, "connections, with those of answers in time", opened, 4)
	})
}

// waiting is a connection with bodies that, when closed, wait for the end of the
// connection, as those of HTTP/2 do while it accepts no writes.
type waiting struct{ script }

func (w *waiting) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: struct {
		io.Reader
		io.Closer
	}{nil, closer(func() error { <-w.closed; return nil })}}, nil
}

type closer func() error

func (c closer) Close() error { return c() }

// A connection that is not kept closes at once when the body is closed, also if closing
// the body would wait.
func TestTransport_ClosingDoesNotWaitForTheBody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		transport := &Transport{Open: func(context.Context) (Conn, error) {
			return &waiting{script: script{closed: make(chan struct{})}}, nil
		}}
		status, took, err := ask(t, transport)
		equal(t, "status", status, http.StatusOK)
		equal(t, "time", took, 0)
		equal(t, "error", err, nil)
	})
}

// A connection that is not kept closes as soon as the body is closed, however much of
// the body is still to come, with every protocol.
func TestTransport_OwnConnectionEndsWithItsRequest(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		scheme string
		set    func(p *http.Protocols)
		own    bool // a connection of this package
	}{
		"HTTP/1.1":           {"http", func(p *http.Protocols) { p.SetHTTP1(true) }, true},
		"HTTP/1.1, net/http": {"http", func(p *http.Protocols) { p.SetHTTP1(true) }, false},
		"HTTP/1.1 over TLS":  {"https", func(p *http.Protocols) { p.SetHTTP1(true) }, false},
		"HTTP/2 over TLS":    {"https", func(p *http.Protocols) { p.SetHTTP2(true) }, false},
		"HTTP/2 without TLS": {"http", func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			said := make(chan string, 9)
			backend := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				said <- fmt.Sprint(r.Close)
				if r.URL.Path == "/endless" {
					for ticker := time.NewTicker(10 * time.Millisecond); ; <-ticker.C {
						if _, err := io.WriteString(w, "more"); err != nil || http.NewResponseController(w).Flush() != nil || r.Context().Err() != nil {
							ticker.Stop()
							return
						}
					}
				}
				io.WriteString(w, "ready")
			}))
			listener := &tracked{Listener: backend.Listener, open: make(map[net.Conn]bool)}
			backend.Listener = listener
			backend.Config.Protocols = new(http.Protocols)
			test.set(backend.Config.Protocols)
			base := &http.Transport{Protocols: backend.Config.Protocols, DisableCompression: true}
			if test.scheme == "https" {
				backend.EnableHTTP2 = backend.Config.Protocols.HTTP2()
				backend.StartTLS()
				base.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
				base.TLSClientConfig.RootCAs.AddCert(backend.Certificate())
			} else {
				backend.Start()
			}
			t.Cleanup(backend.Close)
			addr := listener.Addr().String()
			transport := plain(t, addr)
			if !test.own {
				transport.Open = func(ctx context.Context) (Conn, error) {
					conn, err := base.NewClientConn(ctx, test.scheme, addr)
					return Standard{conn}, err
				}
			}
			transport.MaxAge = 0
			for _, path := range []string{"/", "/endless", "/"} {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, test.scheme+"://"+addr+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := transport.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				if path == "/" {
					equal(t, "body", drain(t, resp), "ready")
				} else {
					began := time.Now()
					resp.Body.Close()
					if took := time.Since(began); took > grace/2 {
						t.Errorf("closing took %s", took)
					}
				}
				// HTTP/2 has no header for it
				equal(t, "says close", wait(t, said), fmt.Sprint(!backend.Config.Protocols.HTTP2() && !backend.Config.Protocols.UnencryptedHTTP2()))
				if !eventually(func() bool { _, open := listener.count(); return open == 0 }) {
					t.Errorf("%s: the connection stays open", path)
				}
			}
			accepted, _ := listener.count()
			equal(t, "connections", accepted, 3)
		})
	}
}

// wrapped is a connection around a socket, such as Caddy's own with read_timeout.
type wrapped struct{ *net.TCPConn }

// A kept connection that the other side has closed is replaced without a miss, also where
// the connection is a wrapper around the socket.
func TestKept_ClosedOneIsNoticedBelowAWrapper(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("whether a connection is closed shows only with the next request there")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	closed := make(chan struct{})
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
			}
			_ = conn.Close()
			closed <- struct{}{}
		}
	}()
	transport := &Transport{
		MaxAge: time.Minute,
		GaveUp: func(err error) { t.Errorf("no connection is kept any more: %v", err) },
		Open: func(ctx context.Context) (Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
			if err != nil {
				return nil, err
			}
			return &HTTP1{Conn: wrapped{conn.(*net.TCPConn)}, MaxHeader: 1 << 16}, nil
		},
	}
	defer transport.Close()
	for range 4 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://app/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		<-closed
		time.Sleep(20 * time.Millisecond) // until the end has arrived
	}
}
