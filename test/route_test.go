// SPDX-License-Identifier: Apache-2.0

package test

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// These tests look at what arrives at an upstream: how a probe reaches it, as
// requests do or as its check says.

// socketDir returns a directory for unix sockets. Their paths must be short.
func socketDir(t *testing.T) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("no unix sockets in reverse_proxy there")
	}
	dir, err := os.MkdirTemp("", "alive")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// The PROXY protocol header of a probe says UNKNOWN, or LOCAL in version 2, because a
// probe has no client. Probes send it where the handler does, before TLS, unless the check
// says otherwise. Requests always follow the handler.
func TestProxyProtocol_IsThatOfHandlerOrCheck(t *testing.T) {
	const (
		unknown = "PROXY UNKNOWN\r\n"
		local   = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
	)
	ca := testkit.NewAuthority(t)
	for _, test := range []struct {
		name, handler, check string
		probe, request       string // how the header begins
	}{
		{"handler v1", "v1", "", unknown, "PROXY TCP4 127.0.0.1 "},
		{"handler v2", "v2", "", local, "\r\n\r\n\x00\r\nQUIT\n\x21\x11"},
		{"handler v2, check off", "v2", "off", "", "\r\n\r\n\x00\r\nQUIT\n\x21\x11"},
		{"handler v2, check v1", "v2", "v1", unknown, "\r\n\r\n\x00\r\nQUIT\n\x21\x11"},
		{"check v2", "", "v2", local, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			plain := testkit.StartRecorder(t, "tcp", "", nil, nil)
			secure := testkit.StartRecorder(t, "tcp", "", ca.Server("app.internal"), nil)
			var check, transport string
			if test.check != "" {
				check = "proxy_protocol " + test.check
			}
			if test.handler != "" {
				transport = "proxy_protocol " + test.handler
			}
			c := testkit.StartCaddy(t, fmt.Sprintf(`
http://plain.localhost {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				%[3]s
			}
			check tcp {
				%[3]s
			}
		}
		transport http {
			%[4]s
		}
	}
}
http://secure.localhost {
	reverse_proxy https://%[2]s {
		lb_policy alive {
			check http /healthz {
				%[3]s
			}
			check tls {
				%[3]s
			}
		}
		transport http {
			tls_insecure_skip_verify
			%[4]s
		}
	}
}`, plain.Addr, secure.Addr, check, transport))
			testkit.Eventually(t, testkit.Patience, "all checks pass", func() bool {
				return c.Up(plain.Addr) && c.Up(secure.Addr) && c.Statuses(plain.Addr, secure.Addr)["up"] == 4
			})
			client := c.Client()
			for host, r := range map[string]*testkit.Recorder{"plain.localhost": plain, "secure.localhost": secure} {
				if a := testkit.AskHost(client, c.URL()+"/page", host, nil); a.Body != "a" {
					t.Errorf("%s: got %v, want an answer of the upstream", host, a)
				}
				for _, v := range r.VisitsFor("/page") {
					if !strings.HasPrefix(v.Preface, test.request) || test.request == "" && v.Preface != "" {
						t.Errorf("%s: a request began with %q, want %q", host, v.Preface, test.request)
					}
				}
			}
			for kind, find := range map[string]func() []*testkit.Visit{
				"http":           func() []*testkit.Visit { return plain.VisitsFor("/healthz") },
				"tcp":            func() []*testkit.Visit { return plain.Silent(false) },
				"http, with TLS": func() []*testkit.Visit { return secure.VisitsFor("/healthz") },
				"tls":            func() []*testkit.Visit { return secure.Silent(true) },
			} {
				testkit.Eventually(t, testkit.Patience, kind+": a probe arrived", func() bool { return len(find()) > 0 })
				for _, v := range find() {
					if v.Preface != test.probe {
						t.Errorf("%s: a probe began with %q, want %q", kind, v.Preface, test.probe)
					}
				}
			}
		})
	}
}

