// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// Requests that arrive one after the other get in one after the other, also across a reload.
func TestQueue_KeepsTheOrder(t *testing.T) {
	app := startTurnstile(t)
	site := func(version int) string {
		return fmt.Sprintf("{\nheader Version %d\n%s\n}", version, limitedProxy("shop", app.Addr, "max_requests 1\nqueue 20s"))
	}
	c := testkit.StartCaddy(t, "http:// "+site(0))
	awaitServing(t, c, app.Addr)
	client := c.Client()
	var want []string
	var sent []*begun
	for i := range 10 {
		path := fmt.Sprintf("/%d", i)
		want, sent = append(want, path), append(sent, begin(t, client, c.URL()+path))
		if i == 0 {
			app.awaitArrivals(t, 1)
		}
		awaitWaiting(t, c, "shop", i)
		if i == 5 {
			c.Load("http:// " + site(1))
		}
	}
	for i := range sent {
		app.awaitArrivals(t, i+1)
		app.letOut(t)
	}
	for _, s := range sent {
		if a := s.end(t); a.Status != http.StatusOK {
			t.Error(a)
		}
	}
	if got := app.arrived(); !slices.Equal(got, want) {
		t.Errorf("they got in as %v", got)
	}
	wantIdle(t, c, "shop")
}

// A client that leaves frees its place in the queue, and the next one behind it has its turn.
// One more than the queue takes is refused.
func TestQueue_ClientsThatLeaveFreeTheirPlaces(t *testing.T) {
	app := startTurnstile(t)
	c := testkit.StartCaddy(t, limitedSite(app.Addr, "max_requests 1\nqueue 20s 2"))
	awaitServing(t, c, app.Addr)
	client := c.Client()
	first := begin(t, client, c.URL()+"/first")
	app.awaitArrivals(t, 1)
	second := begin(t, client, c.URL()+"/second")
	awaitWaiting(t, c, "shop", 1)
	third := begin(t, client, c.URL()+"/third")
	awaitWaiting(t, c, "shop", 2)
	if a := testkit.Ask(client, c.URL()+"/refused"); a.Status != http.StatusServiceUnavailable {
		t.Errorf("one too many: %v, want 503", a)
	}
	second.leave()
	awaitWaiting(t, c, "shop", 1)
	fourth := begin(t, client, c.URL()+"/fourth")
	awaitWaiting(t, c, "shop", 2)
	for i, r := range []*begun{first, third, fourth} {
		app.awaitArrivals(t, i+1)
		app.letOut(t)
		if a := r.end(t); a.Status != http.StatusOK {
			t.Error(a)
		}
	}
	if got, want := app.arrived(), []string{"/first", "/third", "/fourth"}; !slices.Equal(got, want) {
		t.Errorf("they got in as %v, want %v", got, want)
	}
	c.WantMetrics("afterwards", map[string]float64{`queue_refused_total{pool="shop",reason="full"}`: 1, `queue_refused_total{pool="shop",reason="timeout"}`: 0})
	wantIdle(t, c, "shop")
}

// A client that leaves the queue is noticed over every version of HTTP.
func TestQueue_ClientsThatLeaveOverEveryHTTPVersion(t *testing.T) {
	app := startTurnstile(t)
	c := testkit.StartCaddy(t, "https://localhost {\ntls internal\nrespond /ready 204\n"+limitedProxy("shop", app.Addr, "max_requests 1\nqueue 30s")+"\n}")
	awaitServing(t, c, app.Addr)
	for i, version := range clientVersions() {
		client := c.ClientOf(version)
		testkit.Eventually(t, testkit.Patience, "the site has its certificate", func() bool { return testkit.Ask(client, c.SecureURL()+"/ready").Err == nil })
		first := begin(t, client, c.SecureURL())
		app.awaitArrivals(t, 3*i+1)
		second := begin(t, client, c.SecureURL())
		awaitWaiting(t, c, "shop", 1)
		second.leave()
		awaitWaiting(t, c, "shop", 0)
		third := begin(t, client, c.SecureURL())
		awaitWaiting(t, c, "shop", 1)
		first.leave() // the slot of one that leaves goes to the next
		app.awaitArrivals(t, 3*i+2)
		app.letOut(t)
		if a := third.end(t); a.Status != http.StatusOK || a.Proto != version {
			t.Errorf("HTTP/%d: %v", version, a)
		}
		fourth := begin(t, client, c.SecureURL())
		app.awaitArrivals(t, 3*i+3)
		app.letOut(t)
		if a := fourth.end(t); a.Status != http.StatusOK {
			t.Errorf("HTTP/%d, afterwards: %v", version, a)
		}
	}
	wantIdle(t, c, "shop")
}

