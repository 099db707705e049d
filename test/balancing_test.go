// SPDX-License-Identifier: Apache-2.0

package test

import (
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/fcgi"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// These tests run Caddy with real clients and real backends. What depends on
// time alone is tested on a virtual clock elsewhere; here the bounds are
// generous, for the machine may be busy.

// Round robin is exact, whatever version of HTTP the clients speak.
func TestCaddyRoundRobinOverEveryHTTPVersion(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "c")
	c := testkit.StartCaddy(t, fmt.Sprintf(`
https://localhost {
	tls internal
	respond /ready 204
	reverse_proxy %s {
		lb_policy alive /healthz
	}
}`, testkit.Addresses(backends...)))

	testkit.Eventually(t, testkit.Patience, "all are up", func() bool {
		return c.Up(backends[0].Addr, backends[1].Addr, backends[2].Addr)
	})
	for _, version := range []int{1, 2, 3} {
		t.Run(fmt.Sprintf("HTTP %d", version), func(t *testing.T) {
			client := c.ClientOf(version)
			testkit.Eventually(t, testkit.Patience, "the site has its certificate", func() bool {
				return testkit.Ask(client, c.SecureURL()+"/ready").Err == nil
			})
			if got := testkit.Ask(client, c.SecureURL()+"/ready").Proto; got != version {
				t.Fatalf("major version of HTTP: got %d, want %d", got, version)
			}
			testkit.Shares(t, "300 requests", testkit.Tally(client, c.SecureURL(), 300), map[string]int{"a": 100, "b": 100, "c": 100})
		})
	}
}

// An upstream that fails is out of the rotation within interval x (1 + jitter)
// + fails x max(timeout, fast_interval x (1 + jitter)), but not before it
// failed `fails` probes in a row; it is back after `passes` passes in a row,
// and not before.
func TestCaddyFaultyUpstreamLeavesAndReturns(t *testing.T) {
	const (
		interval = 300 * time.Millisecond
		fast     = 100 * time.Millisecond
		timeout  = 200 * time.Millisecond
		fails    = 3
		passes   = 2
		toLeave  = interval*11/10 + fails*max(timeout, fast*11/10)
		toReturn = interval*11/10 + passes*max(timeout, fast*11/10)
	)
	for _, test := range []struct {
		name   string
		fault  testkit.Conduct
		counts bool // the backend sees the probes that fail
		expect string
	}{
		{"its check answers 503", testkit.Sick, true, ""},
		{"it refuses connections", testkit.Refusing, false, ""},
		{"it accepts and hangs", testkit.Hanging, true, ""},
		{"it closes in the middle of an answer", testkit.Truncating, true, "expect_body .*"}, // else the status decides
	} {
		t.Run(test.name, func(t *testing.T) {
			backends := testkit.StartBackends(t, "a", "b", "faulty")
			faulty := backends[2]
			c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval %s
				fast_interval %s
				timeout %s
				fails %d
				passes %d
				%s
			}
		}
		transport http {
			response_header_timeout 100ms
		}
	}
}`, testkit.Addresses(backends...), interval, fast, timeout, fails, passes, test.expect))
			client := c.Client()
			two := func() map[string]int { return testkit.Tally(client, c.URL(), 6) }
			all := map[string]int{"a": 2, "b": 2, "faulty": 2}
			var last map[string]int
			testkit.Eventually(t, testkit.Patience, "all three take turns", func() bool {
				last = two()
				return maps.Equal(last, all)
			})

			faulty.Set(test.fault)
			began := time.Now()
			testkit.Eventually(t, toLeave+testkit.Slack, "the faulty one is out of the rotation", func() bool {
				last = two()
				return maps.Equal(last, map[string]int{"a": 3, "b": 3})
			})
			t.Logf("out after %s, at most %s is promised", time.Since(began).Round(time.Millisecond), toLeave)
			if got := faulty.History().Probes; test.counts && got < fails {
				t.Errorf("probes before it went down: got %d, want %d at least", got, fails)
			}
			testkit.Shares(t, "while it is down", testkit.Tally(client, c.URL(), 20), map[string]int{"a": 10, "b": 10})

			faulty.Set(testkit.Well)
			began = time.Now()
			testkit.Eventually(t, toReturn+testkit.Slack, "all three take turns again", func() bool {
				last = two()
				return maps.Equal(last, all)
			})
			t.Logf("back after %s", time.Since(began).Round(time.Millisecond))
			if got := faulty.History().Earlier; got < passes {
				t.Errorf("probes before its first request: got %d, want %d at least", got, passes)
			}
		})
	}
}

// With retries and timeouts of the transport, clients notice nothing of an
// upstream that refuses, resets or hangs, from the first moment on.
func TestCaddyRetriesHideFaults(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "faulty")
	faulty := backends[2]
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 500ms
				fast_interval 200ms
				timeout 500ms
			}
		}
		lb_retries 2
		transport http {
			dial_timeout 1s
			response_header_timeout 500ms
		}
	}
}`, testkit.Addresses(backends...)))
	testkit.Eventually(t, testkit.Patience, "all are up", func() bool {
		return c.Up(backends[0].Addr, backends[1].Addr, faulty.Addr)
	})

	client := c.Client()
	clients := testkit.StartTraffic(t, 4, func() testkit.Answer { return testkit.Ask(client, c.URL()) })
	for _, fault := range []struct {
		name   string
		mode   testkit.Conduct
		counts bool // the backend sees the requests that fail
	}{
		{"refuses", testkit.Refusing, false},
		{"resets", testkit.Resetting, false},
		{"hangs", testkit.Hanging, true},
	} {
		testkit.Eventually(t, testkit.Patience, "the faulty one takes part", func() bool { return faulty.History().Requests > 10 })
		faulty.Set(fault.mode)
		testkit.Eventually(t, testkit.Patience, "it is down when it "+fault.name, func() bool { return c.Down(faulty.Addr) })
		if n := faulty.History().Requests; fault.counts && n == 0 {
			t.Errorf("no request reached the upstream while it %s: nothing was tested", fault.name)
		}
		faulty.Set(testkit.Well)
	}
	testkit.Eventually(t, testkit.Patience, "the faulty one is back", func() bool { return faulty.History().Requests > 10 })
	clients.Stop()
	if err := clients.Err(); err != nil {
		t.Errorf("of %d requests: %v", clients.Answered(), err)
	}
	t.Logf("%d requests", clients.Answered())
}

