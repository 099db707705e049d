// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// authority is a CA of a test.
type authority struct {
	tb   testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its certificate
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	a := &authority{tb: tb}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA of a test"},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var der []byte
	der, a.key = a.sign(template, nil)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		tb.Fatal(err)
	}
	a.file = writePEM(tb, "ca.pem", "CERTIFICATE", der)
	return a
}

// sign makes a certificate and its key; without a parent it signs itself.
func (a *authority) sign(template, parent *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	a.tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.tb.Fatal(err)
	}
	signer := a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.tb.Fatal(err)
	}
	return der, key
}

// issue makes a certificate for a name, for servers and clients.
func (a *authority) issue(name string, until time.Time) (cert tls.Certificate, certFile, keyFile string) {
	a.tb.Helper()
	der, key := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert)
	encoded, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		writePEM(a.tb, "cert.pem", "CERTIFICATE", der), writePEM(a.tb, "key.pem", "EC PRIVATE KEY", encoded)
}

// server is the TLS config of one with a certificate for a name.
func (a *authority) server(name string) *tls.Config {
	a.tb.Helper()
	cert, _, _ := a.issue(name, time.Now().Add(time.Hour))
	return &tls.Config{Certificates: []tls.Certificate{cert}}
}

// mutual is that of one that asks clients for a certificate.
func (a *authority) mutual(name string) *tls.Config {
	a.tb.Helper()
	config := a.server(name)
	config.ClientCAs = x509.NewCertPool()
	config.ClientCAs.AddCert(a.cert)
	config.ClientAuth = tls.RequireAndVerifyClientCert
	return config
}

func writePEM(tb testing.TB, name, kind string, der []byte) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), name)
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		tb.Fatal(err)
	}
	return file
}

// An upstream that wants a client certificate gets the handler's from probes, and
// no further option is needed. Probes speak HTTP/2 where the upstream does, over a
// connection that no request uses.
func TestCaddyProbesHaveTheHandlersTLS(t *testing.T) {
	ca := newAuthority(t)
	_, certFile, keyFile := ca.issue("the proxy", time.Now().Add(time.Hour))
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
			config := ca.mutual("app.internal")
			config.NextProtos = test.offers
			r := startRecorder(t, "tcp", "", config, nil)
			c := startCaddy(t, fmt.Sprintf(`
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
}`, r.addr, "`"+ca.file+"`", "`"+certFile+"`", "`"+keyFile+"`", test.options))
			eventually(t, patience, "both checks pass", func() bool { return statuses(r.addr)[health.Up] == 2 })
			client := c.plain()
			eventually(t, patience, "probes and requests arrive in turns", func() bool {
				return ask(client, c.url()+"/page").body == "a" && len(r.arrivals("/healthz")) > 5
			})
			for _, a := range append(r.arrivals("/healthz"), r.arrivals("/page")...) {
				if a.proto != test.proto || a.client != "the proxy" {
					t.Fatalf("%s arrived by %s with the certificate of %q, want %s and the proxy's", a.path, a.proto, a.client, test.proto)
				}
			}
			shared := r.all(func(v *visit) bool {
				is := func(path string) bool {
					return slices.ContainsFunc(v.requests, func(a arrival) bool { return a.path == path })
				}
				return is("/healthz") && is("/page")
			})
			if len(shared) > 0 {
				t.Errorf("connections with probes and requests on them: got %d, want 0", len(shared))
			}
			for _, v := range r.all(func(*visit) bool { return true }) {
				if v.sni != "app.internal" {
					t.Errorf("a connection asked for the name %q, want app.internal", v.sni)
				}
			}
		})
	}
}

// Without the client certificate that it wants an upstream is down, for a check
// by TLS alone, too: the handshake itself does not tell. That check says what is
// missing; for one by HTTP the connection may be reset before it can be read.
func TestCaddyProbesWithoutClientCertificate(t *testing.T) {
	ca := newAuthority(t)
	r := startRecorder(t, "tcp", "", ca.mutual("app.internal"), nil)
	for _, check := range []string{"http /healthz", "tls"} {
		t.Run(check, func(t *testing.T) {
			c := startCaddy(t, fmt.Sprintf(`
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
}`, r.addr, check, "`"+ca.file+"`"))
			eventually(t, patience, "the reason is logged", func() bool {
				return slices.ContainsFunc(c.lines("upstream is down"), func(l logLine) bool {
					return check != "tls" || strings.Contains(l.Reason, "certificate required")
				})
			})
			if a := ask(c.plain(), c.url()); a.status != http.StatusServiceUnavailable {
				t.Errorf("a request: got %v, want 503", a)
			}
		})
	}
}

