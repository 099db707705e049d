// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// serveGRPC runs a gRPC server with a health service, or without one if it is nil, and
// with TLS if there is a config for it.
func serveGRPC(tb testing.TB, service grpc_health_v1.HealthServer, config *tls.Config) (addr string) {
	tb.Helper()
	var options []grpc.ServerOption
	if config != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
	}
	server := grpc.NewServer(options...)
	if service != nil {
		grpc_health_v1.RegisterHealthServer(server, service)
	}
	listener := listen(tb)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); err != nil {
			tb.Errorf("serving: %v", err)
		}
	}()
	tb.Cleanup(func() {
		server.Stop()
		<-done
	})
	return listener.Addr().String()
}

// grpcUpstream returns an upstream for a check.
func grpcUpstream(tb testing.TB, p *GRPC, addr string, trust *tls.Config) Upstream {
	tb.Helper()
	return way{addr: addr, tls: trust, differs: p.Overrides()}.upstream(tb)
}

// check is a health service made of one function.
type check func(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error)

type checkServer struct {
	grpc_health_v1.UnimplementedHealthServer
	check
}

func (s checkServer) Check(ctx context.Context, r *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	return s.check(ctx, r)
}

// A service is up only while it reports that it is serving, with TLS and without. The
// reason tells a service that is not serving from one that is unknown, and from a
// server without a health service.
func TestGRPC_PassesOnlyIfServing(t *testing.T) {
	t.Parallel()
	service := health.NewServer()
	service.SetServingStatus("up", grpc_health_v1.HealthCheckResponse_SERVING)
	service.SetServingStatus("down", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	service.SetServingStatus("odd", grpc_health_v1.HealthCheckResponse_UNKNOWN)
	service.SetServingStatus("new", grpc_health_v1.HealthCheckResponse_ServingStatus(7))
	stopping := health.NewServer()
	stopping.Shutdown()
	ca := testkit.NewAuthority(t)
	config := &tls.Config{Certificates: []tls.Certificate{ca.Between(-time.Hour, time.Hour)}}
	trust := &tls.Config{RootCAs: ca.Pool()}
	for way, addr := range map[string]struct{ service, stopping, none string }{
		"h2c": {serveGRPC(t, service, nil), serveGRPC(t, stopping, nil), serveGRPC(t, nil, nil)},
		"TLS": {serveGRPC(t, service, config), serveGRPC(t, stopping, config), serveGRPC(t, nil, config)},
	} {
		for _, test := range []struct{ addr, config, want string }{
			{addr.service, `{}`, ""},
			{addr.service, `{"service":"up"}`, ""},
			{addr.service, `{"service":"down"}`, "status NOT_SERVING, want SERVING"},
			{addr.service, `{"service":"odd"}`, "status UNKNOWN, want SERVING"},
			{addr.service, `{"service":"new"}`, "status 7, want SERVING"},
			{addr.service, `{"service":"unlisted"}`, "gRPC status NotFound: the health service does not know the service 'unlisted': unknown service"},
			{addr.stopping, `{}`, "status NOT_SERVING, want SERVING"},
			{addr.none, `{}`, "gRPC status Unimplemented: the server has no health service (grpc.health.v1.Health): unknown service grpc.health.v1.Health"},
		} {
			p := loadKind(t, new(GRPC), test.config)
			used := trust
			if way == "h2c" {
				used = nil
			}
			if got := text(run(t, p, grpcUpstream(t, p, test.addr, used), long)); got != test.want {
				t.Errorf("%s, %s: got %q, want %q", way, test.config, got, test.want)
			}
		}
	}
}

// Errors of a service are shown by name, with their text as it was before the transport
// encoded it.
func TestGRPC_ErrorsShowNameAndText(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  error
		want string
	}{
		{status.Error(codes.PermissionDenied, "nicht für „dich“: 100% sure\n"), "gRPC status PermissionDenied: nicht für „dich“: 100% sure"},
		{status.Error(codes.Unavailable, ""), "gRPC status Unavailable"},
		{status.Error(codes.Code(99), "a%20b"), "gRPC status Code(99): a%20b"},
		{errors.New("plain"), "gRPC status Unknown: plain"},
	} {
		addr := serveGRPC(t, checkServer{check: func(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
			return nil, test.err
		}}, nil)
		p := loadKind(t, new(GRPC), `{}`)
		if got := text(run(t, p, grpcUpstream(t, p, addr, nil), long)); got != test.want {
			t.Errorf("%v: got %q, want %q", test.err, got, test.want)
		}
	}
}

