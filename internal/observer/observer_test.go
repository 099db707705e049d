// SPDX-License-Identifier: Apache-2.0

package observer_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/observer"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// TestRoundTrip_EndsOverTheWire: what a server does, and what of that accuses it, by which
// cause, and counts towards an ejection.
func TestRoundTrip_EndsOverTheWire(t *testing.T) {
	secure := func(tb testing.TB) string {
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.Config.ErrorLog = nil
		s.StartTLS()
		tb.Cleanup(s.Close)
		return s.URL
	}
	raw := func(text string) func(testing.TB) string {
		return func(tb testing.TB) string { return listen(tb, answers(text)) }
	}
	for _, tc := range []struct {
		rule   string
		server func(testing.TB) (url string)
		change func(*http.Transport)
		cause  string // empty: none
		counts bool
		status int // 0: an error
	}{
		{"200", raw(status(200, "")), nil, "", false, 200},
		{"404", raw(status(404, "")), nil, "", false, 404},
		{"500", raw(status(500, "")), nil, "", false, 500},
		{"502", raw(status(502, "")), nil, "outcome", true, 502},
		{"503", raw(status(503, "")), nil, "outcome", true, 503},
		{"503 with Retry-After", raw(status(503, "Retry-After: 3\r\n")), nil, "", false, 503},
		{"504", raw(status(504, "")), nil, "outcome", true, 504},
		{"1xx and then 200", raw("HTTP/1.1 103 Early Hints\r\n\r\n" + status(200, "")), nil, "", false, 200},
		{"1xx and then 502", raw("HTTP/1.1 103 Early Hints\r\n\r\n" + status(502, "")), nil, "outcome", true, 502},
		{"refused", func(tb testing.TB) string { return "http://" + testkit.Refused(tb) }, nil, "connect", false, 0},
		{"reset", func(tb testing.TB) string {
			return listen(tb, func(conn *net.TCPConn, reader *bufio.Reader) {
				_, _ = http.ReadRequest(reader)
				_ = conn.SetLinger(0)
			})
		}, nil, "outcome", true, 0},
		{"closed without an answer", raw(""), nil, "outcome", true, 0},
		{"closed within the header", func(tb testing.TB) string {
			return listen(tb, func(conn *net.TCPConn, reader *bufio.Reader) {
				_, _ = http.ReadRequest(reader)
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Le")
			})
		}, nil, "outcome", true, 0},
		{"garbage", raw("SSH-2.0-OpenSSH_9.6\r\n"), nil, "outcome", true, 0},
		{"no answer in time", func(tb testing.TB) string {
			return listen(tb, func(_ *net.TCPConn, reader *bufio.Reader) { _, _ = io.Copy(io.Discard, reader) })
		}, func(tr *http.Transport) { tr.ResponseHeaderTimeout = 100 * time.Millisecond }, "stall", false, 0},
		{"plain HTTP instead of TLS", func(tb testing.TB) string {
			return strings.Replace(listen(tb, func(conn *net.TCPConn, reader *bufio.Reader) {
				_, _ = io.WriteString(conn, status(400, ""))
				_, _ = io.Copy(io.Discard, reader)
			}), "http:", "https:", 1)
		}, nil, "connect", false, 0},
		{"unknown authority", secure, nil, "connect", false, 0},
		{"wrong server name", secure, func(tr *http.Transport) {
			tr.TLSClientConfig = &tls.Config{ServerName: "other.example"}
		}, "connect", false, 0},
		{"closed during the handshake", func(tb testing.TB) string {
			return strings.Replace(listen(tb, func(_ *net.TCPConn, reader *bufio.Reader) { _, _ = reader.ReadByte() }), "http:", "https:", 1)
		}, nil, "connect", false, 0},
		{"no handshake in time", func(tb testing.TB) string {
			return strings.Replace(listen(tb, func(_ *net.TCPConn, reader *bufio.Reader) { _, _ = io.Copy(io.Discard, reader) }), "http:", "https:", 1)
		}, func(tr *http.Transport) { tr.TLSHandshakeTimeout = 100 * time.Millisecond }, "connect", false, 0},
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			t.Run(tc.rule+", "+method, func(t *testing.T) {
				inner := transport(t)
				if tc.change != nil {
					tc.change(inner)
				}
				w := watch(t, inner)
				var body io.Reader
				if method == http.MethodPost {
					body = io.MultiReader(strings.NewReader("body")) // of unknown length
				}
				got, err := w.roundTrip(t, w.request(t, method, tc.server(t), body))
				if err != nil {
					t.Logf("error %v (%T)", err, err)
				}
				if got != tc.status || (err != nil) != (tc.status == 0) {
					t.Errorf("status %d, error %v, want status %d", got, err, tc.status)
				}
				var want []string
				if tc.cause != "" {
					want = []string{tc.cause}
				}
				if got := w.causes(); !slices.Equal(got, want) {
					t.Errorf("accused by %q, want %q", got, want)
				}
				if got := w.ejections() > 0; got != tc.counts {
					t.Errorf("it counts: %v, want %v", got, tc.counts)
				}
				if got := w.tries(); len(got) != 0 && tc.status > 0 || tc.status == 0 && !slices.Equal(got, []bool{true}) {
					t.Errorf("noted as tried %v, after status %d", got, tc.status)
				}
			})
		}
	}
}

