// SPDX-License-Identifier: Apache-2.0

package test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// fresh_connection still works. It is the default now, and a warning names the option that
// replaces it.
func TestFreshConnection_Warns(t *testing.T) {
	s := testkit.StartScripted(t, "a", nil)
	c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s {\nlb_policy alive {\ncheck http /healthz {\ninterval 20ms\nfresh_connection\n}\n}\n}\n}", s.Addr))
	testkit.Eventually(t, testkit.Patience, "it is probed again and again", func() bool { return s.Count("/healthz") > 5 })
	for _, v := range s.VisitsFor("/healthz") {
		if len(v.Requests) != 1 {
			t.Errorf("probes on a connection: got %d, want 1", len(v.Requests))
		}
	}
	lines := c.Lines("fresh_connection is the default and can be left out; its opposite is keep_connection")
	if len(lines) != 1 || lines[0].Check != "http /healthz" {
		t.Errorf("warnings: got %+v, want one for the check", lines)
	}
}

// A firewall that forgets idle connections takes no upstream down. A probe on a kept
// connection is sent again, and after two such probes each probe has its own connection,
// and there is a warning.
func TestKeepConnection_SurvivesForgottenConnections(t *testing.T) {
	var mu sync.Mutex
	requests := make(map[string]int) // by connection
	r := testkit.StartRecorder(t, "tcp", "", nil, func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		requests[r.RemoteAddr]++
		n := requests[r.RemoteAddr]
		mu.Unlock()
		if n > 1 {
			<-r.Context().Done()
		}
	})
	c := testkit.StartCaddy(t, fmt.Sprintf(`
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
}`, r.Addr))
	const warning = "two probes in a row failed on a kept connection"
	testkit.Eventually(t, testkit.Patience, "it says so", func() bool { return len(c.Lines(warning)) > 0 })
	n := len(r.VisitsFor("/healthz"))
	testkit.Eventually(t, testkit.Patience, "probes go on", func() bool { return len(r.VisitsFor("/healthz")) > n+10 })
	if lines := c.Lines(warning); len(lines) != 1 {
		t.Errorf("warnings: got %d, want 1", len(lines))
	}
	if lines := c.Lines("upstream is down"); len(lines) > 0 {
		t.Errorf("it is down, and should not be: %+v", lines)
	}
	for _, v := range r.VisitsFor("/healthz")[3:] {
		if len(v.Requests) > 1 {
			t.Errorf("probes on a later connection: got %d, want 1", len(v.Requests))
		}
	}
}

// The final answer decides, after any number of interim answers, over every version of
// HTTP.
func TestProbes_PassOverInterimAnswers(t *testing.T) {
	ca := testkit.NewAuthority(t)
	for scheme, config := range map[string]*tls.Config{"http": nil, "h2c": nil, "https": ca.Server("app.internal")} {
		t.Run(scheme, func(t *testing.T) {
			r := testkit.StartRecorder(t, "tcp", "", config, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Link", "</style.css>; rel=preload")
				for range 20 {
					w.WriteHeader(http.StatusEarlyHints)
				}
				w.WriteHeader(http.StatusNoContent)
			})
			c := testkit.StartCaddy(t, fmt.Sprintf(`
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
}`, scheme, r.Addr, map[string]string{"https": "tls_insecure_skip_verify"}[scheme]))
			testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(r.Addr) })
		})
	}
}

// Through a forward proxy, too, redirects are followed to the upstream only, whatever
// host they name.
func TestRedirects_StayBehindTheForwardProxy(t *testing.T) {
	const upstream = "app.internal:8080" // which only the proxy knows
	var mu sync.Mutex
	var through []string
	proxy := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
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
	c := testkit.StartCaddy(t, fmt.Sprintf(`
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
}`, upstream, proxy.Addr))
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(upstream) })
	mu.Lock()
	defer mu.Unlock()
	want := []string{"http://" + upstream + "/first", "http://" + upstream + "/second?a=b", "http://" + upstream + "/third"}
	if len(through) < 3 || !slices.Equal(through[:3], want) {
		t.Errorf("asked for: got %v, want %v", through, want)
	}
}

// gRPC probes have a connection each, and share one with keep_connection.
func TestKeepConnection_SharesOneForGRPC(t *testing.T) {
	r := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write([]byte{0, 0, 0, 0, 2, 8, 1}) // SERVING
		w.Header().Set("Grpc-Status", "0")
	})
	const many = 10
	site := func(options string) string {
		return fmt.Sprintf("http:// {\nreverse_proxy h2c://%s {\nlb_policy alive {\ncheck grpc {\ninterval 20ms\n%s\n}\n}\n}\n}", r.Addr, options)
	}
	const method = "/grpc.health.v1.Health/Check"
	c := testkit.StartCaddy(t, site(""))
	testkit.Eventually(t, testkit.Patience, "it is up, and probed again and again", func() bool { return c.Up(r.Addr) && r.Count(method) > many })
	for _, v := range r.VisitsFor(method) {
		if len(v.Requests) != 1 {
			t.Errorf("probes on a connection: got %d, want 1", len(v.Requests))
		}
	}
	c.Load(site("keep_connection"))
	before, n := len(r.VisitsFor(method)), r.Count(method)
	testkit.Eventually(t, testkit.Patience, "it is probed again and again", func() bool { return c.Up(r.Addr) && r.Count(method) > n+many })
	if got := len(r.VisitsFor(method)) - before; got > 2 { // one more where a probe of the old config was on its way
		t.Errorf("connections of probes that are kept: got %d, want 1", got)
	}
}
