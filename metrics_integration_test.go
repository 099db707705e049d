// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// metrics returns the metrics of this project as Prometheus would read them, by name
// and labels.
func (c *instance) metrics() map[string]float64 {
	c.t.Helper()
	all, err := c.tryMetrics()
	if err != nil {
		c.t.Fatal(err)
	}
	return all
}

// tryMetrics is metrics for a time at which there may be no admin endpoint: a reload
// closes the one before.
func (c *instance) tryMetrics() (map[string]float64, error) {
	response, err := http.Get("http://" + c.admin + "/metrics")
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d: %s", response.StatusCode, text)
	}
	all := make(map[string]float64)
	for _, m := range regexp.MustCompile(`(?m)^caddy_alive_(\S+\{.*\}|\S+) (\S+)$`).FindAllStringSubmatch(string(text), -1) {
		if all[m[1]], err = strconv.ParseFloat(m[2], 64); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// wantMetrics checks some of them; those that must not be there have the value -1.
func (c *instance) wantMetrics(what string, want map[string]float64) {
	c.t.Helper()
	got := c.metrics()
	for name, value := range want {
		n, there := got[name]
		if !there {
			n = -1
		}
		if n != value {
			c.t.Errorf("%s: %s is %v, want %v", what, name, n, value)
		}
	}
}

// The names and types are as Prometheus wants them.
func TestCaddyMetricsLint(t *testing.T) {
	b := startBackend(t, "b", nil)
	c := startOperated(t, "", fmt.Sprintf(operated, b.addr))
	eventually(t, patience, "it is up", func() bool { return is(health.Up, b.addr) })
	_, text := c.call(http.MethodGet, "/metrics", nil, "")
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "caddy_alive_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	for _, name := range []string{"upstream_up", "checks_total", "check_duration_seconds", "transitions_total", "pool_upstreams", "pool_fail_open", "selections_total", "held_requests_total"} {
		if !strings.Contains(text, "# TYPE caddy_alive_"+name+" ") {
			t.Errorf("%s is missing", name)
		}
	}
}

// The gauge agrees with who gets requests; what was counted goes on across reloads;
// the series of what is gone vanish.
func TestCaddyMetrics(t *testing.T) {
	all := startBackends(t, "a", "b")
	a, b := all[0], all[1]
	sites := fmt.Sprintf(operated, addresses(all...))
	c := startOperated(t, "", sites)
	eventually(t, patience, "both are up", func() bool { return statuses(a.addr, b.addr)[health.Up] == 2 })
	client := c.plain()
	shares(t, "both", tally(client, c.url(), 20), map[string]int{"a": 10, "b": 10})
	of := func(name, address, more string) string {
		return fmt.Sprintf(`%s{check="http /healthz",%supstream="%s"}`, name, more, address)
	}
	picks := func(address string) string {
		return fmt.Sprintf(`selections_total{pool="shop",upstream="%s"}`, address)
	}
	state := func(state string) string { return fmt.Sprintf(`pool_upstreams{pool="shop",state="%s"}`, state) }
	c.wantMetrics("both are up", map[string]float64{
		of("upstream_up", a.addr, ""): 1, of("upstream_up", b.addr, ""): 1,
		of("transitions_total", a.addr, `to="up",`): 1, of("transitions_total", a.addr, `to="down",`): 0,
		picks(a.addr): 10, picks(b.addr): 10,
		state("up"): 2, state("down"): 0, state("unknown"): 0, state("draining"): 0, state("maintenance"): 0,
		`pool_fail_open{pool="shop"}`: 0,
	})

	b.set(sick)
	eventually(t, patience, "one is down", func() bool { return is(health.Down, b.addr) })
	shares(t, "one", tally(client, c.url(), 10), map[string]int{"a": 10})
	c.wantMetrics("one is down", map[string]float64{
		of("upstream_up", a.addr, ""): 1, of("upstream_up", b.addr, ""): 0,
		of("transitions_total", b.addr, `to="down",`): 1,
	})
	c.patch(b.addr, `{"mode":"maintenance"}`)
	c.wantMetrics("it is in maintenance", map[string]float64{
		of("upstream_up", a.addr, ""): 1, of("upstream_up", b.addr, ""): -1, // none
		picks(a.addr): 20, picks(b.addr): 10, state("up"): 1, state("maintenance"): 1,
	})
	a.set(sick)
	eventually(t, patience, "nobody is up", func() bool { return is(health.Down, a.addr) })
	c.wantMetrics("nobody is up", map[string]float64{`pool_fail_open{pool="shop"}`: 1, state("down"): 1})
	a.set(well)
	eventually(t, patience, "one is up", func() bool { return is(health.Up, a.addr) })

	before := c.metrics()
	c.load(sites + "\n# reloaded")
	shares(t, "reloaded", tally(c.plain(), c.url(), 5), map[string]int{"a": 5})
	after := c.metrics()
	for _, name := range []string{of("transitions_total", b.addr, `to="down",`), of("checks_total", a.addr, `result="pass",`), picks(b.addr)} {
		if after[name] < before[name] || before[name] == 0 {
			t.Errorf("across a reload: %s was %v, is %v", name, before[name], after[name])
		}
	}
	c.wantMetrics("across a reload", map[string]float64{picks(a.addr): before[picks(a.addr)] + 5})

	c.load(fmt.Sprintf(operated, a.addr))
	for name := range c.metrics() {
		if strings.Contains(name, b.addr) {
			t.Errorf("it is gone, but there is still %s", name)
		}
	}
	c.wantMetrics("what stays", map[string]float64{picks(a.addr): before[picks(a.addr)] + 5})
}

