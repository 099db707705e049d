// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// A new check inherits from the checks that leave, not from those that stay, at the same
// handler or at another one.
func TestReload_InheritsFromWhatLeaves(t *testing.T) {
	const long = "interval 10m\nfast_interval 10m\nfails 2\npasses 2" // the first probe is the only one
	// reload loads sites with /healthz/bad, which fails, and /healthz/before, and
	// then those in which /healthz/after is instead of, or beside, what was before.
	reload := func(t *testing.T, after int, sites func(s *testkit.Scripted, after bool) string) (*testkit.Caddy, *testkit.Scripted) {
		t.Helper()
		s := testkit.StartScripted(t, "a", nil)
		s.Set("/healthz/bad", http.StatusServiceUnavailable)
		s.Set("/healthz/after", after)
		c := testkit.StartCaddy(t, sites(s, false))
		testkit.Eventually(t, testkit.Patience, "a verdict of all", func() bool {
			count := c.Statuses(s.Addr)
			return count["down"] == 1 && count["unknown"] == 0
		})
		c.Load(sites(s, true))
		testkit.Eventually(t, testkit.Patience, "the new check ran", func() bool { return s.Count("/healthz/after") > 0 })
		return c, s
	}
	two := func(s *testkit.Scripted, first, second string) string {
		return strings.Replace(testkit.CheckedSite(0, s.Addr, long, first), "http://", "http://one.localhost", 1) +
			strings.Replace(testkit.CheckedSite(0, s.Addr, long, second), "http://", "http://two.localhost", 1)
	}
	for _, test := range []struct {
		name  string
		after int // what the new check is answered
		want  string
		sites func(s *testkit.Scripted, after bool) string
	}{
		// unknown: its only result decides
		{"beside one that stays", http.StatusOK, "up", func(s *testkit.Scripted, after bool) string {
			if after {
				return testkit.CheckedSite(1, s.Addr, long, "/healthz/bad", "/healthz/after")
			}
			return testkit.CheckedSite(0, s.Addr, long, "/healthz/bad")
		}},
		// up: one failure is not enough
		{"instead of one that is up, beside one that stays", http.StatusNotFound, "up", func(s *testkit.Scripted, after bool) string {
			if after {
				return testkit.CheckedSite(1, s.Addr, long, "/healthz/bad", "/healthz/after")
			}
			return testkit.CheckedSite(0, s.Addr, long, "/healthz/bad", "/healthz/before")
		}},
		// down: one pass is not enough
		{"instead of two, of which one is down", http.StatusOK, "down", func(s *testkit.Scripted, after bool) string {
			if after {
				return testkit.CheckedSite(1, s.Addr, long, "/healthz/after")
			}
			return testkit.CheckedSite(0, s.Addr, long, "/healthz/bad", "/healthz/before")
		}},
		{"instead of one that is up, while another site keeps one that is down", http.StatusNotFound, "up", func(s *testkit.Scripted, after bool) string {
			if after {
				return two(s, "/healthz/after", "/healthz/bad")
			}
			return two(s, "/healthz/before", "/healthz/bad")
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, s := reload(t, test.after, test.sites)
			testkit.Eventually(t, testkit.Patience, "it is "+test.want, func() bool { return c.Status(s.Addr, "/healthz/after") == test.want })
			testkit.Stays(t, testkit.Slack/10, "it is "+test.want, func() bool { return c.Status(s.Addr, "/healthz/after") == test.want })
		})
	}
}

