// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// counted has a policy count for its pool, so that its events are told.
func counted(t *testing.T) func(*Selection) {
	return func(s *Selection) {
		if err := s.joinPool(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.leavePool(); err != nil {
				t.Error(err)
			}
		})
	}
}

// setAllHealthy has Caddy hold upstreams unhealthy where there is a 0.
func setAllHealthy(pool reverseproxy.UpstreamPool, healthy string) {
	for i, u := range pool {
		setHealthy(u, healthy[i] != '0')
	}
}

// emitted returns the events that the app of the policy has emitted.
func (p *policy) emitted() []telemetry.Event {
	for e, ok := p.app.events.Next(); ok; e, ok = p.app.events.Next() {
		p.events = append(p.events, e)
	}
	return p.events
}

// failOpenEvents returns what the events said of fail-open, and takes them.
func (p *policy) failOpenEvents() (active []bool) {
	for _, e := range p.emitted() {
		if e.Name == "fail_open" {
			active = append(active, e.Data["active"].(bool))
		}
	}
	p.events = nil
	return active
}

// failsOpen reports what the list, and so the page and the metrics, says.
func (p *policy) failsOpen() bool {
	return slices.ContainsFunc(p.entries(filter{}), func(e view.Upstream) bool { return e.FailOpen })
}

const (
	heldLastResort = "warn: Caddy's own health checks hold every upstream unhealthy that is alive: requests go to all of them, as the last resort"
	heldUnavail    = "warn: Caddy's own health checks hold every upstream unhealthy that is alive: requests are answered 503"
	heldTooFew     = "warn: too few upstreams are alive and held healthy by Caddy's own health checks: requests go to all of them, whatever their health"
	breakerOpen    = "warn: the circuit breaker is open: requests are answered 503"
	enoughAgain    = "info: enough upstreams are alive again: requests go to those alive only"
)

// TestFailOpen_ByCaddysOwnHealthIsTold: whatever causes it, fail-open is told once when a
// pick ignores health, and its end once when a pick does not. The list says it at once.
func TestFailOpen_ByCaddysOwnHealthIsTold(t *testing.T) {
	percent := func(s *Selection) { s.rules.failOpen.percent, s.countHealthy = 50, true }
	for _, tc := range []struct {
		rule      string
		configure func(*Selection)
		bad       string // which of the four are healthy; the last is a backup
		open      bool
		line      string
	}{
		{"the last resort", nil, "0000", true, heldLastResort},
		{"with retries", retrying, "0000", true, heldLastResort},
		{"with select", func(s *Selection) { s.inner, s.selects = reverseproxy.RandomSelection{}, "random" }, "0000", true, heldLastResort},
		{"fail_open off", func(s *Selection) { s.rules.failOpen.never = true }, "0000", false, heldUnavail},
		{"a percentage", percent, "0010", true, heldTooFew},
		{"a percentage, and none is healthy", percent, "0000", true, heldTooFew},
		{"a percentage, but the backup is healthy", percent, "0011", false, ""},
		{"the backup is healthy", nil, "0001", false, ""},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			configure := []func(*Selection){withWeights(1, 1, 1, -1), following(t), counted(t)}
			if tc.configure != nil {
				configure = append(configure, tc.configure)
			}
			p := newPolicy(t, "uuuu", configure...)
			for range 2 { // it begins and ends as often as it does
				setAllHealthy(p.upstreams, tc.bad)
				if got := p.failsOpen(); got != tc.open {
					t.Errorf("before a request: the list says fail-open %v, want %v", got, tc.open)
				}
				if p.logs.Len() != 0 || p.failOpenEvents() != nil {
					t.Errorf("to look at the list told something: %v", p.logs.All())
				}
				p.picks(get, 20)
				p.refresh() // a verdict somewhere changes nothing about it
				p.picks(get, 20)
				if got := p.failsOpen(); got != tc.open {
					t.Errorf("after requests: the list says fail-open %v, want %v", got, tc.open)
				}
				setAllHealthy(p.upstreams, "1111")
				if p.failsOpen() {
					t.Error("the list says fail-open, but enough are healthy again")
				}
				p.picks(get, 20)
				if said := mood(p.said.Load()); said != fine {
					t.Errorf("after requests that found enough healthy, the mood told is %d", said)
				}
				p.refresh()
				p.picks(get, 20)
				var lines []string
				if tc.line != "" {
					lines = []string{tc.line, enoughAgain}
				}
				p.wantLog(t, lines...)
				p.logs.TakeAll()
				var events []bool
				if tc.open {
					events = []bool{true, false}
				}
				if got := p.failOpenEvents(); !slices.Equal(got, events) {
					t.Errorf("fail_open events %v, want %v", got, events)
				}
			}
			if now := p.current.Load(); now.quick != now.direct.Load() {
				t.Error("picks still look closely after the end")
			}
		})
	}
}

