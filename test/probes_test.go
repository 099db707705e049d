// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// These tests have checks that probe in another way than requests, or with what the
// handler or the upstream says.

// fastCGI is a FastCGI server. Its answers to /ping can be changed.
type fastCGI struct {
	addr string
	ping atomic.Pointer[http.HandlerFunc]
	ends atomic.Bool // it closes connections at once

	mu   sync.Mutex
	seen []map[string]string // the variables of requests for /ping, and what these ask
}

// startFastCGIServer runs one until the test ends.
func startFastCGIServer(tb testing.TB) *fastCGI {
	tb.Helper()
	stream, err := net.Listen("tcp", testkit.Loopback(testkit.FreePort(tb)))
	if err != nil {
		tb.Fatal(err)
	}
	f := &fastCGI{addr: stream.Addr().String()}
	f.answer(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "pong") })
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = fcgi.Serve(endingListener{stream, f}, f)
	}()
	tb.Cleanup(func() {
		stream.Close()
		<-done
	})
	return f
}

func (f *fastCGI) answer(ping http.HandlerFunc) { f.ping.Store(&ping) }

func (f *fastCGI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/ping" {
		fmt.Fprint(w, "a")
		return
	}
	variables := fcgi.ProcessEnv(r)
	variables["HOST"], variables["METHOD"], variables["URI"], variables["AGENT"] = r.Host, r.Method, r.URL.RequestURI(), r.UserAgent()
	f.mu.Lock()
	f.seen = append(f.seen, variables)
	f.mu.Unlock()
	(*f.ping.Load())(w, r)
}

// newest returns the variables of the newest probe.
func (f *fastCGI) newest() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.seen) == 0 {
		return nil
	}
	return f.seen[len(f.seen)-1]
}

// endingListener accepts the connections of a FastCGI server, or closes them.
type endingListener struct {
	net.Listener
	of *fastCGI
}

func (l endingListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || !l.of.ends.Load() {
			return conn, err
		}
		conn.Close()
	}
}

// reasonsOf returns the reasons in the log for which an upstream went down.
func reasonsOf(c *testkit.Caddy, upstream string) (reasons []string) {
	for _, line := range c.Lines("upstream is down") {
		if line.Upstream == upstream {
			reasons = append(reasons, line.Reason)
		}
	}
	return reasons
}

