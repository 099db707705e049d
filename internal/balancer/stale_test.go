// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// told returns all events, in their order.
func (p *policy) told() (events []string) {
	synctest.Wait() // a request can be answered before the event of the verdict is emitted
	for _, e := range p.emitted() {
		switch e.Name {
		case "fail_open":
			events = append(events, fmt.Sprintf("fail_open %v", e.Data["active"]))
		default:
			events = append(events, fmt.Sprintf("%s %v", e.Name, e.Data["upstream"]))
		}
	}
	return events
}

// gauges returns what metrics show of a policy: how many of its pool are in each state,
// and whether it fails open.
func (p *policy) gauges() string {
	states, failOpen, shown := make(map[string]int), false, make(map[string]bool)
	for _, e := range p.rows(Filter{}) {
		if !e.Stale && !shown[e.Upstream] { // one of several pools can be shown once for each
			states[e.State()]++
		}
		shown[e.Upstream] = true
		failOpen = failOpen || e.FailOpen
	}
	return fmt.Sprintf("%d up, %d down, fail_open %v", states["up"], states["down"], failOpen)
}

// A deployment behind a dynamic source replaces all upstreams, and the old ones stop:
// from the first request with the new upstreams on, the old ones cause no event and no
// gauge.
func TestStale_DeploymentRaisesNoAlarm(t *testing.T) {
	for _, after := range []time.Duration{0, time.Second, time.Minute} {
		t.Run(fmt.Sprintf("they stop %s later", after), func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				n := newNetwork("a:80", "b:80", "c:80", "d:80", "e:80", "f:80")
				p := newDynamicPolicy(t, n, "x")
				for range 600 {
					p.served(1, "a:80", "b:80", "c:80")
					time.Sleep(100 * time.Millisecond)
				}
				p.served(1, "d:80", "e:80", "f:80")
				for i := range 2400 { // less than what forgets them
					if time.Duration(i)*100*time.Millisecond == after {
						n.kill("a:80", "b:80", "c:80")
					}
					p.served(1, "d:80", "e:80", "f:80")
					if got, want := p.gauges(), "3 up, 0 down, fail_open false"; got != want {
						t.Fatalf("%d ms after the first request with the next ones: %s, want %s", 100*i, got, want)
					}
					time.Sleep(100 * time.Millisecond)
				}
				for i, m := range p.dynamic.members()[:3] {
					if got := m.Status().String(); got != "down" {
						t.Errorf("upstream %d is %s, want down: the test shows nothing", i, got)
					}
				}
				for _, event := range p.told() {
					if !strings.HasPrefix(event, "healthy ") {
						t.Errorf("told %s, want no alarm", event)
					}
				}
				for _, line := range p.logs.FilterLevelExact(zap.WarnLevel).All() {
					t.Errorf("warning: %s %v", line.Message, line.ContextMap())
				}
			})
		})
	}
}

// A pool that fails open and is then replaced: the gauge is right with the first request
// that brings the next one, and the end of the alarm is told soon.
func TestStale_ReplacementEndsTheAlarm(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80")
		p := newDynamicPolicy(t, n, "x")
		p.served(1, "a:80")
		time.Sleep(time.Minute)
		n.kill("a:80")
		time.Sleep(time.Minute)
		p.served(1, "a:80")
		if got, want := p.gauges(), "0 up, 1 down, fail_open true"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		p.served(1, "b:80") // waits for its first verdict
		if got, want := p.gauges(), "1 up, 0 down, fail_open false"; got != want {
			t.Errorf("after the next one: %s, want %s", got, want)
		}
		time.Sleep(sweepInterval)
		if got, want := p.told(), []string{"healthy a:80", "unhealthy a:80", "fail_open true", "healthy b:80", "fail_open false"}; !slices.Equal(got, want) {
			t.Errorf("told %v, want %v", got, want)
		}
		p.served(1, "a:80") // it is back, and as dead
		if got, want := p.gauges(), "0 up, 1 down, fail_open true"; got != want || p.told()[len(p.told())-1] != "fail_open true" {
			t.Errorf("when it is back: %s, told %v", got, p.told())
		}
	})
}

// Reading the list of past pools, or of pools that changed since the last request,
// changes nothing: no line, no event, no snapshot.
func TestStale_LookingChangesNothing(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80")
		p := newDynamicPolicy(t, n, "x")
		p.served(1, "a:80", "b:80")
		p.served(1, "c:80")
		time.Sleep(time.Minute)
		n.kill("a:80", "b:80", "c:80")
		time.Sleep(time.Minute)
		type state struct {
			snapshot *pool.Snapshot
			last     int64
		}
		states := func() map[uint64]state {
			all := make(map[uint64]state)
			for hash, a := range p.dynamic.answers.all() {
				all[hash] = state{a.Current(), a.last.Load()}
			}
			return all
		}
		before, told, logged := states(), p.told(), p.logs.Len()
		if got, want := p.gauges(), "0 up, 1 down, fail_open true"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		_ = p.counters.Selections()
		if !maps.Equal(states(), before) {
			t.Error("reading the list made snapshots")
		}
		if got := p.told(); !slices.Equal(got, told) || p.logs.Len() != logged {
			t.Errorf("reading the list reported %v and logged %v", got[len(told):], p.logs.All()[logged:])
		}
		p.served(1, "c:80")
		if got := p.told(); len(got) != len(told)+1 || got[len(told)] != "fail_open true" {
			t.Errorf("a request told %v, want fail_open true", got[len(told):])
		}
	})
}

