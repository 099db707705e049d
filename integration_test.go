// SPDX-License-Identifier: Apache-2.0

package alive

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
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// These tests run Caddy with real clients and real backends. What depends on
// time alone is tested on a virtual clock elsewhere; here the bounds are
// generous, for the machine may be busy.

// shares fails the test unless the requests were answered as wanted.
func shares(t *testing.T, what string, got, want map[string]int) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Errorf("%s: answers by backend: got %v, want %v", what, got, want)
	}
}

// Round robin is exact, whatever version of HTTP the clients speak.
func TestCaddyRoundRobinOverEveryHTTPVersion(t *testing.T) {
	backends := startBackends(t, "a", "b", "c")
	c := startCaddy(t, fmt.Sprintf(`
https://localhost {
	tls internal
	respond /ready 204
	reverse_proxy %s {
		lb_policy alive /healthz
	}
}`, addresses(backends...)))

	eventually(t, patience, "all are up", func() bool {
		return statuses(backends[0].addr, backends[1].addr, backends[2].addr)[health.Up] == 3
	})
	for _, version := range []int{1, 2, 3} {
		t.Run(fmt.Sprintf("HTTP %d", version), func(t *testing.T) {
			client := c.speaking(version)
			eventually(t, patience, "the site has its certificate", func() bool {
				return ask(client, c.secure()+"/ready").err == nil
			})
			if got := ask(client, c.secure()+"/ready").proto; got != version {
				t.Fatalf("major version of HTTP: got %d, want %d", got, version)
			}
			shares(t, "300 requests", tally(client, c.secure(), 300), map[string]int{"a": 100, "b": 100, "c": 100})
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
		fault  conduct
		counts bool // the backend sees the probes that fail
		expect string
	}{
		{"its check answers 503", sick, true, ""},
		{"it refuses connections", refusing, false, ""},
		{"it accepts and hangs", hanging, true, ""},
		{"it closes in the middle of an answer", truncating, true, "expect_body .*"}, // else the status decides
	} {
		t.Run(test.name, func(t *testing.T) {
			backends := startBackends(t, "a", "b", "faulty")
			faulty := backends[2]
			c := startCaddy(t, fmt.Sprintf(`
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
}`, addresses(backends...), interval, fast, timeout, fails, passes, test.expect))
			client := c.plain()
			two := func() map[string]int { return tally(client, c.url(), 6) }
			all := map[string]int{"a": 2, "b": 2, "faulty": 2}
			var last map[string]int
			eventually(t, patience, "all three take turns", func() bool {
				last = two()
				return maps.Equal(last, all)
			})

			faulty.set(test.fault)
			began := time.Now()
			eventually(t, toLeave+slack, "the faulty one is out of the rotation", func() bool {
				last = two()
				return maps.Equal(last, map[string]int{"a": 3, "b": 3})
			})
			t.Logf("out after %s, at most %s is promised", time.Since(began).Round(time.Millisecond), toLeave)
			if got := faulty.history().probes; test.counts && got < fails {
				t.Errorf("probes before it went down: got %d, want %d at least", got, fails)
			}
			shares(t, "while it is down", tally(client, c.url(), 20), map[string]int{"a": 10, "b": 10})

			faulty.set(well)
			began = time.Now()
			eventually(t, toReturn+slack, "all three take turns again", func() bool {
				last = two()
				return maps.Equal(last, all)
			})
			t.Logf("back after %s", time.Since(began).Round(time.Millisecond))
			if got := faulty.history().earlier; got < passes {
				t.Errorf("probes before its first request: got %d, want %d at least", got, passes)
			}
		})
	}
}

// With retries and timeouts of the transport, clients notice nothing of an
// upstream that refuses, resets or hangs, from the first moment on.
func TestCaddyRetriesHideFaults(t *testing.T) {
	backends := startBackends(t, "a", "b", "faulty")
	faulty := backends[2]
	c := startCaddy(t, fmt.Sprintf(`
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
}`, addresses(backends...)))
	eventually(t, patience, "all are up", func() bool {
		return statuses(backends[0].addr, backends[1].addr, faulty.addr)[health.Up] == 3
	})

	client := c.plain()
	clients := startTraffic(t, 4, func() answer { return ask(client, c.url()) })
	for _, fault := range []struct {
		name   string
		mode   conduct
		counts bool // the backend sees the requests that fail
	}{
		{"refuses", refusing, false},
		{"resets", resetting, false},
		{"hangs", hanging, true},
	} {
		eventually(t, patience, "the faulty one takes part", func() bool { return faulty.history().requests > 10 })
		faulty.set(fault.mode)
		eventually(t, patience, "it is down when it "+fault.name, func() bool { return is(health.Down, faulty.addr) })
		if n := faulty.history().requests; fault.counts && n == 0 {
			t.Errorf("no request reached the upstream while it %s: nothing was tested", fault.name)
		}
		faulty.set(well)
	}
	eventually(t, patience, "the faulty one is back", func() bool { return faulty.history().requests > 10 })
	clients.stop()
	if err := clients.err(); err != nil {
		t.Errorf("of %d requests: %v", clients.answered(), err)
	}
	t.Logf("%d requests", clients.answered())
}

// Upstreams that accept connections and reset them pass their TCP check. With
// two of three like that, two retries find the third for every request.
func TestCaddyRetriesGoPastResets(t *testing.T) {
	backends := startBackends(t, "a", "b", "well")
	backends[0].set(resetting)
	backends[1].set(resetting)
	c := startCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive
		lb_retries 2
	}
}`, addresses(backends...)))
	eventually(t, patience, "all pass their checks", func() bool {
		return statuses(backends[0].addr, backends[1].addr, backends[2].addr)[health.Up] == 3
	})
	requests := int64(10_000)
	if testing.Short() {
		requests /= 10
	}
	count := hammer(c.plain(), c.url(), 16, requests)
	if want := map[int]int64{http.StatusOK: requests}; !maps.Equal(count, want) {
		t.Errorf("answers by status (-1: none): got %v, want %v", count, want)
	}
}

// While one upstream is up, no request is answered 503, however many there are
// at a time. Core's round robin fails here: see BenchmarkSpurious503.
func TestCaddyNo503WhileOneIsUp(t *testing.T) {
	requests := int64(manyRequests)
	if testing.Short() {
		requests /= 10
	}
	c := poolOfTen(t, "lb_policy alive")
	count := hammer(c.plain(), c.url(), 64, requests)
	if want := map[int]int64{http.StatusOK: requests}; !maps.Equal(count, want) {
		t.Errorf("answers by status (-1: none): got %v, want %v", count, want)
	}
}

// poolOfTen runs Caddy with ten upstreams, nine of which refuse connections,
// and returns once they are known to.
func poolOfTen(tb testing.TB, policy string) *instance {
	tb.Helper()
	b := startBackend(tb, "the one", nil)
	var dead []string
	for range 9 {
		dead = append(dead, refused(tb))
	}
	pool := slices.Insert(slices.Clone(dead), 5, b.addr)
	c := startCaddy(tb, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		%s
	}
}`, strings.Join(pool, " "), policy))
	client := c.plain()
	eventually(tb, patience, "requests go to the one that is up", func() bool {
		return tally(client, c.url(), 50)["the one"] == 50
	})
	if strings.Contains(policy, "alive") {
		eventually(tb, patience, "nine are down", func() bool {
			return statuses(dead...)[health.Down] == 9 && is(health.Up, b.addr)
		})
	}
	return c
}

