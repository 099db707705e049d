// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	grpchealth "google.golang.org/grpc/health"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// What the documents say that options and checks cost, in counts that do not depend on the speed
// of the machine.

// costs returns the column of a table by what its first column has: the table is the one whose
// first column has that title.
func costs(t *testing.T, title string, column int) map[string]float64 {
	t.Helper()
	_, tables := testkit.Documentation(t)
	found := make(map[string]float64)
	for _, row := range testkit.TablesOf(t, title, tables)[0].Rows {
		value, err := strconv.ParseFloat(row[column], 64)
		if err != nil {
			t.Errorf("%s: %v", row[0], err)
		}
		found[row[0]] = value
	}
	return found
}

// wantCosts compares what was measured with what is documented.
func wantCosts(t *testing.T, title string, column int, got map[string]float64, most func(want float64) float64) {
	t.Helper()
	want := costs(t, title, column)
	for name, value := range got {
		t.Logf("%-40s %.1f", name, value)
		documented, known := want[name]
		if !known {
			t.Errorf("the table of each %s has no row %q", title, name)
		}
		if off := math.Abs(value - documented); off > most(documented) {
			t.Errorf("%s: got %.1f, documented is %.1f", name, value, documented)
		}
	}
	for name := range want {
		if _, measured := got[name]; !measured {
			t.Errorf("%s is documented, and not measured", name)
		}
	}
}

// allocations returns how many allocations the process makes for one proxied request: those of
// the client, of Caddy, and of the upstream. The client sends these cookies, or the last one that it
// was given.
func allocations(t *testing.T, upstreams []*testkit.Backend, policy string, bound ...*http.Cookie) float64 {
	t.Helper()
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf("http:// {\n reverse_proxy %s %s {\n lb_policy %s\n }\n}", upstreams[0].Addr, upstreams[1].Addr, policy))
	defer c.Stop()
	if strings.HasPrefix(policy, "alive") {
		testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(upstreams[0].Addr, upstreams[1].Addr) })
	}
	client := c.Client()
	ask := func(n int) {
		for range n {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.URL(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, cookie := range bound {
				request.AddCookie(cookie)
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			if cookies := response.Cookies(); len(cookies) > 0 {
				bound = cookies
			}
			_, _ = io.Copy(io.Discard, response.Body)
			response.Body.Close()
			if response.StatusCode != http.StatusOK {
				t.Fatalf("%s: status %d", policy, response.StatusCode)
			}
		}
	}
	ask(200)
	least := math.Inf(1) // what happens beside the requests only adds
	for range 3 {
		const requests = 500
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		ask(requests)
		runtime.ReadMemStats(&after)
		least = min(least, float64(after.Mallocs-before.Mallocs)/requests)
	}
	return least
}

// Options cost each request as many allocations as docs/options.md says, beside Caddy's own
// round_robin.
func TestCosts_AllocationsOfARequest(t *testing.T) {
	if testkit.RaceDetector {
		t.Skip("the race detector allocates, too")
	}
	upstreams := testkit.StartBackends(t, "a", "b")
	const hour = " {\n check tcp {\n interval 1h\n }\n "
	own := allocations(t, upstreams, "round_robin")
	got := make(map[string]float64)
	for name, options := range map[string]string{
		"the defaults":                "",
		"`observe off`":               "observe off",
		"`retries off`":               "retries off",
		"`weight`":                    "weight " + upstreams[0].Addr + " 3",
		"`slow_start`":                "slow_start 10s",
		"`backup`":                    "backup " + upstreams[1].Addr,
		"`select least_conn`":         "select least_conn",
		"`max_requests`":              "max_requests 100",
		"`max_requests` with `queue`": "max_requests 100\n queue 1s",
	} {
		got[name] = allocations(t, upstreams, "alive"+hour+options+"\n }") - own
	}
	cookie := &http.Cookie{Name: "lb", Value: strings.Repeat("a", 64)} // costs something with any policy
	got["`sticky`"] = allocations(t, upstreams, "alive"+hour+"sticky lb {\n secret documented\n }\n }", cookie) - allocations(t, upstreams, "round_robin", cookie)
	wantCosts(t, "in use", 1, got, func(float64) float64 { return 1.5 })
}

// counted is a way to a server that counts what goes there and back.
type counted struct {
	addr                        string
	mu                          sync.Mutex
	ended, sent, received, open int
}

// countTo starts one that ends with the test.
func countTo(t *testing.T, server string) *counted {
	t.Helper()
	listener, err := net.Listen("tcp", testkit.Loopback(testkit.FreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	c := &counted{addr: listener.Addr().String()}
	var all sync.WaitGroup
	t.Cleanup(func() {
		listener.Close()
		all.Wait()
	})
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { c.carry(conn, server) })
		}
	})
	return c
}

