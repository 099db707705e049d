// SPDX-License-Identifier: Apache-2.0

package test

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// Probes use the handler's client certificate, without a further option. They speak HTTP/2
// where the upstream does, over connections that no request uses.
func TestTLS_ProbesHaveThatOfTheHandler(t *testing.T) {
	ca := testkit.NewAuthority(t)
	_, certFile, keyFile := ca.Issue("the proxy", time.Now().Add(time.Hour))
	for _, test := range []struct {
		name    string
		offers  []string // by ALPN
		options string   // of the transport
		proto   string
	}{
		{"HTTP/2", []string{"h2", "http/1.1"}, "", "HTTP/2.0"},
		{"HTTP/1.1 upstream", []string{"http/1.1"}, "", "HTTP/1.1"},
		{"HTTP/1.1 handler", []string{"h2", "http/1.1"}, "versions 1.1", "HTTP/1.1"},
		{"one connection", []string{"h2", "http/1.1"}, "max_conns_per_host 1", "HTTP/2.0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := ca.Mutual("app.internal")
			config.NextProtos = test.offers
			r := testkit.StartRecorder(t, "tcp", "", config, nil)
			c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy https://%s {
		lb_policy alive {
			check http /healthz {
				interval 40ms
			}
			check tls
			fail_open off
		}
		transport http {
			tls_trust_pool file %s
			tls_server_name app.internal
			tls_client_auth %s %s
			%s
		}
	}
}`, r.Addr, "`"+ca.File+"`", "`"+certFile+"`", "`"+keyFile+"`", test.options))
			testkit.Eventually(t, testkit.Patience, "both checks pass", func() bool { return c.Statuses(r.Addr)["up"] == 2 })
			client := c.Client()
			testkit.Eventually(t, testkit.Patience, "probes and requests arrive in turns", func() bool {
				return testkit.Ask(client, c.URL()+"/page").Body == "a" && len(r.Requests("/healthz")) > 5
			})
			for _, a := range append(r.Requests("/healthz"), r.Requests("/page")...) {
				if a.Proto != test.proto || a.Client != "the proxy" {
					t.Fatalf("%s arrived by %s with the certificate of %q, want %s and the proxy's", a.Path, a.Proto, a.Client, test.proto)
				}
			}
			shared := r.Visits(func(v *testkit.Visit) bool {
				is := func(path string) bool {
					return slices.ContainsFunc(v.Requests, func(a testkit.Request) bool { return a.Path == path })
				}
				return is("/healthz") && is("/page")
			})
			if len(shared) > 0 {
				t.Errorf("connections with probes and requests on them: got %d, want 0", len(shared))
			}
			for _, v := range r.Visits(func(*testkit.Visit) bool { return true }) {
				if v.ServerName != "app.internal" {
					t.Errorf("a connection asked for the name %q, want app.internal", v.ServerName)
				}
			}
		})
	}
}

// An upstream that wants a client certificate is down without it, also for a check by TLS,
// where the handshake itself does not fail. That check names the reason; for a check by
// HTTP the connection may be reset before it can be read.
func TestTLS_MissingClientCertificateIsDown(t *testing.T) {
	ca := testkit.NewAuthority(t)
	r := testkit.StartRecorder(t, "tcp", "", ca.Mutual("app.internal"), nil)
	for _, check := range []string{"http /healthz", "tls"} {
		t.Run(check, func(t *testing.T) {
			c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy https://%s {
		lb_policy alive {
			check %s
			fail_open off
		}
		transport http {
			tls_trust_pool file %s
			tls_server_name app.internal
		}
	}
}`, r.Addr, check, "`"+ca.File+"`"))
			testkit.Eventually(t, testkit.Patience, "the reason is logged", func() bool {
				return slices.ContainsFunc(c.Lines("upstream is down"), func(l testkit.LogLine) bool {
					return check != "tls" || strings.Contains(l.Reason, "certificate required")
				})
			})
			if a := testkit.Ask(c.Client(), c.URL()); a.Status != http.StatusServiceUnavailable {
				t.Errorf("a request: got %v, want 503", a)
			}
		})
	}
}

