// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// carryOver does what happens while the handlers of a config are provisioned.
func carryOver(handlers ...[]*Monitor) {
	var c CarryOver
	for _, monitors := range handlers {
		c.Add(monitors)
	}
}

// known is what is known of a target.
type known struct {
	status   health.Status
	draining bool
	since    time.Duration
}

// knownOf returns what is known of the target of a monitor, with times since a moment.
func knownOf(w *Monitor, began time.Time) known {
	got := known{status: w.Target.Status(), draining: w.Target.Draining()}
	if since := w.Target.Since(); !since.IsZero() {
		got.since = since.Sub(began)
	}
	return got
}

// A new check takes over the worst status of the checks of its upstream that leave with
// the config. The checks that leave, that stay and that belong to another upstream have
// their verdicts in this order, one a minute, the first after one minute.
func TestCarryOver_WorstOfTheChecksThatLeave(t *testing.T) {
	const m = time.Minute
	for _, tc := range []struct {
		rule                string
		leave, stay, unlike string
		wanted              known
	}{
		{rule: "nothing was known"},
		{rule: "up", leave: "u", wanted: known{health.Up, false, 1 * m}},
		{rule: "down", leave: "d", wanted: known{health.Down, false, 1 * m}},
		{rule: "down beats up", leave: "ud", wanted: known{health.Down, false, 2 * m}},
		{rule: "the other way round, too", leave: "du", wanted: known{health.Down, false, 1 * m}},
		{rule: "and all the others", leave: "ururdr?", wanted: known{health.Down, false, 5 * m}},
		{rule: "up since the last of them was", leave: "uuu", wanted: known{health.Up, false, 3 * m}},
		{rule: "down since the last of them was", leave: "dduu", wanted: known{health.Down, false, 2 * m}},
		{rule: "no verdict does not count", leave: "?", wanted: known{}},
		{rule: "next to up", leave: "u?", wanted: known{health.Up, false, 1 * m}},
		{rule: "next to down", leave: "?d", wanted: known{health.Down, false, 2 * m}},
		{rule: "draining", leave: "r", wanted: known{health.Up, true, 1 * m}},
		{rule: "draining beats up", leave: "ru", wanted: known{health.Up, true, 2 * m}},
		{rule: "the other way round", leave: "ur", wanted: known{health.Up, true, 2 * m}},
		{rule: "down is not draining", leave: "rd", wanted: known{health.Down, false, 2 * m}},
		{rule: "nor the other way round", leave: "dr", wanted: known{health.Down, false, 1 * m}},
		{rule: "one that stays does not count", stay: "d", wanted: known{}},
		{rule: "next to one that leaves", leave: "u", stay: "d", wanted: known{health.Up, false, 1 * m}},
		{rule: "however many there are", leave: "ur", stay: "ddrd", unlike: "d", wanted: known{health.Up, true, 2 * m}},
		{rule: "another upstream does not count", unlike: "d", wanted: known{}},
		{rule: "next to this one", leave: "r", unlike: "d", wanted: known{health.Up, true, 1 * m}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			// the order in which the pool has them is a matter of chance
			for range 5 {
				testkit.Bubble(t, func(t *testing.T) {
					const this, other = "10.9.0.1:80", "10.9.0.2:80"
					began := time.Now()
					var stay []*Monitor
					for _, v := range tc.leave {
						time.Sleep(m)
						running(t, this, v)
					}
					for _, v := range tc.stay {
						time.Sleep(m)
						stay = append(stay, running(t, this, v))
					}
					for _, v := range tc.unlike {
						time.Sleep(m)
						running(t, other, v)
					}
					// two handlers that have the check in common
					check := newProber('u').check()
					first, again := open(t, this, check), open(t, this, check)
					second := open(t, this, newProber('u').check())
					calls := 0
					first.Subscribe(func() { calls++ })
					carryOver(append(stay, first), []*Monitor{again, second})
					for _, w := range []*Monitor{first, again, second} {
						if got := knownOf(w, began); got != tc.wanted {
							t.Errorf("leaving %q, staying %q: inherited %+v, want %+v", tc.leave, tc.stay, got, tc.wanted)
						}
					}
					want := 0
					if tc.wanted.status != health.Unknown {
						want = 1
					}
					if calls != want {
						t.Errorf("subscriber called %d times, want %d", calls, want)
					}
				})
			}
		})
	}
}

