// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// inGroups puts members into groups.
func inGroups(groups ...int) func(*policy) {
	return func(p *policy) {
		for i, group := range groups {
			p.members[i].Group = group
		}
	}
}

// spilling lets groups join below a percentage.
func spilling(percent float64) func(*policy) {
	return func(p *policy) { p.handler.Rules.Spill = percent }
}

// receiving returns the positions of the upstreams that get requests.
func (p *policy) receiving() (positions []int) {
	for i, n := range testkit.Counts(p.picks(testkit.Get, 60), len(p.list)) {
		if n > 0 {
			positions = append(positions, i)
		}
	}
	return positions
}

// A group serves while no group before it can, through every death and return of three.
func TestGroups_FollowEachOther(t *testing.T) {
	for _, way := range pickPaths {
		t.Run(way.path, func(t *testing.T) {
			p := newPolicy(t, "uuuu", inGroups(0, 0, 1, 2), way.configure)
			for verdicts := range 1 << 4 {
				text := ""
				var up [3][]int
				for i, m := range p.members {
					if verdicts>>i&1 == 1 {
						text += "u"
						up[m.Group] = append(up[m.Group], i)
					} else {
						text += "d"
					}
				}
				p.decide(text)
				want := []int{0, 1} // the last resort
				for _, members := range slices.Backward(up[:]) {
					if len(members) > 0 {
						want = members
					}
				}
				if got := p.receiving(); !slices.Equal(got, want) {
					t.Errorf("%s: %v get requests, want %v", text, got, want)
				}
			}
		})
	}
}

// Without a ready primary the last resort is the first group that has a ready upstream.
func TestGroups_LastResortIsTheFirstReady(t *testing.T) {
	p := newPolicy(t, "dddd", inGroups(0, 1, 1, 2))
	p.setMode(0, settings.Maintenance)
	if got := p.receiving(); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("%v get requests, want those of the first group of backups", got)
	}
}

// The next group joins below the threshold, with its own weights, and leaves when there is
// some more for five seconds.
func TestSpill_JoinsBelowAndLeavesAbove(t *testing.T) {
	type step struct {
		verdicts string
		wait     time.Duration
		want     []int
	}
	for _, tc := range []struct {
		rule     string
		percent  float64
		groups   []int
		weights  []int
		verdicts string
		steps    []step
	}{
		{"below, not at the threshold", 50, []int{0, 0, 0, 0, 1}, nil, "uuuuu", []step{
			{"d????", 0, []int{1, 2, 3}},
			{"?d???", 0, []int{2, 3}},
			{"??d??", 0, []int{3, 4}},
			{"??u??", 0, []int{2, 3, 4}},
			{"?????", 6 * time.Second, []int{2, 3, 4}}, // 50 %, and it leaves at 60 %
			{"?u???", 4 * time.Second, []int{1, 2, 3, 4}},
			{"?????", time.Second, []int{1, 2, 3}},
		}},
		{"above for too short a time", 50, []int{0, 0, 0, 1}, nil, "uuuu", []step{
			{"dd??", 0, []int{2, 3}}, {"u???", 4 * time.Second, []int{0, 2, 3}}, {"d???", 2 * time.Second, []int{2, 3}}, {"u???", 4 * time.Second, []int{0, 2, 3}}, {"????", time.Second, []int{0, 2}},
		}},
		{"by weight", 70, []int{0, 0, 1}, []int{3, 7, 1}, "uuu", []step{
			{"d??", 0, []int{1}}, {"ud?", 0, []int{0, 2}},
		}},
		{"one group after the other", 80, []int{0, 0, 1, 2}, nil, "uuuu", []step{
			{"d???", 0, []int{1, 2}}, {"??d?", 0, []int{1, 3}}, {"?d??", 0, []int{3}}, {"???d", 0, []int{0, 1}}, // the last resort
			{"uuuu", 0, []int{0, 1, 2, 3}}, {"????", 5 * time.Second, []int{0, 1, 2}}, {"????", 5 * time.Second, []int{0, 1}},
		}},
		{"all of 100 %", 100, []int{0, 0, 1}, nil, "uuu", []step{
			{"d??", 0, []int{1, 2}}, {"u??", 4 * time.Second, []int{0, 1, 2}}, {"???", time.Second, []int{0, 1}},
		}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPolicy(t, tc.verdicts, spilling(tc.percent), func(p *policy) {
					for i, weight := range tc.weights {
						p.members[i].Weight = weight
					}
				}, inGroups(tc.groups...))
				for i, s := range tc.steps {
					p.decide(s.verdicts)
					time.Sleep(s.wait)
					synctest.Wait()
					if got := p.receiving(); !slices.Equal(got, s.want) {
						t.Errorf("step %d: %v get requests, want %v", i, got, s.want)
					}
				}
			})
		})
	}
}

