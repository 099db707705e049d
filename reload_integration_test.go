// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// checking is a site that says its version, over these upstreams, with checks of
// the URIs and options for each.
func checking(version int, upstreams string, options string, uris ...string) string {
	var checks strings.Builder
	for _, uri := range uris {
		fmt.Fprintf(&checks, "check http %s {\n%s\n}\n", uri, options)
	}
	return fmt.Sprintf(`
http:// {
	header Version %d
	reverse_proxy %s {
		lb_policy alive {
			%s
		}
	}
}`, version, upstreams, checks.String())
}

// patient asks again, once, if there is no answer at all: at a reload Caddy itself
// may drop a connection that has just been opened.
func patient(client *http.Client, url string) func() answer {
	return func() answer {
		a := ask(client, url)
		if a.status == 0 {
			a = ask(client, url)
		}
		return a
	}
}

// before counts the requests for a path that came before the nth for another.
func before(came []string, path string, n int, other string) (count int) {
	for _, p := range came {
		if p == other {
			if n--; n == 0 {
				break
			}
		}
		if p == path {
			count++
		}
	}
	return count
}

// A check that is changed to one that fails takes its upstream down as any failure
// does: only after `fails` probes, and until then it serves.
func TestCaddyReloadToFailingCheck(t *testing.T) {
	a, b := startScripted(t, "a", nil), startScripted(t, "b", nil)
	b.set("/healthz/new", http.StatusNotFound)
	const options = "interval 300ms\nfast_interval 200ms\nfails 3"
	upstreams := a.addr + " " + b.addr
	c := startCaddy(t, checking(0, upstreams, options, "/healthz/old"))
	eventually(t, patience, "both are up", func() bool { return statuses(a.addr, b.addr)[health.Up] == 2 })
	client := c.plain()
	clients := startTraffic(t, 2, patient(client, c.url()))
	c.reloadInTraffic(checking(1, upstreams, options, "/healthz/new"), 1, c.plain(), clients)
	eventually(t, patience, "it is down", func() bool { return is(health.Down, b.addr) })
	clients.stop()
	settles(t, "afterwards", client, c.url(), map[string]int{"a": 6})

	came := b.came()
	if n := before(came, "/", 3, "/healthz/new") - before(came, "/", 1, "/healthz/new"); n == 0 {
		t.Error("requests between the first probe that failed and the third: got 0, want it to serve until that")
	}
	if lines := c.lines("upstream is down"); len(lines) != 1 || lines[0].Check != "http /healthz/new" || lines[0].Previous != "up" {
		t.Errorf("lines about what is down: got %+v, want one, of one that was up", lines)
	}
	if err := clients.err(); err != nil {
		t.Errorf("of %d requests: %v", clients.answered(), err)
	}
}

// An upstream that is known to be down gets no request because its check is
// changed: the new check has to pass as often as ever.
func TestCaddyReloadOfCheckWhileDown(t *testing.T) {
	a, b := startScripted(t, "a", nil), startScripted(t, "b", nil)
	b.set("/healthz/old", http.StatusServiceUnavailable)
	const options = "interval 100ms\npasses 4"
	upstreams := a.addr + " " + b.addr
	c := startCaddy(t, checking(0, upstreams, options, "/healthz/old"))
	eventually(t, patience, "a verdict on both", func() bool { return is(health.Up, a.addr) && is(health.Down, b.addr) })
	client := c.plain()
	clients := startTraffic(t, 2, patient(client, c.url()))
	c.reloadInTraffic(checking(1, upstreams, options, "/healthz/new"), 1, c.plain(), clients)
	eventually(t, patience, "it serves", func() bool { return b.count("/") > 0 })
	clients.stop()
	if n := before(b.came(), "/healthz/new", 1, "/"); n < 4 {
		t.Errorf("probes before the first request: got %d, want 4 at least", n)
	}
	if err := clients.err(); err != nil {
		t.Errorf("of %d requests: %v", clients.answered(), err)
	}
}

