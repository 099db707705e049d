// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// TestDraining_ComesAfterAllThatServe: upstreams that are draining get requests after all
// that serve, primaries before backups, and before anything that can only be an error.
// They are not part of the primaries that fail_open counts, nor of its last resort. One
// that is down by another check is down.
func TestDraining_ComesAfterAllThatServe(t *testing.T) {
	half := FailOpen{Percent: 50}
	none := []int(nil)
	for _, tc := range []tierCase{
		{"all the tiers in order", "u2 r1 u3b r1b", FailOpen{}, [][]int{{1, 0, 0, 0}, {0, 0, 1, 0}, {0, 1, 0, 0}, {0, 0, 0, 1}}, none, []int{1, 0, 0, 0}, Normal},
		{"in whatever order they are listed", "r1b u3b r1 u2", FailOpen{}, [][]int{{0, 0, 0, 1}, {0, 1, 0, 0}, {0, 0, 1, 0}, {1, 0, 0, 0}}, none, []int{0, 0, 0, 1}, Normal},
		{"one that serves keeps them out", "r1 u1 d1", FailOpen{}, [][]int{{0, 1, 0}, {1, 0, 0}}, none, []int{0, 1, 1}, Normal},
		{"a backup that serves, too", "r1 d1 u1b", FailOpen{}, [][]int{{0, 0, 1}, {1, 0, 0}}, none, []int{0, 1, 0}, Normal},
		{"the rest is down", "r1 d2 d1", FailOpen{}, [][]int{{1, 0, 0}}, none, []int{0, 2, 1}, Normal},
		{"the rest is down, only a backup is draining", "d1 d1b r1b", FailOpen{}, [][]int{{0, 0, 1}}, none, []int{1, 0, 0}, Normal},
		{"all are: by their weights", "r5 r1 r1 d1", FailOpen{}, [][]int{{5, 1, 1, 0}}, none, []int{0, 0, 0, 1}, Normal},
		{"backups by their weights", "d1 r3b r2b", FailOpen{}, [][]int{{0, 3, 2}}, none, []int{1, 0, 0}, Normal},
		{"all there are", "r3 r1", FailOpen{}, [][]int{{3, 1}}, none, none, Normal},
		{"no primary is left to resort to: backups", "r1 d2b", FailOpen{}, [][]int{{1, 0}}, none, []int{0, 1}, Normal},
		{"a weight of 0 is no traffic, draining or not", "r0 d1", FailOpen{}, nil, none, []int{0, 1}, LastResort},
		{"better than to wait for a verdict", "r1 ?1", FailOpen{}, [][]int{{1, 0}}, []int{0, 1}, []int{0, 1}, Normal},
		{"better than to wait for a backup's", "r1 ?1b", FailOpen{}, [][]int{{1, 0}}, []int{0, 1}, []int{0, 1}, Normal},
		{"off: they are no reason for a 503", "r1 d1", FailOpen{Never: true}, [][]int{{1, 0}}, none, none, Normal},
		{"50%: they do not count, so 1 of 2", "u1 d1 r1 r1 r1", half, [][]int{{1, 0, 0, 0, 0}, {0, 0, 1, 1, 1}}, none, []int{1, 1, 0, 0, 0}, Normal},
		{"50%: nor as serving, so 1 of 3", "u1 d1 d1 r1 r1", half, [][]int{{1, 1, 1, 0, 0}, {1, 0, 0, 0, 0}, {0, 0, 0, 1, 1}}, none, []int{1, 1, 1, 0, 0}, FailedOpen},
		{"50%: a backup that is does not serve", "u1 d1 d1 r1b", half, [][]int{{1, 1, 1, 0}, {1, 0, 0, 0}, {0, 0, 0, 1}}, none, []int{1, 1, 1, 0}, FailedOpen},
		{"50%: no other is there", "r1 r1", half, [][]int{{1, 1}}, none, none, Normal},
		{"100%: all the others serve", "u1 u1 r1", FailOpen{Percent: 100}, [][]int{{1, 1, 0}, {0, 0, 1}}, none, []int{1, 1, 0}, Normal},

		{"draining by one of two checks", "ru1 d1", FailOpen{}, [][]int{{1, 0}}, none, []int{0, 1}, Normal},
		{"draining by the second of two", "ur1 d1", FailOpen{}, [][]int{{1, 0}}, none, []int{0, 1}, Normal},
		{"draining by both", "rr1 d1", FailOpen{}, [][]int{{1, 0}}, none, []int{0, 1}, Normal},
		{"down by another check: it is down", "rd2 d1", FailOpen{}, nil, none, []int{2, 1}, LastResort},
		{"down by the first of two", "dr2 u1", FailOpen{}, [][]int{{0, 1}}, none, []int{2, 1}, Normal},
		{"down by another check: fail_open counts it", "rd1 d1 u1", half, [][]int{{1, 1, 1}, {0, 0, 1}}, none, []int{1, 1, 1}, FailedOpen},
		{"no verdict by another check: it has none", "r?1 d1", FailOpen{}, nil, []int{1, 0}, []int{1, 1}, Normal},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			members := handMade(tc.members)
			h := &Handler{Rules: Rules{FailOpen: tc.failOpen}}
			tc.check(t, h.newSnapshot(members, time.Now(), new(spills)), len(members))
		})
	}
}

