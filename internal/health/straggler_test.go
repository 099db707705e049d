// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// unresponsive is a prober that ignores the end of its context.
type unresponsive struct {
	takes           time.Duration
	now, most, made atomic.Int32
}

func (d *unresponsive) probe(context.Context) error {
	d.made.Add(1)
	now := d.now.Add(1)
	d.most.Store(max(d.most.Load(), now))
	time.Sleep(d.takes)
	d.now.Add(-1)
	return nil
}

// A probe that goes on after its timeout has failed by then, and the schedule goes on:
// further probes are not made, and fail, until it has returned.
func TestStraggler_DelaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target, began := NewTarget(settings()), time.Now()
		s := newScript(pass)
		d := s.driver()
		type result struct {
			at     time.Duration
			reason string
		}
		var got []result
		d.Probed = func(r Result) { got = append(got, result{time.Since(began), r.Reason}) }
		d.Inconclusive = func(why *InconclusiveError) { t.Error(why) }
		defer target.Attach(d, 0)()
		advance(time.Second)
		straggler := &unresponsive{takes: 10 * time.Second}
		s.set(straggler.probe) // from 5 s to 15 s
		advance(5 * time.Second)
		s.set(pass)
		advance(22 * time.Second)
		const ms = time.Millisecond
		want := []result{
			{0, ""},
			{7100 * ms, "no verdict within 2s: the probe did not end"},
			{8100 * ms, errStillRunning.Error()},
			{9100 * ms, errStillRunning.Error()},
			{19100 * ms, ""}, // a down interval later, and it has ended
			{20100 * ms, ""},
			{25100 * ms, ""},
		}
		if !slices.Equal(got, want) {
			t.Errorf("results\n%v, want\n%v", got, want)
		}
		wantProbes(t, s, seconds(0, 5, 19.1, 20.1, 25.1))
		changes := s.transitions()
		if len(changes) != 3 || changes[1].To != Down || changes[1].Lasted != 9100*ms || changes[2].To != Up {
			t.Errorf("reported %+v", changes)
		}
	})
}

// At most one probe of a target runs, however long that takes, and also in a burst.
func TestStraggler_NoOtherProbeRunsBesideIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		straggler := &unresponsive{takes: time.Minute}
		s := newScript(straggler.probe)
		target.Inherit(Up, false, time.Now())
		defer target.Attach(s.driver(), 0)()
		for range 100 {
			advance(time.Second)
			accuse(target)
			target.ProbeNow()
			if _, err := target.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			if now := int(straggler.made.Load()); now > 2 {
				t.Fatalf("%d probes after 100 seconds, of a minute each", now)
			}
		}
		if straggler.most.Load() != 1 {
			t.Errorf("%d at once", straggler.most.Load())
		}
		s.set(pass)
		advance(time.Minute)
	})
}

// Check reports a straggler, and does not wait for it.
func TestStraggler_AnswersACheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		s := newScript((&unresponsive{takes: time.Minute}).probe)
		defer target.Attach(s.driver(), 0)()
		advance(2500 * time.Millisecond)
		asked := time.Now()
		result, err := target.Check(t.Context())
		if err != nil || result.Reason != errStillRunning.Error() || time.Since(asked) != 0 {
			t.Errorf("got %+v, %v after %v", result, err, time.Since(asked))
		}
		s.set(pass)
		advance(time.Minute)
	})
}

// Detach waits a second at most for a probe that goes on, whether it was given up
// before or is canceled by then. Its result is dropped, and so is a panic.
func TestStraggler_DetachWaitsASecondAtMost(t *testing.T) {
	for _, after := range []time.Duration{time.Second, 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			target := NewTarget(settings())
			straggler := &unresponsive{takes: 10 * time.Second}
			s := newScript(func(ctx context.Context) error {
				straggler.probe(ctx)
				panic("late")
			})
			d, ended := s.driver(), false
			report := d.Report
			d.Report = func(change Transition) {
				if ended {
					t.Errorf("after the end: reported %+v", change)
				}
				report(change)
			}
			d.Probed = func(r Result) {
				if ended {
					t.Errorf("after the end: result %+v", r)
				}
			}
			detach := target.Attach(d, 0)
			advance(after)
			asked := make(chan error, 1)
			if after < 2*time.Second { // else there is an answer at once
				go func() {
					_, err := target.Check(t.Context())
					asked <- err
				}()
				synctest.Wait()
			} else {
				asked <- ErrEnded
			}
			before := target.View()
			began := time.Now()
			detach()
			ended = true
			if took := time.Since(began); took != maxDetach {
				t.Errorf("%v after the start: the end took %v, want %v", after, took, maxDetach)
			}
			if err := <-asked; !errors.Is(err, ErrEnded) {
				t.Errorf("a check got %v, want %v", err, ErrEnded)
			}
			advance(time.Minute)
			if got := target.View(); got.Status != before.Status || got.Last != before.Last || straggler.now.Load() != 0 {
				t.Errorf("after the end: %+v, want as before: %+v", got, before)
			}
		})
	}
}