// Upstreams that accept connections and reset them pass their TCP check. With
// two of three like that, two retries find the third for every request.
func TestCaddyRetriesGoPastResets(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "well")
	backends[0].Set(testkit.Resetting)
	backends[1].Set(testkit.Resetting)
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive
		lb_retries 2
	}
}`, testkit.Addresses(backends...)))
	testkit.Eventually(t, testkit.Patience, "all pass their checks", func() bool {
		return c.Up(backends[0].Addr, backends[1].Addr, backends[2].Addr)
	})
	requests := int64(10_000)
	if testing.Short() {
		requests /= 10
	}
	count := testkit.Hammer(c.Client(), c.URL(), 16, requests)
	if want := map[int]int64{http.StatusOK: requests}; !maps.Equal(count, want) {
		t.Errorf("answers by status (-1: none): got %v, want %v", count, want)
	}
}

// While one upstream is up, no request is answered 503, however many there are
// at a time. Core's round robin fails here: see BenchmarkSpurious503.
func TestCaddyNo503WhileOneIsUp(t *testing.T) {
	requests := int64(testkit.ManyRequests)
	if testing.Short() {
		requests /= 10
	}
	c := poolOfTen(t, "lb_policy alive")
	count := testkit.Hammer(c.Client(), c.URL(), 64, requests)
	if want := map[int]int64{http.StatusOK: requests}; !maps.Equal(count, want) {
		t.Errorf("answers by status (-1: none): got %v, want %v", count, want)
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

// How many requests of 64 clients are answered 503 while one of ten upstreams
// is up and the policy knows that the others are down: none by alive, some by
// core's round robin.
func BenchmarkSpurious503(b *testing.B) {
	for _, policy := range []struct{ name, options string }{
		{"alive", "lb_policy alive /healthz"},
		{"round_robin", "lb_policy round_robin\nhealth_uri /healthz\nhealth_interval 100ms"},
	} {
		b.Run(policy.name, func(b *testing.B) {
			c := poolOfTen(b, policy.options)
			client := c.Client()
			b.ResetTimer()
			count := testkit.Hammer(client, c.URL(), 64, int64(b.N))
			b.StopTimer()
			b.ReportMetric(float64(count[http.StatusServiceUnavailable]), "503s")
			b.ReportMetric(float64(int64(b.N)-count[http.StatusOK]-count[http.StatusServiceUnavailable]), "others")
		})
	}
}

// A reload forgets nothing: an upstream that is known to be dead gets no
// request, none is probed anew, and no client notices.
func TestCaddyReloadKeepsStatus(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "dead")
	dead := backends[2]
	dead.Set(testkit.Hanging)
	sites := func(version int) string {
		return fmt.Sprintf(`
