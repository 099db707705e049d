// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// accusable is a policy whose upstreams traffic can accuse. Their probes hang for a while,
// so that suspicions last, and then pass or fail.
type accusable struct {
	*policy
	sick [8]atomic.Bool
}

// accusableTests counts the tests, so that the limit of probes before their turn has
// forgotten those of earlier ones.
var accusableTests atomic.Int64

// newAccusable makes an accusable policy in virtual time, by verdicts as newPolicy. Probes of
// those that are down fail.
func newAccusable(t *testing.T, verdicts string, configure ...func(*policy)) *accusable {
	t.Helper()
	time.Sleep(time.Duration(accusableTests.Add(1)) * 2 * time.Hour)
	a := new(accusable)
	h := &witness.Handler{Settings: witness.DefaultSettings()}
	h.Hooks = witness.Hooks{
		Changed:   func() { a.changed() },
		MayEject:  func(*witness.Upstream) bool { return true },
		Accused:   func(string, witness.Cause, string, bool) {},
		Acquitted: func(string) {},
		Ejected:   func(string, string, time.Time, int) {},
		Returned:  func(string) {},
	}
	observed, err := witness.Join(t.Name(), h)
	if err != nil {
		t.Fatal(err)
	}
	observed.Follow(h)
	h.SetRunning(true)
	a.policy = newPolicy(t, verdicts, append([]func(*policy){func(p *policy) {
		p.handler.Rules.Witness = h.Settings
		for i, m := range p.members {
			m.Witness = observed.Add(h, m.Address, []*health.Target{p.targets[i]})
			p.targets[i].Subscribe(m.Witness.FollowChecks)
		}
	}}, configure...)...)
	for i, target := range a.targets {
		a.sick[i].Store(verdicts[i] == 'd')
		t.Cleanup(target.Attach(health.Driver{Probe: func(ctx context.Context, _ bool) (bool, error) {
			select {
			case <-time.After(500 * time.Millisecond):
			case <-ctx.Done():
			}
			if a.sick[i].Load() {
				return false, errors.New("sick")
			}
			return false, nil
		}}, time.Hour))
	}
	t.Cleanup(func() {
		for _, m := range a.members {
			observed.Remove(h, m.Witness)
		}
		if err := observed.Leave(h); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(20 * time.Minute) // a quarter of the fast interval is over, and a probe may begin
	return a
}

// accuse has a request to an upstream fail.
func (a *accusable) accuse(i int, f witness.Failure) {
	var trip witness.Trip
	trip.Begin(a.members[i].Witness)
	trip.Wait()
	trip.Fail(f)
	synctest.Wait()
}

// eject has five requests to an upstream fail in a row, and waits for the end of the
// suspicion.
func (a *accusable) eject(t *testing.T, i int) {
	t.Helper()
	for range 5 {
		a.accuse(i, witness.Failure{Cause: witness.Outcome, Answered: true})
	}
	time.Sleep(time.Second)
	if a.members[i].Ejection().IsZero() || a.members[i].IsSuspect() {
		t.Fatal("it is not ejected, or a suspect")
	}
}

// TestSuspects_AreATierOfTheirOwn: suspects get nothing while another one serves, in any
// group. Then they do, before those that drain and those whose health is ignored. Letters
// are verdicts: s is a suspect, and r drains.
func TestSuspects_AreATierOfTheirOwn(t *testing.T) {
	for _, tc := range []struct {
		rule     string
		verdicts string
		weights  []int
		open     FailOpen
		want     []int // which get requests
	}{
		{"others serve", "uus", []int{1, 1, 1}, FailOpen{}, []int{0, 1}},
		{"only a backup serves", "ssu", []int{1, 1, -1}, FailOpen{}, []int{2}},
		{"all are suspects", "sss", []int{1, 1, 1}, FailOpen{}, []int{0, 1, 2}},
		{"primaries first", "ss", []int{1, -1}, FailOpen{}, []int{0}},
		{"the others are down", "sdd", []int{1, 1, -1}, FailOpen{}, []int{0}},
		{"the others drain", "srr", []int{1, 1, 1}, FailOpen{}, []int{0}},
		{"they serve for a share of fail-open", "sud", []int{1, 1, 1}, FailOpen{Percent: 60}, []int{1}},
		{"fail_open off", "sd", []int{1, 1}, FailOpen{Never: true}, []int{0}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				base := []byte(tc.verdicts)
				for i, v := range base {
					if v == 's' || v == 'r' {
						base[i] = 'u'
					}
				}
				a := newAccusable(t, string(base), withWeights(tc.weights...), func(p *policy) { p.handler.Rules.FailOpen = tc.open })
				var suspects []int
				for i, v := range tc.verdicts {
					switch v {
					case 'r':
						testkit.SetDraining(a.targets[i], true)
					case 's':
						suspects = append(suspects, i)
						a.accuse(i, witness.Failure{Cause: witness.Outcome})
					}
				}
				got := testkit.Counts(a.picks(testkit.Get, 60), len(base))
				for i, n := range got {
					if (n > 0) != slices.Contains(tc.want, i) {
						t.Errorf("picks %v, want only of %v", got, tc.want)
						break
					}
				}
				if len(suspects) == len(base) {
					return
				}
				time.Sleep(time.Second) // they are acquitted
				got = testkit.Counts(a.picks(testkit.Get, 60), len(base))
				for _, i := range suspects {
					if tc.weights[i] > 0 && got[i] == 0 {
						t.Errorf("picks %v after %d was acquitted", got, i)
					}
				}
			})
		})
	}
}

