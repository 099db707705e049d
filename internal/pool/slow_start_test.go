// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// slowly makes a pool start upstreams slowly, over 20s from a floor on.
func slowly(floor float64) func(*policy) {
	return func(p *policy) { p.handler.Rules.SlowStart, p.handler.Rules.Floor = 20*time.Second, floor }
}

// TestSlowStart_WeightsGrow has the weights in virtual time. The window is 20s
// everywhere. Each step waits, then decides, then compares the shares.
func TestSlowStart_WeightsGrow(t *testing.T) {
	type step struct {
		wait     time.Duration
		verdicts string
		want     []int // shares in lowest terms
	}
	const long = time.Minute
	for _, tc := range []struct {
		rule, verdicts string
		floor          float64
		weights        []int
		steps          []step
	}{
		{"half-way 1:2, over 1:1", "uu", 0.1, []int{1, 1}, []step{
			{long, "d?", []int{0, 1}},
			{time.Second, "u?", []int{1, 10}},
			{10 * time.Second, "??", []int{1, 2}},
			{9 * time.Second, "??", []int{19, 20}},
			{time.Second, "??", []int{1, 1}},
			{long, "??", []int{1, 1}},
		}},
		{"a floor of 35% holds until it is passed", "uu", 0.35, []int{1, 1}, []step{
			{long, "d?", []int{0, 1}},
			{time.Second, "u?", []int{7, 20}},
			{6999 * time.Millisecond, "??", []int{7, 20}},
			{1001 * time.Millisecond, "??", []int{2, 5}},
		}},
		{"it is the share of the weight", "uu", 0.1, []int{3, 2}, []step{
			{long, "d?", []int{0, 1}},
			{time.Second, "u?", []int{3, 20}},
			{10 * time.Second, "??", []int{3, 4}},
			{10 * time.Second, "??", []int{3, 2}},
		}},
		{"weight 0 has nothing to ramp, and does not count", "uuu", 0.1, []int{0, 1, 1}, []step{
			{long, "dd?", []int{0, 0, 1}},
			{time.Second, "uu?", []int{0, 1, 10}},
		}},
		{"a floor of 0 is still a share", "uu", 0, []int{1, 1}, []step{
			{long, "d?", []int{0, 1}},
			{time.Second, "u?", []int{1, 20}},
		}},
		{"down inside the window: starts over", "uu", 0.1, []int{1, 1}, []step{
			{long, "d?", []int{0, 1}},
			{time.Second, "u?", []int{1, 10}},
			{15 * time.Second, "??", []int{3, 4}},
			{0, "d?", []int{0, 1}},
			{time.Second, "u?", []int{1, 10}},
			{10 * time.Second, "??", []int{1, 2}},
		}},
		{"cold start of the whole pool: no ramp", "uuu", 0.1, []int{1, 1, 1}, []step{
			{0, "???", []int{1, 1, 1}},
			{5 * time.Second, "???", []int{1, 1, 1}},
		}},
		{"cold start: one goes down and returns, and the others carry on", "uuu", 0.1, []int{1, 1, 1}, []step{
			{5 * time.Second, "d??", []int{0, 1, 1}},
			{time.Second, "u??", []int{1, 10, 10}},
			{10 * time.Second, "???", []int{1, 2, 2}},
		}},
		{"cold start: one returns after all went down", "uu", 0.1, []int{1, 1}, []step{
			{5 * time.Second, "d?", []int{0, 1}},
			{0, "?d", []int{1, 1}}, // the last resort
			{time.Second, "u?", []int{1, 0}},
			{10 * time.Second, "?u", []int{1, 1}},
			{9 * time.Second, "??", []int{1, 1}},
			{time.Second, "??", []int{2, 1}}, // the first is past it, and the other half-way
			{10 * time.Second, "??", []int{1, 1}},
		}},
		{"one joins two that run long", "uu?", 0.1, []int{1, 1, 1}, []step{
			{long, "???", []int{1, 1, 0}},
			{0, "??u", []int{10, 10, 1}},
			{10 * time.Second, "???", []int{2, 2, 1}},
			{10 * time.Second, "???", []int{1, 1, 1}},
		}},
		{"two of three come back together: the third carried all", "uuu", 0.1, []int{1, 1, 1}, []step{
			{long, "dd?", []int{0, 0, 1}},
			{time.Second, "u??", []int{1, 0, 10}},
			{0, "?u?", []int{1, 1, 10}},
			{10 * time.Second, "???", []int{1, 1, 2}},
			{10 * time.Second, "???", []int{1, 1, 1}},
		}},
		{"two run, one of them half-way, and two join: it does not jump", "uu??", 0.1, []int{1, 1, 1, 1}, []step{
			{long, "?d??", []int{1, 0, 0, 0}},
			{time.Second, "?u??", []int{10, 1, 0, 0}},
			{10 * time.Second, "??uu", []int{10, 5, 1, 1}},
			{10 * time.Second, "????", []int{2, 2, 1, 1}},
		}},
		{"one runs, and four join", "u????", 0.1, []int{1, 1, 1, 1, 1}, []step{
			{time.Second, "?uuuu", []int{10, 1, 1, 1, 1}},
			{10 * time.Second, "?????", []int{2, 1, 1, 1, 1}},
		}},
		{"a backup that serves is no reason for primaries to ramp", "ddu", 0.1, []int{1, 1, -1}, []step{
			{long, "???", []int{0, 0, 1}},
			{0, "uu?", []int{1, 1, 0}},
		}},
		{"backups ramp among themselves", "duud", 0.1, []int{1, -1, -1, -1}, []step{
			{long, "?d??", []int{0, 0, 1, 0}},
			{time.Second, "?u?u", []int{0, 1, 10, 1}},
			{0, "u???", []int{1, 0, 0, 0}},
		}},
		{"two of four come back together", "uuuu", 0.1, []int{1, 1, 1, 1}, []step{
			{long, "dd??", []int{0, 0, 1, 1}},
			{time.Second, "uu??", []int{1, 1, 10, 10}},
			{10 * time.Second, "????", []int{1, 1, 2, 2}},
		}},
		{"the last one that was past it dies", "uu", 0.1, []int{1, 1}, []step{
			{long, "d?", []int{0, 1}},
			{time.Second, "u?", []int{1, 10}},
			{time.Second, "?d", []int{1, 0}},
		}},
		{"backups do not keep primaries from it", "uuu", 0.1, []int{1, 1, -1}, []step{
			{long, "d??", []int{0, 1, 0}},
			{time.Second, "u?d", []int{1, 10, 0}},
			{time.Second, "??u", []int{1, 10, 0}},
		}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPolicy(t, tc.verdicts, withWeights(tc.weights...), slowly(tc.floor))
				for i, s := range tc.steps {
					time.Sleep(s.wait)
					p.decide(s.verdicts)
					synctest.Wait() // for the timer of this very moment
					length := 0
					for _, w := range s.want {
						length += w
					}
					got, want := testkit.Counts(p.picks(testkit.Get, 2*length), len(s.want)), slices.Clone(s.want)
					for i := range want {
						want[i] *= 2
					}
					if !slices.Equal(got, want) {
						t.Errorf("step %d, %v later with %s: picks %v, want %v", i, s.wait, s.verdicts, got, want)
					}
				}
			})
		})
	}
}

