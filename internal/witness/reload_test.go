// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// TestReload_KeepsWhatIsKnown: a handler that joins and one that leaves disturb neither a
// suspicion, nor a back-off, nor what counts, nor an ejection.
func TestReload_KeepsWhatIsKnown(t *testing.T) {
	for _, tc := range []struct {
		rule   string
		before func(o *observed, a *server)
		after  func(t *testing.T, o *observed, a *server)
	}{
		{"a suspicion", func(_ *observed, a *server) {
			a.setTakes(time.Second)
			a.fail(reset)
		}, func(t *testing.T, o *observed, a *server) {
			if !a.IsSuspect() {
				t.Error("the suspicion has ended")
			}
			advance(time.Second)
			o.want(t, "1s a acquitted")
		}},
		{"a back-off", func(_ *observed, a *server) { a.fail(reset) }, func(t *testing.T, o *observed, a *server) {
			a.fail(reset)
			o.want(t, "0s a accused by outcome")
		}},
		{"what counts", func(_ *observed, a *server) {
			for range 4 {
				a.fail(status)
			}
		}, func(t *testing.T, o *observed, a *server) {
			a.fail(status)
			o.want(t, "0s a ejected for 30s, 1 in a row", "0s a accused by outcome")
		}},
		{"an ejection", func(_ *observed, a *server) { a.eject() }, func(t *testing.T, o *observed, a *server) {
			advance(30 * time.Second)
			if !a.ClaimTrial(true) {
				t.Error("no trial")
			}
			a.fail(status)
			if got, want := o.told("ejected"), []string{"30s a ejected for 1m0s, 2 in a row"}; !slices.Equal(got, want) {
				t.Errorf("told %q, want %q", got, want)
			}
		}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := observe(t, 4, 1)
				a := o.servers[0]
				tc.before(o, a)
				old, newer := o.handler, o.newHandler()
				o.told()
				old.Hooks.Accused = func(string, Cause, string, bool) { t.Error("the old handler was told") }
				p, err := Join(t.Name(), newer)
				if err != nil {
					t.Fatal(err)
				}
				if p != o.Pool {
					t.Fatal("it is another pool")
				}
				for _, s := range o.servers {
					if u := p.Add(newer, s.Address, s.targets); u != s.Upstream {
						t.Fatal("it is another upstream")
					}
				}
				p.Follow(newer)
				newer.SetRunning(true)
				o.leave(t, old)
				o.handler = newer
				tc.after(t, o, a)
				// the cleanup of observe leaves for the handler that it made
				if _, err := Join(t.Name(), old); err != nil {
					t.Fatal(err)
				}
				o.leave(t, newer)
				o.handler = old
			})
		})
	}
}

// TestJoin_TellsNothingBeforeFollow: while a handler is being made, the pool may change because
// of another one. A handler that does not follow decides nothing either, also if it is alone.
func TestJoin_TellsNothingBeforeFollow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 2, 1)
		a := o.servers[0]
		h := &Handler{Settings: DefaultSettings()} // without hooks: a call would panic
		if _, err := Join(t.Name(), h); err != nil {
			t.Fatal(err)
		}
		o.Add(h, a.Address, a.targets)
		a.fail(reset)
		o.want(t, "0s a suspect by outcome", "0s a acquitted")
		a.eject()
		o.Remove(o.handler, a.Upstream)
		a.fail(status)
		h.Settings.EjectAfter = 0
		a.FollowChecks()
		if a.Ejection().IsZero() {
			t.Error("a handler that does not follow ends an ejection")
		}
		called := 0
		h.Hooks = o.newHandler().Hooks
		h.Hooks.Changed = func() { called++ }
		o.Follow(h)
		advance(30 * time.Second)
		a.ClaimTrial(true)
		a.good()
		if called == 0 {
			t.Error("a handler that follows is told nothing")
		}
		o.Add(o.handler, a.Address, a.targets)
		o.Remove(h, a.Upstream)
		if err := o.Leave(h); err != nil {
			t.Error(err)
		}
	})
}

// TestReload_TheNewestThatRunsDecides: a handler that does not run yet decides nothing, and
// the newest that runs does, by its own settings and checks.
func TestReload_TheNewestThatRunsDecides(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 1, 1)
		a := o.servers[0]
		newer := o.newHandler(func(s *Settings) { s.Off = true })
		if _, err := Join(t.Name(), newer); err != nil {
			t.Fatal(err)
		}
		o.Add(newer, a.Address, nil)
		o.Follow(newer)
		a.fail(reset)
		o.want(t, "0s a suspect by outcome", "0s a acquitted")
		newer.SetRunning(true)
		advance(time.Minute)
		a.fail(reset)
		o.want(t)
		newer.SetRunning(false)
		a.fail(reset)
		o.want(t, "1m0s a suspect by outcome", "1m0s a acquitted")
		o.Remove(newer, a.Upstream)
		if err := o.Leave(newer); err != nil {
			t.Fatal(err)
		}
	})
}

