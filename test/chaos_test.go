// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

var (
	chaosSteps = flag.Int("chaos", 16, "how many random faults there are")
	chaosSeed  = flag.Uint64("seed", 0, "of the random faults; 0 for another one each time")
)

const chaosClients = 4

// chaos is Caddy, with what the test knows of it.
type chaos struct {
	*chaosPool
	t     *testing.T
	caddy *testkit.Caddy
	flips map[string][]string // of each upstream
	bound []*visitor
	fills int // how often all upstreams that serve were full

	mu         sync.Mutex
	reloads    int
	reloading  bool
	reloaded   time.Time        // when the last one ended
	again      int              // requests that were asked again after one
	unanswered testkit.Failures // that no reload explains
}

// TestCaddyChaos has many random faults, changes by operators and reloads. After each of
// them, the list and the shares of requests are as the rules say, in the time that the
// rules say. What requests say of upstreams makes suspects and ejects: a suspicion ends, an
// upstream that is mended returns, and none is down because of it. Each change of a status is
// logged once and is one event. While an upstream serves and answers, no request with retries
// fails. There are as many tries as upstreams, so each upstream is tried once. Clients that are
// bound to an upstream stay there while they may, and move with one cookie. No upstream gets
// more requests at once than its limit. While all are full, requests wait in the queue, and get
// the first place that there is.
func TestCaddyChaos(t *testing.T) {
	if *chaosSeed == 0 {
		*chaosSeed = rand.Uint64()
	}
	t.Logf("go test -run TestCaddyChaos -chaos %d -seed %d ./test", *chaosSteps, *chaosSeed)
	chance := rand.New(rand.NewPCG(*chaosSeed, 0))
	c := &chaos{t: t, chaosPool: &chaosPool{failOpen: "none_up", ramps: chance.IntN(3) == 0}, flips: make(map[string][]string)}
	c.sticky, c.spill = chance.IntN(3) > 0, []int{0, 70}[chance.IntN(2)]
	c.drawLimit([]int{0, chaosLimit, chaosLimit, chaosRoom}[chance.IntN(4)])
	core := chance.IntN(2) == 0 && mayCheckItself
	for i, name := range []string{"a", "b", "c", "d", "e"} {
		shunned := new(atomic.Bool)
		b := testkit.StartBackend(t, name, func(r *http.Request) {
			if r.URL.Path == coreCheck && shunned.Load() {
				panic(http.ErrAbortHandler)
			}
		})
		c.all = append(c.all, &chaotic{
			Backend: b, mode: "ready", own: []int{1, 2, 3, 1, 2}[i], set: -1, group: max(0, i-2), check: "http /healthz",
			core: core, shunned: shunned, load: loadOf(b),
		})
		c.flips[b.Addr] = []string{"from unknown to up"}
	}
	testkit.RecordEvents(t, nil)
	c.caddy = testkit.StartCaddyWith(t, testkit.EventsOption, c.sites())
	c.bound = newVisitors(t, c.caddy, 6)
	c.settles(0)
	steps := []string{"start"}
	for range *chaosSteps {
		unsteady, began := slices.ContainsFunc(c.all, (*chaotic).isUnsteady), time.Now()
		steps = append(steps, c.happens(chance))
		if !t.Failed() {
			c.check(unsteady, began)
		}
		if t.Failed() {
			for _, u := range c.all {
				e := c.caddy.One(u.Addr)
				t.Logf("%s: weight %g of %d, suspect %v, ejected until %v, %s", u, e.EffectiveWeight, e.Weight, e.Suspect, e.EjectedUntil, e.Why)
			}
			t.Fatalf("after %d steps: %s; now %v, fail_open %s, spill %d%% with %d groups joined, limit %d, queue %v, sticky %v",
				len(steps)-1, strings.Join(steps, "; "), c.all, c.failOpen, c.spills(), c.joined, c.limit, c.queues, c.sticky)
		}
	}
	t.Logf("%d reloads, after which %d requests were asked again; %v ejections, %v accusations; all were full %d times; %s",
		c.reloads, c.again, c.sum("ejections_total"), c.sum("accusations_total"), c.fills, strings.Join(steps, "; "))
	if limit := chaosClients * c.reloads; c.again > limit {
		t.Errorf("%d reloads reset %d requests, want at most %d", c.reloads, c.again, limit)
	}
}

