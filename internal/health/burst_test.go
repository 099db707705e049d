// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// bubble runs a test in virtual time. What earlier tests have used of the limit of probes
// that begin before their turn counts for nothing.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	outOfTurn.mu.Lock()
	outOfTurn.next = time.Time{}
	outOfTurn.mu.Unlock()
	synctest.Test(t, f)
}

// accuse accuses a target, and ignores the verdict.
func accuse(target *Target) { target.Accuse(true, func(Verdict) {}) }

// verdicts record how accusations end, and when.
type verdicts struct {
	began time.Time
	mu    sync.Mutex // guards got
	got   []string
}

func newVerdicts() *verdicts { return &verdicts{began: time.Now()} }

// add is what an accusation is given.
func (v *verdicts) add(end Verdict) {
	v.mu.Lock()
	defer v.mu.Unlock()
	name := [...]string{"undecided", "acquitted", "convicted"}[end]
	v.got = append(v.got, fmt.Sprintf("%s %v", name, time.Since(v.began)))
}

// all returns how they have ended so far.
func (v *verdicts) all() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.got)
}

func (v *verdicts) want(t *testing.T, want ...string) {
	t.Helper()
	if got := v.all(); !slices.Equal(got, want) {
		t.Errorf("accusations ended with %q, want %q", got, want)
	}
}

// short is a probe that says nothing, because this process lacks a resource.
func short(context.Context) error { return dialError("socket", shortages[0]) }

// quarters returns all quarters of a second from one time to another.
func quarters(from, to float64) (all []time.Duration) {
	for at := from; at <= to; at += 0.25 {
		all = append(all, seconds(at)...)
	}
	return all
}

// results is a probe that ends as the letters say, one after the other: P passes, F fails,
// V says nothing, and T says nothing after the whole timeout. The last one goes on.
func results(target *Target, letters string) func(ctx context.Context) error {
	n := 0
	return func(ctx context.Context) error {
		r := letters[min(n, len(letters)-1)]
		n++
		switch r {
		case 'P':
			return nil
		case 'F':
			return errSick
		case 'T':
			return lateHang(target, time.Second)(ctx)
		default:
			return short(ctx)
		}
	}
}

// An accusation makes probes follow each other by a quarter of the fast interval, until
// they have decided. Afterwards the target returns to its old schedule.
func TestBurst_ProbesDecide(t *testing.T) {
	for _, tc := range []struct {
		rule    string
		results string // of the probes from the accusation on, at 2 s
		verdict string
		probes  []time.Duration // until 12 s
		status  Status
	}{
		{"one pass acquits", "P", "acquitted 2s", seconds(2, 5, 10), Up},
		{"also after a fail", "FP", "acquitted 2.25s", seconds(2, 2.25, 5, 10), Up},
		{"and one less than it takes", "FFP", "acquitted 2.5s", seconds(2, 2.25, 2.5, 5, 10), Up},
		{"as many fails as it takes convict", "FFFP", "convicted 2.5s", seconds(2, 2.25, 2.5, 2.75, 3, 8), Up},
		{"results that say nothing are no fails", "FVFVF", "convicted 3s", quarters(2, 7), Down},
		{"as many of those end it undecided", "V", "undecided 2.5s", seconds(2, 2.25, 2.5, 5, 10), Up},
		{"in a row", "VVFVVP", "acquitted 3.25s", seconds(2, 2.25, 2.5, 2.75, 3, 3.25, 5, 10), Up},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				target := NewTarget(settings())
				s, v := newScript(pass), newVerdicts()
				defer target.Attach(s.driver(), 0)()
				advance(2 * time.Second)
				s.probes()
				s.set(results(target, tc.results))
				if !target.Accuse(true, v.add) {
					t.Fatal("a target that is up cannot be accused")
				}
				advance(9990 * time.Millisecond)
				v.want(t, tc.verdict)
				wantProbes(t, s, tc.probes)
				if got := target.Status(); got != tc.status {
					t.Errorf("status %v, want %v", got, tc.status)
				}
			})
		})
	}
}