// Two checks with one label in different handlers, and two pools with one upstream,
// leave the metrics whole: counts are summed, and the gauge shows the worst.
func TestCaddyMetricsOfEqualLabels(t *testing.T) {
	all := startBackends(t, "a")
	site := func(name, checks string) string {
		return fmt.Sprintf("http://127.0.0.1:%d {\n\treverse_proxy %s {\n\t\tlb_policy alive {\n\t\t\tname `%s`\n\t\t\t%s\n\t\t}\n\t}\n}\n", freePort(t), all[0].addr, name, checks)
	}
	passes, fails := "check http /healthz\n", "check http /healthz {\n\t\t\t\tstatus 418\n\t\t\t}\n"
	c := startOperated(t, "", site("one", passes+fails)+site(`tw"o\`, fails+passes)+site("three", passes))
	eventually(t, patience, "all have a verdict", func() bool {
		n := statuses(all[0].addr)
		return n[health.Up] == 1 && n[health.Down] == 1
	})
	c.wantMetrics("equal labels", map[string]float64{
		fmt.Sprintf(`upstream_up{check="http /healthz",upstream="%s"}`, all[0].addr):    0,
		fmt.Sprintf(`upstream_up{check="http /healthz #2",upstream="%s"}`, all[0].addr): 0,
		`pool_upstreams{pool="one",state="down"}`:                                       1,
		`pool_upstreams{pool="tw\"o\\",state="down"}`:                                   1,
		`pool_upstreams{pool="three",state="down"}`:                                     0,
	})
}

func init() { caddy.RegisterModule(new(eventRecorder)) }

// eventRecorder is an event handler of tests.
type eventRecorder struct{}

var recorded struct {
	sync.Mutex
	events []caddy.Event
	block  func() // called by the handler
}

func (*eventRecorder) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.alive_test", New: func() caddy.Module { return new(eventRecorder) }}
}

func (*eventRecorder) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	return nil
}

func (*eventRecorder) Handle(_ context.Context, e caddy.Event) error {
	recorded.Lock()
	recorded.events = append(recorded.events, e)
	block := recorded.block
	recorded.Unlock()
	if block != nil {
		block()
	}
	return nil
}

// record forgets events of earlier tests, and sets what the handler does.
func record(tb testing.TB, block func()) {
	recorded.Lock()
	defer recorded.Unlock()
	recorded.events, recorded.block = nil, block
	tb.Cleanup(func() { recorded.Lock(); defer recorded.Unlock(); recorded.block = nil })
}

// events returns what was recorded: name, upstream or pool, and what else is of
// interest.
func events() (all []string) {
	recorded.Lock()
	defer recorded.Unlock()
	for _, e := range recorded.events {
		if e.Name() == "fail_open" {
			all = append(all, fmt.Sprintf("fail_open %v %v", e.Data["pool"], e.Data["active"]))
			continue
		}
		all = append(all, fmt.Sprintf("%s %v %v %v", e.Name(), e.Data["upstream"], e.Data["check"], e.Data["reason"]))
	}
	return all
}

const recordEvents = `events {
		on healthy alive_test
		on unhealthy alive_test
		on fail_open alive_test
	}`

// Event handlers are called once a flip, with who, which check and why; they come
// from the app, and a reload repeats none.
func TestCaddyEvents(t *testing.T) {
	record(t, nil)
	b := startBackend(t, "b", nil)
	sites := fmt.Sprintf(operated, b.addr)
	c := startOperated(t, recordEvents, sites)
	want := fmt.Sprintf("healthy %s http /healthz ", b.addr)
	follows := func(more string) {
		t.Helper()
		want += more
		if !poll(patience, func() bool { return strings.Join(events(), "\n") == want }) {
			t.Fatalf("events:\n%s\nwant:\n%s", strings.Join(events(), "\n"), want)
		}
	}
	follows("")
	c.load(sites + "\n# reloaded")
	b.set(sick)
	// the pool is told of by who makes the snapshot, which is before the target is
	follows(fmt.Sprintf("\nfail_open shop true\nunhealthy %s http /healthz status 503, want 2xx", b.addr))
	b.set(well)
	follows(fmt.Sprintf("\nfail_open shop false\nhealthy %s http /healthz ", b.addr))
	c.load(sites + "\n# reloaded again")
	stays(t, 200*time.Millisecond, "no more events", func() bool { return strings.Join(events(), "\n") == want })

	recorded.Lock()
	defer recorded.Unlock()
	for _, e := range recorded.events {
		if origin := e.Origin(); origin == nil || origin.CaddyModule().ID != "alive" {
			t.Errorf("%s: the origin is %v, want the app", e.Name(), origin)
		}
		if e.Name() == "fail_open" {
			continue
		}
		if e.Data["host"] != b.addr {
			t.Errorf("%s: host %v", e.Name(), e.Data["host"])
		}
		if lasted, err := time.ParseDuration(fmt.Sprint(e.Data["previous_duration"])); err != nil || lasted < 0 {
			t.Errorf("%s: previous_duration %v", e.Name(), e.Data["previous_duration"])
		}
	}
}

// An event handler that blocks, even one that asks the admin API, delays no probe, no
// pick and no reload.
func TestCaddySlowEventHandler(t *testing.T) {
	b := startBackend(t, "b", nil)
	release := newGate(t)
	asked := make(chan int, 100)
	var c *instance
	admin := make(chan string, 1)
	record(t, sync.OnceFunc(func() {
		request, _ := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+<-admin+"/alive/upstreams", nil)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			asked <- 0
			return
		}
		response.Body.Close()
		asked <- response.StatusCode
		<-release.opened
	}))
	sites := fmt.Sprintf(operated, b.addr)
	c = startOperated(t, recordEvents, sites)
	admin <- c.admin
	eventually(t, patience, "the handler got an answer", func() bool { return len(asked) > 0 })
	if status := <-asked; status != http.StatusOK {
		t.Errorf("the handler asked the admin API: status %d", status)
	}
	// it blocks from here on
	b.set(sick)
	eventually(t, patience, "probes go on", func() bool { return is(health.Down, b.addr) })
	shares(t, "requests go on", tally(c.plain(), c.url(), 5), map[string]int{"b": 5})
	began := time.Now()
	c.load(sites + "\n# reloaded")
	if took := time.Since(began); took > patience/2 {
		t.Errorf("a reload took %v", took)
	}
	release.open()
}