// TestRoundTrip_ErrorsOfTransports: errors that transports return, and what of them accuses.
func TestRoundTrip_ErrorsOfTransports(t *testing.T) {
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for _, tc := range []struct {
		rule  string
		err   error
		cause string
	}{
		{"a dial, as Caddy's own transport returns it", reverseproxy.NewDialError(dial(syscall.ECONNREFUSED)), "connect"},
		{"a dial that timed out", reverseproxy.NewDialError(dial(os.ErrDeadlineExceeded)), "connect"},
		{"a dial of FastCGI", reverseproxy.NewDialError(fmt.Errorf("dialing backend: %w", dial(syscall.ECONNREFUSED))), "connect"},
		{"no descriptor for a dial", dial(os.NewSyscallError("socket", syscall.EMFILE)), ""},
		{"no descriptor, as Caddy's own transport returns it", reverseproxy.NewDialError(dial(os.NewSyscallError("socket", syscall.EMFILE))), ""},
		{"no local port", reverseproxy.NewDialError(dial(os.NewSyscallError("connect", syscall.EADDRNOTAVAIL))), ""},
		{"an alert of TLS", &net.OpError{Op: "remote error", Err: tls.AlertError(42)}, "connect"},
		{"refused in Caddy", caddyhttp.Error(http.StatusLengthRequired, errors.New("no length")), ""},
		{"refused in Caddy because of a broken body", caddyhttp.Error(http.StatusBadRequest, io.ErrUnexpectedEOF), ""},
		{"an error of Caddy with the cause", caddyhttp.Error(http.StatusBadGateway, syscall.ECONNRESET), "outcome"},
		{"canceled", context.Canceled, ""},
		{"unknown", errors.New("no idea"), ""},
		{"read timeout", &net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded}, "stall"},
		{"EOF", io.EOF, "outcome"},
		{"EOF, of FastCGI", fmt.Errorf("reading header: %w", io.ErrUnexpectedEOF), "outcome"},
		{"broken pipe", &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}, "outcome"},
		{"closed while the body was being sent", &net.OpError{Op: "write", Net: "tcp", Err: net.ErrClosed}, "outcome"},
		{"h2: connection lost", errors.New("http2: client connection lost"), "outcome"},
		{"h2: stream error", errors.New("stream error: stream ID 3; INTERNAL_ERROR; received from peer"), "outcome"},
		{"h3: connection lost", errors.New("timeout: no recent network activity"), "outcome"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			w := watch(t, function(func(*http.Request) (*http.Response, error) { return nil, tc.err }))
			_, err := w.roundTrip(t, w.request(t, http.MethodGet, "http://app", nil))
			if !errors.Is(err, tc.err) {
				t.Errorf("error %v, want it as it is", err)
			}
			var want []string
			if tc.cause != "" {
				want = []string{tc.cause}
			}
			if got := w.causes(); !slices.Equal(got, want) {
				t.Errorf("accused by %q, want %q", got, want)
			}
		})
	}
}