// hammer sends n requests from as many clients at a time, and counts the
// answers by status; -1 is none.
func hammer(client *http.Client, url string, clients int, n int64) map[int]int64 {
	var left atomic.Int64
	left.Store(n)
	count := make(map[int]int64)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			own := make(map[int]int64)
			for left.Add(-1) >= 0 {
				if a := ask(client, url); a.err != nil {
					own[-1]++
				} else {
					own[a.status]++
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for status, n := range own {
				count[status] += n
			}
		})
	}
	wg.Wait()
	return count
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
			client := c.plain()
			b.ResetTimer()
			count := hammer(client, c.url(), 64, int64(b.N))
			b.StopTimer()
			b.ReportMetric(float64(count[http.StatusServiceUnavailable]), "503s")
			b.ReportMetric(float64(int64(b.N)-count[http.StatusOK]-count[http.StatusServiceUnavailable]), "others")
		})
	}
}

// A reload forgets nothing: an upstream that is known to be dead gets no
// request, none is probed anew, and no client notices.
func TestCaddyReloadKeepsStatus(t *testing.T) {
	backends := startBackends(t, "a", "b", "dead")
	dead := backends[2]
	dead.set(hanging)
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
}`, version, addresses(backends...))
	}
	c := startCaddy(t, sites(0))
	eventually(t, patience, "the dead one is down, the others are up", func() bool {
		return is(health.Down, dead.addr) && statuses(backends[0].addr, backends[1].addr)[health.Up] == 2
	})
	requestsBefore, probesBefore := dead.seen()
	began := time.Now()

	// At a reload Caddy itself may drop a connection that has just been opened,
	// whatever the policy, which is not what is tested here: clients then ask
	// again, once.
	client := c.plain()
	clients := startTraffic(t, 8, func() answer {
		a := ask(client, c.url())
		if a.status == 0 {
			a = ask(client, c.url())
		}
		return a
	})
	probing := c.plain()
	for version := 1; version <= 6; version++ {
		_, probed := dead.seen()
		eventually(t, patience, "a probe is in flight", func() bool {
			_, probes := dead.seen()
			return probes > probed
		})
		c.reloadInTraffic(sites(version), version, probing, clients)
	}
	clients.stop()

	if err := clients.err(); err != nil {
		t.Errorf("of %d requests: %v", clients.answered(), err)
	}
	requests, probes := dead.seen()
	if requests != requestsBefore {
		t.Errorf("requests to an upstream that is known to be dead: got %d, want 0", requests-requestsBefore)
	}
	// The check of those that are up is due in 10 minutes, so the first probe
	// is the only one. That of the dead one, never up, is due every 300 ms.
	for _, b := range backends[:2] {
		if _, probes := b.seen(); probes != 1 {
			t.Errorf("probes of %s over six reloads: got %d, want the first one only", b.name, probes)
		}
	}
	if got, most := probes-probesBefore, int(time.Since(began)/(300*time.Millisecond))+2; got > most {
		t.Errorf("probes of the dead one over six reloads: got %d, want %d at most", got, most)
	}
	t.Logf("%d requests in %s", clients.answered(), time.Since(began).Round(time.Millisecond))
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
	backends := startBackends(t, "a", "faulty")
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
}`, version, addresses(backends...), interval, timeout, fails)
	}
	c := startCaddy(t, sites(0))
	eventually(t, patience, "both are up", func() bool {
		return statuses(backends[0].addr, faulty.addr)[health.Up] == 2
	})
	faulty.set(hanging)
	version := 0
	eventually(t, toLeave+slack, "it is down", func() bool {
		version++
		c.load(sites(version))
		return is(health.Down, faulty.addr)
	})
	if got := faulty.history().probes; got < fails {
		t.Errorf("probes until it was down: got %d, want %d at least", got, fails)
	}
	t.Logf("%d reloads", version)
	shares(t, "afterwards", tally(c.plain(), c.url(), 10), map[string]int{"a": 10})
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
	start := func(t *testing.T, hold string) (slow, dead *backend, opens *gate, answered <-chan answer) {
		t.Helper()
		opens = newGate(t)
		slow = startBackend(t, "slow", func(r *http.Request) {
			if r.URL.Path == "/healthz" {
				opens.pass(r)
			}
		})
		dead = startBackend(t, "dead", nil)
		dead.set(sick)
		c := startCaddy(t, fmt.Sprintf(site, addresses(dead, slow), hold))
		client := c.plain()
		first := make(chan answer, 1)
		go func() { first <- ask(client, c.url()) }()
		return slow, dead, opens, first
	}

	t.Run("held", func(t *testing.T) {
		slow, dead, opens, answered := start(t, "hold 20s")
		eventually(t, patience, "one is down, the other being probed", func() bool {
			return is(health.Down, dead.addr) && slow.probed("/healthz") == 1
		})
		stays(t, 300*time.Millisecond, "the request is held", func() bool { return len(answered) == 0 })
		opens.open()
		if a := <-answered; a.err != nil || a.body != "slow" {
			t.Errorf("the first request: got %v, want an answer of the one that is alive", a)
		}
		if requests, _ := dead.seen(); requests != 0 {
			t.Errorf("requests to the one that is dead: got %d, want 0", requests)
		}
	})

	t.Run("hold off", func(t *testing.T) {
		_, _, _, answered := start(t, "hold off")
		// without the option it would be 5s
		eventually(t, 4*time.Second, "it is answered at once", func() bool { return len(answered) == 1 })
		if a := <-answered; a.err != nil || a.status != http.StatusOK {
			t.Errorf("the first request: got %v, want an answer of anybody", a)
		}
	})
}

