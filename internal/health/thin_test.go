// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var thinSettings = Settings{
	Interval: 5 * time.Second, FastInterval: time.Second, DownInterval: 5 * time.Second,
	Timeout: 2 * time.Second, Passes: 2, Fails: 3, Jitter: 0.1,
}

// thinTarget returns a target that is up and was probed at its interval, with what records
// its probes.
func thinTarget(t *testing.T, pacer *Pacer) (*Target, *script) {
	t.Helper()
	target := NewTarget(thinSettings)
	s := newScript(func(context.Context) error { return nil })
	d := s.driver()
	d.Pacer = pacer
	detach := target.Attach(d, 0)
	t.Cleanup(detach)
	time.Sleep(20 * time.Second)
	synctest.Wait()
	s.probes()
	return target, s
}

// gaps returns how far apart probes are that begin within a time from now on. Earlier ones
// do not count.
func gaps(s *script, d time.Duration) (all []time.Duration) {
	s.probes()
	time.Sleep(d)
	synctest.Wait()
	began := s.probes()
	for i := 1; i < len(began); i++ {
		all = append(all, began[i]-began[i-1])
	}
	return all
}

// wantApart checks that probes are as far apart as an interval says, with the jitter.
func wantApart(t *testing.T, gaps []time.Duration, interval time.Duration) {
	t.Helper()
	if len(gaps) == 0 {
		t.Fatal("there are no probes")
	}
	if least, most := slices.Min(gaps), slices.Max(gaps); least < interval || most > interval*11/10+time.Second/10 {
		t.Errorf("probes are %s to %s apart, want %s with jitter", least, most, interval)
	}
}

func TestThin_ProbesAreFurtherApart(t *testing.T) {
	for factor, want := range map[int]time.Duration{1: 5 * time.Second, 4: 20 * time.Second, 34: 170 * time.Second, 1000: 5 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			target, s := thinTarget(t, nil)
			target.Thin(factor)
			wantApart(t, gaps(s, 10*want), want)
		})
	}
}

// Targets that are thinned at the same moment, and those that are thinned no more, are not
// probed at the same moment.
func TestThin_SpreadsTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 200
		var targets []*Target
		var all []*script
		for range n {
			target, s := NewTarget(thinSettings), newScript(func(context.Context) error { return nil })
			t.Cleanup(target.Attach(s.driver(), 0))
			targets, all = append(targets, target), append(all, s)
		}
		for _, factor := range []int{10, 1} {
			interval := time.Duration(factor) * thinSettings.Interval
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			for i, target := range targets {
				all[i].probes()
				target.Thin(factor)
			}
			time.Sleep(interval * 11 / 10)
			synctest.Wait()
			tenths := make(map[time.Duration]int) // of the interval, and how many targets have a probe in it
			for i, s := range all {
				began := s.probes()
				if len(began) == 0 {
					t.Fatalf("factor %d: target %d has no probe within an interval", factor, i)
				}
				tenths[began[0]*10/interval]++
			}
			for _, probes := range tenths {
				if most := n / 4; probes > most {
					t.Errorf("factor %d: %d of %d targets are probed within a tenth of the interval", factor, probes, n)
				}
			}
		}
	})
}

func TestThin_TakenBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target, s := thinTarget(t, nil)
		target.Thin(34)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		s.probes()
		target.Thin(1)
		time.Sleep(5500 * time.Millisecond)
		synctest.Wait()
		if len(s.probes()) == 0 {
			t.Error("no probe begins within the interval")
		}
		wantApart(t, gaps(s, time.Minute), 5*time.Second)
	})
}

// A probe that is to begin before its turn may have to wait for that, if too many others begin
// before theirs. Its turn is then that of the interval that holds.
func TestThin_TakenBackWhileAProbeIsEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pacer Pacer
		target, s := thinTarget(t, &pacer)
		target.Thin(34)
		gaps(s, 10*time.Minute)
		for pacer.try(time.Now()) {
		}
		target.mu.Lock() // both before the timer fires
		target.armEarly(optional, time.Now())
		target.schedule.thinOut(target, 1, time.Now())
		target.mu.Unlock()
		time.Sleep(5500 * time.Millisecond)
		synctest.Wait()
		if len(s.probes()) == 0 {
			t.Error("no probe begins within the interval")
		}
	})
}