// TestFailOpen_ByCaddysOwnHealthOverDynamicPools is the same for upstreams that requests
// bring along, of which every request has values of its own.
func TestFailOpen_ByCaddysOwnHealthOverDynamicPools(t *testing.T) {
	p := newPolicy(t, "", following(t), counted(t))
	hosts := []*reverseproxy.Host{new(reverseproxy.Host), new(reverseproxy.Host)}
	pick := func(healthy string) {
		for range 10 {
			pool := brought("10.1.1.1:80", "10.1.1.2:80")
			for i, u := range pool {
				u.Host = hosts[i]
			}
			setAllHealthy(pool, healthy)
			if p.Select(pool, get(), nil) == nil {
				t.Fatal("picked none")
			}
		}
	}
	for _, step := range []struct {
		healthy string
		events  []bool
		open    bool
	}{
		{"11", nil, false},
		{"00", []bool{true}, true},
		{"01", []bool{false}, false},
	} {
		hosts = []*reverseproxy.Host{new(reverseproxy.Host), new(reverseproxy.Host)} // Caddy forgot them meanwhile
		pick(step.healthy)
		if got := p.failOpenEvents(); !slices.Equal(got, step.events) {
			t.Errorf("healthy %s: fail_open events %v, want %v", step.healthy, got, step.events)
		}
		if got := p.failsOpen(); got != step.open {
			t.Errorf("healthy %s: the list says fail-open %v, want %v", step.healthy, got, step.open)
		}
	}
}

// TestFailOpen_AnOpenCircuitBreakerIsNoLastResort: it is never bypassed, which is told
// as what it is.
func TestFailOpen_AnOpenCircuitBreakerIsNoLastResort(t *testing.T) {
	b := new(breaker)
	p := newPolicy(t, "dd", following(t), counted(t), func(s *Selection) { s.proxy.CB = b })
	p.picks(get, 10)
	b.open.Store(true)
	if got := counts(p.picks(get, 10), 2); !slices.Equal(got, []int{0, 0}) {
		t.Errorf("picks %v with the breaker open, want none", got)
	}
	for _, e := range p.entries(filter{}) {
		if e.Serving || e.FailOpen || e.EffectiveWeight != 0 || !strings.HasSuffix(e.Why, "; and the circuit breaker is open: no requests") {
			t.Errorf("entry %+v", e)
		}
	}
	p.decide("uu")
	for _, e := range p.entries(filter{}) {
		if e.Serving || e.Why != "up, but the circuit breaker is open: no requests" {
			t.Errorf("entry %+v", e)
		}
	}
	b.open.Store(false)
	p.picks(get, 10)
	p.wantLog(t, "warn: no upstream is alive: requests go to all of them, as the last resort", breakerOpen, enoughAgain)
	if got := p.failOpenEvents(); !slices.Equal(got, []bool{true, false}) {
		t.Errorf("fail_open events %v, want it to begin and to end", got)
	}
}