// Over FastCGI, an http check asks as requests do, with the settings of the transport, and
// every probe has a connection of its own, which ends with it. The answer decides.
func TestFastCGI_HTTPCheckJudgesTheAnswer(t *testing.T) {
	app := startFastCGIServer(t)
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		transport fastcgi {
			root /srv/www
			split .php
			env APP_ENV check
			env APP_OF {http.reverse_proxy.upstream.hostport}
			env APP_ASKED {http.request.uri.path}
		}
		lb_policy alive {
			check http /ping?full=1 {
				interval 30ms
				fast_interval 30ms
				timeout 300ms
				fails 2
				expect_body ^pong$
				header X-Probe yes
				header Host app.internal
			}
			fail_open off
		}
	}
}`, app.addr))
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(app.addr) })
	testkit.Shares(t, "requests", testkit.Tally(c.Client(), c.URL(), 5), map[string]int{"a": 5})
	got := app.newest()
	for name, want := range map[string]string{
		"HOST": "app.internal", "METHOD": "GET", "URI": "/ping?full=1", "AGENT": "caddy-alive",
		"DOCUMENT_ROOT": "/srv/www", "SCRIPT_FILENAME": "/srv/www/ping", "APP_ENV": "check", "APP_OF": app.addr, "APP_ASKED": "/ping",
	} {
		if got[name] != want {
			t.Errorf("%s: got %q, want %q", name, got[name], want)
		}
	}

	hang := make(chan struct{})
	defer close(hang)
	for _, trouble := range []struct {
		name, reason string
		ping         http.HandlerFunc
		ends         bool
	}{
		{name: "an error", reason: "status 503, want 2xx", ping: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }},
		{name: "another body", reason: "body", ping: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "no") }},
		{name: "no answer", reason: "no verdict within 300ms", ping: func(http.ResponseWriter, *http.Request) { <-hang }},
		{name: "no end of the answer", reason: "no verdict within 300ms", ping: func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, strings.Repeat("x", 20_000))
			<-hang
		}},
		{name: "no header", reason: "", ends: true},
	} {
		before := len(reasonsOf(c, app.addr))
		if trouble.ping != nil {
			app.answer(trouble.ping)
		}
		app.ends.Store(trouble.ends)
		testkit.Eventually(t, testkit.Patience, trouble.name+": it is down", func() bool { return len(reasonsOf(c, app.addr)) > before })
		if reason := reasonsOf(c, app.addr)[before]; !strings.Contains(reason, trouble.reason) || reason == "" {
			t.Errorf("%s: got the reason %q, want one with %q", trouble.name, reason, trouble.reason)
		}
		app.ends.Store(false)
		app.answer(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "pong") })
		testkit.Eventually(t, testkit.Patience, trouble.name+": it is up again", func() bool { return c.Up(app.addr) })
	}
}

// A check that follows redirects does so over FastCGI, too.
func TestFastCGI_RedirectsAreFollowed(t *testing.T) {
	app := startFastCGIServer(t)
	app.answer(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery == "" {
			http.Redirect(w, r, "http://elsewhere.internal/ping?again", http.StatusFound)
			return
		}
		fmt.Fprint(w, "there")
	})
	c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s {\ntransport fastcgi\nlb_policy alive {\ncheck http /ping {\nfollow_redirects\nexpect_body ^there$\n}\n}\n}\n}", app.addr))
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(app.addr) })
	if got := app.newest()["URI"]; got != "/ping?again" {
		t.Errorf("asked for %s, want /ping?again", got)
	}
}

// A probe over FastCGI closes its connection when its timeout is over, so those of a
// server that hangs do not pile up.
func TestFastCGI_ProbesOfAHangingServerDoNotPileUp(t *testing.T) {
	stream, err := net.Listen("tcp", testkit.Loopback(testkit.FreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var open, most, ended atomic.Int64
	go func() { // it accepts, and sees when the other side closes
		for {
			conn, err := stream.Accept()
			if err != nil {
				return
			}
			most.Store(max(most.Load(), open.Add(1)))
			go func() {
				_, _ = io.Copy(io.Discard, conn)
				conn.Close()
				open.Add(-1)
				ended.Add(1)
			}()
		}
	}()
	addr := stream.Addr().String()
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		transport fastcgi
		lb_policy alive {
			check http /ping {
				interval 20ms
				timeout 100ms
			}
		}
	}
}`, addr))
	testkit.Eventually(t, testkit.Patience, "it is down, and ten probes have closed their connections", func() bool { return c.Down(addr) && ended.Load() >= 10 })
	if n := most.Load(); n > 4 {
		t.Errorf("connections at once: got %d, want a few", n)
	}
	c.Stop()
	testkit.Eventually(t, testkit.Patience, "no connection is left", func() bool { return open.Load() == 0 })
}

