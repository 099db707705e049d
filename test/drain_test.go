// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// drainable is an upstream that says itself whether it wants requests.
type drainable struct {
	*testkit.Recorder
	name   string
	status atomic.Int32  // of the answers to checks
	held   *testkit.Gate // for requests for /held
}

// startDrainables runs some that take requests.
func startDrainables(tb testing.TB, names ...string) (all []*drainable) {
	tb.Helper()
	for _, name := range names {
		d := &drainable{name: name, held: testkit.NewGate(tb)}
		d.status.Store(http.StatusOK)
		d.Recorder = testkit.StartRecorder(tb, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.HasPrefix(r.URL.Path, "/healthz"):
				w.WriteHeader(int(d.status.Load()))
				return
			case r.URL.Path == "/held":
				d.held.Pass(r)
			}
			fmt.Fprint(w, d.name)
		})
		all = append(all, d)
	}
	return all
}

// served returns how many requests it got.
func (d *drainable) served() int {
	n := 0
	for _, v := range d.Visits(func(*testkit.Visit) bool { return true }) {
		for _, a := range v.Requests {
			if !strings.HasPrefix(a.Path, "/healthz") {
				n++
			}
		}
	}
	return n
}

// probes returns how many probes arrived.
func (d *drainable) probes() int { return len(d.Requests("/healthz")) }

const drainingCheck = `
			check http /healthz {
				interval 200ms
				drain_status 429
				passes 3
			}`

// An upstream that answers its check with drain_status gets no new request from
// the next probe on, not one, while any other serves; requests in flight finish. It is
// up all the time, so it serves when all others are gone; and with the first answer that
// says so it takes requests again. Each change is one line.
func TestDrainStatus_EndsNewRequests(t *testing.T) {
	all := startDrainables(t, "a", "leaving")
	a, leaving := all[0], all[1]
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s %s {
		lb_policy alive {%s
		}
	}
}`, a.Addr, leaving.Addr, drainingCheck))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(a.Addr, leaving.Addr) })
	client := c.Client()
	clients := testkit.StartTraffic(t, 2, func() testkit.Answer { return testkit.Ask(client, c.URL()) })

	// requests that are under way when it begins
	answers := make(chan testkit.Answer, 2)
	for range 2 {
		go func() { answers <- testkit.Ask(client, c.URL()+"/held") }()
	}
	a.held.Open()
	testkit.Eventually(t, testkit.Patience, "one is held", func() bool {
		if len(leaving.Requests("/held")) == 0 && len(answers) == cap(answers) {
			<-answers
			go func() { answers <- testkit.Ask(client, c.URL()+"/held") }()
		}
		return len(leaving.Requests("/held")) > 0
	})

	before := leaving.probes()
	leaving.status.Store(http.StatusTooManyRequests)
	testkit.Eventually(t, testkit.Patience, "it drains", func() bool { return c.Draining(leaving.Addr) })
	// one probe may have been under way
	if n := leaving.probes() - before; n > 2 {
		t.Errorf("probes until it drained: got %d, want one that says so", n)
	}
	served := func(n int) {
		t.Helper()
		from := clients.Answered()
		testkit.Eventually(t, testkit.Patience, "traffic goes on", func() bool { return clients.Answered() > from+n })
	}
	served(50) // those that were on their way
	n := leaving.served()
	served(200)
	if got := leaving.served() - n; got != 0 {
		t.Errorf("requests while it drains: got %d, want 0", got)
	}
	if !c.Up(leaving.Addr) {
		t.Error("it is not up")
	}
	leaving.held.Open()
	for range cap(answers) {
		if got := <-answers; got.Err != nil || got.Status != http.StatusOK {
			t.Errorf("a request that it was busy with: got %v, want 200", got)
		}
	}

	a.status.Store(http.StatusInternalServerError)
	testkit.Eventually(t, testkit.Patience, "the other one is down", func() bool { return c.Down(a.Addr) })
	served(10)
	testkit.Shares(t, "alone, it serves", testkit.Tally(client, c.URL(), 10), map[string]int{"leaving": 10})
	if got := c.Logged("no upstream is alive"); got > 0 {
		t.Errorf("lines about a last resort: got %d, want 0: it serves", got)
	}
	a.status.Store(http.StatusOK)
	testkit.Eventually(t, testkit.Patience, "the other one is up", func() bool { return c.Up(a.Addr) })
	served(10)
	testkit.Shares(t, "and no longer", testkit.Tally(client, c.URL(), 10), map[string]int{"a": 10})

	before, n = leaving.probes(), leaving.served()
	leaving.status.Store(http.StatusOK)
	testkit.Eventually(t, testkit.Patience, "it takes requests again", func() bool { return leaving.served() > n })
	// with `passes` it would be three of them
	t.Logf("probes until it took requests again: %d", leaving.probes()-before)
	clients.Stop()
	if err := clients.Err(); err != nil {
		t.Errorf("of %d requests: %v", clients.Answered(), err)
	}

	for _, msg := range []string{"upstream is draining", "upstream is no longer draining"} {
		lines := c.Lines(msg)
		if len(lines) != 1 || lines[0].Upstream != leaving.Addr || lines[0].Check != "http /healthz" || lines[0].Level != "info" {
			t.Errorf("lines that begin with %q: got %+v, want one, for the upstream and its check", msg, lines)
		}
	}
}

// One answer is enough, in both directions, whatever passes and fails say: the
// interval here is so long that there is no other.
func TestDrainStatus_OneAnswerIsEnough(t *testing.T) {
	all := startDrainables(t, "a", "leaving")
	a, leaving := all[0], all[1]
	leaving.status.Store(http.StatusTooManyRequests)
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s %s {
		lb_policy alive {
			check http /healthz {
				interval 10m
				drain_status 429
			}
		}
	}
}`, a.Addr, leaving.Addr))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(a.Addr, leaving.Addr) })
	testkit.Settles(t, "it drains from its first answer on", c.Client(), c.URL(), map[string]int{"a": 10})
	if lines := c.Lines("upstream is up"); len(lines) != 2 || lines[0].Draining == lines[1].Draining {
		t.Errorf("lines: got %+v, want two, one of which says that it drains", lines)
	}
	if n := leaving.probes(); n != 1 {
		t.Errorf("probes: got %d, want 1", n)
	}
}