// A request waits for as long as it may, and is then refused.
func TestQueue_EndsAfterItsTimeout(t *testing.T) {
	app := startTurnstile(t)
	c := testkit.StartCaddy(t, limitedSite(app.Addr, "max_requests 1\nqueue 300ms"))
	awaitServing(t, c, app.Addr)
	client := c.Client()
	first := begin(t, client, c.URL()+"/first")
	app.awaitArrivals(t, 1)
	began := time.Now()
	a := testkit.Ask(client, c.URL()+"/second")
	if took := time.Since(began); a.Status != http.StatusServiceUnavailable || took < 300*time.Millisecond || took > 300*time.Millisecond+testkit.Slack {
		t.Errorf("%v after %v, want 503 after 300ms", a, took)
	}
	app.letOut(t)
	if a := first.end(t); a.Status != http.StatusOK {
		t.Error(a)
	}
	c.WantMetrics("afterwards", map[string]float64{`queue_refused_total{pool="shop",reason="timeout"}`: 1})
	wantIdle(t, c, "shop")
}

// Caddy's own limits count beside max_requests, and a queue waits for them alone, too.
func TestQueue_BesideCaddysOwnLimit(t *testing.T) {
	for options, most := range map[string]int64{"max_requests 3\nqueue 10s": 3, "queue 10s": 16} {
		t.Run(options, func(t *testing.T) {
			backends := startCounting(t, func() { time.Sleep(time.Millisecond) }, "a", "b")
			c := testkit.StartCaddy(t, limitedSite(addressesOf(backends), options, "unhealthy_request_count 2"))
			awaitServing(t, c, addressesOf(backends))
			r := limitedRun{clients: 16, requests: 400, longest: longestRun, ask: testkit.AskThrough(0, c.Client(), c.URL())}.run()
			t.Logf("%d requests, statuses %v, the slowest took %v", r.sent, r.statuses, r.slowest)
			if r.statuses[http.StatusOK] != r.sent {
				t.Errorf("statuses %v of %d requests", r.statuses, r.sent)
			}
			for _, b := range backends {
				if b.all.Load() == 0 || b.most.Load() > most {
					t.Errorf("%s had %d requests, %d at once, want %d at most", b.Name, b.all.Load(), b.most.Load(), most)
				}
			}
			if c.Metrics()[`queue_seconds_count{pool="shop"}`] == 0 {
				t.Error("none has waited")
			}
			wantIdle(t, c, "shop")
		})
	}
}

// While requests wait, upstreams die and return, are drained and resumed, and configs are
// replaced: each request is answered within the time that it may wait, and no slot is lost.
func TestQueue_UnderFire(t *testing.T) {
	for _, failOpen := range []string{"none_up", "off"} {
		t.Run("fail_open "+failOpen, func(t *testing.T) {
			const timeout = 5 * time.Second
			backends := startCounting(t, func() { time.Sleep(time.Millisecond) }, "a", "b", "c")
			a, b, third := backends[0], backends[1], backends[2]
			site := func(version int) string {
				return fmt.Sprintf(`http:// {
	header Version %d
	reverse_proxy %s {
		lb_policy alive {
			name shop
			check http /healthz {
				interval 100ms
				fast_interval 50ms
				timeout 1s
				fails 2
				passes 1
			}
			max_requests 2
			queue %s
			fail_open %s
		}
	}
}`, version, addressesOf(backends), timeout, failOpen)
			}
			c := testkit.StartCaddy(t, site(0))
			awaitServing(t, c, addressesOf(backends))
			client := c.Client()
			var hung atomic.Int64
			load := testkit.ClosedLoop(t, 24, func() testkit.Answer {
				began := time.Now()
				a := testkit.Ask(client, c.URL())
				var netErr net.Error
				if errors.As(a.Err, &netErr) && netErr.Timeout() || time.Since(began) > timeout+2*testkit.Slack {
					hung.Add(1)
				}
				return a
			})
			version := 0
			reload := func() {
				version++
				if err := c.TryLoad(site(version)); err != nil {
					t.Error(err)
				}
			}
			down := func(down ...*counting) {
				for _, b := range down {
					testkit.Eventually(t, testkit.Patience, b.Name+" is down", func() bool { return c.Down(b.Addr) })
				}
			}
			up := func() { awaitServing(t, c, addressesOf(backends)) }
			for _, step := range []struct {
				what string
				do   func()
			}{
				{"one dies and returns", func() { a.Set(testkit.Refusing); down(a); load.Await(t, 100); a.Set(testkit.Well); up() }},
				{"one resets connections", func() { b.Set(testkit.Resetting); down(b); load.Await(t, 100); b.Set(testkit.Well); up() }},
				{"one is drained, and resumed", func() {
					c.Patch(a.Addr, `{"mode":"drain"}`)
					load.Await(t, 100)
					c.Patch(a.Addr, `{"mode":"ready"}`)
				}},
				{"two are in maintenance, and resumed", func() {
					c.Patch(a.Addr, `{"mode":"maintenance"}`)
					c.Patch(b.Addr, `{"mode":"maintenance"}`)
					load.Await(t, 100)
					c.Patch(a.Addr, `{"mode":"ready"}`)
					c.Patch(b.Addr, `{"mode":"ready"}`)
					up()
				}},
				{"a reload", reload},
				{"a reload while one dies", func() {
					third.Set(testkit.Refusing)
					reload()
					down(third)
					third.Set(testkit.Well)
					reload()
					up()
				}},
				{"all die and return", func() {
					for _, b := range backends {
						b.Set(testkit.Refusing)
					}
					down(backends...)
					for _, b := range backends {
						b.Set(testkit.Well)
					}
					up()
				}},
			} {
				began := len(load.Sent())
				step.do()
				load.Await(t, 200)
				t.Logf("%s: %d requests", step.what, len(load.Sent())-began)
			}
			statuses := make(map[int]int)
			for _, s := range load.Stop() {
				statuses[s.Status]++
			}
			t.Logf("statuses %v", statuses)
			if hung.Load() > 0 {
				t.Errorf("%d requests took longer than they may wait", hung.Load())
			}
			for status := range statuses {
				if !slices.Contains([]int{0, http.StatusOK, http.StatusBadGateway, http.StatusServiceUnavailable}, status) {
					t.Errorf("status %d", status)
				}
			}
			wantIdle(t, c, "shop")
			for _, b := range backends {
				if b.most.Load() > 2+1 { // one that was cut off in Caddy may still be at work in the backend
					t.Errorf("%s had %d requests at once", b.Name, b.most.Load())
				}
			}
			if got := testkit.Tally(client, c.URL(), 6); got["error"] > 0 {
				t.Errorf("afterwards: %v", got)
			}
		})
	}
}

