// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"net"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

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

// Over transports of other plugins, and the handler's own for HTTP/3, redirects lead to
// the upstream only. The host that a redirect names is the Host header there.
func TestRoute_RedirectsStayAtTheUpstream(t *testing.T) {
	ctx := newContext(t)
	over := new(redirecting)
	way := newTransport(t, ctx, over)
	to, err := routeTo(way, "app:80", new(Check))
	if err != nil {
		t.Fatal(err)
	}
	if err := get(t.Context(), to, "/first", true); err != nil {
		t.Fatal(err)
	}
	want := []string{"http://app:80/first for app:80", "http://app:80/second for other.internal", "http://app:80/third for other.internal"}
	if !slices.Equal(over.asked, want) {
		t.Errorf("asked: got %v, want %v", over.asked, want)
	}
}

// collectable is a connection that is counted when nothing refers to it any more.
type collectable struct{ net.Conn }

// An HTTP/2 probe that times out leaves nothing in memory. With the idle timeout of the
// handler's transport, parts of its connection would stay for two minutes.
func TestRoute_TimedOutHTTP2LeavesNothing(t *testing.T) {
	t.Parallel()
	const upstreams = 100
	ctx := newContext(t)
	h := &reverseproxy.HTTPTransport{Versions: []string{"h2c"}}
	if err := h.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	if h.Transport.IdleConnTimeout == 0 {
		t.Fatal("the handler's transport has no idle timeout: nothing is tested")
	}
	way := newTransport(t, ctx, h)
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
	silent, err := net.Listen("tcp", "127.0.0.1:0") // it never accepts: the system does
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	var routes []*Route
	for i := range upstreams {
		to, err := routeTo(way, silent.Addr().String(), &Check{KeepConnection: i%2 == 0})
		if err != nil {
			t.Fatal(err)
		}
		routes = append(routes, to)
	}
	var probes sync.WaitGroup
	for _, to := range routes {
		probes.Go(func() {
			for range 2 {
				probing, end := context.WithTimeout(t.Context(), time.Second)
				if err := get(probing, to, "/", false); err == nil {
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
	for deadline := time.Now().Add(30 * time.Second); collected.Load() != dialed.Load(); time.Sleep(5 * time.Millisecond) {
		if runtime.GC(); time.Now().After(deadline) {
			t.Fatalf("collected %d of %d connections within 30s", collected.Load(), dialed.Load())
		}
	}
	runtime.KeepAlive(routes)
}
