// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// policy selects from one pool as the selection policy does. A test decides the verdicts
// of its upstreams.
type policy struct {
	*Pool
	list    reverseproxy.UpstreamPool
	targets []*health.Target
	logs    *observer.ObservedLogs
	end     context.CancelFunc // ends the config
}

// newPolicy makes a policy over as many upstreams as there are verdicts: u for up, d for
// down, ? for none yet. The configuration can change the rules and the members.
func newPolicy(tb testing.TB, verdicts string, configure ...func(*policy)) *policy {
	tb.Helper()
	core, logs := observer.New(zap.InfoLevel)
	ctx, end := context.WithCancel(context.Background())
	p := &policy{Pool: new(Pool), logs: logs, end: end}
	p.handler = &Handler{
		Rules:    Rules{Hold: 2 * time.Second},
		Name:     "shop",
		Settings: settings.NewSet(),
		Proxy:    new(reverseproxy.Handler),
		Logger:   zap.New(core),
		Ended:    ctx.Done(),
		Hooks:    Hooks{Remember: remember},
	}
	for i := range verdicts {
		target := testkit.NewTarget()
		target.MarkOrigin(verdicts[i] != '?')
		target.Subscribe(p.changed)
		p.targets = append(p.targets, target)
		p.list = append(p.list, &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: address(i)})
		p.members = append(p.members, &Member{Address: address(i), Checks: []Check{{Label: "test", Target: target}}, Weight: 1})
	}
	for _, f := range configure {
		f(p)
	}
	p.Init(p.handler, p.members, p.list)
	p.Refresh()
	tb.Cleanup(func() {
		end()
		p.Close()
	})
	p.handler.SetRunning(true)
	p.LogState()
	p.decide(verdicts)
	return p
}

func address(i int) string { return fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1) }

// withWeights sets the weights of a pool, those of backups below 0.
func withWeights(weights ...int) func(*policy) {
	return func(p *policy) {
		for i, w := range weights {
			p.members[i].Weight, p.members[i].Group = max(w, -w), 0
			if w < 0 {
				p.members[i].Group = 1
			}
		}
	}
}

func retrying(p *policy) { p.handler.Rules.Retries = true }

// slow makes every pick a decision.
func slow(p *policy) { p.handler.Rules.CountsHealthy = true }

// pickPaths are the paths that a pick can take.
var pickPaths = []struct {
	path      string
	configure func(*policy)
}{
	{"the fast path", func(*policy) {}},
	{"the slow path", slow},
	{"with select", func(p *policy) { p.handler.Rules.Select = reverseproxy.RandomSelection{} }},
}

// changed does what a change of a verdict does.
func (p *policy) changed() {
	p.handler.Changed()
	p.Refresh()
}

// set changes what is set at run time, as an operator would. An upstream in maintenance
// is not probed.
func (p *policy) set(i int, c settings.Change) {
	set := p.handler.Settings.Change(p.members[i].Address, c)
	p.targets[i].Pause(set.ModeNow() == settings.Maintenance)
	p.handler.Changed()
	p.RefreshNow()
}

// setMode sets the mode of an upstream.
func (p *policy) setMode(i int, m settings.Mode) { p.set(i, settings.Change{Mode: new(m)}) }

// decide gives each upstream the verdict of its letter; ? leaves it as it is.
func (p *policy) decide(verdicts string) { testkit.DecideAll(p.targets, verdicts) }

// setAllHealthy makes Caddy consider upstreams unhealthy where there is a 0.
func setAllHealthy(upstreams reverseproxy.UpstreamPool, healthy string) {
	for i, u := range upstreams {
		testkit.SetHealthy(u, healthy[i] != '0')
	}
}

// pick selects an upstream as the policy does. Where the handler retries, the try fails: it
// is noted, so that a further pick for the request is a retry.
func (p *policy) pick(r *http.Request) (u *reverseproxy.Upstream) {
	if u = p.pickFirst(r); u != nil && p.handler.Rules.Retries {
		p.handler.Remember(r).Add(u, true, witness.Counted{})
	}
	return u
}

// pickFirst selects an upstream for a request, and nothing becomes of that.
func (p *policy) pickFirst(r *http.Request) *reverseproxy.Upstream {
	tried, _ := caddyhttp.GetVar(r.Context(), triedVariable).(*Tried)
	if now := p.Current(); now.Fast() && tried == nil {
		i := now.Draw()
		if u := p.list[i]; u.Available() {
			return u
		}
		now.Skip(i)
	}
	return p.Pick(Attempt{Upstreams: p.list, Request: r, Tried: tried}).Upstream
}

// triedVariable is where a request keeps what it tried.
const triedVariable = "tried"

