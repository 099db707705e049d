// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/placeholder"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// certificate makes a certificate and returns it as DER, and in files as PEM.
func certificate(t *testing.T) (der []byte, certFile, keyFile string) {
	t.Helper()
	cert, certFile, keyFile := testkit.NewAuthority(t).Issue("app.test", time.Now().Add(time.Hour))
	return cert.Certificate[0], certFile, keyFile
}

// Two handlers, or a config and the next one, share a target if nothing that was loaded
// for the probes differs.
func TestOpen_SharesTargetsOfEqualProbes(t *testing.T) {
	ctx := newContext(t)

	ca1, certFile, keyFile := certificate(t)
	ca2, otherCert, otherKey := certificate(t)
	withCA := func(der []byte) *reverseproxy.HTTPTransport {
		// the config of a CA is emptied once it is loaded: two leave the same JSON
		ca := fmt.Sprintf(`{"provider":"inline","trusted_ca_certs":[%q]}`, base64.StdEncoding.EncodeToString(der))
		h := &reverseproxy.HTTPTransport{TLS: &reverseproxy.TLSConfig{CARaw: json.RawMessage(ca)}}
		if err := h.Provision(ctx); err != nil {
			t.Fatal(err)
		}
		return h
	}
	provisioned := func(h *reverseproxy.HTTPTransport) *reverseproxy.HTTPTransport {
		if err := h.Provision(ctx); err != nil {
			t.Fatal(err)
		}
		return h
	}
	withCert := func(cert, key string) *reverseproxy.HTTPTransport {
		h := provisioned(&reverseproxy.HTTPTransport{TLS: &reverseproxy.TLSConfig{ClientCertificateFile: cert, ClientCertificateKeyFile: key}})
		h.TLS.ClientCertificateFile, h.TLS.ClientCertificateKeyFile = "renewed in place", "renewed in place"
		return h
	}
	plain := func() http.RoundTripper { return nil } // as when the config names no transport
	check := func(identity string, set health.Settings) *Check {
		return &Check{Identity: identity, Settings: set, Bind: newProber('u').bind}
	}
	five := health.Settings{Interval: 5 * time.Second}
	six := health.Settings{Interval: 6 * time.Second}
	keeps := check("x", five)
	keeps.KeepConnection = true
	withHost := func(host string) *Check {
		c := check("x", five)
		c.DefaultHost = host
		return c
	}
	connects := func() *Check {
		c := check("x", five)
		c.NoRequests = true
		return c
	}
	overFCGI := func(root string) http.RoundTripper {
		over := &fastcgi.Transport{Root: root, EnvVars: map[string]string{"A": "b", "C": "d"}}
		if err := over.Provision(ctx); err != nil {
			t.Fatal(err)
		}
		return over
	}
	atPort := func(port string) *Check {
		c := check("x", five)
		var err error
		if c.Port, err = placeholder.Parse("port", port); err != nil {
			t.Fatal(err)
		}
		return c
	}

	type reached struct {
		transport http.RoundTripper
		address   string
		check     *Check
	}
	for _, tc := range []struct {
		rule   string
		a, b   reached
		shared bool
	}{
		{"all equal", reached{plain(), "app:80", check("x", five)}, reached{plain(), "app:80", check("x", five)}, true},
		{"the default transport, named or not", reached{plain(), "app:80", check("x", five)}, reached{provisioned(new(reverseproxy.HTTPTransport)), "app:80", check("x", five)}, true},
		{"two ways to write an address", reached{plain(), "tcp/app:80", check("x", five)}, reached{plain(), "app:80", check("x", five)}, true},
		{"another address", reached{plain(), "app:80", check("x", five)}, reached{plain(), "app:81", check("x", five)}, false},
		{"another check", reached{plain(), "app:80", check("x", five)}, reached{plain(), "app:80", check("y", five)}, false},
		{"a connection that is kept", reached{plain(), "app:80", keeps}, reached{plain(), "app:80", check("x", five)}, false},
		{"another interval", reached{plain(), "app:80", check("x", five)}, reached{plain(), "app:80", check("x", six)}, false},
		{"another transport", reached{plain(), "app:80", check("x", five)}, reached{provisioned(&reverseproxy.HTTPTransport{LocalAddress: "127.0.0.1:0"}), "app:80", check("x", five)}, false},
		{"equal CAs", reached{withCA(ca1), "app:80", check("x", five)}, reached{withCA(ca1), "app:80", check("x", five)}, true},
		{"different CAs", reached{withCA(ca1), "app:80", check("x", five)}, reached{withCA(ca2), "app:80", check("x", five)}, false},
		{"a CA and none", reached{withCA(ca1), "app:80", check("x", five)}, reached{provisioned(&reverseproxy.HTTPTransport{TLS: new(reverseproxy.TLSConfig)}), "app:80", check("x", five)}, false},
		{"equal client certificates", reached{withCert(certFile, keyFile), "app:80", check("x", five)}, reached{withCert(certFile, keyFile), "app:80", check("x", five)}, true},
		{"different client certificates", reached{withCert(certFile, keyFile), "app:80", check("x", five)}, reached{withCert(otherCert, otherKey), "app:80", check("x", five)}, false},
		{"equal hosts", reached{plain(), "app:80", withHost("a")}, reached{plain(), "app:80", withHost("a")}, true},
		{"different hosts", reached{plain(), "app:80", withHost("a")}, reached{plain(), "app:80", withHost("b")}, false},
		{"a host and none", reached{plain(), "app:80", withHost("a")}, reached{plain(), "app:80", withHost("")}, false},
		{"one port in two ways", reached{plain(), "app:80", atPort("81")}, reached{plain(), "app:80", atPort("+1")}, true},
		{"two upstreams at one port", reached{plain(), "app:80", atPort("+2")}, reached{plain(), "app:81", atPort("+1")}, false},
		{"equal FastCGI", reached{overFCGI("/srv"), "app:80", check("x", five)}, reached{overFCGI("/srv"), "app:80", check("x", five)}, true},
		{"FastCGI with another root", reached{overFCGI("/srv"), "app:80", check("x", five)}, reached{overFCGI("/var"), "app:80", check("x", five)}, false},
		{"connects beside FastCGI with another root", reached{overFCGI("/srv"), "app:80", connects()}, reached{overFCGI("/var"), "app:80", connects()}, true},
		{"what cannot be compared", reached{new(unknownTransport), "app:80", check("x", five)}, reached{new(unknownTransport), "app:80", check("x", five)}, false},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			monitors := make([]*Monitor, 0, 2)
			for _, r := range []reached{tc.a, tc.b} {
				upstream, err := ParseUpstream(r.address)
				if err != nil {
					t.Fatal(err)
				}
				m, err := newTransport(t, ctx, r.transport).Open(upstream, r.check, noHooks())
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := m.Release(); err != nil {
						t.Error(err)
					}
				}()
				monitors = append(monitors, m)
			}
			if got := monitors[0].Target == monitors[1].Target; got != tc.shared {
				t.Errorf("shared: %v, want %v", got, tc.shared)
			}
		})
	}
	testkit.WantNothingShared(t)
}

