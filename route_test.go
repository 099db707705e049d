// SPDX-License-Identifier: Apache-2.0

package alive

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

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// These tests look at what arrives at an upstream: how a probe reaches it, as
// requests do or as its check says.

// socketDir returns a directory for unix sockets, whose paths must be short.
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

// A probe has no client to speak of, so its PROXY protocol header says UNKNOWN,
// or LOCAL in version 2. It is sent where the handler sends one, before anything
// else, TLS included, unless the check says otherwise; whatever the check says,
// requests have the handler's.
func TestCaddyProbesSendPROXYProtocol(t *testing.T) {
	const (
		unknown = "PROXY UNKNOWN\r\n"
		local   = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
	)
	cert, _ := selfSigned(t)
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
			plain := startRecorder(t, "tcp", "", nil, nil)
			secure := startRecorder(t, "tcp", "", &tls.Config{Certificates: []tls.Certificate{cert}}, nil)
			var check, transport string
			if test.check != "" {
				check = "proxy_protocol " + test.check
			}
			if test.handler != "" {
				transport = "proxy_protocol " + test.handler
			}
			c := startCaddy(t, fmt.Sprintf(`
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
}`, plain.addr, secure.addr, check, transport))
			eventually(t, patience, "all checks pass", func() bool {
				return is(health.Up, plain.addr) && is(health.Up, secure.addr) && statuses(plain.addr, secure.addr)[health.Up] == 4
			})
			client := c.plain()
			for host, r := range map[string]*recorder{"plain.localhost": plain, "secure.localhost": secure} {
				if a := askHost(client, c.url()+"/page", host, nil); a.body != "a" {
					t.Errorf("%s: got %v, want an answer of the upstream", host, a)
				}
				for _, v := range r.asked("/page") {
					if !strings.HasPrefix(v.preface, test.request) || test.request == "" && v.preface != "" {
						t.Errorf("%s: a request began with %q, want %q", host, v.preface, test.request)
					}
				}
			}
			for kind, find := range map[string]func() []*visit{
				"http":           func() []*visit { return plain.asked("/healthz") },
				"tcp":            func() []*visit { return plain.mute(false) },
				"http, with TLS": func() []*visit { return secure.asked("/healthz") },
				"tls":            func() []*visit { return secure.mute(true) },
			} {
				eventually(t, patience, kind+": a probe arrived", func() bool { return len(find()) > 0 })
				for _, v := range find() {
					if v.preface != test.probe {
						t.Errorf("%s: a probe began with %q, want %q", kind, v.preface, test.probe)
					}
				}
			}
		})
	}
}

// Where a check says so, probes go elsewhere than requests: to another port, to
// another address, with TLS or without. What they name as the host is where they
// go, or what the check says.
func TestCaddyProbesGoWhereTheCheckSays(t *testing.T) {
	cert, ca := selfSigned(t)
	secure := &tls.Config{Certificates: []tls.Certificate{cert}}
	socket := filepath.Join(socketDir(t), "health.sock")
	const withCA = "tls_trust_pool file `%s`\ntls_server_name app.internal"
	transport := fmt.Sprintf(withCA, ca)
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
			upstream := startRecorder(t, "tcp", "", test.upstream, nil)
			network, address := "tcp", ""
			if test.socket {
				network, address = "unix", socket
			}
			probed := startRecorder(t, network, address, test.probed, nil)
			_, port, _ := net.SplitHostPort(probed.addr)
			fill := strings.NewReplacer("%d", port, "%s", probed.addr).Replace
			scheme := "http"
			if test.upstream != nil {
				scheme = "https"
			}
			c := startCaddy(t, fmt.Sprintf(`
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
}`, scheme, upstream.addr, fill(test.options), fill(test.transport)))
			eventually(t, patience, "it is up", func() bool { return is(health.Up, upstream.addr) })
			shares(t, "requests", tally(c.plain(), c.url(), 3), map[string]int{"a": 3})
			arrivals := probed.arrivals("/healthz")
			if len(arrivals) == 0 {
				t.Fatal("no probe arrived")
			}
			if got, want := arrivals[0].host, fill(test.host); got != want {
				t.Errorf("Host: got %q, want %q", got, want)
			}
			if n := len(upstream.arrivals("/healthz")); n > 0 {
				t.Errorf("probes of the upstream itself: got %d, want 0", n)
			}
			if n := len(probed.arrivals("/")); n > 0 {
				t.Errorf("requests where only probes should go: got %d, want 0", n)
			}
		})
	}
}

