// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// handMadeModes makes members as handMade does, each with what an operator set after a
// colon: d for drain, m for maintenance, a number for the weight.
func handMadeModes(words string) ([]*Member, *settings.Set) {
	var made []string
	set := settings.NewSet()
	for i, word := range strings.Fields(words) {
		member, changes, _ := strings.Cut(word, ":")
		made = append(made, member)
		for c := range strings.SplitSeq(changes, ",") {
			switch weight, err := strconv.Atoi(c); {
			case c == "":
			case c == "d":
				set.Change(address(i), settings.Change{Mode: new(settings.Mode(settings.Drain))})
			case c == "m":
				set.Change(address(i), settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
			case err == nil:
				set.Change(address(i), settings.Change{Pool: "shop", Weight: new(&weight)})
			default:
				panic(fmt.Sprintf("%s: what is %q?", word, c))
			}
		}
	}
	return handMade(strings.Join(made, " ")), set
}

// TestModes_DrainIsDraining: an upstream that an operator drains gets requests like one
// that asks for it by itself. One in maintenance gets none at all, not even in fail-open.
// A weight replaces that of the config.
func TestModes_DrainIsDraining(t *testing.T) {
	half := FailOpen{Percent: 50}
	none := []int(nil)
	for _, tc := range []tierCase{
		{"drain: others first, backups too", "u1:d u2 u1b", FailOpen{}, [][]int{{0, 1, 0}, {0, 0, 1}, {1, 0, 0}}, none, []int{0, 1, 0}, Normal},
		{"drain: better than an error", "u1:d d1", FailOpen{}, [][]int{{1, 0}}, none, []int{0, 1}, Normal},
		{"drain: better than to wait", "u1:d ?1", FailOpen{}, [][]int{{1, 0}}, []int{0, 1}, []int{0, 1}, Normal},
		{"drain: all, by their weights", "u5:d u2:d", FailOpen{}, [][]int{{5, 2}}, none, none, Normal},
		{"drain: by itself, too", "r1:d u1", FailOpen{}, [][]int{{0, 1}, {1, 0}}, none, []int{0, 1}, Normal},
		{"drain: a backup", "d1 u1b:d u1b", FailOpen{}, [][]int{{0, 0, 1}, {0, 1, 0}}, none, []int{1, 0, 0}, Normal},
		{"drain: one that is down is no last resort", "d1:d d1", FailOpen{}, nil, none, []int{0, 1}, LastResort},
		{"drain: nor when it is alone", "d1:d", FailOpen{}, nil, none, none, Unavailable},
		{"drain: one without a verdict is not waited for", "?1:d d1", FailOpen{}, nil, none, []int{0, 1}, LastResort},
		{"drain: fail_open counts it neither way, 1 of 2", "u1 d1 u1:d d1:d", half, [][]int{{1, 0, 0, 0}, {0, 0, 1, 0}}, none, []int{1, 1, 0, 0}, Normal},
		{"drain: fail_open counts it neither way, 1 of 3", "u1 d1 d1 u1:d", half, [][]int{{1, 1, 1, 0}, {1, 0, 0, 0}, {0, 0, 0, 1}}, none, []int{1, 1, 1, 0}, FailedOpen},
		{"drain: off", "u1:d d1", FailOpen{Never: true}, [][]int{{1, 0}}, none, none, Normal},

		{"maintenance: nothing", "u1:m u2", FailOpen{}, [][]int{{0, 1}}, none, []int{0, 1}, Normal},
		{"maintenance: not as the last resort", "u1:m d1", FailOpen{}, nil, none, []int{0, 1}, LastResort},
		{"maintenance: of all", "u1:m d1:m u1b:m", FailOpen{}, nil, none, none, Unavailable},
		{"maintenance: of the primaries: a backup", "u1:m u1b", FailOpen{}, [][]int{{0, 1}}, none, []int{0, 1}, Normal},
		{"maintenance: of the primaries, the backup is down", "u1:m d1b", FailOpen{}, nil, none, []int{0, 1}, LastResort},
		{"maintenance: is not waited for", "?1:m d1", FailOpen{}, nil, none, []int{0, 1}, LastResort},
		{"maintenance: whatever it asks for itself", "r1:m d1", FailOpen{}, nil, none, []int{0, 1}, LastResort},
		{"maintenance: fail_open does not count it, 1 of 2", "u1 d1 d1:m d1:m", half, [][]int{{1, 0, 0, 0}}, none, []int{1, 1, 0, 0}, Normal},
		{"maintenance: fail_open does not count it, 1 of 3", "u1 d1 d1 u1:m", half, [][]int{{1, 1, 1, 0}, {1, 0, 0, 0}}, none, []int{1, 1, 1, 0}, FailedOpen},

		{"weight: instead of the config's", "u1:5 u2", FailOpen{}, [][]int{{5, 2}}, none, []int{5, 2}, Normal},
		{"weight: 0 is no traffic at all", "u1:0 d1", FailOpen{}, nil, none, []int{0, 1}, LastResort},
		{"weight: 0, and fail_open does not count it", "u1 d1 d1:0", half, [][]int{{1, 0, 0}}, none, []int{1, 1, 0}, Normal},
		{"weight: one of 0 in the config gets requests", "u0:3 u1", FailOpen{}, [][]int{{3, 1}}, none, []int{3, 1}, Normal},
		{"weight: of a backup", "d1 u1b:4 u1b", FailOpen{}, [][]int{{0, 4, 1}}, none, []int{1, 0, 0}, Normal},
		{"weight: of one that drains", "u1:d,7 u1:d", FailOpen{}, [][]int{{7, 1}}, none, none, Normal},
		{"weight: 0 of one that drains", "u1:d,0 d1", FailOpen{}, nil, none, []int{0, 1}, LastResort},
		{"weight: in maintenance", "u1:m,7 u1", FailOpen{}, [][]int{{0, 1}}, none, []int{0, 1}, Normal},
		{"weight: in the last resort", "d1:3 d1", FailOpen{}, nil, none, []int{3, 1}, LastResort},
		{"weight: without a verdict", "?1:3 ?1", FailOpen{}, nil, []int{3, 1}, []int{3, 1}, Normal},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			members, set := handMadeModes(tc.members)
			h := &Handler{Rules: Rules{FailOpen: tc.failOpen}, Name: "shop", Settings: set}
			tc.check(t, h.newSnapshot(members, time.Now(), new(spills)), len(members))
		})
	}
}