// TestRoundTrip_AReusedConnectionIsUnsure: a connection that was used before, and ends before
// any byte of the answer, accuses and does not count.
func TestRoundTrip_AReusedConnectionIsUnsure(t *testing.T) {
	for _, linger := range []bool{false, true} {
		url := listen(t, func(conn *net.TCPConn, reader *bufio.Reader) {
			if r, err := http.ReadRequest(reader); err == nil {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(conn, status(200, ""))
			}
			_, _ = http.ReadRequest(reader)
			if linger {
				_ = conn.SetLinger(0)
			}
		})
		t.Run(fmt.Sprint("reset ", linger), func(t *testing.T) {
			w := watch(t, transport(t))
			for i := range 2 { // POST is not repeated by the transport
				_, err := w.roundTrip(t, w.request(t, http.MethodPost, url, strings.NewReader("body")))
				if (err != nil) != (i == 1) {
					t.Fatalf("request %d: %v", i, err)
				}
			}
			if got := w.causes(); !slices.Equal(got, []string{"outcome"}) || w.ejections() != 0 {
				t.Errorf("accused by %q, ejected %d times, want an outcome that does not count", got, w.ejections())
			}
		})
	}
}

// failing is a body that breaks after a part.
type failing struct{ err error }

func (f failing) Read(p []byte) (int, error) { return copy(p, "part"), f.err }

// TestRoundTrip_ClientsAccuseNone: neither a client that leaves nor one whose body breaks
// accuses an upstream.
func TestRoundTrip_ClientsAccuseNone(t *testing.T) {
	hangs := func(_ *net.TCPConn, reader *bufio.Reader) { _, _ = io.Copy(io.Discard, reader) }
	for _, tc := range []struct {
		rule  string
		body  func() io.Reader
		leave bool
		tried bool
	}{
		{"it leaves", func() io.Reader { return nil }, true, false},
		{"it leaves after the body", func() io.Reader { return strings.NewReader("body") }, true, false},
		{"its connection breaks", func() io.Reader { return failing{io.ErrUnexpectedEOF} }, false, true},
		{"it is reset", func() io.Reader { return failing{syscall.ECONNRESET} }, false, true},
		{"its chunks are malformed", func() io.Reader { return failing{errors.New("malformed chunked encoding")} }, false, true},
		{"its body is too large", func() io.Reader {
			return http.MaxBytesReader(httptest.NewRecorder(), io.NopCloser(strings.NewReader("too large")), 4)
		}, false, true},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			url := listen(t, hangs)
			w := watch(t, transport(t))
			r := w.request(t, http.MethodPost, url, tc.body())
			ctx, leave := context.WithCancel(r.Context())
			defer leave()
			if tc.leave {
				time.AfterFunc(50*time.Millisecond, leave)
			}
			if _, err := w.roundTrip(t, r.WithContext(ctx)); err == nil {
				t.Fatal("no error")
			}
			if got := w.causes(); len(got) != 0 {
				t.Errorf("accused by %q", got)
			}
			if got := len(w.tries()) > 0; got != tc.tried {
				t.Errorf("noted as tried: %v, want %v", got, tc.tried)
			}
		})
	}
}

