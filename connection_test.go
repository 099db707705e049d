// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/probe"
)

// keep_connection is an option of every check, and fresh_connection still one of http.
func TestKeepConnection_Caddyfile(t *testing.T) {
	for input, want := range map[string]string{
		"alive {\ncheck http /a {\nkeep_connection\n}\n}":                            `{"checks":[{"probe":{"kind":"http","uri":"/a"},"keep_connection":true}]}`,
		"alive {\ncheck grpc {\ntimeout 1s\nkeep_connection\n}\n}":                   `{"checks":[{"probe":{"kind":"grpc"},"timeout":1000000000,"keep_connection":true}]}`,
		"alive {\ncheck http /a {\nfresh_connection\nport 81\n}\n}":                  `{"checks":[{"probe":{"fresh_connection":true,"kind":"http","uri":"/a"},"port":81}]}`,
		"alive {\ncheck http /a {\nheader A fresh_connection\nkeep_connection\n}\n}": `{"checks":[{"probe":{"header":{"A":["fresh_connection"]},"kind":"http","uri":"/a"},"keep_connection":true}]}`,
	} {
		s := new(Selection)
		if err := s.UnmarshalCaddyfile(caddyfile.NewTestDispenser(input)); err != nil {
			t.Errorf("%s: %v", input, err)
		} else if got := encode(t, s); got != want {
			t.Errorf("%s\n got %s\nwant %s", input, got, want)
		}
	}
	const both = "keep_connection and fresh_connection exclude each other; without either, every probe has a connection of its own, at Testfile:"
	for input, want := range map[string]string{
		"alive {\ncheck http / {\nkeep_connection on\n}\n}":                "keep_connection takes no argument; got 'on', at Testfile:3",
		"alive {\ncheck http / {\nkeep_connection\nkeep_connection\n}\n}":  "option 'keep_connection' is given twice, at Testfile:4",
		"alive {\ncheck http / {\nkeep_connection\nfresh_connection\n}\n}": both + "4",
		"alive {\ncheck http / {\nfresh_connection\nkeep_connection\n}\n}": both + "4",
		"alive {\ncheck tcp {\nkeep_connection\n}\n}":                      "keep_connection has no meaning for a check of the kind tcp, which sends no requests, at Testfile:2",
		"alive {\ncheck tls {\ntimeout 1s\nkeep_connection\n}\n}":          "keep_connection has no meaning for a check of the kind tls, which sends no requests, at Testfile:2",
	} {
		if err := new(Selection).UnmarshalCaddyfile(caddyfile.NewTestDispenser(input)); err == nil || err.Error() != want {
			t.Errorf("%s\n got error %v\nwant error %s", input, err, want)
		}
	}
}

// The same in JSON, when the config is loaded.
func TestKeepConnection_JSON(t *testing.T) {
	const upstream = `"upstreams":[{"dial":"127.0.0.1:1"}],`
	for _, ok := range []string{
		`{"probe":{"kind":"http","uri":"/"},"keep_connection":true}`,
		`{"probe":{"kind":"grpc"},"keep_connection":true}`,
		`{"probe":{"kind":"http","uri":"/","fresh_connection":true}}`,
		`{"probe":{"kind":"http","uri":"/","fresh_connection":true},"keep_connection":false}`,
		`{"probe":{"kind":"tcp"},"keep_connection":false}`,
	} {
		if err := validate(t, upstream+alive(`"checks":[`+ok+`]`), nil); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
	for bad, want := range map[string]string{
		`{"probe":{"kind":"tcp"},"keep_connection":true}`:                                    "keep_connection has no meaning for a check of the kind tcp, which sends no requests",
		`{"probe":{"kind":"tls"},"keep_connection":true}`:                                    "keep_connection has no meaning for a check of the kind tls, which sends no requests",
		`{"probe":{"kind":"http","uri":"/","fresh_connection":true},"keep_connection":true}`: errKeepFresh.Error(),
	} {
		if err := validate(t, upstream+alive(`"checks":[`+bad+`]`), nil); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: got %v, want an error that ends in %s", bad, err, want)
		}
	}
}