type unknownTransport struct{ _ int }

func (*unknownTransport) RoundTrip(*http.Request) (*http.Response, error) { return nil, nil }

// The scheme is that of proxied requests, ports without TLS included, and the
// host is one that can stand in a URL.
func TestRoute_SchemeAndHost(t *testing.T) {
	ctx := newContext(t)
	tls := &reverseproxy.HTTPTransport{TLS: &reverseproxy.TLSConfig{ExceptPorts: []string{"8080"}}}
	if err := tls.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		transport                   http.RoundTripper
		address, scheme, host, fail string
	}{
		{nil, "app:80", "http", "app:80", ""},
		{tls, "app:443", "https", "app:443", ""},
		{tls, "app:8080", "http", "app:8080", ""},
		{nil, "[::1]:80", "http", "[::1]:80", ""},
		{nil, "unix//run/app.sock", "http", "localhost", ""},
		{nil, "app:80-82", "", "", "the address must be one socket, not 3"},
		{nil, "app:99999", "", "", `invalid start port: strconv.ParseUint: parsing "99999": value out of range`},
	} {
		t.Run(tc.address, func(t *testing.T) {
			way := newTransport(t, ctx, tc.transport)
			to, err := routeTo(way, tc.address, new(Check))
			if err != nil {
				if err.Error() != tc.fail {
					t.Errorf("error %q, want %q", err, tc.fail)
				}
				return
			}
			if tc.fail != "" || to.Scheme != tc.scheme || to.Host != tc.host {
				t.Errorf("got %s://%s, want %s://%s, or the error %q", to.Scheme, to.Host, tc.scheme, tc.host, tc.fail)
			}
		})
	}
}