// However many accusations there are, there is one burst.
func TestBurst_IsOneForAllAccusations(t *testing.T) {
	bubble(t, func(t *testing.T) {
		target := NewTarget(settings())
		s, v := newScript(pass), newVerdicts()
		defer target.Attach(s.driver(), 0)()
		advance(2 * time.Second)
		s.probes()
		s.set(fail)
		for range 50 {
			target.Accuse(false, v.add)
		}
		advance(300 * time.Millisecond)
		for range 50 {
			target.Accuse(true, v.add)
		}
		advance(700 * time.Millisecond)
		wantProbes(t, s, quarters(2, 3))
		v.want(t, slices.Repeat([]string{"convicted 2.5s"}, 100)...)
	})
}

// Only a pass that began after an accusation acquits of it. Fails of before count: they are
// as old as the streak.
func TestBurst_OlderProbesDoNotAcquit(t *testing.T) {
	slow := func(context.Context) error {
		time.Sleep(time.Second / 2)
		return nil
	}
	for _, tc := range []struct {
		rule     string
		answer   func(context.Context) error // of the probe in flight
		then     func(context.Context) error
		verdicts []string
		probes   []time.Duration // from the one in flight on, until 11 s
	}{
		{"it passes, and so does the next", slow, pass, []string{"acquitted 5.5s"}, seconds(5, 5.5, 10)},
		{"it passes, and the next fail", slow, fail, []string{"convicted 6s"}, append(seconds(5), quarters(5.5, 10.25)...)},
		{"it fails, and the next do", func(context.Context) error {
			time.Sleep(time.Second / 2)
			return errSick
		}, fail, []string{"convicted 5.75s"}, append(seconds(5), quarters(5.5, 10.25)...)},
		{"it says nothing", func(ctx context.Context) error {
			time.Sleep(time.Second / 2)
			return short(ctx)
		}, pass, []string{"acquitted 5.5s"}, seconds(5, 5.5, 10)},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				target := NewTarget(settings())
				s, v := newScript(pass), newVerdicts()
				defer target.Attach(s.driver(), 0)()
				advance(time.Second)
				s.probes()
				s.set(tc.answer)
				advance(4200 * time.Millisecond)
				target.Accuse(true, v.add)
				s.set(tc.then)
				advance(5790 * time.Millisecond)
				v.want(t, tc.verdicts...)
				wantProbes(t, s, tc.probes)
			})
		})
	}
}

// An accusation that is made during a burst is not ended by a pass of a probe that began
// before, which ends the others.
func TestBurst_EachAccusationNeedsItsOwnPass(t *testing.T) {
	bubble(t, func(t *testing.T) {
		target := NewTarget(settings())
		s, v := newScript(pass), newVerdicts()
		defer target.Attach(s.driver(), 0)()
		advance(2 * time.Second)
		s.set(func(context.Context) error {
			time.Sleep(time.Second)
			return nil
		})
		target.Accuse(false, v.add)
		advance(500 * time.Millisecond)
		target.Accuse(true, v.add)
		advance(600 * time.Millisecond)
		v.want(t, "acquitted 3s")
		if !target.IsSuspect() {
			t.Error("no suspect while the second accusation is open")
		}
		advance(time.Second)
		v.want(t, "acquitted 3s", "acquitted 4s")
	})
}

// An accusation ends undecided in a pause, with the last driver, and if results that say
// nothing take too long.
func TestBurst_EndsUndecided(t *testing.T) {
	for _, tc := range []struct {
		rule    string
		results string
		end     func(target *Target, detach func()) // at 2.1 s
		until   time.Duration
	}{
		{"in a pause", "T", func(target *Target, _ func()) { target.Pause(true) }, 2100 * time.Millisecond},
		{"with the last driver", "T", func(_ *Target, detach func()) { detach() }, 2100 * time.Millisecond},
		// 3 × (2 s + 250 ms) after 2 s is 8.75 s: the next result ends it
		{"after a long time", "TTFTT", func(*Target, func()) {}, 10750 * time.Millisecond},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				target := NewTarget(settings())
				s, v := newScript(pass), newVerdicts()
				detached := false
				detach := target.Attach(s.driver(), 0)
				once := func() {
					if !detached {
						detach()
					}
					detached = true
				}
				defer once()
				advance(2 * time.Second)
				s.set(results(target, tc.results))
				target.Accuse(true, v.add)
				advance(100 * time.Millisecond)
				tc.end(target, once)
				synctest.Wait()
				for len(v.all()) == 0 && time.Since(v.began) < tc.until {
					advance(50 * time.Millisecond)
				}
				if got := v.all(); len(got) != 1 || got[0][:9] != "undecided" {
					t.Errorf("accusations ended with %q until %v, want one undecided", got, time.Since(v.began))
				}
				if target.IsSuspect() {
					t.Error("it is still a suspect")
				}
			})
		})
	}
}

