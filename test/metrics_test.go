// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// The names and types follow the rules of Prometheus.
func TestMetrics_NamesAndTypes(t *testing.T) {
	b := testkit.StartBackend(t, "b", nil)
	c := testkit.StartCaddyWith(t, "", strings.Replace(fmt.Sprintf(testkit.ShopSite, b.Addr), "retries off", "retries off\n\t\t\tmax_requests 9\n\t\t\tqueue 1s", 1))
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(b.Addr) })
	_, text := c.Call(http.MethodGet, "/metrics", nil, "")
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "caddy_alive_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	for _, name := range []string{"upstream_up", "checks_total", "check_duration_seconds", "transitions_total", "pool_upstreams", "pool_fail_open", "selections_total", "held_requests_total", "queue_length", "queue_seconds", "queue_refused_total"} {
		if !strings.Contains(text, "# TYPE caddy_alive_"+name+" ") {
			t.Errorf("%s is missing", name)
		}
	}
}

// The gauge agrees with which upstreams get requests. Counters go on across reloads.
// Series of upstreams that are gone vanish.
func TestMetrics_GoOnAcrossReloads(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	a, b := all[0], all[1]
	sites := fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...))
	c := testkit.StartCaddyWith(t, "", sites)
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(a.Addr, b.Addr) })
	client := c.Client()
	testkit.Shares(t, "both", testkit.Tally(client, c.URL(), 20), map[string]int{"a": 10, "b": 10})
	of := func(name, address, more string) string {
		return fmt.Sprintf(`%s{check="http /healthz",%supstream="%s"}`, name, more, address)
	}
	picks := func(address string) string {
		return fmt.Sprintf(`selections_total{pool="shop",upstream="%s"}`, address)
	}
	state := func(state string) string { return fmt.Sprintf(`pool_upstreams{pool="shop",state="%s"}`, state) }
	c.WantMetrics("both are up", map[string]float64{
		of("upstream_up", a.Addr, ""): 1, of("upstream_up", b.Addr, ""): 1,
		of("transitions_total", a.Addr, `to="up",`): 1, of("transitions_total", a.Addr, `to="down",`): 0,
		picks(a.Addr): 10, picks(b.Addr): 10,
		state("up"): 2, state("down"): 0, state("unknown"): 0, state("draining"): 0, state("maintenance"): 0,
		`pool_fail_open{pool="shop"}`: 0,
	})

	b.Set(testkit.Sick)
	testkit.Eventually(t, testkit.Patience, "one is down", func() bool { return c.Down(b.Addr) })
	testkit.Shares(t, "one", testkit.Tally(client, c.URL(), 10), map[string]int{"a": 10})
	c.WantMetrics("one is down", map[string]float64{
		of("upstream_up", a.Addr, ""): 1, of("upstream_up", b.Addr, ""): 0,
		of("transitions_total", b.Addr, `to="down",`): 1,
	})
	c.Patch(b.Addr, `{"mode":"maintenance"}`)
	c.WantMetrics("it is in maintenance", map[string]float64{
		of("upstream_up", a.Addr, ""): 1, of("upstream_up", b.Addr, ""): -1, // none
		picks(a.Addr): 20, picks(b.Addr): 10, state("up"): 1, state("maintenance"): 1,
	})
	a.Set(testkit.Sick)
	testkit.Eventually(t, testkit.Patience, "none is up", func() bool { return c.Down(a.Addr) })
	c.WantMetrics("none is up", map[string]float64{`pool_fail_open{pool="shop"}`: 1, state("down"): 1})
	a.Set(testkit.Well)
	testkit.Eventually(t, testkit.Patience, "one is up", func() bool { return c.Up(a.Addr) })

	before := c.Metrics()
	c.Load(sites + "\n# reloaded")
	testkit.Shares(t, "reloaded", testkit.Tally(c.Client(), c.URL(), 5), map[string]int{"a": 5})
	after := c.Metrics()
	for _, name := range []string{of("transitions_total", b.Addr, `to="down",`), of("checks_total", a.Addr, `result="pass",`), picks(b.Addr)} {
		if after[name] < before[name] || before[name] == 0 {
			t.Errorf("across a reload: %s was %v, is %v", name, before[name], after[name])
		}
	}
	c.WantMetrics("across a reload", map[string]float64{picks(a.Addr): before[picks(a.Addr)] + 5})

	c.Load(fmt.Sprintf(testkit.ShopSite, a.Addr))
	for name := range c.Metrics() {
		if strings.Contains(name, b.Addr) {
			t.Errorf("it is gone, but there is still %s", name)
		}
	}
	c.WantMetrics("what stays", map[string]float64{picks(a.Addr): before[picks(a.Addr)] + 5})
}