// The server name can be the upstream by a placeholder, or the own one of the check.
func TestTLS_ServerName(t *testing.T) {
	ca := testkit.NewAuthority(t)
	for _, test := range []struct{ name, host, cert, check, transport, sni string }{
		{"the upstream's", "localhost", "localhost", "", "", "localhost"},
		{"by placeholder", "localhost", "localhost", "", "tls_server_name {http.reverse_proxy.upstream.host}", "localhost"},
		{"the check's", "127.0.0.1", "health.internal", "tls_server_name health.internal", "tls_server_name app.internal", "health.internal"},
		// what the check accepts says nothing of what the proxy does
		{"any", "127.0.0.1", "other.internal", "tls_insecure_skip_verify", "tls_server_name app.internal", "app.internal"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := testkit.StartRecorder(t, "tcp", "", ca.Server(test.cert), nil)
			_, port, _ := net.SplitHostPort(r.Addr)
			address := net.JoinHostPort(test.host, port)
			c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy https://%s {
		lb_policy alive {
			check http /healthz {
				%[2]s
			}
			check tls {
				%[2]s
			}
		}
		transport http {
			tls_trust_pool file %[3]s
			%[4]s
		}
	}
}`, address, test.check, "`"+ca.File+"`", test.transport))
			testkit.Eventually(t, testkit.Patience, "both checks pass", func() bool { return c.Statuses(address)["up"] == 2 })
			for _, v := range r.Visits(func(v *testkit.Visit) bool { return v.Secure }) {
				if v.ServerName != test.sni {
					t.Errorf("a probe asked for the name %q, want %q", v.ServerName, test.sni)
				}
			}
			want := http.StatusOK
			if test.check != "" {
				want = http.StatusBadGateway
			}
			if a := testkit.Ask(c.Client(), c.URL()); a.Status != want {
				t.Errorf("a request: got %v, want %d", a, want)
			}
		})
	}
}

// A certificate for another name, of an unknown CA, or expired takes an upstream down,
// with the reason in the log. No request fails while another upstream serves. Otherwise
// clients get 503, or the error of the last resort.
func TestTLS_BadCertificatesAreDown(t *testing.T) {
	ca, stranger := testkit.NewAuthority(t), testkit.NewAuthority(t)
	past, _, _ := ca.Issue("app.internal", time.Now().Add(-time.Hour))
	good := testkit.StartRecorder(t, "tcp", "", ca.Server("app.internal"), nil)
	bad := map[string]*testkit.Recorder{ // by what the reason says
		"valid for other.internal, not app.internal": testkit.StartRecorder(t, "tcp", "", ca.Server("other.internal"), nil),
		"signed by unknown authority":                testkit.StartRecorder(t, "tcp", "", stranger.Server("app.internal"), nil),
		"expired":                                    testkit.StartRecorder(t, "tcp", "", &tls.Config{Certificates: []tls.Certificate{past}}, nil),
		"does not look like a TLS handshake":         testkit.StartRecorder(t, "tcp", "", nil, nil),
	}
	var all []string
	for _, r := range bad {
		all = append(all, "https://"+r.Addr)
	}
	site := func(check, options string, upstreams ...string) string {
		return fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check %s
			%s
		}
		transport http {
			tls_trust_pool file %s
			tls_server_name app.internal
		}
	}
}`, strings.Join(upstreams, " "), check, options, "`"+ca.File+"`")
	}
	for _, check := range []string{"http /healthz", "tls"} {
		t.Run(check, func(t *testing.T) {
			c := testkit.StartCaddy(t, site(check, "", append(all, "https://"+good.Addr)...))
			client := c.Client()
			testkit.Shares(t, "from the first request on", testkit.Tally(client, c.URL(), 10), map[string]int{"a": 10})
			for reason, r := range bad {
				testkit.Eventually(t, testkit.Patience, "a line that says: "+reason, func() bool {
					return slices.ContainsFunc(c.Lines("upstream is down"), func(l testkit.LogLine) bool {
						return l.Upstream == r.Addr && l.Check == check && strings.Contains(l.Reason, reason)
					})
				})
				if n := len(r.Requests("/healthz")); n > 0 {
					t.Errorf("%s: got %d probes, want none: it is not to be trusted", reason, n)
				}
			}

			for options, want := range map[string]int{"fail_open off": http.StatusServiceUnavailable, "": http.StatusBadGateway} {
				c.Load(site(check, options, all...))
				testkit.Eventually(t, testkit.Patience, fmt.Sprintf("with %q, clients get %d", options, want), func() bool { return testkit.Ask(client, c.URL()).Status == want })
			}
		})
	}
}

