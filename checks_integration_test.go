// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// logLine is a line of Caddy's log, as far as tests look at it.
type logLine struct {
	Level    string `json:"level"`
	Logger   string `json:"logger"`
	Msg      string `json:"msg"`
	Upstream string `json:"upstream"`
	Check    string `json:"check"`
	Reason   string `json:"reason"`
	Previous string `json:"previous"`
	Draining bool   `json:"draining"`
}

// lines returns the lines of Caddy's log whose message begins with a text.
func (c *instance) lines(msg string) (found []logLine) {
	c.t.Helper()
	log, err := os.ReadFile(c.logFile())
	if err != nil {
		c.t.Fatal(err)
	}
	for text := range strings.Lines(string(log)) {
		var line logLine
		// the last may be half written
		if err := json.Unmarshal([]byte(text), &line); err == nil && strings.HasPrefix(line.Msg, msg) {
			found = append(found, line)
		}
	}
	return found
}

// settles fails the test unless the requests are answered as wanted, soon and
// from then on: a verdict takes effect a moment after it is known.
func settles(tb testing.TB, what string, client *http.Client, url string, want map[string]int) {
	tb.Helper()
	n := 0
	for _, share := range want {
		n += share
	}
	var got map[string]int
	if !poll(patience, func() bool {
		got = tally(client, url, n)
		return maps.Equal(got, want)
	}) {
		tb.Fatalf("%s: answers by backend: got %v, want %v", what, got, want)
	}
	if got = tally(client, url, n); !maps.Equal(got, want) {
		tb.Errorf("%s: answers by backend: got %v, want %v to last", what, got, want)
	}
}

// scripted is an upstream whose answers are set by path. Without one it answers
// 200 and its name.
type scripted struct {
	*recorder
	mu     sync.Mutex
	status map[string]int
}

func startScripted(tb testing.TB, name string, config *tls.Config) *scripted {
	tb.Helper()
	s := &scripted{status: make(map[string]int)}
	s.recorder = startRecorder(tb, "tcp", "", config, func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		status := s.status[r.URL.Path]
		s.mu.Unlock()
		if status != 0 {
			w.WriteHeader(status)
		}
		_, _ = io.WriteString(w, name)
	})
	return s
}

// set has a path answered with a status.
func (s *scripted) set(path string, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status[path] = status
}

// probing is the status of the check of an address whose options have a text.
func probing(address, options string) (status health.Status) {
	shared.Targets.Range(func(key, value any) bool {
		k := key.(targetKey)
		if strings.HasSuffix(k.upstream, "/"+address) && strings.Contains(k.probe, options) {
			status = value.(sharedTarget).Status()
			return false
		}
		return true
	})
	return status
}

// An upstream is up only while all its checks pass, and the log names the one
// that does not.
func TestCaddySeveralChecks(t *testing.T) {
	a, b := startScripted(t, "a", nil), startScripted(t, "b", nil)
	c := startCaddy(t, fmt.Sprintf(`
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
}`, a.addr, b.addr))
	client := c.plain()
	both, one := map[string]int{"a": 3, "b": 3}, map[string]int{"a": 6}
	settles(t, "all pass", client, c.url(), both)
	b.set("/healthz/db", http.StatusServiceUnavailable)
	settles(t, "one of three fails", client, c.url(), one)
	b.set("/healthz/app", http.StatusNotFound)
	eventually(t, patience, "two are down", func() bool { return statuses(b.addr)[health.Down] == 2 })
	b.set("/healthz/db", http.StatusOK)
	eventually(t, patience, "one is up again", func() bool { return statuses(b.addr)[health.Down] == 1 })
	settles(t, "the other one still fails", client, c.url(), one)
	b.set("/healthz/app", http.StatusOK)
	settles(t, "all pass again", client, c.url(), both)

	var got []string
	for _, l := range c.lines("upstream is down") {
		got = append(got, l.Upstream+" "+l.Check+": "+l.Reason)
	}
	want := []string{
		b.addr + " http /healthz/db: status 503, want 2xx",
		b.addr + " http /healthz/app: status 404, want 2xx",
	}
	if !slices.Equal(got, want) {
		t.Errorf("lines about what is down: got %q, want %q", got, want)
	}
}