// Checks with equal labels in different handlers, and one upstream in several pools, leave
// the metrics valid: counters are summed, and the gauge shows the worst.
func TestMetrics_EqualLabelsAreSummed(t *testing.T) {
	all := testkit.StartBackends(t, "a")
	site := func(name, checks string) string {
		return fmt.Sprintf("http://127.0.0.1:%d {\n\treverse_proxy %s {\n\t\tlb_policy alive {\n\t\t\tname `%s`\n\t\t\t%s\n\t\t}\n\t}\n}\n", testkit.FreePort(t), all[0].Addr, name, checks)
	}
	passes, fails := "check http /healthz\n", "check http /healthz {\n\t\t\t\tstatus 418\n\t\t\t}\n"
	c := testkit.StartCaddyWith(t, "", site("one", passes+fails)+site(`tw"o\`, fails+passes)+site("three", passes))
	testkit.Eventually(t, testkit.Patience, "all have a verdict", func() bool {
		n := c.Statuses(all[0].Addr)
		return n["up"] > 0 && n["down"] > 0 && n["unknown"] == 0
	})
	c.WantMetrics("equal labels", map[string]float64{
		fmt.Sprintf(`upstream_up{check="http /healthz",upstream="%s"}`, all[0].Addr):    0,
		fmt.Sprintf(`upstream_up{check="http /healthz #2",upstream="%s"}`, all[0].Addr): 0,
		`pool_upstreams{pool="one",state="down"}`:                                       1,
		`pool_upstreams{pool="tw\"o\\",state="down"}`:                                   1,
		`pool_upstreams{pool="three",state="down"}`:                                     0,
	})
}

// wantEvents waits until the recorded events are these, a line each.
func wantEvents(t *testing.T, want string) {
	t.Helper()
	if !testkit.Poll(testkit.Patience, func() bool { return strings.Join(testkit.Events(), "\n") == want }) {
		t.Fatalf("events:\n%s\nwant:\n%s", strings.Join(testkit.Events(), "\n"), want)
	}
}

// Event handlers are called once for each flip, with the upstream, the check and the
// reason. The origin is the app, and a reload repeats no event.
func TestEvents_AreOncePerFlip(t *testing.T) {
	testkit.RecordEvents(t, nil)
	b := testkit.StartBackend(t, "b", nil)
	sites := fmt.Sprintf(testkit.ShopSite, b.Addr)
	c := testkit.StartCaddyWith(t, testkit.EventsOption, sites)
	want := fmt.Sprintf("healthy %s http /healthz ", b.Addr)
	follows := func(more string) {
		t.Helper()
		want += more
		wantEvents(t, want)
	}
	follows("")
	c.Load(sites + "\n# reloaded")
	b.Set(testkit.Sick)
	// the event of the pool comes with the new snapshot, before that of the upstream
	follows(fmt.Sprintf("\nfail_open shop true\nunhealthy %s http /healthz status 503, want 2xx", b.Addr))
	b.Set(testkit.Well)
	follows(fmt.Sprintf("\nfail_open shop false\nhealthy %s http /healthz ", b.Addr))
	c.Load(sites + "\n# reloaded again")
	testkit.Stays(t, 200*time.Millisecond, "no more events", func() bool { return strings.Join(testkit.Events(), "\n") == want })

	for _, e := range testkit.RecordedEvents() {
		if origin := e.Origin(); origin == nil || origin.CaddyModule().ID != "alive" {
			t.Errorf("%s: the origin is %v, want the app", e.Name(), origin)
		}
		if e.Name() == "fail_open" {
			continue
		}
		if e.Data["host"] != b.Addr {
			t.Errorf("%s: host %v", e.Name(), e.Data["host"])
		}
		if lasted, err := time.ParseDuration(fmt.Sprint(e.Data["previous_duration"])); err != nil || lasted < 0 {
			t.Errorf("%s: previous_duration %v", e.Name(), e.Data["previous_duration"])
		}
	}
}

// Events of a config that runs on are handled after another config fails to start, each
// once. Caddy starts apps in any order, so some of those configs fail after this module
// has started.
func TestEvents_GoOnAfterAConfigThatFails(t *testing.T) {
	testkit.RecordEvents(t, nil)
	b := testkit.StartBackend(t, "b", nil)
	sites := fmt.Sprintf(testkit.ShopSite, b.Addr)
	c := testkit.StartCaddyWith(t, testkit.EventsOption, sites)
	want := fmt.Sprintf("healthy %s http /healthz ", b.Addr)
	follows := func(more string) {
		t.Helper()
		want += more
		wantEvents(t, want)
	}
	follows("")
	for i := range 8 {
		if err := c.TryLoad(sites + "\nhttp://127.0.0.1:1 {\n\tbind 192.0.2.1\n}\n"); err == nil {
			t.Fatal("it loads")
		}
		if i%2 == 0 {
			b.Set(testkit.Sick)
			follows(fmt.Sprintf("\nfail_open shop true\nunhealthy %s http /healthz status 503, want 2xx", b.Addr))
		} else {
			b.Set(testkit.Well)
			follows(fmt.Sprintf("\nfail_open shop false\nhealthy %s http /healthz ", b.Addr))
		}
	}
}

// An event handler that blocks, even one that asks the admin API, delays no probe, no
// pick and no reload.
func TestEvents_SlowHandlerDelaysNothing(t *testing.T) {
	b := testkit.StartBackend(t, "b", nil)
	release := testkit.NewGate(t)
	asked := make(chan int, 100)
	var c *testkit.Caddy
	admin := make(chan string, 1)
	testkit.RecordEvents(t, sync.OnceFunc(func() {
		request, _ := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+<-admin+"/alive/upstreams", nil)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			asked <- 0
			return
		}
		response.Body.Close()
		asked <- response.StatusCode
		<-release.Opened
	}))
	sites := fmt.Sprintf(testkit.ShopSite, b.Addr)
	c = testkit.StartCaddyWith(t, testkit.EventsOption, sites)
	admin <- c.Admin
	testkit.Eventually(t, testkit.Patience, "the handler got an answer", func() bool { return len(asked) > 0 })
	if status := <-asked; status != http.StatusOK {
		t.Errorf("the handler asked the admin API: status %d", status)
	}
	// it blocks from here on
	b.Set(testkit.Sick)
	testkit.Eventually(t, testkit.Patience, "probes go on", func() bool { return c.Down(b.Addr) })
	testkit.Shares(t, "requests go on", testkit.Tally(c.Client(), c.URL(), 5), map[string]int{"b": 5})
	began := time.Now()
	c.Load(sites + "\n# reloaded")
	if took := time.Since(began); took > testkit.Patience/2 {
		t.Errorf("a reload took %v", took)
	}
	release.Open()
}