// A result is reported with no lock held, when the time of the next probe is already set.
func TestThin_TakenBackWhileAResultIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(thinSettings)
		s := newScript(func(context.Context) error { return nil })
		d := s.driver()
		takeBack := false
		d.Probed = func(Result) {
			if takeBack {
				target.Thin(1)
			}
		}
		t.Cleanup(target.Attach(d, 0))
		target.Thin(34)
		gaps(s, 10*time.Minute)
		takeBack = true
		target.ProbeNow()
		synctest.Wait()
		wantApart(t, gaps(s, time.Minute), 5*time.Second)
	})
}

func TestThin_StreakIsNotThinned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target, s := thinTarget(t, nil)
		target.Thin(4)
		gaps(s, time.Minute)
		s.set(func(context.Context) error { return errors.New("refused") })
		for target.Status() == Up {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
		began := s.probes()
		fails := began[len(began)-3:]
		if fails[2]-fails[0] > 2500*time.Millisecond {
			t.Errorf("three probes that failed began at %v, want them a second apart", fails)
		}
		wantApart(t, gaps(s, 5*time.Minute), 20*time.Second) // it is certainly down
		s.set(func(context.Context) error { return nil })
		for target.Status() == Down {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
		began = s.probes()
		if passes := began[len(began)-2:]; passes[1]-passes[0] > 1500*time.Millisecond {
			t.Errorf("two probes that passed began at %v, want them a second apart", passes)
		}
	})
}

func TestThin_AccusationProbesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target, s := thinTarget(t, nil)
		target.Thin(34)
		gaps(s, 10*time.Minute)
		acquitted := false
		target.Accuse(false, func(v Verdict) { acquitted = v == Acquitted })
		time.Sleep(time.Second)
		synctest.Wait()
		if len(s.probes()) != 1 || !acquitted {
			t.Errorf("an accusation led to no probe, or to no verdict: acquitted is %v", acquitted)
		}
		wantApart(t, gaps(s, 30*time.Minute), 170*time.Second)
		target.ProbeNow()
		time.Sleep(time.Second)
		synctest.Wait()
		if len(s.probes()) != 1 {
			t.Error("ProbeNow led to no probe")
		}
	})
}

func TestThin_HoldsOverAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target, s := thinTarget(t, nil)
		target.Thin(4)
		target.Pause(true)
		if gaps(s, 5*time.Minute); len(s.probes()) > 0 {
			t.Error("there are probes in a pause")
		}
		target.Thin(1)
		target.Thin(4)
		if gaps(s, 5*time.Minute); len(s.probes()) > 0 {
			t.Error("there are probes in a pause")
		}
		target.Pause(false)
		time.Sleep(time.Second)
		synctest.Wait()
		if len(s.probes()) != 1 || target.Status() != Up {
			t.Errorf("after a pause the target is %s", target.Status())
		}
		wantApart(t, gaps(s, 5*time.Minute), 20*time.Second)
	})
}

// What was never up is looked for at the fast interval.
func TestThin_NotBeforeItWasUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(thinSettings)
		s := newScript(func(context.Context) error { return errors.New("refused") })
		t.Cleanup(target.Attach(s.driver(), 0))
		target.Thin(34)
		wantApart(t, gaps(s, time.Minute), time.Second)
	})
}

func TestThin_NoEffectWithoutProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(Settings{Interval: time.Second, FastInterval: time.Second, DownInterval: time.Second, Timeout: time.Second, Passes: 1, Fails: 1})
		target.Thin(4)
		s := newScript(func(context.Context) error { return nil })
		t.Cleanup(target.Attach(s.driver(), 0))
		wantApart(t, gaps(s, 10*time.Second), time.Second)
	})
}
