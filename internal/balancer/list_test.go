// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// A failure is told from a success by its sign, however quick it was.
func TestList_RecentResultsHaveASign(t *testing.T) {
	c := checkRow("tcp", health.View{Recent: []health.PastResult{{Took: 1, Passed: true}, {Took: 1}, {Took: 12 * time.Millisecond, Passed: true}, {Took: 3456 * time.Microsecond}}})
	if want := []float64{0.01, -0.01, 12, -3.46}; !slices.Equal(c.Recent, want) {
		t.Errorf("recent %v, want %v", c.Recent, want)
	}
}

// An upstream that is listed twice is one, with the weight of both.
func TestList_UpstreamListedTwiceIsOneRow(t *testing.T) {
	p := newPolicy(t, "uu", func(s *setup) {
		first := s.Proxy.Upstreams[0]
		s.Proxy.Upstreams = append(s.Proxy.Upstreams, &reverseproxy.Upstream{Host: first.Host, Dial: first.Dial})
		s.members = append(s.members, s.members[0])
	})
	rows := p.rows(Filter{})
	if len(rows) != 2 || rows[0].EffectiveWeight != 2 || rows[1].EffectiveWeight != 1 {
		t.Errorf("rows %+v", rows)
	}
}

// Metrics do not copy what they do not show.
func TestList_BriefLeavesOutRecentResults(t *testing.T) {
	p := newPolicy(t, "ud")
	answering(t, p.registry)
	for i, row := range List(Filter{Brief: true}) {
		if row.Why != "" || len(row.Checks) != 1 || cap(row.Checks[0].Recent) != 0 || row.Status != []string{"up", "down"}[i] {
			t.Errorf("%d: %+v", i, row)
		}
	}
	if row := List(Filter{})[0]; row.Why == "" || len(row.Checks[0].Recent) != 1 {
		t.Errorf("not brief: %+v", row)
	}
}

