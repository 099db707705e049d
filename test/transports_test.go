// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

func init() {
	caddy.RegisterModule(new(plainTransport))
	caddy.RegisterModule(new(fullTransport))
}

// inUse is how many of these transports are provisioned, and overridden how often one was
// asked for the scheme of a check.
var inUse, overridden atomic.Int64

// plainTransport is one of another module, with none of the interfaces that it may have. It
// panics on requests for /panic.
type plainTransport struct{ inner *http.Transport }

// CaddyModule returns the Caddy module information.
func (*plainTransport) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.reverse_proxy.transport.alive_test_plain", New: func() caddy.Module { return new(plainTransport) }}
}

// Provision counts the transport.
func (p *plainTransport) Provision(caddy.Context) error {
	p.inner = new(http.Transport)
	inUse.Add(1)
	return nil
}

// Cleanup counts it no more.
func (p *plainTransport) Cleanup() error {
	p.inner.CloseIdleConnections()
	inUse.Add(-1)
	return nil
}

// UnmarshalCaddyfile accepts the name of the transport, without options.
func (*plainTransport) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	return nil
}

// RoundTrip sends a request.
func (p *plainTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, "/panic") {
		panic("a fault of the transport")
	}
	if r.URL.Scheme == "" {
		r.URL.Scheme = "http"
	}
	return p.inner.RoundTrip(r)
}

// fullTransport has all of the interfaces.
type fullTransport struct{ plainTransport }

// CaddyModule returns the Caddy module information.
func (*fullTransport) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.reverse_proxy.transport.alive_test_full", New: func() caddy.Module { return new(fullTransport) }}
}

// RequestHeaderOps adds a field.
func (*fullTransport) RequestHeaderOps() *headers.HeaderOps {
	return &headers.HeaderOps{Set: http.Header{"From-Transport": {"yes"}}}
}

// ProxyProtocolEnabled says no.
func (*fullTransport) ProxyProtocolEnabled() bool { return false }

// RequiresContentLength says yes.
func (*fullTransport) RequiresContentLength() bool { return true }

// OverrideHealthCheckScheme leaves the scheme.
func (*fullTransport) OverrideHealthCheckScheme(*url.URL, string) { overridden.Add(1) }

var (
	_ reverseproxy.RequestHeaderOpsTransport           = (*fullTransport)(nil)
	_ reverseproxy.ProxyProtocolTransport              = (*fullTransport)(nil)
	_ reverseproxy.ContentLengthRequiredTransport      = (*fullTransport)(nil)
	_ reverseproxy.HealthCheckSchemeOverriderTransport = (*fullTransport)(nil)
)

// A transport of another module works as with another policy, whatever of Caddy's interfaces
// it has, also if it panics. It is cleaned up once.
func TestObserver_TransportsOfOtherModules(t *testing.T) {
	app := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s, length %d, from the transport: %s", body, r.ContentLength, r.Header.Get("From-Transport"))
	})
	text := "http:// {\n"
	for _, transport := range []string{"plain", "full"} {
		for name, policy := range map[string]string{
			"core":  "lb_policy round_robin\nhealth_uri /core\nhealth_interval 50ms",
			"alive": "lb_policy alive /healthz\nhealth_uri /core\nhealth_interval 50ms",
		} {
			text += fmt.Sprintf("handle_path /%s/%s/* {\nreverse_proxy %s {\n%s\ntransport alive_test_%s\n}\n}\n", transport, name, app.Addr, policy, transport)
		}
	}
	c := testkit.StartCaddy(t, text+"}")
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(app.Addr) })
	client := c.Client()
	for transport, operated := range map[string]string{"plain": "", "full": "yes"} {
		var got []string
		for _, name := range []string{"core", "alive"} {
			url := c.URL() + "/" + transport + "/" + name
			got = append(got, post(client, url+"/form", io.MultiReader(strings.NewReader("form"))))
		}
		if want := fmt.Sprintf(`from the transport: %s"`, operated); got[0] != got[1] || !strings.Contains(got[0], "200 \"form") || !strings.HasSuffix(got[0], want) {
			t.Errorf("%s: answers %q with another policy and with alive, want the same with %q", transport, got, want)
		}
		core := testkit.Ask(client, c.URL()+"/"+transport+"/core/panic").Status
		for range 10 {
			if got := testkit.Ask(client, c.URL()+"/"+transport+"/alive/panic").Status; got != core {
				t.Errorf("%s panics: status %d, want %d as with another policy", transport, got, core)
			}
		}
	}
	testkit.Stays(t, 700*time.Millisecond, "a request that panicked waits for no answer", func() bool { // auto stalls after 500 ms
		row := c.List(url.Values{"upstream": {app.Addr}})[0]
		return !row.Suspect && row.Status == "up"
	})
	for name, n := range c.Metrics() {
		if strings.HasPrefix(name, "accusations_total") && n > 0 {
			t.Errorf("%s is %v, want none", name, n)
		}
	}
	if overridden.Load() == 0 {
		t.Error("checks of Caddy itself do not ask the transport for the scheme")
	}
	if n := inUse.Load(); n != 4 {
		t.Errorf("%d transports are in use, want 4", n)
	}
	c.Load(strings.Replace(text, "http:// {", "http:// {\nheader Version 2", 1) + "}")
	c.Stop()
	if n := inUse.Load(); n != 0 {
		t.Errorf("%d transports are in use after the end, want none", n)
	}
}