// A check that keeps its connection is another target than one that does not, and
// another check.
func TestKeepConnection_IsPartOfTheIdentity(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	way, err := newTransport(ctx, new(reverseproxy.Handler))
	if err != nil {
		t.Fatal(err)
	}
	keeps, closes := &HealthCheck{KeepConnection: true}, new(HealthCheck)
	var keys []routeKey
	for _, check := range []*HealthCheck{keeps, closes, closes} {
		to, err := routeTo(way, "app:80", check)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, to.key)
	}
	if keys[0] == keys[1] || keys[1] != keys[2] {
		t.Errorf("keys: got %v, want those of equal checks to be equal only", keys)
	}
	if keeps.equal(closes) || !closes.equal(new(HealthCheck)) {
		t.Error("checks that differ in it are equal, or equal ones are not")
	}
}

// redirecting is a transport of another plugin, which goes where URLs say.
type redirecting struct{ asked []string }

func (r *redirecting) RoundTrip(req *http.Request) (*http.Response, error) {
	r.asked = append(r.asked, req.URL.String()+" for "+req.Host)
	resp := &http.Response{StatusCode: http.StatusFound, Header: make(http.Header), Body: http.NoBody, Request: req}
	switch len(r.asked) {
	case 1:
		resp.Header.Set("Location", "http://other.internal/second")
	case 2:
		resp.Header.Set("Location", "third")
	default:
		resp.StatusCode = http.StatusOK
	}
	return resp, nil
}

// Over transports of other plugins, and the handler's own for HTTP/3, redirects are
// followed to the upstream only. The host that a redirect names is asked for there.
func TestRedirects_StayOverSharedTransports(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	over := new(redirecting)
	way, err := newTransport(ctx, &reverseproxy.Handler{Transport: over})
	if err != nil {
		t.Fatal(err)
	}
	to, err := routeTo(way, "app:80", new(HealthCheck))
	if err != nil {
		t.Fatal(err)
	}
	check := &probe.HTTP{URI: "/first", FollowRedirects: true}
	if err := check.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	if err := check.Probe(t.Context(), to.up); err != nil {
		t.Fatal(err)
	}
	want := []string{"http://app:80/first for app:80", "http://app:80/second for other.internal", "http://app:80/third for other.internal"}
	if !slices.Equal(over.asked, want) {
		t.Errorf("asked: got %v, want %v", over.asked, want)
	}
}

// collectable is a connection that is counted when nothing refers to it any more.
type collectable struct{ net.Conn }

// An HTTP/2 probe that times out leaves nothing behind. With the idle timeout of the
// handler's transport, what belongs to its connection would stay for two minutes.
func TestProbes_TimedOutHTTP2LeavesNothing(t *testing.T) {
	t.Parallel()
	const upstreams = 100
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	h := &reverseproxy.HTTPTransport{Versions: []string{"h2c"}}
	if err := h.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	if h.Transport.IdleConnTimeout == 0 {
		t.Fatal("the handler's transport has no idle timeout: nothing is tested")
	}
	way, err := newTransport(ctx, &reverseproxy.Handler{Transport: h})
	if err != nil {
		t.Fatal(err)
	}
	var dialed, collected atomic.Int64
	dial := way.dial
	way.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		dialed.Add(1)
		c := &collectable{conn}
		runtime.AddCleanup(c, func(n *atomic.Int64) { n.Add(1) }, &collected)
		return c, nil
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // which never accepts: the system does
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	check := &probe.HTTP{URI: "/"}
	if err := check.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	var routes []*route
	for i := range upstreams {
		to, err := routeTo(way, silent.Addr().String(), &HealthCheck{KeepConnection: i%2 == 0})
		if err != nil {
			t.Fatal(err)
		}
		routes = append(routes, to)
	}
	var probes sync.WaitGroup
	for _, to := range routes {
		probes.Go(func() {
			for range 2 {
				probing, end := context.WithTimeout(t.Context(), 100*time.Millisecond)
				if err := check.Probe(probing, to.up); err == nil {
					t.Error("a probe passed without an answer")
				}
				end()
			}
		})
	}
	probes.Wait()
	if dialed.Load() < upstreams {
		t.Fatalf("connections: got %d, want %d at least", dialed.Load(), upstreams)
	}
	testkit.Eventually(t, 30*time.Second, "all that belongs to them is collected", func() bool {
		runtime.GC()
		return collected.Load() == dialed.Load()
	})
	runtime.KeepAlive(routes)
}
