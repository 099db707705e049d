// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/fcgi"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// startGRPC runs a gRPC server until the test ends; health, unless it is nil, is
// its health service.
func startGRPC(tb testing.TB, health *grpchealth.Server) string {
	tb.Helper()
	stream, err := net.Listen("tcp", testkit.Loopback(testkit.FreePort(tb)))
	if err != nil {
		tb.Fatal(err)
	}
	server := grpc.NewServer()
	if health != nil {
		grpc_health_v1.RegisterHealthServer(server, health)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(stream)
	}()
	tb.Cleanup(func() {
		server.Stop()
		<-done
	})
	return stream.Addr().String()
}

// A grpc check asks the health service over HTTP/2 without TLS, on an h2c
// upstream and on one that requests reach by HTTP/1.1. Only SERVING passes, and
// the log says what else it was.
func TestGRPC_OnlyServingPasses(t *testing.T) {
	for _, scheme := range []string{"h2c", "http"} {
		t.Run(scheme, func(t *testing.T) {
			service := grpchealth.NewServer()
			service.SetServingStatus("shop", grpc_health_v1.HealthCheckResponse_SERVING)
			serving, without := startGRPC(t, service), startGRPC(t, nil)
			site := func(name, address, service string) string {
				return fmt.Sprintf(`
http://%s.localhost {
	reverse_proxy %s://%s {
		lb_policy alive {
			check grpc %s {
				interval 40ms
				fails 2
			}
		}
	}
}`, name, scheme, address, service)
			}
			c := testkit.StartCaddy(t, site("shop", serving, "shop")+site("none", without, ""))
			testkit.Eventually(t, testkit.Patience, "a verdict on both", func() bool { return c.Up(serving) && c.Down(without) })
			service.SetServingStatus("shop", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
			testkit.Eventually(t, testkit.Patience, "it is down", func() bool { return c.Down(serving) })
			service.SetServingStatus("shop", grpc_health_v1.HealthCheckResponse_SERVING)
			testkit.Eventually(t, testkit.Patience, "it is up again", func() bool { return c.Up(serving) })

			c.Load(site("other", serving, "other"))
			testkit.Eventually(t, testkit.Patience, "a service that it does not know is down", func() bool { return c.Down(serving) })
			for _, want := range []struct{ upstream, check, reason string }{
				{without, "grpc", "has no health service"},
				{serving, "grpc shop", "NOT_SERVING"},
				{serving, "grpc other", "does not know the service 'other'"},
			} {
				testkit.Eventually(t, testkit.Patience, want.check+": the reason is logged", func() bool {
					return slices.ContainsFunc(c.Lines("upstream is down"), func(l testkit.LogLine) bool {
						return l.Upstream == want.upstream && l.Check == want.check && strings.Contains(l.Reason, want.reason)
					})
				})
			}
		})
	}
}

// startFastCGI runs a FastCGI server that answers "a", until the test ends.
func startFastCGI(tb testing.TB) string {
	tb.Helper()
	return serveFastCGI(tb, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "a") })
}

// serveFastCGI runs a FastCGI server until the test ends, and returns its address.
func serveFastCGI(tb testing.TB, answer http.HandlerFunc) string {
	tb.Helper()
	stream, err := net.Listen("tcp", testkit.Loopback(testkit.FreePort(tb)))
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = fcgi.Serve(stream, answer)
	}()
	tb.Cleanup(func() {
		stream.Close()
		<-done
	})
	return stream.Addr().String()
}

// A check can use HTTP beside FastCGI, on a port that it names. Where it cannot work over
// FastCGI, it is an error that says so.
func TestFastCGI_ChecksCanUseAnHTTPPort(t *testing.T) {
	app, side := startFastCGI(t), testkit.StartRecorder(t, "tcp", "", nil, nil)
	_, port, _ := net.SplitHostPort(side.Addr)
	site := func(kind, options string) string {
		return fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		transport fastcgi
		lb_policy alive {
			check %s {
				%s
			}
		}
	}
}`, app, kind, options)
	}
	c := testkit.StartCaddy(t, site("http /healthz", "scheme http\nport "+port))
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(app) })
	testkit.Shares(t, "FastCGI", testkit.Tally(c.Client(), c.URL(), 5), map[string]int{"a": 5})
	if len(side.Requests("/healthz")) == 0 {
		t.Error("no probe arrived at the port of the check")
	}

	for _, test := range []struct{ kind, options, want string }{
		{"grpc", "", "is not reached over HTTP"},
		{"http /healthz", "version h2c", "version has no meaning over FastCGI"},
		{"http /healthz", "proxy_protocol v1", "proxy_protocol has no meaning over FastCGI"},
		{"http /healthz", "keep_connection", "keep_connection has no meaning over FastCGI"},
		{"http /healthz", "tls_insecure_skip_verify", "need TLS"},
	} {
		if err := c.TryLoad(site(test.kind, test.options)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s with %s over FastCGI: got the error %v, want one with %q", test.kind, test.options, err, test.want)
		}
	}
	testkit.Shares(t, "after the error", testkit.Tally(c.Client(), c.URL(), 5), map[string]int{"a": 5})
}

// FastCGI upstreams are checked by TCP connects.
func TestFastCGI_IsCheckedByTCP(t *testing.T) {
	up, dead := startFastCGI(t), testkit.Refused(t)
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s %s {
		transport fastcgi
		lb_policy alive
	}
}`, up, dead))
	testkit.Eventually(t, testkit.Patience, "both have a verdict", func() bool { return c.Up(up) && c.Down(dead) })
	testkit.Shares(t, "FastCGI", testkit.Tally(c.Client(), c.URL(), 10), map[string]int{"a": 10})
}
