// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/probe"
)

// saying is a kind of check that answers what it is told to, and writes down when
// its probes began.
type saying struct {
	began  time.Time
	mu     sync.Mutex
	answer error
	at     map[string][]time.Duration // by upstream
}

// newSaying makes one from a verdict: u for up, d for down, r for up and draining.
func newSaying(verdict rune) *saying {
	s := &saying{began: time.Now(), at: make(map[string][]time.Duration)}
	s.says(verdict)
	return s
}

func (s *saying) says(verdict rune) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = map[rune]error{'d': errors.New("sick"), 'r': probe.ErrDraining}[verdict]
}

func (s *saying) Probe(_ context.Context, up probe.Upstream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at[up.Address] = append(s.at[up.Address], time.Since(s.began))
	return s.answer
}

func (s *saying) probes(upstream string) []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.at[upstream])
}

// checking is a check by it, with an identity of its own.
func (s *saying) checking() *HealthCheck {
	return &HealthCheck{prober: s, identity: fmt.Sprintf("%p", s), label: "saying", settings: health.Settings{
		Interval: 10 * time.Second, FastInterval: time.Second, DownInterval: 5 * time.Second,
		Timeout: time.Second, Passes: 2, Fails: 3,
	}}
}

// watchOf makes a watch of an upstream, whose target is one of the shared ones.
func watchOf(tb testing.TB, upstream string, check *HealthCheck) *watch {
	tb.Helper()
	to := &route{key: routeKey{upstream: upstream}}
	to.up.Address = upstream
	w, err := newWatch(check, to, zap.NewNop(), nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		w.release()
		if err := w.forget(); err != nil {
			tb.Error(err)
		}
	})
	return w
}

// runningWatch is a watch whose probes run, and say the verdict: u, d or r, or ? if
// there is none yet.
func runningWatch(tb testing.TB, upstream string, verdict rune) *watch {
	tb.Helper()
	w := watchOf(tb, upstream, newSaying(verdict).checking())
	delay := time.Duration(0)
	if verdict == '?' {
		delay = time.Hour
	}
	w.attach(delay)
	synctest.Wait()
	return w
}

// watching is a policy that has these watches, and no more of a policy than that.
func watching(watches ...*watch) *Selection { return &Selection{watches: watches} }

// inherited is what anybody can see of a target.
type inherited struct {
	status   health.Status
	draining bool
	since    time.Duration
}

// seenOf returns what is seen of a watch, with times since a moment.
func seenOf(w *watch, began time.Time) inherited {
	got := inherited{status: w.target.Status(), draining: w.target.Draining()}
	if since := w.target.Since(); !since.IsZero() {
		got.since = since.Sub(began)
	}
	return got
}

// A check that is new takes over the worst of the checks of its upstream that
// leave with the config. Each of those that leave, stay, and belong to another
// upstream, in this order, had its verdict a minute after the one before, the
// first of them after one minute.
func TestANewCheckInheritsTheWorstOfThoseThatLeave(t *testing.T) {
	const m = time.Minute
	for _, tc := range []struct {
		rule                string
		leave, stay, unlike string
		wanted              inherited
	}{
		{rule: "nobody was there"},
		{rule: "up", leave: "u", wanted: inherited{health.Up, false, 1 * m}},
		{rule: "down", leave: "d", wanted: inherited{health.Down, false, 1 * m}},
		{rule: "down beats up", leave: "ud", wanted: inherited{health.Down, false, 2 * m}},
		{rule: "the other way round, too", leave: "du", wanted: inherited{health.Down, false, 1 * m}},
		{rule: "and all the others", leave: "ururdr?", wanted: inherited{health.Down, false, 5 * m}},
		{rule: "up since the last of them was", leave: "uuu", wanted: inherited{health.Up, false, 3 * m}},
		{rule: "down since the last of them was", leave: "dduu", wanted: inherited{health.Down, false, 2 * m}},
		{rule: "no verdict does not count", leave: "?", wanted: inherited{}},
		{rule: "next to up", leave: "u?", wanted: inherited{health.Up, false, 1 * m}},
		{rule: "next to down", leave: "?d", wanted: inherited{health.Down, false, 2 * m}},
		{rule: "draining", leave: "r", wanted: inherited{health.Up, true, 1 * m}},
		{rule: "draining beats up", leave: "ru", wanted: inherited{health.Up, true, 2 * m}},
		{rule: "the other way round", leave: "ur", wanted: inherited{health.Up, true, 2 * m}},
		{rule: "down is not draining", leave: "rd", wanted: inherited{health.Down, false, 2 * m}},
		{rule: "nor the other way round", leave: "dr", wanted: inherited{health.Down, false, 1 * m}},
		{rule: "one that stays does not count", stay: "d", wanted: inherited{}},
		{rule: "next to one that leaves", leave: "u", stay: "d", wanted: inherited{health.Up, false, 1 * m}},
		{rule: "however many there are", leave: "ur", stay: "ddrd", unlike: "d", wanted: inherited{health.Up, true, 2 * m}},
		{rule: "another upstream does not count", unlike: "d", wanted: inherited{}},
		{rule: "next to this one", leave: "r", unlike: "d", wanted: inherited{health.Up, true, 1 * m}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			// the order in which the pool has them is a matter of chance
			for range 5 {
				bubble(t, func(t *testing.T) {
					const this, other = "10.9.0.1:80", "10.9.0.2:80"
					began := time.Now()
					var stay []*watch
					for _, v := range tc.leave {
						time.Sleep(m)
						runningWatch(t, this, v)
					}
					for _, v := range tc.stay {
						time.Sleep(m)
						stay = append(stay, runningWatch(t, this, v))
					}
					for _, v := range tc.unlike {
						time.Sleep(m)
						runningWatch(t, other, v)
					}
					// two policies, that have the check in common
					check := newSaying('u').checking()
					first, again := watchOf(t, this, check), watchOf(t, this, check)
					second := watchOf(t, this, newSaying('u').checking())
					told := 0
					first.follow(func() { told++ })
					inherit([]*Selection{watching(append(stay, first)...), watching(again, second)})
					for _, w := range []*watch{first, again, second} {
						if got := seenOf(w, began); got != tc.wanted {
							t.Errorf("leaving %q, staying %q: inherited %+v, want %+v", tc.leave, tc.stay, got, tc.wanted)
						}
					}
					want := 0
					if tc.wanted.status != health.Unknown {
						want = 1
					}
					if told != want {
						t.Errorf("told %d times, want %d", told, want)
					}
				})
			}
		})
	}
}

