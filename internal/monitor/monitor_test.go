// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// A change is counted, logged and emitted. While no handler has the upstream, the line is
// for debugging, and that it is down is no event; that it is up is one.
func TestMonitor_ReportsChanges(t *testing.T) {
	for _, tc := range []struct {
		stale   bool
		verdict rune
		level   string
		message string
		emitted bool
	}{
		{false, 'u', "info", "upstream is up", true},
		{false, 'd', "warn", "upstream is down", true},
		{false, 'r', "info", "upstream is up", true},
		{true, 'u', "debug", "upstream changed, but requests no longer bring it", true},
		{true, 'd', "debug", "upstream changed, but requests no longer bring it", false},
	} {
		t.Run(fmt.Sprintf("%c, stale %v", tc.verdict, tc.stale), func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				core, logs := observer.New(zap.DebugLevel)
				counted := new(counts)
				var emitted []health.Transition
				var asked *Monitor
				m := openWith(t, "app:80", newProber(tc.verdict).check(), Hooks{
					Logger:   zap.New(core),
					Counters: func(string, *Check) (Counters, error) { return counted, nil },
					Emit: func(upstream string, check *Check, change health.Transition) {
						if upstream != "app:80" || check.Label != "test" {
							t.Errorf("emitted for the upstream %s and the check %s", upstream, check.Label)
						}
						emitted = append(emitted, change)
					},
					Stale: func(m *Monitor) bool { asked = m; return tc.stale },
				})
				m.Start(0)
				time.Sleep(5 * time.Second) // less than any interval after a status
				synctest.Wait()
				m.Stop()
				if counted.probed == 0 || counted.inconclusive != 0 || len(counted.changed) != 1 {
					t.Errorf("counted %d results, %d inconclusive ones and the changes %+v, want some, none and one", counted.probed, counted.inconclusive, counted.changed)
				}
				if got := len(emitted) == 1; got != tc.emitted {
					t.Errorf("emitted %+v, want an event: %v", emitted, tc.emitted)
				}
				if asked != m {
					t.Errorf("stale is asked of %p, want %p", asked, m)
				}
				lines := logs.Filter(func(e observer.LoggedEntry) bool { return e.Message != "probed" }).All()
				if len(lines) != 1 || lines[0].Message != tc.message || lines[0].Level.String() != tc.level {
					t.Fatalf("logged %+v, want one line: %s: %s", lines, tc.level, tc.message)
				}
				if fields := lines[0].ContextMap(); fields["upstream"] != "app:80" || fields["check"] != "test" || fields["previous"] != "unknown" {
					t.Errorf("the line has the fields %v", fields)
				}
			})
		})
	}
}

// The functions of a check and the hooks run with no lock held: they can use the monitor.
func TestMonitor_CallsBackWithoutLocks(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		check := newProber('u').check()
		calls := 0
		use := func(m *Monitor) {
			calls++
			m.Start(0)
			_ = m.Target.View()
			open(t, "app:81", newProber('u').check())
		}
		var m *Monitor
		check.Bind = func(*Route) ProbeFunc {
			return func(context.Context) (bool, error) { use(m); return false, nil }
		}
		hooks := noHooks()
		hooks.Stale = func(m *Monitor) bool { use(m); return false }
		hooks.Emit = func(string, *Check, health.Transition) { use(m) }
		m = openWith(t, "app:80", check, hooks)
		m.Subscribe(func() { use(m) })
		m.Start(0)
		time.Sleep(time.Second)
		synctest.Wait()
		if calls != 4 {
			t.Errorf("calls: got %d, want 4", calls)
		}
	})
}

// What Open cannot complete leaves nothing behind.
func TestOpen_FailureLeavesNothing(t *testing.T) {
	upstream, err := ParseUpstream("app:80")
	if err != nil {
		t.Fatal(err)
	}
	invalid := newProber('u').check()
	invalid.Validate = func(r *Route) error { return fmt.Errorf("not for %s", r.Address) }
	if _, err := defaultTransport.Open(upstream, invalid, noHooks()); err == nil || err.Error() != "not for app:80" {
		t.Errorf("a check that does not validate: got %v", err)
	}
	hooks := noHooks()
	broken := errors.New("no counters")
	hooks.Counters = func(string, *Check) (Counters, error) { return nil, broken }
	if _, err := defaultTransport.Open(upstream, newProber('u').check(), hooks); !errors.Is(err, broken) {
		t.Errorf("no counters: got %v", err)
	}
	testkit.WantNothingShared(t)
	shared.WarningLimits.Range(func(_, _ any) bool {
		t.Error("a limit of warnings is left")
		return true
	})
}

