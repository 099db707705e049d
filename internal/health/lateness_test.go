// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// How late the beats are adds up. One that comes early, as the last look may,
// takes nothing back.
func TestLatenessAddsUp(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		rule  string
		looks []time.Duration // since the start, with a beat every 250 ms
		want  time.Duration
	}{
		{"on time", []time.Duration{250 * ms, 500 * ms, 750 * ms}, 0},
		{"before the first is due", []time.Duration{100 * ms}, 0},
		{"a little, all the time", []time.Duration{251 * ms, 502 * ms, 754 * ms}, 4 * ms},
		{"stopped once", []time.Duration{250 * ms, 2500 * ms, 2750 * ms}, 2000 * ms},
		{"stopped twice", []time.Duration{750 * ms, 1000 * ms, 1500 * ms}, 750 * ms},
		{"an early look takes nothing back", []time.Duration{350 * ms, 400 * ms, 600 * ms}, 100 * ms},
		{"two looks at once", []time.Duration{350 * ms, 350 * ms}, 100 * ms},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			start := time.Now()
			l := &lateness{step: 250 * ms, due: start.Add(250 * ms), on: true}
			for _, look := range tc.looks {
				l.add(start.Add(look))
			}
			if l.late != tc.want {
				t.Errorf("looks at %v: late by %v, want %v", tc.looks, l.late, tc.want)
			}
		})
	}
}

// dueAt returns when the next beat is due, since a moment.
func (l *lateness) dueAt(since time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.due.Sub(since)
}

// overdue makes it late, as being stopped does.
func (l *lateness) overdue(by time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.due = l.due.Add(-by)
}

// It beats as long as it is on, 8 times in a timeout, but not more often than
// every 10 ms, and virtual time is never late.
func TestBeats(t *testing.T) {
	for _, tc := range []struct{ timeout, step time.Duration }{
		{24 * time.Hour, 3 * time.Hour},
		{2 * time.Second, 250 * time.Millisecond},
		{80 * time.Millisecond, 10 * time.Millisecond},
		{79 * time.Millisecond, 10 * time.Millisecond},
		{time.Millisecond, 10 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			l := new(lateness)
			l.start(tc.timeout)
			for i := range time.Duration(20) {
				if got, want := l.dueAt(start), (i+1)*tc.step; got != want {
					t.Fatalf("timeout %v: after %d beats the next is due at %v, want %v", tc.timeout, i, got, want)
				}
				advance(tc.step)
			}
			if got := l.stop(); got != 0 {
				t.Errorf("timeout %v: late by %v on time", tc.timeout, got)
			}
		})
	}
}

// A beat that is overdue when the probe ends counts, though it never came: what
// stopped the process stopped the beat, too.
func TestTheLastBeatCanBeOverdue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(lateness)
		l.start(2 * time.Second)
		advance(1100 * time.Millisecond) // the next beat is due in 150 ms
		l.overdue(time.Second)
		if got, want := l.stop(), 850*time.Millisecond; got != want {
			t.Errorf("late by %v, want %v", got, want)
		}
	})
}

// What beats find late is kept until the end.
func TestLatenessIsKeptUntilTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(lateness)
		l.start(2 * time.Second)
		l.overdue(time.Second)
		advance(time.Second)
		if got, want := l.stop(), time.Second; got != want {
			t.Errorf("late by %v, want %v", got, want)
		}
	})
}

// Once it is stopped nothing is left to fire, and the next start begins at zero.
func TestLatenessIsUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(lateness)
		for i, tc := range []struct{ during, overdue, want time.Duration }{
			{time.Millisecond, 0, 0}, // a fast probe: no beat at all
			{time.Second, 3 * time.Second, 3 * time.Second},
			{0, 0, 0},
			{time.Second, 0, 0},
			{0, 750 * time.Millisecond, 500 * time.Millisecond}, // a beat's 250 ms early at first
			{2 * time.Second, time.Second, time.Second},
		} {
			start := time.Now()
			l.start(2 * time.Second)
			if got, want := l.dueAt(start), 250*time.Millisecond; got != want {
				t.Errorf("use %d: the first beat is due after %v, want %v", i, got, want)
			}
			l.overdue(tc.overdue)
			advance(tc.during)
			if got := l.stop(); got != tc.want {
				t.Errorf("use %d: late by %v, want %v", i, got, tc.want)
			}
			if l.timer.Stop() {
				t.Errorf("use %d: the timer was still to fire", i)
			}
			due := l.dueAt(start)
			l.beat() // one that was under way when it was stopped
			if got := l.dueAt(start); got != due || l.timer.Stop() {
				t.Errorf("use %d: a beat after the end goes on", i)
			}
			advance(10 * time.Second)
		}
	})
}