// However many sites have an upstream with an equal check, it is probed as if
// there were one, and not over a connection a site; all of them follow. A check that differs is
// a stream of its own, and neither has a say in the other. Probes end with the last
// site that wants them, and not before.
func TestCaddyManySitesShareProbes(t *testing.T) {
	const (
		sites    = 50
		interval = 100 * time.Millisecond
	)
	s := startScripted(t, "a", nil)
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
}`, i, s.addr, uri, interval)
	}
	var config strings.Builder
	for i := range sites {
		config.WriteString(site(i, "/healthz/1"))
	}
	config.WriteString(site(sites, "/healthz/2"))

	began := time.Now()
	c := startCaddy(t, config.String())
	client := c.plain()
	answers := func(want int, sites ...int) {
		t.Helper()
		for _, i := range sites {
			host := fmt.Sprintf("site%d.localhost", i)
			var got answer
			if !poll(patience, func() bool {
				got = askHost(client, c.url(), host, nil)
				return got.status == want
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
		eventually(t, patience, uri+" is probed again and again", func() bool { return s.count(uri) >= 10 })
		if got, most := s.count(uri), int(time.Since(began)/interval)+1; got > most {
			t.Errorf("probes of %s: got %d, want one stream, which is %d at most", uri, got, most)
		}
		// the first probe may begin before the last site is there, which then goes on
		if n := len(s.asked(uri)); n > 2 {
			t.Errorf("connections for %s: got %d, want one, or two at most", uri, n)
		}
	}

	s.set("/healthz/2", http.StatusServiceUnavailable)
	answers(http.StatusServiceUnavailable, sites)
	answers(http.StatusOK, all...)
	s.set("/healthz/1", http.StatusServiceUnavailable)
	s.set("/healthz/2", http.StatusOK)
	answers(http.StatusServiceUnavailable, all...)
	answers(http.StatusOK, sites)
	s.set("/healthz/1", http.StatusOK)
	for _, uri := range []string{"/healthz/1", "/healthz/2"} {
		down := 0
		for _, l := range c.lines("upstream is down") {
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
		n := s.count(uri)
		eventually(t, patience, uri+" is still probed", func() bool { return s.count(uri) >= n+3 })
	}
	c.load(site(0, "/healthz/1"))
	goesOn("/healthz/1")
	n := s.count("/healthz/2")
	goesOn("/healthz/1")
	if got := s.count("/healthz/2") - n; got != 0 {
		t.Errorf("probes of the check that left: got %d, want 0", got)
	}
	c.load("http:// {\nrespond ok\n}")
	eventually(t, patience, "nothing is watched", func() bool { return len(watched()) == 0 })
	n = s.count("/healthz/1")
	stays(t, 4*interval, "no probe arrives", func() bool { return s.count("/healthz/1") == n })
}

// Every probe has a connection of its own, over every version of HTTP. With
// keep_connection they share one for as long as they pass.
func TestCaddyProbesKeepAConnection(t *testing.T) {
	ca := newAuthority(t)
	const many = 20
	for _, test := range []struct {
		scheme string
		config *tls.Config
	}{
		{"http", nil},
		{"h2c", nil},
		{"https", ca.server("app.internal")},
	} {
		t.Run(test.scheme, func(t *testing.T) {
			s := startScripted(t, "a", test.config)
			startCaddy(t, fmt.Sprintf(`
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
}`, test.scheme, s.addr, map[string]string{"https": "tls_insecure_skip_verify"}[test.scheme]))
			eventually(t, patience, "both are probed again and again", func() bool {
				return s.count("/healthz/kept") >= many && s.count("/healthz/fresh") >= many
			})
			if n := len(s.asked("/healthz/kept")); n != 1 {
				t.Errorf("connections of %d probes: got %d, want 1", s.count("/healthz/kept"), n)
			}
			fresh := s.asked("/healthz/fresh")
			for _, v := range fresh {
				if len(v.requests) != 1 {
					t.Errorf("probes on a connection: got %d, want 1", len(v.requests))
				}
			}
			eventually(t, patience, "and closed after its probe", func() bool {
				return len(s.all(func(v *visit) bool { return !v.closed })) <= 2
			})
		})
	}
}

// With keep_connection, while results speak against the status, and while it is down,
// every probe connects anew; when it is up and settled a connection is kept again.
func TestCaddyProbesConnectAnewInAStreak(t *testing.T) {
	s := startScripted(t, "a", nil)
	startCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 20ms
				fails 5
				passes 5
				keep_connection
			}
		}
	}
}`, s.addr))
	eventually(t, patience, "a connection is kept", func() bool {
		return slices.ContainsFunc(s.asked("/healthz"), func(v *visit) bool { return len(v.requests) > 3 })
	})
	s.set("/healthz", http.StatusServiceUnavailable)
	eventually(t, patience, "it is down", func() bool { return is(health.Down, s.addr) })
	n := s.count("/healthz")
	eventually(t, patience, "and stays so", func() bool { return s.count("/healthz") > n+5 })
	s.set("/healthz", http.StatusOK)
	eventually(t, patience, "it is up", func() bool { return is(health.Up, s.addr) })
	n = s.count("/healthz")
	eventually(t, patience, "a connection is kept again", func() bool { return s.count("/healthz") > n+5 })

	visits := s.asked("/healthz")
	var single int
	for _, v := range visits[1 : len(visits)-1] { // those while it failed
		if len(v.requests) == 1 {
			single++
		}
	}
	// 4 more failures, 5 while it was down at least, 4 passes before the last
	if between := len(visits) - 2; single != between || single < 13 {
		t.Errorf("connections in between: got %d, of which %d with one probe; want one each for 13 at least", between, single)
	}
	if last := visits[len(visits)-1]; len(last.requests) < 5 {
		t.Errorf("probes on the last connection: got %d, want all from the pass that turned it up", len(last.requests))
	}
}