// In a fleet, each row says at how many members its upstream is down, also if it is up here,
// and if no pool has it any more. Metrics do not ask.
func TestList_SaysWhatTheFleetSees(t *testing.T) {
	p := newPolicy(t, "uuu")
	fleet := new(testkit.Fleet)
	fleet.Know(view.Fleet{Members: make([]view.Member, 12)}, map[string]int{address(1): 3, "gone:80": 1})
	mode := settings.Mode(settings.Drain)
	p.registry.Settings.Change("gone:80", settings.Change{Mode: &mode})
	if row := list(p.registry, Filter{})[1]; row.DownAt != nil || row.Members != 0 {
		t.Errorf("without a fleet: %+v", row)
	}
	p.registry.Fleet = fleet
	var got []string
	for _, row := range list(p.registry, Filter{}) {
		got = append(got, row.Upstream+" "+row.InFleet())
		if row.DownAt == nil || row.Members != 12 {
			t.Errorf("%+v", row)
		}
	}
	if want := []string{address(0) + " ", address(1) + " down at 3 of 12 members", address(2) + " ", "gone:80 down at 1 of 12 members"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, row := range list(p.registry, Filter{Brief: true}) {
		if row.DownAt != nil || row.Members != 0 {
			t.Errorf("brief: %+v", row)
		}
	}
}

// Upstreams of a dynamic source whose addresses are not UTF-8 can be named and set.
func TestList_AddressesThatAreNotUTF8CanBeNamed(t *testing.T) {
	p := newPolicy(t, "u")
	dials := []string{"\xff.invalid:80", "\xfe.invalid:80"}
	p.served(1, dials...)
	for i, shown := range []string{`\xff.invalid:80`, `\xfe.invalid:80`} {
		if m := p.Member(shown); m == nil || m.Address != shown || p.Member(dials[i]) != nil {
			t.Fatalf("%s is %+v", shown, m)
		}
		p.registry.Settings.Change(shown, settings.Change{Mode: new(settings.Mode(settings.Drain))})
		if got := p.served(10, dials...)[dials[0]]; got != 0 && i == 0 {
			t.Errorf("%s gets requests while it drains", shown)
		}
	}
	for _, row := range p.rows(Filter{})[1:] {
		if !strings.HasPrefix(row.Upstream, `\xf`) || row.Mode != settings.Drain {
			t.Errorf("shown as %+v", row)
		}
	}
}

// Requests bring the upstreams of a source or those in the list, and only these serve. A source that
// returns none without a list is an outage.
func TestList_SaysWhetherSourceOrListServes(t *testing.T) {
	const (
		serves      = "up: gets requests in turn"
		instead     = serves + "; the source returns no upstreams now"
		unproved    = "not checked, since no check can reach its address, so never suspect: gets requests in turn"
		returnsSome = "the source returns upstreams: those in the list get no requests now"
		past        = "the source returns no upstreams now: no requests, and forgotten within an hour"
		isEmpty     = "the source returns an empty answer now: requests are answered 503"
	)
	const listed, sourced = "10.0.0.1:80", "10.9.9.9:80"
	for name, tc := range map[string]struct {
		verdicts, source string
		bring            func(*policy)
		want             map[string]string // the reason by upstream
		serving          []string
		empty, isOut     bool
	}{
		"no request yet": {verdicts: "u", source: "{}", bring: func(*policy) {}, want: map[string]string{listed: serves}, serving: []string{listed}},
		"the source": {
			verdicts: "u", source: "{}", bring: func(p *policy) { p.picks(testkit.Get, 1); p.served(1, sourced) },
			want: map[string]string{listed: returnsSome, sourced: unproved}, serving: []string{sourced},
		},
		"the list": {
			verdicts: "u", source: "{}", bring: func(p *policy) { p.served(1, sourced); p.picks(testkit.Get, 1) },
			want: map[string]string{listed: instead, sourced: past}, serving: []string{listed},
		},
		"both": {
			verdicts: "u", source: "{}", bring: func(p *policy) { p.served(1, address(0)) },
			want: map[string]string{listed: serves}, serving: []string{listed},
		},
		"nothing, without a list": {
			source: "{}", bring: func(p *policy) { p.served(1, sourced); p.Select(nil, testkit.Get(), nil) },
			want: map[string]string{sourced: past}, empty: true, isOut: true,
		},
		"nothing at the first request": {
			source: "{}", bring: func(p *policy) { p.Select(nil, testkit.Get(), nil) },
			want: map[string]string{}, empty: true, isOut: true,
		},
		"an empty answer": {
			verdicts: "u", source: "{}", bring: func(p *policy) { p.served(1, sourced); p.Select(nil, testkit.Get(), nil) },
			want: map[string]string{listed: isEmpty, sourced: past}, empty: true, isOut: true,
		},
		"something again": {
			source: "{}", bring: func(p *policy) { p.Select(nil, testkit.Get(), nil); p.served(1, sourced) },
			want: map[string]string{sourced: unproved}, serving: []string{sourced},
		},
		"by the request": {
			source: `{"name": "{http.request.host}"}`, bring: func(p *policy) { p.served(1, sourced); p.Select(nil, testkit.Get(), nil) },
			want: map[string]string{sourced: unproved}, serving: []string{sourced},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t, settings.NewSet())
			p := newPolicy(t, tc.verdicts, in(r), unchecked, func(s *setup) { s.Proxy.DynamicUpstreamsRaw = []byte(tc.source) })
			r.Start()
			defer r.Close()
			tc.bring(p)
			rows := list(r, Filter{})
			pools := listPools(r, rows)
			got, serving := make(map[string]string), []string(nil)
			for _, row := range rows {
				got[row.Upstream] = row.Why
				if row.Idle == (row.EffectiveWeight > 0) || row.Idle == row.Serving {
					t.Errorf("idle and in use: %+v", row)
				}
				if row.Serving {
					serving = append(serving, row.Upstream)
				}
			}
			if !maps.Equal(got, tc.want) || !slices.Equal(serving, tc.serving) {
				t.Errorf("got %q, and %q serve; want %q, and %q", got, serving, tc.want, tc.serving)
			}
			if len(pools) != 1 || pools[0].Empty != tc.empty || (len(view.Outages(pools)) > 0) != tc.isOut {
				t.Errorf("pools %+v, want empty %v and out %v", pools, tc.empty, tc.isOut)
			}
		})
	}
}

