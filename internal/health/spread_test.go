// SPDX-License-Identifier: Apache-2.0

package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// starts is when the probes of one target began, counted from when it was created.
type starts struct {
	began  time.Time
	mu     sync.Mutex
	at     []time.Duration // may be read without the mutex after it is detached
	detach func()
}

// now is the time in which the starts are.
func (s *starts) now() time.Duration { return time.Since(s.began) }

// last returns the last one.
func (s *starts) last() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at[len(s.at)-1]
}

// recordStarts attaches a driver, and records when its probes begin.
func recordStarts(target *Target, d Driver, delay ...time.Duration) *starts {
	r, ask := &starts{began: time.Now()}, d.Probe
	d.Probe = func(ctx context.Context, fresh bool) (bool, error) {
		r.mu.Lock()
		r.at = append(r.at, r.now())
		r.mu.Unlock()
		return ask(ctx, fresh)
	}
	r.detach = target.Attach(d, append(delay, 0)[0])
	return r
}

// paced attaches a driver to each of n new targets, the first probes a millisecond
// apart or spread over the interval, as at the start of a config, and ends them after a
// time.
func paced(n int, set Settings, during time.Duration, driver func(i int) Driver) (all []*starts, targets []*Target) {
	for i := range n {
		target := NewTarget(set)
		targets = append(targets, target)
		all = append(all, recordStarts(target, driver(i), min(time.Duration(n)*time.Millisecond, set.Interval)*time.Duration(i)/time.Duration(n)))
	}
	advance(during)
	for _, s := range all {
		s.detach()
	}
	return all, targets
}

func healthy(int) Driver {
	return Driver{Probe: func(context.Context, bool) (bool, error) { return false, nil }}
}

// crowd is the largest number of probes, of all targets, that begin within any
// window of the given length between two moments.
func crowd(all []*starts, window, from, to time.Duration) (most int) {
	var at []time.Duration
	for _, s := range all {
		at = append(at, s.at...)
	}
	slices.Sort(at)
	at = slices.DeleteFunc(at, func(d time.Duration) bool { return d < from || d >= to })
	first := 0
	for i, d := range at {
		for d-at[first] >= window {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// The probes of targets that start together spread: from the second interval on,
// no 5 % of an interval has more than 15 % of 100 or more of them.
func TestArrival_IsEvenFromTheSecondIntervalOn(t *testing.T) {
	for _, interval := range []time.Duration{time.Second, 1610 * time.Millisecond, time.Second + 3, 5 * time.Second, time.Minute} {
		for _, n := range []int{100, 200, 1000} {
			for _, answers := range []struct {
				rule   string
				driver func(int) Driver
			}{{"up", healthy}, {"never up", answering(false, errSick)}} {
				t.Run(fmt.Sprintf("%v, %d targets, %s", interval, n, answers.rule), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						set := settings()
						set.Interval, set.FastInterval, set.DownInterval, set.Jitter = interval, interval, interval, 0.1
						all, _ := paced(n, set, 40*interval, answers.driver)
						got := crowd(all, interval/20, interval, 40*interval)
						if got > n*15/100 {
							t.Errorf("%d of %d probes begin within 5 %% of the interval", got, n)
						}
						t.Logf("densest 5 %%: %.1f %%", 100*float64(got)/float64(n))
						wantFirstGaps(t, all, interval)
					})
				})
			}
		}
	}
}

// wantFirstGaps checks the time between two probes: never shorter than the interval, and
// longer than that and the jitter once only, by half of it at most.
func wantFirstGaps(t *testing.T, all []*starts, interval time.Duration) {
	t.Helper()
	for i, s := range all {
		most := interval*16/10 + 1
		for k := range s.at[1:] {
			if gap := s.at[k+1] - s.at[k]; gap < interval || gap > most {
				t.Fatalf("target %d: probe %d came after %v, want %v to %v", i, k+1, gap, interval, most)
			}
			most = interval * 11 / 10
		}
	}
}