// A check inherits from those that leave, not from those that stay, be it at the
// same handler or at another one.
func TestCaddyReloadInheritsFromWhatLeaves(t *testing.T) {
	const long = "interval 10m\nfast_interval 10m\nfails 2\npasses 2" // the first probe is the only one
	// reload loads sites with /healthz/bad, which fails, and /healthz/before, and
	// then those in which /healthz/after is instead of, or beside, what was before.
	reload := func(t *testing.T, after int, sites func(s *scripted, after bool) string) *scripted {
		t.Helper()
		s := startScripted(t, "a", nil)
		s.set("/healthz/bad", http.StatusServiceUnavailable)
		s.set("/healthz/after", after)
		c := startCaddy(t, sites(s, false))
		eventually(t, patience, "a verdict of all", func() bool {
			count := statuses(s.addr)
			return count[health.Down] == 1 && count[health.Unknown] == 0
		})
		c.load(sites(s, true))
		eventually(t, patience, "the new check ran", func() bool { return s.count("/healthz/after") > 0 })
		return s
	}
	two := func(s *scripted, first, second string) string {
		return strings.Replace(checking(0, s.addr, long, first), "http://", "http://one.localhost", 1) +
			strings.Replace(checking(0, s.addr, long, second), "http://", "http://two.localhost", 1)
	}
	for _, test := range []struct {
		name  string
		after int // what the new check is answered
		want  health.Status
		sites func(s *scripted, after bool) string
	}{
		// unknown: its only result decides
		{"beside one that stays", http.StatusOK, health.Up, func(s *scripted, after bool) string {
			if after {
				return checking(1, s.addr, long, "/healthz/bad", "/healthz/after")
			}
			return checking(0, s.addr, long, "/healthz/bad")
		}},
		// up: one failure is not enough
		{"instead of one that is up, beside one that stays", http.StatusNotFound, health.Up, func(s *scripted, after bool) string {
			if after {
				return checking(1, s.addr, long, "/healthz/bad", "/healthz/after")
			}
			return checking(0, s.addr, long, "/healthz/bad", "/healthz/before")
		}},
		// down: one pass is not enough
		{"instead of two, of which one is down", http.StatusOK, health.Down, func(s *scripted, after bool) string {
			if after {
				return checking(1, s.addr, long, "/healthz/after")
			}
			return checking(0, s.addr, long, "/healthz/bad", "/healthz/before")
		}},
		{"instead of one that is up, while another site keeps one that is down", http.StatusNotFound, health.Up, func(s *scripted, after bool) string {
			if after {
				return two(s, "/healthz/after", "/healthz/bad")
			}
			return two(s, "/healthz/before", "/healthz/bad")
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := reload(t, test.after, test.sites)
			eventually(t, patience, "it is "+test.want.String(), func() bool { return probing(s.addr, "/healthz/after") == test.want })
			stays(t, slack/10, "it is "+test.want.String(), func() bool { return probing(s.addr, "/healthz/after") == test.want })
		})
	}
}

// While a config is being loaded and a check of one site is changed, what another
// site keeps is none of its business: it serves all the time.
func TestCaddyReloadLeavesOtherSitesChecksAlone(t *testing.T) {
	s := startScripted(t, "a", nil)
	s.set("/healthz/bad", http.StatusServiceUnavailable)
	sites := func(version int) string {
		var text strings.Builder
		text.WriteString(checking(version, s.addr, "interval 10s\nfast_interval 100ms\n}\nfail_open off\nhold 10s\ncheck tcp {\n", fmt.Sprintf("/healthz/%d", version)))
		for i := range 5 {
			other := checking(version, s.addr, "interval 10s", "/healthz/bad")
			text.WriteString(strings.Replace(other, "http://", fmt.Sprintf("http://site%d.localhost", i), 1))
		}
		return text.String()
	}
	c := startCaddy(t, sites(0))
	eventually(t, patience, "a verdict of all", func() bool {
		return probing(s.addr, "/healthz/0") == health.Up && probing(s.addr, "bad") == health.Down
	})
	client := c.plain()
	clients := startTraffic(t, 4, patient(client, c.url()))
	for version := 1; version <= 10; version++ {
		c.reloadInTraffic(sites(version), version, c.plain(), clients)
	}
	clients.stop()
	if err := clients.err(); err != nil {
		t.Errorf("of %d requests: %v", clients.answered(), err)
	}
}

