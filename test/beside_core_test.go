// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// The problems that the README begins with: what Caddy's own policies and checks do, and
// what this policy does in their place, with the same upstreams and requests. It logs
// both, which is what the README's table has:
//
//	go test -count=1 -run TestCaddyBesideCore -v ./test
//
// The test fails only for our results. What Caddy does may change.
func TestCaddyBesideCore(t *testing.T) {
	t.Run("one of ten is up", besideOneOfTen)
	t.Run("weights", besideWeights)
	t.Run("fails in a row", besideFailsInARow)
	t.Run("reload", besideReload)
	t.Run("start", besideStart)
	t.Run("retry", besideRetry)
	t.Run("many handlers", besideManyHandlers)
	t.Run("dynamic upstreams", besideDynamic)
	t.Run("PROXY protocol", besidePROXYProtocol)
}

// beside measures with the options of each side, one after the other, and returns what
// came of ours.
func beside[T any](t *testing.T, what, core, ours string, measure func(t *testing.T, options string) T) (got T) {
	t.Helper()
	var theirs T
	t.Run("Caddy alone", func(t *testing.T) { theirs = measure(t, core) })
	t.Run("alive", func(t *testing.T) { got = measure(t, ours) })
	t.Logf("%s: %v with Caddy alone, %v with alive", what, theirs, got)
	return got
}

func besideOneOfTen(t *testing.T) {
	const clients, requests = 64, 10_000
	got := beside(t, fmt.Sprintf("answers 503 of %d", requests),
		"lb_policy round_robin\nhealth_uri /healthz\nhealth_interval 100ms",
		"lb_policy alive /healthz",
		func(t *testing.T, options string) int64 {
			c := poolOfTen(t, options)
			return testkit.Hammer(c.Client(), c.URL(), clients, requests)[http.StatusServiceUnavailable]
		})
	if got != 0 {
		t.Errorf("answers 503 while one is up: got %d, want 0", got)
	}
}

func besideWeights(t *testing.T) {
	got := beside(t, "shares of 70 requests by the weights 1, 2 and 5, of which the first is dead",
		"lb_policy weighted_round_robin 1 2 5\nhealth_uri /healthz\nhealth_interval 100ms",
		"lb_policy alive {\ncheck http /healthz\nweight %s 1\nweight %s 2\nweight %s 5\n}",
		func(t *testing.T, options string) map[string]int {
			all := testkit.StartBackends(t, "dead", "two", "five")
			all[0].Set(testkit.Refusing)
			if n := strings.Count(options, "%s"); n > 0 {
				options = fmt.Sprintf(options, all[0].Addr, all[1].Addr, all[2].Addr)
			}
			c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s {\n%s\n}\n}", testkit.Addresses(all...), options))
			client := c.Client()
			testkit.Eventually(t, testkit.Patience, "the dead one gets nothing, the others do", func() bool {
				got := testkit.Tally(client, c.URL(), 14)
				return got["error"] == 0 && got["two"] > 0 && got["five"] > 0
			})
			return testkit.Tally(client, c.URL(), 70)
		})
	testkit.Shares(t, "weights 2 and 5", got, map[string]int{"two": 20, "five": 50})
}

// Every second check fails, so there are never two fails in a row.
func besideFailsInARow(t *testing.T) {
	const checks = 30
	got := beside(t, fmt.Sprintf("times that it is down, of %d single fails with three to take it down", checks/2),
		"lb_policy round_robin\nhealth_uri /healthz\nhealth_interval 50ms\nhealth_fails 3",
		"lb_policy alive {\ncheck http /healthz {\ninterval 50ms\nfails 3\n}\n}",
		func(t *testing.T, options string) int {
			var mu sync.Mutex
			n := 0
			r := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, _ *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				if n++; n%2 == 0 && n <= checks {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			})
			c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s {\n%s\n}\n}", r.Addr, options))
			testkit.Eventually(t, testkit.Patience, "all have been made, and one more", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return n > checks+1
			})
			// Caddy itself only says when it is up again, which it is by the next check
			return len(c.Lines("host is up")) + len(c.Lines("upstream is down"))
		})
	if got != 0 {
		t.Errorf("times that it is down: got %d, want 0", got)
	}
}