// TestReload_WithoutEjectionNothingStaysEjected: once a handler that ejects nothing decides,
// what is ejected returns at once, and trials that fail eject nothing.
func TestReload_WithoutEjectionNothingStaysEjected(t *testing.T) {
	for _, trial := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			o := observe(t, 4, 1)
			a := o.servers[0]
			a.eject()
			var under *Trip
			if trial {
				advance(30 * time.Second)
				if !a.ClaimTrial(true) {
					t.Fatal("no trial")
				}
				under = a.send()
			}
			o.told()
			o.began = time.Now()
			newer := o.newHandler(func(s *Settings) { s.EjectAfter = 0 })
			if _, err := Join(t.Name(), newer); err != nil {
				t.Fatal(err)
			}
			o.Add(newer, a.Address, a.targets)
			o.Follow(newer)
			a.FollowChecks()
			if a.Ejection().IsZero() {
				t.Fatal("a handler that does not run yet ends an ejection")
			}
			newer.SetRunning(true)
			if trial {
				under.Fail(status)
			} else {
				a.FollowChecks()
			}
			o.want(t, "0s a returned")
			for range 20 {
				a.fail(status)
			}
			advance(time.Minute)
			if !a.Ejection().IsZero() {
				t.Error("it is ejected again")
			}
			o.Remove(newer, a.Upstream)
			if err := o.Leave(newer); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestPool_EndsWithItsLastHandler: afterwards nothing is left, also if requests still wait,
// and they have no effect.
func TestPool_EndsWithItsLastHandler(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := &Handler{Settings: DefaultSettings()} // without hooks: a call would panic
		p, err := Join(t.Name(), h)
		if err != nil {
			t.Fatal(err)
		}
		p.Follow(h)
		h.SetRunning(true)
		s := &server{Upstream: p.Add(h, "a", nil)}
		waits := s.send()
		p.Remove(h, s.Upstream)
		if got := len(*p.list.Load()); got != 0 {
			t.Errorf("%d upstreams are left", got)
		}
		if err := p.Leave(h); err != nil {
			t.Fatal(err)
		}
		shared.Witnesses.Range(func(key, _ any) bool { t.Errorf("%v is left", key); return true })
		advance(time.Minute)
		s.send().Void()
		waits.Fail(reset)
		if s.ClaimTrial(true) {
			t.Error("a trial of a pool that has ended")
		}
	})
}

// TestReload_OnlyChecksThatDecideTurnDown: the checks of a config that has not started, or
// that is about to end, neither end an ejection nor keep requests from accusing.
func TestReload_OnlyChecksThatDecideTurnDown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 4, 1)
		a := o.servers[0]
		sick := health.NewTarget(health.Settings{Interval: time.Second, FastInterval: time.Second, DownInterval: time.Second, Timeout: time.Second, Passes: 1, Fails: 1})
		defer sick.Attach(health.Driver{Probe: func(context.Context, bool) (bool, error) { return false, errors.New("sick") }}, 0)()
		advance(time.Second)
		for _, running := range []bool{false, true} {
			other := o.newHandler()
			other.SetRunning(running)
			p, err := Join(t.Name(), other)
			if err != nil {
				t.Fatal(err)
			}
			p.Add(other, a.Address, []*health.Target{sick})
			p.Follow(other)
			if running { // it is the older one
				o.Remove(o.handler, a.Upstream)
				o.Add(o.handler, a.Address, a.targets)
			}
			a.eject()
			a.FollowChecks()
			if a.Ejection().IsZero() {
				t.Errorf("running %v: the checks of another config have ended the ejection", running)
			}
			p.Remove(other, a.Upstream)
			if err := p.Leave(other); err != nil {
				t.Error(err)
			}
			advance(time.Minute)
			a.ClaimTrial(true)
			a.good()
		}
	})
}

// TestLeave_WaitsForTheSampler: when the last handler has left, its hooks are not called any
// more.
func TestLeave_WaitsForTheSampler(t *testing.T) {
	bubble(t, func(t *testing.T) {
		called, ended := false, false
		h := new(observed).newHandler()
		h.Hooks.Accused = func(string, Cause, string, bool) {
			called = true
			time.Sleep(time.Second)
			ended = true
		}
		p, err := Join(t.Name(), h)
		if err != nil {
			t.Fatal(err)
		}
		p.Follow(h)
		h.SetRunning(true)
		s := &server{Upstream: p.Add(h, "a", nil)}
		trip := s.send()
		advance(time.Second)
		if !called {
			t.Fatal("no stall")
		}
		p.Remove(h, s.Upstream)
		if err := p.Leave(h); err != nil {
			t.Error(err)
		}
		if !ended {
			t.Error("a hook is being called")
		}
		trip.Void()
	})
}
