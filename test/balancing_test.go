// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// These tests run Caddy with real clients and real backends. What depends on
// time alone is tested on a virtual clock elsewhere; here the bounds are
// generous, because the machine may be busy.

// Round robin is exact over every version of HTTP.
func TestRoundRobin_IsExactOverEveryHTTPVersion(t *testing.T) {
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

// Where checks alone decide, an upstream that fails leaves the rotation after `fails`
// failed probes in a row, not before, and within interval x (1 + jitter) + fails x
// max(timeout, fast_interval x (1 + jitter)). It returns after `passes` passed probes in a
// row, and not before.
func TestFaultyUpstream_LeavesAndReturnsInTime(t *testing.T) {
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
			retries off
			observe off
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

// With the default of retries and timeouts of the transport, no request fails while an upstream refuses,
// resets or hangs, even before its checks notice.
func TestRetries_HideFaults(t *testing.T) {
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
// two of three like that, the two retries of the default find the third for every request.
func TestRetries_GoPastResets(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "well")
	backends[0].Set(testkit.Resetting)
	backends[1].Set(testkit.Resetting)
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive
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

// Without retries, a client sees the request that fails; by default, another upstream
// answers it.
func TestRetries_OffLeavesTheHandlerAsItIs(t *testing.T) {
	for _, test := range []struct {
		option string
		want   int
	}{{"", http.StatusOK}, {"retries off", http.StatusBadGateway}} {
		t.Run(test.option, func(t *testing.T) {
			backends := testkit.StartBackends(t, "well", "faulty")
			faulty := backends[1]
			c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s {\nlb_policy alive {\n%s\n%s\n}\n}\n}",
				testkit.Addresses(backends...), testkit.SingleCheck, test.option))
			testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(backends[0].Addr, faulty.Addr) })
			faulty.Set(testkit.Resetting)
			client, worst := c.Client(), http.StatusOK
			for range 2 { // one for each
				worst = max(worst, testkit.Ask(client, c.URL()).Status)
			}
			if worst != test.want {
				t.Errorf("%q: got the status %d, want %d", test.option, worst, test.want)
			}
		})
	}
}

// The result of Caddy's passive health checks counts: an upstream that fails its requests
// is skipped while its own check passes.
func TestPassiveHealth_Counts(t *testing.T) {
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

// Upstreams with an address that depends on the request are not checked and count as
// alive.
func TestUncheckedUpstreams_CountAsAlive(t *testing.T) {
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

// With fail_open off and timeouts of the transport, the page of handle_errors comes when
// every upstream hangs: after the timeout while the checks have not noticed, and at once
// afterwards.
func TestFailOpenOff_ErrorPageComesWhenAllHang(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b")
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 200ms
				timeout 200ms
			}
			fail_open off
		}
		transport http {
			response_header_timeout 100ms
		}
	}
	handle_errors {
		respond "Back in a minute." 503
	}
}`, testkit.Addresses(backends...)))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(backends[0].Addr, backends[1].Addr) })
	client := c.Client()
	for _, b := range backends {
		b.Set(testkit.Hanging)
	}
	for _, when := range []string{"before the checks have found out", "afterwards"} {
		began := time.Now()
		if got := testkit.Ask(client, c.URL()); got.Status != http.StatusServiceUnavailable || got.Body != "Back in a minute." {
			t.Errorf("%s: answer %v after %v, want the page", when, got, time.Since(began))
		}
		testkit.Eventually(t, testkit.Patience, "both are down", func() bool { return c.Down(backends[0].Addr, backends[1].Addr) })
	}
}

// Shares are exact by weight among the upstreams that serve, the backups, and the last
// resort. Options find an upstream in every spelling of its address.
func TestWeights_HoldAmongThoseLeft(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "c", "spare")
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 300ms
				fast_interval 100ms
			}
			weight http://%s 5
			weight %s 2
			backup %s
		}
	}
}`, testkit.Addresses(backends...), backends[0].Addr, backends[1].Addr, backends[3].Addr))
	a, b, third := backends[0], backends[1], backends[2]
	testkit.Eventually(t, testkit.Patience, "all are up", func() bool {
		return c.Up(a.Addr, b.Addr, third.Addr, backends[3].Addr)
	})
	client := c.Client()
	for _, step := range []struct {
		sick []*testkit.Backend
		want map[string]int
	}{
		{nil, map[string]int{"a": 50, "b": 20, "c": 10}},
		{[]*testkit.Backend{a}, map[string]int{"b": 20, "c": 10}},
		{[]*testkit.Backend{a, b, third}, map[string]int{"spare": 30}},
		{backends, map[string]int{"a": 50, "b": 20, "c": 10}}, // the last resort: they still answer
	} {
		requests := 0
		for _, n := range step.want {
			requests += n
		}
		for _, up := range backends {
			up.Set(testkit.Well)
		}
		for _, down := range step.sick {
			down.Set(testkit.Sick)
		}
		testkit.Eventually(t, testkit.Patience, fmt.Sprintf("%d are down", len(step.sick)), func() bool {
			return c.Statuses(a.Addr, b.Addr, third.Addr, backends[3].Addr)["down"] == len(step.sick)
		})
		if got := testkit.Tally(client, c.URL(), requests); !maps.Equal(got, step.want) {
			t.Errorf("with %d sick: served by %v, want %v", len(step.sick), got, step.want)
		}
	}
}