// happens does one thing under traffic, or while all upstreams that serve are full, waits
// until it is noticed, and returns a description.
func (c *chaos) happens(chance *rand.Rand) string {
	client := c.caddy.Client()
	var full *fullPool
	if c.mayFill() && chance.IntN(3) == 0 {
		full = c.fill()
	}
	reliable, before, limit := c.reliable(), c.states(), c.limit
	var clients *testkit.Traffic
	var visits *chaosVisits
	if len(reliable) > 0 && full == nil {
		clients = testkit.StartTraffic(c.t, chaosClients, func() testkit.Answer { return c.ask(client) })
		visits = c.startVisits()
	}
	what, do := c.step(chance)
	reload := strings.HasPrefix(what, "reload")
	if reload {
		c.reload(do)
	} else {
		do(c.caddy)
	}
	if full != nil {
		what = "all are full, and " + what
		if reload {
			full.gate.Open() // a config that ends does not wait for long
		}
	}
	began := time.Now()
	within := time.Duration(0)
	for _, u := range c.all {
		was, is := before[u.Addr], u.state()
		if was != is && is != "unknown" {
			c.flips[u.Addr] = append(c.flips[u.Addr], fmt.Sprintf("from %s to %s", was, is))
			within = max(within, u.toNotice())
			c.unsure = c.unsure || reload // the new check begins with the old verdict, by which groups may join
		}
		if e := c.caddy.One(u.Addr); reload && was != "unknown" && e.Status != was && e.Status != is {
			c.t.Errorf("right after %s: %s is shown as %s, was %s", what, u, e.Status, was)
		}
	}
	c.settles(within - time.Since(began))
	// requests may fail if this takes away the last one that served
	fair := slices.ContainsFunc(slices.Collect(maps.Keys(c.reliable())), func(name string) bool { return reliable[name] })
	if full != nil {
		full.end(what, fair)
	}
	if clients != nil {
		if slices.ContainsFunc(c.all, (*chaotic).isUnsteady) { // so that requests decide about it
			answered := clients.Answered()
			testkit.Poll(testkit.Slack, func() bool { return clients.Answered() > answered+100 })
		}
		visits.end(what)
		clients.Stop()
		if err := clients.Err(); err != nil && fair {
			c.t.Errorf("of %d requests meanwhile: %v", clients.Answered(), err)
		}
	}
	if err := c.unanswered.Err(); err != nil {
		c.t.Errorf("not answered, and not asked again: %v", err)
	}
	cutOff := 0 // requests whose place was free before their upstream noticed
	if reload {
		cutOff = 1
	}
	c.wantLimit(what, limit, cutOff)
	return what
}

// states returns the expected status of each upstream.
func (c *chaos) states() map[string]string {
	states := make(map[string]string)
	for _, u := range c.all {
		states[u.Addr] = u.state()
	}
	return states
}

// reload records when the reload happens.
func (c *chaos) reload(do func(*testkit.Caddy)) {
	c.mu.Lock()
	c.reloading = true
	c.reloads++
	c.mu.Unlock()
	do(c.caddy)
	c.mu.Lock()
	c.reloading, c.reloaded = false, time.Now()
	c.mu.Unlock()
}

// ask sends a request, and sends it again if a reload of Caddy has just reset the
// connection. A reload resets connections that wait to be accepted: within a few
// milliseconds, and mostly one for each reload.
func (c *chaos) ask(client *http.Client) testkit.Answer {
	began := time.Now()
	got := testkit.Ask(client, c.caddy.URL()+"/retried")
	if got.Status != 0 {
		return got
	}
	c.mu.Lock()
	near := c.reloading || began.Before(c.reloaded.Add(100*time.Millisecond))
	reset := errors.Is(got.Err, syscall.ECONNRESET) || errors.Is(got.Err, syscall.EPIPE) || errors.Is(got.Err, io.EOF) || errors.Is(got.Err, io.ErrUnexpectedEOF)
	if near && reset {
		c.again++
		got = testkit.Answer{}
	} else {
		c.unanswered.Add(got.Err)
	}
	c.mu.Unlock()
	if near && reset {
		return testkit.Ask(client, c.caddy.URL()+"/retried")
	}
	return got
}