// Checks that do not run do not count: those of a config that was loaded and never
// started, or that has ended.
func TestCarryOver_OnlyFromRunningChecks(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		const this = "10.9.0.1:80"
		ended := running(t, this, 'd')
		ended.Stop()
		open(t, this, newProber('d').check())
		fresh := open(t, this, newProber('u').check())
		carryOver([]*Monitor{fresh})
		if got := knownOf(fresh, time.Now()); got != (known{}) {
			t.Errorf("inherited %+v, want nothing", got)
		}
	})
}

// Checks that were probed before keep their status.
func TestCarryOver_OnlyToNewChecks(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		const this = "10.9.0.1:80"
		began := time.Now()
		running(t, this, 'd')
		up, undecided := running(t, this, 'u'), running(t, this, '?')
		ended := running(t, this, 'r')
		ended.Stop()
		carryOver([]*Monitor{up, undecided, ended})
		for w, want := range map[*Monitor]known{
			up: {status: health.Up}, undecided: {}, ended: {status: health.Up, draining: true},
		} {
			if got := knownOf(w, began); got != want {
				t.Errorf("%+v, want %+v as before", got, want)
			}
		}
	})
}

// While a config is set up, not all of its handlers are known yet, so a check that a
// later one has seems to leave. When all are known, the result is corrected.
func TestCarryOver_CorrectedWhenAllHandlersAreKnown(t *testing.T) {
	for _, tc := range []struct {
		rule        string
		first, last rune // of two checks, a minute apart; want is in minutes
		keeps       string
		before      known
		after       known
	}{
		{"the worse one stays", 'u', 'd', "last", known{health.Down, false, 2}, known{health.Up, false, 1}},
		{"the better one stays", 'u', 'd', "first", known{health.Down, false, 2}, known{health.Down, false, 2}},
		{"both stay", 'u', 'd', "both", known{health.Down, false, 2}, known{}},
		{"the draining one stays", 'r', 'u', "first", known{health.Up, true, 2}, known{health.Up, false, 2}},
		{"neither stays", 'r', 'u', "", known{health.Up, true, 2}, known{health.Up, true, 2}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				const this = "10.9.0.1:80"
				began := time.Now()
				time.Sleep(time.Minute)
				first := running(t, this, tc.first)
				time.Sleep(time.Minute)
				last := running(t, this, tc.last)
				kept := map[string][]*Monitor{"first": {first}, "last": {last}, "both": {first, last}}[tc.keeps]
				fresh := open(t, this, newProber('u').check())
				calls := 0
				fresh.Subscribe(func() { calls++ })

				carryOver([]*Monitor{fresh})
				tc.before.since *= time.Minute
				if got := knownOf(fresh, began); got != tc.before || calls != 1 {
					t.Errorf("by itself: %+v, subscriber called %d times; want %+v, once", got, calls, tc.before)
				}
				carryOver([]*Monitor{fresh}, kept)
				tc.after.since *= time.Minute
				if got := knownOf(fresh, began); got != tc.after {
					t.Errorf("with all of them: %+v, want %+v", got, tc.after)
				}
				wantCalls := 2
				if tc.before == tc.after {
					wantCalls = 1
				}
				if calls != wantCalls {
					t.Errorf("subscriber called %d times, want %d: once a change", calls, wantCalls)
				}
			})
		})
	}
}

// wantOriginal compares which targets have been up since all of their pool began.
func wantOriginal(t *testing.T, when string, want []bool, monitors ...*Monitor) {
	t.Helper()
	got := make([]bool, len(monitors))
	for i, m := range monitors {
		got[i] = m.Target.Original()
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: original: %v, want %v", when, got, want)
	}
}

// A target that is paused while its pool begins joins it later.
func TestBegin_PausedTargetJoinsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		check := newProber('u').check()
		a, b := open(t, "a", check), open(t, "b", check)
		MarkOrigins([]*Monitor{a, b}, false)
		b.Target.Pause(true)
		a.Start(0)
		b.Start(0)
		time.Sleep(time.Second)
		b.Target.Pause(false)
		time.Sleep(time.Second)
		wantOriginal(t, "ready again", []bool{true, false}, a, b)
	})
}