// TestSlowStart_Ends: no snapshot is made while no upstream ramps, and none after Close,
// not even when a verdict comes in after it.
func TestSlowStart_Ends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "uu", slowly(0.1))
		quiet := func(when string) {
			t.Helper()
			synctest.Wait()
			before := p.Current()
			time.Sleep(time.Hour)
			synctest.Wait()
			if p.Current() != before {
				t.Errorf("%s: another snapshot was made", when)
			}
		}
		quiet("after a cold start")
		p.decide("d?")
		p.decide("u?")
		before := p.Current()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if p.Current() == before {
			t.Error("a slow start does not go on by itself")
		}
		time.Sleep(30 * time.Second)
		quiet("after the window")
		p.decide("d?")
		p.decide("u?")
		p.Close()
		quiet("after Close inside the window")
		p.decide("d?")
		p.decide("u?")
		quiet("after a verdict after Close")
	})
}

// TestSlowStart_SurvivesAReload: a new pool over the same targets, as a reload makes one,
// goes on with the slow start where the old one was.
func TestSlowStart_SurvivesAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := newPolicy(t, "uu", slowly(0.1))
		time.Sleep(time.Minute)
		old.decide("d?")
		old.decide("u?")
		time.Sleep(5 * time.Second)
		p := newPolicy(t, "??", slowly(0.1), func(p *policy) { p.members = old.members })
		old.Close()
		if got, want := testkit.Counts(p.picks(testkit.Get, 100), 2), []int{20, 80}; !slices.Equal(got, want) {
			t.Errorf("picks after a reload a quarter through the window %v, want %v", got, want)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got, want := testkit.Counts(p.picks(testkit.Get, 90), 2), []int{30, 60}; !slices.Equal(got, want) {
			t.Errorf("picks half-way %v, want %v", got, want)
		}
	})
}