// What no config runs does not leave: a config that was loaded and never started,
// or has ended, says nothing of an upstream.
func TestOnlyWhatRunsIsInherited(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const this = "10.9.0.1:80"
		ended := runningWatch(t, this, 'd')
		ended.release()
		watchOf(t, this, newSaying('d').checking())
		fresh := watchOf(t, this, newSaying('u').checking())
		inherit([]*Selection{watching(fresh)})
		if got := seenOf(fresh, time.Now()); got != (inherited{}) {
			t.Errorf("inherited %+v, want nothing", got)
		}
	})
}

// Checks that were probed by an earlier config, or are already, know better.
func TestOnlyTheNewInherit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const this = "10.9.0.1:80"
		began := time.Now()
		runningWatch(t, this, 'd')
		up, undecided := runningWatch(t, this, 'u'), runningWatch(t, this, '?')
		ended := runningWatch(t, this, 'r')
		ended.release()
		inherit([]*Selection{watching(up, undecided, ended)})
		for w, want := range map[*watch]inherited{
			up: {status: health.Up}, undecided: {}, ended: {status: health.Up, draining: true},
		} {
			if got := seenOf(w, began); got != want {
				t.Errorf("%+v, want %+v as before", got, want)
			}
		}
	})
}

// While a config is set up, not all of its policies are known yet, so what another
// one of them goes on watching seems to leave. When all are known, it is put right.
func TestInheritanceIsPutRightWhenAllAreKnown(t *testing.T) {
	for _, tc := range []struct {
		rule        string
		first, last rune // of two checks, a minute apart; want is in minutes
		keeps       string
		before      inherited
		after       inherited
	}{
		{"the worse one stays", 'u', 'd', "last", inherited{health.Down, false, 2}, inherited{health.Up, false, 1}},
		{"the better one stays", 'u', 'd', "first", inherited{health.Down, false, 2}, inherited{health.Down, false, 2}},
		{"both stay", 'u', 'd', "both", inherited{health.Down, false, 2}, inherited{}},
		{"the one that drains stays", 'r', 'u', "first", inherited{health.Up, true, 2}, inherited{health.Up, false, 2}},
		{"neither stays", 'r', 'u', "", inherited{health.Up, true, 2}, inherited{health.Up, true, 2}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const this = "10.9.0.1:80"
				began := time.Now()
				time.Sleep(time.Minute)
				first := runningWatch(t, this, tc.first)
				time.Sleep(time.Minute)
				last := runningWatch(t, this, tc.last)
				kept := map[string][]*watch{"first": {first}, "last": {last}, "both": {first, last}}[tc.keeps]
				fresh := watchOf(t, this, newSaying('u').checking())
				told := 0
				fresh.follow(func() { told++ })

				inherit([]*Selection{watching(fresh)})
				tc.before.since *= time.Minute
				if got := seenOf(fresh, began); got != tc.before || told != 1 {
					t.Errorf("by itself: %+v, told %d times; want %+v, once", got, told, tc.before)
				}
				inherit([]*Selection{watching(fresh), watching(kept...)})
				tc.after.since *= time.Minute
				if got := seenOf(fresh, began); got != tc.after {
					t.Errorf("with all of them: %+v, want %+v", got, tc.after)
				}
				wantTold := 2
				if tc.before == tc.after {
					wantTold = 1
				}
				if told != wantTold {
					t.Errorf("told %d times, want %d: once a change", told, wantTold)
				}
			})
		})
	}
}

