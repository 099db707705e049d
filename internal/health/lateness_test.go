// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// The latest heartbeat counts. Small delays do not add up, and a heartbeat that comes
// early does not reduce the lateness.
func TestHeartbeat_LatenessIsTheLargestDelay(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		rule  string
		beats []time.Duration // since the start, one is due every 250 ms
		end   time.Duration
		want  time.Duration
	}{
		{"on time", []time.Duration{250 * ms, 500 * ms, 750 * ms}, 900 * ms, 0},
		{"before the first is due", nil, 100 * ms, 0},
		{"a little, all the time", []time.Duration{251 * ms, 502 * ms, 754 * ms}, 800 * ms, 2 * ms},
		{"stopped once", []time.Duration{250 * ms, 2500 * ms, 2750 * ms}, 2760 * ms, 2000 * ms},
		{"stopped twice", []time.Duration{750 * ms, 1000 * ms, 1500 * ms}, 1510 * ms, 500 * ms},
		{"an early heartbeat reduces nothing", []time.Duration{350 * ms}, 400 * ms, 100 * ms},
		{"the last heartbeat is overdue, and never came", []time.Duration{250 * ms}, 1500 * ms, 1000 * ms},
		{"stopped from the first", nil, 2000 * ms, 1750 * ms},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			start := time.Now()
			h := newHeartbeat(start, 2*time.Second)
			for _, beat := range tc.beats {
				h.tick(start.Add(beat))
			}
			if got := h.lateness(start.Add(tc.end)); got != tc.want {
				t.Errorf("beats at %v: late by %v, want %v", tc.beats, got, tc.want)
			}
		})
	}
}

// overdue makes the next heartbeat late, as if the process was stopped. The mutex of the
// target must not be held.
func (t *Target) overdue(by time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := &t.schedule.attempt.heartbeat
	h.due = h.due.Add(-by)
}

// There are 8 heartbeats in a timeout, but no more than one every 10 ms, and one at the
// deadline, when the context ends. The last one is when the probe must have
// returned: a quarter of the timeout later, from 10 to 100 ms.
func TestHeartbeat_StepsAndDeadline(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		timeout time.Duration
		want    []time.Duration // from one to the next
	}{
		{24 * time.Hour, []time.Duration{3 * time.Hour, 3 * time.Hour}},
		{80 * ms, []time.Duration{10 * ms, 10 * ms, 10 * ms, 10 * ms, 10 * ms, 10 * ms, 10 * ms, 10 * ms, 20 * ms}},
		{400 * ms, []time.Duration{50 * ms, 50 * ms, 50 * ms, 50 * ms, 50 * ms, 50 * ms, 50 * ms, 50 * ms, 100 * ms}},
		{500 * ms, []time.Duration{62500 * time.Microsecond, 62500 * time.Microsecond}},
		{25 * ms, []time.Duration{10 * ms, 10 * ms, 5 * ms, 10 * ms}},
		{ms, []time.Duration{ms, 10 * ms}},
	} {
		synctest.Test(t, func(t *testing.T) {
			now := time.Now()
			end := now.Add(tc.timeout)
			a := newAttempt(nil, now, tc.timeout)
			defer a.cancel()
			h := &a.heartbeat
			if got := h.due.Sub(now); got != tc.want[0] {
				t.Errorf("timeout %v: the first heartbeat is due after %v, want %v", tc.timeout, got, tc.want[0])
			}
			for i, want := range tc.want[1:] {
				now = h.due
				advance(time.Until(now))
				if got := h.tick(now); got != want {
					t.Errorf("timeout %v: heartbeat %d is due after %v, want %v", tc.timeout, i+2, got, want)
				}
				var ended error
				if !now.Before(end) {
					ended = context.DeadlineExceeded
				}
				if got := a.ctx.Err(); !errors.Is(got, ended) || !errors.Is(context.Cause(a.ctx), ended) {
					t.Errorf("timeout %v, at %v: got %v, want %v", tc.timeout, now.Sub(end), got, ended)
				}
			}
			if got := h.lateness(now); got != 0 {
				t.Errorf("timeout %v: late by %v on time", tc.timeout, got)
			}
		})
	}
}