// Requests of a config that was replaced wait on, and a limit whose address is no longer in the
// config ends with the last of them.
func TestQueue_OutlivesItsConfig(t *testing.T) {
	app, next := startTurnstile(t), startTurnstile(t)
	c := testkit.StartCaddy(t, limitedSite(app.Addr, "max_requests 1\nqueue 20s"))
	awaitServing(t, c, app.Addr)
	client := c.Client()
	first := begin(t, client, c.URL()+"/first")
	app.awaitArrivals(t, 1)
	second := begin(t, client, c.URL()+"/second")
	awaitWaiting(t, c, "shop", 1)
	if err := c.TryLoad(limitedSite(next.Addr, "max_requests 1\nqueue 20s")); err != nil {
		t.Fatal(err)
	}
	third := begin(t, client, c.URL()+"/third")
	next.awaitArrivals(t, 1)
	awaitWaiting(t, c, "shop", 1) // the second one still counts
	c.WantMetrics("after the reload", map[string]float64{`queue_length{pool="shop"}`: 1})
	app.letOut(t)
	app.letOut(t)
	next.letOut(t)
	for _, s := range []*begun{first, second, third} {
		if a := s.end(t); a.Status != http.StatusOK {
			t.Error(a)
		}
	}
	if got := app.arrived(); !slices.Equal(got, []string{"/first", "/second"}) {
		t.Errorf("the upstream of the config before got %v", got)
	}
}

// Requests that wait have the limit of the config that replaces theirs: a larger one lets them
// go on at once, in their order and before those that come later. A smaller one holds for them,
// too.
func TestQueue_FollowsTheLimitOfTheNextConfig(t *testing.T) {
	app := startTurnstile(t)
	c := testkit.StartCaddy(t, limitedSite(app.Addr, "max_requests 1\nqueue 20s"))
	awaitServing(t, c, app.Addr)
	client := c.Client()
	var all []*begun
	ask := func(path string) { all = append(all, begin(t, client, c.URL()+path)) }
	ask("/1")
	app.awaitArrivals(t, 1)
	for i, path := range []string{"/2", "/3", "/4", "/5"} {
		ask(path)
		awaitWaiting(t, c, "shop", i+1)
	}
	if err := c.TryLoad(limitedSite(app.Addr, "max_requests 3\nqueue 20s")); err != nil {
		t.Fatal(err)
	}
	app.awaitArrivals(t, 3) // although none has left
	ask("/6")
	awaitWaiting(t, c, "shop", 3)
	app.letOut(t)
	app.awaitArrivals(t, 4)
	if err := c.TryLoad(limitedSite(app.Addr, "max_requests 1\nqueue 20s")); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, testkit.Patience, "the limit is 1", func() bool {
		rows := c.List(nil)
		return len(rows) == 1 && rows[0].Limit == 1
	})
	time.Sleep(200 * time.Millisecond) // those that wait have looked again
	app.letOut(t)
	app.letOut(t)
	time.Sleep(100 * time.Millisecond)
	if got := len(app.arrived()); got != 4 {
		t.Errorf("%d requests have arrived while one is in and the limit is 1, want 4", got)
	}
	for range 3 {
		app.letOut(t)
	}
	for _, s := range all {
		if a := s.end(t); a.Status != http.StatusOK {
			t.Error(a)
		}
	}
	got := app.arrived()
	slices.Sort(got[1:3]) // they go on at the same moment
	if !slices.Equal(got, []string{"/1", "/2", "/3", "/4", "/5", "/6"}) {
		t.Errorf("they arrived as %v", got)
	}
}
