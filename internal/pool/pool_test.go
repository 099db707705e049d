// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// TestSnapshot_TiersAreInOrder has the tiers, best first, and what is left when they are
// empty. Weights count in each of them, and a member of weight 0 is in none.
func TestSnapshot_TiersAreInOrder(t *testing.T) {
	half := FailOpen{Percent: 50}
	none := []int(nil)
	for _, tc := range []tierCase{
		{"primaries, then backups", "u2 u1 u3b", FailOpen{}, [][]int{{2, 1, 0}, {0, 0, 1}}, none, []int{2, 1, 0}, Normal},
		{"one primary is enough", "d2 u1 u3b", FailOpen{}, [][]int{{0, 1, 0}, {0, 0, 1}}, none, []int{2, 1, 0}, Normal},
		{"no primary: backups by weight", "d2 d1 u3b u1b d1b", FailOpen{}, [][]int{{0, 0, 3, 1, 0}}, none, []int{2, 1, 0, 0, 0}, Normal},
		{"both down: the primaries", "d2 d1 d3b", FailOpen{}, nil, none, []int{2, 1, 0}, LastResort},
		{"only backups have a weight: those", "d0 u0 d3b d1b", FailOpen{}, nil, none, []int{0, 0, 3, 1}, LastResort},
		{"a primary of weight 0 does not keep backups out", "u0 d1 u3b", FailOpen{}, [][]int{{0, 0, 1}}, none, []int{0, 1, 0}, Normal},
		{"a backup of weight 0 gets nothing", "d1 u0b", FailOpen{}, nil, none, []int{1, 0}, LastResort},
		{"all of weight 0: unavailable", "u0 d0 u0b", FailOpen{}, nil, none, none, Unavailable},
		{"2 of 6 up at 50%: all six", "u3 u1 d2 d1 d1 d1", half, [][]int{{3, 1, 2, 1, 1, 1}, {3, 1, 0, 0, 0, 0}}, none, []int{3, 1, 2, 1, 1, 1}, FailedOpen},
		{"exactly 3 of 6: only those", "u3 u1 u2 d1 d1 d1", half, [][]int{{3, 1, 2, 0, 0, 0}}, none, []int{3, 1, 2, 1, 1, 1}, Normal},
		{"4 of 6: only those", "u3 u1 u2 d1 u1 d1", half, [][]int{{3, 1, 2, 0, 1, 0}}, none, []int{3, 1, 2, 1, 1, 1}, Normal},
		{"2 of 6, but a backup serves", "u3 u1 d2 d1 d1 d1 u1b", half, [][]int{{3, 1, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 1}}, none, []int{3, 1, 2, 1, 1, 1, 0}, Normal},
		{"2 of 6, and a backup that is down", "u3 u1 d2 d1 d1 d1 d1b", half, [][]int{{3, 1, 2, 1, 1, 1, 0}, {3, 1, 0, 0, 0, 0, 0}}, none, []int{3, 1, 2, 1, 1, 1, 0}, FailedOpen},
		{"2 of 6, and a backup without a verdict", "u3 u1 d2 d1 d1 d1 ?1b", half, [][]int{{3, 1, 2, 1, 1, 1, 0}, {3, 1, 0, 0, 0, 0, 0}}, []int{0, 0, 0, 0, 0, 0, 1}, []int{3, 1, 2, 1, 1, 1, 0}, FailedOpen},
		{"those without a verdict do not count: 1 of 2", "u1 d1 ?1 ?1 ?1", half, [][]int{{1, 0, 0, 0, 0}}, []int{0, 0, 1, 1, 1}, []int{1, 1, 1, 1, 1}, Normal},
		{"those of weight 0 do not count: 1 of 2", "u1 d1 d0 d0 d0", half, [][]int{{1, 0, 0, 0, 0}}, none, []int{1, 1, 0, 0, 0}, Normal},
		{"none of 2 up at 50%: all", "d2 d1", half, [][]int{{2, 1}}, none, []int{2, 1}, FailedOpen},
		{"100%: all must serve", "u1 u1 d1", FailOpen{Percent: 100}, [][]int{{1, 1, 1}, {1, 1, 0}}, none, []int{1, 1, 1}, FailedOpen},
		{"100%, and all serve", "u1 u1 u1", FailOpen{Percent: 100}, [][]int{{1, 1, 1}}, none, []int{1, 1, 1}, Normal},
		{"none_up with some up", "u1 d1 d1 d1 d1", FailOpen{}, [][]int{{1, 0, 0, 0, 0}}, none, []int{1, 1, 1, 1, 1}, Normal},
		{"none_up with none up: all, by weight", "d5 d1 d1 d0", FailOpen{}, nil, none, []int{5, 1, 1, 0}, LastResort},
		{"off with none up: unavailable", "d5 d1 d1b", FailOpen{Never: true}, nil, none, none, Unavailable},
		{"off with some up", "u5 d1 u1b", FailOpen{Never: true}, [][]int{{1, 0, 0}, {0, 0, 1}}, none, none, Normal},
		{"no verdicts yet: nothing to log", "?2 ?1 d1 ?1b", FailOpen{}, nil, []int{2, 1, 0, 0}, []int{2, 1, 1, 0}, Normal},
		{"only backups have no verdict yet", "d2 d1 ?1b", FailOpen{}, nil, []int{0, 0, 1}, []int{2, 1, 0}, Normal},
		{"down by one check, no verdict by another: down", "d?1 ?d1", FailOpen{}, nil, none, []int{1, 1}, LastResort},
		{"an empty pool", "", FailOpen{}, nil, none, none, Normal},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			members := handMade(tc.members)
			h := &Handler{Rules: Rules{FailOpen: tc.failOpen}}
			tc.check(t, h.newSnapshot(members, time.Now(), new(spills)), len(members))
		})
	}
}