// Draining and maintenance count in the base and do not serve; suspects serve; a weight that
// is set at run time is that of the base.
func TestSpill_BaseAndServingWeight(t *testing.T) {
	for _, tc := range []struct {
		rule   string
		change func(a *accusable)
		joins  bool
	}{
		{"all serve", func(*accusable) {}, false},
		{"one drains", func(a *accusable) { a.setMode(0, settings.Drain) }, true},
		{"one is in maintenance", func(a *accusable) { a.setMode(0, settings.Maintenance) }, true},
		{"one has the weight 0", func(a *accusable) { a.set(0, settings.Change{Pool: "shop", Weight: weightOf(0)}) }, false},
		{"a suspect", func(a *accusable) { a.accuse(0, witness.Failure{Cause: witness.Connect}) }, false},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAccusable(t, "uuu", spilling(70), inGroups(0, 0, 1))
				tc.change(a)
				if joins := a.Current().spill.joined == 1; joins != tc.joins {
					t.Errorf("the backup joins: %v, want %v", joins, tc.joins)
				}
			})
		})
	}
}

// An upstream in its slow start serves with a part of its weight, so the next group leaves
// when it is nearly over.
func TestSpill_CountsRampedWeights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "udu", spilling(80), inGroups(0, 0, 1), slowly(0.1))
		time.Sleep(time.Minute)
		p.decide("?u?")
		for _, want := range []int{1, 1, 0} { // after 10 s there are 75 % of the weight
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if got := p.Current().spill.joined; got != want {
				t.Errorf("after %v: %d groups have joined, want %d", time.Minute, got, want)
			}
		}
	})
}

// With a dynamic source the base is the largest sum of ten minutes, so a source that loses
// half of its addresses lets the next group join.
func TestSpill_BaseOfADynamicSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Handler{Rules: Rules{Spill: 70}}
		joined := func(words string) int {
			members := handMade(words)
			p := New(h, members, make(reverseproxy.UpstreamPool, len(members)), new(LoggedState))
			return p.snapshot(true).spill.joined
		}
		for i, step := range []struct {
			words string
			wait  time.Duration
			want  int
		}{
			{"u1 u1 u1 u1 u1b", 0, 0},
			{"u1 u1 u1b", 0, 1},
			{"u1 u1 u1b", 9 * time.Minute, 1},
			{"u1 u1 u1b", 2 * time.Minute, 1}, // above the threshold from now on
			{"u1 u1 u1b", 6 * time.Second, 0},
		} {
			time.Sleep(step.wait)
			if got := joined(step.words); got != step.want {
				t.Errorf("step %d: %d groups have joined, want %d", i, got, step.want)
			}
		}
	})
}

// fail_open with a number ignores health below it. All of the primaries are enough if they
// are not so many.
func TestFailOpen_ByNumber(t *testing.T) {
	for _, tc := range []struct {
		number  int
		members string
		want    State
	}{
		{2, "u1 u1 d1", Normal},
		{2, "u1 d1 d1", FailedOpen},
		{1, "u1 d1", Normal},
		{1, "d1 d1", FailedOpen},
		{3, "u1 u1", Normal},
		{3, "u1 d1", FailedOpen},
		{2, "u1 d1 d1 u1b", Normal},
		{2, "u1 d1 d1 u1bb", Normal},
		{2, "u1 ?1 ?1", Normal},
	} {
		h := &Handler{Rules: Rules{FailOpen: FailOpen{Number: tc.number}}}
		if got := h.newSnapshot(handMade(tc.members), time.Now(), new(spills)).state; got != tc.want {
			t.Errorf("fail_open %d with %s: state %d, want %d", tc.number, tc.members, got, tc.want)
		}
	}
}

// For a dynamic source, the base is that of the answers of the last ten minutes. One that
// requests have brought all the time counts until now.
func TestSpill_DynamicBaseIsOfTheLastTenMinutes(t *testing.T) {
	for _, tc := range []struct {
		rule string
		idle time.Duration // before the next answer
		want int           // how many groups have joined
	}{
		{"replaced just now", time.Second, 1},
		{"replaced before less than ten minutes", 9 * time.Minute, 1},
		{"replaced long ago", 11 * time.Minute, 0},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				p := newPolicy(t, "uuuu", inGroups(0, 0, 0, 1), spilling(70))
				all := New(p.handler, p.members, p.list, new(LoggedState))
				for range 20 {
					time.Sleep(time.Minute)
					all.Pick(Attempt{Upstreams: p.list, Request: testkit.Get()})
				}
				time.Sleep(tc.idle)
				some := New(p.handler, p.members[2:], p.list[2:], new(LoggedState))
				some.Pick(Attempt{Upstreams: p.list[2:], Request: testkit.Get()})
				if got := some.Current().spill.joined; got != tc.want {
					t.Errorf("%d groups have joined, want %d", got, tc.want)
				}
			})
		})
	}
}

// An answer without a primary does not make the weight of backups the base of later answers.
func TestSpill_DynamicBaseIsOfThePrimaries(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPolicy(t, "uuuu", withWeights(1, -4, -4, -4), spilling(70))
		backups := New(p.handler, p.members[1:], p.list[1:], new(LoggedState))
		all := New(p.handler, p.members, p.list, new(LoggedState))
		backups.Pick(Attempt{Upstreams: p.list[1:], Request: testkit.Get()})
		for range 2 { // they leave after a while
			all.Pick(Attempt{Upstreams: p.list, Request: testkit.Get()})
			time.Sleep(spillHeld)
		}
		if got := all.Peek().spill.joined; got != 0 {
			t.Errorf("%d groups have joined, want none", got)
		}
	})
}