// The deadline of a probe ends its context, and one that is derived from it. A probe
// that is canceled was not too slow.
func TestAttempt_DeadlineEndsContext(t *testing.T) {
	for _, want := range []error{context.DeadlineExceeded, context.Canceled} {
		synctest.Test(t, func(t *testing.T) {
			now := time.Now()
			a := newAttempt(nil, now, time.Second)
			derived, cancel := context.WithCancel(a.ctx)
			defer cancel()
			if deadline, ok := derived.Deadline(); !ok || !deadline.Equal(now.Add(time.Second)) {
				t.Errorf("deadline %v, %v, want %v", deadline, ok, now.Add(time.Second))
			}
			if errors.Is(want, context.Canceled) {
				a.cancel()
			}
			advance(time.Second)
			<-derived.Done()
			if got := a.ctx.Err(); !errors.Is(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			if got := context.Cause(derived); !errors.Is(got, want) {
				t.Errorf("derived: got %v, want %v", got, want)
			}
		})
	}
}

// A timeout while this process is late by more than a quarter of it counts for
// nothing: neither for the status nor as a result, and the next probe comes as if
// it had not been made. All other results count, however late: they say something about
// the other side.
func TestLateTimeout_CountsForNothing(t *testing.T) {
	const late = 501 * time.Millisecond // of 2 seconds
	hung := func(ctx context.Context) (bool, error) { return false, hang(ctx) }
	for _, tc := range []struct {
		rule   string
		by     time.Duration
		answer func(ctx context.Context) (bool, error)
		before Status // settled
		fails  int    // and so many fails already
		burst  bool
		want   Status // and as it was before, unless it counts
		counts bool
		next   time.Duration
	}{
		{"on time", 0, hung, Up, 0, false, Down, true, 10 * time.Second},
		{"a quarter late", 500 * time.Millisecond, hung, Up, 0, false, Down, true, 10 * time.Second},
		{"more than a quarter late", late, hung, Up, 0, false, Up, false, 5 * time.Second},
		{"very late", time.Hour, hung, Up, 0, false, Up, false, 5 * time.Second},
		{"late, while down", late, hung, Down, 0, false, Down, false, 10 * time.Second},
		{"late, with no verdict yet", late, hung, Unknown, 0, false, Unknown, false, 2 * time.Second},
		{"late, in a streak", late, hung, Up, 1, false, Up, false, 2 * time.Second},
		{"late, in a burst", late, hung, Up, 0, true, Up, false, 2 * time.Second},
		{"a timeout of something the probe does", late, func(context.Context) (bool, error) {
			return false, fmt.Errorf("read: %w", os.ErrDeadlineExceeded)
		}, Up, 0, false, Up, false, 5 * time.Second},
		{"that timeout, on time", 0, func(context.Context) (bool, error) {
			return false, fmt.Errorf("read: %w", os.ErrDeadlineExceeded)
		}, Up, 0, false, Down, true, 10 * time.Second},
		{"a failure on time, noticed after the timeout", time.Hour, func(ctx context.Context) (bool, error) {
			<-ctx.Done()
			return false, errSick
		}, Up, 0, false, Up, false, 5 * time.Second},
		{"late, but refused", time.Hour, func(context.Context) (bool, error) { return false, errSick }, Up, 0, false, Down, true, 10 * time.Second},
		{"late, but passed", time.Hour, func(context.Context) (bool, error) { return false, nil }, Unknown, 0, false, Up, true, 5 * time.Second},
		{"late, and passed after the timeout", time.Hour, func(ctx context.Context) (bool, error) {
			<-ctx.Done()
			return false, nil
		}, Unknown, 0, false, Up, true, 5 * time.Second},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				set := settings()
				set.Fails = tc.fails + 1 // it takes one more
				if tc.burst {
					set.Fails++ // as many results that count for nothing end a burst
				}
				target := NewTarget(set)
				if tc.before != Unknown {
					target.Inherit(tc.before, false, time.Now())
				}
				target.state.fails = tc.fails
				if tc.burst {
					target.burst.add(accusation{at: time.Now(), done: func(Verdict) {}})
				}
				state := target.state

				var results []Result
				var warned []InconclusiveError
				var reported []Transition
				detach := attachByHand(target, Driver{
					Probe: func(ctx context.Context, _ bool) (bool, error) {
						target.mu.Lock()
						target.schedule.attempt.heartbeat.late = tc.by // as heartbeats would have found it
						target.mu.Unlock()
						return tc.answer(ctx)
					},
					Probed:       func(r Result) { results = append(results, r) },
					Inconclusive: func(why *InconclusiveError) { warned = append(warned, *why) },
					Report:       func(change Transition) { reported = append(reported, change) },
				})
				defer detach()
				began := time.Now()
				next := target.probeByHand().Sub(began)

				if got := target.Status(); got != tc.want {
					t.Errorf("status %v, want %v", got, tc.want)
				}
				if next != tc.next {
					t.Errorf("the next comes after %v, want %v", next, tc.next)
				}
				if got := len(results) == 1; got != tc.counts || len(results) > 1 {
					t.Errorf("results %+v, want one: %v", results, tc.counts)
				}
				if got := len(warned) == 1; got == tc.counts || len(warned) > 1 || got && (warned[0].Late != tc.by || warned[0].Reason == "" || warned[0].Shortage != "") {
					t.Errorf("reported as inconclusive by %+v, want it late by %v, once: %v", warned, tc.by, !tc.counts)
				}
				if !tc.counts && (target.state != state || target.burst.active() != tc.burst || len(reported) != 0) {
					t.Errorf("it went from %+v to %+v, burst %v, and reported %+v; want no change",
						state, target.state, target.burst.active(), reported)
				}
			})
		})
	}
}