// carry copies what a connection has in both directions, and counts it when it has ended.
func (c *counted) carry(conn net.Conn, server string) {
	c.mu.Lock()
	c.open++
	c.mu.Unlock()
	to, err := net.Dial("tcp", server)
	if err != nil {
		conn.Close()
		return
	}
	var back sync.WaitGroup
	var received int64
	back.Go(func() {
		received, _ = io.Copy(conn, to)
		conn.Close()
	})
	sent, _ := io.Copy(to, conn)
	to.Close()
	back.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended++
	c.sent += int(sent)
	c.received += int(received)
}

// counts returns what has been counted of connections that have ended, and the number of all.
func (c *counted) counts() (ended, sent, received, all int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended, c.sent, c.received, c.open
}

// A probe of each kind makes as many connections, and sends and receives as much, as
// docs/checks.md says.
func TestCosts_BytesOfAProbe(t *testing.T) {
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	plain, secure := httptest.NewServer(ok), httptest.NewUnstartedServer(ok)
	secure.Config.ErrorLog = testkit.Discard
	secure.StartTLS()
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	grpc := startGRPC(t, grpchealth.NewServer())
	sent, received, connections := make(map[string]float64), make(map[string]float64), make(map[string]float64)
	for name, tc := range map[string]struct{ server, scheme, check, more string }{
		"`tcp`":                              {plain.Listener.Addr().String(), "", "tcp", ""},
		"`http`":                             {plain.Listener.Addr().String(), "", "http /healthz", ""},
		"`http` with `keep_connection`":      {plain.Listener.Addr().String(), "", "http /healthz", "keep_connection"},
		"`http` over TLS":                    {secure.Listener.Addr().String(), "https://", "http /healthz", ""},
		"`http` over TLS, `keep_connection`": {secure.Listener.Addr().String(), "https://", "http /healthz", "keep_connection"},
		"`tls`":                              {secure.Listener.Addr().String(), "https://", "tls", ""},
		"`grpc`":                             {grpc, "h2c://", "grpc", ""},
	} {
		t.Run(name, func(t *testing.T) {
			way := countTo(t, tc.server)
			transport := ""
			if tc.scheme == "https://" {
				transport = "transport http {\n tls_insecure_skip_verify\n }"
			}
			c := testkit.StartCaddyWith(t, "", fmt.Sprintf("http:// {\n reverse_proxy %s%s {\n lb_policy alive {\n check %s {\n interval 60ms\n jitter 0%%\n %s\n }\n }\n %s\n }\n}", tc.scheme, way.addr, tc.check, tc.more, transport))
			const probes = 50
			n := 0.0
			testkit.Eventually(t, testkit.Patience, "it is probed", func() bool {
				n = 0
				for series, value := range c.Metrics() {
					if strings.HasPrefix(series, "checks_total{") && strings.Contains(series, way.addr) && strings.Contains(series, `result="pass"`) {
						n += value
					}
				}
				return n >= probes
			})
			_, _, _, all := way.counts()
			connections[name] = math.Round(10*float64(all)/n) / 10
			c.Stop()
			testkit.Eventually(t, testkit.Patience, "all connections have ended", func() bool {
				ended, _, _, all := way.counts()
				return ended == all
			})
			ended, out, in, _ := way.counts()
			each := float64(ended)
			if tc.more != "" {
				each = n
			}
			sent[name], received[name] = float64(out)/each, float64(in)/each
		})
	}
	wantCosts(t, "probe of", 1, connections, func(float64) float64 { return 0.1 })
	tenth := func(want float64) float64 { return max(4, want/10) }
	wantCosts(t, "probe of", 2, sent, tenth)
	wantCosts(t, "probe of", 3, received, tenth)
}

// The metrics of an upstream, a pool and a queue have as many series as docs/deploying.md says.
func TestCosts_SeriesOfMetrics(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf("http:// {\n reverse_proxy /1 %s {\n lb_policy alive {\n name bare\n }\n }\n reverse_proxy %s {\n lb_policy alive {\n name queued\n max_requests 1\n queue 1s\n }\n }\n}", all[0].Addr, all[1].Addr))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	_, text := c.Call(http.MethodGet, "/metrics", nil, "")
	n := make(map[string]int)
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "caddy_alive_") {
			continue
		}
		for of, part := range map[string]string{"upstream": `upstream="` + all[0].Addr + `"`, "bare": `pool="bare"`, "queued": `pool="queued"`, "kind": `kind="tcp"`} {
			if strings.Contains(line, part) {
				n[of]++
			}
		}
	}
	doc := strings.Join(strings.Fields(testkit.Documents(t, "docs/deploying.md")[0].Text), " ")
	for _, part := range []string{
		fmt.Sprintf("with one check has %d, and one more", n["upstream"]),
		// the selections and ejections of its upstream are in the pool, too
		fmt.Sprintf("A pool has %d, and %d more with a `queue`", n["bare"]-2, n["queued"]-n["bare"]),
		fmt.Sprintf("Each kind of check has %d.", n["kind"]),
	} {
		if !strings.Contains(doc, part) {
			t.Errorf("docs/deploying.md does not say %q", part)
		}
	}
}