http:// {
	header Version %d
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 10m
				fast_interval 300ms
				timeout 300ms
			}
		}
	}
}`, version, testkit.Addresses(backends...))
	}
	c := testkit.StartCaddy(t, sites(0))
	testkit.Eventually(t, testkit.Patience, "the dead one is down, the others are up", func() bool {
		return c.Down(dead.Addr) && c.Up(backends[0].Addr, backends[1].Addr)
	})
	requestsBefore, probesBefore := dead.Seen()
	began := time.Now()

	// At a reload Caddy itself may drop a connection that has just been opened,
	// whatever the policy, which is not what is tested here: clients then ask
	// again, once.
	client := c.Client()
	clients := testkit.StartTraffic(t, 8, func() testkit.Answer {
		a := testkit.Ask(client, c.URL())
		if a.Status == 0 {
			a = testkit.Ask(client, c.URL())
		}
		return a
	})
	probing := c.Client()
	for version := 1; version <= 6; version++ {
		_, probed := dead.Seen()
		testkit.Eventually(t, testkit.Patience, "a probe is in flight", func() bool {
			_, probes := dead.Seen()
			return probes > probed
		})
		c.ReloadInTraffic(sites(version), version, probing, clients)
	}
	clients.Stop()

	if err := clients.Err(); err != nil {
		t.Errorf("of %d requests: %v", clients.Answered(), err)
	}
	requests, probes := dead.Seen()
	if requests != requestsBefore {
		t.Errorf("requests to an upstream that is known to be dead: got %d, want 0", requests-requestsBefore)
	}
	// The check of those that are up is due in 10 minutes, so the first probe
	// is the only one. That of the dead one, never up, is due every 300 ms.
	for _, b := range backends[:2] {
		if _, probes := b.Seen(); probes != 1 {
			t.Errorf("probes of %s over six reloads: got %d, want the first one only", b.Name, probes)
		}
	}
	if got, most := probes-probesBefore, int(time.Since(began)/(300*time.Millisecond))+2; got > most {
		t.Errorf("probes of the dead one over six reloads: got %d, want %d at most", got, most)
	}
	t.Logf("%d requests in %s", clients.Answered(), time.Since(began).Round(time.Millisecond))
}

// A reload does not start the count anew: an upstream that begins to hang is
// turned down as soon as ever, however often the config is reloaded meanwhile.
func TestCaddyReloadKeepsStreak(t *testing.T) {
	const (
		interval = 400 * time.Millisecond
		timeout  = 300 * time.Millisecond
		fails    = 3
		toLeave  = interval*11/10 + fails*timeout
	)
	backends := testkit.StartBackends(t, "a", "faulty")
	faulty := backends[1]
	sites := func(version int) string {
		return fmt.Sprintf(`
