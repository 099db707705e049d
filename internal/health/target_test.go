// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// script is a driver whose probes return what the test sets. It records
// when they began and what was reported. Time is that of a synctest bubble.
type script struct {
	mu      sync.Mutex
	began   time.Time
	started []time.Duration
	reports []Transition
	answer  func(ctx context.Context) error
}

func newScript(answer func(ctx context.Context) error) *script {
	return &script{began: time.Now(), answer: answer}
}

func (s *script) driver() Driver {
	return Driver{
		Probe: func(ctx context.Context, _ bool) (bool, error) {
			s.mu.Lock()
			s.started = append(s.started, time.Since(s.began))
			answer := s.answer
			s.mu.Unlock()
			return false, answer(ctx)
		},
		Report: func(change Transition) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.reports = append(s.reports, change)
		},
	}
}

func (s *script) set(answer func(ctx context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// probes returns when probes began, and clears the list.
func (s *script) probes() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	started := s.started
	s.started = nil
	return started
}

func (s *script) transitions() []Transition {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.reports)
}

var errSick = errors.New("sick")

func pass(context.Context) error { return nil }

func fail(context.Context) error { return errSick }

// hang is a probe that gets no answer.
func hang(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// advance lets virtual time pass, until everything that is due has happened.
func advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func seconds(s ...float64) []time.Duration {
	var d []time.Duration
	for _, v := range s {
		d = append(d, time.Duration(v*float64(time.Second)))
	}
	return d
}

func wantProbes(t *testing.T, s *script, want []time.Duration) {
	t.Helper()
	if got := s.probes(); !slices.Equal(got, want) {
		t.Errorf("probes began at %v, want %v", got, want)
	}
}

// The whole life of a target: the intervals follow the state, and each flip is
// reported once.
func TestProbes_FollowTheState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		s := newScript(pass)
		flips := 0
		defer target.Subscribe(func() { flips++ })()
		detach := target.Attach(s.driver(), 250*time.Millisecond)
		defer detach()

		advance(11 * time.Second)
		wantProbes(t, s, seconds(0.25, 5.25, 10.25)) // up and settled
		s.set(fail)
		advance(7 * time.Second)
		wantProbes(t, s, seconds(15.25, 16.25, 17.25)) // a streak is quick
		if got := target.Status(); got != Down {
			t.Fatalf("status %v after three fails, want down", got)
		}
		advance(20 * time.Second)
		wantProbes(t, s, seconds(27.25, 37.25)) // down and settled
		s.set(pass)
		advance(20 * time.Second)
		wantProbes(t, s, seconds(47.25, 48.25, 53.25))

		want := []Transition{
			{From: Unknown, To: Up},
			{From: Up, To: Down, Reason: "sick", Lasted: 17 * time.Second},
			{From: Down, To: Up, Lasted: 31 * time.Second},
		}
		if got := s.transitions(); !slices.Equal(got, want) {
			t.Errorf("reported %+v, want %+v", got, want)
		}
		if flips != len(want) {
			t.Errorf("subscribers were called %d times, want once a flip: %d", flips, len(want))
		}
	})
}

// At a reload, the new driver is attached before the old one is detached. No
// probe is lost, repeated or early, and a probe in flight counts.
func TestDriver_NewestIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		older, newer := newScript(pass), newScript(fail)
		detachOlder := target.Attach(older.driver(), 0)
		advance(time.Second)

		detachNewer := target.Attach(newer.driver(), 0)
		detachOlder()
		advance(4500 * time.Millisecond)
		wantProbes(t, older, seconds(0))
		wantProbes(t, newer, seconds(5))

		// the next begins under the newer, and ends under the newest
		newer.set(hang)
		advance(time.Second)
		newest := newScript(fail)
		defer target.Attach(newest.driver(), 0)()
		detachNewer()
		advance(2 * time.Second)
		wantProbes(t, newer, seconds(6))
		want := []Transition{{From: Up, To: Down, Reason: "sick", Lasted: 8 * time.Second}}
		if got := newest.transitions(); !slices.Equal(got, want) {
			t.Errorf("reported %+v, want %+v: the probe in flight is the second of three fails", got, want)
		}
	})
}

// When a config fails to start, its driver is attached and detached again. The
// one before goes on, and a probe that was canceled counts for nothing.
func TestDriver_DetachedNewestChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := settings()
		set.Fails = 1
		target := NewTarget(set)
		s, failed := newScript(pass), newScript(hang)
		defer target.Attach(s.driver(), 0)()
		advance(time.Second)
		detach := target.Attach(failed.driver(), 0)
		advance(4500 * time.Millisecond)
		wantProbes(t, failed, seconds(5))
		detach()
		synctest.Wait()
		if got := target.Status(); got != Up {
			t.Errorf("status %v, want up as before", got)
		}
		wantProbes(t, s, seconds(0, 5.5)) // its own probe, at once
		if got := failed.transitions(); len(got) != 0 {
			t.Errorf("reported %+v to a driver that left", got)
		}
	})
}

// The probe of a bound driver ends with it, even if another driver has replaced it.
func TestDriver_BoundProbeEndsWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := settings()
		set.Fails = 1
		target := NewTarget(set)
		older, newer := newScript(hang), newScript(pass)
		bound := older.driver()
		bound.Bound = true
		detachOlder := target.Attach(bound, 0)
		advance(time.Second)
		defer target.Attach(newer.driver(), 0)()
		detachOlder()
		advance(time.Second / 2)
		wantProbes(t, newer, seconds(1)) // at once, because the canceled probe had no result
		want := []Transition{{From: Unknown, To: Up}}
		if got := newer.transitions(); !slices.Equal(got, want) {
			t.Errorf("reported %+v, want %+v", got, want)
		}
	})
}