// TestSlowStart_NotAfterDraining: an upstream that was draining was up all the time: it
// does not start slowly.
func TestSlowStart_NotAfterDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "uu", slowly(0.1))
		time.Sleep(time.Minute)
		testkit.SetDraining(p.targets[0], true)
		time.Sleep(time.Minute)
		for _, step := range []struct {
			rule string
			then func()
			want []int
		}{
			{"it drains", func() {}, []int{0, 1}},
			{"it ends", func() { testkit.SetDraining(p.targets[0], false) }, []int{1, 1}},
			{"it goes down and comes back", func() { p.decide("d?"); p.decide("u?") }, []int{1, 10}},
		} {
			step.then()
			if got := inLowestTerms(p.Current().serving[0].weights); !slices.Equal(got, step.want) {
				t.Errorf("%s: weights %v, want %v", step.rule, got, step.want)
			}
		}
	})
}

// TestSlowStart_AfterMaintenance: an upstream in maintenance is not probed, and has no
// verdict afterwards until it was. One that an operator drains is up all the time, and
// does not start slowly afterwards.
func TestSlowStart_AfterMaintenance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "uuu", slowly(0.1))
		time.Sleep(time.Minute)
		for _, step := range []struct {
			rule string
			then func()
			want []int
		}{
			{"it drains", func() { p.setMode(0, settings.Drain) }, []int{0, 1, 1}},
			{"it is ready", func() { p.setMode(0, settings.Ready) }, []int{1, 1, 1}},
			{"it is in maintenance", func() { p.setMode(0, settings.Maintenance) }, []int{0, 1, 1}},
			{"it is ready, but not probed yet", func() { p.setMode(0, settings.Ready) }, []int{0, 1, 1}},
			{"it passes", func() { p.decide("u??") }, []int{1, 10, 10}},
		} {
			step.then()
			if got := inLowestTerms(p.Current().serving[0].weights); !slices.Equal(got, step.want) {
				t.Errorf("%s: weights %v, want %v", step.rule, got, step.want)
			}
			time.Sleep(time.Second)
		}
	})
}

// TestSlowStart_FloorsKeepTheirShare: however many upstreams there are, and whatever
// their weights, rounding takes or gives no more than an eighth of the least share.
func TestSlowStart_FloorsKeepTheirShare(t *testing.T) {
	for _, tc := range []struct {
		n, weights int // weights from 1 up to that
		floor      float64
	}{
		{1000, 1, 0.05}, {3500, 1, 0.1}, {5000, 1, 0.1}, {10000, 1, 0.05}, {13000, 1, 0.05}, {1000, 10, 0.1}, {1000, 10, 0.05},
	} {
		t.Run(fmt.Sprintf("%d with weights to %d and %g", tc.n, tc.weights, tc.floor), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				old, young := handMade("u1")[0], handMade("u1")[0]
				time.Sleep(time.Minute)
				testkit.Decide(young.Checks[0].Target, false)
				testkit.Decide(young.Checks[0].Target, true)
				members := make([]*Member, tc.n)
				var total float64
				for i := range members {
					members[i] = &Member{Checks: old.Checks, Weight: 1 + i%tc.weights}
					total += float64(members[i].Weight)
				}
				ramping := []int{0, tc.n / 2 / tc.weights * tc.weights} // of weight 1
				for _, i := range ramping {
					members[i].Checks = young.Checks
					total -= 1 - tc.floor
				}
				h := &Handler{Rules: Rules{SlowStart: 30 * time.Second, Floor: tc.floor}}
				tier := h.newSnapshot(members, time.Now(), new(spills)).serving[0]
				turns := tier.share(tc.n)
				for _, i := range ramping {
					want := tc.floor / total
					if got := float64(turns[i]) / float64(tier.order.Len()); math.Abs(got-want) > want/8+1e-12 {
						t.Errorf("%d has %d of %d turns, %.2f of its share", i, turns[i], tier.order.Len(), got/want)
					}
				}
				for i, n := range turns {
					if n == 0 {
						t.Fatalf("%d has no turn", i)
					}
				}
			})
		})
	}
}