// In a calm burst the probes are as far apart as in a streak, from the first one on. That can
// begin and end while it is under way, and does not outlast it.
func TestBurst_IsCalm(t *testing.T) {
	for _, tc := range []struct {
		rule   string
		calm   []time.Duration // when it changes, calm first; counted from the accusation at 2 s
		probes []time.Duration
	}{
		{"never", nil, seconds(2, 2.25, 2.5)},
		{"from the beginning", seconds(0), seconds(2, 3, 4)},
		{"after the first probe", seconds(0.1), seconds(2, 3, 4)},
		{"it ends", seconds(0.1, 0.5), seconds(2, 2.5, 2.75)},
		{"it was asked before", seconds(-1), seconds(2, 2.25, 2.5)},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				target := NewTarget(settings())
				s, v := newScript(pass), newVerdicts()
				defer target.Attach(s.driver(), 0)()
				for i, at := range tc.calm {
					time.AfterFunc(2*time.Second+at, func() { target.Calm(i == 0) })
				}
				time.Sleep(2*time.Second - time.Nanosecond)
				s.probes()
				s.set(fail)
				time.Sleep(time.Nanosecond)
				target.Accuse(true, v.add)
				if len(tc.calm) > 0 && tc.calm[0] == 0 {
					target.Calm(true)
				}
				advance(2500 * time.Millisecond)
				if got := s.probes(); len(got) < 3 || !slices.Equal(got[:3], tc.probes) {
					t.Errorf("probes began at %v, want %v", got, tc.probes)
				}
				v.want(t, fmt.Sprintf("convicted %v", tc.probes[2]))
			})
		})
	}
}

// All see an accusation that is shared, until it ends. Subscribers are told both times, and
// of accusations of one pool they are told nothing.
func TestBurst_SharedAccusationsAreShown(t *testing.T) {
	for _, tc := range []struct {
		rule   string
		shared bool
		answer func(context.Context) error
		want   []string // what subscribers see
	}{
		{"shared, acquitted", true, pass, []string{"up suspect", "up"}},
		{"shared, convicted", true, fail, []string{"up suspect", "down"}},
		{"shared, undecided", true, short, []string{"up suspect", "up"}},
		{"of one pool, acquitted", false, pass, nil},
		{"of one pool, convicted", false, fail, []string{"down"}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				target := NewTarget(settings())
				s := newScript(pass)
				defer target.Attach(s.driver(), 0)()
				advance(2 * time.Second)
				var mu sync.Mutex // guards got
				var got []string
				defer target.Subscribe(func() {
					mu.Lock()
					defer mu.Unlock()
					seen := target.Status().String()
					if target.IsSuspect() {
						seen += " suspect"
					}
					got = append(got, seen)
				})()
				s.set(tc.answer)
				target.Accuse(tc.shared, func(Verdict) {})
				if got := target.IsSuspect(); got != tc.shared {
					t.Errorf("a suspect: %v, want %v", got, tc.shared)
				}
				advance(time.Second)
				mu.Lock()
				defer mu.Unlock()
				if !slices.Equal(got, tc.want) {
					t.Errorf("subscribers saw %q, want %q", got, tc.want)
				}
			})
		})
	}
}