// remember returns what a request has tried, from now on.
func remember(r *http.Request) *Tried {
	if t, ok := caddyhttp.GetVar(r.Context(), triedVariable).(*Tried); ok {
		return t
	}
	t := &Tried{URL: r.URL}
	caddyhttp.SetVar(r.Context(), triedVariable, t)
	return t
}

// pickIndex returns the position of the upstream of a pick, -1 for none.
func (p *policy) pickIndex(r *http.Request) int { return slices.Index(p.list, p.pick(r)) }

// picks returns the positions of the upstreams of n picks, -1 for none.
func (p *policy) picks(r func() *http.Request, n int) []int {
	got := make([]int, 0, n)
	for range n {
		got = append(got, p.pickIndex(r()))
	}
	return got
}

// held starts a pick in a goroutine, and returns where its result will be.
func (p *policy) held(r *http.Request) <-chan *reverseproxy.Upstream {
	result := make(chan *reverseproxy.Upstream, 1)
	go func() { result <- p.pick(r) }()
	return result
}

// wantLog compares what was logged.
func (p *policy) wantLog(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, entry := range p.logs.All() {
		got = append(got, fmt.Sprintf("%s: %s", entry.Level, entry.Message))
	}
	if !slices.Equal(got, want) {
		t.Errorf("logged %q, want %q", got, want)
	}
}

// handMade makes members of a pool without a policy. Each word is a verdict (u, d, r for
// up and draining, or ? for none yet), a weight, and a b for a backup: u5 d1 ?2b. With
// several verdicts a member has as many checks: rd1 passes one of them, and is draining
// by it, and fails the other. A b for each group before that of a backup: u1bb is of the
// second group of backups.
func handMade(words string) []*Member {
	var members []*Member
	for i, word := range strings.Fields(words) {
		number := strings.IndexAny(word, "0123456789")
		m := &Member{Address: address(i), Group: strings.Count(word, "b")}
		if _, err := fmt.Sscanf(word[number:], "%d", &m.Weight); err != nil {
			panic(fmt.Sprintf("%s: %v", word, err))
		}
		for _, verdict := range word[:number] {
			target := testkit.NewTarget()
			switch verdict {
			case 'u', 'd':
				testkit.Decide(target, verdict == 'u')
			case 'r':
				testkit.Decide(target, true)
				testkit.SetDraining(target, true)
			}
			m.Checks = append(m.Checks, Check{Target: target})
		}
		members = append(members, m)
	}
	return members
}

// share returns how often each of n positions has its turn in one cycle.
func (t *tier) share(n int) []int {
	c := make([]int, n)
	for i := range uint64(t.order.Len()) {
		c[t.order.At(i)]++
	}
	return c
}

// inLowestTerms divides weights by their greatest common divisor.
func inLowestTerms(weights []int) []int {
	divisor := 0
	for _, w := range weights {
		for a := w; a > 0; {
			divisor, a = a, divisor%a
		}
	}
	got := slices.Clone(weights)
	for i := range got {
		got[i] /= max(divisor, 1)
	}
	return got
}

// tierCase is a pool, and what its snapshot has to be: the turns of each member in a
// cycle of each tier. A tier that is nil has no members.
type tierCase struct {
	rule       string
	members    string
	failOpen   FailOpen
	serving    [][]int
	unknown    []int
	lastResort []int
	state      State
}

// check compares a snapshot of n members with what it has to be.
func (want tierCase) check(t *testing.T, s *Snapshot, n int) {
	t.Helper()
	var serving [][]int
	for i, tier := range s.serving {
		serving = append(serving, tier.share(n))
		if ignores := s.state == FailedOpen && i == 0; tier.anyHealth != ignores {
			t.Errorf("tier %d: any health %v, want %v", i, tier.anyHealth, ignores)
		}
	}
	if !slices.EqualFunc(serving, want.serving, slices.Equal) {
		t.Errorf("serving %v, want %v", serving, want.serving)
	}
	for name, side := range map[string]struct {
		got  *tier
		want []int
	}{"unknown": {s.unknown(), want.unknown}, "last resort": {s.lastResort(), want.lastResort}} {
		if side.want == nil {
			side.want = make([]int, n)
		}
		if got := side.got.share(n); !slices.Equal(got, side.want) {
			t.Errorf("%s %v, want %v", name, got, side.want)
		}
	}
	if s.state != want.state {
		t.Errorf("state %d, want %d", s.state, want.state)
	}
	if lastResort := s.lastResort(); !lastResort.empty() && !lastResort.anyHealth {
		t.Error("the last resort respects health")
	}
	// the fast path must not go past what ignores health: the circuit breaker is asked
	// there only
	if ordered := len(s.serving) > 0 && !s.serving[0].anyHealth; ordered != (s.best.Len() > 0) {
		t.Errorf("best has %d entries with the tiers %v", s.best.Len(), serving)
	}
}
