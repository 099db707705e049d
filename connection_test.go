// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/health"
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

// A check that keeps its connection is another one than a check that does not.
func TestKeepConnection_MakesAnotherCheck(t *testing.T) {
	keeps, closes := &HealthCheck{KeepConnection: true}, new(HealthCheck)
	if keeps.equal(closes) || !closes.equal(new(HealthCheck)) {
		t.Error("checks that differ in it are equal, or equal ones are not")
	}
}

// fresh_connection is the default: it does what it says, and a warning names the option
// that there is now.
func TestCaddyFreshConnection_Warns(t *testing.T) {
	s := startScripted(t, "a", nil)
	c := startCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s {\nlb_policy alive {\ncheck http /healthz {\ninterval 20ms\nfresh_connection\n}\n}\n}\n}", s.addr))
	eventually(t, patience, "it is probed again and again", func() bool { return s.count("/healthz") > 5 })
	for _, v := range s.asked("/healthz") {
		if len(v.requests) != 1 {
			t.Errorf("probes on a connection: got %d, want 1", len(v.requests))
		}
	}
	lines := c.lines("fresh_connection is the default and can be left out; its opposite is keep_connection")
	if len(lines) != 1 || lines[0].Check != "http /healthz" {
		t.Errorf("warnings: got %+v, want one for the check", lines)
	}
}

// A probe says that its connection ends with it, and with keep_connection it does not;
// over HTTP/2 there is nothing to say.
func TestCaddyProbes_SayConnectionClose(t *testing.T) {
	var mu sync.Mutex
	said := make(map[string][]bool)
	r := startRecorder(t, "tcp", "", nil, func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		said[r.URL.Path] = append(said[r.URL.Path], r.Close)
		mu.Unlock()
	})
	startCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /closes {
				interval 20ms
			}
			check http /keeps {
				interval 20ms
				keep_connection
			}
		}
	}
}`, r.addr))
	eventually(t, patience, "both are probed again and again", func() bool { return r.count("/closes") > 5 && r.count("/keeps") > 5 })
	mu.Lock()
	defer mu.Unlock()
	if slices.Contains(said["/closes"], false) || slices.Contains(said["/keeps"], true) {
		t.Errorf("Connection: close: got %v, want it for /closes only", said)
	}
}

// What forgets idle connections without a word, such as a firewall, takes no upstream
// down: a probe on a kept connection is asked anew, and after two such probes there is a
// connection for each, and a warning.
func TestCaddyKeepConnection_Forgotten(t *testing.T) {
	var mu sync.Mutex
	requests := make(map[string]int) // by connection
	r := startRecorder(t, "tcp", "", nil, func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		requests[r.RemoteAddr]++
		n := requests[r.RemoteAddr]
		mu.Unlock()
		if n > 1 {
			<-r.Context().Done()
		}
	})
	c := startCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 50ms
				timeout  1s
				fails    1
				keep_connection
			}
		}
	}
}`, r.addr))
	const warning = "probes on a kept connection failed twice in a row"
	eventually(t, patience, "it says so", func() bool { return len(c.lines(warning)) > 0 })
	n := len(r.asked("/healthz"))
	eventually(t, patience, "probes go on", func() bool { return len(r.asked("/healthz")) > n+10 })
	if lines := c.lines(warning); len(lines) != 1 {
		t.Errorf("warnings: got %d, want 1", len(lines))
	}
	if lines := c.lines("upstream is down"); len(lines) > 0 {
		t.Errorf("it is down, and should not be: %+v", lines)
	}
	for _, v := range r.asked("/healthz")[3:] {
		if len(v.requests) > 1 {
			t.Errorf("probes on a later connection: got %d, want 1", len(v.requests))
		}
	}
}

// However many interim answers come, what they announce is judged, over every version
// of HTTP.
func TestCaddyProbes_PassInterimAnswers(t *testing.T) {
	ca := newAuthority(t)
	for scheme, config := range map[string]*tls.Config{"http": nil, "h2c": nil, "https": ca.server("app.internal")} {
		t.Run(scheme, func(t *testing.T) {
			r := startRecorder(t, "tcp", "", config, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Link", "</style.css>; rel=preload")
				for range 20 {
					w.WriteHeader(http.StatusEarlyHints)
				}
				w.WriteHeader(http.StatusNoContent)
			})
			startCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s://%s {
		lb_policy alive {
			check http /healthz {
				status 204
			}
		}
		transport http {
			%s
		}
	}
}`, scheme, r.addr, map[string]string{"https": "tls_insecure_skip_verify"}[scheme]))
			eventually(t, patience, "it is up", func() bool { return is(health.Up, r.addr) })
		})
	}
}

// Through a forward proxy, too, redirects are followed to the upstream only, whatever
// host they name.
func TestCaddyRedirects_StayBehindTheForwardProxy(t *testing.T) {
	const upstream = "app.internal:8080" // which only the proxy knows
	var mu sync.Mutex
	var through []string
	proxy := startRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		through = append(through, r.RequestURI)
		mu.Unlock()
		switch r.URL.Path {
		case "/first":
			http.Redirect(w, r, "http://other.internal/second?a=b", http.StatusFound)
		case "/second":
			http.Redirect(w, r, "/third", http.StatusFound)
		}
	})
	startCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /first {
				follow_redirects
				header X-Token secret
			}
		}
		transport http {
			network_proxy url http://%s
		}
	}
}`, upstream, proxy.addr))
	eventually(t, patience, "it is up", func() bool { return is(health.Up, upstream) })
	mu.Lock()
	defer mu.Unlock()
	want := []string{"http://" + upstream + "/first", "http://" + upstream + "/second?a=b", "http://" + upstream + "/third"}
	if len(through) < 3 || !slices.Equal(through[:3], want) {
		t.Errorf("asked for: got %v, want %v", through, want)
	}
}

// Probes of gRPC have a connection each, too, and share one with keep_connection.
func TestCaddyKeepConnection_GRPC(t *testing.T) {
	r := startRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write([]byte{0, 0, 0, 0, 2, 8, 1}) // SERVING
		w.Header().Set("Grpc-Status", "0")
	})
	const many = 10
	site := func(options string) string {
		return fmt.Sprintf("http:// {\nreverse_proxy h2c://%s {\nlb_policy alive {\ncheck grpc {\ninterval 20ms\n%s\n}\n}\n}\n}", r.addr, options)
	}
	const method = "/grpc.health.v1.Health/Check"
	c := startCaddy(t, site(""))
	eventually(t, patience, "it is up, and probed again and again", func() bool { return is(health.Up, r.addr) && r.count(method) > many })
	for _, v := range r.asked(method) {
		if len(v.requests) != 1 {
			t.Errorf("probes on a connection: got %d, want 1", len(v.requests))
		}
	}
	c.load(site("keep_connection"))
	before, n := len(r.asked(method)), r.count(method)
	eventually(t, patience, "it is probed again and again", func() bool { return is(health.Up, r.addr) && r.count(method) > n+many })
	if got := len(r.asked(method)) - before; got > 2 { // one more where a probe of the old config was on its way
		t.Errorf("connections of probes that are kept: got %d, want 1", got)
	}
}