// A late timeout counts for nothing also without a function to report it to.
func TestLateTimeout_NeedsNoReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		defer attachByHand(target, Driver{
			Probe: func(ctx context.Context, _ bool) (bool, error) {
				target.overdue(time.Second)
				return false, hang(ctx)
			},
			Probed: func(r Result) { t.Errorf("result %+v", r) },
			Report: func(change Transition) { t.Errorf("reported %+v", change) },
		})()
		began := time.Now()
		if next := target.probeByHand().Sub(began); next != 2*time.Second {
			t.Errorf("the next comes after %v, want at once: the timeout is longer than the fast interval", next)
		}
	})
}

// attachByHand makes d the driver of a target. The test begins its probes.
func attachByHand(target *Target, d Driver) (detach func()) {
	target.drivers = append(target.drivers, &d)
	l := &schedule{}
	l.timer = time.AfterFunc(time.Hour, func() { // for heartbeats and Check: no other probe begins by itself
		target.mu.Lock()
		asked := len(target.waiters) > 0
		if a := l.attempt; a != nil {
			l.timer.Reset(max(a.heartbeat.tick(time.Now()), time.Millisecond))
			asked = false
		}
		target.mu.Unlock()
		if asked {
			target.fire(l)
		}
	})
	target.schedule, target.start = l, started
	slots.count(target.settings.Interval, 1)
	return func() { target.detach(&d) }
}

// probeByHand makes a probe and returns when the next one is due.
func (t *Target) probeByHand() time.Time {
	t.schedule.due = time.Now()
	t.fire(t.schedule)
	return t.schedule.due
}

// An interval counts from when the probe was due, if it began on time. If it began later,
// the interval counts from then.
func TestInterval_CountsFromWhenDue(t *testing.T) {
	for _, tc := range []struct{ fast, late, want time.Duration }{
		{time.Second, 0, 5 * time.Second},
		{time.Second, onTime, 5*time.Second - onTime},
		{time.Second, onTime + 1, 5 * time.Second},
		{time.Second, time.Minute, 5 * time.Second},
		{minSlots * time.Millisecond, time.Millisecond, 5*time.Second - time.Millisecond},
		{minSlots * time.Millisecond, onTime, 5 * time.Second}, // a short interval would lose too much
	} {
		synctest.Test(t, func(t *testing.T) {
			set := settings()
			set.FastInterval = tc.fast
			target := NewTarget(set)
			target.Inherit(Up, false, time.Now())
			detach := attachByHand(target, Driver{Probe: func(context.Context, bool) (bool, error) { return false, nil }})
			defer detach()
			l := target.schedule
			l.due = time.Now().Add(-tc.late)
			target.fire(l)
			if got := time.Until(l.due); got != tc.want {
				t.Errorf("fast interval %v, %v late: the next comes after %v, want %v", tc.fast, tc.late, got, tc.want)
			}
		})
	}
}