// Detach ends when the probe does.
func TestStraggler_DetachWaitsNoLongerThanNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		s := newScript((&unresponsive{takes: 3 * time.Second}).probe)
		detach := target.Attach(s.driver(), 0)
		advance(2500 * time.Millisecond)
		began := time.Now()
		detach()
		if took := time.Since(began); took != 500*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}

// A probe that is canceled before its deadline is no failure until then: the next one
// waits for it, and begins when it returns.
func TestStraggler_CutOffEarlyFailsNothing(t *testing.T) {
	for _, tc := range []struct {
		takes  time.Duration
		begins []time.Duration
		want   Status
	}{
		{1500 * time.Millisecond, seconds(1.5), Up},
		{10 * time.Second, seconds(10.1), Down}, // it has failed at its timeout, and then each fast interval
	} {
		synctest.Test(t, func(t *testing.T) {
			set := settings()
			set.FastInterval = 900 * time.Millisecond
			target := NewTarget(set)
			older, newer := newScript((&unresponsive{takes: tc.takes}).probe), newScript(pass)
			const first = time.Millisecond // when the first probe begins: not before both are attached
			stay := target.Attach(newer.driver(), first)
			defer stay()
			leave := target.Attach(older.driver(), 0)
			advance(500 * time.Millisecond)
			leave() // the newest, as of a config that fails to start
			advance(1450 * time.Millisecond)
			if len(newer.transitions()) != 0 && tc.want == Down {
				t.Errorf("before its timeout: %+v", newer.transitions())
			}
			advance(100 * time.Millisecond) // to 2.05 s
			if got := target.Status(); got != tc.want {
				t.Errorf("takes %v: status %v, want %v", tc.takes, got, tc.want)
			}
			advance(8100 * time.Millisecond)
			if got := newer.probes(); len(got) == 0 || got[0] != tc.begins[0]+first {
				t.Errorf("takes %v: probes began at %v, want the first a millisecond after %v", tc.takes, got, tc.begins)
			}
		})
	}
}

// While this process is late, a probe that is not made says nothing.
func TestStraggler_ALateProbeThatIsNotMadeCountsForNothing(t *testing.T) {
	for _, tc := range []struct {
		late time.Duration
		want int32
	}{{500 * time.Millisecond, 0}, {501 * time.Millisecond, 1}} {
		synctest.Test(t, func(t *testing.T) {
			target := NewTarget(settings())
			s := newScript((&unresponsive{takes: 4 * time.Second}).probe)
			d := s.driver()
			var inconclusive atomic.Int32
			d.Inconclusive = func(why *InconclusiveError) {
				if inconclusive.Add(1); why.Late != tc.late {
					t.Errorf("late by %v, want %v", why.Late, tc.late)
				}
			}
			defer target.Attach(d, 0)()
			advance(2500 * time.Millisecond)
			target.mu.Lock()
			l := target.schedule
			l.due = time.Now().Add(-tc.late)
			target.mu.Unlock()
			s.set(pass)
			target.fire(l)
			if got := inconclusive.Load(); got != tc.want {
				t.Errorf("late by %v: %d results count for nothing, want %d", tc.late, got, tc.want)
			}
			advance(2 * time.Second)
		})
	}
}

// The methods of an error are third-party code, too.
func TestProbe_ErrorThatPanicsIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		s := newScript(func(context.Context) error { return (*InconclusiveError)(nil) })
		defer target.Attach(s.driver(), 0)()
		advance(time.Millisecond)
		if got := s.transitions(); len(got) != 1 || got[0].To != Down || got[0].Reason == "" {
			t.Errorf("reported %+v, want down with a reason", got)
		}
	})
}

// Check does not wait for its own probe when the last driver is detached.
func TestStraggler_ACheckEndsWithTheConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		s := newScript((&unresponsive{takes: 10 * time.Second}).probe)
		detach := target.Attach(s.driver(), time.Hour)
		asked := make(chan error, 1)
		go func() {
			_, err := target.Check(t.Context())
			asked <- err
		}()
		advance(time.Second)
		detach()
		synctest.Wait()
		select {
		case err := <-asked:
			if !errors.Is(err, ErrEnded) {
				t.Errorf("got %v, want %v", err, ErrEnded)
			}
		default:
			t.Error("it waits on")
		}
		advance(time.Minute)
	})
}