// TestRoundTrip_StallsCountFromTheEndOfTheBody: a request does not wait while its body is
// being sent, and does afterwards. So does one without a body.
func TestRoundTrip_StallsCountFromTheEndOfTheBody(t *testing.T) {
	quick := func(w *watched, _ *observer.Hooks) { w.settings.Stall = 200 * time.Millisecond }
	// a busy machine must not look like a stall
	const stall = 2 * time.Second
	slow := func(w *watched, _ *observer.Hooks) { w.settings.Stall = stall }
	t.Run("a slow body", func(t *testing.T) {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
		}))
		defer s.Close()
		w := watch(t, transport(t), slow)
		reader, writer := io.Pipe()
		time.AfterFunc(2*stall, func() { _ = writer.Close() })
		if got, err := w.roundTrip(t, w.request(t, http.MethodPost, s.URL, reader)); got != 200 {
			t.Fatal(got, err)
		}
		if got := w.causes(); len(got) != 0 {
			t.Errorf("accused by %q", got)
		}
	})
	for _, body := range []io.Reader{nil, http.NoBody, strings.NewReader("body"), io.MultiReader(strings.NewReader("body"))} {
		t.Run(fmt.Sprintf("no answer, %T", body), func(t *testing.T) {
			url := listen(t, func(_ *net.TCPConn, reader *bufio.Reader) { _, _ = io.Copy(io.Discard, reader) })
			w := watch(t, transport(t), quick)
			r := w.request(t, http.MethodPost, url, body)
			ctx, leave := context.WithCancel(r.Context())
			var done sync.WaitGroup
			done.Go(func() { _, _ = w.roundTrip(t, r.WithContext(ctx)) })
			testkit.Eventually(t, 10*time.Second, "an accusation by stall", func() bool { return slices.Contains(w.causes(), "stall") })
			leave()
			done.Wait()
		})
	}
	t.Run("a body that was read and not closed", func(t *testing.T) {
		ends := make(chan struct{})
		w := watch(t, function(func(r *http.Request) (*http.Response, error) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-ends
			return nil, context.Canceled
		}), quick)
		var done sync.WaitGroup
		done.Go(func() { _, _ = w.roundTrip(t, w.request(t, http.MethodPost, "http://app", strings.NewReader("body"))) })
		testkit.Eventually(t, 10*time.Second, "an accusation by stall", func() bool { return slices.Contains(w.causes(), "stall") })
		close(ends)
		done.Wait()
	})
	t.Run("a 1xx is a first byte", func(t *testing.T) {
		url := listen(t, func(conn *net.TCPConn, reader *bufio.Reader) {
			_, _ = http.ReadRequest(reader)
			_, _ = io.WriteString(conn, "HTTP/1.1 102 Processing\r\n\r\n")
			time.Sleep(2 * stall)
			_, _ = io.WriteString(conn, status(200, ""))
		})
		w := watch(t, transport(t), slow)
		r := w.request(t, http.MethodGet, url, nil)
		var seen atomic.Int64 // by the handler
		trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			seen.Store(int64(code))
			return nil
		}}
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), trace))
		if got, err := w.roundTrip(t, r); got != 200 || seen.Load() != 102 {
			t.Fatal(got, err, seen.Load())
		}
		if got := w.causes(); len(got) != 0 {
			t.Errorf("accused by %q", got)
		}
	})
}

// TestRoundTrip_TheAnswerComesWhileTheBodyIsSent: what becomes of the body afterwards
// accuses none, and does not disturb other requests.
func TestRoundTrip_TheAnswerComesWhileTheBodyIsSent(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	defer s.Close()
	w := watch(t, transport(t))
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			for range 10 {
				reader, writer := io.Pipe()
				res, err := w.RoundTrip(w.request(t, http.MethodPost, s.URL, reader))
				if err != nil {
					t.Error(err)
					return
				}
				var sent sync.WaitGroup
				sent.Go(func() {
					_, _ = writer.Write(make([]byte, 1000))
					if i%2 == 0 {
						_ = writer.CloseWithError(errors.New("the client broke off"))
					} else {
						_ = writer.Close()
					}
				})
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
				_ = reader.Close()
				sent.Wait()
				if _, err := w.roundTrip(t, w.request(t, http.MethodGet, s.URL, nil)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if got := w.causes(); len(got) != 0 {
		t.Errorf("accused by %q", got)
	}
}

// TestRoundTrip_OneLostConnectionCountsOnce: of all requests that one lost connection of
// HTTP/2 takes along, one counts.
func TestRoundTrip_OneLostConnectionCountsOnce(t *testing.T) {
	const streams = 100
	var arrived atomic.Int64
	lost := make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		arrived.Add(1)
		<-lost
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	inner := transport(t)
	inner.Protocols = new(http.Protocols)
	inner.Protocols.SetUnencryptedHTTP2(true)
	w := watch(t, inner, func(w *watched, _ *observer.Hooks) { w.settings.EjectAfter, w.settings.Stall = 2, -1 })
	var all sync.WaitGroup
	for range streams {
		all.Go(func() {
			if _, err := w.roundTrip(t, w.request(t, http.MethodPost, s.URL, strings.NewReader("body"))); err == nil {
				t.Error("no error")
			}
		})
	}
	testkit.Eventually(t, 10*time.Second, "all requests to arrive", func() bool { return arrived.Load() == streams })
	s.CloseClientConnections()
	all.Wait()
	close(lost)
	if got := w.causes(); len(got) != streams || w.ejections() != 0 {
		t.Errorf("%d accusations and %d ejections, want %d and none", len(got), w.ejections(), streams)
	}
}

// TestRoundTrip_Upgrades: the body of a 101 is that of the transport, and can be written.
func TestRoundTrip_Upgrades(t *testing.T) {
	url := listen(t, func(conn *net.TCPConn, reader *bufio.Reader) {
		_, _ = http.ReadRequest(reader)
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(conn, reader)
	})
	w := watch(t, transport(t))
	r := w.request(t, http.MethodGet, url, nil)
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "echo")
	res, err := w.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	conn, ok := res.Body.(io.ReadWriteCloser)
	if !ok || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("status %d with a %T", res.StatusCode, res.Body)
	}
	got := make([]byte, 4)
	if _, err := io.WriteString(conn, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "ping" {
		t.Errorf("%q, %v", got, err)
	}
	if got := w.causes(); len(got) != 0 {
		t.Errorf("accused by %q", got)
	}
}

// TestRoundTrip_Trailers: those of the request arrive although they are set only at the end
// of its body, and so do those of the answer.
func TestRoundTrip_Trailers(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "Sum")
		w.WriteHeader(http.StatusOK)
		w.Header().Set("Sum", r.Trailer.Get("Sum")+" back")
	}))
	defer s.Close()
	w := watch(t, transport(t))
	reader, writer := io.Pipe()
	r := w.request(t, http.MethodPost, s.URL, reader)
	r.Trailer = http.Header{"Sum": nil}
	go func() {
		_, _ = io.WriteString(writer, "body")
		r.Trailer.Set("Sum", "42")
		_ = writer.Close()
	}()
	res, err := w.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	if got := res.Trailer.Get("Sum"); got != "42 back" {
		t.Errorf("trailer %q", got)
	}
}