// TestSnapshot_FailsOpenBelowThePercentage: fail_open ignores health below its percentage
// and not at it, whatever its binary fraction is.
func TestSnapshot_FailsOpenBelowThePercentage(t *testing.T) {
	up, down := handMade("u1")[0], handMade("d1")[0]
	for percent := 1; percent <= 100; percent++ {
		text := fmt.Sprintf("%d%%", percent)
		share, err := limits.Percent("fail_open", text)
		if err != nil {
			t.Fatal(err)
		}
		h := &Handler{Rules: Rules{FailOpen: FailOpen{Percent: share}}}
		for n := 1; n <= 100; n++ {
			if percent*n%100 != 0 {
				continue
			}
			serving := percent * n / 100
			for _, tc := range []struct {
				serving int
				want    State
			}{{serving, Normal}, {serving - 1, FailedOpen}} {
				members := append(slices.Repeat([]*Member{up}, tc.serving), slices.Repeat([]*Member{down}, n-tc.serving)...)
				if got := h.newSnapshot(members, time.Now(), new(spills)).state; got != tc.want {
					t.Errorf("fail_open %s with %d of %d up: state %d, want %d", text, tc.serving, n, got, tc.want)
				}
			}
		}
	}
}

// wantWeights returns the weights with which members have to get requests, written anew
// from the rules. All are 0 if none gets any.
func wantWeights(members []*Member, open FailOpen) []int {
	among := func(is func(*Member) bool) []int {
		weights := make([]int, len(members))
		for i, m := range members {
			if is(m) {
				weights[i] = m.Weight
			}
		}
		return weights
	}
	amount := func(weights []int) (n int) {
		for _, w := range weights {
			n += min(w, 1)
		}
		return n
	}
	primaries := among(func(m *Member) bool { return m.Group == 0 })
	serving := among(func(m *Member) bool { return m.Group == 0 && m.Status() == health.Up })
	decided := among(func(m *Member) bool { return m.Group == 0 && m.Status() != health.Unknown })
	backups := among(func(m *Member) bool { return m.Group > 0 && m.Status() == health.Up })
	unknown := among(func(m *Member) bool { return m.Group == 0 && m.Status() == health.Unknown })
	if amount(unknown) == 0 {
		unknown = among(func(m *Member) bool { return m.Group > 0 && m.Status() == health.Unknown })
	}
	switch {
	case amount(backups) == 0 && float64(100*amount(serving)) < open.Percent*float64(amount(decided)):
		return primaries
	case amount(serving) > 0:
		return serving
	case amount(backups) > 0:
		return backups
	case amount(unknown) > 0:
		return unknown
	case open.Never:
		return make([]int, len(members))
	case amount(primaries) > 0:
		return primaries
	}
	return among(func(m *Member) bool { return m.Group > 0 })
}