// Fewer targets are probed within the jitter also in the first interval. So are many
// targets after their first interval.
func TestArrival_OnlyTheFirstIntervalOfACrowdIsLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := settings()
		set.Jitter = 0.1
		all, _ := paced(manyTargets-1, set, time.Minute, healthy)
		wantGaps(t, all, 5*time.Second, 5500*time.Millisecond)
	})
}

// A slot is given back when no probe is to begin at it any more.
func TestSlots_AreGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := settings()
		set.Jitter = 0.1
		var targets []*Target
		var detach []func()
		for i := range 50 {
			target := NewTarget(set)
			s := newScript(func(context.Context) error {
				time.Sleep(time.Duration(i) * 10 * time.Millisecond)
				if i%3 == 0 {
					return errSick
				}
				return nil
			})
			targets = append(targets, target)
			detach = append(detach, target.Attach(s.driver(), 0))
		}
		for range 200 {
			advance(137 * time.Millisecond)
			target := targets[rand.IntN(len(targets))]
			switch rand.IntN(4) {
			case 0:
				accuse(target)
			case 1:
				target.ProbeNow()
			case 2:
				target.Pause(true)
				defer target.Pause(false)
			case 3:
				target.Pause(false)
			}
			taken := 0
			slots.mu.Lock()
			for _, n := range slots.taken {
				taken += n
			}
			slots.mu.Unlock()
			if taken > len(targets) {
				t.Fatalf("%d targets have %d slots", len(targets), taken)
			}
		}
		for _, f := range detach {
			f()
		}
		slots.mu.Lock()
		defer slots.mu.Unlock()
		if len(slots.taken) != 0 || len(slots.running) != 0 {
			t.Errorf("at the end there are %v, %v", slots.taken, slots.running)
		}
	})
}

// Probes begin at slots, which all targets of an interval have in common, so this process
// wakes up once for many of them. With a short jitter slots are closer; without one there
// are none.
func TestSlots_ProbesBeginAtThem(t *testing.T) {
	for _, tc := range []struct {
		interval time.Duration
		jitter   float64
		step     time.Duration // between two slots, 0 if there are none
	}{
		{time.Second, 0.1, time.Second / 16},
		{time.Second, 1, time.Second / 16},
		{5 * time.Second, 0.1, 100 * time.Millisecond},
		{2250 * time.Millisecond, 0.05, 97826087}, // 23 of them
		{time.Second, 0.06, 30 * time.Millisecond},
		{5 * time.Second, 0.01, 25 * time.Millisecond},
		{time.Minute, 0.1, 750 * time.Millisecond},
		{5 * time.Second, 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			set := settings()
			set.Interval, set.Jitter = tc.interval, tc.jitter
			all, _ := paced(100, set, 10*tc.interval, healthy)
			places := make(map[time.Duration]bool) // between two slots
			for _, s := range all {
				for _, at := range s.at[1:] {
					places[at%cmp.Or(tc.step, tc.interval)] = true
				}
			}
			if got := len(places) == 1; got != (tc.step > 0) {
				t.Errorf("interval %v, jitter %v: probes start at %d places between two slots; slots are %v apart, 0 for none", tc.interval, tc.jitter, len(places), tc.step)
			}
		})
	}
}

// No target is probed sooner than its interval after its last probe, or later than that
// and the whole jitter.
func TestInterval_IsWithinTheJitter(t *testing.T) {
	for _, tc := range []struct {
		rule   string
		driver func(int) Driver
		want   time.Duration
	}{
		{"settled", healthy, 5 * time.Second},
		{"draining", answering(true, nil), 5 * time.Second},
		{"never up", answering(false, errSick), time.Second},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				set := settings()
				set.Jitter = 0.1
				all, _ := paced(50, set, 2*time.Minute, tc.driver)
				wantGaps(t, all, tc.want, tc.want*11/10)
			})
		})
	}
}

