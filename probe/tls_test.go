// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// serveTLS completes handshakes, reads until the probe closes the connection, and
// closes it, too. It sends the error of the handshake, or of the reading after it, to
// the test: the latter is where a server finds that a certificate is missing.
func serveTLS(tb testing.TB, config *tls.Config) (addr string, verdicts <-chan error) {
	tb.Helper()
	results := make(chan error, 16)
	return talk(tb, func(conn net.Conn) {
		secure := tls.Server(conn, config)
		err := secure.Handshake()
		if err == nil {
			_, err = io.Copy(io.Discard, secure)
		}
		secure.Close()
		results <- err
	}), results
}

// A handshake that the proxy would complete passes. Every other has a reason of its
// own.
func TestTLS_TrustedCertificatePasses(t *testing.T) {
	t.Parallel()
	ca, other := testkit.NewAuthority(t), testkit.NewAuthority(t)
	valid := ca.Between(-time.Hour, time.Hour)
	trust := &tls.Config{RootCAs: ca.Pool(), ServerName: "app.test"}
	for name, test := range map[string]struct {
		cert   tls.Certificate
		trust  *tls.Config
		config string // of the check, JSON
		want   string // a part of the reason
	}{
		"valid":                    {cert: valid, trust: trust},
		"valid, by its address":    {cert: valid, trust: &tls.Config{RootCAs: ca.Pool()}},
		"another name":             {cert: valid, trust: &tls.Config{RootCAs: ca.Pool(), ServerName: "other.test"}, want: "certificate is valid for app.test, not other.test"},
		"another name, by option":  {cert: valid, trust: trust, config: `{"tls_server_name":"third.test"}`, want: "certificate is valid for app.test, not third.test"},
		"the right name by option": {cert: valid, trust: &tls.Config{RootCAs: ca.Pool(), ServerName: "other.test"}, config: `{"tls_server_name":"app.test"}`},
		"another authority":        {cert: other.Between(-time.Hour, time.Hour), trust: trust, want: "certificate signed by unknown authority"},
		"the roots of the system":  {cert: valid, trust: &tls.Config{ServerName: "app.test"}, want: "certificate signed by unknown authority"},
		"expired":                  {cert: ca.Between(-2*time.Hour, -time.Hour), trust: trust, want: "certificate has expired or is not yet valid: current time "},
		"not yet valid":            {cert: ca.Between(time.Hour, 2*time.Hour), trust: trust, want: " is before "},
		"anything goes":            {cert: other.Between(-2*time.Hour, -time.Hour), trust: &tls.Config{ServerName: "x"}, config: `{"tls_insecure_skip_verify":true}`},
		"anything goes already":    {cert: other.Between(-2*time.Hour, -time.Hour), trust: &tls.Config{InsecureSkipVerify: true}},
	} {
		for version, number := range versions {
			t.Run(name+"/"+version, func(t *testing.T) {
				t.Parallel()
				addr, verdicts := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{test.cert}, MinVersion: number, MaxVersion: number})
				config := test.config
				if config == "" {
					config = `{}`
				}
				p := loadKind(t, new(TLS), config)
				got := text(run(t, p, way{addr: addr, tls: test.trust, differs: p.Overrides()}.upstream(t), long))
				if test.want == "" && got != "" || !strings.Contains(got, test.want) {
					t.Errorf("got %q, want %q", got, test.want)
				}
				if name == "expired" && !strings.Contains(got, " is after ") {
					t.Errorf("got %q, want whether it has expired or is not yet valid", got)
				}
				// the server sees an orderly end
				if err := testkit.Wait(t, verdicts, grace); test.want == "" && err != nil {
					t.Errorf("the server got %v, want a handshake and an orderly end", err)
				}
			})
		}
	}
}

var versions = map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13}