// The version of an http check is that of its probes, whatever requests speak.
func TestVersion_IsThatOfProbes(t *testing.T) {
	ca := testkit.NewAuthority(t)
	onlyHTTP1 := ca.Server("app.internal")
	onlyHTTP1.NextProtos = []string{"http/1.1"}
	for _, test := range []struct {
		name             string
		scheme           string
		upstream, probed *tls.Config
		options          string
		transport        string
		proto            string // of probes; empty: they fail
	}{
		{"HTTP/1.1 beside h2c", "h2c", nil, nil, "version 1.1", "", "HTTP/1.1"},
		{"h2c beside HTTP/1.1", "http", nil, nil, "version h2c", "", "HTTP/2.0"},
		{"HTTP/1.1 beside HTTP/2", "https", ca.Server("app.internal"), ca.Server("app.internal"), "version 1.1", "", "HTTP/1.1"},
		{"HTTP/2 beside HTTP/1.1", "https", ca.Server("app.internal"), ca.Server("app.internal"), "version 2", "versions 1.1", "HTTP/2.0"},
		{"HTTP/2 beside plain HTTP", "http", nil, ca.Server("app.internal"), "version 2\nscheme https\ntls_insecure_skip_verify", "", "HTTP/2.0"},
		{"plain HTTP/1.1 beside HTTP/2", "https", ca.Server("app.internal"), nil, "version 1.1\nscheme http", "", "HTTP/1.1"},
		{"HTTP/2 of a server without it", "https", ca.Server("app.internal"), onlyHTTP1, "version 2", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			app := testkit.StartRecorder(t, "tcp", "", test.upstream, nil)
			side := testkit.StartRecorder(t, "tcp", "", test.probed, nil)
			_, port, _ := net.SplitHostPort(side.Addr)
			transport := test.transport
			if test.upstream != nil {
				transport += fmt.Sprintf("\ntls_trust_pool file `%s`\ntls_server_name app.internal", ca.File)
			}
			c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s://%s {
		lb_policy alive {
			check http /healthz {
				port %s
				interval 50ms
				%s
			}
		}
		transport http {
			%s
		}
	}
}`, test.scheme, app.Addr, port, test.options, transport))
			if test.proto == "" {
				testkit.Eventually(t, testkit.Patience, "it is down", func() bool { return c.Down(app.Addr) })
				if reason := reasonsOf(c, app.Addr)[0]; !strings.Contains(reason, "HTTP") && !strings.Contains(reason, "protocol") {
					t.Errorf("got the reason %q, want one about the version", reason)
				}
				return
			}
			testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(app.Addr) && len(side.Requests("/healthz")) > 2 })
			for _, request := range side.Requests("/healthz") {
				if request.Proto != test.proto {
					t.Fatalf("a probe arrived by %s, want %s", request.Proto, test.proto)
				}
			}
			testkit.Shares(t, "requests", testkit.Tally(c.Client(), c.URL(), 3), map[string]int{"a": 3})
		})
	}
}

// One service that knows the health of all upstreams is asked for each of them, by
// placeholders of the upstream.
func TestPlaceholders_TellTheUpstreamToOneHealthService(t *testing.T) {
	apps := testkit.StartBackends(t, "a", "b")
	var mu sync.Mutex
	sick := ""
	asked := make(map[string]string) // the other places by the address in the header
	side := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		upstream := r.Header.Get("X-Upstream")
		mu.Lock()
		defer mu.Unlock()
		asked[upstream] = strings.Join([]string{r.URL.RequestURI(), r.Host, string(body)}, " ")
		if upstream == sick {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /of/{rp.upstream.port}?host={http.reverse_proxy.upstream.host} {
				address %s
				interval 30ms
				fast_interval 30ms
				header X-Upstream {upstream_hostport}
				header Host {http.reverse_proxy.upstream.port}.internal
				request_body "target {http.reverse_proxy.active.target_upstream} {}"
			}
			fail_open off
		}
	}
}`, testkit.Addresses(apps...), side.Addr))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(apps[0].Addr, apps[1].Addr) })
	mu.Lock()
	for _, app := range apps {
		_, port, _ := net.SplitHostPort(app.Addr)
		if got, want := asked[app.Addr], fmt.Sprintf("/of/%s?host=127.0.0.1 %s.internal target %s {}", port, port, app.Addr); got != want {
			t.Errorf("asked for %s: got %q, want %q", app.Addr, got, want)
		}
	}
	sick = apps[1].Addr
	mu.Unlock()
	testkit.Eventually(t, testkit.Patience, "one of them is down", func() bool { return c.Up(apps[0].Addr) && c.Down(apps[1].Addr) })
	testkit.Shares(t, "requests", testkit.Tally(c.Client(), c.URL(), 4), map[string]int{"a": 4})
	label := "http /of/{http.reverse_proxy.upstream.port}?host={http.reverse_proxy.upstream.host} Host {http.reverse_proxy.upstream.port}.internal header X-Upstream address " + side.Addr
	if got := c.One(apps[0].Addr).Checks[0].Check; got != label {
		t.Errorf("label: got %q, want %q", got, label)
	}
}

// A port with a plus is added to the port of each upstream.
func TestPort_IsAddedToThatOfEachUpstream(t *testing.T) {
	app := testkit.StartBackend(t, "a", nil)
	_, text, _ := net.SplitHostPort(app.Addr)
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	var side *testkit.Recorder
	distance := 0
	for n := 1; side == nil && n < 1000 && port+n < 65536; n++ { // the nearest free one above it
		if stream, err := net.Listen("tcp", testkit.Loopback(port+n)); err == nil {
			stream.Close()
			side, distance = testkit.StartRecorder(t, "tcp", testkit.Loopback(port+n), nil, nil), n
		}
	}
	if side == nil {
		t.Fatal("no free port above that of the upstream")
	}
	c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s {\nlb_policy alive {\ncheck http /healthz {\nport +%d\n}\n}\n}\n}", app.Addr, distance))
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(app.Addr) })
	if len(side.Requests("/healthz")) == 0 {
		t.Error("no probe arrived at the port above")
	}
	if got, want := c.One(app.Addr).Checks[0].Check, fmt.Sprintf("http /healthz port +%d", distance); got != want {
		t.Errorf("label: got %q, want %q", got, want)
	}
	err = c.TryLoad("http:// {\nreverse_proxy 127.0.0.1:65000 {\nlb_policy alive {\ncheck tcp {\nport +1000\n}\n}\n}\n}")
	if want := "there is no port 66000"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got the error %v, want one with %q", err, want)
	}
}