// An HTTP/3 upstream is probed over HTTP/3, because nothing listens for TCP there. It is
// down when it is gone, and a check that connects by TCP is an error.
func TestHTTP3_IsProbedOverHTTP3(t *testing.T) {
	ca := testkit.NewAuthority(t)
	address := testkit.Loopback(testkit.FreePort(t))
	config := ca.Server("app.internal")
	serve := func() (stop func()) {
		packets, err := net.ListenPacket("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		server := &http3.Server{
			TLSConfig: http3.ConfigureTLSConfig(config),
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, r.Proto)
			}),
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = server.Serve(packets)
		}()
		return func() {
			server.Close()
			packets.Close()
			<-done
		}
	}
	stop := serve()
	defer func() { stop() }()
	named := func(serverName, check string) string {
		return fmt.Sprintf(`
http:// {
	reverse_proxy https://%s {
		lb_policy alive {
			check %s
		}
		transport http {
			versions 3
			tls_trust_pool file %s
			tls_server_name %s
		}
	}
}`, address, check, "`"+ca.File+"`", serverName)
	}
	site := func(check string) string { return named("app.internal", check) }
	c := testkit.StartCaddy(t, site("http /healthz {\ninterval 100ms\ntimeout 500ms\nfails 2\nexpect_body ^HTTP/3\n}"))
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(address) })
	testkit.Shares(t, "requests", testkit.Tally(c.Client(), c.URL(), 3), map[string]int{"HTTP/3.0": 3})
	stop()
	testkit.Eventually(t, testkit.Patience, "it is down when it is gone", func() bool { return c.Down(address) })
	stop = serve()
	testkit.Eventually(t, testkit.Patience, "it is up when it is back", func() bool { return c.Up(address) })
	for _, check := range []string{"tcp", "tls"} {
		if err := c.TryLoad(site(check)); err == nil {
			t.Errorf("a %s check of an HTTP/3 upstream is loaded", check)
		}
	}

	// a health port beside it is reached as the check says
	side := testkit.StartRecorder(t, "tcp", "", nil, nil)
	_, port, _ := net.SplitHostPort(side.Addr)
	c.Load(site("http /healthz {\nport " + port + "\nscheme http\n}"))
	testkit.Eventually(t, testkit.Patience, "it is up by its plain port", func() bool {
		return len(side.Requests("/healthz")) > 0 && c.Up(address)
	})
}

// An HTTP/3 upstream with a server name that depends on the request cannot be checked and
// counts as alive.
func TestHTTP3_ServerNameOfTheRequestIsNotChecked(t *testing.T) {
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy https://%s {
		lb_policy alive {
			check http /healthz {
				timeout 200ms
			}
			fail_open off
		}
		transport http {
			versions 3
			tls_server_name {http.request.host}
		}
	}
}`, testkit.Loopback(testkit.FreePort(t))))
	if rows := c.List(nil); len(rows) != 1 || len(rows[0].Checks) != 0 {
		t.Errorf("rows: got %+v, want one without checks", rows)
	}
	if n := len(c.Lines("upstream cannot be checked")); n != 1 {
		t.Errorf("warnings: got %d, want 1", n)
	}
}