http:// {
	header Version %d
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval %s
				fast_interval 100ms
				timeout %s
				fails %d
			}
		}
	}
}`, version, testkit.Addresses(backends...), interval, timeout, fails)
	}
	c := testkit.StartCaddy(t, sites(0))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool {
		return c.Up(backends[0].Addr, faulty.Addr)
	})
	faulty.Set(testkit.Hanging)
	version := 0
	testkit.Eventually(t, toLeave+testkit.Slack, "it is down", func() bool {
		version++
		c.Load(sites(version))
		return c.Down(faulty.Addr)
	})
	if got := faulty.History().Probes; got < fails {
		t.Errorf("probes until it was down: got %d, want %d at least", got, fails)
	}
	t.Logf("%d reloads", version)
	testkit.Shares(t, "afterwards", testkit.Tally(c.Client(), c.URL(), 10), map[string]int{"a": 10})
}

// At a cold start a request waits for the first verdicts, so that it cannot
// reach an upstream that is dead. With `hold off` it does not wait.
func TestCaddyColdStart(t *testing.T) {
	const site = `
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				timeout 20s
			}
			%s
		}
	}
}`
	// start runs Caddy with an upstream that fails its check, and one that
	// passes it once the gate is open, and sends the very first request.
	start := func(t *testing.T, hold string) (c *testkit.Caddy, slow, dead *testkit.Backend, opens *testkit.Gate, answered <-chan testkit.Answer) {
		t.Helper()
		opens = testkit.NewGate(t)
		slow = testkit.StartBackend(t, "slow", func(r *http.Request) {
			if r.URL.Path == "/healthz" {
				opens.Pass(r)
			}
		})
		dead = testkit.StartBackend(t, "dead", nil)
		dead.Set(testkit.Sick)
		c = testkit.StartCaddy(t, fmt.Sprintf(site, testkit.Addresses(dead, slow), hold))
		client := c.Client()
		first := make(chan testkit.Answer, 1)
		go func() { first <- testkit.Ask(client, c.URL()) }()
		return c, slow, dead, opens, first
	}

	t.Run("held", func(t *testing.T) {
		c, slow, dead, opens, answered := start(t, "hold 20s")
		testkit.Eventually(t, testkit.Patience, "one is down, the other being probed", func() bool {
			return c.Down(dead.Addr) && slow.Probed("/healthz") == 1
		})
		testkit.Stays(t, 300*time.Millisecond, "the request is held", func() bool { return len(answered) == 0 })
		opens.Open()
		if a := <-answered; a.Err != nil || a.Body != "slow" {
			t.Errorf("the first request: got %v, want an answer of the one that is alive", a)
		}
		if requests, _ := dead.Seen(); requests != 0 {
			t.Errorf("requests to the one that is dead: got %d, want 0", requests)
		}
	})

	t.Run("hold off", func(t *testing.T) {
		_, _, _, _, answered := start(t, "hold off")
		// without the option it would be 5s
		testkit.Eventually(t, 4*time.Second, "it is answered at once", func() bool { return len(answered) == 1 })
		if a := <-answered; a.Err != nil || a.Status != http.StatusOK {
			t.Errorf("the first request: got %v, want an answer of anybody", a)
		}
	})
}

// If no upstream passes its check, requests go to all of them, as the last
// resort: an overloaded backend that misses its probes is better than an
// error. As soon as one recovers, it alone serves.
func TestCaddyLastResort(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "c")
	for _, b := range backends {
		b.Set(testkit.Sick)
	}
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 100ms
			}
		}
	}
}`, testkit.Addresses(backends...)))
	testkit.Eventually(t, testkit.Patience, "all are down", func() bool {
		return c.Down(backends[0].Addr, backends[1].Addr, backends[2].Addr)
	})
	client := c.Client()
	testkit.Shares(t, "none is up", testkit.Tally(client, c.URL(), 30), map[string]int{"a": 10, "b": 10, "c": 10})

	backends[1].Set(testkit.Well)
	testkit.Eventually(t, testkit.Patience, "one is up", func() bool { return c.Up(backends[1].Addr) })
	testkit.Shares(t, "one is up", testkit.Tally(client, c.URL(), 30), map[string]int{"b": 30})
}