// TestModes_AWeightIsOfOnePool: the weight of another pool does not count here, and a
// mode counts in each pool.
func TestModes_AWeightIsOfOnePool(t *testing.T) {
	members, set := handMadeModes("u1:5 u2 u1:d")
	h := &Handler{Name: "other", Settings: set}
	tierCase{serving: [][]int{{1, 2, 0}, {0, 0, 1}}, lastResort: []int{1, 2, 0}}.check(t, h.newSnapshot(members, time.Now(), new(spills)), len(members))
}

// TestModes_AreFollowedAtOnce: the next request follows what an operator sets, on each
// path of a pick.
func TestModes_AreFollowedAtOnce(t *testing.T) {
	to := func(m settings.Mode) settings.Change { return settings.Change{Mode: new(m)} }
	weigh := func(n int) settings.Change { return settings.Change{Pool: "shop", Weight: new(&n)} }
	for _, how := range pickPaths {
		t.Run(how.path, func(t *testing.T) {
			p := newPolicy(t, "uuuu", withWeights(5, 1, 1, -1), how.configure)
			for _, step := range []struct {
				rule string
				at   int // position
				what settings.Change
				want []int // of 42 picks, which are whole cycles
			}{
				{"one drains", 0, to(settings.Drain), []int{0, 21, 21, 0}},
				{"another is in maintenance", 1, to(settings.Maintenance), []int{0, 0, 42, 0}},
				{"the third has no weight: the backup", 2, weigh(0), []int{0, 0, 0, 42}},
				{"the backup is in maintenance: the one that drains", 3, to(settings.Maintenance), []int{42, 0, 0, 0}},
				{"the third drains, too, but has no weight", 2, to(settings.Drain), []int{42, 0, 0, 0}},
				{"the third has the weight of the config: both drain", 2, settings.Change{Pool: "shop", Weight: new((*int)(nil))}, []int{35, 0, 7, 0}},
				{"all is taken back of one", 2, settings.Change{Clear: true}, []int{0, 0, 42, 0}},
				{"ready again", 0, to(settings.Ready), []int{35, 0, 7, 0}},
				{"another weight", 0, weigh(2), []int{28, 0, 14, 0}},
				{"another pool's weight", 0, settings.Change{Pool: "other", Weight: new(new(9))}, []int{28, 0, 14, 0}},
			} {
				p.set(step.at, step.what)
				got, want := testkit.Counts(p.picks(testkit.Get, 42), 4), slices.Clone(step.want)
				if p.handler.Rules.Select != nil { // it does not go by weights
					for i := range got {
						got[i], want[i] = min(got[i], 1), min(want[i], 1)
					}
				}
				if !slices.Equal(got, want) {
					t.Errorf("%s: picks %v, want %v", step.rule, got, want)
				}
			}
		})
	}
}

// TestModes_AChangeIsFollowedWhenItReturns: when a change returns, picks follow it,
// however many verdicts change meanwhile.
func TestModes_AChangeIsFollowedWhenItReturns(t *testing.T) {
	p := newPolicy(t, strings.Repeat("u", 200))
	var over atomic.Bool
	var verdicts sync.WaitGroup
	for range 3 {
		verdicts.Go(func() {
			for !over.Load() {
				p.changed()
			}
		})
	}
	for i := range 199 {
		p.setMode(i, settings.Drain)
		if p.Current().serving[0].weights[i] > 0 {
			t.Errorf("upstream %d still gets requests", i)
		}
	}
	over.Store(true)
	verdicts.Wait()
}