// Across a reload that changes the check of an upstream, requests go on as if it
// was the same: it takes as many probes of the new check as ever to change the
// verdict. What both configs check is not disturbed.
func TestAChangedCheckTakesOverOnReload(t *testing.T) {
	for _, tc := range []struct {
		rule          string
		before, after rune
		probes        []time.Duration // of the new check, since the reload
		changes       time.Duration   // since the reload, 0 for never
		status        health.Status
	}{
		{"up, and fails now", 'u', 'd', []time.Duration{0, 1, 2, 7, 12, 17}, 2, health.Up},
		{"up, and passes", 'u', 'u', []time.Duration{0, 10}, 0, health.Up},
		{"down, and passes now", 'd', 'u', []time.Duration{0, 1, 11}, 1, health.Down},
		{"down, and fails", 'd', 'd', []time.Duration{0, 5, 10, 15}, 0, health.Down},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const changed, same = "10.9.0.1:80", "10.9.0.2:80"
				kept := newSaying('u')
				load := func(changing *saying) (*App, *policy) {
					p := newPolicy(t, "")
					var watches []*watch
					for upstream, s := range map[string]*saying{changed: changing, same: kept} {
						w := watchOf(t, upstream, s.checking())
						w.follow(p.refresh)
						watches = append(watches, w)
					}
					p.watches = watches
					p.run(false)
					app := newTestApp(t)
					app.adopt(p.Selection)
					return app, p
				}
				of := func(p *policy, upstream string) *watch {
					return p.watches[slices.IndexFunc(p.watches, func(w *watch) bool { return w.key.upstream == upstream })]
				}
				start := func(app *App) {
					if err := app.Start(); err != nil {
						t.Fatal(err)
					}
				}
				older, _ := load(newSaying(tc.before))
				start(older)
				time.Sleep(25 * time.Second)
				synctest.Wait()

				began := time.Now()
				s := newSaying(tc.after)
				newer, p := load(s)
				if got := of(p, changed).target.Status(); got != tc.status {
					t.Errorf("before the start: status %v, want %v", got, tc.status)
				}
				start(newer)
				if err := older.Cleanup(); err != nil {
					t.Fatal(err)
				}
				if got := of(p, changed).target.Status(); got != tc.status {
					t.Errorf("right after the reload: status %v, want %v", got, tc.status)
				}
				if tc.changes > 0 {
					time.Sleep(tc.changes*time.Second - time.Millisecond)
					synctest.Wait()
					if got := of(p, changed).target.Status(); got != tc.status {
						t.Errorf("just before the last probe that it takes: status %v, want %v", got, tc.status)
					}
				}
				time.Sleep(19*time.Second - time.Since(began))
				synctest.Wait()
				if got := of(p, changed).target.Status() != tc.status; got != (tc.changes > 0) {
					t.Errorf("at last: changed %v, want %v", got, tc.changes > 0)
				}
				if at := of(p, changed).target.Since().Sub(began); tc.changes > 0 && at != tc.changes*time.Second {
					t.Errorf("changed after %v, want %v", at, tc.changes*time.Second)
				}
				var want []time.Duration
				for _, at := range tc.probes {
					want = append(want, at*time.Second)
				}
				if got := s.probes(changed); !slices.Equal(got, want) {
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
				if err := newer.Cleanup(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// A start with many targets is no burst: their first probes come a millisecond
// apart, or spread over the interval if that is shorter. Those that two policies
// share count once, and those that run already are not probed again.
func TestFirstProbesAreSpread(t *testing.T) {
	for _, tc := range []struct {
		rule     string
		n        int
		interval time.Duration
		apart    time.Duration
	}{
		{"one", 1, 5 * time.Second, time.Millisecond},
		{"a thousand", 1000, 5 * time.Second, time.Millisecond},
		{"a thousand in a short interval", 1000, 500 * time.Millisecond, 500 * time.Microsecond},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newSaying('u')
				check := s.checking()
				check.settings.Interval, check.settings.FastInterval = tc.interval, min(time.Second, tc.interval)
				policies := [2]*policy{newPolicy(t, ""), newPolicy(t, "")}
				for i := range tc.n {
					for _, p := range policies {
						p.watches = append(p.watches, watchOf(t, address(i), check))
					}
				}
				runs := watchOf(t, address(tc.n), check)
				runs.attach(0)
				synctest.Wait()
				policies[1].watches = slices.Insert(policies[1].watches, 0, runs)

				all := []*Selection{policies[0].Selection, policies[1].Selection}
				drive(all)
				time.Sleep(tc.interval - time.Nanosecond)
				synctest.Wait()
				release(all)
				for i := range tc.n + 1 {
					want := []time.Duration{time.Duration(i) * tc.apart}
					if i == tc.n {
						want[0] = 0
					}
					if got := s.probes(address(i)); !slices.Equal(got, want) {
						t.Fatalf("target %d: first probes at %v, want %v", i, got, want)
					}
				}
			})
		})
	}
}

// inherit is what happens while the policies of a config are provisioned.
func inherit(policies []*Selection) {
	var h inheritance
	for _, s := range policies {
		h.add(s.allWatches())
	}
}