// If no upstream passes its check, requests go to all of them, as the last
// resort: an overloaded backend that misses its probes is better than an
// error. As soon as one recovers, it alone serves.
func TestCaddyLastResort(t *testing.T) {
	backends := startBackends(t, "a", "b", "c")
	for _, b := range backends {
		b.set(sick)
	}
	c := startCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 100ms
			}
		}
	}
}`, addresses(backends...)))
	eventually(t, patience, "all are down", func() bool {
		return statuses(backends[0].addr, backends[1].addr, backends[2].addr)[health.Down] == 3
	})
	client := c.plain()
	shares(t, "none is up", tally(client, c.url(), 30), map[string]int{"a": 10, "b": 10, "c": 10})

	backends[1].set(well)
	eventually(t, patience, "one is up", func() bool { return is(health.Up, backends[1].addr) })
	shares(t, "one is up", tally(client, c.url(), 30), map[string]int{"b": 30})
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
			b := startBackend(t, "a", nil)
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
}`, i, b.addr, uri, interval)
			}
			began := time.Now()
			c := startCaddy(t, sites.String())
			client := c.plain()
			for _, host := range []string{"site0.localhost", "site1.localhost"} {
				if a := askHost(client, c.url(), host, nil); a.body != "a" {
					t.Errorf("%s: got %v, want an answer of the backend", host, a)
				}
			}
			eventually(t, patience, "each check ran ten times", func() bool {
				return !slices.ContainsFunc(test.want, func(path string) bool { return b.probed(path) < 10 })
			})
			most := int(time.Since(began)/interval) + 1
			for _, path := range test.want {
				if got := b.probed(path); got > most {
					t.Errorf("probes of %s: got %d, want one stream, which is %d at most", path, got, most)
				}
			}
		})
	}
}