// TestSituation_AgreesWithPicks: whatever the checks, Caddy's own health, the modes and
// the rules, the list says of every upstream whether it gets requests, and how many in
// proportion to others. The log follows.
func TestSituation_AgreesWithPicks(t *testing.T) {
	for seed := range uint64(80) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 15))
			n := 1 + rng.IntN(6)
			weights := make([]int, n)
			for i := range weights {
				if weights[i] = rng.IntN(4); rng.IntN(3) == 0 {
					weights[i] = -weights[i]
				}
			}
			open := []failOpen{{}, {percent: 50}, {percent: 100}, {never: true}}[rng.IntN(4)]
			p := newPolicy(t, strings.Repeat("?", n), following(t), counted(t), withWeights(weights...), func(s *Selection) {
				s.rules.failOpen, s.hold = open, 0
				s.countHealthy, s.retries = open.percent > 0, rng.IntN(2) == 0
			})
			for step := range 10 {
				i := rng.IntN(n)
				switch rng.IntN(5) {
				case 0, 1:
					setHealthy(p.upstreams[i], rng.IntN(2) == 0)
				case 2, 3:
					if !p.targets[i].View().Paused {
						p.decide(strings.Repeat("?", i) + string("ud"[rng.IntN(2)]))
					}
				default:
					p.set(i, settings.Change{Mode: new([]settings.Mode{settings.Ready, settings.Ready, settings.Drain, settings.Maintenance}[rng.IntN(4)])})
				}
				entries := p.entries(filter{})
				var total float64
				for _, e := range entries {
					total += e.EffectiveWeight
				}
				const picks = 600
				got := counts(p.picks(get, picks), n)
				for i, e := range entries {
					want := 0.0
					if total > 0 {
						want = picks * e.EffectiveWeight / total
					}
					if off := float64(got[i]) - want; want == 0 && got[i] > 0 || off > 120 || off < -120 || want > 0 && got[i] == 0 {
						t.Fatalf("seed %d, step %d, %+v: %s got %d of %d requests, but the list says weight %g of %g: %s", seed, step, open, e.Upstream, got[i], picks, e.EffectiveWeight, total, e.Why)
					}
					if text := e.Why; got[i] > 0 && (strings.Contains(text, "no requests") || strings.Contains(text, "no new requests while")) {
						t.Errorf("seed %d, step %d: %s got requests, but the list says: %s", seed, step, e.Upstream, text)
					}
					if text := e.Why; got[i] == 0 && (strings.Contains(text, "gets requests all the same") || strings.HasPrefix(text, "up: ")) {
						t.Errorf("seed %d, step %d: %s got no requests, but the list says: %s", seed, step, e.Upstream, text)
					}
					if e.Serving && (got[i] == 0 || e.Status != "up" || e.Mode != settings.Ready || !p.upstreams[i].Healthy()) {
						t.Errorf("seed %d, step %d: %s is not serving: %+v", seed, step, e.Upstream, e)
					}
				}
				now := p.situation(p.current.Load(), p.upstreams)
				if said := mood(p.said.Load()); said != now.mood {
					t.Fatalf("seed %d, step %d: the mood that was told is %d, want %d", seed, step, said, now.mood)
				}
				if failing := p.failsOpen(); failing != (p.counters.FailOpen() > 0) {
					t.Fatalf("seed %d, step %d: the list says fail-open %v, and %d are counted", seed, step, failing, p.counters.FailOpen())
				}
			}
		})
	}
}