// A check can have its own port, address and scheme. Its probes name that address as the
// host, unless the check has a Host header.
func TestProbes_GoWhereTheCheckSays(t *testing.T) {
	ca := testkit.NewAuthority(t)
	secure := ca.Server("app.internal")
	socket := filepath.Join(socketDir(t), "health.sock")
	const withCA = "tls_trust_pool file `%s`\ntls_server_name app.internal"
	transport := fmt.Sprintf(withCA, ca.File)
	for _, test := range []struct {
		name      string
		upstream  *tls.Config // of the upstream
		probed    *tls.Config // of where it is probed
		socket    bool        // which is a unix socket
		options   string      // %d: the port of that, %s: its address
		transport string      // %d: the port, too
		host      string      // %s: the address
	}{
		{"plain port of a TLS upstream", secure, nil, false, "scheme http\nport %d", transport, "%s"},
		{"plain port of a TLS upstream, by except_ports", secure, nil, false, "port %d", transport + "\ntls_except_ports %d", "%s"},
		{"another port", nil, nil, false, "port %d", "", "%s"},
		{"another address", nil, nil, false, "address %s", "", "%s"},
		{"a host and a port", nil, nil, false, "address localhost\nport %d", "", "localhost:%d"},
		{"a unix socket", nil, nil, true, "address unix/%s", "", "localhost"},
		{"a unix socket of a TLS upstream", secure, nil, true, "address unix/%s\nscheme http", transport, "localhost"},
		{"TLS port of a plain upstream", nil, secure, false, "scheme https\nport %d\ntls_insecure_skip_verify", "", "%s"},
		{"TLS port of a TLS upstream, with the CA", secure, secure, false, "port %d", transport, "%s"},
		{"host by header", nil, nil, false, "port %d\nheader Host app.internal:81", "", "app.internal:81"},
		{"host by header, with TLS", secure, secure, false, "port %d\nheader host other.internal", transport, "other.internal"},
	} {
		t.Run(test.name, func(t *testing.T) {
			upstream := testkit.StartRecorder(t, "tcp", "", test.upstream, nil)
			network, address := "tcp", ""
			if test.socket {
				network, address = "unix", socket
			}
			probed := testkit.StartRecorder(t, network, address, test.probed, nil)
			_, port, _ := net.SplitHostPort(probed.Addr)
			fill := strings.NewReplacer("%d", port, "%s", probed.Addr).Replace
			scheme := "http"
			if test.upstream != nil {
				scheme = "https"
			}
			c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s://%s {
		lb_policy alive {
			check http /healthz {
				%s
			}
			fail_open off
		}
		transport http {
			%s
		}
	}
}`, scheme, upstream.Addr, fill(test.options), fill(test.transport)))
			testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(upstream.Addr) })
			testkit.Shares(t, "requests", testkit.Tally(c.Client(), c.URL(), 3), map[string]int{"a": 3})
			arrivals := probed.Requests("/healthz")
			if len(arrivals) == 0 {
				t.Fatal("no probe arrived")
			}
			if got, want := arrivals[0].Host, fill(test.host); got != want {
				t.Errorf("Host: got %q, want %q", got, want)
			}
			if n := len(upstream.Requests("/healthz")); n > 0 {
				t.Errorf("probes of the upstream itself: got %d, want 0", n)
			}
			if n := len(probed.Requests("/")); n > 0 {
				t.Errorf("requests where only probes should go: got %d, want 0", n)
			}
		})
	}
}

// By default, probes name the upstream as the host, as requests do.
func TestProbes_NameTheUpstreamAsHost(t *testing.T) {
	r := testkit.StartRecorder(t, "tcp", "", nil, nil)
	c := testkit.StartCaddy(t, "http:// {\nreverse_proxy "+r.Addr+" {\nlb_policy alive /healthz\n}\n}")
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(r.Addr) })
	if got := r.Requests("/healthz")[0].Host; got != r.Addr {
		t.Errorf("Host: got %q, want %q", got, r.Addr)
	}
}

// Probes of an h2c upstream are HTTP/2, over TCP and over a unix socket.
func TestProbes_SpeakH2C(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			address, scheme := "", "h2c://"
			if network == "unix" {
				address, scheme = filepath.Join(socketDir(t), "app.sock"), "unix+h2c/"
			}
			r := testkit.StartRecorder(t, network, address, nil, nil)
			c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s%s {
		lb_policy alive {
			check http /healthz {
				interval 50ms
				keep_connection
			}
		}
	}
}`, scheme, r.Addr))
			testkit.Eventually(t, testkit.Patience, "it is probed again and again", func() bool { return len(r.Requests("/healthz")) > 5 })
			testkit.Shares(t, "requests", testkit.Tally(c.Client(), c.URL(), 3), map[string]int{"a": 3})
			for _, a := range append(r.Requests("/healthz"), r.Requests("/")...) {
				if a.Proto != "HTTP/2.0" {
					t.Fatalf("%s arrived by %s, want HTTP/2.0", a.Path, a.Proto)
				}
			}
			if n := len(r.VisitsFor("/healthz")); n != 1 {
				t.Errorf("connections of probes: got %d, want one for all", n)
			}
		})
	}
}

// Through a forward proxy, probes take the same path as requests. A check that cannot is
// an error.
func TestProbes_GoThroughTheForwardProxy(t *testing.T) {
	var mu sync.Mutex
	var through []string
	proxy := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		through = append(through, r.URL.String())
		mu.Unlock()
		if r.URL.Host == "" {
			http.Error(w, "not a request to a proxy", http.StatusBadRequest)
			return
		}
		fmt.Fprint(w, "through")
	})
	const upstream = "app.internal:8080" // which only the proxy knows
	site := func(check string) string {
		return fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check %s
		}
		transport http {
			network_proxy url http://%s
		}
	}
}`, upstream, check, proxy.Addr)
	}
	c := testkit.StartCaddy(t, site("http /healthz"))
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(upstream) })
	testkit.Shares(t, "requests", testkit.Tally(c.Client(), c.URL(), 3), map[string]int{"through": 3})
	mu.Lock()
	if want := "http://" + upstream + "/healthz"; !slices.Contains(through, want) {
		t.Errorf("what went through the proxy: got %v, want %s, too", through, want)
	}
	mu.Unlock()
	if err := c.TryLoad(site("tcp")); err == nil {
		t.Error("a tcp check through a forward proxy is loaded")
	}
}

// An upstream that cannot be reached is down with a reason, over every kind of connection.
func TestUnreachable_SaysWhy(t *testing.T) {
	socket := filepath.Join(socketDir(t), "missing.sock")
	for name, upstream := range map[string]string{
		"tcp": testkit.Refused(t), "h2c": "h2c://" + testkit.Refused(t), "TLS": "https://" + testkit.Refused(t), "unix": "unix/" + socket,
	} {
		t.Run(name, func(t *testing.T) {
			c := testkit.StartCaddy(t, "http:// {\nreverse_proxy "+upstream+" {\nlb_policy alive /healthz {\nfail_open off\n}\n}\n}")
			want := "connection refused"
			if name == "unix" {
				want = "no such file"
			}
			testkit.Eventually(t, testkit.Patience, "the reason is logged", func() bool {
				return slices.ContainsFunc(c.Lines("upstream is down"), func(l testkit.LogLine) bool { return strings.Contains(l.Reason, want) })
			})
			if a := testkit.Ask(c.Client(), c.URL()); a.Err != nil || a.Status != http.StatusServiceUnavailable {
				t.Errorf("a request: got %v, want 503", a)
			}
		})
	}
}