// A down target is probed at the down interval, whether that is longer or shorter than
// the others, and one in a streak at the fast one.
func TestInterval_FollowsTheStatus(t *testing.T) {
	for _, down := range []time.Duration{500 * time.Millisecond, 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			set := settings()
			set.DownInterval, set.Jitter = down, 0.1
			l := &letters{results: "PPFFFFFPFPPP"}
			s := recordStarts(NewTarget(set), l.driver())
			l.runAll()
			s.detach()
			fast, settled := set.FastInterval, set.Interval
			for i, want := range []time.Duration{settled, settled, fast, fast, down, down, down, fast, down, fast, settled} {
				if got := s.at[i+1] - s.at[i]; got < want || got > want*11/10 {
					t.Errorf("down interval %v, after %q: the next came after %v, want %v to %v", down, l.results[:i+1], got, want, want*11/10)
				}
			}
		})
	}
}

// wantGaps checks the time between any two probes of a target in a row.
func wantGaps(t *testing.T, all []*starts, least, most time.Duration) {
	t.Helper()
	for i, s := range all {
		if len(s.at) < 3 {
			t.Fatalf("target %d was probed %d times", i, len(s.at))
		}
		for k := range s.at[1:] {
			if gap := s.at[k+1] - s.at[k]; gap < least || gap > most {
				t.Errorf("target %d: probe %d came after %v, want %v to %v", i, k+1, gap, least, most)
				return
			}
		}
	}
}

func answering(draining bool, err error) func(int) Driver {
	return func(int) Driver {
		return Driver{Probe: func(context.Context, bool) (bool, error) { return draining, err }}
	}
}

// Targets that hang delay no other target: the number of probes in flight has no limit.
// Of 2,000 targets half hang; the others are probed exactly on time,
// and so are those that hang, which all go down.
func TestHangingTargets_DelayNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 2000
		set := settings()
		set.Timeout = 3 * time.Second // longer than the fast interval, so they hang all the time
		all, targets := paced(n, set, 31*time.Second, func(i int) Driver {
			if i%2 == 0 {
				return healthy(i)
			}
			return newScript(hang).driver()
		})
		for i, s := range all {
			status, step := Up, set.Interval
			if i%2 == 1 {
				status, step = Down, set.Timeout
			}
			var want []time.Duration
			for at := time.Duration(i) * time.Millisecond; at <= 31*time.Second; at += step {
				want = append(want, at)
			}
			if !slices.Equal(s.at, want) {
				t.Fatalf("target %d: probes began at %v, want %v", i, s.at, want)
			}
			if got := targets[i].Status(); got != status {
				t.Fatalf("target %d: status %v, want %v", i, got, status)
			}
		}
	})
}

// Probes of one target never overlap, however long they take: one that takes longer
// than the interval is followed by the next at once.
func TestProbes_OfOneTargetNeverOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := settings()
		set.Interval, set.FastInterval, set.DownInterval = time.Second, time.Second, time.Second
		set.Jitter = 0.1
		var underWay, begun atomic.Int64
		var ended time.Time
		target := NewTarget(set)
		s := recordStarts(target, Driver{Probe: func(context.Context, bool) (bool, error) {
			if underWay.Add(1) > 1 {
				t.Error("two probes at once")
			}
			probe := begun.Load()
			slow := probe%3 == 2 // takes longer than the interval
			if probe > 0 && probe%3 == 0 && !time.Now().Equal(ended) {
				t.Errorf("probe %d began %v after the slow one ended, want at once", probe, time.Since(ended))
			}
			probe = begun.Add(1)
			if slow {
				time.Sleep(1500 * time.Millisecond)
			} else {
				time.Sleep(time.Millisecond)
			}
			ended = time.Now()
			underWay.Add(-1)
			if probe%2 == 0 {
				return false, errors.New("every other one fails")
			}
			return false, nil
		}})
		defer s.detach()
		for range 20 {
			accuse(target) // wakes it, too
			advance(700 * time.Millisecond)
		}
		for underWay.Load() > 0 { // detach does not wait for long
			advance(100 * time.Millisecond)
		}
		if n := begun.Load(); n < 10 {
			t.Errorf("%d probes in 14 seconds", n)
		}
	})
}