// TestWhy_SaysWhatHappens has the sentences for what the plain cases do not have.
func TestWhy_SaysWhatHappens(t *testing.T) {
	for _, tc := range []struct {
		rule      string
		verdicts  string
		healthy   string
		weights   []int
		configure func(*Selection)
		modes     map[int]settings.Mode
		draining  int // the first of them ask for no new requests
		want      []string
		serving   string
	}{
		{
			rule: "the last resort by the checks", verdicts: "dd", healthy: "11", weights: []int{1, -1},
			want:    []string{"check 'test' failed: sick; gets requests all the same, as the last resort: no upstream serves", "check 'test' failed: sick"},
			serving: "..",
		},
		{
			rule: "the last resort by Caddy's own health", verdicts: "ud", healthy: "01", weights: []int{1, 1},
			want: []string{
				"up, but Caddy's own health checks hold it unhealthy; gets requests all the same, as the last resort: no upstream serves",
				"check 'test' failed: sick; gets requests all the same, as the last resort: no upstream serves",
			},
			serving: "..",
		},
		{
			rule: "too few by a percentage", verdicts: "uddu", healthy: "1110", weights: []int{1, 1, 1, 1},
			configure: func(s *Selection) {
				s.FailOpen, s.rules.failOpen.percent, s.countHealthy = "50%", 50, true
			},
			want: []string{
				"up: gets requests in turn",
				"check 'test' failed: sick; gets requests all the same, since fewer than fail_open wants serve (50%)",
				"check 'test' failed: sick; gets requests all the same, since fewer than fail_open wants serve (50%)",
				"up, but Caddy's own health checks hold it unhealthy; gets requests all the same, since fewer than fail_open wants serve (50%)",
			},
			serving: "s...",
		},
		{
			rule: "with select", verdicts: "uu", healthy: "11", weights: []int{1, -1},
			configure: func(s *Selection) { s.inner, s.selects = reverseproxy.LeastConnSelection{}, "least_conn" },
			want:      []string{"up: gets the requests for which least_conn picks it", "up, and a backup: gets requests when no primary can serve"},
			serving:   "s.",
		},
		{
			rule: "drained, and down or unhealthy", verdicts: "duu", healthy: "101", weights: []int{1, 1, 1},
			modes: map[int]settings.Mode{0: settings.Drain, 1: settings.Drain},
			want: []string{
				"draining since …, and check 'test' failed: sick: no requests",
				"draining since …, and Caddy's own health checks hold it unhealthy: no requests",
				"up: gets requests in turn",
			},
			serving: "..s",
		},
		{
			rule: "the last ones are drained", verdicts: "uu?d", healthy: "1111", weights: []int{1, -1, 1, 1},
			modes: map[int]settings.Mode{0: settings.Drain, 1: settings.Drain, 2: settings.Drain},
			want: []string{
				"draining since …, but gets requests, since no other upstream serves",
				"draining since …: no new requests while another upstream can take them",
				"draining since …, and check 'test' has no verdict yet: no requests",
				"check 'test' failed: sick",
			},
			serving: "....",
		},
		{
			rule: "asks for no new requests", verdicts: "uud", healthy: "011", weights: []int{1, 1, 1}, draining: 2,
			want: []string{
				"asks for no new requests, and Caddy's own health checks hold it unhealthy: no requests",
				"asks for no new requests, but gets requests, since no other upstream serves",
				"check 'test' failed: sick",
			},
			serving: "...",
		},
		{
			rule: "a cold start", verdicts: "?d", healthy: "11", weights: []int{1, 1},
			want:    []string{"check 'test' has no verdict yet; requests wait for one, 2s at most, and then go to it all the same", "check 'test' failed: sick"},
			serving: "..",
		},
		{
			rule: "a cold start without a hold", verdicts: "?d", healthy: "11", weights: []int{1, 1},
			configure: func(s *Selection) { s.hold = 0 },
			want:      []string{"check 'test' has no verdict yet; gets requests all the same: no upstream serves yet", "check 'test' failed: sick"},
			serving:   "..",
		},
		{
			rule: "not checked", verdicts: "uu", healthy: "11", weights: []int{1, 1},
			configure: func(s *Selection) {
				s.members[0].watches, s.members[1].watches = nil, nil
				s.members[0].address = "{http.request.host}:80"
			},
			want:    []string{"not checked, since its address depends on the request: gets requests in turn", "not checked, since no check can reach its address: gets requests in turn"},
			serving: "ss",
		},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			configure := []func(*Selection){withWeights(tc.weights...), following(t)}
			if tc.configure != nil {
				configure = append(configure, tc.configure)
			}
			p := newPolicy(t, tc.verdicts, configure...)
			setAllHealthy(p.upstreams, tc.healthy)
			for i := range tc.draining {
				refuse(p.targets[i], true)
			}
			for i, m := range tc.modes {
				p.set(i, settings.Change{Mode: new(m)})
			}
			for i, e := range p.entries(filter{}) {
				before, after, cut := strings.Cut(tc.want[i], "…")
				if !cut && e.Why != tc.want[i] || !strings.HasPrefix(e.Why, before) || !strings.HasSuffix(e.Why, after) {
					t.Errorf("%d: %q, want %q", i, e.Why, tc.want[i])
				}
				if want := tc.serving[i] == 's'; e.Serving != want {
					t.Errorf("%d: serving %v, want %v", i, e.Serving, want)
				}
			}
		})
	}
}

