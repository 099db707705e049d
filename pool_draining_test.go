// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// refuse has a probe of an up target say whether it is draining, and returns when
// all who follow it know.
func refuse(target *health.Target, draining bool) {
	if target.Draining() == draining {
		return
	}
	known := make(chan struct{})
	defer target.Attach(health.Driver{
		Probe:  func(context.Context, bool) (bool, error) { return draining, nil },
		Report: func(health.Transition) { close(known) },
	}, 0)()
	<-known
}

// handMadeDraining makes members as handMade does, with one more verdict: r for
// up, but refusing new requests. With several verdicts a member has as many
// checks: rd1 passes one of them, and is draining by it, and fails the other.
func handMadeDraining(words string) []*member {
	var members []*member
	for word := range strings.FieldsSeq(words) {
		var m *member
		verdicts := word[:strings.IndexAny(word, "0123456789")]
		for _, verdict := range verdicts {
			made := handMade(strings.Replace(string(verdict), "r", "u", 1) + word[len(verdicts):])[0]
			if verdict == 'r' {
				refuse(made.watches[0].Target, true)
			}
			if m == nil {
				m = made
			} else {
				m.watches = append(m.watches, made.watches...)
			}
		}
		members = append(members, m)
	}
	return members
}

// Upstreams that are draining get requests after all who serve, primaries before
// backups, and before anything that can only be an error: it is better than that.
// They are not part of the primaries that fail_open is about, nor of its last
// resort. One that is down by another check is down.
func TestDrainingTiers(t *testing.T) {
	half := failOpen{percent: 50}
	none := []int(nil)
	for _, tc := range []struct {
		rule     string
		members  string
		failOpen failOpen
		tiers    [][]int // turns in a cycle, by position
		unknown  []int
		resort   []int
		mood     mood
	}{
		{"all the tiers in order", "u2 r1 u3b r1b", failOpen{}, [][]int{{1, 0, 0, 0}, {0, 0, 1, 0}, {0, 1, 0, 0}, {0, 0, 0, 1}}, none, []int{1, 0, 0, 0}, fine},
		{"in whatever order they are listed", "r1b u3b r1 u2", failOpen{}, [][]int{{0, 0, 0, 1}, {0, 1, 0, 0}, {0, 0, 1, 0}, {1, 0, 0, 0}}, none, []int{0, 0, 0, 1}, fine},
		{"one that serves keeps them out", "r1 u1 d1", failOpen{}, [][]int{{0, 1, 0}, {1, 0, 0}}, none, []int{0, 1, 1}, fine},
		{"a backup that serves, too", "r1 d1 u1b", failOpen{}, [][]int{{0, 0, 1}, {1, 0, 0}}, none, []int{0, 1, 0}, fine},
		{"the rest is down", "r1 d2 d1", failOpen{}, [][]int{{1, 0, 0}}, none, []int{0, 2, 1}, fine},
		{"the rest is down, only a backup is draining", "d1 d1b r1b", failOpen{}, [][]int{{0, 0, 1}}, none, []int{1, 0, 0}, fine},
		{"all are: by their weights", "r5 r1 r1 d1", failOpen{}, [][]int{{5, 1, 1, 0}}, none, []int{0, 0, 0, 1}, fine},
		{"backups by their weights", "d1 r3b r2b", failOpen{}, [][]int{{0, 3, 2}}, none, []int{1, 0, 0}, fine},
		{"all there are", "r3 r1", failOpen{}, [][]int{{3, 1}}, none, none, fine},
		{"no primary is left to resort to: backups", "r1 d2b", failOpen{}, [][]int{{1, 0}}, none, []int{0, 1}, fine},
		{"a weight of 0 is no traffic, draining or not", "r0 d1", failOpen{}, nil, none, []int{0, 1}, lastResort},
		{"better than to wait for a verdict", "r1 ?1", failOpen{}, [][]int{{1, 0}}, []int{0, 1}, []int{0, 1}, fine},
		{"better than to wait for a backup's", "r1 ?1b", failOpen{}, [][]int{{1, 0}}, []int{0, 1}, []int{0, 1}, fine},
		{"off: they are no reason for a 503", "r1 d1", failOpen{never: true}, [][]int{{1, 0}}, none, none, fine},
		{"50%: they do not count, so 1 of 2", "u1 d1 r1 r1 r1", half, [][]int{{1, 0, 0, 0, 0}, {0, 0, 1, 1, 1}}, none, []int{1, 1, 0, 0, 0}, fine},
		{"50%: nor as serving, so 1 of 3", "u1 d1 d1 r1 r1", half, [][]int{{1, 1, 1, 0, 0}, {1, 0, 0, 0, 0}, {0, 0, 0, 1, 1}}, none, []int{1, 1, 1, 0, 0}, failedOpen},
		{"50%: a backup that is does not serve", "u1 d1 d1 r1b", half, [][]int{{1, 1, 1, 0}, {1, 0, 0, 0}, {0, 0, 0, 1}}, none, []int{1, 1, 1, 0}, failedOpen},
		{"50%: nobody else is there", "r1 r1", half, [][]int{{1, 1}}, none, none, fine},
		{"100%: all the others serve", "u1 u1 r1", failOpen{percent: 100}, [][]int{{1, 1, 0}, {0, 0, 1}}, none, []int{1, 1, 0}, fine},

		{"draining by one of two checks", "ru1 d1", failOpen{}, [][]int{{1, 0}}, none, []int{0, 1}, fine},
		{"draining by the second of two", "ur1 d1", failOpen{}, [][]int{{1, 0}}, none, []int{0, 1}, fine},
		{"draining by both", "rr1 d1", failOpen{}, [][]int{{1, 0}}, none, []int{0, 1}, fine},
		{"down by another check: it is down", "rd2 d1", failOpen{}, nil, none, []int{2, 1}, lastResort},
		{"down by the first of two", "dr2 u1", failOpen{}, [][]int{{0, 1}}, none, []int{2, 1}, fine},
		{"down by another check: fail_open counts it", "rd1 d1 u1", half, [][]int{{1, 1, 1}, {0, 0, 1}}, none, []int{1, 1, 1}, failedOpen},
		{"no verdict by another check: it has none", "r?1 d1", failOpen{}, nil, []int{1, 0}, []int{1, 1}, fine},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			members := handMadeDraining(tc.members)
			s := newSnapshot(members, rules{failOpen: tc.failOpen}, time.Now())
			wantSnapshot(t, s, len(members), tc.tiers, tc.unknown, tc.resort, tc.mood)
		})
	}
}