// TestPick_SharesAreExactInEveryTier: whatever the weights and the verdicts, over a whole
// cycle the members of the best tier have exactly their shares, and no other upstream
// gets a request. A pick is none only if no upstream may get requests. The fast and the
// slow path agree.
func TestPick_SharesAreExactInEveryTier(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 2))
		n := 1 + rng.IntN(9)
		weights := make([]int, n)
		for i := range weights {
			weights[i] = rng.IntN(11)
			if rng.IntN(4) == 0 {
				weights[i] = -weights[i]
			}
		}
		open := []FailOpen{{}, {Percent: 25}, {Percent: 50}, {Percent: 100}, {Never: true}}[rng.IntN(5)]
		retries := rng.IntN(2) == 0
		p := newPolicy(t, strings.Repeat("?", n), withWeights(weights...), func(p *policy) {
			p.handler.Rules.FailOpen, p.handler.Rules.Retries, p.handler.Rules.Hold = open, retries, 0
		})
		verdicts := []byte(strings.Repeat("?", n))
		for step := range 12 {
			for range 1 + rng.IntN(3) {
				verdicts[rng.IntN(n)] = "ud"[rng.IntN(2)]
			}
			if step > 0 {
				p.decide(string(verdicts))
			}
			want := inLowestTerms(wantWeights(p.members, open))
			length := 0
			for _, w := range want {
				length += w
			}
			got := p.picks(testkit.Get, max(length, 1))
			if slices.Contains(got, -1) != (length == 0) || !slices.Equal(testkit.Counts(got, n), want) {
				t.Fatalf("seed %d, step %d: weights %v (backups below 0), verdicts %s, %+v, retries %v: picks %v, want counts %v",
					seed, step, weights, verdicts, open, retries, got, want)
			}
		}
	}
}

// TestPool_AChangeContinuesTheOrder: after a change the order does not begin anew.
// Otherwise the first one of it would get more requests whenever others change.
func TestPool_AChangeContinuesTheOrder(t *testing.T) {
	const seed = 3
	rng := rand.New(rand.NewPCG(seed, 3))
	p := newPolicy(t, "uuuu", withWeights(5, 1, 1, 1))
	var first []int
	for range 200 {
		p.picks(testkit.Get, rng.IntN(8))
		p.decide("???d")
		first = append(first, p.pickIndex(testkit.Get()))
		p.picks(testkit.Get, rng.IntN(8))
		p.decide("???u")
		first = append(first, p.pickIndex(testkit.Get()))
	}
	// its share is 5/7 and 5/8 in turn
	if got := testkit.Counts(first, 4); got[0] < 220 || got[0] > 320 {
		t.Errorf("seed %d: picks right after 400 changes %v, want about 268 of the heaviest", seed, got)
	}
}

// TestPick_WhileVerdictsChange: while verdicts change, each request gets an upstream,
// none of weight 0, and no backup while a primary serves all the time. Once the verdicts
// are settled the shares are exact.
func TestPick_WhileVerdictsChange(t *testing.T) {
	for _, tc := range []struct {
		rule     string
		verdicts [2]string
		never    []int
		want     []int // of 400 picks in the end
	}{
		{"a primary serves all the time", [2]string{"?ddddd", "?ududu"}, []int{3, 4, 5}, []int{200, 200, 0, 0, 0, 0}},
		{"a backup serves all the time", [2]string{"ddd??d", "uud??u"}, []int{3}, []int{200, 200, 0, 0, 0, 0}},
		{"none serves at times", [2]string{"dddddd", "dduddu"}, []int{3}, []int{0, 0, 400, 0, 0, 0}},
	} {
		for _, retries := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/retries %v", tc.rule, retries), func(t *testing.T) {
				p := newPolicy(t, "uuuuuu", withWeights(2, 2, 1, 0, -2, -1), func(p *policy) { p.handler.Rules.Retries = retries })
				stop := make(chan struct{})
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						for {
							select {
							case <-stop:
								return
							default:
							}
							if i := p.pickIndex(testkit.Get()); i < 0 || slices.Contains(tc.never, i) {
								t.Errorf("picked %d", i)
								return
							}
						}
					})
				}
				for range 100 {
					p.decide(tc.verdicts[0])
					p.decide(tc.verdicts[1])
				}
				close(stop)
				wg.Wait()
				if got := testkit.Counts(p.picks(testkit.Get, 400), 6); !slices.Equal(got, tc.want) {
					t.Errorf("picks after the changes %v, want %v", got, tc.want)
				}
			})
		}
	}
}