// TestSuspects_SharedByTheTargetAreHeeded: a suspicion by connect of another pool keeps
// requests away, unless observe is off here.
func TestSuspects_SharedByTheTargetAreHeeded(t *testing.T) {
	for _, off := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a := newAccusable(t, "uu", func(p *policy) { p.handler.Rules.Witness.Off = off })
			a.targets[0].Accuse(true, func(health.Verdict) {})
			got := testkit.Counts(a.picks(testkit.Get, 20), 2)
			if want := []int{map[bool]int{true: 10}[off], 20 - map[bool]int{true: 10}[off]}; !slices.Equal(got, want) {
				t.Errorf("off %v: picks %v, want %v", off, got, want)
			}
		})
	}
}

// TestSuspects_TakeWhatTheFullCannot: if all that serve are full, a suspect that is not gets
// the request. Those that drain, are ejected or down get nothing for that.
func TestSuspects_TakeWhatTheFullCannot(t *testing.T) {
	for _, tc := range []struct {
		rule     string
		prepare  func(t *testing.T, a *accusable)
		verdicts string
		want     int // position, -1: none
	}{
		{"a suspect", func(_ *testing.T, a *accusable) { a.accuse(1, witness.Failure{Cause: witness.Outcome}) }, "uu", 1},
		{"one that drains", func(_ *testing.T, a *accusable) { testkit.SetDraining(a.targets[1], true) }, "uu", -1},
		{"an ejected one", func(t *testing.T, a *accusable) { a.eject(t, 1) }, "uu", -1},
		{"one that is down", func(*testing.T, *accusable) {}, "ud", -1},
	} {
		for _, retries := range []bool{false, true} {
			t.Run(fmt.Sprint(tc.rule, ", retries ", retries), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newAccusable(t, tc.verdicts, func(p *policy) { p.handler.Rules.Retries = retries })
					tc.prepare(t, a)
					a.list[0].MaxRequests = 1
					testkit.SetRequests(a.list[0], 1)
					for range 20 {
						if got := slices.Index(a.list, a.pickFirst(testkit.Get())); got != tc.want {
							t.Fatalf("picked %d, want %d", got, tc.want)
						}
					}
				})
			})
		}
	}
}

// TestSuspects_TheDownAreProbed: when all that serve are suspects, those that are down are
// probed before their turn.
func TestSuspects_TheDownAreProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccusable(t, "uudd")
		before := []time.Time{a.targets[2].View().Next, a.targets[3].View().Next}
		a.accuse(0, witness.Failure{Cause: witness.Outcome})
		a.picks(testkit.Get, 5)
		if got := a.targets[2].View().Next; !got.Equal(before[0]) {
			t.Errorf("the next probe is at %v instead of %v while another one serves", got, before[0])
		}
		a.accuse(1, witness.Failure{Cause: witness.Outcome})
		a.picks(testkit.Get, 1)
		for i, target := range a.targets[2:] {
			if got := target.View().Next; !got.Before(before[i]) {
				t.Errorf("the next probe of %d is at %v", i+2, got)
			}
		}
	})
}