// One that is full serves, but cannot take a request. While all that serve are
// full the answer is 503, and the dead one is not asked.
func TestCaddyFullUpstreams(t *testing.T) {
	opens := newGate(t)
	held := func(r *http.Request) {
		if r.URL.Path == "/held" {
			opens.pass(r)
		}
	}
	a, b, dead := startBackend(t, "a", held), startBackend(t, "b", held), startBackend(t, "dead", held)
	dead.set(sick)
	c := startCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive /healthz
		unhealthy_request_count 1
	}
}`, addresses(a, dead, b)))
	eventually(t, patience, "all have a verdict", func() bool {
		return statuses(a.addr, b.addr)[health.Up] == 2 && is(health.Down, dead.addr)
	})
	client := c.plain()
	flying := func() int {
		na, _ := a.inFlight()
		nb, _ := b.inFlight()
		return na + nb
	}
	answers := make(chan answer, 2)
	for i := range 2 {
		go func() { answers <- ask(client, c.url()+"/held") }()
		eventually(t, patience, "the request is under way", func() bool { return flying() == i+1 })
	}
	for range 5 {
		if got := ask(client, c.url()); got.status != http.StatusServiceUnavailable {
			t.Errorf("while all are full: got %v, want 503", got)
		}
	}
	opens.open()
	for range 2 {
		if got := <-answers; got.err != nil || got.status != http.StatusOK {
			t.Errorf("a request that was held: got %v, want 200", got)
		}
	}
	eventually(t, patience, "one that is free again serves", func() bool { return ask(client, c.url()).status == http.StatusOK })
	for _, b := range []*backend{a, b} {
		if _, peak := b.inFlight(); peak != 1 {
			t.Errorf("requests at a time at %s: got %d, want 1", b.name, peak)
		}
	}
	if requests, _ := dead.seen(); requests != 0 {
		t.Errorf("requests to the dead one: got %d, want 0", requests)
	}
}

// What Caddy's passive health checks find counts: an upstream that fails its
// requests is skipped, though its own check passes.
func TestCaddyPassiveHealth(t *testing.T) {
	backends := startBackends(t, "a", "b", "failing")
	failing := backends[2]
	failing.set(broken)
	c := startCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive /healthz
		fail_duration 10m
		max_fails 1
		unhealthy_status 5xx
	}
}`, addresses(backends...)))
	eventually(t, patience, "all pass their checks", func() bool {
		return statuses(backends[0].addr, backends[1].addr, failing.addr)[health.Up] == 3
	})
	client := c.plain()
	shares(t, "until it failed", tally(client, c.url(), 3), map[string]int{"a": 1, "b": 1, "error": 1})

	got := tally(client, c.url(), 60)
	if got["a"]+got["b"] != 60 || got["a"] < 15 || got["b"] < 15 {
		t.Errorf("after it failed: answers by backend: got %v, want 60 of a and b, and a share for both", got)
	}
	if !is(health.Up, failing.addr) {
		t.Error("its check no longer passes: nothing was tested")
	}
}