// Upstreams are parsed with the constant placeholders replaced.
func TestParseUpstream_ReplacesConstants(t *testing.T) {
	t.Setenv("ALIVE_TEST_HOST", "app.internal")
	t.Setenv("ALIVE_TEST_EMPTY", "")
	for _, tc := range []struct{ dial, address, fail string }{
		{"app:80", "app:80", ""},
		{"{env.ALIVE_TEST_HOST}:80", "app.internal:80", ""},
		{"{env.ALIVE_TEST_EMPTY}", "", "its placeholders are empty"},
		{"{file./app}:80", "{file./app}:80", ErrPerRequest.Error()},
		{"{http.request.host}:80", "{http.request.host}:80", ErrPerRequest.Error()},
		{"app:80-82", "app:80-82", "the address must be one socket, not 3"},
	} {
		got, err := ParseUpstream(tc.dial)
		if got.Dial != tc.dial || got.Address != tc.address || (err == nil) != (tc.fail == "") || err != nil && err.Error() != tc.fail {
			t.Errorf("%s: got the address %s and the error %v, want %s and %s", tc.dial, got.Address, err, tc.address, tc.fail)
		}
		if errors.Is(err, ErrPerRequest) != strings.HasPrefix(tc.address, "{") {
			t.Errorf("%s: got %v", tc.dial, err)
		}
	}
}

// A start with many targets is no burst: their first probes are a millisecond apart, or
// spread over the interval if that is shorter. A target that two handlers share counts
// once, and one that runs already is not probed again.
func TestStartAll_SpreadsFirstProbes(t *testing.T) {
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
			testkit.Bubble(t, func(t *testing.T) {
				address := func(i int) string { return fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1) }
				p := newProber('u')
				check := p.check()
				check.Settings.Interval, check.Settings.FastInterval = tc.interval, min(time.Second, tc.interval)
				var handlers [2][]*Monitor
				for i := range tc.n {
					for h := range handlers {
						handlers[h] = append(handlers[h], open(t, address(i), check))
					}
				}
				runs := open(t, address(tc.n), check)
				runs.Start(0)
				synctest.Wait()

				all := slices.Concat(handlers[0], []*Monitor{runs}, handlers[1])
				StartAll(all)
				time.Sleep(tc.interval - time.Nanosecond)
				synctest.Wait()
				StopAll(all)
				for i := range tc.n + 1 {
					want := []time.Duration{time.Duration(i) * tc.apart}
					if i == tc.n {
						want[0] = 0
					}
					if got := p.probes(address(i)); !slices.Equal(got, want) {
						t.Fatalf("target %d: first probes at %v, want %v", i, got, want)
					}
				}
			})
		})
	}
}

// A check at once has the time that the check has, and that of the probe that may be in
// flight.
func TestCheckAll_WaitsForTheProbeInFlight(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		check := newProber('d').check()
		check.Settings = health.Settings{
			Interval: time.Hour, FastInterval: time.Hour, DownInterval: time.Hour,
			Timeout: 3 * time.Second, Passes: 1, Fails: 1,
		}
		check.Bind = func(*Route) ProbeFunc {
			return func(context.Context) (bool, error) {
				time.Sleep(2900 * time.Millisecond)
				return false, errors.New("refused")
			}
		}
		m := open(t, "a:80", check)
		m.Start(0)
		synctest.Wait() // the first is in flight
		if err := CheckAll(t.Context(), []*Monitor{m}); err != nil {
			t.Error(err)
		}
		if v := m.Target.View(); v.Fails != 2 {
			t.Errorf("%d probes failed, want the one in flight, and the one that was asked for", v.Fails)
		}
	})
}