// A target can be accused only while it is up and probed.
func TestBurst_NeedsATargetThatIsUp(t *testing.T) {
	for _, tc := range []struct {
		rule    string
		prepare func(target *Target, s *script) (detach func())
	}{
		{"never probed", func(*Target, *script) func() { return func() {} }},
		{"no verdict yet", func(target *Target, s *script) func() { return target.Attach(s.driver(), time.Hour) }},
		{"down", func(target *Target, s *script) func() {
			s.set(fail)
			return target.Attach(s.driver(), 0)
		}},
		{"paused", func(target *Target, s *script) func() {
			detach := target.Attach(s.driver(), 0)
			synctest.Wait()
			target.Pause(true)
			return detach
		}},
		{"no driver any more", func(target *Target, s *script) func() {
			detach := target.Attach(s.driver(), 0)
			synctest.Wait()
			detach()
			return func() {}
		}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				target := NewTarget(settings())
				s, v := newScript(pass), newVerdicts()
				defer tc.prepare(target, s)()
				synctest.Wait()
				s.probes()
				if target.Accuse(true, v.add) || target.IsSuspect() {
					t.Error("it was accused")
				}
				advance(500 * time.Millisecond)
				v.want(t)
				wantProbes(t, s, nil)
			})
		})
	}
}

// A target that a burst has turned down may be back any moment: it is probed as often as in
// the burst until one interval has passed since the failure, and then at the down interval.
// One that ordinary probes turned down is not.
func TestConviction_ProbesGoOnAsInTheBurst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		target := NewTarget(settings())
		s := newScript(pass)
		defer target.Attach(s.driver(), 0)()
		advance(2 * time.Second)
		s.probes()
		s.set(fail)
		accuse(target)
		advance(16 * time.Second)
		wantProbes(t, s, append(quarters(2, 7), seconds(17)...))
		if target.IsConvicted() {
			t.Error("it is shown as convicted just now")
		}
	})
}

// Hasten probes a target that a burst has turned down a quarter of the fast interval after
// its last probe, for as long as that is recent. One pass is enough if the caller says so.
func TestHasten_ProbesTheConvicted(t *testing.T) {
	for _, tc := range []struct {
		rule     string
		onePass  bool
		ordinary bool
		results  string
		probes   []time.Duration // from 2.5 s on, until 3.9 s
		status   Status
	}{
		{"down", false, false, "F", seconds(2.75, 3, 3.25, 3.5, 3.75), Down},
		{"it takes as many passes as usual", false, false, "FP", seconds(2.75, 3, 3.25), Up},
		{"or one", true, false, "FP", seconds(2.75, 3), Up},
		{"not one that ordinary probes turned down", true, true, "F", nil, Down},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				set := settings()
				if tc.ordinary {
					set.Interval, set.FastInterval = 500*time.Millisecond, 500*time.Millisecond
				}
				target := NewTarget(set)
				s := newScript(pass)
				defer target.Attach(s.driver(), 0)()
				advance(1100 * time.Millisecond)
				s.set(fail)
				if !tc.ordinary {
					advance(900 * time.Millisecond)
					accuse(target)
					advance(510 * time.Millisecond)
				} else {
					advance(1410 * time.Millisecond) // at 1.5, 2 and 2.5 s
				}
				if target.Status() != Down || target.IsConvicted() == tc.ordinary {
					t.Fatalf("status %v, convicted %v", target.Status(), target.IsConvicted())
				}
				s.probes()
				s.set(results(target, tc.results))
				for range 140 {
					target.Hasten(tc.onePass)
					advance(10 * time.Millisecond)
				}
				wantProbes(t, s, tc.probes)
				if got := target.Status(); got != tc.status {
					t.Errorf("status %v, want %v", got, tc.status)
				}
			})
		})
	}
}

// That one pass is enough ends with the return: the next time it takes as many as usual.
func TestHasten_OnePassIsForOneReturn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		target := NewTarget(settings())
		s := newScript(pass)
		defer target.Attach(s.driver(), 0)()
		for range 2 {
			advance(2 * time.Second)
			s.set(fail)
			accuse(target)
			advance(600 * time.Millisecond)
			target.Hasten(true)
			s.set(pass)
			advance(300 * time.Millisecond)
			if target.Status() != Up {
				t.Fatal("one pass was not enough")
			}
		}
		advance(2 * time.Second)
		s.set(fail)
		accuse(target)
		advance(600 * time.Millisecond)
		s.set(pass)
		advance(300 * time.Millisecond)
		if target.Status() != Down {
			t.Error("one pass was enough, and nothing had asked for that")
		}
	})
}