// TestRoundTrip_PanicOfTheTransport: it goes on, and a trial that it ended is void.
func TestRoundTrip_PanicOfTheTransport(t *testing.T) {
	code := http.StatusBadGateway
	w := watch(t, function(func(*http.Request) (*http.Response, error) {
		if code == 0 {
			panic("index out of range")
		}
		return &http.Response{StatusCode: code, Body: http.NoBody}, nil
	}), func(w *watched, _ *observer.Hooks) { w.settings.EjectFor, w.settings.EjectLongest = 1, 1 })
	_, _ = w.roundTrip(t, w.request(t, http.MethodGet, "http://app", nil))
	testkit.Eventually(t, time.Second, "the trial", func() bool { return w.witness.ClaimTrial(true) })
	code = 0
	for _, body := range []io.Reader{nil, strings.NewReader("body")} {
		func() {
			defer func() {
				if p := recover(); p != "index out of range" {
					t.Errorf("recovered %v", p)
				}
			}()
			_, _ = w.roundTrip(t, w.request(t, http.MethodPost, "http://app", body))
		}()
		if !w.witness.ClaimTrial(true) {
			t.Error("the trial goes on after the panic")
		}
	}
}

// TestRoundTrip_Unobserved: probes of Caddy itself pass through unseen. What is not observed
// accuses none, and its failures are noted for retries.
func TestRoundTrip_Unobserved(t *testing.T) {
	for _, tc := range []struct {
		rule      string
		configure func(*watched, *observer.Hooks)
		context   func(context.Context) context.Context // nil: that of a request
		tried     int
	}{
		{"observed", func(*watched, *observer.Hooks) {}, nil, 1},
		{"a probe", func(*watched, *observer.Hooks) {}, func(ctx context.Context) context.Context {
			return context.WithValue(ctx, caddyhttp.VarsCtxKey, nil)
		}, 0},
		{"no upstream", func(*watched, *observer.Hooks) {}, func(ctx context.Context) context.Context {
			return context.WithValue(ctx, caddy.CtxKey("reverse_proxy.dial_info"), reverseproxy.DialInfo{})
		}, 0},
		{"off", func(w *watched, h *observer.Hooks) {
			w.settings.Off = true
			h.Upstream = func(*reverseproxy.Upstream) *witness.Upstream { panic("asked") }
		}, nil, 1},
		{"an upstream that is not known", func(_ *watched, h *observer.Hooks) {
			h.Upstream = func(*reverseproxy.Upstream) *witness.Upstream { return nil }
		}, nil, 1},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			w := watch(t, function(func(*http.Request) (*http.Response, error) { return nil, io.EOF }), tc.configure)
			r := w.request(t, http.MethodGet, "http://app", nil)
			if tc.context != nil {
				r = r.WithContext(tc.context(r.Context()))
			}
			if _, err := w.RoundTrip(r); !errors.Is(err, io.EOF) {
				t.Errorf("error %v", err)
			}
			if got := w.causes(); (len(got) > 0) != (tc.rule == "observed") {
				t.Errorf("accused by %q", got)
			}
			if got := w.tries(); len(got) != tc.tried {
				t.Errorf("noted as tried %v, want %d", got, tc.tried)
			}
		})
	}
}

