// SPDX-License-Identifier: Apache-2.0

package health

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// stopProcess makes the probes of the targets overdue, as if the process had been stopped
// and continued.
func stopProcess(targets []*Target, by time.Duration) {
	for _, t := range targets {
		t.mu.Lock()
		t.schedule.due = t.schedule.due.Add(-by)
		t.schedule.timer.Reset(time.Until(t.schedule.due))
		t.mu.Unlock()
	}
}

// After a stop of the process, the overdue probes of many targets are spread again, and
// each comes within an interval and the jitter. The probes of few targets begin at once, and
// so do those of targets of unknown status, and of accused ones as far as the limit allows.
func TestStoppedProcess_SpreadsOverdueProbes(t *testing.T) {
	for _, tc := range []struct {
		n      int
		stop   time.Duration
		jitter float64
		set    func(target *Target)
		atOnce int // of them
	}{
		{200, 200 * time.Millisecond, 0.1, nil, 0},
		{200, time.Second, 0.1, nil, 0},
		{200, 3 * time.Second, 0.1, nil, 0},
		{1000, 3 * time.Second, 0.1, nil, 0},
		{200, time.Hour, 0.1, nil, 0},
		{200, time.Hour, 0, nil, 0},
		{99, time.Hour, 0.1, nil, 99},
		{200, time.Hour, 0.1, accuse, paceBurst}, // and the others as soon as not too many begin before their turn
		{200, time.Hour, 0.1, func(target *Target) { target.state = state{} }, 200},
	} {
		t.Run(fmt.Sprintf("%d targets, %v, jitter %v", tc.n, tc.stop, tc.jitter), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				set := settings()
				set.Jitter = tc.jitter
				var all []*starts
				var targets []*Target
				for i := range tc.n {
					target := NewTarget(set)
					targets = append(targets, target)
					all = append(all, recordStarts(target, healthy(i), set.Interval*time.Duration(i)/time.Duration(tc.n)))
				}
				advance(30 * time.Second)
				if tc.set != nil {
					for _, target := range targets {
						target.mu.Lock()
						raise := target.state.status == Up
						target.mu.Unlock()
						if raise {
							tc.set(target)
						}
					}
				}
				stopped := all[0].now()
				stopProcess(targets, tc.stop)
				advance(0)
				atOnce := 0
				for _, s := range all {
					if s.last() == stopped {
						atOnce++
					}
				}
				if tc.atOnce == 0 && atOnce > tc.n*15/100 || tc.atOnce > 0 && atOnce != tc.atOnce {
					t.Errorf("%d begin at once, want %d", atOnce, tc.atOnce)
				}
				advance(time.Minute)
				for i, s := range all {
					s.detach()
					for _, at := range s.at {
						if at >= stopped {
							if tc.atOnce == 0 && at > stopped+set.Interval*11/10 {
								t.Errorf("target %d was probed %v after the stop", i, at-stopped)
							}
							break
						}
					}
				}
				if tc.atOnce > 0 {
					return
				}
				if got := crowd(all, set.Interval/20, stopped, stopped+time.Minute); got > tc.n*15/100 {
					t.Errorf("%d of %d probes begin within 5 %% of the interval", got, tc.n)
				}
			})
		})
	}
}

// A process that is always late puts off a probe once, and then makes it.
func TestStoppedProcess_PutsOffAProbeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := settings()
		set.Jitter = 0.1
		all, targets := []*starts(nil), []*Target(nil)
		for i := range manyTargets {
			target := NewTarget(set)
			target.Inherit(Up, false, time.Now())
			targets = append(targets, target)
			s := recordStarts(target, healthy(i), time.Second)
			defer s.detach()
			all = append(all, s)
		}
		for range 2 {
			stopProcess(targets, time.Minute)
			advance(0)
		}
		for i, s := range all {
			if len(s.at) != 1 {
				t.Fatalf("target %d began %d probes, want 1", i, len(s.at))
			}
		}
	})
}