// A server name may have placeholders: those of the upstream and of the environment
// are known, those of a request and of a file, which can change, make the upstream one
// that cannot be checked.
func TestRoute_ServerNameWithPlaceholders(t *testing.T) {
	t.Setenv("ALIVE_TEST_NAME", "app.internal")
	file := filepath.Join(t.TempDir(), "name")
	if err := os.WriteFile(file, []byte("app.internal"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := newContext(t)
	for name, perRequest := range map[string]bool{
		"app.internal":                       false,
		"{http.reverse_proxy.upstream.host}": false,
		"{env.ALIVE_TEST_NAME}":              false,
		"{http.request.host}":                true,
		"{file." + file + "}":                true,
	} {
		h := &reverseproxy.HTTPTransport{TLS: &reverseproxy.TLSConfig{ServerName: name}}
		if err := h.Provision(ctx); err != nil {
			t.Fatal(err)
		}
		way := newTransport(t, ctx, h)
		_, err := routeTo(way, "app:443", new(Check))
		if got := errors.Is(err, ErrPerRequest); got != perRequest || err != nil && !got {
			t.Errorf("%s: depends on the request: %v (%v), want %v", name, got, err, perRequest)
		}
	}
}

// Whatever a probe began ends with it: a listener that never answers the
// handshake must not collect connections, one a probe.
func TestRoute_ConnectionsEndWithTheirProbe(t *testing.T) {
	for _, transport := range []*reverseproxy.HTTPTransport{
		{TLS: new(reverseproxy.TLSConfig)},
		{TLS: new(reverseproxy.TLSConfig), ProxyProtocol: "v2"}, // a dialer of its own for TLS
		{},
	} {
		ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
		defer cancel()
		if err := transport.Provision(ctx); err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		way := newTransport(t, ctx, transport)
		to, err := routeTo(way, ln.Addr().String(), new(Check))
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			probing, end := context.WithCancel(t.Context())
			result := make(chan error, 1)
			go func() { result <- get(probing, to, "/", false) }()
			_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(testkit.Patience))
			conn, err := ln.Accept()
			time.AfterFunc(20*time.Millisecond, end) // while it waits for an answer
			if err != nil {
				t.Fatal(err)
			}
			if err := <-result; err == nil {
				t.Error("a probe passed without an answer")
			}
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection was still open 10s after its probe")
			}
			_ = conn.Close()
		}
	}
}

// rewriting is a transport of another plugin that adds to the header of requests.
type rewriting struct{}

func (rewriting) RoundTrip(r *http.Request) (*http.Response, error) {
	if len(r.Header) != 1 || r.Header.Get("User-Agent") != "caddy-alive" {
		return nil, fmt.Errorf("got the header %v", r.Header)
	}
	r.Header.Set("X-Signature", "a")
	r.Header["User-Agent"][0] = "changed"
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
}

// What the handler's own transport adds to a request stays in that request, and
// the race detector watches that it does.
func TestRoute_HandlersTransportGetsACopy(t *testing.T) {
	ctx := newContext(t)
	way := newTransport(t, ctx, rewriting{})
	to, err := routeTo(way, "app:80", new(Check))
	if err != nil {
		t.Fatal(err)
	}
	var probes sync.WaitGroup
	for range 8 {
		probes.Go(func() {
			if err := get(t.Context(), to, "/", false); err != nil {
				t.Error(err)
			}
		})
	}
	probes.Wait()
}

// Probes keep their connection where their check says so, and only there, whether or not
// requests keep theirs.
func TestRoute_KeepsConnectionsOnlyIfTheCheckSays(t *testing.T) {
	ctx := newContext(t)
	for i := range 4 {
		requests, keep := i&1 != 0, i&2 != 0
		h := &reverseproxy.HTTPTransport{KeepAlive: &reverseproxy.KeepAlive{Enabled: &requests}}
		if err := h.Provision(ctx); err != nil {
			t.Fatal(err)
		}
		way := newTransport(t, ctx, h)
		to, err := routeTo(way, "app:80", &Check{KeepConnection: keep})
		if err != nil {
			t.Fatal(err)
		}
		if got := to.connection.MaxAge > 0; got != keep {
			t.Errorf("kept: %v, want %v", got, keep)
		}
	}
}

// A dial that took as long as it may is a timeout, whatever Caddy's own type of
// error says: while this process is late, it counts for nothing.
func TestPlainDialer_TimeoutIsATimeout(t *testing.T) {
	ctx := newContext(t)
	h := &reverseproxy.HTTPTransport{DialTimeout: 1}
	if err := h.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	dial, err := plainDialer(ctx, h)
	if err != nil {
		t.Fatal(err)
	}
	_, err = dial(t.Context(), "tcp", "127.0.0.1:1")
	var timeout interface{ Timeout() bool }
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("got %v, want a timeout", err)
	}
}
