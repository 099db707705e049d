// SPDX-License-Identifier: Apache-2.0

package test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// An upstream is up only while all its checks pass, and the log names the check that
// fails.
func TestChecks_AllMustPass(t *testing.T) {
	a, b := testkit.StartScripted(t, "a", nil), testkit.StartScripted(t, "b", nil)
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s %s {
		lb_policy alive {
			check http /healthz/app {
				interval 40ms
			}
			check http /healthz/db {
				interval 40ms
			}
			check tcp {
				interval 40ms
			}
		}
	}
}`, a.Addr, b.Addr))
	client := c.Client()
	both, one := map[string]int{"a": 3, "b": 3}, map[string]int{"a": 6}
	testkit.Settles(t, "all pass", client, c.URL(), both)
	b.Set("/healthz/db", http.StatusServiceUnavailable)
	testkit.Settles(t, "one of three fails", client, c.URL(), one)
	b.Set("/healthz/app", http.StatusNotFound)
	testkit.Eventually(t, testkit.Patience, "two are down", func() bool { return c.Statuses(b.Addr)["down"] == 2 })
	b.Set("/healthz/db", http.StatusOK)
	testkit.Eventually(t, testkit.Patience, "one is up again", func() bool { return c.Statuses(b.Addr)["down"] == 1 })
	testkit.Settles(t, "the other one still fails", client, c.URL(), one)
	b.Set("/healthz/app", http.StatusOK)
	testkit.Settles(t, "all pass again", client, c.URL(), both)

	var got []string
	for _, l := range c.Lines("upstream is down") {
		got = append(got, l.Upstream+" "+l.Check+": "+l.Reason)
	}
	want := []string{
		b.Addr + " http /healthz/db: status 503, want 2xx",
		b.Addr + " http /healthz/app: status 404, want 2xx",
	}
	if !slices.Equal(got, want) {
		t.Errorf("lines about what is down: got %q, want %q", got, want)
	}
}

// An equal check of one upstream in many sites is one stream of probes with one
// connection, and all sites follow it. A different check is a stream of its own, with no
// effect on the other. Probes end with the last site that has the check.
func TestChecks_EqualOnesShareProbes(t *testing.T) {
	const (
		sites    = 50
		interval = 100 * time.Millisecond
	)
	s := testkit.StartScripted(t, "a", nil)
	site := func(i int, uri string) string {
		return fmt.Sprintf(`
http://site%d.localhost {
	reverse_proxy %s {
		lb_policy alive {
			check http %s {
				interval %s
				keep_connection
			}
			fail_open off
		}
	}
}`, i, s.Addr, uri, interval)
	}
	var config strings.Builder
	for i := range sites {
		config.WriteString(site(i, "/healthz/1"))
	}
	config.WriteString(site(sites, "/healthz/2"))

	began := time.Now()
	c := testkit.StartCaddy(t, config.String())
	client := c.Client()
	answers := func(want int, sites ...int) {
		t.Helper()
		for _, i := range sites {
			host := fmt.Sprintf("site%d.localhost", i)
			var got testkit.Answer
			if !testkit.Poll(testkit.Patience, func() bool {
				got = testkit.AskHost(client, c.URL(), host, nil)
				return got.Status == want
			}) {
				t.Errorf("%s: got %v, want %d", host, got, want)
			}
		}
	}
	all := make([]int, sites)
	for i := range all {
		all[i] = i
	}
	answers(http.StatusOK, append(all, sites)...)
	for _, uri := range []string{"/healthz/1", "/healthz/2"} {
		testkit.Eventually(t, testkit.Patience, uri+" is probed again and again", func() bool { return s.Count(uri) >= 10 })
		if got, most := s.Count(uri), int(time.Since(began)/interval)+1; got > most {
			t.Errorf("probes of %s: got %d, want one stream, which is %d at most", uri, got, most)
		}
		// the first probe may begin before the last site is there, which then goes on
		if n := len(s.VisitsFor(uri)); n > 2 {
			t.Errorf("connections for %s: got %d, want one, or two at most", uri, n)
		}
	}

	s.Set("/healthz/2", http.StatusServiceUnavailable)
	answers(http.StatusServiceUnavailable, sites)
	answers(http.StatusOK, all...)
	s.Set("/healthz/1", http.StatusServiceUnavailable)
	s.Set("/healthz/2", http.StatusOK)
	answers(http.StatusServiceUnavailable, all...)
	answers(http.StatusOK, sites)
	s.Set("/healthz/1", http.StatusOK)
	for _, uri := range []string{"/healthz/1", "/healthz/2"} {
		down := 0
		for _, l := range c.Lines("upstream is down") {
			if l.Check == "http "+uri {
				down++
			}
		}
		if down != 1 {
			t.Errorf("lines about %s, which went down once: got %d", uri, down)
		}
	}

	goesOn := func(uri string) {
		t.Helper()
		n := s.Count(uri)
		testkit.Eventually(t, testkit.Patience, uri+" is still probed", func() bool { return s.Count(uri) >= n+3 })
	}
	c.Load(site(0, "/healthz/1"))
	awaitQuiet(t, func() int { return s.Count("/healthz/2") })
	n := s.Count("/healthz/2")
	goesOn("/healthz/1")
	if got := s.Count("/healthz/2") - n; got != 0 {
		t.Errorf("probes of the check that left: got %d, want 0", got)
	}
	c.Load("http:// {\nrespond ok\n}")
	testkit.Eventually(t, testkit.Patience, "nothing runs", func() bool { return len(testkit.Goroutines()) == 0 })
	awaitQuiet(t, func() int { return s.Count("/healthz/1") })
	n = s.Count("/healthz/1")
	testkit.Stays(t, 4*interval, "no probe arrives", func() bool { return s.Count("/healthz/1") == n })
}

// Every probe has a connection of its own, over every version of HTTP. With
// keep_connection they share one for as long as they pass.
func TestKeepConnection_SharesOne(t *testing.T) {
	ca := testkit.NewAuthority(t)
	const many = 20
	for _, test := range []struct {
		scheme string
		config *tls.Config
	}{
		{"http", nil},
		{"h2c", nil},
		{"https", ca.Server("app.internal")},
	} {
		t.Run(test.scheme, func(t *testing.T) {
			s := testkit.StartScripted(t, "a", test.config)
			testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s://%s {
		lb_policy alive {
			check http /healthz/kept {
				interval 20ms
				keep_connection
			}
			check http /healthz/fresh {
				interval 20ms
			}
		}
		transport http {
			%s
		}
	}
}`, test.scheme, s.Addr, map[string]string{"https": "tls_insecure_skip_verify"}[test.scheme]))
			testkit.Eventually(t, testkit.Patience, "both are probed again and again", func() bool {
				return s.Count("/healthz/kept") >= many && s.Count("/healthz/fresh") >= many
			})
			if n := len(s.VisitsFor("/healthz/kept")); n != 1 {
				t.Errorf("connections of %d probes: got %d, want 1", s.Count("/healthz/kept"), n)
			}
			fresh := s.VisitsFor("/healthz/fresh")
			for _, v := range fresh {
				if len(v.Requests) != 1 {
					t.Errorf("probes on a connection: got %d, want 1", len(v.Requests))
				}
			}
			testkit.Eventually(t, testkit.Patience, "and closed after its probe", func() bool {
				return len(s.Visits(func(v *testkit.Visit) bool { return !v.Closed })) <= 2
			})
		})
	}
}

