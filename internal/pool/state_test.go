// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

const (
	noneAlive      = "warn: no upstream is alive: requests go to all of them, as the last resort"
	tooFew         = "warn: too few upstreams are alive: requests go to all of them, whatever their health"
	noneMay        = "warn: no upstream is alive that may get requests: they are answered 503"
	heldLastResort = "warn: Caddy's own health checks consider every upstream unhealthy that is alive: requests go to all of them, as the last resort"
	heldUnavail    = "warn: Caddy's own health checks consider every upstream unhealthy that is alive: requests are answered 503"
	heldTooFew     = "warn: too few upstreams are alive and healthy by Caddy's own health checks: requests go to all of them, whatever their health"
	breakerOpen    = "warn: the circuit breaker is open: requests are answered 503"
	enoughAgain    = "info: enough upstreams are alive again: requests go to those alive only"
)

// failOpens records when pools begin to ignore health, and when they no longer do.
type failOpens struct {
	told []bool
	now  int // how many ignore health
}

// record has what a handler tells recorded.
func (f *failOpens) record(p *policy) {
	p.handler.OnFailOpen = func(begins bool) {
		f.told = append(f.told, begins)
		f.now += map[bool]int{true: 1, false: -1}[begins]
	}
}

// take returns what was told since the last call.
func (f *failOpens) take() []bool {
	told := f.told
	f.told = nil
	return told
}

// failsOpen reports whether a pool ignores health at this moment, as the list shows it.
func failsOpen(p *Pool) bool { return p.Situation(p.Peek()).State.IgnoresHealth() }

// TestState_IsLoggedOnce: each state of a pool is logged once when it begins, and so is
// its end.
func TestState_IsLoggedOnce(t *testing.T) {
	for _, tc := range []struct {
		open FailOpen
		want []string
	}{
		{FailOpen{}, []string{noneAlive, enoughAgain}},
		{FailOpen{Percent: 50}, []string{tooFew, enoughAgain}},
		{FailOpen{Never: true}, []string{noneMay, enoughAgain}},
	} {
		p := newPolicy(t, "uuuu", func(p *policy) { p.handler.Rules.FailOpen = tc.open })
		for _, verdicts := range []string{"?ddd", "d???", "?u??", "?d??", "uuu?", "???u"} {
			p.decide(verdicts)
			p.changed() // nothing new, and so nothing to log
			p.picks(testkit.Get, 10)
		}
		want := tc.want
		if tc.open.Percent == 0 { // one came back in between
			want = slices.Repeat(want, 2)
		}
		p.wantLog(t, want...)
	}
}

// TestState_ByCaddysOwnHealth: whatever causes it, fail-open is told once when a pick
// ignores health, and its end once when a pick does not. The situation says it at once.
func TestState_ByCaddysOwnHealth(t *testing.T) {
	percent := func(p *policy) { p.handler.Rules.FailOpen.Percent, p.handler.Rules.CountsHealthy = 50, true }
	for _, tc := range []struct {
		rule      string
		configure func(*policy)
		bad       string // which of the four are healthy; the last is a backup
		open      bool
		line      string
	}{
		{"the last resort", nil, "0000", true, heldLastResort},
		{"with retries", retrying, "0000", true, heldLastResort},
		{"with select", func(p *policy) { p.handler.Rules.Select = reverseproxy.RandomSelection{} }, "0000", true, heldLastResort},
		{"fail_open off", func(p *policy) { p.handler.Rules.FailOpen.Never = true }, "0000", false, heldUnavail},
		{"a percentage", percent, "0010", true, heldTooFew},
		{"a percentage, and none is healthy", percent, "0000", true, heldTooFew},
		{"a percentage, but the backup is healthy", percent, "0011", false, ""},
		{"the backup is healthy", nil, "0001", false, ""},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			var events failOpens
			configure := []func(*policy){withWeights(1, 1, 1, -1), events.record}
			if tc.configure != nil {
				configure = append(configure, tc.configure)
			}
			p := newPolicy(t, "uuuu", configure...)
			for _, refreshed := range []bool{true, true, false} { // it begins and ends as often as it does
				refresh := func() { // a verdict somewhere changes nothing about it
					if refreshed {
						p.changed()
					}
				}
				setAllHealthy(p.list, tc.bad)
				if got := failsOpen(p.Pool); got != tc.open {
					t.Errorf("before a request: fail-open is %v, want %v", got, tc.open)
				}
				if p.logs.Len() != 0 || events.told != nil {
					t.Errorf("reading the situation logged something: %v", p.logs.All())
				}
				p.picks(testkit.Get, 20)
				refresh()
				p.picks(testkit.Get, 20)
				if got := failsOpen(p.Pool); got != tc.open {
					t.Errorf("after requests: fail-open is %v, want %v", got, tc.open)
				}
				setAllHealthy(p.list, "1111")
				if failsOpen(p.Pool) {
					t.Error("fail-open, but enough are healthy again")
				}
				p.picks(testkit.Get, 20)
				if state := p.logged.load(); state != Normal {
					t.Errorf("after requests that found enough healthy, the state logged is %d", state)
				}
				refresh()
				p.picks(testkit.Get, 20)
				var lines []string
				if tc.line != "" {
					lines = []string{tc.line, enoughAgain}
				}
				p.wantLog(t, lines...)
				p.logs.TakeAll()
				var told []bool
				if tc.open {
					told = []bool{true, false}
				}
				if got := events.take(); !slices.Equal(got, told) {
					t.Errorf("told fail-open %v, want %v", got, told)
				}
				if now := p.Current(); now.canBeFast != now.Fast() {
					t.Error("picks are still slow after the end")
				}
			}
		})
	}
}