// An upstream that asks for a client certificate is up only if it accepts the one of
// the proxy, because it would reject every request otherwise. With TLS 1.3 it does so
// only after the handshake is complete for the client.
func TestTLS_RejectedClientCertificateFails(t *testing.T) {
	t.Parallel()
	ca, other := testkit.NewAuthority(t), testkit.NewAuthority(t)
	cert := ca.Between(-time.Hour, time.Hour)
	right, wrong, expired := ca.Between(-time.Hour, time.Hour), other.Between(-time.Hour, time.Hour), ca.Between(-2*time.Hour, -time.Hour)
	show := func(cert *tls.Certificate) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	for name, test := range map[string]struct {
		auth     tls.ClientAuthType
		client   *tls.Config
		server   string // a part of its error
		reject   string // the reason, with TLS 1.3
		reject12 string // and with TLS 1.2
	}{
		"given": {auth: tls.RequireAndVerifyClientCert, client: &tls.Config{Certificates: []tls.Certificate{right}}},
		"the second is the right one": {
			auth: tls.RequireAndVerifyClientCert, client: &tls.Config{Certificates: []tls.Certificate{wrong, right}},
		},
		"given by a function": {auth: tls.RequireAndVerifyClientCert, client: &tls.Config{GetClientCertificate: show(&right)}},
		// as crypto/tls documents
		"the function decides": {
			auth:   tls.RequireAndVerifyClientCert,
			client: &tls.Config{Certificates: []tls.Certificate{wrong}, GetClientCertificate: show(&right)},
		},
		"none": {
			auth: tls.RequireAndVerifyClientCert, server: "client didn't provide a certificate",
			reject:   "after the upstream asked for a client certificate: remote error: tls: certificate required",
			reject12: "remote error: tls: handshake failure",
		},
		// it is not sent, because the server names the authorities that it accepts
		"by another authority": {
			auth: tls.RequireAndVerifyClientCert, client: &tls.Config{Certificates: []tls.Certificate{wrong}},
			server:   "client didn't provide a certificate",
			reject:   "after the upstream asked for a client certificate: remote error: tls: certificate required",
			reject12: "remote error: tls: handshake failure",
		},
		"by another authority, shown all the same": {
			auth: tls.RequireAndVerifyClientCert, client: &tls.Config{GetClientCertificate: show(&wrong)},
			server:   "certificate signed by unknown authority",
			reject:   "after the upstream asked for a client certificate: remote error: tls: unknown certificate authority",
			reject12: "remote error: tls: unknown certificate authority",
		},
		"expired": {
			auth: tls.RequireAndVerifyClientCert, client: &tls.Config{Certificates: []tls.Certificate{expired}},
			server:   "certificate has expired",
			reject:   "after the upstream asked for a client certificate: remote error: tls: expired certificate",
			reject12: "remote error: tls: expired certificate",
		},
		"optional, none given":  {auth: tls.VerifyClientCertIfGiven},
		"optional, given":       {auth: tls.VerifyClientCertIfGiven, client: &tls.Config{Certificates: []tls.Certificate{right}}},
		"requested, none given": {auth: tls.RequestClientCert},
		"not asked for":         {auth: tls.NoClientCert, client: &tls.Config{GetClientCertificate: show(&wrong)}},
	} {
		for version, number := range versions {
			t.Run(name+"/"+version, func(t *testing.T) {
				t.Parallel()
				addr, verdicts := serveTLS(t, &tls.Config{
					Certificates: []tls.Certificate{cert}, MinVersion: number, MaxVersion: number,
					ClientAuth: test.auth, ClientCAs: ca.Pool(),
				})
				client := new(tls.Config)
				if test.client != nil {
					client = test.client.Clone()
				}
				client.RootCAs = ca.Pool()
				want := test.reject
				if number == tls.VersionTLS12 {
					want = test.reject12
				}
				if got := text(run(t, new(TLS), way{addr: addr, tls: client}.upstream(t), long)); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				if got := text(testkit.Wait(t, verdicts, grace)); test.server == "" && got != "" || !strings.Contains(got, test.server) {
					t.Errorf("the server says %q, want %q", got, test.server)
				}
			})
		}
	}
}