func besideReload(t *testing.T) {
	const reloads, requests = 5, 30
	got := beside(t, fmt.Sprintf("requests to an upstream that is known to be dead, of %d after each of %d reloads", requests, reloads),
		"lb_policy round_robin\nhealth_uri /healthz\nhealth_interval 200ms\nhealth_fails 3",
		"lb_policy alive {\ncheck http /healthz {\ninterval 200ms\nfails 3\n}\n}",
		func(t *testing.T, options string) int {
			all := testkit.StartBackends(t, "a", "b", "dead")
			dead := all[2]
			dead.Set(testkit.Sick)
			sites := func(version int) string {
				return fmt.Sprintf("http:// {\nheader Version %d\nreverse_proxy %s {\n%s\n}\n}", version, testkit.Addresses(all...), options)
			}
			c := testkit.StartCaddy(t, sites(0))
			reached := 0
			for version := 1; version <= reloads; version++ {
				testkit.Eventually(t, testkit.Patience, "it is known to be dead", func() bool { return testkit.Tally(c.Client(), c.URL(), 6)["dead"] == 0 })
				c.Load(sites(version))
				reached += testkit.Tally(c.Client(), c.URL(), requests)["dead"]
			}
			return reached
		})
	if got != 0 {
		t.Errorf("requests to an upstream that is known to be dead: got %d, want 0", got)
	}
}

// The dead one accepts connections and says nothing, so a check takes its time to fail.
func besideStart(t *testing.T) {
	const requests = 10
	got := beside(t, fmt.Sprintf("failed of the first %d requests, sent at once, with one of two dead", requests),
		"lb_policy round_robin\nhealth_uri /healthz\nhealth_timeout 2s",
		"lb_policy alive {\ncheck http /healthz {\ntimeout 2s\n}\n}",
		func(t *testing.T, options string) int64 {
			all := testkit.StartBackends(t, "dead", "a")
			all[0].Set(testkit.Hanging)
			c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s {\n%s\ntransport http {\nresponse_header_timeout 500ms\n}\n}\n}", testkit.Addresses(all...), options))
			return requests - testkit.Hammer(c.Client(), c.URL(), requests, requests)[http.StatusOK]
		})
	if got != 0 {
		t.Errorf("failed of the first %d requests: got %d, want 0", requests, got)
	}
}

// The dead one passes its checks and closes the connections of requests, so that only
// the retry can help.
func besideRetry(t *testing.T) {
	const clients, requests = 16, 2000
	got := beside(t, fmt.Sprintf("failed of %d requests of %d clients, with one of two dead and one retry", requests, clients),
		"lb_policy round_robin\nhealth_uri /healthz", "lb_policy alive /healthz",
		func(t *testing.T, options string) int64 {
			a := testkit.StartBackend(t, "a", nil)
			dead := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/healthz" {
					return
				}
				panic(http.ErrAbortHandler)
			})
			c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s %s {\n%s\nlb_retries 1\n}\n}", a.Addr, dead.Addr, options))
			client := c.Client()
			testkit.Eventually(t, testkit.Patience, "both take part", func() bool {
				return testkit.Tally(client, c.URL(), 2)["a"] > 0 && dead.Count("/") > 0
			})
			return requests - testkit.Hammer(client, c.URL(), clients, requests)[http.StatusOK]
		})
	if got != 0 {
		t.Errorf("failed with a retry: got %d, want 0", got)
	}
}

func besideManyHandlers(t *testing.T) {
	const (
		handlers = 50
		interval = 300 * time.Millisecond
		window   = 50 * time.Millisecond
	)
	got := beside(t, fmt.Sprintf("probes of one upstream within %s, with %d handlers", window, handlers),
		"lb_policy round_robin\nhealth_uri /healthz\nhealth_interval "+interval.String(),
		"lb_policy alive {\ncheck http /healthz {\ninterval "+interval.String()+"\n}\n}",
		func(t *testing.T, options string) int {
			var mu sync.Mutex
			var arrivals []time.Time
			b := testkit.StartBackend(t, "a", func(*http.Request) {
				mu.Lock()
				defer mu.Unlock()
				arrivals = append(arrivals, time.Now())
			})
			var sites strings.Builder
			for i := range handlers {
				fmt.Fprintf(&sites, "http://site%d.localhost {\nreverse_proxy %s {\n%s\n}\n}\n", i, b.Addr, options)
			}
			testkit.StartCaddy(t, sites.String())
			testkit.Eventually(t, testkit.Patience, "some rounds have been made", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return len(arrivals) > 0 && time.Since(arrivals[0]) > 3*interval
			})
			mu.Lock()
			defer mu.Unlock()
			most := 0
			for i, first := range arrivals {
				n, _ := slices.BinarySearchFunc(arrivals[i:], first.Add(window), time.Time.Compare)
				most = max(most, n)
			}
			return most
		})
	if most := 2; got > most { // one could be late, and the next one not
		t.Errorf("probes within %s: got %d, want %d at most", window, got, most)
	}
}