// TestRoundTrip_NotesAnswersForRetries: where retries can follow from answers each one is
// noted, and whether it has failed.
func TestRoundTrip_NotesAnswersForRetries(t *testing.T) {
	code := 0
	w := watch(t, function(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: code, Body: http.NoBody, Header: make(http.Header)}, nil
	}), func(_ *watched, h *observer.Hooks) { h.RetriesAnswers = true })
	for _, code = range []int{200, 404, 502} {
		if _, err := w.roundTrip(t, w.request(t, http.MethodGet, "http://app", nil)); err != nil {
			t.Error(err)
		}
	}
	if got, want := w.tries(), []bool{false, false, true}; !slices.Equal(got, want) {
		t.Errorf("noted %v, want %v", got, want)
	}
}

// complete is a transport with all optional interfaces.
type complete struct{ function }

func (complete) RequestHeaderOps() *headers.HeaderOps {
	return &headers.HeaderOps{Delete: []string{"X"}}
}
func (complete) ProxyProtocolEnabled() bool  { return true }
func (complete) RequiresContentLength() bool { return true }
func (complete) OverrideHealthCheckScheme(base *url.URL, port string) {
	base.Scheme = "https" + port
}

// TestTransport_OptionalInterfaces: they are answered by the transport, and neutrally where
// it has none.
func TestTransport_OptionalInterfaces(t *testing.T) {
	set := witness.DefaultSettings()
	bare := observer.New(function(nil), &set, observer.Hooks{})
	base := &url.URL{Scheme: "http"}
	bare.OverrideHealthCheckScheme(base, "80")
	if bare.RequestHeaderOps() != nil || bare.ProxyProtocolEnabled() || bare.RequiresContentLength() || base.Scheme != "http" {
		t.Error("a transport without the interfaces is not answered neutrally")
	}
	all := observer.New(complete{}, &set, observer.Hooks{})
	all.OverrideHealthCheckScheme(base, "80")
	if ops := all.RequestHeaderOps(); ops == nil || !all.ProxyProtocolEnabled() || !all.RequiresContentLength() || base.Scheme != "https80" {
		t.Error("the transport was not asked")
	}
}

// TestRoundTrip_Allocations: a request that ends well costs no allocation without a body,
// and one with a body.
func TestRoundTrip_Allocations(t *testing.T) {
	if testkit.RaceDetector {
		t.Skip("the race detector makes pools forget")
	}
	res := &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Header: make(http.Header)}
	inner := function(func(r *http.Request) (*http.Response, error) {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return res, nil
	})
	known := transport(t) // others get an exchange of their own for each round trip
	known.RegisterProtocol("app", inner)
	w := watch(t, known)
	for _, tc := range []struct {
		rule string
		body io.Reader
		want float64
	}{{"no body", nil, 0}, {"an empty one", http.NoBody, 0}, {"a body", strings.NewReader("body"), 1}} {
		r := w.request(t, http.MethodPost, "app://app", tc.body)
		trace := httptrace.ContextClientTrace(r.Context())
		measure := func(rt http.RoundTripper) float64 {
			return testing.AllocsPerRun(1000, func() {
				*trace = httptrace.ClientTrace{}
				_, _ = rt.RoundTrip(r)
			})
		}
		if got := measure(w) - measure(known); got != tc.want {
			t.Errorf("%s: %v allocations more than without, want %v", tc.rule, got, tc.want)
		}
	}
}