// TestEjected_GetNothingWhileOthersServe: not from the fast path nor by retries, before all
// that serve were tried. They are better than an error, and than one that is down.
func TestEjected_GetNothingWhileOthersServe(t *testing.T) {
	for _, how := range pickPaths {
		t.Run(how.path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAccusable(t, "uuud", how.configure)
				a.eject(t, 0)
				if got := testkit.Counts(a.picks(testkit.Get, 60), 4); got[0] != 0 || got[3] != 0 || got[1] == 0 || got[2] == 0 {
					t.Errorf("picks %v", got)
				}
				a.decide("?dd?")
				if got := testkit.Counts(a.picks(testkit.Get, 20), 4); got[0] != 20 {
					t.Errorf("picks %v, want the ejected one: it is better than those that are down", got)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		a := newAccusable(t, "uuud", retrying)
		a.eject(t, 0)
		got := a.picks(testkit.Same(), 4)
		slices.Sort(got[:2])
		if want := []int{1, 2, 0, 3}; !slices.Equal(got, want) {
			t.Errorf("one request tried %v, want %v", got, want)
		}
	})
}

// TestEjected_CountForFailOpen: an ejected one counts as serving for the share of fail-open.
func TestEjected_CountForFailOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccusable(t, "uud", func(p *policy) { p.handler.Rules.FailOpen = FailOpen{Percent: 60, Text: "60%"} })
		a.eject(t, 0)
		if got, want := testkit.Counts(a.picks(testkit.Get, 30), 3), []int{0, 30, 0}; !slices.Equal(got, want) {
			t.Errorf("picks %v, want %v", got, want)
		}
		a.wantLog(t)
	})
}

// TestTrial_OneRequestTriesTheEjected: when the ejection ends, one request goes to it, and
// the others do not, until that has ended. Then it has its share. The trial is a safe one, if
// one comes within a second.
func TestTrial_OneRequestTriesTheEjected(t *testing.T) {
	post := func() *http.Request {
		r := testkit.Get()
		r.Method = http.MethodPost
		return r
	}
	for _, tc := range []struct {
		rule  string
		how   func(*policy)
		after time.Duration // since the first request after the end
		r     func() *http.Request
		trial bool
	}{
		{"GET", func(*policy) {}, 0, testkit.Get, true},
		{"GET with retries", retrying, 0, testkit.Get, true},
		{"GET, on the slow path", slow, 0, testkit.Get, true},
		{"POST at once", func(*policy) {}, 0, post, false},
		{"POST after less than a second", func(*policy) {}, 900 * time.Millisecond, post, false},
		{"POST after a second", func(*policy) {}, time.Second, post, true},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAccusable(t, "uuuu", tc.how)
				a.eject(t, 0)
				time.Sleep(time.Until(a.members[0].Ejection()) - time.Millisecond)
				synctest.Wait()
				if got := testkit.Counts(a.picks(testkit.Get, 40), 4); got[0] != 0 {
					t.Fatalf("picks %v before the end", got)
				}
				time.Sleep(time.Millisecond)
				synctest.Wait()
				if tc.after > 0 {
					a.pick(post()) // the first one that asks
					time.Sleep(tc.after)
				}
				first := a.pickIndex(tc.r())
				if (first == 0) != tc.trial {
					t.Fatalf("the first request goes to %d; a trial: want %v", first, tc.trial)
				}
				if !tc.trial {
					return
				}
				if got := testkit.Counts(a.picks(testkit.Get, 40), 4); got[0] != 0 {
					t.Errorf("picks %v during the trial", got)
				}
				var trip witness.Trip
				trip.Begin(a.members[0].Witness)
				trip.Wait()
				trip.Good()
				if got := testkit.Counts(a.picks(testkit.Get, 40), 4); got[0] != 10 {
					if tc.rule != "GET with retries" {
						t.Errorf("picks %v after the return, want its share", got)
					}
				}
			})
		})
	}
}

// TestTrial_NotByOneThatIsFullOrTried: a trial is no reason to exceed a limit, nor to try an
// upstream twice.
func TestTrial_NotByOneThatIsFullOrTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccusable(t, "uu")
		a.eject(t, 0)
		time.Sleep(time.Until(a.members[0].Ejection()))
		synctest.Wait()
		a.list[0].MaxRequests = 1
		testkit.SetRequests(a.list[0], 1)
		if got := a.pickIndex(testkit.Get()); got != 1 {
			t.Errorf("picked %d although it is full", got)
		}
		testkit.SetRequests(a.list[0], 0)
		r := testkit.Get()
		remember(r).Add(a.list[0], true, witness.Counted{})
		if got := a.pickIndex(r); got != 1 {
			t.Errorf("picked %d although the request has tried it", got)
		}
		if got := a.pickIndex(testkit.Get()); got != 0 {
			t.Errorf("picked %d, want the trial", got)
		}
	})
}