func besideDynamic(t *testing.T) {
	const requests = 20
	type outcome struct{ failed, probes int }
	got := beside(t, fmt.Sprintf("failed of %d requests to dynamic upstreams, with one of two dead, and probes of the other one in the second before", requests),
		"lb_policy round_robin\nhealth_uri /healthz\nhealth_interval 100ms",
		"lb_policy alive {\ncheck http /healthz {\ninterval 100ms\n}\nretries off\n}",
		func(t *testing.T, options string) outcome {
			a := testkit.StartBackend(t, "a", nil)
			s := testkit.NewSource(t, a.Addr, testkit.Refused(t))
			c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy {\ndynamic %s\n%s\n}\n}", s.Name(), options))
			client := c.Client()
			testkit.Tally(client, c.URL(), 2) // brings them along
			_ = testkit.Poll(time.Second, func() bool {
				_, probes := a.Seen()
				return probes > 8
			})
			_, probes := a.Seen()
			return outcome{testkit.Tally(client, c.URL(), requests)["error"], probes}
		})
	if got.failed != 0 || got.probes == 0 {
		t.Errorf("got %d failed requests and %d probes, want none and some", got.failed, got.probes)
	}
}

// The upstream takes connections only that begin with a PROXY protocol header.
func besidePROXYProtocol(t *testing.T) {
	const requests = 20
	got := beside(t, fmt.Sprintf("failed of %d requests to upstreams that want the PROXY protocol", requests),
		"lb_policy round_robin\nhealth_uri /healthz\nhealth_interval 100ms",
		"lb_policy alive {\ncheck http /healthz {\ninterval 100ms\n}\nfail_open off\n}",
		func(t *testing.T, options string) int {
			stream, err := net.Listen("tcp", testkit.Loopback(testkit.FreePort(t)))
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			passed := 0
			server := &http.Server{ErrorLog: testkit.Discard, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/healthz" {
					mu.Lock()
					passed++
					mu.Unlock()
				}
				_, _ = io.WriteString(w, "a")
			})}
			served := make(chan struct{})
			go func() {
				defer close(served)
				_ = server.Serve(testkit.ProxyProtocol{Listener: stream, Missing: new(testkit.Failures)})
			}()
			t.Cleanup(func() {
				server.Close()
				<-served
			})
			c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s {\n%s\ntransport http {\nproxy_protocol v2\n}\n}\n}", stream.Addr(), options))
			_ = testkit.Poll(time.Second, func() bool { // it never comes to that with Caddy alone
				mu.Lock()
				defer mu.Unlock()
				return passed > 2
			})
			return testkit.Tally(c.Client(), c.URL(), requests)["error"]
		})
	if got != 0 {
		t.Errorf("failed requests: got %d, want 0", got)
	}
}

// poolOfTen runs Caddy with ten upstreams, nine of which refuse connections,
// and returns once they are known to.
func poolOfTen(tb testing.TB, policy string) *testkit.Caddy {
	tb.Helper()
	b := testkit.StartBackend(tb, "the one", nil)
	var dead []string
	for range 9 {
		dead = append(dead, testkit.Refused(tb))
	}
	pool := slices.Insert(slices.Clone(dead), 5, b.Addr)
	c := testkit.StartCaddy(tb, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		%s
	}
}`, strings.Join(pool, " "), policy))
	client := c.Client()
	testkit.Eventually(tb, testkit.Patience, "requests go to the one that is up", func() bool {
		return testkit.Tally(client, c.URL(), 50)["the one"] == 50
	})
	if strings.Contains(policy, "alive") {
		testkit.Eventually(tb, testkit.Patience, "nine are down", func() bool {
			return c.Statuses(dead...)["down"] == 9 && c.Up(b.Addr)
		})
	}
	return c
}