// As the fallback of another policy, it sees the requests, too: one failed request is enough.
func TestObserver_AsFallback(t *testing.T) {
	var routes []route
	text := "http:// {\n"
	for _, policy := range []string{"cookie", "header X-Upstream", "query upstream"} {
		r := route{path: strings.Fields(policy)[0], upstreams: three(t)}
		routes = append(routes, r)
		text += fmt.Sprintf("handle /%s {\nreverse_proxy %s {\nlb_policy %s {\nfallback alive {\nname %s\n%s\nretries off\n}\n}\n}\n}\n",
			r.path, testkit.Addresses(r.upstreams...), policy, r.path, burstCheck)
	}
	c := testkit.StartCaddy(t, text+"}")
	awaitUp(t, c, routes...)
	together(t, routes, routePath, func(t *testing.T, r route) {
		c, bad := c.For(t), r.upstreams[1]
		load := testkit.OpenLoop(t, 10*time.Millisecond, asks(c, http.MethodGet, r.path, ""))
		load.Await(t, 20)
		bad.Set(testkit.Refusing)
		testkit.Eventually(t, testkit.Patience, "it is down", func() bool { return c.Down(bad.Addr) })
		load.Await(t, 20)
		sent := load.Stop()
		wantRounds(t, r.path, sent, 1)
		if n := accusations(c, r.path, bad.Addr, "connect") + accusations(c, r.path, bad.Addr, "outcome"); n == 0 {
			t.Error("it was not accused")
		}
	})
}

// A connection that was upgraded is not a request that waits, however long it lasts, and its
// end accuses no upstream.
func TestObserver_UpgradedConnectionsDoNotWait(t *testing.T) {
	site := playground(nil)
	app := testkit.StartRecorder(t, "tcp", "", nil, site.ServeHTTP)
	c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s {\nlb_policy alive {\nname shop\nobserve {\nstall 50ms\n}\n}\n}\n}", app.Addr))
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(app.Addr) })
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.URL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	if response, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("answer %v, error %v, want 101", response, err)
	}
	if row := c.One(app.Addr); row.Requests != 1 {
		t.Errorf("%d requests are in flight, want 1", row.Requests)
	}
	testkit.Stays(t, 300*time.Millisecond, "it is not suspect", func() bool { return !c.One(app.Addr).Suspect })
	app.CloseVisits("/upgrade") // by the upstream
	conn.Close()
	testkit.Eventually(t, testkit.Patience, "the connection has ended", func() bool { return c.One(app.Addr).Requests == 0 })
	for _, cause := range []string{"connect", "outcome", "stall"} {
		if n := accusations(c, "shop", app.Addr, cause); n != 0 {
			t.Errorf("accused of %s %v times, want never", cause, n)
		}
	}
}