// Where nothing is said of it, the host is the upstream, as core's requests have
// it.
func TestCaddyHostOfProbes(t *testing.T) {
	r := startRecorder(t, "tcp", "", nil, nil)
	startCaddy(t, "http:// {\nreverse_proxy "+r.addr+" {\nlb_policy alive /healthz\n}\n}")
	eventually(t, patience, "it is up", func() bool { return is(health.Up, r.addr) })
	if got := r.arrivals("/healthz")[0].host; got != r.addr {
		t.Errorf("Host: got %q, want %q", got, r.addr)
	}
}

// Probes of an h2c upstream are HTTP/2, over TCP and over a unix socket; with
// HTTP/1.1 an upstream that speaks both would not tell.
func TestCaddyProbesSpeakH2C(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			address, scheme := "", "h2c://"
			if network == "unix" {
				address, scheme = filepath.Join(socketDir(t), "app.sock"), "unix+h2c/"
			}
			r := startRecorder(t, network, address, nil, nil)
			c := startCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s%s {
		lb_policy alive {
			check http /healthz {
				interval 50ms
				keep_connection
			}
		}
	}
}`, scheme, r.addr))
			eventually(t, patience, "it is probed again and again", func() bool { return len(r.arrivals("/healthz")) > 5 })
			shares(t, "requests", tally(c.plain(), c.url(), 3), map[string]int{"a": 3})
			for _, a := range append(r.arrivals("/healthz"), r.arrivals("/")...) {
				if a.proto != "HTTP/2.0" {
					t.Fatalf("%s arrived by %s, want HTTP/2.0", a.path, a.proto)
				}
			}
			if n := len(r.asked("/healthz")); n != 1 {
				t.Errorf("connections of probes: got %d, want one for all", n)
			}
		})
	}
}

// Through a forward proxy, probes go the way that requests go. A check that
// cannot go it is an error.
func TestCaddyProbesGoThroughForwardProxy(t *testing.T) {
	var mu sync.Mutex
	var through []string
	proxy := startRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
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
}`, upstream, check, proxy.addr)
	}
	c := startCaddy(t, site("http /healthz"))
	eventually(t, patience, "it is up", func() bool { return is(health.Up, upstream) })
	shares(t, "requests", tally(c.plain(), c.url(), 3), map[string]int{"through": 3})
	mu.Lock()
	if want := "http://" + upstream + "/healthz"; !slices.Contains(through, want) {
		t.Errorf("what went through the proxy: got %v, want %s, too", through, want)
	}
	mu.Unlock()
	if err := c.tryLoad(site("tcp")); err == nil {
		t.Error("a tcp check through a forward proxy is loaded")
	}
}

// One that cannot be reached is down for a reason that says so, whatever the way.
func TestCaddyUnreachableByEveryWay(t *testing.T) {
	socket := filepath.Join(socketDir(t), "nobody.sock")
	for name, upstream := range map[string]string{
		"tcp": refused(t), "h2c": "h2c://" + refused(t), "TLS": "https://" + refused(t), "unix": "unix/" + socket,
	} {
		t.Run(name, func(t *testing.T) {
			c := startCaddy(t, "http:// {\nreverse_proxy "+upstream+" {\nlb_policy alive /healthz {\nfail_open off\n}\n}\n}")
			want := "connection refused"
			if name == "unix" {
				want = "no such file"
			}
			eventually(t, patience, "the reason is logged", func() bool {
				return slices.ContainsFunc(c.lines("upstream is down"), func(l logLine) bool { return strings.Contains(l.Reason, want) })
			})
			if a := ask(c.plain(), c.url()); a.err != nil || a.status != http.StatusServiceUnavailable {
				t.Errorf("a request: got %v, want 503", a)
			}
		})
	}
}