// TestState_ByCaddysOwnHealthOverDynamicPools: the same for upstreams that requests bring,
// of which each request has values of its own. Their state follows the hosts that Caddy
// knows now.
func TestState_ByCaddysOwnHealthOverDynamicPools(t *testing.T) {
	var events failOpens
	h := newPolicy(t, "", events.record).handler
	hosts := []*reverseproxy.Host{new(reverseproxy.Host), new(reverseproxy.Host)}
	brought := func(healthy string) (upstreams reverseproxy.UpstreamPool) {
		for i, host := range hosts {
			upstreams = append(upstreams, &reverseproxy.Upstream{Host: host, Dial: address(i)})
		}
		setAllHealthy(upstreams, healthy)
		return upstreams
	}
	p := New(h, []*Member{{Address: address(0), Weight: 1}, {Address: address(1), Weight: 1}}, brought("11"), new(LoggedState))
	for _, step := range []struct {
		healthy string
		told    []bool
		open    bool
	}{
		{"11", nil, false},
		{"00", []bool{true}, true},
		{"01", []bool{false}, false},
	} {
		hosts = []*reverseproxy.Host{new(reverseproxy.Host), new(reverseproxy.Host)} // Caddy forgot them meanwhile
		for range 10 {
			upstreams := brought(step.healthy)
			p.KeepUpstreams(upstreams)
			if p.Pick(Attempt{Upstreams: upstreams, Request: testkit.Get()}).Upstream == nil {
				t.Fatal("picked none")
			}
		}
		if got := events.take(); !slices.Equal(got, step.told) {
			t.Errorf("healthy %s: told fail-open %v, want %v", step.healthy, got, step.told)
		}
		if got := failsOpen(p); got != step.open {
			t.Errorf("healthy %s: fail-open is %v, want %v", step.healthy, got, step.open)
		}
	}
}

// TestState_OpenCircuitBreaker: an open circuit breaker is never bypassed, and is logged
// as what it is.
func TestState_OpenCircuitBreaker(t *testing.T) {
	b := new(testkit.Breaker)
	var events failOpens
	p := newPolicy(t, "dd", events.record, func(p *policy) { p.handler.Proxy.CB = b })
	wantNone := func() {
		t.Helper()
		now := p.Situation(p.Peek())
		if now.State != Unavailable || !now.BreakerOpen || !now.ByCaddy {
			t.Errorf("the situation is %+v", now)
		}
		for i, u := range p.list {
			if weight := now.Weight(i, u); weight != 0 {
				t.Errorf("the weight of %d is %g", i, weight)
			}
		}
	}
	p.picks(testkit.Get, 10)
	b.Open.Store(true)
	if got := testkit.Counts(p.picks(testkit.Get, 10), 2); !slices.Equal(got, []int{0, 0}) {
		t.Errorf("picks %v with the breaker open, want none", got)
	}
	wantNone()
	p.decide("uu")
	wantNone()
	b.Open.Store(false)
	p.picks(testkit.Get, 10)
	p.wantLog(t, noneAlive, breakerOpen, enoughAgain)
	if got := events.take(); !slices.Equal(got, []bool{true, false}) {
		t.Errorf("told fail-open %v, want it to begin and to end", got)
	}
}

// TestState_ForgottenPoolsReportNothing: nothing is reported of a forgotten pool, even by
// a request that still uses it.
func TestState_ForgottenPoolsReportNothing(t *testing.T) {
	var events failOpens
	p := newPolicy(t, "dd", events.record)
	h, upstreams, logged := p.handler, p.list[:1], new(LoggedState)
	New(h, p.members[:1], upstreams, logged).Pick(Attempt{Upstreams: upstreams, Request: testkit.Get()})
	logged.Forget(h)
	if logged.Reset(h) {
		t.Error("there was a state to take back of a pool that is forgotten")
	}
	before := events.now
	logged.log(h, func() (Situation, reverseproxy.UpstreamPool) { return Situation{State: LastResort}, upstreams })
	if got := events.now; got != before || before != 1 {
		t.Errorf("%d pools ignore health after the late request and %d before, want that of the list", got, before)
	}
	if n := p.logs.FilterMessageSnippet("last resort").Len(); n != 2 {
		t.Errorf("%d lines of the last resort, want one of each pool: %v", n, p.logs.All())
	}
}