// A server receives the service, the authority and the remaining time, as from any gRPC
// client.
func TestGRPC_RequestHasServiceAuthorityAndDeadline(t *testing.T) {
	t.Setenv("PROBE_SERVICE", "pkg.Service")
	type seen struct {
		service   string
		authority []string
		agent     []string
		left      time.Duration
	}
	requests := make(chan seen, 1)
	addr := serveGRPC(t, checkServer{check: func(ctx context.Context, r *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		limit, ok := ctx.Deadline()
		if !ok {
			t.Error("the server was given no deadline")
		}
		requests <- seen{r.GetService(), md.Get(":authority"), md.Get("user-agent"), time.Until(limit)}
		return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
	}}, nil)
	for _, test := range []struct{ config, service, authority string }{
		{`{}`, "", "app1:50051"},
		{`{"service":"{env.PROBE_SERVICE}"}`, "pkg.Service", "app1:50051"},
		{`{"service":"größe","authority":"app.internal"}`, "größe", "app.internal"},
		{`{"authority":"{env.PROBE_SERVICE}:443"}`, "", "pkg.Service:443"},
	} {
		p := loadKind(t, new(GRPC), test.config)
		up := way{addr: addr, host: "app1:50051", differs: p.Overrides()}.upstream(t)
		if err := run(t, p, up, long); err != nil {
			t.Errorf("%s: %v", test.config, err)
			continue
		}
		got := testkit.Wait(t, requests, grace)
		if got.service != test.service || strings.Join(got.authority, " ") != test.authority {
			t.Errorf("%s: got the service %q and the authority %q, want %q and %q", test.config, got.service, got.authority, test.service, test.authority)
		}
		if len(got.agent) != 1 || got.agent[0] != "caddy-alive" {
			t.Errorf("%s: got the user agent %q, want caddy-alive", test.config, got.agent)
		}
		if got.left <= long || got.left > 2*long { // a shorter time could end the call before the probe ends
			t.Errorf("%s: the server has %s, want more than the %s of the probe, and twice as much at most", test.config, got.left, long)
		}
	}
}

// serveH2C answers requests over HTTP/2 without TLS.
func serveH2C(tb testing.TB, handle http.HandlerFunc) (addr string) {
	tb.Helper()
	server := &http.Server{Handler: handle, Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	listener := listen(tb)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			tb.Errorf("serving: %v", err)
		}
	}()
	tb.Cleanup(func() {
		server.Close()
		<-done
	})
	return listener.Addr().String()
}

// The probe sends one call of the gRPC protocol over HTTP/2.
func TestGRPC_OneCallIsSent(t *testing.T) {
	t.Parallel()
	type seen struct {
		line, message string
		header        http.Header
		length        int64
	}
	requests := make(chan seen, 1)
	addr := serveH2C(t, func(w http.ResponseWriter, r *http.Request) {
		message, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		requests <- seen{r.Method + " " + r.URL.String() + " " + r.Proto, string(message), r.Header, r.ContentLength}
		grpcAnswer("0", "", message5+serving)(w, r)
	})
	p := loadKind(t, new(GRPC), `{"service":"abc"}`)
	if err := run(t, p, grpcUpstream(t, p, addr, nil), long); err != nil {
		t.Error(err)
	}
	got := testkit.Wait(t, requests, grace)
	if want := "POST /grpc.health.v1.Health/Check HTTP/2.0"; got.line != want {
		t.Errorf("got %q, want %q", got.line, want)
	}
	// not compressed, of 5 bytes: field 1, a string of 3 bytes
	if want := "\x00\x00\x00\x00\x05\x0a\x03abc"; got.message != want || got.length != int64(len(want)) {
		t.Errorf("got the message %q of %d bytes, want %q", got.message, got.length, want)
	}
	limit := strings.TrimSuffix(got.header.Get("Grpc-Timeout"), "m")
	if d, err := time.ParseDuration(limit + "ms"); err != nil || d <= long || d > 2*long {
		t.Errorf("got the timeout %q, want up to twice %s in milliseconds, like 4000m", got.header.Get("Grpc-Timeout"), long)
	}
	got.header.Del("Grpc-Timeout")
	got.header.Del("Content-Length")
	for name, want := range map[string]string{"Content-Type": "application/grpc", "Te": "trailers", "User-Agent": "caddy-alive"} {
		if value := got.header.Get(name); value != want {
			t.Errorf("got %s: %s, want %s", name, value, want)
		}
		got.header.Del(name)
	}
	if len(got.header) > 0 {
		t.Errorf("got also the fields %v", got.header)
	}
}