// The headers of a grpc check are metadata of its calls.
func TestGRPC_HeadersAreMetadata(t *testing.T) {
	stream, err := net.Listen("tcp", testkit.Loopback(testkit.FreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	calls := make(chan metadata.MD, 100)
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		got, _ := metadata.FromIncomingContext(ctx)
		select {
		case calls <- got:
		default:
		}
		return handle(ctx, req)
	}))
	grpc_health_v1.RegisterHealthServer(server, grpchealth.NewServer())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(stream)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	t.Setenv("ALIVE_TEST_TOKEN", "secret-token")
	addr := stream.Addr().String()
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy h2c://%s {
		lb_policy alive {
			check grpc {
				header Authorization "Bearer {env.ALIVE_TEST_TOKEN}"
				header X-Tenant a
				header X-Tenant b
				header X-Of {upstream_hostport}
				header X-Trace-Bin AAEC/w==
				header User-Agent checker
			}
		}
	}
}`, addr))
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(addr) })
	got := testkit.Wait(t, calls, testkit.Patience)
	for name, want := range map[string][]string{
		"authorization": {"Bearer secret-token"}, "x-tenant": {"a", "b"}, "x-of": {addr},
		"x-trace-bin": {"\x00\x01\x02\xff"}, "user-agent": {"checker"},
	} {
		if !slices.Equal(got.Get(name), want) {
			t.Errorf("%s: got %q, want %q", name, got.Get(name), want)
		}
	}
	if label := c.One(addr).Checks[0].Check; strings.Contains(label, "secret") || !strings.Contains(label, "header Authorization") {
		t.Errorf("label: got %q, want one with the names of the headers alone", label)
	}
}

// The constant Host that a handler sets is that of its http checks. Handlers with another
// one do not share its probes.
func TestHost_IsThatOfTheHandler(t *testing.T) {
	for _, test := range []struct{ name, handler, check, want string }{
		{"constant", "header_up Host shop.internal", "", "shop.internal"},
		{"of another case", "header_up host shop.internal:81", "", "shop.internal:81"},
		{"the check wins", "header_up Host shop.internal", "header Host check.internal", "check.internal"},
		{"placeholder", "header_up Host {upstream_hostport}", "", ""},
		{"deleted", "header_up Host shop.internal\nheader_up -Host", "", ""},
		{"replaced", "header_up Host shop shop.internal", "", ""},
		{"added", "header_up +Host shop.internal", "", ""},
		{"another header", "header_up X-Host shop.internal", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := testkit.StartRecorder(t, "tcp", "", nil, nil)
			c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s {\n%s\nlb_policy alive {\ncheck http /healthz {\n%s\n}\n}\n}\n}", r.Addr, test.handler, test.check))
			testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(r.Addr) })
			want, label := test.want, "http /healthz"
			if want == "" {
				want = r.Addr
			} else {
				label += " Host " + want
			}
			if got := r.Requests("/healthz")[0].Host; got != want {
				t.Errorf("Host: got %q, want %q", got, want)
			}
			if got := c.One(r.Addr).Checks[0].Check; got != label {
				t.Errorf("label: got %q, want %q", got, label)
			}
		})
	}
	t.Run("two handlers", func(t *testing.T) {
		r := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
			if r.Host == "b.internal" {
				w.WriteHeader(http.StatusMisdirectedRequest)
			}
		})
		site := func(host string) string {
			return fmt.Sprintf("http://%s.localhost {\nreverse_proxy %s {\nheader_up Host %[1]s.internal\nlb_policy alive /healthz\n}\n}\n", host, r.Addr)
		}
		c := testkit.StartCaddy(t, site("a")+site("b"))
		testkit.Eventually(t, testkit.Patience, "one is up and the other is down", func() bool {
			n := c.Statuses(r.Addr)
			return n["up"] == 1 && n["down"] == 1
		})
	})
}
