// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// pausable is a backend whose probes can be made to wait.
type pausable struct {
	*testkit.Backend
	gate atomic.Pointer[testkit.Gate]
}

func startPausable(t *testing.T, name string) *pausable {
	t.Helper()
	p := new(pausable)
	p.Backend = testkit.StartBackend(t, name, func(r *http.Request) {
		if g := p.gate.Load(); g != nil && strings.HasPrefix(r.URL.Path, "/healthz") {
			g.Pass(r)
		}
	})
	return p
}

// pause makes probes wait until the function that it returns is called.
func (p *pausable) pause(t *testing.T) (resume func()) {
	g := testkit.NewGate(t)
	p.gate.Store(g)
	return func() {
		p.gate.Store(nil)
		g.Open()
	}
}

// slowBurst is a check whose probes may wait for long.
const slowBurst = "check http /healthz {\ninterval 10m\nfast_interval 40ms\ntimeout 25s\n%s\n}\nretries off\n"

// Connections that fail make an upstream suspect for all handlers that share its checks.
// What else happens to requests makes it suspect for the pool that saw it only.
func TestSuspicion_OfTwoHandlers(t *testing.T) {
	app, probed := testkit.StartBackend(t, "app", nil), startPausable(t, "probed")
	_, port, _ := net.SplitHostPort(probed.Addr)
	r1 := route{path: "one", upstreams: []*testkit.Backend{app}, policy: fmt.Sprintf(slowBurst, "port "+port)}
	r2 := r1
	r2.path = "two"
	c := startRoutes(t, "", r1, r2)
	suspects := func() [2]bool { return [2]bool{rowOf(c, "one", app.Addr).Suspect, rowOf(c, "two", app.Addr).Suspect} }
	client := c.Client()
	// either of the handlers, and of the causes, with other requests of the same client
	for _, test := range []struct {
		conduct testkit.Conduct
		path    string
		want    [2]bool
	}{
		{testkit.Shallow, "one", [2]bool{true, false}},
		{testkit.Refusing, "two", [2]bool{true, true}},
	} {
		testkit.Eventually(t, testkit.Patience, "it serves", func() bool { return testkit.Ask(client, c.URL()+"/"+test.path).Status == http.StatusOK })
		resume := probed.pause(t)
		app.Set(test.conduct)
		testkit.Eventually(t, testkit.Patience, "it is suspect as the handlers are to see it", func() bool {
			testkit.Ask(client, c.URL()+"/"+test.path)
			return suspects() == test.want
		})
		testkit.Ask(client, c.URL()+"/"+test.path)
		if got := suspects(); got != test.want {
			t.Errorf("conduct %d: suspect for the handlers: %v, want %v", test.conduct, got, test.want)
		}
		row := rowOf(c, test.path, app.Addr)
		if !strings.Contains(row.Why, "suspect") && !strings.Contains(row.Why, "accus") {
			t.Errorf("why says %q, want that it is suspect", row.Why)
		}
		app.Set(testkit.Well)
		resume()
		testkit.Eventually(t, testkit.Patience, "it is acquitted", func() bool { return suspects() == [2]bool{} })
	}
	if n := len(c.Lines("upstream is down")); n != 0 {
		t.Errorf("went down %d times", n)
	}
}

// A suspect gets no requests while another upstream serves, and a reload keeps it suspect.
// Its checks end the suspicion, and so does maintenance.
func TestSuspicion_OutlivesAReload(t *testing.T) {
	app, other := startPausable(t, "app"), testkit.StartBackend(t, "other", nil)
	r := route{path: "shop", upstreams: []*testkit.Backend{app.Backend, other}, policy: fmt.Sprintf(slowBurst, "")}
	version := 0
	reload := func(c *testkit.Caddy) {
		version++
		r.before = fmt.Sprintf("header Version %d", version)
		c.Load(sites(r))
	}
	c := startRoutes(t, "", r)
	client := c.Client()
	isSuspect := func() bool { return c.One(app.Addr).Suspect }
	accuse := func() (resume func()) {
		t.Helper()
		resume = app.pause(t)
		app.Answer(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true })
		testkit.Eventually(t, testkit.Patience, "it is suspect", func() bool {
			testkit.Ask(client, c.URL()+"/shop")
			return isSuspect()
		})
		app.Answer(nil)
		return resume
	}

	resume := accuse()
	testkit.Shares(t, "while it is suspect", testkit.Tally(client, c.URL()+"/shop", 20), map[string]int{"other": 20})
	reload(c)
	if !isSuspect() {
		t.Error("after a reload it is not suspect")
	}
	testkit.Shares(t, "after a reload", testkit.Tally(client, c.URL()+"/shop", 20), map[string]int{"other": 20})
	other.Set(testkit.Refusing) // now no other one serves
	testkit.Eventually(t, testkit.Patience, "the other one is down", func() bool {
		testkit.Ask(client, c.URL()+"/shop")
		return c.Down(other.Addr)
	})
	testkit.Shares(t, "while no other serves", testkit.Tally(client, c.URL()+"/shop", 10), map[string]int{"app": 10})
	resume()
	testkit.Eventually(t, testkit.Patience, "it is acquitted", func() bool { return !isSuspect() })
	reload(c)
	if row := c.One(app.Addr); row.Suspect || !row.Serving {
		t.Errorf("at the end: %+v", row)
	}
	other.Set(testkit.Well)
	testkit.Eventually(t, testkit.Patience, "the other one is up", func() bool {
		c.Call(http.MethodPost, "/alive/check", map[string][]string{"upstream": {other.Addr}}, "")
		return c.Up(other.Addr)
	})

	resume = accuse()
	c.Patch(app.Addr, `{"mode": "maintenance"}`)
	testkit.Eventually(t, testkit.Patience, "maintenance ends the suspicion", func() bool { return !isSuspect() })
	resume()
	c.Patch(app.Addr, `{"mode": "ready"}`)
	testkit.Eventually(t, testkit.Patience, "it serves", func() bool { return c.One(app.Addr).Serving && !isSuspect() })
}