// TestDraining_IsFollowedAtOnce: requests follow at once when an upstream begins to drain
// and when it ends. While one that drains still serves, nothing is logged.
func TestDraining_IsFollowedAtOnce(t *testing.T) {
	for _, how := range pickPaths {
		t.Run(how.path, func(t *testing.T) {
			p := newPolicy(t, "uuuu", withWeights(5, 1, 1, -1), how.configure)
			for _, step := range []struct {
				rule     string
				verdicts string
				draining string // r begins, u ends, ? leaves it as it is
				want     []int  // of 42 picks, which are whole cycles
				logs     int    // lines that there are then
			}{
				{"all serve", "uuuu", "????", []int{30, 6, 6, 0}, 0},
				{"one begins", "????", "r???", []int{0, 21, 21, 0}, 0},
				{"it ends", "????", "u???", []int{30, 6, 6, 0}, 0},
				{"two of three", "????", "rr??", []int{0, 0, 42, 0}, 0},
				{"the third is down: the backup", "??d?", "????", []int{0, 0, 0, 42}, 0},
				{"the backup, too: primaries that drain, by weight", "????", "???r", []int{35, 7, 0, 0}, 0},
				{"one of them ends", "????", "?u??", []int{0, 42, 0, 0}, 0},
				{"and begins again", "????", "?r??", []int{35, 7, 0, 0}, 0},
				{"one is down", "d???", "????", []int{0, 42, 0, 0}, 0},
				{"only the backup is left", "?d??", "????", []int{0, 0, 0, 42}, 0},
				{"none is left: the last resort", "???d", "????", []int{30, 6, 6, 0}, 1},
				{"back from down it does not drain", "u???", "????", []int{42, 0, 0, 0}, 2},
			} {
				p.decide(step.verdicts)
				for i, d := range step.draining {
					if d != '?' {
						testkit.SetDraining(p.targets[i], d == 'r')
					}
				}
				got, want := testkit.Counts(p.picks(testkit.Get, 42), 4), slices.Clone(step.want)
				if p.handler.Rules.Select != nil { // it does not go by weights
					for i := range got {
						got[i], want[i] = min(got[i], 1), min(want[i], 1)
					}
				}
				if !slices.Equal(got, want) {
					t.Errorf("%s: picks %v, want %v", step.rule, got, want)
				}
				if n := p.logs.Len(); n != step.logs {
					t.Errorf("%s: logged %d lines, want %d", step.rule, n, step.logs)
				}
			}
			p.wantLog(t, noneAlive, enoughAgain)
		})
	}
}

// TestDraining_RespectsHealthAndLimits: an upstream that drains serves only as far as it
// would otherwise: not if Caddy itself considers it unhealthy, and not beyond its limit.
func TestDraining_RespectsHealthAndLimits(t *testing.T) {
	for _, retries := range []bool{false, true} {
		p := newPolicy(t, "uud", func(p *policy) { p.handler.Rules.Retries = retries })
		testkit.SetDraining(p.targets[0], true)
		testkit.SetDraining(p.targets[1], true)
		p.list[1].MaxRequests = 1
		for _, step := range []struct {
			rule    string
			healthy bool // the first
			full    bool // the second
			want    []int
		}{
			{"both can", true, false, []int{10, 10, 0}},
			{"one is full", true, true, []int{20, 0, 0}},
			{"one is unhealthy", false, false, []int{0, 20, 0}},
		} {
			testkit.SetHealthy(p.list[0], step.healthy)
			testkit.SetRequests(p.list[1], map[bool]int{true: 1}[step.full])
			if got := testkit.Counts(p.picks(testkit.Get, 20), 3); !slices.Equal(got, step.want) {
				t.Errorf("retries %v, %s: picks %v, want %v", retries, step.rule, got, step.want)
			}
		}
		testkit.SetHealthy(p.list[0], false)
		testkit.SetHealthy(p.list[1], false)
		if got, want := testkit.Counts(p.picks(testkit.Get, 20), 3), []int{0, 0, 20}; !slices.Equal(got, want) {
			t.Errorf("retries %v, all unhealthy: picks %v, want %v, the last resort", retries, got, want)
		}
	}
}