// Equal checks of one backend are one stream of probes, however many sites
// there are; checks that differ are never mixed.
func TestCaddyEqualChecksShareProbes(t *testing.T) {
	const interval = 200 * time.Millisecond
	for _, test := range []struct {
		name string
		uris [2]string
		want []string // paths that are probed
	}{
		{"equal", [2]string{"/healthz", "/healthz"}, []string{"/healthz"}},
		{"different", [2]string{"/healthz/1", "/healthz/2"}, []string{"/healthz/1", "/healthz/2"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := testkit.StartBackend(t, "a", nil)
			var sites strings.Builder
			for i, uri := range test.uris {
				fmt.Fprintf(&sites, `
http://site%d.localhost {
	reverse_proxy %s {
		lb_policy alive {
			check http %s {
				interval %s
			}
		}
	}
}`, i, b.Addr, uri, interval)
			}
			began := time.Now()
			c := testkit.StartCaddy(t, sites.String())
			client := c.Client()
			for _, host := range []string{"site0.localhost", "site1.localhost"} {
				if a := testkit.AskHost(client, c.URL(), host, nil); a.Body != "a" {
					t.Errorf("%s: got %v, want an answer of the backend", host, a)
				}
			}
			testkit.Eventually(t, testkit.Patience, "each check ran ten times", func() bool {
				return !slices.ContainsFunc(test.want, func(path string) bool { return b.Probed(path) < 10 })
			})
			most := int(time.Since(began)/interval) + 1
			for _, path := range test.want {
				if got := b.Probed(path); got > most {
					t.Errorf("probes of %s: got %d, want one stream, which is %d at most", path, got, most)
				}
			}
		})
	}
}

// One that is full serves, but cannot take a request. While all that serve are
// full the answer is 503, and the dead one is not asked.
func TestCaddyFullUpstreams(t *testing.T) {
	opens := testkit.NewGate(t)
	held := func(r *http.Request) {
		if r.URL.Path == "/held" {
			opens.Pass(r)
		}
	}
	a, b, dead := testkit.StartBackend(t, "a", held), testkit.StartBackend(t, "b", held), testkit.StartBackend(t, "dead", held)
	dead.Set(testkit.Sick)
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive /healthz
		unhealthy_request_count 1
	}
}`, testkit.Addresses(a, dead, b)))
	testkit.Eventually(t, testkit.Patience, "all have a verdict", func() bool {
		return c.Up(a.Addr, b.Addr) && c.Down(dead.Addr)
	})
	client := c.Client()
	flying := func() int {
		na, _ := a.InFlight()
		nb, _ := b.InFlight()
		return na + nb
	}
	answers := make(chan testkit.Answer, 2)
	for i := range 2 {
		go func() { answers <- testkit.Ask(client, c.URL()+"/held") }()
		testkit.Eventually(t, testkit.Patience, "the request is under way", func() bool { return flying() == i+1 })
	}
	for range 5 {
		if got := testkit.Ask(client, c.URL()); got.Status != http.StatusServiceUnavailable {
			t.Errorf("while all are full: got %v, want 503", got)
		}
	}
	opens.Open()
	for range 2 {
		if got := <-answers; got.Err != nil || got.Status != http.StatusOK {
			t.Errorf("a request that was held: got %v, want 200", got)
		}
	}
	testkit.Eventually(t, testkit.Patience, "one that is free again serves", func() bool { return testkit.Ask(client, c.URL()).Status == http.StatusOK })
	for _, b := range []*testkit.Backend{a, b} {
		if _, peak := b.InFlight(); peak != 1 {
			t.Errorf("requests at a time at %s: got %d, want 1", b.Name, peak)
		}
	}
	if requests, _ := dead.Seen(); requests != 0 {
		t.Errorf("requests to the dead one: got %d, want 0", requests)
	}
}

// What Caddy's passive health checks find counts: an upstream that fails its
// requests is skipped, though its own check passes.
func TestCaddyPassiveHealth(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "failing")
	failing := backends[2]
	failing.Set(testkit.Broken)
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive /healthz
		fail_duration 10m
		max_fails 1
		unhealthy_status 5xx
	}
}`, testkit.Addresses(backends...)))
	testkit.Eventually(t, testkit.Patience, "all pass their checks", func() bool {
		return c.Up(backends[0].Addr, backends[1].Addr, failing.Addr)
	})
	client := c.Client()
	testkit.Shares(t, "until it failed", testkit.Tally(client, c.URL(), 3), map[string]int{"a": 1, "b": 1, "error": 1})

	got := testkit.Tally(client, c.URL(), 60)
	if got["a"]+got["b"] != 60 || got["a"] < 15 || got["b"] < 15 {
		t.Errorf("after it failed: answers by backend: got %v, want 60 of a and b, and a share for both", got)
	}
	if !c.Up(failing.Addr) {
		t.Error("its check no longer passes: nothing was tested")
	}
}