// A sticky cookie holds while its upstream is alive and moves to another one when it is
// not. No request reaches a dead upstream.
func TestSelect_CookieHoldsWhileAlive(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "c")
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 300ms
				fast_interval 100ms
			}
			select cookie lb secret {
				fallback round_robin
			}
		}
	}
}`, testkit.Addresses(backends...)))
	testkit.Eventually(t, testkit.Patience, "all are up", func() bool {
		return c.Up(backends[0].Addr, backends[1].Addr, backends[2].Addr)
	})
	client := c.Client()
	// sticky asks with the cookie that the answer before it set
	var cookie string
	sticky := func() string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.URL(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if cookie != "" {
			req.Header.Set("Cookie", cookie)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if set := resp.Header.Get("Set-Cookie"); set != "" {
			cookie, _, _ = strings.Cut(set, ";")
		}
		var name [16]byte
		n, _ := resp.Body.Read(name[:])
		return string(name[:n])
	}
	first := sticky()
	for range 20 {
		if got := sticky(); got != first {
			t.Fatalf("served by %q, want the same as before: %q", got, first)
		}
	}
	for _, b := range backends {
		if b.Name == first {
			b.Set(testkit.Sick)
			testkit.Eventually(t, testkit.Patience, "it is down", func() bool { return c.Down(b.Addr) })
		}
	}
	second := sticky()
	if second == first {
		t.Errorf("served by %q, which is down", second)
	}
	for range 20 {
		if got := sticky(); got != second {
			t.Fatalf("served by %q, want the new one: %q", got, second)
		}
	}
}

// As the fallback of another policy, this policy cannot keep requests away from dead
// upstreams. A warning says so when the config loads.
func TestFallback_Warns(t *testing.T) {
	b := testkit.StartBackend(t, "a", nil)
	for policy, warns := range map[string]bool{
		"lb_policy cookie {\nfallback alive\n}": true,
		"lb_policy alive {\nselect cookie\n}":   false,
		"lb_policy alive":                       false,
	} {
		c := testkit.StartCaddy(t, "http:// {\nreverse_proxy "+b.Addr+" {\n"+policy+"\n}\n}")
		if got := testkit.Ask(c.Client(), c.URL()); got.Status != http.StatusOK {
			t.Errorf("%s: answer %v, want 200", policy, got)
		}
		log, err := os.ReadFile(c.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(log), "alive is the fallback of another policy"); got != warns {
			t.Errorf("%s: warned %v, want %v", policy, got, warns)
		}
		c.Stop()
	}
}

// When Caddy's own health checks leave no upstream, the list, the metric, the event and
// the log show fail-open. A health_uri beside the policy is a warning.
func TestFailOpen_ByCaddysOwnHealth(t *testing.T) {
	for _, tc := range []struct {
		name, options string
		warns         bool
	}{
		{"passive", "fail_duration 30s\nmax_fails 1\nunhealthy_latency 1ns", false},
		{"a leftover health_uri", "health_uri /gone\nhealth_interval 50ms\nhealth_status 418", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.warns && !mayCheckItself {
				t.Skip("the race detector finds that Caddy's health checks emit events before its events app starts")
			}
			testkit.RecordEvents(t, nil)
			backends := testkit.StartBackends(t, "a", "b")
			c := testkit.StartCaddyWith(t, testkit.EventsOption, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive /healthz {
			name shop
		}
		%s
	}
}`, testkit.Addresses(backends...), tc.options))
			testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(backends[0].Addr, backends[1].Addr) })
			client := c.Client()
			testkit.Eventually(t, testkit.Patience, "the last resort", func() bool {
				if got := testkit.Tally(client, c.URL(), 4); got["error"] > 0 {
					t.Fatalf("served by %v, want no error", got)
				}
				return c.One(backends[0].Addr).FailOpen
			})
			const why = "up, but Caddy's own health checks consider it unhealthy; gets requests anyway, as the last resort: no upstream serves"
			for _, b := range backends {
				if e := c.One(b.Addr); e.Why != why || e.Serving || e.EffectiveWeight != 1 {
					t.Errorf("entry %+v, want it to get requests, and to say: %s", e, why)
				}
			}
			c.WantMetrics("as the last resort", map[string]float64{`pool_fail_open{pool="shop"}`: 1})
			testkit.Tally(client, c.URL(), 4)
			testkit.Eventually(t, testkit.Patience, "one event", func() bool {
				events := 0
				for _, e := range testkit.RecordedEvents() {
					if e.Name() == "fail_open" && e.Data["active"] == true {
						events++
					}
				}
				return events == 1
			})
			if lines := c.Lines("Caddy's own health checks consider every upstream unhealthy that is alive"); len(lines) != 1 {
				t.Errorf("%d lines, want one", len(lines))
			}
			if got := len(c.Lines("lb_policy alive has health checks of its own, and the handler has Caddy's")) > 0; got != tc.warns {
				t.Errorf("warned of health_uri: %v, want %v", got, tc.warns)
			}
		})
	}
}