// Answers that alternate are all present: their upstreams have gauges without a gap, and
// one that dies is an alarm whichever answer comes next.
func TestStale_AlternatingAnswersAreNot(t *testing.T) {
	for _, tc := range []struct {
		rule   string
		answer func(i int) []string // of each request, 100 ms apart
		all    int                  // how many upstreams there are
		open   bool                 // a pool of one that is down fails open
	}{
		{"request by request", func(i int) []string { return [][]string{{"a:80"}, {"b:80"}, {"c:80"}}[i%3] }, 3, true},
		{"two seconds each", func(i int) []string { return [][]string{{"a:80"}, {"b:80"}, {"c:80"}}[i/20%3] }, 3, true},
		{"ten seconds each", func(i int) []string { return [][]string{{"a:80"}, {"b:80"}, {"c:80"}}[i/100%3] }, 3, true},
		{"never the same", func(i int) []string {
			dials := []string{[]string{"a:80", "b:80", "c:80"}[i%3]}
			for bits := i + 1; bits > 0; bits /= 2 {
				dials = append(dials, []string{"y:80", "z:80"}[bits%2])
			}
			return dials
		}, 5, false},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				n := newNetwork("a:80", "b:80", "c:80", "y:80", "z:80")
				p := newDynamicPolicy(t, n, "x")
				i := 0
				requests := func(d time.Duration, want string) {
					t.Helper()
					for range d / (100 * time.Millisecond) {
						p.served(1, tc.answer(i)...)
						if got := p.gauges(); want != "" && got != want {
							t.Fatalf("at request %d: %s, want %s", i, got, want)
						}
						i++
						time.Sleep(100 * time.Millisecond)
					}
				}
				requests(61*time.Second, "") // until each has come back
				requests(40*time.Second, fmt.Sprintf("%d up, 0 down, fail_open false", tc.all))
				n.kill("b:80")
				requests(40*time.Second, "")
				if got, want := p.gauges(), fmt.Sprintf("%d up, 1 down, fail_open %v", tc.all-1, tc.open); got != want {
					t.Errorf("one is down: %s, want %s", got, want)
				}
				told := p.told()
				if !slices.Contains(told, "unhealthy b:80") || slices.Contains(told, "fail_open true") != tc.open {
					t.Errorf("told %v, want the one that is down, and its pool that fails open", told)
				}
				if n := p.logs.FilterMessage("upstream is down").Len(); n != 1 {
					t.Errorf("%d lines of the one that is down, want 1", n)
				}
			})
		})
	}
}

// A source that alternated once, as after a rollback, and not since then, is one that
// replaces its answer.
func TestStale_AlternationIsForgotten(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80")
		p := newDynamicPolicy(t, n, "x")
		bring := func(d time.Duration, dials ...string) {
			for range d / time.Second {
				p.served(1, dials...)
				time.Sleep(time.Second)
			}
		}
		bring(time.Minute, "a:80")
		bring(20*time.Second, "b:80")
		bring(time.Minute, "a:80") // a rollback
		bring(20*time.Second, "b:80")
		if got, want := p.gauges(), "2 up, 0 down, fail_open false"; got != want {
			t.Errorf("a short while after the rollback: %s, want %s", got, want)
		}
		bring(2*returnsFor, "a:80")
		bring(2*time.Second, "c:80")
		if got, want := p.gauges(), "1 up, 0 down, fail_open false"; got != want {
			t.Errorf("long after the rollback: %s, want %s", got, want)
		}
	})
}

// What is past stays past over a reload, and what is not is not.
func TestStale_SurvivesReloads(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80")
		p := newDynamicPolicy(t, n, "x")
		for range 10 {
			p.served(1, "a:80")
			time.Sleep(time.Second)
		}
		p.served(1, "b:80")
		next := newDynamicPolicy(t, n, "x")
		p.end(t)
		why := func() map[string]string {
			all := make(map[string]string)
			for _, e := range next.rows(Filter{}) {
				all[e.Upstream] = fmt.Sprintf("past %v: %s", e.Stale, e.Why)
			}
			return all
		}
		const past = "past true: the source returns other upstreams now: no requests, and soon forgotten"
		if got, want := why(), map[string]string{"a:80": past, "b:80": "past false: no request has brought it since the config was loaded"}; !maps.Equal(got, want) {
			t.Errorf("after a reload: %v, want %v", got, want)
		}
		next.served(1, "b:80")
		if got, want := why(), map[string]string{"a:80": past, "b:80": "past false: up: gets requests in turn"}; !maps.Equal(got, want) {
			t.Errorf("after a request: %v, want %v", got, want)
		}
	})
}

// A pool that requests wait for is present, also when others are brought meanwhile.
func TestStale_AwaitedPoolIsNot(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("b:80")
		p := newDynamicPolicy(t, n, "x")
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.served(1, "a:80")
		}()
		time.Sleep(time.Millisecond)
		p.served(1, "b:80")
		<-done
		if got, want := slices.Sorted(slices.Values(p.told())), []string{"fail_open true", "healthy b:80", "unhealthy a:80"}; !slices.Equal(got, want) {
			t.Errorf("told %v, want %v", got, want)
		}
	})
}

// An upstream that one handler lists and requests bring to another is never past.
func TestStale_NotWhileAnotherHandlerHasIt(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80")
		p := newDynamicPolicy(t, n, "x")
		other := newDynamicPolicy(t, n, "y", in(p.registry))
		answering(t, p.registry)
		other.served(1, "a:80")
		p.served(1, "a:80")
		time.Sleep(time.Minute)
		p.served(1, "b:80")
		n.kill("a:80")
		time.Sleep(time.Minute)
		if got := p.told(); !slices.Contains(got, "unhealthy a:80") {
			t.Errorf("told %v, want that a is down, which is past for one handler only", got)
		}
	})
}