const (
	message5 = "\x00\x00\x00\x00\x02" // the prefix of a message of two bytes
	serving  = "\x08\x01"             // field 1, SERVING
)

// grpcAnswer answers with a body, and with a status in the trailer.
func grpcAnswer(status, message, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.WriteHeader(http.StatusOK)
		io.WriteString(w, body)
		w.(http.Flusher).Flush() // so that the header comes before the trailer
		if status != "" {
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", status)
		}
		if message != "" {
			w.Header().Set(http.TrailerPrefix+"Grpc-Message", message)
		}
	}
}

// plainAnswer answers as a server without gRPC does.
func plainAnswer(code int, kind string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(code)
		io.WriteString(w, "<html>")
	}
}

// Only a complete, well-formed answer passes. Any other fails with a reason that says
// what is wrong with it.
func TestGRPC_OnlyWellFormedAnswerPasses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"serving": {grpcAnswer("0", "", message5+serving), ""},
		"serving, of a subtype": {func(w http.ResponseWriter, r *http.Request) {
			grpcAnswer("0", "", message5+serving)(as(w, "application/grpc+proto"), r)
		}, ""},
		"serving, and fields to be": {grpcAnswer("0", "", "\x00\x00\x00\x00\x04"+serving+"\x10\x05"), ""},
		"a message with a success":  {grpcAnswer("0", "fine", message5+serving), ""},

		"HTML":           {plainAnswer(200, "text/html"), `not an answer of a gRPC server: status 200, content type "text/html"`},
		"not found":      {plainAnswer(404, "text/html"), `not an answer of a gRPC server: status 404, content type "text/html"`},
		"no type":        {func(w http.ResponseWriter, _ *http.Request) { w.Header()["Content-Type"] = nil }, `not an answer of a gRPC server: status 200, content type ""`},
		"gRPC, but 503":  {plainAnswer(503, "application/grpc"), `not an answer of a gRPC server: status 503, content type "application/grpc"`},
		"a redirect":     {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login", http.StatusFound) }, `not an answer of a gRPC server: status 302, content type ""`},
		"an empty body":  {grpcAnswer("0", "", ""), "the answer is not one gRPC message"},
		"a short prefix": {grpcAnswer("0", "", "\x00\x00\x00"), "the answer is not one gRPC message"},
		"a prefix only":  {grpcAnswer("0", "", message5), "the answer is not one gRPC message"},
		"too short":      {grpcAnswer("0", "", message5+serving[:1]), "the answer is not one gRPC message"},
		"too long":       {grpcAnswer("0", "", message5+serving+"\x00"), "the answer is not one gRPC message"},
		"two messages":   {grpcAnswer("0", "", message5+serving+message5+serving), "the answer is not one gRPC message"},
		"a wild length":  {grpcAnswer("0", "", "\x00\xff\xff\xff\xff"+serving), "the answer is not one gRPC message"},
		"compressed":     {grpcAnswer("0", "", "\x01"+message5[1:]+serving), "the answer is compressed, which the request did not allow"},
		"an odd flag":    {grpcAnswer("0", "", "\x80"+message5[1:]+serving), "the answer is compressed, which the request did not allow"},
		"no status at all": {
			grpcAnswer("0", "", "\x00\x00\x00\x00\x00"), "status UNKNOWN, want SERVING",
		},
		"not serving": {grpcAnswer("0", "", message5+"\x08\x02"), "status NOT_SERVING, want SERVING"},
		// the status of the call decides first
		"serving, but failed": {grpcAnswer("14", "", message5+serving), "gRPC status Unavailable"},
		"failed, and garbage": {grpcAnswer("14", "", "garbage"), "gRPC status Unavailable"},

		"no gRPC status":       {grpcAnswer("", "", message5+serving), "the answer has no gRPC status"},
		"a word for a status":  {grpcAnswer("OK", "", message5+serving), `the answer has no number as its gRPC status, but "OK"`},
		"a negative status":    {grpcAnswer("-1", "", message5+serving), `the answer has no number as its gRPC status, but "-1"`},
		"an unknown status":    {grpcAnswer("17", "", ""), "gRPC status Code(17)"},
		"a broken escape":      {grpcAnswer("2", "100%", ""), "gRPC status Unknown: 100%"},
		"an escaped message":   {grpcAnswer("2", "a%20b+c%C3%A4", ""), "gRPC status Unknown: a b+cä"},
		"all in the header":    {trailersOnly("5", "gone%3F"), "gRPC status NotFound: the health service does not know the service '': gone?"},
		"a pass in the header": {trailersOnly("0", ""), "the answer is not one gRPC message"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := loadKind(t, new(GRPC), `{}`)
			if got := text(run(t, p, grpcUpstream(t, p, serveH2C(t, test.answer), nil), long)); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	t.Run("garbage", func(t *testing.T) {
		t.Parallel()
		p := loadKind(t, new(GRPC), `{}`)
		const want = "the answer is no message of the health service: "
		addr := serveH2C(t, grpcAnswer("0", "", message5+"\xff\xff"))
		if got := text(run(t, p, grpcUpstream(t, p, addr, nil), long)); !strings.HasPrefix(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// trailersOnly answers with a header that also ends the answer.
func trailersOnly(status, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", status)
		w.Header().Set("Grpc-Message", message)
	}
}

// as writes answers with another content type.
func as(w http.ResponseWriter, kind string) http.ResponseWriter { return retyped{w, kind} }

type retyped struct {
	http.ResponseWriter
	kind string
}

func (r retyped) WriteHeader(code int) {
	r.Header().Set("Content-Type", r.kind)
	r.ResponseWriter.WriteHeader(code)
}

func (r retyped) Flush() { r.ResponseWriter.(http.Flusher).Flush() }

// An endless answer takes neither memory nor time: past the limit, only what was
// already in flight is read.
func TestGRPC_EndlessAnswerIsBounded(t *testing.T) {
	t.Parallel()
	left := make(chan struct{})
	addr := serveH2C(t, func(w http.ResponseWriter, _ *http.Request) {
		defer close(left)
		w.Header().Set("Content-Type", "application/grpc")
		for part := make([]byte, 16<<10); ; {
			if _, err := w.Write(part); err != nil {
				return
			}
		}
	})
	p := loadKind(t, new(GRPC), `{}`)
	var read atomic.Int64
	up := way{addr: addr, differs: p.Overrides(), read: &read}.upstream(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*grace)
	defer cancel()
	if got, want := text(testkit.Wait(t, start(ctx, p, up), long)), "the answer is longer than 64 KiB"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	testkit.Wait(t, left, grace) // the probe closes it before the end of its context
	if got, most := read.Load(), int64(1<<20); got > most {
		t.Errorf("%d bytes were read, want %d at most", got, most)
	}
}

// Answers up to the limit are read, whatever they contain.
func TestGRPC_AnswerUpToTheLimitIsRead(t *testing.T) {
	t.Parallel()
	for size, want := range map[int]string{maxGRPC: "", maxGRPC + 1: "the answer is longer than 64 KiB"} {
		// field 2 is unknown, and has any number of bytes
		filler := make([]byte, size-grpcPrefix-len(serving))
		n := 1 + binary.PutUvarint(filler[1:], uint64(len(filler)-4))
		if filler[0] = 2<<3 | 2; n != 4 {
			t.Fatalf("the field begins with %d bytes", n)
		}
		prefix := binary.BigEndian.AppendUint32([]byte{0}, uint32(size-grpcPrefix))
		addr := serveH2C(t, grpcAnswer("0", "", string(prefix)+serving+string(filler)))
		p := loadKind(t, new(GRPC), `{}`)
		if got := text(run(t, p, grpcUpstream(t, p, addr, nil), long)); got != want {
			t.Errorf("%d bytes: got %q, want %q", size, got, want)
		}
	}
}

// A probe of an upstream that does not finish its answer ends at the deadline, or when
// it is canceled.
func TestGRPC_UnfinishedAnswerEndsWithTheContext(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]string{"no answer": "", "no end": message5 + serving} {
		for _, want := range []error{context.DeadlineExceeded, context.Canceled} {
			t.Run(name+"/"+want.Error(), func(t *testing.T) {
				t.Parallel()
				asked := make(chan struct{})
				left := make(chan struct{})
				addr := serveH2C(t, func(w http.ResponseWriter, r *http.Request) {
					if before != "" {
						w.Header().Set("Content-Type", "application/grpc")
						io.WriteString(w, before)
						w.(http.Flusher).Flush()
					}
					close(asked)
					<-r.Context().Done() // the probe has ended
					close(left)
				})
				limit := short
				if want == context.Canceled {
					limit = 10 * grace
				}
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				p := loadKind(t, new(GRPC), `{}`)
				result := start(ctx, p, grpcUpstream(t, p, addr, nil))
				if testkit.Wait(t, asked, grace); want == context.Canceled {
					cancel()
				}
				if err := testkit.Wait(t, result, limit+grace); !errors.Is(err, want) {
					t.Errorf("got %v, want %v", err, want)
				}
				testkit.Wait(t, left, grace)
			})
		}
	}
}

// A service that hangs fails the probe at its deadline. The server knows the deadline,
// too, and may end the call first: with a status, or by a reset of the stream.
func TestGRPC_HangingServiceFailsAtTheDeadline(t *testing.T) {
	t.Parallel()
	addr := serveGRPC(t, checkServer{check: func(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}}, nil)
	p := loadKind(t, new(GRPC), `{}`)
	began := time.Now()
	err := run(t, p, grpcUpstream(t, p, addr, nil), short)
	if took := time.Since(began); took < short/2 {
		t.Errorf("given up after %s, want %s", took, short)
	}
	if got := text(err); !errors.Is(err, context.DeadlineExceeded) && !strings.HasPrefix(got, "gRPC status DeadlineExceeded") && !strings.Contains(got, "CANCEL") {
		t.Errorf("got %v, want the deadline", err)
	}
}

// An upstream that does not speak HTTP/2, or rejects the request with an HTTP/2 error,
// fails with a reason.
func TestGRPC_OtherProtocolFailsWithAReason(t *testing.T) {
	t.Parallel()
	// refusing reads the request and answers with frames; after an error it closes the
	// connection
	refusing := func(refuse func(*http2.Framer) error) func(net.Conn) {
		return func(conn net.Conn) {
			if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
				t.Errorf("no preface: %v", err)
				return
			}
			framer := http2.NewFramer(conn, conn)
			framer.WriteSettings()
			for {
				frame, err := framer.ReadFrame()
				if err != nil {
					return
				}
				if frame.Header().Type == http2.FrameHeaders {
					if refuse(framer) != nil {
						return
					}
				}
			}
		}
	}
	for name, test := range map[string]struct {
		serve func(net.Conn)
		want  string // part of the reason
	}{
		"HTTP/1.1": {func(conn net.Conn) {
			answer("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")(conn, nil)
			untilClosed(conn)
		}, "http2: "},
		"a banner":        {func(conn net.Conn) { answer("SSH-2.0-OpenSSH_9.9\r\n")(conn, nil); untilClosed(conn) }, "http2: "},
		"closes at once":  {func(conn net.Conn) { conn.Read(make([]byte, 4<<10)) }, ""},
		"endless nothing": {func(conn net.Conn) { endless("", strings.Repeat("\x00", 9<<10))(conn, nil) }, ""},
		"RST_STREAM": {
			refusing(func(f *http2.Framer) error { return f.WriteRSTStream(1, http2.ErrCodeInternal) }),
			"stream error: stream ID 1; INTERNAL_ERROR; received from peer",
		},
		"GOAWAY": {
			refusing(func(f *http2.Framer) error {
				f.WriteGoAway(1, http2.ErrCodeEnhanceYourCalm, []byte("too many"))
				return io.EOF
			}),
			"", // either the frame or the end of the connection comes first
		},
		"a long header": {
			refusing(func(f *http2.Framer) error {
				var block strings.Builder
				encoder := hpack.NewEncoder(&block)
				encoder.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
				encoder.WriteField(hpack.HeaderField{Name: "a", Value: strings.Repeat("\xff", 80<<10)})
				rest := block.String()
				part := func() (p []byte) {
					n := min(len(rest), 16<<10)
					p, rest = []byte(rest[:n]), rest[n:]
					return p
				}
				err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: part()})
				for err == nil && rest != "" {
					fragment := part()
					err = f.WriteContinuation(1, rest == "", fragment)
				}
				return err // the probe may have ended by then
			}),
			"",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := talk(t, test.serve)
			p := loadKind(t, new(GRPC), `{}`)
			err := run(t, p, grpcUpstream(t, p, addr, nil), long)
			if err == nil || !strings.Contains(err.Error(), test.want) || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// With TLS there are reasons, too: for a certificate that is not trusted, and for a
// server that has only HTTP/1.1.
func TestGRPC_TLSFailureHasAReason(t *testing.T) {
	t.Parallel()
	ca := testkit.NewAuthority(t)
	cert := ca.Between(-time.Hour, time.Hour)
	service := serveGRPC(t, health.NewServer(), &tls.Config{Certificates: []tls.Certificate{cert}})
	old, _ := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}})
	plain := serveGRPC(t, health.NewServer(), nil)
	for _, test := range []struct {
		name, addr, config string
		trust              *tls.Config
		want               string // part of the reason
	}{
		{"trusted", service, `{}`, &tls.Config{RootCAs: ca.Pool()}, ""},
		{"not trusted", service, `{}`, new(tls.Config), "certificate signed by unknown authority"},
		{"another name", service, `{"tls_server_name":"other.test"}`, &tls.Config{RootCAs: ca.Pool()}, "not other.test"},
		{"anything goes", service, `{"tls_server_name":"other.test","tls_insecure_skip_verify":true}`, new(tls.Config), ""},
		{"HTTP/1.1 only", old, `{}`, &tls.Config{RootCAs: ca.Pool()}, "no application protocol"},
		{"a scheme of its own", service, `{"scheme":"https","tls_insecure_skip_verify":true}`, nil, ""},
		{"a plain port beside TLS", plain, `{"scheme":"http"}`, new(tls.Config), ""},
		{"no TLS there", plain, `{}`, new(tls.Config), "first record does not look like a TLS handshake"},
	} {
		p := loadKind(t, new(GRPC), test.config)
		got := text(run(t, p, grpcUpstream(t, p, test.addr, test.trust), long))
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// One probe is used for many upstreams at once. The race detector finds what they
// share.
func TestGRPC_ConcurrentProbesShareNothing(t *testing.T) {
	t.Parallel()
	service := health.NewServer()
	service.SetServingStatus("up", grpc_health_v1.HealthCheckResponse_SERVING)
	p := loadKind(t, new(GRPC), `{"service":"up"}`)
	var results []<-chan error
	for range 2 {
		addr := serveGRPC(t, service, nil)
		for range 4 {
			results = append(results, start(t.Context(), p, grpcUpstream(t, p, addr, nil)))
		}
	}
	for _, result := range results {
		if err := testkit.Wait(t, result, long); err != nil {
			t.Error(err)
		}
	}
}

// gRPC uses HTTP/2, whatever the proxy uses, with TLS if the proxy or the check has it.
func TestGRPC_OverridesUseHTTP2(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]Overrides{
		`{}`:                 {HTTP2: true},
		`{"scheme":"http"}`:  {HTTP2: true, Scheme: "http"},
		`{"scheme":"https"}`: {HTTP2: true, Scheme: "https"},
		`{"tls_server_name":"app.internal","tls_insecure_skip_verify":true}`: {HTTP2: true, ServerName: "app.internal", InsecureSkipVerify: true},
	} {
		if got := loadKind(t, new(GRPC), config).Overrides(); got != want {
			t.Errorf("%s: got %+v, want %+v", config, got, want)
		}
	}
}

// The config does not load if the proxy does not use HTTP.
func TestGRPC_NeedsAnHTTPTransport(t *testing.T) {
	t.Parallel()
	up := way{addr: "app1:9000"}.upstream(t)
	if err := new(GRPC).ValidateUpstream(up); err != nil {
		t.Errorf("got %v, want no error", err)
	}
	up.Transport = nil
	want := "a grpc check needs HTTP, and app1:9000 is not reached over HTTP; use a tcp check, or set scheme and port of an HTTP port"
	if got := text(new(GRPC).ValidateUpstream(up)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What a Caddyfile cannot express is an error in JSON, too.
func TestGRPC_ProvisionRejectsInvalidConfig(t *testing.T) {
	t.Setenv("PROBE_NAME", "not a name")
	for _, test := range []struct{ config, want string }{
		{`{"service":"{http.request.host}"}`, "service: unrecognized placeholder {http.request.host}" + onlyGlobal},
		{`{"service":"{env.PROBE_UNSET}"}`, "service: evaluated placeholder {env.PROBE_UNSET} is empty" + onlyGlobal},
		{`{"authority":"{http.request.host}"}`, "authority: unrecognized placeholder {http.request.host}" + onlyGlobal},
		{`{"authority":"{env.PROBE_NAME}"}`, "authority must be a host, optionally with a port; got '{env.PROBE_NAME}'"},
		{`{"scheme":"h2c"}`, "scheme must be http or https; got 'h2c'"},
		{`{"tls_server_name":"{http.request.host}"}`, "tls_server_name: unrecognized placeholder {http.request.host}" + onlyGlobal},
		{`{"sevrice":""}`, `json: unknown field "sevrice"`},
	} {
		if got := text(provision(new(GRPC), test.config)); got != test.want {
			t.Errorf("%s: got %q, want %q", test.config, got, test.want)
		}
	}
	if got := text((&GRPC{Service: "\xff"}).Provision(caddy.Context{})); !strings.HasPrefix(got, "service: ") || !strings.Contains(got, "UTF-8") {
		t.Errorf("got %q, want that the service is no UTF-8", got)
	}
}

// Every option has its JSON field, errors have file and line, and what parses also
// loads.
func TestGRPC_CaddyfileGivesJSONThatLoads(t *testing.T) {
	t.Setenv("PROBE_NAME", "app.internal")
	const ofUpstream = "; only global placeholders, such as {env.*}, and those of the upstream that is probed can be used here: {http.reverse_proxy.upstream.hostport}, {http.reverse_proxy.upstream.host}, {http.reverse_proxy.upstream.port}, {http.reverse_proxy.active.target_upstream}"
	const known = ": " + everyCheck + "a grpc check has authority, header, scheme, tls_server_name and tls_insecure_skip_verify"
	for _, test := range []struct{ input, want, err string }{
		{"grpc", `{}`, ""},
		{"grpc {\n}", `{}`, ""},
		{"grpc pkg.Service", `{"service":"pkg.Service"}`, ""},
		{"grpc {env.PROBE_NAME} {\n\tauthority {env.PROBE_NAME}:443\n}", `{"service":"{env.PROBE_NAME}","authority":"{env.PROBE_NAME}:443"}`, ""},
		{"grpc {\n\tauthority [::1]:443\n\tscheme http\n}", `{"authority":"[::1]:443","scheme":"http"}`, ""},
		{
			"grpc a {\n\tscheme https\n\ttls_server_name b\n\ttls_insecure_skip_verify\n}",
			`{"service":"a","scheme":"https","tls_server_name":"b","tls_insecure_skip_verify":true}`, "",
		},

		{
			"grpc {\n\theader x-token {env.PROBE_NAME}\n\theader X-Token b\n\theader x-trace-bin AAEC\n}",
			`{"header":{"X-Token":["{env.PROBE_NAME}","b"],"X-Trace-Bin":["AAEC"]}}`, "",
		},
		{"grpc {\n\theader X-Of {http.reverse_proxy.upstream.hostport}\n}", `{"header":{"X-Of":["{http.reverse_proxy.upstream.hostport}"]}}`, ""},

		{"grpc {\n\theader a\n}", "", "header takes a name and a value, like header X-Token secret, at Testfile:2"},
		{"grpc {\n\theader \"a b\" c\n}", "", "header: a field name has letters, digits and hyphens; got 'a b', at Testfile:2"},
		{"grpc {\n\theader Host a\n}", "", "header Host cannot be set for a grpc check; write authority instead, at Testfile:2"},
		{"grpc {\n\n\theader Te a\n}", "", "header Te cannot be set: it belongs to the protocol, at Testfile:3"},
		{"grpc {\n\theader grpc-timeout 1S\n}", "", "header grpc-timeout cannot be set: names that begin with grpc- belong to the protocol, at Testfile:2"},
		{"grpc {\n\theader a-bin ***\n}", "", "header a-bin must have base64 as its value, because its name ends in -bin, at Testfile:2"},
		{"grpc {\n\theader a é\n}", "", "header a must have printable ASCII characters only in its value, at Testfile:2"},
		{"grpc {\n\theader a {http.request.host}\n}", "", "header a: unrecognized placeholder {http.request.host}" + ofUpstream + ", at Testfile:2"},
		{"grpc a b", "", "a grpc check takes one service at most; got 'b' too, at Testfile:1"},
		{"grpc {\n\tservice a\n}", "", "unrecognized option 'service'" + known + ", at Testfile:2"},
		{"grpc {\n\tauthority\n}", "", "authority takes one name, like app.internal, at Testfile:2"},
		{"grpc {\n\tauthority \"\"\n}", "", "authority takes one name, like app.internal, at Testfile:2"},
		{"grpc {\n\tauthority a b\n}", "", "authority takes one name, like app.internal, at Testfile:2"},
		{"grpc {\n\tauthority \"a b\"\n}", "", "authority must be a host, optionally with a port; got 'a b', at Testfile:2"},
		{"grpc {\n\tauthority a\n\tauthority a\n}", "", "option 'authority' is given twice, at Testfile:3"},
		{"grpc {\n\tscheme\n}", "", "scheme takes http or https, at Testfile:2"},
		{"grpc {\n\tscheme h2c\n}", "", "scheme must be http or https; got 'h2c', at Testfile:2"},
		{"grpc {\n\ttls_server_name\n}", "", "tls_server_name takes one name, like app.internal, at Testfile:2"},
		{"grpc a {\n\ttls_insecure_skip_verify on\n}", "", "tls_insecure_skip_verify takes no argument; got 'on', at Testfile:2"},
	} {
		wantParsed(t, new(GRPC), new(GRPC), test.input, test.want, test.err)
	}
}

// net/http uses HTTP/1.1 with a server that does not negotiate. Whatever it answers, it
// is no gRPC server.
func TestGRPC_HTTP1AnswerFails(t *testing.T) {
	t.Parallel()
	ca := testkit.NewAuthority(t)
	config := &tls.Config{Certificates: []tls.Certificate{ca.Between(-time.Hour, time.Hour)}}
	addr := talk(t, func(conn net.Conn) {
		secure := tls.Server(conn, config)
		defer secure.Close()
		if _, err := http.ReadRequest(bufio.NewReader(secure)); err != nil {
			return
		}
		fmt.Fprintf(secure, "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\nTrailer: Grpc-Status\r\n\r\n"+
			"7\r\n\x00\x00\x00\x00\x02\x08\x01\r\n0\r\nGrpc-Status: 0\r\n\r\n")
	})
	p := loadKind(t, new(GRPC), `{}`)
	if got, want := text(run(t, p, grpcUpstream(t, p, addr, &tls.Config{RootCAs: ca.Pool()}), long)), "the upstream speaks HTTP/1.1, not HTTP/2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