// That requests find no upstream is known of the source: all handlers with it and a reload know it. A
// client that leaves says nothing of it, and it ends without requests.
func TestList_EmptySourceIsKnownOfTheSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const dial = "10.9.9.9:80"
		first := newDynamicPolicy(t, newNetwork(), "{}", unchecked)
		second := newDynamicPolicy(t, newNetwork(), "{}", unchecked)
		want := func(what string, isOutage bool) {
			t.Helper()
			for _, p := range []*policy{first, second} {
				if got := p.source.isOutage(); got != isOutage {
					t.Errorf("%s: an outage: %v, want %v", what, got, isOutage)
				}
			}
		}
		left, leave := context.WithCancel(t.Context())
		leave()
		want("no request", false)
		first.Select(nil, testkit.Get().WithContext(left), nil)
		want("a client left", false)
		first.Select(nil, testkit.Get(), nil)
		want("a request found none", true)
		second.served(1, dial)
		want("another handler was brought one", false)
		second.Select(nil, testkit.Get().WithContext(left), nil)
		want("a client left again", false)
		second.Select(nil, testkit.Get(), nil)
		next := newDynamicPolicy(t, newNetwork(), "{}", unchecked)
		second.end(t)
		second = next
		want("after a reload", true)
		if rows := next.rows(Filter{}); len(rows) != 1 || !rows[0].Idle {
			t.Errorf("after a reload: %+v", rows)
		}
		time.Sleep(emptyFor - time.Second)
		want("a little later", true)
		time.Sleep(time.Second)
		want("later", false)
	})
}

// What an earlier config was brought, but no request of this one, is no outage. Once a
// request brings it, it counts.
func TestList_WhatRequestsDoNotBringIsNoOutage(t *testing.T) {
	const dial = "10.9.9.9:80"
	before := newDynamicPolicy(t, newNetwork(), "x", unchecked)
	before.served(1, dial)
	p := newDynamicPolicy(t, newNetwork(), "x", unchecked)
	if rows := p.rows(Filter{}); len(rows) != 1 || !rows[0].Idle || len(view.Outages(view.Pools(rows))) > 0 {
		t.Errorf("before a request: %+v", rows)
	}
	p.registry.Settings.Change(dial, settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
	p.Select(brought(dial), testkit.Get(), nil)
	if rows := p.rows(Filter{}); len(rows) != 1 || rows[0].Idle || len(view.Outages(view.Pools(rows))) != 1 {
		t.Errorf("after a request: %+v", rows)
	}
}

// unchecked has a policy without checks, whose upstreams count as up.
func unchecked(s *setup) { s.Checks = nil }

// The list says of each upstream why it gets requests, or none.
func TestExplain_PlainCasesHaveAReason(t *testing.T) {
	p := newPolicy(t, "uuuduu", withWeights(1, 1, 1, 1, -1, 0))
	testkit.SetHealthy(p.listed[1], false)
	p.listed[2].MaxRequests = 2
	testkit.SetRequests(p.listed[2], 2)
	want := []string{
		"up: gets requests in turn",
		"up, but Caddy's own health checks consider it unhealthy: no requests",
		"up, but full: its limit is 2 requests at once",
		"check 'test' failed: ",
		"up, and a backup: gets requests when no primary can serve",
		"its weight is 0: no requests",
	}
	serving := []bool{true, false, true, false, false, false}
	for i, row := range p.rows(Filter{}) {
		if !strings.HasPrefix(row.Why, want[i]) || row.Serving != serving[i] {
			t.Errorf("%d: %q, serving %v, want %q, %v", i, row.Why, row.Serving, want[i], serving[i])
		}
	}
	p.set(0, settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
	p.set(2, settings.Change{Mode: new(settings.Mode(settings.Drain))})
	p.set(5, settings.Change{Pool: "shop", Weight: new(new(3))})
	p.decide("????d?")
	rows := p.rows(Filter{})
	for i, want := range map[int]string{0: "in maintenance since ", 2: "draining since ", 4: "check 'test' failed: ", 5: "up: gets requests in turn"} {
		if !strings.HasPrefix(rows[i].Why, want) {
			t.Errorf("%d: %q, want %q", i, rows[i].Why, want)
		}
	}
}