// When Caddy stops, probes end, those in flight too; no target and no
// goroutine is left. (Every other test here checks the latter as well.)
func TestCaddyStopLeavesNothingBehind(t *testing.T) {
	backends := startBackends(t, "a", "sick", "hanging")
	backends[1].set(sick)
	backends[2].set(hanging)
	c := startCaddy(t, fmt.Sprintf(`
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
}`, addresses(backends...)))
	eventually(t, patience, "all are probed", func() bool {
		return !slices.ContainsFunc(backends, func(b *backend) bool { return b.probed("/healthz") == 0 })
	})
	if a := ask(c.plain(), c.url()); a.body != "a" {
		t.Errorf("before the stop: got %v, want an answer of a", a)
	}
	if len(goroutines()) == 0 || len(watched()) != 6 {
		t.Errorf("before the stop: got %d goroutines and %d targets, want some and 6: nothing was tested",
			len(goroutines()), len(watched()))
	}
	c.stop()

	counts := func() (n int) {
		for _, b := range backends {
			_, probes := b.seen()
			n += probes
		}
		return n
	}
	// a probe that was cut off may still be on its way into its backend
	eventually(t, patience, "the last probe has arrived", func() bool {
		n := counts()
		return !poll(100*time.Millisecond, func() bool { return counts() != n })
	})
	n := counts()
	stays(t, 400*time.Millisecond, "no probe arrives", func() bool { return counts() == n })
}