// A listener that is gone while an old connection still answers is found by probes that
// connect anew: all of them without keep_connection, and with it those that follow a
// failed request. Until the kept connection ends, after a minute at most, others do not.
func TestCaddyDeadListener(t *testing.T) {
	for _, test := range []struct{ name, check, proxy string }{
		{"the default", "", ""},
		{"a failed request", "keep_connection", "lb_retries 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, other := startScripted(t, "a", nil), startScripted(t, "b", nil)
			c := startCaddy(t, fmt.Sprintf(`
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
}`, s.addr, other.addr, test.check, test.proxy))
			eventually(t, patience, "both are up, and probed again", func() bool {
				return statuses(s.addr, other.addr)[health.Up] == 2 && s.count("/healthz") > 3
			})
			s.stream.Close()
			if test.check != "" {
				n := s.count("/healthz")
				eventually(t, patience, "probes pass over the kept connection", func() bool { return s.count("/healthz") > n+5 })
				if !is(health.Up, s.addr) {
					t.Error("it is not up: nothing was tested")
				}
				shares(t, "no client sees it", tally(c.plain(), c.url(), 10), map[string]int{"b": 10})
			}
			eventually(t, patience, "it is down", func() bool { return is(health.Down, s.addr) })
		})
	}
}

// A config that ends takes its connections with it: after reloads, the checks of
// the last one have theirs and no more, and after the end there is none.
func TestCaddyProbesLeaveNoConnections(t *testing.T) {
	ca := newAuthority(t)
	all := map[string]*scripted{
		"http://": startScripted(t, "a", nil), "h2c://": startScripted(t, "b", nil), "https://": startScripted(t, "c", ca.server("app.internal")),
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
}`, strings.TrimSuffix(scheme, "://"), version, scheme, s.addr, map[string]string{"https://": "tls_insecure_skip_verify"}[scheme])
		}
		return text.String()
	}
	c := startCaddy(t, sites(0))
	for version := range 5 {
		if version > 0 {
			c.load(sites(version))
		}
		for _, s := range all {
			n := s.count("/healthz")
			eventually(t, patience, "probes go on", func() bool {
				return s.count("/healthz") > n+2 && s.count(fmt.Sprintf("/healthz/%d", version)) > 2
			})
		}
	}
	open := func(s *scripted) int { return len(s.all(func(v *visit) bool { return !v.closed })) }
	for scheme, s := range all {
		eventually(t, patience, scheme+" two checks have two connections", func() bool { return open(s) == 2 })
	}
	c.stop()
	for scheme, s := range all {
		eventually(t, patience, scheme+" none is open after the end", func() bool { return open(s) == 0 })
	}
}