// A check that is changed in a reload keeps the age of the one before: it neither ends a
// slow start nor begins one.
func TestCarryOver_KeepsSinceAndOrigin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := newProber('u')
		check := answer.check()
		a, b := open(t, "a", check), open(t, "b", check)
		MarkOrigins([]*Monitor{a, b}, false)
		a.Start(0)
		b.Start(0)
		time.Sleep(time.Second)
		c := open(t, "c", check)
		MarkOrigins([]*Monitor{a, b, c}, true) // this changes nothing for a and b
		c.Start(0)
		time.Sleep(time.Second)
		joined := c.Target.Since()
		wantOriginal(t, "before", []bool{true, true, false}, a, b, c)

		changed := answer.check()
		changed.Settings.Fails = 7
		successors := []*Monitor{open(t, "a", changed), open(t, "b", changed), open(t, "c", changed), open(t, "d", changed)}
		carryOver(successors)
		wantOriginal(t, "after", []bool{true, true, false, false}, successors...)
		if got := successors[2].Target.Since(); !got.Equal(joined) {
			t.Errorf("one that joined is up since %v, want %v", got, joined)
		}
		for _, w := range successors {
			w.Start(0)
		}
		time.Sleep(time.Second)
		wantOriginal(t, "after its first probes", []bool{true, true, false, false}, successors...)
	})
}

// Across a reload that changes the check of an upstream, requests go on as if it was the
// same: it takes as many probes of the new check as ever to change the verdict. What both
// configs check is not disturbed.
func TestCarryOver_ChangedCheckTakesOver(t *testing.T) {
	for _, tc := range []struct {
		rule          string
		before, after rune
		probes        []time.Duration // of the new check in seconds, since the reload
		changes       time.Duration   // in seconds since the reload, 0 for never
		status        health.Status
	}{
		{"up, and fails now", 'u', 'd', []time.Duration{0, 1, 2, 7, 12, 17}, 2, health.Up},
		{"up, and passes", 'u', 'u', []time.Duration{0, 10}, 0, health.Up},
		{"down, and passes now", 'd', 'u', []time.Duration{0, 1, 11}, 1, health.Down},
		{"down, and fails", 'd', 'd', []time.Duration{0, 5, 10, 15}, 0, health.Down},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				const changed, same = "10.9.0.1:80", "10.9.0.2:80"
				kept, leaves := newProber('u'), newProber(tc.before)
				unchanged := kept.check()
				older := []*Monitor{open(t, changed, leaves.check()), open(t, same, unchanged)}
				StartAll(older)
				time.Sleep(25 * time.Second)
				synctest.Wait()

				began := time.Now()
				joins := newProber(tc.after)
				newer := []*Monitor{open(t, changed, joins.check()), open(t, same, unchanged)}
				carryOver(newer)
				target := newer[0].Target
				if got := target.Status(); got != tc.status {
					t.Errorf("before the start: status %v, want %v", got, tc.status)
				}
				StartAll(newer)
				StopAll(older)
				if got := target.Status(); got != tc.status {
					t.Errorf("right after the reload: status %v, want %v", got, tc.status)
				}
				if tc.changes > 0 {
					time.Sleep(tc.changes*time.Second - time.Millisecond)
					synctest.Wait()
					if got := target.Status(); got != tc.status {
						t.Errorf("just before the last probe that it takes: status %v, want %v", got, tc.status)
					}
				}
				time.Sleep(19*time.Second - time.Since(began))
				synctest.Wait()
				if got := target.Status() != tc.status; got != (tc.changes > 0) {
					t.Errorf("at last: changed %v, want %v", got, tc.changes > 0)
				}
				if at := target.Since().Sub(began); tc.changes > 0 && at != tc.changes*time.Second {
					t.Errorf("changed after %v, want %v", at, tc.changes*time.Second)
				}
				var want []time.Duration
				for _, at := range tc.probes {
					want = append(want, at*time.Second)
				}
				if got := joins.probes(changed); !slices.Equal(got, want) {
					t.Errorf("the new check: probes began at %v, want %v", got, want)
				}
				want = nil
				for at := time.Duration(0); at < 44*time.Second; at += 10 * time.Second {
					want = append(want, at)
				}
				got := kept.probes(same)
				for i := range got {
					got[i] = got[i].Truncate(100 * time.Millisecond) // the first probes are a millisecond apart
				}
				if !slices.Equal(got, want) {
					t.Errorf("what both configs check: probes began at %v, want %v", got, want)
				}
				StopAll(newer)
			})
		})
	}
}