// A probe travels as requests do: with the transport's CA and server name, no
// more is needed. An upstream whose CA is not known is down.
func TestCaddyHTTPSBackends(t *testing.T) {
	cert, ca := selfSigned(t)
	other, _ := selfSigned(t)
	var probes atomic.Int32
	serve := func(name string, cert tls.Certificate) string {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/healthz" {
				probes.Add(1)
			}
			fmt.Fprint(w, name)
		}))
		server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		server.Config.ErrorLog = discard
		server.StartTLS()
		t.Cleanup(server.Close)
		return server.Listener.Addr().String()
	}
	trusted, unknown := serve("trusted", cert), serve("unknown", other)
	c := startCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive /healthz
		transport http {
			tls_trust_pool file %s
			tls_server_name app.internal
		}
	}
}`, "https://"+trusted+" https://"+unknown, "`"+ca+"`"))
	eventually(t, patience, "both have a verdict", func() bool {
		return is(health.Up, trusted) && is(health.Down, unknown)
	})
	shares(t, "HTTPS", tally(c.plain(), c.url(), 20), map[string]int{"trusted": 20})
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
			Protocols: protocols, ErrorLog: discard,
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
		c := startCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive /healthz
		%s
	}
}`, upstream, options))
		eventually(t, patience, "it is up", func() bool { return is(health.Up, address) })
		shares(t, upstream, tally(c.plain(), c.url(), 5), map[string]int{"a": 5})
		if probes.Load() == 0 {
			t.Error("no probe arrived as requests do")
		}
	}

	t.Run("h2c", func(t *testing.T) {
		stream := listen(t, "tcp", loopback(freePort(t)))
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
		passes(t, "unix/"+socket, socket, "", serve(t, listen(t, "unix", socket), nil, 1))
	})

	t.Run("PROXY protocol", func(t *testing.T) {
		missing := new(failures)
		stream := listen(t, "tcp", loopback(freePort(t)))
		address := stream.Addr().String()
		probes := serve(t, preface{stream, missing}, nil, 1)
		passes(t, address, address, "transport http {\nproxy_protocol v2\n}", probes)
		if err := missing.err(); err != nil {
			t.Errorf("connections without a header: %v", err)
		}
	})
}

// Upstreams that cannot be known when the config is loaded are not checked:
// they count as alive.
func TestCaddyUncheckedUpstreams(t *testing.T) {
	b := startBackend(t, "a", nil)
	b.set(sick) // so that a check would fail
	for _, test := range []struct {
		name, proxy string
	}{
		{"placeholder", "reverse_proxy {http.request.header.Backend} {\nlb_policy alive /healthz\n}"},
		{"placeholder beside one that is dead", "reverse_proxy {http.request.header.Backend} " + refused(t) + " {\nlb_policy alive /healthz\n}"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := startCaddy(t, "http:// {\n"+test.proxy+"\n}")
			client := c.plain()
			for range 10 {
				if a := askHost(client, c.url(), "", http.Header{"Backend": {b.addr}}); a.body != "a" {
					t.Fatalf("got %v, want an answer of the backend", a)
				}
			}
			if _, probes := b.seen(); probes != 0 {
				t.Errorf("probes: got %d, want 0", probes)
			}
		})
	}
}

// FastCGI upstreams are checked by TCP connects.
func TestCaddyFastCGI(t *testing.T) {
	stream, err := net.Listen("tcp", loopback(freePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	accepted := &countingListener{Listener: stream}
	go func() {
		_ = fcgi.Serve(accepted, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "a") }))
	}()
	up, dead := stream.Addr().String(), refused(t)
	c := startCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s %s {
		transport fastcgi
		lb_policy alive
	}
}`, up, dead))
	eventually(t, patience, "both have a verdict", func() bool { return is(health.Up, up) && is(health.Down, dead) })
	if accepted.connections.Load() == 0 {
		t.Error("no probe connected")
	}
	shares(t, "FastCGI", tally(c.plain(), c.url(), 10), map[string]int{"a": 10})
}