// If the function for the client certificate fails, the probe fails with its error, as
// requests would.
func TestTLS_ClientCertificateErrorFails(t *testing.T) {
	t.Parallel()
	ca := testkit.NewAuthority(t)
	for version, number := range versions {
		addr, _ := serveTLS(t, &tls.Config{
			Certificates: []tls.Certificate{ca.Between(-time.Hour, time.Hour)}, MaxVersion: number, ClientAuth: tls.RequestClientCert,
		})
		broken := errors.New("the smart card is gone")
		trust := &tls.Config{
			RootCAs:              ca.Pool(),
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return nil, broken },
		}
		if err := run(t, new(TLS), way{addr: addr, tls: trust}.upstream(t), long); !errors.Is(err, broken) {
			t.Errorf("%s: got %v, want %v", version, err, broken)
		}
	}
}

// A server that completes the handshake without a client certificate is up, even if it
// never closes the connection: the wait for its verdict is short.
func TestTLS_AcceptedHandshakePassesSoon(t *testing.T) {
	t.Parallel()
	ca := testkit.NewAuthority(t)
	cert := ca.Between(-time.Hour, time.Hour)
	for name, after := range map[string]func(raw net.Conn, secure *tls.Conn){
		"never closes":             func(raw net.Conn, _ *tls.Conn) { untilClosed(raw) },
		"speaks first":             func(raw net.Conn, secure *tls.Conn) { io.WriteString(secure, "220 mail\r\n"); untilClosed(raw) },
		"closes with a goodbye":    func(_ net.Conn, secure *tls.Conn) { untilClosed(secure); secure.Close() },
		"closes without a goodbye": func(_ net.Conn, secure *tls.Conn) { untilClosed(secure) },
		"closes within a record":   func(raw net.Conn, secure *tls.Conn) { untilClosed(secure); io.WriteString(raw, "\x17\x03\x03") },
	} {
		for version, number := range versions {
			t.Run(name+"/"+version, func(t *testing.T) {
				t.Parallel()
				config := &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: number, ClientAuth: tls.RequestClientCert}
				addr := talk(t, func(conn net.Conn) {
					secure := tls.Server(conn, config)
					if err := secure.Handshake(); err != nil {
						t.Errorf("the server says %v", err)
						return
					}
					after(conn, secure)
				})
				began := time.Now()
				if err := run(t, new(TLS), way{addr: addr, tls: &tls.Config{RootCAs: ca.Pool()}}.upstream(t), long); err != nil {
					t.Errorf("got %v, want a pass", err)
				}
				if took := time.Since(began); took > certificateVerdict+grace {
					t.Errorf("took %s, want about %s at most", took, certificateVerdict)
				}
			})
		}
	}
}

// A failed handshake has a reason.
func TestTLS_FailedHandshakeHasAReason(t *testing.T) {
	t.Parallel()
	ca := testkit.NewAuthority(t)
	cert := ca.Between(-time.Hour, time.Hour)
	refuses := func(config *tls.Config) func(net.Conn) {
		config.Certificates = []tls.Certificate{cert}
		return func(conn net.Conn) {
			if tls.Server(conn, config).Handshake() == nil {
				t.Error("the server completed a handshake")
			}
		}
	}
	for name, test := range map[string]struct {
		serve func(net.Conn)
		want  string // a part of the reason
	}{
		"plain HTTP": {
			func(conn net.Conn) {
				conn.Read(make([]byte, 1))
				answer("HTTP/1.1 400 Bad Request\r\n\r\n")(conn, nil)
				untilClosed(conn)
			},
			"tls: first record does not look like a TLS handshake",
		},
		"a banner": {
			func(conn net.Conn) { answer("SSH-2.0-OpenSSH_9.9\r\n")(conn, nil); untilClosed(conn) },
			"tls: first record does not look like a TLS handshake",
		},
		"endless bytes":    {func(conn net.Conn) { endless("\x16\x03\x03\xff\xff", strings.Repeat("x", 16<<10))(conn, nil) }, "oversized record"},
		"closes at once":   {func(conn net.Conn) { conn.Read(make([]byte, 4<<10)) }, "EOF"},
		"old version only": {refuses(&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}), "protocol version not supported"},
		"refuses every client": {
			refuses(&tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, errors.New("none") }}),
			"remote error: tls: internal error",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := talk(t, test.serve)
			err := run(t, new(TLS), way{addr: addr, tls: &tls.Config{RootCAs: ca.Pool()}}.upstream(t), long)
			if got := text(err); !strings.Contains(got, test.want) || got == "" {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	addr := testkit.Refused(t)
	if got := text(run(t, new(TLS), way{addr: addr, tls: new(tls.Config)}.upstream(t), long)); !strings.Contains(got, "refused") || !strings.Contains(got, addr) {
		t.Errorf("got %q, want that %s refused", got, addr)
	}
}