// A config that fails to load changes nothing, whether it fails before anything
// starts or after: what is known, the probes, and who gets requests.
func TestCaddyFailedReload(t *testing.T) {
	a, b := startScripted(t, "a", nil), startScripted(t, "b", nil)
	b.set("/healthz/old", http.StatusServiceUnavailable)
	a.set("/healthz/new", http.StatusServiceUnavailable)
	const options = "interval 50ms\npasses 1\nfails 1"
	upstreams := a.addr + " " + b.addr
	c := startCaddy(t, checking(0, upstreams, options, "/healthz/old"))
	eventually(t, patience, "a verdict on both", func() bool { return is(health.Up, a.addr) && is(health.Down, b.addr) })

	taken, err := net.Listen("tcp", loopback(freePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	client := c.plain()
	clients := startTraffic(t, 2, patient(client, c.url()))
	for what, addition := range map[string]string{
		"an upstream that is not known": "\nhttp://x.localhost {\nreverse_proxy " + a.addr + " {\nlb_policy alive {\nweight nobody 1\n}\n}\n}",
		"a port that is taken":          "\nhttp://" + taken.Addr().String() + " {\nrespond ok\n}",
	} {
		for range 3 { // who starts first is up to chance
			if err := c.tryLoad(checking(1, upstreams, options, "/healthz/new", "/healthz/old") + addition); err == nil {
				t.Fatalf("%s: no error", what)
			}
			if n := len(watched()); n != 2 {
				t.Fatalf("%s: targets: got %d, want the 2 there were", what, n)
			}
			if !is(health.Up, a.addr) || !is(health.Down, b.addr) {
				t.Errorf("%s: a verdict has changed", what)
			}
			n, probed := clients.answered(), a.count("/healthz/old")
			eventually(t, patience, "probes and traffic go on", func() bool {
				return clients.answered() > n+20 && a.count("/healthz/old") > probed+1
			})
		}
	}
	clients.stop()
	if err := clients.err(); err != nil {
		t.Errorf("of %d requests: %v", clients.answered(), err)
	}
	if n := b.count("/"); n != 0 {
		t.Errorf("requests to the one that is down: got %d, want 0", n)
	}
	// a config that fails may have probed by its own check before that
	verdicts := slices.DeleteFunc(c.lines("upstream is"), func(line logLine) bool { return !strings.HasSuffix(line.Check, "/healthz/old") })
	if n := len(verdicts); n != 2 {
		t.Errorf("lines about a verdict: got %d, want the 2 at the start", n)
	}
}

// Twenty reloads in a row, with a check beside it that changes every time, do not
// keep an upstream up that hangs.
func TestCaddyManyReloadsWithHangingUpstream(t *testing.T) {
	b := startBackend(t, "a", nil)
	sites := func(version int) string {
		return checking(version, b.addr, "interval 150ms\nfast_interval 100ms\ntimeout 150ms\nfails 3\n}\ncheck tcp {\ntimeout "+fmt.Sprint(2000+version)+"ms", "/healthz")
	}
	c := startCaddy(t, sites(0))
	eventually(t, patience, "both checks pass", func() bool { return statuses(b.addr)[health.Up] == 2 })
	b.set(hanging)
	version, probes := 0, 0 // probes until it was down
	eventually(t, patience, "it is down", func() bool {
		version++
		c.load(sites(version))
		if probes == 0 && probing(b.addr, "/healthz") == health.Down {
			probes = b.history().probes
		}
		return version >= 20 && probes > 0
	})
	// on a busy machine as many timeouts in a row are void as turn it down, and again after
	// each that is on time
	if probes > 12 {
		t.Errorf("probes until it was down, of which 3 are enough: got %d in %d reloads", probes, version)
	}
	if got := probing(b.addr, `"tcp"`); got != health.Up {
		t.Errorf("the check that changes is %s, want up: it passes all the time", got)
	}
}