// TestWhy_MergesWhatDiffers: of a row that stands for several handlers, each sentence
// is there once, and those of handlers for which it serves come first.
func TestWhy_MergesWhatDiffers(t *testing.T) {
	e := view.Upstream{Why: "down"}
	for _, other := range []view.Upstream{{Why: "down"}, {Why: "up", Serving: true}, {Why: "up", Serving: true}, {Why: "draining"}} {
		e.Merge(other)
	}
	if want := "up; elsewhere in this pool: down; elsewhere in this pool: draining"; e.Why != want || !e.Serving {
		t.Errorf("%q, serving %v; want %q and true", e.Why, e.Serving, want)
	}
}

// TestFailOpenEvents_OverReloads: of a pool that goes on ignoring health in the next
// config nothing is told; what several handlers do is told once.
func TestFailOpenEvents_OverReloads(t *testing.T) {
	join := func(s *Selection) {
		if err := s.joinPool(); err != nil {
			t.Fatal(err)
		}
	}
	old := newPolicy(t, "d", following(t), join)
	beside := func(s *Selection) { s.app = old.app }
	twin := newPolicy(t, "d", following(t), join, beside)
	next := newPolicy(t, "d", following(t), counted(t), beside)
	for _, s := range []*Selection{old.Selection, twin.Selection} {
		if err := s.leavePool(); err != nil {
			t.Error(err)
		}
		s.tellFailOpen(fine, lastResort) // by a request that is late
	}
	if got := old.failOpenEvents(); !slices.Equal(got, []bool{true}) {
		t.Errorf("fail_open events %v, want that it began", got)
	}
	next.decide("u")
	if got := old.failOpenEvents(); !slices.Equal(got, []bool{false}) {
		t.Errorf("fail_open events %v, want that it ended", got)
	}
}

// TestFailOpenEvents_OfForgottenPools: of a dynamic pool that is forgotten nothing is
// told any more, not even by a request that still has it.
func TestFailOpenEvents_OfForgottenPools(t *testing.T) {
	p := newPolicy(t, "dd", following(t), counted(t))
	p.decide("??")
	pool := brought(address(0))
	p.Select(pool, get(), nil)
	known := p.dynamic.find(pool)
	p.forgetMood(&known.set.said)
	if p.unsay(&known.set.said) {
		t.Error("there was something to take back of one that is forgotten")
	}
	before := p.counters.FailOpen()
	p.announce(&known.set.said, func() situation { return situation{mood: lastResort} }, p.names)
	if got := p.counters.FailOpen(); got != before || before != 1 {
		t.Errorf("%d pools ignore health after the late request and %d before, want the proxy's own list", got, before)
	}
	if n := p.logs.FilterMessageSnippet("last resort").Len(); n != 2 {
		t.Errorf("%d lines of the last resort, want one of each pool: %v", n, p.logs.All())
	}
}

// TestPick_OwnHealthCostsNoAllocation: after a fail-open by Caddy's own health, and with
// one upstream unhealthy, a pick is as quick as before.
func TestPick_OwnHealthCostsNoAllocation(t *testing.T) {
	p := newPolicy(t, "uuu")
	for _, healthy := range []string{"000", "111"} {
		setAllHealthy(p.upstreams, healthy)
		p.picks(get, 10)
	}
	r := get()
	if n := testing.AllocsPerRun(1000, func() { p.Select(p.upstreams, r, nil) }); n != 0 {
		t.Errorf("%v allocations a pick, want 0", n)
	}
}