// An ejection goes on after a reload, until the same time.
func TestEjection_OutlivesAReload(t *testing.T) {
	r := route{path: "shop", upstreams: three(t), policy: burstCheck + "\nretries off\neject 3 {\nfor 1m\n}"}
	c := startRoutes(t, "", r)
	client, bad := c.Client(), r.upstreams[2]
	bad.Set(testkit.Shallow)
	testkit.Eventually(t, testkit.Patience, "it is ejected", func() bool {
		testkit.Ask(client, c.URL()+"/shop")
		return c.One(bad.Addr).EjectedUntil != nil
	})
	until := *c.One(bad.Addr).EjectedUntil
	for version := range 3 {
		r.before = fmt.Sprintf("header Version %d", version)
		c.Load(sites(r))
		if got := c.One(bad.Addr).EjectedUntil; got == nil || !got.Equal(until) {
			t.Errorf("after a reload: ejected until %v, want %v", got, until)
		}
		testkit.Shares(t, "after a reload", testkit.Tally(client, c.URL()+"/shop", 20), map[string]int{"a": 10, "b": 10})
	}
	if n := metric(c, "ejections_total", "pool", "shop", "upstream", bad.Addr); n != 1 {
		t.Errorf("%v ejections are counted, want 1", n)
	}
	// a pass of its checks does not end it, but a failure that turns it down does
	c.Call(http.MethodPost, "/alive/check", map[string][]string{"upstream": {bad.Addr}}, "")
	if c.One(bad.Addr).EjectedUntil == nil {
		t.Error("a pass of its check ends the ejection")
	}
	bad.Set(testkit.Refusing)
	testkit.Eventually(t, testkit.Patience, "it is down, and no longer ejected", func() bool {
		c.Call(http.MethodPost, "/alive/check", map[string][]string{"upstream": {bad.Addr}}, "")
		row := c.One(bad.Addr)
		return row.Status == "down" && row.EjectedUntil == nil
	})
}

// Upstreams of a dynamic source are suspects and are ejected, too.
func TestSuspicion_OfDynamicUpstreams(t *testing.T) {
	port, all := testkit.StartLoopbacks(t, testkit.Well, testkit.Well, testkit.Well)
	server, name := testkit.StartNameServer(t), testkit.NewName()
	server.Set(name, testkit.Records{A: []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}})
	site := testkit.DynamicSite(server.Source(name, port), "name shop\n"+burstCheck+"\neject 3 {\nfor 1m\n}")
	c := testkit.StartCaddy(t, site)
	load := testkit.OpenLoop(t, 10*time.Millisecond, asks(c, http.MethodGet, "", ""))
	testkit.Eventually(t, testkit.Patience, "all are up", func() bool { return c.Up(all[0].Addr, all[1].Addr, all[2].Addr) })
	load.Await(t, 20)
	all[0].Set(testkit.Shallow)
	testkit.Eventually(t, testkit.Patience, "it is ejected", func() bool { return rowOf(c, "shop", all[0].Addr).EjectedUntil != nil })
	load.Await(t, 20)
	until := rowOf(c, "shop", all[0].Addr).EjectedUntil
	wantRounds(t, "shallow", load.Stop(), 4)

	c.Load(strings.Replace(site, "http:// {", "http:// {\nheader Version 2", 1))
	load = testkit.OpenLoop(t, 10*time.Millisecond, asks(c, http.MethodGet, "", ""))
	load.Await(t, 20)
	if got := rowOf(c, "shop", all[0].Addr).EjectedUntil; got == nil || until == nil || !got.Equal(*until) {
		t.Errorf("after a reload: ejected until %v, want %v", got, until)
	}
	all[1].Set(testkit.Refusing)
	testkit.Eventually(t, testkit.Patience, "it is down", func() bool { return c.Down(all[1].Addr) })
	load.Await(t, 20)
	wantRounds(t, "killed", load.Stop(), 1)
	testkit.Shares(t, "at the end", testkit.Tally(c.Client(), c.URL(), 10), map[string]int{"c": 10})
}
