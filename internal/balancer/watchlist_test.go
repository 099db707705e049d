// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// setAhead returns a time as a program sees it after its wall clock was set: the
// monotonic reading goes on as if nothing had happened.
func setAhead(t time.Time, by time.Duration) time.Time {
	// the fields of time.Time: with a monotonic reading, wall has a flag, 33 bits of
	// seconds and 30 bits of nanoseconds
	wall := (*uint64)(unsafe.Pointer(&t))
	*wall += uint64(by/time.Second) << 30
	return t
}

// A wall clock that is set moves no time of dynamic upstreams.
func TestDynamicClock_IsMonotonic(t *testing.T) {
	now := time.Now()
	ahead := setAhead(now, time.Hour)
	if ahead.Unix()-now.Unix() != 3600 || ahead.Sub(now) != 0 {
		t.Fatalf("the test does not set the wall clock alone: %v, %v", now, ahead)
	}
	if got, want := elapsed(ahead), elapsed(now); got != want {
		t.Errorf("after the clock was set an hour ahead: %s have elapsed more, want 0s", got-want)
	}
}

// Requests before and after the wall clock was set an hour ahead forget nothing, and
// no mode.
func TestDynamicClock_SetAheadForgetsNothing(t *testing.T) {
	p := newPolicy(t, "", func(s *setup) {
		s.Rules.Hold = 0
		s.Checks = []*monitor.Check{silent(health.Settings{Interval: time.Hour, Timeout: time.Hour})}
	})
	d := p.dynamic
	p.Select(brought("a:80"), testkit.Get(), nil)
	for _, by := range []time.Duration{0, time.Minute, -time.Minute, time.Hour, 24 * time.Hour} {
		now := setAhead(time.Now(), by)
		d.answers.brought(d.find(brought("a:80")), now)
		d.sweep(elapsed(now))
		if got, want := d.list.dials(), []string{"a:80"}; !slices.Equal(got, want) {
			t.Fatalf("watched after the clock was set by %s: %v, want %v", by, got, want)
		}
	}
	d.sweep(elapsed(time.Now().Add(idleFor))) // an hour of the monotonic clock
	if got := d.list.dials(); len(got) > 0 {
		t.Errorf("watched after an hour without a request: %v, want none", got)
	}
}

// However often the config is reloaded, an address is forgotten after five minutes of
// requests without it, and after an hour without requests.
func TestWatchList_TimesSurviveReloads(t *testing.T) {
	for _, every := range []time.Duration{7 * time.Second, time.Minute, 4 * time.Minute} {
		for _, tc := range []struct {
			rule     string
			requests bool
			forgets  time.Duration
			address  string
		}{
			{"requests bring others", true, missingFor, "b:80"},
			{"no requests", false, idleFor, "a:80"},
		} {
			t.Run(fmt.Sprintf("%s, reloads every %s", tc.rule, every), func(t *testing.T) {
				testkit.Bubble(t, func(t *testing.T) {
					n := newNetwork("a:80", "b:80")
					p := newDynamicPolicy(t, n, "x")
					p.served(1, "a:80", "b:80")
					began, reloaded := time.Now(), time.Now()
					watched := func() bool { return slices.Contains(p.dynamic.list.dials(), tc.address) }
					for watched() && time.Since(began) < 2*tc.forgets {
						time.Sleep(time.Second)
						if tc.requests {
							p.served(1, "a:80")
						}
						if time.Since(reloaded) >= every {
							reloaded = time.Now()
							next := newDynamicPolicy(t, n, "x")
							p.end(t)
							p = next
						}
					}
					took := time.Since(began)
					if most := tc.forgets + 2*sweepInterval + 5*time.Second; took < tc.forgets || took > most {
						t.Errorf("%s is forgotten after %s, want from %s to %s", tc.address, took, tc.forgets, most)
					}
					if tc.requests && !slices.Contains(p.dynamic.list.dials(), "a:80") {
						t.Error("the one that requests bring is forgotten")
					}
					p.end(t)
				})
			})
		}
	}
}

// Handlers with the same source share the addresses, but each forgets what its own
// requests do not bring: that another handler gets them is no reason to probe on.
func TestWatchList_EachHandlerForgetsByItself(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80")
		first, second := newDynamicPolicy(t, n, "x"), newDynamicPolicy(t, n, "x")
		first.served(1, "a:80")
		second.served(1, "b:80")
		time.Sleep(time.Second)
		nextFirst, nextSecond := newDynamicPolicy(t, n, "x"), newDynamicPolicy(t, n, "x")
		first.end(t)
		second.end(t)
		if a, b := nextFirst.dynamic.members(), nextSecond.dynamic.members(); len(a) != 2 || len(b) != 2 {
			t.Fatalf("%d and %d upstreams watched after a reload, want 2 and 2", len(a), len(b))
		}
		for range 7 * 60 {
			time.Sleep(time.Second)
			nextFirst.served(1, "a:80")
			nextSecond.served(1, "b:80")
		}
		for _, tc := range []struct {
			*policy
			want string
		}{{nextFirst, "a:80"}, {nextSecond, "b:80"}} {
			if all := tc.dynamic.members(); len(all) != 1 || all[0].Address != tc.want {
				t.Errorf("%d upstreams watched, want %s only", len(all), tc.want)
			}
		}
		if got, want := nextFirst.dynamic.list.dials(), []string{"a:80", "b:80"}; !slices.Equal(got, want) {
			t.Errorf("on the list: %v, want %v", got, want)
		}
	})
}

// What an earlier config watched is forgotten only when requests have seen the
// pool without it for five minutes, be the first of them late.
func TestWatchList_ResumedAddressesAreKeptUntilRequestsMissThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "")
		d := p.dynamic
		d.list.add("10.9.9.9:80") // by the earlier config
		d.resume()
		d.list.remove("10.9.9.9:80")
		time.Sleep(40 * time.Minute) // less than an hour
		p.Select(brought("10.0.0.1:80"), testkit.Get(), nil)
		time.Sleep(2 * sweepInterval)
		if got, want := d.list.dials(), []string{"10.0.0.1:80", "10.9.9.9:80"}; !slices.Equal(got, want) {
			t.Errorf("watched a minute after the first request without one: got %v, want %v", got, want)
		}
	})
}

// dials returns the addresses that are watched.
func (l *watchList) dials() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.addresses))
}
