// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// failsOpen reports what the list, and so the page and the metrics, says.
func (p *policy) failsOpen() bool {
	return slices.ContainsFunc(p.rows(Filter{}), func(row view.Upstream) bool { return row.FailOpen })
}

// loggedState returns the state of which the last line of the log speaks.
func (p *policy) loggedState() pool.State {
	lines := p.logs.All()
	if len(lines) == 0 {
		return pool.Normal
	}
	switch text := lines[len(lines)-1].Message; {
	case strings.HasSuffix(text, "as the last resort"):
		return pool.LastResort
	case strings.HasSuffix(text, "whatever their health"):
		return pool.FailedOpen
	case strings.HasSuffix(text, "503"):
		return pool.Unavailable
	default:
		return pool.Normal
	}
}

// TestSituation_AgreesWithPicks: whatever the checks, Caddy's own health, the modes and
// the rules, the list says of each upstream whether it gets requests, and how many in
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
			open := []pool.FailOpen{{}, {Percent: 50}, {Percent: 100}, {Never: true}}[rng.IntN(4)]
			p := newPolicy(t, strings.Repeat("?", n), withWeights(weights...), func(s *setup) {
				s.Rules.FailOpen, s.Rules.Hold = open, 0
				s.Rules.CountsHealthy, s.Rules.Retries = open.Percent > 0, rng.IntN(2) == 0
			})
			for step := range 10 {
				i := rng.IntN(n)
				switch rng.IntN(5) {
				case 0, 1:
					testkit.SetHealthy(p.listed[i], rng.IntN(2) == 0)
				case 2, 3:
					if !p.targets[i].View().Paused {
						p.decide(strings.Repeat("?", i) + string("ud"[rng.IntN(2)]))
					}
				default:
					p.set(i, settings.Change{Mode: new([]settings.Mode{settings.Ready, settings.Ready, settings.Drain, settings.Maintenance}[rng.IntN(4)])})
				}
				rows := p.rows(Filter{})
				var total float64
				for _, row := range rows {
					total += row.EffectiveWeight
				}
				const picks = 600
				got := testkit.Counts(p.picks(testkit.Get, picks), n)
				for i, row := range rows {
					want := 0.0
					if total > 0 {
						want = picks * row.EffectiveWeight / total
					}
					if off := float64(got[i]) - want; want == 0 && got[i] > 0 || off > 120 || off < -120 || want > 0 && got[i] == 0 {
						t.Fatalf("step %d, %+v: %s got %d of %d requests, but the list says weight %g of %g: %s", step, open, row.Upstream, got[i], picks, row.EffectiveWeight, total, row.Why)
					}
					if text := row.Why; got[i] > 0 && (strings.Contains(text, "no requests") || strings.Contains(text, "no new requests while")) {
						t.Errorf("step %d: %s got requests, but the list says: %s", step, row.Upstream, text)
					}
					if text := row.Why; got[i] == 0 && (strings.Contains(text, "gets requests anyway") || strings.HasPrefix(text, "up: ")) {
						t.Errorf("step %d: %s got no requests, but the list says: %s", step, row.Upstream, text)
					}
					if row.Serving && (got[i] == 0 || row.Status != "up" || row.Mode != settings.Ready || !p.listed[i].Healthy()) {
						t.Errorf("step %d: %s is not serving: %+v", step, row.Upstream, row)
					}
				}
				if logged, now := p.loggedState(), p.pool.Situation(p.Current()); logged != now.State {
					t.Fatalf("step %d: the state that was logged is %d, want %d", step, logged, now.State)
				}
				if failing := p.failsOpen(); failing != (p.counters.FailOpen() > 0) {
					t.Fatalf("step %d: the list says fail-open %v, and %d are counted", step, failing, p.counters.FailOpen())
				}
			}
		})
	}
}