// When Caddy stops, probes end, those in flight too; no target and no
// goroutine is left. (Every other test here checks the latter as well.)
func TestCaddyStopLeavesNothingBehind(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "sick", "hanging")
	backends[1].Set(testkit.Sick)
	backends[2].Set(testkit.Hanging)
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 20ms
				timeout 10m
			}
			check tcp {
				interval 20ms
			}
		}
	}
}`, testkit.Addresses(backends...)))
	testkit.Eventually(t, testkit.Patience, "all are probed", func() bool {
		return !slices.ContainsFunc(backends, func(b *testkit.Backend) bool { return b.Probed("/healthz") == 0 })
	})
	if a := testkit.Ask(c.Client(), c.URL()); a.Body != "a" {
		t.Errorf("before the stop: got %v, want an answer of a", a)
	}
	if len(testkit.Goroutines()) == 0 {
		t.Error("before the stop: got no goroutines: nothing was tested")
	}
	c.Stop()

	counts := func() (n int) {
		for _, b := range backends {
			_, probes := b.Seen()
			n += probes
		}
		return n
	}
	// a probe that was cut off may still be on its way into its backend
	testkit.Eventually(t, testkit.Patience, "the last probe has arrived", func() bool {
		n := counts()
		return !testkit.Poll(100*time.Millisecond, func() bool { return counts() != n })
	})
	n := counts()
	testkit.Stays(t, 400*time.Millisecond, "no probe arrives", func() bool { return counts() == n })
}

// A probe travels as requests do: with the transport's CA and server name, no
// more is needed. An upstream whose CA is not known is down.
func TestCaddyHTTPSBackends(t *testing.T) {
	cert, ca := testkit.SelfSigned(t)
	other, _ := testkit.SelfSigned(t)
	var probes atomic.Int32
	serve := func(name string, cert tls.Certificate) string {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/healthz" {
				probes.Add(1)
			}
			fmt.Fprint(w, name)
		}))
		server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		server.Config.ErrorLog = testkit.Discard
		server.StartTLS()
		t.Cleanup(server.Close)
		return server.Listener.Addr().String()
	}
	trusted, unknown := serve("trusted", cert), serve("unknown", other)
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive /healthz
		transport http {
			tls_trust_pool file %s
			tls_server_name app.internal
		}
	}
}`, "https://"+trusted+" https://"+unknown, "`"+ca+"`"))
	testkit.Eventually(t, testkit.Patience, "both have a verdict", func() bool {
		return c.Up(trusted) && c.Down(unknown)
	})
	testkit.Shares(t, "HTTPS", testkit.Tally(c.Client(), c.URL(), 20), map[string]int{"trusted": 20})
	if probes.Load() == 0 {
		t.Error("no probe arrived")
	}
}