// Within any second at most 200 probes begin before their turn, whatever asks for them and
// when. Accused targets wait for their turn in that, and others are left out.
func TestPacer_AtMost200InAnySecond(t *testing.T) {
	bubble(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		var p Pacer
		var began []time.Time
		admitted, refused := 0, 0
		for range 20_000 {
			now := time.Now()
			if random.IntN(2) == 0 {
				at := p.reserve(now, time.Time{})
				if at.Before(now) {
					t.Fatal("a probe is to begin in the past")
				}
				began = append(began, at)
			} else if p.try(now) {
				admitted++
				began = append(began, now)
			} else {
				refused++
			}
			switch random.IntN(200) {
			case 0:
				time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
			case 1, 2, 3:
				time.Sleep(time.Duration(random.IntN(30)) * time.Millisecond)
			}
		}
		if admitted == 0 || refused == 0 {
			t.Fatalf("%d admitted and %d refused: the test shows nothing", admitted, refused)
		}
		slices.SortFunc(began, time.Time.Compare)
		for i := range began[200:] {
			if began[i+200].Sub(began[i]) < time.Second {
				t.Fatalf("201 probes begin within %v", began[i+200].Sub(began[i]))
			}
		}
	})
}

// Of many accused targets each is probed, 200 a second, and none is left out.
func TestPacer_AllAccusedAreProbed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const n = 1000
		set := settings()
		set.Interval, set.FastInterval = time.Hour, time.Hour
		var all []*starts
		var targets []*Target
		for i := range n {
			target := NewTarget(set)
			target.Inherit(Up, false, time.Now())
			s := recordStarts(target, healthy(i), time.Hour)
			defer s.detach()
			all, targets = append(all, s), append(targets, target)
		}
		advance(2 * time.Second) // longer than what another test has left
		var ended atomic.Int64
		for _, target := range targets {
			target.Accuse(true, func(v Verdict) {
				if v == Acquitted {
					ended.Add(1)
				}
			})
		}
		advance(10 * time.Second)
		if got := ended.Load(); got != n {
			t.Errorf("%d of %d were acquitted within 10 s", got, n)
		}
		var began []time.Duration
		for _, s := range all {
			began = append(began, s.at...)
		}
		slices.Sort(began)
		for i := range began[200:] {
			if began[i+200]-began[i] < time.Second {
				t.Fatalf("201 probes begin within %v", began[i+200]-began[i])
			}
		}
		if last := began[len(began)-1] - began[0]; last > n*time.Second/180 {
			t.Errorf("they took %v, want 190 a second", last)
		}
	})
}

// So many targets are accused that the limit would delay their probes beyond the interval.
// Each is probed in its turn then, and turned down as soon as without an accusation.
func TestPacer_NoneIsLaterThanItsTurn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const n = 3000
		set := settings()
		var all []*starts
		var targets []*Target
		for i := range n {
			target := NewTarget(set)
			target.Inherit(Up, false, time.Now())
			s := recordStarts(target, Driver{Probe: func(context.Context, bool) (bool, error) { return false, errSick }}, 5*time.Second*time.Duration(i)/n)
			defer s.detach()
			all, targets = append(all, s), append(targets, target)
		}
		advance(0)
		for _, target := range targets {
			target.Accuse(true, func(Verdict) {})
		}
		advance(set.Interval + time.Duration(set.Fails-1)*set.FastInterval + time.Second)
		for i, target := range targets {
			if target.Status() != Down {
				t.Fatalf("target %d is %v, probed at %v", i, target.Status(), all[i].at)
			}
		}
	})
}

// Of many that are to be probed before their turn without an accusation, some are, and the
// others are probed when it is their turn.
func TestPacer_OthersAreLeftOut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const n = 100
		var all []*starts
		var targets []*Target
		for i := range n {
			target := NewTarget(settings())
			target.Inherit(Up, false, time.Now())
			s := recordStarts(target, healthy(i), 4*time.Second)
			defer s.detach()
			all, targets = append(all, s), append(targets, target)
		}
		advance(2 * time.Second)
		for _, target := range targets {
			target.ProbeNow()
		}
		advance(2500 * time.Millisecond)
		early := 0
		for i, s := range all {
			early += len(s.at) - 1
			if s.last() != 4*time.Second {
				t.Errorf("target %d: probes at %v, want one at 4s, when it is its turn", i, s.at)
			}
		}
		if early != paceBurst {
			t.Errorf("%d began before their turn, want %d", early, paceBurst)
		}
	})
}