// A timeout while this process is late by more than a quarter of it counts for
// nothing: neither for the status nor as a result, and the next probe comes as if
// it had not been. All other results count: they say something of the other
// side, however late.
func TestALateTimeoutCountsForNothing(t *testing.T) {
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
		{"late, with no verdict yet", late, hung, Unknown, 0, false, Unknown, false, time.Second},
		{"late, in a streak", late, hung, Up, 1, false, Up, false, time.Second},
		{"late, in a burst", late, hung, Up, 0, true, Up, false, 250 * time.Millisecond},
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
				target := NewTarget(set)
				if tc.before != Unknown {
					target.Inherit(tc.before, false, time.Now())
				}
				target.state.fails, target.suspicion.burst = tc.fails, tc.burst
				state, suspicion := target.state, target.suspicion

				var clock *lateness
				var told []Result
				var warned []time.Duration
				var reported []Transition
				detach := attachByHand(target, Driver{
					Probe: func(ctx context.Context, _ bool) (bool, error) {
						clock.mu.Lock()
						clock.late += tc.by // the beats, as they would have found it
						clock.mu.Unlock()
						return tc.answer(ctx)
					},
					Probed: func(r Result) { told = append(told, r) },
					Late:   func(by time.Duration) { warned = append(warned, by) },
					Report: func(change Transition) { reported = append(reported, change) },
				})
				defer detach()
				clock = &target.loop.clock
				next := target.probeOnce(target.loop)

				if got := target.Status(); got != tc.want {
					t.Errorf("status %v, want %v", got, tc.want)
				}
				if next != tc.next {
					t.Errorf("the next comes after %v, want %v", next, tc.next)
				}
				if got := len(told) == 1; got != tc.counts || len(told) > 1 {
					t.Errorf("results %+v, want one: %v", told, tc.counts)
				}
				want := []time.Duration{tc.by}
				if tc.counts {
					want = nil
				}
				if !slices.Equal(warned, want) {
					t.Errorf("said to be late by %v, want %v", warned, want)
				}
				if !tc.counts && (target.state != state || target.suspicion != suspicion || len(reported) != 0) {
					t.Errorf("it went from %+v, %+v to %+v, %+v, and reported %+v; want no change",
						state, suspicion, target.state, target.suspicion, reported)
				}
			})
		})
	}
}

// Nor does it count where nobody wants to know of it.
func TestALateTimeoutIsNotAResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		defer attachByHand(target, Driver{
			Probe: func(ctx context.Context, _ bool) (bool, error) {
				target.loop.clock.overdue(time.Second)
				return false, hang(ctx)
			},
			Probed: func(r Result) { t.Errorf("told of %+v", r) },
			Report: func(change Transition) { t.Errorf("reported %+v", change) },
		})()
		if next := target.probeOnce(target.loop); next != time.Second {
			t.Errorf("the next comes after %v, want the fast interval", next)
		}
	})
}

// attachByHand makes d the driver of a target, whose probes the test begins.
func attachByHand(target *Target, d Driver) (detach func()) {
	target.drivers = append(target.drivers, &d)
	l := &loop{timer: time.NewTimer(time.Hour)}
	l.ctx, l.stop = context.WithCancel(context.Background())
	target.loop, target.ran = l, true
	return func() { target.detach(&d) }
}

// Timeouts on time are no lateness, one after the other: the clock of a target is
// used again for each.
func TestTimeoutsOnTimeCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		s := newScript(pass)
		d := s.driver()
		results := 0
		d.Probed = func(Result) { results++ }
		d.Late = func(by time.Duration) { t.Errorf("late by %v in virtual time", by) }
		defer target.Attach(d, 0)()
		advance(time.Second)
		s.set(hang)
		advance(10 * time.Second)             // to 11: begun at 5, 7 and 9
		wantProbes(t, s, seconds(0, 5, 7, 9)) // a timeout is longer than the fast interval
		if got := target.Status(); got != Down || results != 4 {
			t.Errorf("status %v after %d results, want down after 4", got, results)
		}
	})
}
