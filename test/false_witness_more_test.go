// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// A request that Caddy itself refuses, before anything is sent, accuses no upstream.
func TestFalseWitness_FastCGIRequestRefusedByCaddy(t *testing.T) {
	app, other := startFastCGI(t), startFastCGI(t)
	c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s %s {\ntransport fastcgi\nlb_policy alive {\nname php\neject 3\n}\n}\n}", app, other))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(app, other) })
	client := c.Client()
	for range 20 {
		if got := testkit.Ask(client, c.URL()+"/index%00.php"); got.Status != http.StatusBadRequest {
			t.Fatalf("a null byte in the path: answer %v, want 400", got)
		}
	}
	for _, upstream := range []string{app, other} {
		if row := c.One(upstream); row.Suspect || row.EjectedUntil != nil {
			t.Errorf("shown as %+v", row)
		}
	}
	for name, n := range c.Metrics() {
		if strings.HasPrefix(name, "accusations_total") && n > 0 {
			t.Errorf("%s is %v, want none", name, n)
		}
	}
	testkit.Shares(t, "other requests", testkit.Tally(client, c.URL(), 6), map[string]int{"a": 6})
}

// Caddy's own checks pass through the same transport. What becomes of them accuses no
// upstream.
func TestFalseWitness_ChecksOfCaddyItself(t *testing.T) {
	var checks atomic.Int64
	r := route{
		path: "core", upstreams: three(t), policy: burstCheck + "\neject 3",
		handler: "health_uri /core\nhealth_interval 20ms\nhealth_fails 100000",
	}
	for _, b := range r.upstreams {
		b.Answer(func(w http.ResponseWriter, req *http.Request) bool {
			if req.URL.Path != "/core" {
				return false
			}
			if checks.Add(1)%2 == 0 {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(http.StatusBadGateway)
			return true
		})
	}
	c := startRoutes(t, "", r)
	testkit.Eventually(t, testkit.Patience, "many have failed", func() bool { return checks.Load() > 100 })
	for _, b := range r.upstreams {
		if row := c.One(b.Addr); !row.Serving || row.Suspect {
			t.Errorf("%s is shown as %+v, want that it serves", b.Name, row)
		}
		if n := b.Probed("/healthz"); n != 1 {
			t.Errorf("%s was probed %d times, want once; the list has %+v", b.Name, n, c.One(b.Addr))
		}
	}
	wantUndisturbed(t, c.Metrics(), r, 0)
}

// idler is a server that closes its connections as idle just when the second request comes
// over them.
type idler struct {
	addr    string
	closing atomic.Bool
	closed  atomic.Int64
	open    atomic.Int64
}

func startIdler(tb testing.TB) *idler {
	tb.Helper()
	stream, err := net.Listen("tcp", testkit.Loopback(testkit.FreePort(tb)))
	if err != nil {
		tb.Fatal(err)
	}
	s := &idler{addr: stream.Addr().String()}
	var wg sync.WaitGroup
	var conns sync.Map
	wg.Go(func() {
		for {
			conn, err := stream.Accept()
			if err != nil {
				return
			}
			conns.Store(conn, true)
			s.open.Add(1)
			wg.Go(func() {
				defer s.open.Add(-1)
				defer conn.Close()
				s.serve(conn)
			})
		}
	})
	tb.Cleanup(func() {
		stream.Close()
		conns.Range(func(conn, _ any) bool { conn.(net.Conn).Close(); return true })
		wg.Wait()
	})
	return s
}

func (s *idler) serve(conn net.Conn) {
	for first := true; ; first = false {
		buffer := make([]byte, 4096)
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		if !first && s.closing.Load() {
			s.closed.Add(1)
			return
		}
		for text := string(buffer[:n]); !strings.HasSuffix(text, "form"); {
			if n, err = conn.Read(buffer); err != nil {
				return
			}
			text += string(buffer[:n])
		}
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nidle"); err != nil {
			return
		}
	}
}

// An upstream that closes a connection as idle just when a request comes has not failed. It
// may be suspect, but that counts for no ejection.
func TestFalseWitness_IdleConnectionsAreClosed(t *testing.T) {
	const held = 12
	idle, other := startIdler(t), testkit.StartBackend(t, "other", nil)
	c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s %s {\nlb_policy alive {\nname shop\neject 3\nretries off\n}\n}\n}", idle.addr, other.Addr))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(idle.addr, other.Addr) })
	client := c.Client()
	var wg sync.WaitGroup
	testkit.Eventually(t, testkit.Patience, "there are many idle connections", func() bool {
		for range 4 * held {
			wg.Go(func() { send(client, http.MethodPost, c.URL(), "form") })
		}
		wg.Wait()
		return idle.open.Load() >= held
	})
	idle.closing.Store(true)
	failed := 0
	testkit.Eventually(t, testkit.Patience, "many requests have failed in a row", func() bool {
		got := send(client, http.MethodPost, c.URL(), "form")
		if got.Status == http.StatusBadGateway {
			failed++
		}
		if row := c.One(idle.addr); row.EjectedUntil != nil {
			t.Fatalf("after %d such requests it is ejected: %s", failed, row.Why)
		}
		return failed >= held
	})
	if idle.closed.Load() == 0 {
		t.Error("no connection was closed that way")
	}
	testkit.Eventually(t, testkit.Patience, "it serves", func() bool {
		return send(client, http.MethodPost, c.URL(), "form").Body == "idle"
	})
	if n := metric(c, "ejections_total", "pool", "shop", "upstream", idle.addr); n != 0 {
		t.Errorf("ejected %v times", n)
	}
	if n := len(c.Lines("upstream is down")); n != 0 {
		t.Errorf("%d upstreams went down", n)
	}
}