// check compares the list, the metrics and the shares of requests with the model.
func (c *chaos) check(wasUnsteady bool, began time.Time) {
	c.t.Helper()
	c.calmsDown()
	testkit.Poll(testkit.Slack, func() bool { return !c.all[0].core || c.isInUse(c.joined) })
	c.awaitGroups(wasUnsteady || slices.ContainsFunc(c.all, (*chaotic).isUnsteady), began)
	some, failsOpen := c.gets()
	gets := make(map[*chaotic]bool)
	all := 0
	for _, u := range some {
		gets[u] = true
		all += u.weight()
	}
	const cycles = 3
	want := make(map[string]int)
	slow, unsteady := false, slices.ContainsFunc(c.all, (*chaotic).isUnsteady)
	for _, u := range some {
		switch {
		case u.answers():
			want[u.Name] += cycles * u.weight()
		default:
			want["error"] += cycles * u.weight()
			slow = slow || u.conduct == testkit.Hanging
		}
	}
	if len(some) == 0 {
		want["error"], all = cycles, 1
	}
	if c.ramps {
		testkit.Eventually(c.t, chaosRamp+testkit.Slack, "the slow start is over", func() bool {
			return !slices.ContainsFunc(some, func(u *chaotic) bool { return c.caddy.One(u.Addr).EffectiveWeight != float64(u.weight()) }) &&
				!slices.ContainsFunc(c.all, func(u *chaotic) bool { return c.caddy.One(u.Addr).Limit != c.limit })
		})
	}
	states := map[string]float64{"up": 0, "down": 0, "draining": 0, "maintenance": 0, "unknown": 0, "suspect": 0, "ejected": 0}
	for _, u := range c.all {
		e := c.caddy.One(u.Addr)
		if e.Serving != (gets[u] && u.serves()) || e.Mode != u.mode || e.Weight != u.weight() || e.Group != u.group || e.Limit != c.limit || e.Rebind != u.rebind || e.FailOpen != failsOpen || e.Why == "" {
			c.t.Errorf("%s is shown as %+v, fail-open is %v", u, e, failsOpen)
		}
		if (e.EffectiveWeight > 0) != gets[u] || gets[u] && e.EffectiveWeight != float64(u.weight()) {
			c.t.Errorf("%s has the weight %g at this moment, and gets requests: %v", u, e.EffectiveWeight, gets[u])
		}
		switch u.mode {
		case "maintenance":
			states["maintenance"]++
		case "drain":
			states["draining"]++
		default:
			if u.ejected {
				states["ejected"]++
			} else {
				states[u.state()]++
			}
		}
	}
	wanted := map[string]float64{`pool_fail_open{pool="chaos"}`: map[bool]float64{true: 1}[failsOpen]}
	for state, n := range states {
		wanted[fmt.Sprintf("pool_upstreams{pool=\"chaos\",state=%q}", state)] = n
	}
	c.caddy.WantMetrics("after that", wanted)
	quiet := make(map[*chaotic]int)
	for _, u := range c.those(func(u *chaotic) bool { return u.mode == "maintenance" }) {
		requests, probes := u.Seen()
		quiet[u] = requests + probes - u.Probed(coreCheck) // Caddy knows of no maintenance
	}
	if len(quiet) > 0 {
		time.Sleep(250 * time.Millisecond) // for two probes, at least
	}
	switch {
	case slow: // each would take until the timeout
	case unsteady:
		c.wantAnswersOf(testkit.Tally(c.caddy.Client(), c.caddy.URL(), cycles*all), some)
	default:
		testkit.Shares(c.t, "after that", testkit.Tally(c.caddy.Client(), c.caddy.URL(), cycles*all), want)
	}
	if !slow && !unsteady {
		for _, v := range c.bound {
			c.visit(v, some, failsOpen)
		}
	}
	tries := c.mayTry()
	if !slices.ContainsFunc(tries, func(u *chaotic) bool { return u.conduct == testkit.Hanging }) {
		answered := http.StatusOK
		if !slices.ContainsFunc(tries, (*chaotic).answers) {
			answered = http.StatusBadGateway
		}
		if len(tries) == 0 {
			answered = http.StatusServiceUnavailable
		}
		for range 5 {
			if got := c.ask(c.caddy.Client()); got.Status != answered {
				c.t.Errorf("with retries: answer %v, want %d; it may try %v", got, answered, tries)
			}
		}
		// now both handlers have seen what Caddy itself found out
		c.toldOfFailOpen(failsOpen)
	}
	for u, before := range quiet {
		// one may have been under way
		requests, probes := u.Seen()
		if seen := requests + probes - u.Probed(coreCheck); seen > before+1 {
			c.t.Errorf("%s is asked in maintenance: %d times", u, seen-before)
		}
	}
}