// Probes that connect anew find a listener that is gone while an old connection still
// answers: all probes without keep_connection, and with it those after a failed request. A
// kept connection hides it for a minute at most.
func TestDeadListener_IsFound(t *testing.T) {
	for _, test := range []struct{ name, check, proxy string }{
		{"the default", "", ""},
		{"a failed request", "keep_connection", "lb_retries 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, other := testkit.StartScripted(t, "a", nil), testkit.StartScripted(t, "b", nil)
			c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s %s {
		lb_policy alive {
			check http /healthz {
				interval 30ms
				%s
			}
		}
		%s
		transport http {
			keepalive 1ms
		}
	}
}`, s.Addr, other.Addr, test.check, test.proxy))
			testkit.Eventually(t, testkit.Patience, "both are up, and probed again", func() bool {
				return c.Up(s.Addr, other.Addr) && s.Count("/healthz") > 3
			})
			s.Listener.Close()
			if test.check != "" {
				n := s.Count("/healthz")
				testkit.Eventually(t, testkit.Patience, "probes pass over the kept connection", func() bool { return s.Count("/healthz") > n+5 })
				if !c.Up(s.Addr) {
					t.Error("it is not up: nothing was tested")
				}
				testkit.Shares(t, "no client sees it", testkit.Tally(c.Client(), c.URL(), 10), map[string]int{"b": 10})
			}
			testkit.Eventually(t, testkit.Patience, "it is down", func() bool { return c.Down(s.Addr) })
		})
	}
}

// The connections of a config end with it: after reloads, only the checks of the last
// config have connections, and after the end there is none.
func TestProbes_LeaveNoConnections(t *testing.T) {
	ca := testkit.NewAuthority(t)
	all := map[string]*testkit.Scripted{
		"http://": testkit.StartScripted(t, "a", nil), "h2c://": testkit.StartScripted(t, "b", nil), "https://": testkit.StartScripted(t, "c", ca.Server("app.internal")),
	}
	sites := func(version int) string {
		var text strings.Builder
		for scheme, s := range all {
			fmt.Fprintf(&text, `
http://%s.localhost {
	header Version %d
	reverse_proxy %s%s {
		lb_policy alive {
			check http /healthz {
				interval 20ms
				keep_connection
			}
			check http /healthz/%[2]d {
				interval 20ms
				keep_connection
			}
		}
		transport http {
			%[5]s
		}
	}
}`, strings.TrimSuffix(scheme, "://"), version, scheme, s.Addr, map[string]string{"https://": "tls_insecure_skip_verify"}[scheme])
		}
		return text.String()
	}
	c := testkit.StartCaddy(t, sites(0))
	for version := range 5 {
		if version > 0 {
			c.Load(sites(version))
		}
		for _, s := range all {
			n := s.Count("/healthz")
			testkit.Eventually(t, testkit.Patience, "probes go on", func() bool {
				return s.Count("/healthz") > n+2 && s.Count(fmt.Sprintf("/healthz/%d", version)) > 2
			})
		}
	}
	open := func(s *testkit.Scripted) int { return len(s.Visits(func(v *testkit.Visit) bool { return !v.Closed })) }
	for scheme, s := range all {
		testkit.Eventually(t, testkit.Patience, scheme+" two checks have two connections", func() bool { return open(s) == 2 })
	}
	c.Stop()
	for scheme, s := range all {
		testkit.Eventually(t, testkit.Patience, scheme+" none is open after the end", func() bool { return open(s) == 0 })
	}
}