// A probe travels as requests do: over HTTP/2 without TLS, over a unix socket,
// with a PROXY protocol header.
func TestCaddyProbesTravelAsRequestsDo(t *testing.T) {
	// serve answers 200 to what comes in as wanted.
	serve := func(t *testing.T, stream net.Listener, protocols *http.Protocols, major int) *atomic.Int32 {
		t.Helper()
		probes := new(atomic.Int32)
		server := &http.Server{
			Protocols: protocols, ErrorLog: testkit.Discard,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.ProtoMajor != major {
					http.Error(w, r.Proto, http.StatusHTTPVersionNotSupported)
					return
				}
				if r.URL.Path == "/healthz" {
					probes.Add(1)
				}
				fmt.Fprint(w, "a")
			}),
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = server.Serve(stream)
		}()
		t.Cleanup(func() {
			server.Close()
			<-done
		})
		return probes
	}
	listen := func(t *testing.T, network, address string) net.Listener {
		t.Helper()
		stream, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	// passes expects the upstream to be up, and a dead one beside it not.
	passes := func(t *testing.T, upstream, address, options string, probes *atomic.Int32) {
		t.Helper()
		c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive /healthz
		%s
	}
}`, upstream, options))
		testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(address) })
		testkit.Shares(t, upstream, testkit.Tally(c.Client(), c.URL(), 5), map[string]int{"a": 5})
		if probes.Load() == 0 {
			t.Error("no probe arrived as requests do")
		}
	}

	t.Run("h2c", func(t *testing.T) {
		stream := listen(t, "tcp", testkit.Loopback(testkit.FreePort(t)))
		only := new(http.Protocols)
		only.SetUnencryptedHTTP2(true)
		address := stream.Addr().String()
		passes(t, "h2c://"+address, address, "", serve(t, stream, only, 2))
	})

	t.Run("unix socket", func(t *testing.T) {
		if runtime.GOOS == "windows" {
			t.Skip("no unix sockets in reverse_proxy there")
		}
		dir, err := os.MkdirTemp("", "alive") // the path of a socket must be short
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		socket := filepath.Join(dir, "app.sock")
		passes(t, "unix/"+socket, "unix/"+socket, "", serve(t, listen(t, "unix", socket), nil, 1))
	})

	t.Run("PROXY protocol", func(t *testing.T) {
		missing := new(testkit.Failures)
		stream := listen(t, "tcp", testkit.Loopback(testkit.FreePort(t)))
		address := stream.Addr().String()
		probes := serve(t, testkit.ProxyProtocol{Listener: stream, Missing: missing}, nil, 1)
		passes(t, address, address, "transport http {\nproxy_protocol v2\n}", probes)
		if err := missing.Err(); err != nil {
			t.Errorf("connections without a header: %v", err)
		}
	})
}

// Upstreams that cannot be known when the config is loaded are not checked:
// they count as alive.
func TestCaddyUncheckedUpstreams(t *testing.T) {
	b := testkit.StartBackend(t, "a", nil)
	b.Set(testkit.Sick) // so that a check would fail
	for _, test := range []struct {
		name, proxy string
	}{
		{"placeholder", "reverse_proxy {http.request.header.Backend} {\nlb_policy alive /healthz\n}"},
		{"placeholder beside one that is dead", "reverse_proxy {http.request.header.Backend} " + testkit.Refused(t) + " {\nlb_policy alive /healthz\n}"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := testkit.StartCaddy(t, "http:// {\n"+test.proxy+"\n}")
			client := c.Client()
			for range 10 {
				if a := testkit.AskHost(client, c.URL(), "", http.Header{"Backend": {b.Addr}}); a.Body != "a" {
					t.Fatalf("got %v, want an answer of the backend", a)
				}
			}
			if _, probes := b.Seen(); probes != 0 {
				t.Errorf("probes: got %d, want 0", probes)
			}
		})
	}
}

// FastCGI upstreams are checked by TCP connects.
func TestCaddyFastCGI(t *testing.T) {
	stream, err := net.Listen("tcp", testkit.Loopback(testkit.FreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	accepted := &testkit.CountingListener{Listener: stream}
	go func() {
		_ = fcgi.Serve(accepted, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "a") }))
	}()
	up, dead := stream.Addr().String(), testkit.Refused(t)
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s %s {
		transport fastcgi
		lb_policy alive
	}
}`, up, dead))
	testkit.Eventually(t, testkit.Patience, "both have a verdict", func() bool { return c.Up(up) && c.Down(dead) })
	if accepted.Connections.Load() == 0 {
		t.Error("no probe connected")
	}
	testkit.Shares(t, "FastCGI", testkit.Tally(c.Client(), c.URL(), 10), map[string]int{"a": 10})
}