// TestReturn_RampsAfterAnEjection: an upstream that returns from an ejection has a slow
// start.
func TestReturn_RampsAfterAnEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccusable(t, "uu", func(p *policy) { p.handler.Rules.SlowStart, p.handler.Rules.Floor = 10*time.Second, 0.1 })
		a.eject(t, 0)
		time.Sleep(time.Until(a.members[0].Ejection()))
		synctest.Wait()
		a.pick(testkit.Get())
		var trip witness.Trip
		trip.Begin(a.members[0].Witness)
		trip.Wait()
		trip.Good()
		if got := testkit.Counts(a.picks(testkit.Get, 220), 2); got[0] != 20 {
			t.Errorf("picks %v at the return, want a tenth of the weight", got)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := testkit.Counts(a.picks(testkit.Get, 220), 2); got[0] != 110 {
			t.Errorf("picks %v after the slow start", got)
		}
	})
}

// TestMayEject_KeepsEnoughOfTheGroup: without it and those that are ejected the group must
// hold all but a share of its serving weight. One of two or three equal ones may go.
func TestMayEject_KeepsEnoughOfTheGroup(t *testing.T) {
	for _, tc := range []struct {
		verdicts string
		weights  []int
		ejected  []int
		may      string // y or n for each
	}{
		{"u", []int{1}, nil, "n"},
		{"uu", []int{1, 1}, nil, "yy"},
		{"uuu", []int{1, 1, 1}, nil, "yyy"},
		{"uuu", []int{1, 1, 1}, []int{0}, "nnn"},
		{"uu", []int{1, 1}, []int{0}, "nn"},
		{"uuuu", []int{1, 1, 1, 1}, nil, "yyyy"},
		{"uuuu", []int{1, 1, 1, 1}, []int{0}, "ynnn"},
		{"uuuuuuu", []int{1, 1, 1, 1, 1, 1, 1}, []int{0}, "yyyyyyy"},
		{"uuuuuuu", []int{1, 1, 1, 1, 1, 1, 1}, []int{0, 1}, "yynnnnn"},
		{"uuu", []int{8, 1, 1}, nil, "nyy"},
		{"ud", []int{1, 1}, nil, "nn"},
		{"uudd", []int{1, 1, 1, 1}, nil, "yyyy"},
		{"uuu", []int{1, -1, -1}, nil, "nyy"},
		{"uuu", []int{0, 1, 1}, nil, "yyy"},
	} {
		t.Run(fmt.Sprint(tc.verdicts, tc.weights, tc.ejected), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAccusable(t, tc.verdicts, withWeights(tc.weights...))
				for _, i := range tc.ejected {
					for range 5 {
						a.accuse(i, witness.Failure{Cause: witness.Outcome, Answered: true})
					}
					time.Sleep(time.Minute) // no common trouble
				}
				s := a.handler.newSnapshot(a.members, time.Now(), new(spills))
				for i, m := range a.members {
					if tc.verdicts[i] == 'd' || tc.weights[i] == 0 || slices.Contains(tc.ejected, i) {
						continue // it is not asked
					}
					if got := s.MayEject(m, 0.3); got != (tc.may[i] == 'y') {
						t.Errorf("%d may go: %v, want %c", i, got, tc.may[i])
					}
				}
			})
		})
	}
}

// TestRetries_LeaveTheFastPathOn: where the handler retries, the first pick of a request
// takes the fast path, until a try of some request has failed.
func TestRetries_LeaveTheFastPathOn(t *testing.T) {
	p := newPolicy(t, "uuu", retrying)
	if !p.Current().Fast() {
		t.Error("the fast path is off")
	}
	end := p.BeginRetry()
	if p.Current().Fast() {
		t.Error("the fast path is on while a request retries")
	}
	p.changed()
	if p.Current().Fast() {
		t.Error("the fast path is on again, with a new snapshot")
	}
	end()
	p.pickFirst(testkit.Get())
	if !p.Current().Fast() {
		t.Error("the fast path is off after the retry")
	}
}