// A draining upstream gets no requests after a reload, whether its check is the same or
// another.
func TestDraining_OutlivesReload(t *testing.T) {
	all := startDrainables(t, "a", "leaving")
	a, leaving := all[0], all[1]
	leaving.status.Store(http.StatusTooManyRequests)
	sites := func(version int, uri string) string {
		return fmt.Sprintf(`
http:// {
	header Version %d
	reverse_proxy %s %s {
		lb_policy alive {
			check http %s {
				interval 50ms
				drain_status 429
			}
		}
	}
}`, version, a.Addr, leaving.Addr, uri)
	}
	c := testkit.StartCaddy(t, sites(0, "/healthz"))
	testkit.Eventually(t, testkit.Patience, "it drains", func() bool { return c.Draining(leaving.Addr) && c.Up(a.Addr) })
	client := c.Client()
	checks := []string{"/healthz", "/healthz/2", "/healthz/3"}
	clients := testkit.StartTraffic(t, 2, func() testkit.Answer {
		a, _ := testkit.AskPastReloads(client, c.URL(), len(checks))
		return a
	})
	for version, uri := range checks {
		c.ReloadInTraffic(sites(version+1, uri), version+1, c.Client(), clients)
	}
	testkit.Eventually(t, testkit.Patience, "the last check runs", func() bool { return len(leaving.Requests("/healthz/3")) > 1 })
	clients.Stop()
	if err := clients.Err(); err != nil {
		t.Errorf("of %d requests: %v", clients.Answered(), err)
	}
	if n := leaving.served(); n != 0 {
		t.Errorf("requests while it drains: got %d, want 0", n)
	}
}