// The server name can be that of the upstream by placeholder, or the check's own.
func TestCaddyServerNameOfProbes(t *testing.T) {
	ca := newAuthority(t)
	for _, test := range []struct{ name, host, cert, check, transport, sni string }{
		{"the upstream's", "localhost", "localhost", "", "", "localhost"},
		{"by placeholder", "localhost", "localhost", "", "tls_server_name {http.reverse_proxy.upstream.host}", "localhost"},
		{"the check's", "127.0.0.1", "health.internal", "tls_server_name health.internal", "tls_server_name app.internal", "health.internal"},
		// what the check accepts says nothing of what the proxy does
		{"anybody's", "127.0.0.1", "other.internal", "tls_insecure_skip_verify", "tls_server_name app.internal", "app.internal"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := startRecorder(t, "tcp", "", ca.server(test.cert), nil)
			_, port, _ := net.SplitHostPort(r.addr)
			address := net.JoinHostPort(test.host, port)
			c := startCaddy(t, fmt.Sprintf(`
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
}`, address, test.check, "`"+ca.file+"`", test.transport))
			eventually(t, patience, "both checks pass", func() bool { return statuses(address)[health.Up] == 2 })
			for _, v := range r.all(func(v *visit) bool { return v.secure }) {
				if v.sni != test.sni {
					t.Errorf("a probe asked for the name %q, want %q", v.sni, test.sni)
				}
			}
			want := http.StatusOK
			if test.check != "" {
				want = http.StatusBadGateway
			}
			if a := ask(c.plain(), c.url()); a.status != want {
				t.Errorf("a request: got %v, want %d", a, want)
			}
		})
	}
}

// A certificate for another name, of a CA that is not known, or past its time
// makes an upstream down, and the log says which it is. Clients do not notice; if
// that is all there is they get 503, or what the last resort brings.
func TestCaddyBadCertificates(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	past, _, _ := ca.issue("app.internal", time.Now().Add(-time.Hour))
	good := startRecorder(t, "tcp", "", ca.server("app.internal"), nil)
	bad := map[string]*recorder{ // by what the reason says
		"valid for other.internal, not app.internal": startRecorder(t, "tcp", "", ca.server("other.internal"), nil),
		"signed by unknown authority":                startRecorder(t, "tcp", "", stranger.server("app.internal"), nil),
		"expired":                                    startRecorder(t, "tcp", "", &tls.Config{Certificates: []tls.Certificate{past}}, nil),
		"does not look like a TLS handshake":         startRecorder(t, "tcp", "", nil, nil),
	}
	var all []string
	for _, r := range bad {
		all = append(all, "https://"+r.addr)
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
}`, strings.Join(upstreams, " "), check, options, "`"+ca.file+"`")
	}
	for _, check := range []string{"http /healthz", "tls"} {
		t.Run(check, func(t *testing.T) {
			c := startCaddy(t, site(check, "", append(all, "https://"+good.addr)...))
			client := c.plain()
			shares(t, "from the first request on", tally(client, c.url(), 10), map[string]int{"a": 10})
			for reason, r := range bad {
				eventually(t, patience, "a line that says: "+reason, func() bool {
					return slices.ContainsFunc(c.lines("upstream is down"), func(l logLine) bool {
						return l.Upstream == r.addr && l.Check == check && strings.Contains(l.Reason, reason)
					})
				})
				if n := len(r.arrivals("/healthz")); n > 0 {
					t.Errorf("%s: got %d probes, want none: it is not to be trusted", reason, n)
				}
			}

			for options, want := range map[string]int{"fail_open off": http.StatusServiceUnavailable, "": http.StatusBadGateway} {
				c.load(site(check, options, all...))
				eventually(t, patience, fmt.Sprintf("with %q, clients get %d", options, want), func() bool { return ask(client, c.url()).status == want })
			}
		})
	}
}

// An HTTP/3 upstream is probed over HTTP/3: nobody listens for TCP there. So it
// is down when it is gone, and a check that would connect by TCP is an error.
func TestCaddyProbesSpeakHTTP3(t *testing.T) {
	ca := newAuthority(t)
	address := loopback(freePort(t))
	config := ca.server("app.internal")
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
}`, address, check, "`"+ca.file+"`", serverName)
	}
	site := func(check string) string { return named("app.internal", check) }
	c := startCaddy(t, site("http /healthz {\ninterval 100ms\ntimeout 500ms\nfails 2\nexpect_body ^HTTP/3\n}"))
	eventually(t, patience, "it is up", func() bool { return is(health.Up, address) })
	shares(t, "requests", tally(c.plain(), c.url(), 3), map[string]int{"HTTP/3.0": 3})
	stop()
	eventually(t, patience, "it is down when it is gone", func() bool { return is(health.Down, address) })
	stop = serve()
	eventually(t, patience, "it is up when it is back", func() bool { return is(health.Up, address) })
	for _, check := range []string{"tcp", "tls"} {
		if err := c.tryLoad(site(check)); err == nil {
			t.Errorf("a %s check of an HTTP/3 upstream is loaded", check)
		}
	}

	// a health port beside it is reached as the check says
	side := startRecorder(t, "tcp", "", nil, nil)
	_, port, _ := net.SplitHostPort(side.addr)
	c.load(site("http /healthz {\nport " + port + "\nscheme http\n}"))
	eventually(t, patience, "it is up by its plain port", func() bool {
		return len(side.arrivals("/healthz")) > 0 && is(health.Up, address)
	})
}

// A server name that depends on the request makes an HTTP/3 upstream, too, one
// that cannot be checked, and that counts as alive.
func TestCaddyHTTP3ServerNameOfRequest(t *testing.T) {
	c := startCaddy(t, fmt.Sprintf(`
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
}`, loopback(freePort(t))))
	if n := len(watched()); n != 0 {
		t.Errorf("targets: got %d, want 0", n)
	}
	if n := len(c.lines("upstream cannot be checked")); n != 1 {
		t.Errorf("warnings: got %d, want 1", n)
	}
}