// Requests follow at once when an upstream begins to drain and when it ends. While
// one that drains still serves there is nothing to say.
func TestDrainingTakesTurns(t *testing.T) {
	for _, how := range []struct {
		path      string
		configure func(*Selection)
	}{
		{"the quick way", func(*Selection) {}},
		{"the slow way", retrying},
		{"with select", func(s *Selection) { s.inner = reverseproxy.RandomSelection{} }},
	} {
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
				{"nobody is: the last resort", "???d", "????", []int{30, 6, 6, 0}, 1},
				{"back from down it does not drain", "u???", "????", []int{42, 0, 0, 0}, 2},
			} {
				p.decide(step.verdicts)
				for i, d := range step.draining {
					if d != '?' {
						refuse(p.targets[i], d == 'r')
					}
				}
				got, want := counts(p.picks(get, 42), 4), slices.Clone(step.want)
				if p.inner != nil { // it does not go by weights
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
			p.wantLog(t,
				"warn: no upstream is alive: requests go to all of them, as the last resort",
				"info: enough upstreams are alive again: requests go to those alive only")
		})
	}
}

// A retry goes to all that serve before those that drain, then to the one that is
// down, and to each of them once before anything repeats. Then it starts over with
// those that serve.
func TestRetriesGoOnToTheDraining(t *testing.T) {
	p := newPolicy(t, "uuuuuud", withWeights(1, 2, -1, 3, 5, -2, 1), retrying)
	for _, i := range []int{3, 4, 5} {
		refuse(p.targets[i], true)
	}
	for range 100 {
		got := p.picks(same(), 14)
		for i := range 2 {
			round := got[7*i : 7*i+7]
			for _, part := range []struct {
				who  string
				got  []int
				want []int
			}{
				{"primaries", round[:2], []int{0, 1}},
				{"the backup", round[2:3], []int{2}},
				{"draining primaries", round[3:5], []int{3, 4}},
				{"the draining backup", round[5:6], []int{5}},
				{"the one that is down", round[6:], []int{6}},
			} {
				if sorted := slices.Sorted(slices.Values(part.got)); !slices.Equal(sorted, part.want) {
					t.Fatalf("one request tried %v, want %s %v in their turn", got, part.who, part.want)
				}
			}
		}
	}
}

// One that drains serves only as far as it would otherwise: not if Caddy itself
// holds it unhealthy, and not beyond its limit.
func TestDrainingHasNoPrivileges(t *testing.T) {
	for _, retries := range []bool{false, true} {
		p := newPolicy(t, "uud", func(s *Selection) { s.retries = retries })
		refuse(p.targets[0], true)
		refuse(p.targets[1], true)
		p.upstreams[1].MaxRequests = 1
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
			setHealthy(p.upstreams[0], step.healthy)
			setRequests(p.upstreams[1], map[bool]int{true: 1}[step.full])
			if got := counts(p.picks(get, 20), 3); !slices.Equal(got, step.want) {
				t.Errorf("retries %v, %s: picks %v, want %v", retries, step.rule, got, step.want)
			}
		}
		setHealthy(p.upstreams[0], false)
		setHealthy(p.upstreams[1], false)
		if got, want := counts(p.picks(get, 20), 3), []int{0, 0, 20}; !slices.Equal(got, want) {
			t.Errorf("retries %v, all unhealthy: picks %v, want %v, the last resort", retries, got, want)
		}
	}
}

// At a cold start one that drains answers at once: better than to wait.
func TestDrainingIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "u??")
		refuse(p.targets[0], true)
		began := time.Now()
		got := p.picks(get, 10)
		if want := slices.Repeat([]int{0}, 10); !slices.Equal(got, want) {
			t.Errorf("picks %v, want %v", got, want)
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("waited %v for those without a verdict", waited)
		}
		p.decide("?u?")
		if got, want := p.picks(get, 3), []int{1, 1, 1}; !slices.Equal(got, want) {
			t.Errorf("picks %v after another passed, want %v", got, want)
		}
	})
}

// One that was draining was up all the time: it does not start slowly.
func TestDrainingIsNoSlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "uu", slowly(0.1))
		time.Sleep(time.Minute)
		refuse(p.targets[0], true)
		time.Sleep(time.Minute)
		for _, step := range []struct {
			rule string
			then func()
			want []int
		}{
			{"it drains", func() {}, []int{0, 1}},
			{"it ends", func() { refuse(p.targets[0], false) }, []int{1, 1}},
			{"it goes down and comes back", func() { p.decide("d?"); p.decide("u?") }, []int{1, 10}},
		} {
			step.then()
			if got := inLowestTerms(p.current.Load().tiers[0].weights); !slices.Equal(got, step.want) {
				t.Errorf("%s: weights %v, want %v", step.rule, got, step.want)
			}
		}
	})
}