// A config that fails to load, before or after apps start, does not change statuses,
// probes, or which upstreams get requests.
func TestFailedReload_ChangesNothing(t *testing.T) {
	a, b := testkit.StartScripted(t, "a", nil), testkit.StartScripted(t, "b", nil)
	b.Set("/healthz/old", http.StatusServiceUnavailable)
	a.Set("/healthz/new", http.StatusServiceUnavailable)
	const options = "interval 50ms\npasses 1\nfails 1"
	upstreams := a.Addr + " " + b.Addr
	c := testkit.StartCaddy(t, testkit.CheckedSite(0, upstreams, options, "/healthz/old"))
	testkit.Eventually(t, testkit.Patience, "a verdict on both", func() bool { return c.Up(a.Addr) && c.Down(b.Addr) })

	taken, err := net.Listen("tcp", testkit.Loopback(testkit.FreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	client := c.Client()
	clients := testkit.StartTraffic(t, 2, testkit.AskThrough(1, client, c.URL()))
	for what, addition := range map[string]string{
		"an upstream that is not known": "\nhttp://x.localhost {\nreverse_proxy " + a.Addr + " {\nlb_policy alive {\nweight unknown 1\n}\n}\n}",
		"a port that is taken":          "\nhttp://" + taken.Addr().String() + " {\nrespond ok\n}",
	} {
		for range 3 { // which app starts first is up to chance
			if err := c.TryLoad(testkit.CheckedSite(1, upstreams, options, "/healthz/new", "/healthz/old") + addition); err == nil {
				t.Fatalf("%s: no error", what)
			}
			if !c.Up(a.Addr) || !c.Down(b.Addr) {
				t.Errorf("%s: a verdict has changed", what)
			}
			n, probed, failed := clients.Answered(), a.Count("/healthz/old"), a.Count("/healthz/new")
			testkit.Eventually(t, testkit.Patience, "probes and traffic go on", func() bool {
				return clients.Answered() > n+20 && a.Count("/healthz/old") > probed+5
			})
			if got := a.Count("/healthz/new") - failed; got > 1 { // one may have been on its way
				t.Errorf("%s: got %d probes of the config that failed", what, got)
			}
		}
	}
	clients.Stop()
	if err := clients.Err(); err != nil {
		t.Errorf("of %d requests: %v", clients.Answered(), err)
	}
	if n := b.Count("/"); n != 0 {
		t.Errorf("requests to the one that is down: got %d, want 0", n)
	}
	// a config that fails may have probed by its own check before that
	verdicts := slices.DeleteFunc(c.Lines("upstream is"), func(line testkit.LogLine) bool { return !strings.HasSuffix(line.Check, "/healthz/old") })
	if n := len(verdicts); n != 2 {
		t.Errorf("lines about a verdict: got %d, want the 2 at the start", n)
	}
}

// Twenty reloads in a row, each with another check beside it, do not keep a hanging
// upstream up.
func TestReload_ManyKeepNoHangingUpstreamUp(t *testing.T) {
	b := testkit.StartBackend(t, "a", nil)
	sites := func(version int) string {
		return testkit.CheckedSite(version, b.Addr, "interval 150ms\nfast_interval 100ms\ntimeout 150ms\nfails 3\n}\ncheck tcp {\ntimeout "+fmt.Sprint(2000+version)+"ms", "/healthz")
	}
	c := testkit.StartCaddy(t, sites(0))
	testkit.Eventually(t, testkit.Patience, "both checks pass", func() bool { return c.Statuses(b.Addr)["up"] == 2 })
	b.Set(testkit.Hanging)
	version, probes := 0, 0 // probes until it was down
	testkit.Eventually(t, testkit.Patience, "it is down", func() bool {
		version++
		c.Load(sites(version))
		if probes == 0 && c.Status(b.Addr, "/healthz") == "down" {
			probes = b.History().Probes
		}
		return version >= 20 && probes > 0
	})
	// on a busy machine as many timeouts in a row are void as turn it down, and again after
	// each that is on time
	if probes > 12 {
		t.Errorf("probes until it was down, of which 3 are enough: got %d in %d reloads", probes, version)
	}
	if got := c.Status(b.Addr, "tcp"); got != "up" {
		t.Errorf("the check that changes is %s, want up: it passes all the time", got)
	}
}

// After a reload under traffic, an upstream that is known to be dead gets no request, no
// upstream is probed anew, and no request fails.
func TestReload_KeepsStatus(t *testing.T) {
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

	const reloads = 6
	client := c.Client()
	clients := testkit.StartTraffic(t, 8, func() testkit.Answer {
		a, _ := testkit.AskPastReloads(client, c.URL(), reloads)
		return a
	})
	probing := c.Client()
	for version := 1; version <= reloads; version++ {
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

// When a config ends, Caddy cancels its own checks, and counts those under way as failed. Requests
// of that config that still wait are not refused for that, and bound clients do not move.
func TestReload_ChecksOfCaddyThatEndDoNotCount(t *testing.T) {
	for name, test := range map[string]struct {
		options string
		bound   bool
	}{
		"new clients":                 {"", false},
		"new clients, fail_open off":  {"fail_open off", false},
		"new clients, fail_open 100%": {"fail_open 100%", false},
		"bound clients":               {"sticky {\nsecret s3cret\n}", true},
	} {
		t.Run(strings.NewReplacer("%", "", ",", "").Replace(name), func(t *testing.T) {
			backends := testkit.StartBackends(t, "a", "sick")
			backends[1].Set(testkit.Sick)
			held := testkit.NewGate(t)
			for _, b := range backends {
				b.Hook = func(r *http.Request) {
					switch r.URL.Path {
					case "/healthz/core": // one is always under way
						select {
						case <-r.Context().Done():
						case <-time.After(200 * time.Millisecond):
						}
					case "/held":
						held.Pass(r)
					}
				}
			}
			site := func(version int) string {
				return stickySite(backends, testkit.QuickCheck+"\nmax_requests 1\nqueue 30s\nobserve off\neject off\nretries off\n"+test.options,
					fmt.Sprintf("header_up X-Version %d", version), "health_uri /healthz/core", "health_interval 100ms", "health_timeout 30s", "health_status 2xx")
			}
			c := testkit.StartCaddy(t, site(1))
			testkit.Eventually(t, testkit.Patience, "a is up, and the other is down", func() bool { return c.Up(backends[0].Addr) && c.Down(backends[1].Addr) })
			cookie := ""
			if test.bound {
				cookie = "lb=" + valueOf("s3cret", backends[0].Addr)
			}
			answers := make(chan testkit.Answer, 3)
			client := c.Client()
			holds := 1
			if strings.Contains(test.options, "100%") {
				holds = 2 // health is ignored
			}
			for range holds {
				go func() { answers <- askWith(client, c.URL()+"/held", cookie) }()
			}
			testkit.Eventually(t, testkit.Patience, "all are full", func() bool { return c.One(backends[0].Addr).Requests+c.One(backends[1].Addr).Requests == holds })
			go func() { answers <- askWith(client, c.URL(), cookie) }()
			testkit.Eventually(t, testkit.Patience, "a request waits", func() bool { return c.Metrics()[`queue_length{pool="shop"}`] == 1 })
			c.Load(site(2))
			select {
			case got := <-answers:
				t.Errorf("answer %v with the cookies %q, want it to wait", got, got.Header.Values("Set-Cookie"))
			case <-time.After(500 * time.Millisecond):
			}
			held.Open()
			for range holds + 1 {
				got := testkit.Wait(t, answers, testkit.Patience)
				if got.Status != http.StatusOK || holds == 1 && got.Body != "a" || test.bound && len(got.Header.Values("Set-Cookie")) > 0 {
					t.Errorf("answer %v with the cookies %q, want one of a without any", got, got.Header.Values("Set-Cookie"))
				}
			}
		})
	}
}
