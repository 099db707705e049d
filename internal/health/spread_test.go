// SPDX-License-Identifier: Apache-2.0

package health

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// starts is when the probes of one target began, counted from when it was made.
type starts struct {
	at     []time.Duration
	detach func()
}

// recordStarts attaches a driver, and writes down when its probes begin.
func recordStarts(target *Target, d Driver, delay ...time.Duration) *starts {
	r, began, ask := new(starts), time.Now(), d.Probe
	d.Probe = func(ctx context.Context, fresh bool) (bool, error) {
		r.at = append(r.at, time.Since(began))
		return ask(ctx, fresh)
	}
	r.detach = target.Attach(d, append(delay, 0)[0])
	return r
}

// paced attaches a driver to each of n new targets, the first probes a millisecond
// apart, as at the start of a config, and ends them after a time.
func paced(n int, set Settings, during time.Duration, driver func(i int) Driver) (all []*starts, targets []*Target) {
	for i := range n {
		target := NewTarget(set)
		target.Drift(float64(i) / float64(n))
		targets = append(targets, target)
		all = append(all, recordStarts(target, driver(i), time.Duration(i)*time.Millisecond))
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

// Targets that were started together do not fire together: their first probes come
// a millisecond apart, and from then on the jitter has them drift apart, however
// they began. It is a matter of chance, and about one run in 300 is beyond the
// bounds for a moment; so two of three have to keep to them.
func TestTargetsDriftApart(t *testing.T) {
	const (
		n      = 200
		window = 50 * time.Millisecond
	)
	for _, tc := range []struct {
		rule     string
		interval time.Duration
		from, to time.Duration
		most     int // of n
	}{
		{"first probes: 1 ms a target", time.Second, 0, time.Second, n * 25 / 100},
		{"an interval of 1s, after 20 of them", time.Second, 20 * time.Second, 80 * time.Second, n * 15 / 100},
		{"an interval that is no multiple of 100 ms, after 40 of them", 1610 * time.Millisecond, 65 * time.Second, 125 * time.Second, n * 15 / 100},
		{"one that is not divisible by 16, after 40 of them", time.Second + 3, 40 * time.Second, 100 * time.Second, n * 15 / 100},
		{"first probes: 1 ms a target, whatever the interval", 5 * time.Second, 0, 5 * time.Second, n * 25 / 100},
		{"the default interval, after 5 of them", 5 * time.Second, 25 * time.Second, 85 * time.Second, n * 15 / 100},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			var got []int
			kept := 0
			for len(got) < 3 && kept < 2 && len(got)-kept < 2 {
				synctest.Test(t, func(*testing.T) {
					set := settings()
					set.Interval, set.Jitter = tc.interval, 0.1
					all, _ := paced(n, set, tc.to, healthy)
					got = append(got, crowd(all, window, tc.from, tc.to))
				})
				if got[len(got)-1] <= tc.most {
					kept++
				}
			}
			if kept < 2 {
				t.Errorf("of %d probes up to %v begin within %v, run by run; want %d at most in two of three", n, got, window, tc.most)
			}
		})
	}
}

// Probes start at marks, which all targets of an interval have in common, if the jitter
// reaches one; so this process wakes up for many of them at once.
func TestProbesStartAtMarks(t *testing.T) {
	for _, tc := range []struct {
		interval time.Duration
		jitter   float64
		step     time.Duration // between two marks, 0 if there are none
	}{
		{time.Second, 0.1, time.Second / 16},
		{time.Second, 1, time.Second / 16},
		{5 * time.Second, 0.1, 100 * time.Millisecond},
		{2250 * time.Millisecond, 0.05, 97826087}, // 23 of them
		{time.Second, 0.06, 0},
		{5 * time.Second, 0.01, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			set := settings()
			set.Interval, set.Jitter = tc.interval, tc.jitter
			all, _ := paced(100, set, 10*tc.interval, healthy)
			places := make(map[time.Duration]bool) // between two marks
			for _, s := range all {
				for _, at := range s.at[1:] {
					places[at%cmp.Or(tc.step, tc.interval)] = true
				}
			}
			if got := len(places) == 1; got != (tc.step > 0) {
				t.Errorf("interval %v, jitter %v: probes start at %d places between two marks; marks are %v apart, 0 for none", tc.interval, tc.jitter, len(places), tc.step)
			}
		})
	}
}

// However far targets drift, none is probed sooner than its interval after its
// last probe, nor later than that and all of the jitter.
func TestEveryIntervalIsWithinTheJitter(t *testing.T) {
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

// Down is probed by the down interval, be it longer or shorter than the others,
// and a streak by the fast one.
func TestIntervalsOfAFlip(t *testing.T) {
	for _, down := range []time.Duration{500 * time.Millisecond, 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			set := settings()
			set.DownInterval, set.Jitter = down, 0.1
			l := &letters{results: "PPFFFFFPFPPP"}
			s := recordStarts(NewTarget(set), l.driver())
			l.spell()
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

// Upstreams that swallow everything delay nobody but themselves: there is no limit
// to use up. Of 2,000 targets half hang; the others are probed to the very moment,
// and so are those that hang, which all turn out to be down.
func TestHangingTargetsDelayNobody(t *testing.T) {
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

// Probes of one target never overlap, whatever they take: one that takes longer
// than the interval is followed by the next at once.
func TestProbesOfOneTargetNeverOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := settings()
		set.Interval, set.FastInterval, set.DownInterval = time.Second, time.Second, time.Second
		set.Jitter = 0.1
		underWay := 0
		probe := 0
		var ended time.Time
		target := NewTarget(set)
		s := recordStarts(target, Driver{Probe: func(context.Context, bool) (bool, error) {
			if underWay++; underWay > 1 {
				t.Error("two probes at once")
			}
			slow := probe%3 == 2 // takes longer than the interval
			if probe > 0 && probe%3 == 0 && !time.Now().Equal(ended) {
				t.Errorf("probe %d began %v after the slow one ended, want at once", probe, time.Since(ended))
			}
			probe++
			if slow {
				time.Sleep(1500 * time.Millisecond)
			} else {
				time.Sleep(time.Millisecond)
			}
			ended = time.Now()
			underWay--
			if probe%2 == 0 {
				return false, errors.New("every other one fails")
			}
			return false, nil
		}})
		defer s.detach()
		for range 20 {
			target.Suspect() // wakes it, too
			advance(700 * time.Millisecond)
		}
		if probe < 10 {
			t.Errorf("%d probes in 14 seconds", probe)
		}
	})
}