// TestExplain_SaysWhatHappens has the sentences for what is not a plain case.
func TestExplain_SaysWhatHappens(t *testing.T) {
	for _, tc := range []struct {
		rule      string
		verdicts  string
		healthy   string // 0 where Caddy considers one unhealthy
		weights   []int
		configure func(*setup)
		modes     map[int]settings.Mode
		draining  int      // the first of them ask for no new requests
		want      []string // with … for a time
		serving   string   // s where one serves
	}{
		{
			rule: "the last resort by the checks", verdicts: "dd", healthy: "11", weights: []int{1, -1},
			want:    []string{"check 'test' failed: sick; gets requests anyway, as the last resort: no upstream serves", "check 'test' failed: sick"},
			serving: "..",
		},
		{
			rule: "the last resort by Caddy's own health", verdicts: "ud", healthy: "01", weights: []int{1, 1},
			want: []string{
				"up, but Caddy's own health checks consider it unhealthy; gets requests anyway, as the last resort: no upstream serves",
				"check 'test' failed: sick; gets requests anyway, as the last resort: no upstream serves",
			},
			serving: "..",
		},
		{
			rule: "too few by a percentage", verdicts: "uddu", healthy: "1110", weights: []int{1, 1, 1, 1},
			configure: func(s *setup) {
				s.Rules.FailOpen, s.Rules.CountsHealthy = pool.FailOpen{Percent: 50, Text: "50%"}, true
			},
			want: []string{
				"up: gets requests in turn",
				"check 'test' failed: sick; gets requests anyway: fewer upstreams serve than fail_open (50%) requires",
				"check 'test' failed: sick; gets requests anyway: fewer upstreams serve than fail_open (50%) requires",
				"up, but Caddy's own health checks consider it unhealthy; gets requests anyway: fewer upstreams serve than fail_open (50%) requires",
			},
			serving: "s...",
		},
		{
			rule: "with select", verdicts: "uu", healthy: "11", weights: []int{1, -1},
			configure: func(s *setup) { s.Rules.Select, s.Rules.SelectName = reverseproxy.LeastConnSelection{}, "least_conn" },
			want:      []string{"up: gets the requests for which least_conn picks it", "up, and a backup: gets requests when no primary can serve"},
			serving:   "s.",
		},
		{
			rule: "drained, and down or unhealthy", verdicts: "duu", healthy: "101", weights: []int{1, 1, 1},
			modes: map[int]settings.Mode{0: settings.Drain, 1: settings.Drain},
			want: []string{
				"draining since …, and check 'test' failed: sick: no requests",
				"draining since …, and Caddy's own health checks consider it unhealthy: no requests",
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
				"asks for no new requests, and Caddy's own health checks consider it unhealthy: no requests",
				"asks for no new requests, but gets requests, since no other upstream serves",
				"check 'test' failed: sick",
			},
			serving: "...",
		},
		{
			rule: "a cold start", verdicts: "?d", healthy: "11", weights: []int{1, 1},
			want:    []string{"check 'test' has no verdict yet; requests wait up to 2s for an upstream, and then go to this one anyway", "check 'test' failed: sick"},
			serving: "..",
		},
		{
			rule: "a cold start without a hold", verdicts: "?d", healthy: "11", weights: []int{1, 1},
			configure: func(s *setup) { s.Rules.Hold = 0 },
			want:      []string{"check 'test' has no verdict yet; gets requests anyway: no upstream serves yet", "check 'test' failed: sick"},
			serving:   "..",
		},
		{
			rule: "not checked", verdicts: "uu", healthy: "11", weights: []int{1, 1},
			configure: func(s *setup) {
				s.members[0].Checks, s.members[1].Checks = nil, nil
				s.members[0].Address = "{http.request.host}:80"
			},
			want:    []string{"not checked, since its address depends on the request, so neither suspect nor ejected: gets requests in turn", "not checked, since no check can reach its address, so never suspect: gets requests in turn"},
			serving: "ss",
		},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			configure := []func(*setup){withWeights(tc.weights...)}
			if tc.configure != nil {
				configure = append(configure, tc.configure)
			}
			p := newPolicy(t, tc.verdicts, configure...)
			for i, u := range p.listed {
				testkit.SetHealthy(u, tc.healthy[i] != '0')
			}
			for _, target := range p.targets[:tc.draining] {
				testkit.SetDraining(target, true)
			}
			for i, m := range tc.modes {
				p.set(i, settings.Change{Mode: new(m)})
			}
			for i, row := range p.rows(Filter{}) {
				before, after, cut := strings.Cut(tc.want[i], "…")
				if !cut && row.Why != tc.want[i] || !strings.HasPrefix(row.Why, before) || !strings.HasSuffix(row.Why, after) {
					t.Errorf("%d: %q, want %q", i, row.Why, tc.want[i])
				}
				if want := tc.serving[i] == 's'; row.Serving != want {
					t.Errorf("%d: serving %v, want %v", i, row.Serving, want)
				}
			}
		})
	}
}

// TestExplain_OpenCircuitBreaker: with an open circuit breaker the list says that no
// upstream gets requests, whatever its checks say.
func TestExplain_OpenCircuitBreaker(t *testing.T) {
	b := new(testkit.Breaker)
	p := newPolicy(t, "dd", func(s *setup) { s.Proxy.CB = b })
	b.Open.Store(true)
	for _, row := range p.rows(Filter{}) {
		if row.Serving || row.FailOpen || row.EffectiveWeight != 0 || !strings.HasSuffix(row.Why, "; and the circuit breaker is open: no requests") {
			t.Errorf("down: %+v", row)
		}
	}
	p.decide("uu")
	for _, row := range p.rows(Filter{}) {
		if row.Serving || row.Why != "up, but the circuit breaker is open: no requests" {
			t.Errorf("up: %+v", row)
		}
	}
}

// TestFailOpenEvents_OverReloads: a pool that still ignores health in the next config
// emits no event; several handlers emit one.
func TestFailOpenEvents_OverReloads(t *testing.T) {
	old := newPolicy(t, "d")
	twin := newPolicy(t, "d", in(old.registry))
	next := newPolicy(t, "d")
	told := func() []bool { return append(takeFailOpen(old.registry.Events), takeFailOpen(next.registry.Events)...) }
	for _, p := range []*policy{old, twin} {
		p.end(t)
		p.reportFailOpen(true) // by a request that is late
	}
	if got := told(); !slices.Equal(got, []bool{true}) {
		t.Errorf("fail_open events %v, want that it began", got)
	}
	next.decide("u")
	if got := told(); !slices.Equal(got, []bool{false}) {
		t.Errorf("fail_open events %v, want that it ended", got)
	}
}