// A handshake that never ends is given up at the deadline, or when the probe is
// canceled, and the connection is closed.
func TestTLS_HandshakeEndsWithTheContext(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]error{"deadline": context.DeadlineExceeded, "canceled": context.Canceled} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan struct{})
			addr := talk(t, func(conn net.Conn) {
				conn.Read(make([]byte, 1))
				close(asked)
				untilClosed(conn)
			})
			limit := short
			if want == context.Canceled {
				limit = 10 * grace
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			result := start(ctx, new(TLS), way{addr: addr, tls: new(tls.Config)}.upstream(t))
			if testkit.Wait(t, asked, grace); want == context.Canceled {
				cancel()
			}
			if err := testkit.Wait(t, result, limit+grace); !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
		})
	}
}

// The server name of the check is sent to the upstream.
func TestTLS_ServerNameIsSent(t *testing.T) {
	t.Setenv("PROBE_NAME", "app.test")
	ca := testkit.NewAuthority(t)
	cert := ca.Between(-time.Hour, time.Hour)
	names := make(chan string, 1)
	addr, _ := serveTLS(t, &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		names <- hello.ServerName
		return &cert, nil
	}})
	for config, want := range map[string]string{
		`{}`:                                     "", // an address is no name
		`{"tls_server_name":"{env.PROBE_NAME}"}`: "app.test",
	} {
		p := loadKind(t, new(TLS), config)
		if err := run(t, p, way{addr: addr, tls: &tls.Config{RootCAs: ca.Pool()}, differs: p.Overrides()}.upstream(t), long); err != nil {
			t.Errorf("%s: %v", config, err)
		}
		if got := testkit.Wait(t, names, grace); got != want {
			t.Errorf("%s: got the name %q, want %q", config, got, want)
		}
	}
}

// One probe is used for many upstreams at once, and its client certificate must not
// change the settings of the proxy. The race detector finds what they share.
func TestTLS_ConcurrentProbesShareNothing(t *testing.T) {
	t.Parallel()
	ca := testkit.NewAuthority(t)
	server, client := ca.Between(-time.Hour, time.Hour), ca.Between(-time.Hour, time.Hour)
	strict, _ := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool()})
	open, _ := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{server}})
	trust := &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{client}}
	p := loadKind(t, new(TLS), `{}`)
	var results []<-chan error
	for range 4 {
		for _, addr := range []string{strict, open} {
			results = append(results, start(t.Context(), p, way{addr: addr, tls: trust}.upstream(t)))
		}
	}
	for _, result := range results {
		if err := testkit.Wait(t, result, long); err != nil {
			t.Error(err)
		}
	}
	if trust.GetClientCertificate != nil {
		t.Error("the settings of the proxy were changed")
	}
}

// A tls check uses TLS even if requests do not. The options add to that.
func TestTLS_OverridesAlwaysUseTLS(t *testing.T) {
	t.Setenv("PROBE_NAME", "app.internal")
	for config, want := range map[string]Overrides{
		`{}`:                                     {Scheme: "https"},
		`{"tls_server_name":"{env.PROBE_NAME}"}`: {Scheme: "https", ServerName: "app.internal"},
		`{"tls_insecure_skip_verify":true}`:      {Scheme: "https", InsecureSkipVerify: true},
	} {
		if got := loadKind(t, new(TLS), config).Overrides(); got != want {
			t.Errorf("%s: got %+v, want %+v", config, got, want)
		}
	}
}