// All requests that one lost connection takes along count as one.
func TestFalseWitness_OneConnectionOfManyRequests(t *testing.T) {
	const streams = 100
	var waiting atomic.Int64
	gate := testkit.NewGate(t)
	shared := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == slowly {
			waiting.Add(1)
			gate.Pass(r)
		}
		_, _ = io.WriteString(w, r.Proto)
	})
	other := testkit.StartBackend(t, "other", nil)
	c := testkit.StartCaddy(t, fmt.Sprintf(`http:// {
	reverse_proxy h2c://%s {
		lb_policy alive {
			name shop
			check http /healthz {
				interval 10m
				fast_interval 40ms
			}
			eject 3
			observe {
				stall off
			}
			retries off
		}
	}
}
http://localhost {
	reverse_proxy %s {
		lb_policy alive
	}
}`, shared.Addr, other.Addr))
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(shared.Addr) })
	client := c.Client()
	if got := testkit.Ask(client, c.URL()); got.Body != "HTTP/2.0" {
		t.Fatalf("answer %v, want one over HTTP/2", got)
	}
	var wg sync.WaitGroup
	var lost atomic.Int64
	for range streams {
		wg.Go(func() {
			if testkit.Ask(client, c.URL()+slowly).Status == http.StatusBadGateway {
				lost.Add(1)
			}
		})
	}
	testkit.Eventually(t, testkit.Patience, "all requests wait", func() bool { return waiting.Load() == streams })
	shared.CloseVisits(slowly)
	wg.Wait()
	if n := lost.Load(); n < streams/2 {
		t.Errorf("%d of %d requests were lost, want most", n, streams)
	}
	testkit.Eventually(t, testkit.Patience, "it serves", func() bool {
		row := c.One(shared.Addr)
		return !row.Suspect && row.Serving
	})
	if n := metric(c, "ejections_total", "pool", "shop", "upstream", shared.Addr); n != 0 {
		t.Errorf("ejected %v times", n)
	}
	if n := shared.Count("/healthz"); n > 3 {
		t.Errorf("%d probes, want one at the start, one of the burst, and perhaps one more", n)
	}
	if got := testkit.Ask(client, c.URL()); got.Status != http.StatusOK {
		t.Errorf("afterwards: answer %v, want 200", got)
	}
}

// An answer of 503 that says when to come back, and other answers of the application, are
// its own business. Which statuses accuse can be said.
func TestFalseWitness_StatusesOfTheApplication(t *testing.T) {
	answers := func(status int, header string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			if header != "" {
				w.Header().Set(header, "1")
			}
			w.WriteHeader(status)
			return true
		}
	}
	cases := []struct {
		route
		status  int
		header  string
		accuses bool
	}{
		{route{path: "s500"}, 500, "", false},
		{route{path: "s404"}, 404, "", false},
		{route{path: "s503"}, 503, "", true},
		{route{path: "retryafter"}, 503, "Retry-After", false},
		{route{path: "off", policy: "observe {\nstatus off\n}"}, 502, "", false},
		{route{path: "none", policy: "observe off"}, 502, "", false},
		{route{path: "named", policy: "observe {\nstatus 500-502 418\n}"}, 418, "", true},
		{route{path: "unnamed", policy: "observe {\nstatus 500-502 418\n}"}, 504, "", false},
	}
	var routes []route
	for i := range cases {
		one := &cases[i]
		one.upstreams = three(t)
		one.policy += "\n" + burstCheck + "\nretries off"
		one.upstreams[0].Answer(answers(one.status, one.header))
		routes = append(routes, one.route)
	}
	c := startRoutes(t, "", routes...)
	for _, one := range cases {
		t.Run(one.path, func(t *testing.T) {
			c, client := c.For(t), c.Client()
			ask := func() bool { return testkit.Ask(client, c.URL()+"/"+one.path).Status == one.status }
			isEjected := func() bool { return rowOf(c, one.path, one.upstreams[0].Addr).EjectedUntil != nil }
			if one.accuses {
				failed := 0
				testkit.Eventually(t, testkit.Patience, "it is ejected", func() bool {
					for range 3 {
						if ask() {
							failed++
						}
					}
					return isEjected()
				})
				if failed > 5 {
					t.Errorf("%d requests got %d, want 5 at most", failed, one.status)
				}
			} else {
				got := 0
				for range 45 {
					if ask() {
						got++
					}
				}
				if got != 15 || isEjected() {
					t.Errorf("%d of 45 requests got %d, want a third; ejected: %v", got, one.status, isEjected())
				}
			}
			if accused := accusations(c, one.path, one.upstreams[0].Addr, "outcome"); (accused > 0) != one.accuses {
				t.Errorf("accused %v times, want that it is: %v", accused, one.accuses)
			}
		})
	}
}