// Every result that counts is reported, with its time, reason and duration.
func TestDriver_IsToldEveryResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target, began := NewTarget(settings()), time.Now()
		s := newScript(hang)
		d := s.driver()
		var got []Result
		d.Probed = func(r Result) { got = append(got, r) }
		detach := target.Attach(d, 0)
		advance(time.Second)
		s.set(pass)
		advance(2500 * time.Millisecond)
		detach()
		want := []Result{{At: began, Reason: "no verdict within 2s: context deadline exceeded", Took: 2 * time.Second}, {At: began.Add(2 * time.Second)}}
		if !slices.Equal(got[:2], want) {
			t.Errorf("told %+v, want %+v first", got, want)
		}
	})
}

// A probe that is canceled by the last detach counts for nothing, and no goroutine
// is left (synctest panics on those).
func TestDetach_WaitsForTheProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		ended := false
		s := newScript(func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(100 * time.Millisecond) // it returns late
			ended = true
			return ctx.Err()
		})
		detach := target.Attach(s.driver(), 0)
		advance(time.Second)
		detach()
		if !ended {
			t.Error("detach returned before the probe did")
		}
		if target.Running() {
			t.Error("running with nothing attached")
		}
		advance(time.Minute)
		wantProbes(t, s, seconds(0))
		if got := target.Status(); got != Unknown {
			t.Errorf("status %v, want unknown: the probe was cut off", got)
		}

		// and a driver can be attached again
		s.set(pass)
		defer target.Attach(s.driver(), time.Second)()
		advance(2 * time.Second)
		if got := target.Status(); got != Up {
			t.Errorf("status %v after another driver came, want up", got)
		}
	})
}

// The newest driver is used from the next probe on, in whatever order others are detached.
func TestDetach_InAnyOrder(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}, {1, 2, 0}, {0, 2, 1}, {2, 0, 1}} {
		synctest.Test(t, func(t *testing.T) {
			target := NewTarget(settings())
			var detach []func()
			for range 3 {
				detach = append(detach, target.Attach(newScript(pass).driver(), 0))
			}
			for i, which := range order {
				advance(time.Second)
				if !target.Running() {
					t.Errorf("order %v: stopped after %d of 3 left", order, i)
				}
				detach[which]()
			}
			if target.Running() {
				t.Errorf("order %v: runs on with nothing attached", order)
			}
		})
	}
}

// A probe may be third-party code: a panic is a failed probe.
func TestProbe_PanicIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		s := newScript(func(context.Context) error { panic("index out of range") })
		defer target.Attach(s.driver(), 0)()
		advance(time.Millisecond)
		got := s.transitions()
		if len(got) != 1 || got[0].To != Down || got[0].Reason != "the probe panicked: index out of range" {
			t.Errorf("reported %+v, want down with the panic as the reason", got)
		}
	})
}

// A reason may hold what a hostile upstream answered: it is bounded, one line,
// and valid text.
func TestReason_IsBoundedAndPrintable(t *testing.T) {
	a := newAttempt(nil, time.Now(), time.Minute)
	defer a.cancel()
	for _, tc := range []struct{ text, want string }{
		{"connection refused", "connection refused"},
		{"two\nlines\x00and\x1b[31m\u009b31m colour", "two?lines?and?[31m?31m colour"},
		{"broken \xff\xfe bytes", "broken ?? bytes"},
		{"right\u202eto\u2066left\u2069\u200f", "right?to?left??"},
		{"zero\u200bwidth\u200d\ufeff\u00ad", "zero?width???"},
		{"lines\u2028and\u2029paragraphs\u0085", "lines?and?paragraphs?"},
		{"no\u00a0break, \ue000private, \U000e0041tag", "no?break, ?private, ?tag"},
		{"café 健康 ✓ 🙂", "café 健康 ✓ 🙂"},
		{strings.Repeat("é", 200), strings.Repeat("é", maxReason/2) + "…"},
		{"x" + strings.Repeat("é", 200), "x" + strings.Repeat("é", (maxReason-1)/2) + "…"},
	} {
		if got := a.reason(errors.New(tc.text)); got != tc.want {
			t.Errorf("reason of %q is %q, want %q", tc.text, got, tc.want)
		}
	}
}

// Status and Attach may be called from anywhere at any time.
func TestTarget_ConcurrentUse(t *testing.T) {
	set := settings()
	set.Interval, set.FastInterval, set.DownInterval = time.Millisecond, time.Millisecond, time.Millisecond
	target := NewTarget(set)
	n := 0 // only ever changed by the target's goroutine
	flaky := func(context.Context, bool) (bool, error) {
		if n++; n%2 == 0 {
			return false, errSick
		}
		return false, nil
	}
	keep := target.Attach(Driver{Probe: flaky}, 0)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				cancel := target.Subscribe(func() { target.Status() })
				detach := target.Attach(Driver{Probe: flaky, Report: func(Transition) {}}, 0)
				target.Status()
				detach()
				cancel()
			}
		})
	}
	wg.Wait()
	keep()
	if target.Running() || len(target.subscribers) != 0 {
		t.Error("something is left")
	}
}

// The last driver that is detached cancels the probe in flight, also one of an earlier
// driver, which goes on only if a successor is attached.
func TestDetach_LastDriverCancelsProbeOfAnEarlierOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		s := newScript(hang)
		first := target.Attach(s.driver(), 0)
		advance(100 * time.Millisecond)
		second := target.Attach(s.driver(), 0)
		first()
		began := time.Now()
		second()
		if took := time.Since(began); took != 0 {
			t.Errorf("the last driver left after %v, want at once", took)
		}
	})
}