// The config does not load if the proxy does not connect by TCP.
func TestTLS_NeedsADialer(t *testing.T) {
	t.Parallel()
	up := way{addr: "app1:443"}.upstream(t)
	up.Transport = nil // FastCGI
	if err := new(TLS).ValidateUpstream(up); err != nil {
		t.Errorf("got %v, want no error: a tls check needs no HTTP", err)
	}
	up.DialTLS = nil
	want := "a tls check needs a direct connection, and app1:443 has none; use an http check"
	if got := text(new(TLS).ValidateUpstream(up)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Every option has its JSON field, errors have file and line, and what parses also
// loads.
func TestTLS_CaddyfileGivesJSONThatLoads(t *testing.T) {
	t.Setenv("PROBE_NAME", "app.internal")
	const known = ": " + everyCheck + "a tls check has tls_server_name and tls_insecure_skip_verify"
	for _, test := range []struct{ input, want, err string }{
		{"tls", `{}`, ""},
		{"tls {\n}", `{}`, ""},
		{"tls {\n\ttls_server_name app.internal\n}", `{"tls_server_name":"app.internal"}`, ""},
		{"tls {\n\ttls_server_name {env.PROBE_NAME}\n\ttls_insecure_skip_verify\n}", `{"tls_server_name":"{env.PROBE_NAME}","tls_insecure_skip_verify":true}`, ""},

		{"tls app.internal", "", "a tls check takes no argument; got 'app.internal', at Testfile:1"},
		{"tls {\n\tsend x\n}", "", "unrecognized option 'send'" + known + ", at Testfile:2"},
		{"tls {\n\ttls_server_name\n}", "", "tls_server_name takes one name, like app.internal, at Testfile:2"},
		{"tls {\n\ttls_server_name \"\"\n}", "", "tls_server_name takes one name, like app.internal, at Testfile:2"},
		{"tls {\n\ttls_server_name a b\n}", "", "tls_server_name takes one name, like app.internal, at Testfile:2"},
		{"tls {\n\ttls_server_name a\n\ttls_server_name b\n}", "", "option 'tls_server_name' is given twice, at Testfile:3"},
		{"tls {\n\ttls_insecure_skip_verify true\n}", "", "tls_insecure_skip_verify takes no argument; got 'true', at Testfile:2"},
		{"tls {\n\ttls_insecure_skip_verify\n\ttls_insecure_skip_verify\n}", "", "option 'tls_insecure_skip_verify' is given twice, at Testfile:3"},
	} {
		wantParsed(t, new(TLS), new(TLS), test.input, test.want, test.err)
	}
}

// silentConn reads what it has once, and then nothing until the test ends.
type silentConn struct {
	net.Conn
	reads int
	end   <-chan struct{}
}

func (c *silentConn) Read(p []byte) (int, error) {
	if c.reads++; c.reads > 2 { // a record has a header and a body
		<-c.end
	}
	return c.Conn.Read(p)
}

// With TLS 1.3, a server that asked for a certificate may not have checked it yet. The
// probe waits for that, half a second at most and half of its remaining time, whatever
// timeouts the connection has. No answer is a pass, because a server that accepts the
// certificate may send nothing.
func TestTLS_WaitForTheVerdictIsBounded(t *testing.T) {
	t.Parallel()
	cert := testkit.NewAuthority(t).Between(-time.Hour, time.Hour)
	end := make(chan struct{})
	addr := talk(t, func(conn net.Conn) {
		secure := tls.Server(&silentConn{Conn: conn, end: end}, &tls.Config{
			Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert,
		})
		_ = secure.Handshake()
		secure.Close()
	})
	up := Upstream{DialTLS: func(ctx context.Context, configure func(*tls.Config)) (*tls.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		config := &tls.Config{InsecureSkipVerify: true}
		configure(config)
		secure := tls.Client(&patientConn{conn}, config)
		return secure, secure.HandshakeContext(ctx)
	}}
	for _, limit := range []time.Duration{short, long} {
		began := time.Now()
		if err := run(t, new(TLS), up, limit); err != nil || time.Since(began) > certificateVerdict+grace {
			t.Errorf("within %s: %v after %s", limit, err, time.Since(began))
		}
	}
	close(end)
}

// patientConn sets a deadline before each read, as Caddy's connections do with a
// read_timeout.
type patientConn struct{ net.Conn }

func (c *patientConn) Read(p []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(10 * grace))
	return c.Conn.Read(p)
}
