// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/testkit/storages"
)

// simFigures are what simulations measure, for the table in the docs.
type simFigures struct{ rows []string }

func (f *simFigures) add(what, format string, args ...any) {
	f.rows = append(f.rows, fmt.Sprintf("| %s | %s |", what, fmt.Sprintf(format, args...)))
}

// simSize is how many members and upstreams are simulated.
func simSize() (members, upstreams int) {
	switch {
	case testkit.RaceDetector:
		return 20, 200
	case *wholeSimulation:
		return 100, 1000
	default:
		return 40, 400
	}
}

// TestSimulation simulates fleets, and logs a table of what it measures.
func TestSimulation(t *testing.T) {
	members, upstreams := simSize()
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // the targets of all members are a large heap
	var f simFigures
	for _, scenario := range []struct {
		name string
		run  func(t *testing.T, s *simFleet, f *simFigures)
	}{
		{"idle", simIdle},
		{"faults", simFaults},
		{"blind", simBlind},
		{"crash", simCrash},
		{"split", simSplit},
		{"storage", simStorage},
		{"outage", simOutage},
	} {
		t.Run(scenario.name, func(t *testing.T) {
			simulate(t, members, upstreams, func(s *simFleet) { scenario.run(t, s, &f) })
		})
	}
	t.Logf("seed %d\n| %d members, %d upstreams | |\n|---|---|\n%s", *simulationSeed, members, upstreams, strings.Join(f.rows, "\n"))
}

// spans are times that something took.
type spans []time.Duration

// String returns the median and the longest one.
func (s spans) String() string {
	if len(s) == 0 {
		return "none"
	}
	slices.Sort(s)
	return fmt.Sprintf("%.1f s, at worst %.1f s", s[len(s)/2].Seconds(), s.worst().Seconds())
}

func (s spans) worst() time.Duration {
	if len(s) == 0 {
		return 0
	}
	return slices.Max(s)
}

// each makes some upstreams behave in a way at all members, one after the other at random
// within a time from now on. It returns when each does. The others do not change.
func (s *simFleet) each(upstreams []int, found simFound, within time.Duration) map[int]time.Time {
	times := make(map[int]time.Time)
	now := time.Now()
	for _, u := range upstreams {
		times[u] = now
		if within > 0 {
			times[u] = now.Add(time.Duration(s.random.Int64N(int64(within))))
		}
	}
	before := *s.find.Load()
	s.finds(func(m, u int) simFound {
		if at, ok := times[u]; ok && !time.Now().Before(at) {
			return found
		}
		return before(m, u)
	})
	return times
}

// noticed returns how long it took until each of some upstreams had a status at all members.
func (s *simFleet) noticed(times map[int]time.Time, want health.Status) (all spans) {
	s.t.Helper()
	missing := 0
	for u, at := range times {
		var last time.Duration
		for _, m := range s.live() {
			t := m.targets[u]
			if t == nil {
				continue
			}
			if t.mu.Lock(); t.status != want {
				missing++
			}
			last = max(last, t.changed.Sub(at))
			t.mu.Unlock()
		}
		all = append(all, last)
	}
	if missing > 0 {
		s.t.Errorf("%d times an upstream is not %s at a member", missing, want)
	}
	return all
}

// perTarget returns how many probes each target got a second in a time that passes now.
func (s *simFleet) perTarget(d time.Duration) float64 {
	before := s.probes.Load()
	s.sleep(d)
	return float64(s.probes.Load()-before) / d.Seconds() / float64(len(s.upstreams))
}

// expected is how many probes each target should get a second while nothing happens.
func (s *simFleet) expected() float64 {
	n := len(s.live())
	interval := simSettings.Interval.Seconds() * (1 + simSettings.Jitter/2)
	thin := float64((n + simProbers - 1) / simProbers)
	return simProbers/interval + float64(n-simProbers)/interval/thin
}

// coverage returns how many members probe at its interval the upstream that has the fewest
// such members, and how many upstreams have fewer than they should.
func (s *simFleet) coverage() (least, few int) {
	counts := make([]int, len(s.upstreams))
	for _, m := range s.live() {
		m.fleet.mu.Lock()
		for u, t := range m.targets {
			if _, thin := m.fleet.sharing.factors[t.Target]; !thin {
				counts[u]++
			}
		}
		m.fleet.mu.Unlock()
	}
	for _, n := range counts {
		if n < simProbers {
			few++
		}
	}
	return slices.Min(counts), few
}

// until waits until something is so, and returns how long that took.
func (s *simFleet) until(step, limit time.Duration, what string, isSo func() bool) time.Duration {
	s.t.Helper()
	began := time.Now()
	for s.sleep(0); !isSo(); s.sleep(step) {
		if time.Since(began) > limit {
			s.t.Errorf("%s: not within %s", what, limit)
			break
		}
	}
	return time.Since(began)
}

// shares reports whether all members leave most of their probes to others.
func (s *simFleet) shares() bool {
	for _, m := range s.live() {
		if m.alone() != "" || m.thin() < len(m.targets)*4/5 {
			return false
		}
	}
	return true
}

// thin is how many targets a member probes less often than at their interval.
func (m *simMember) thin() int {
	m.fleet.mu.Lock()
	defer m.fleet.mu.Unlock()
	return len(m.fleet.sharing.factors)
}

func simIdle(t *testing.T, s *simFleet, f *simFigures) {
	const d = 60 * time.Second
	s.engine.ResetCounts()
	probes := s.perTarget(d)
	n := len(s.members)
	perNode := func(op storages.Op, prefix string) float64 {
		return float64(s.engine.Count(op, prefix)) / float64(n) / d.Seconds()
	}
	looks, members, stores := perNode(storages.Load, "alive/news/"), perNode(storages.Load, "alive/members/"), perNode(storages.Store, "")
	if want := s.expected(); probes < 0.95*want || probes > 1.05*want {
		t.Errorf("%.2f probes a target and second, want %.2f", probes, want)
	}
	if looks > 1.02/simEvery.Seconds() {
		t.Errorf("%.2f Loads of the news a member and second", looks)
	}
	period := max(leastPeriod, time.Duration(n)*periodPerMember)
	if most := float64(n+1) / period.Seconds(); members > most {
		t.Errorf("%.2f Loads of members a member and second, want at most %.2f", members, most)
	}
	const full = 30 * time.Second
	for _, m := range s.members {
		m.mu.Lock()
		for prefix, times := range m.lists {
			for i := range times {
				if i > 0 && times[i].Sub(times[i-1]) < full && times[i].Sub(times[0]) > time.Second {
					t.Errorf("member %d lists %s after %s", m.number, prefix, times[i].Sub(times[i-1]))
				}
			}
		}
		m.mu.Unlock()
	}
	if least, few := s.coverage(); few > 0 {
		t.Errorf("%d upstreams are probed by too few members, one by %d", few, least)
	}
	f.add("probes a target and second, idle", "%.2f", probes)
	f.add("the same without `probers`", "%.1f", float64(n)/simSettings.Interval.Seconds()/(1+simSettings.Jitter/2))
	f.add("Loads of the news a member and second", "%.2f", looks)
	f.add("Loads of members a member and second", "%.1f", members)
	f.add("Stores a member and second", "%.2f", stores)
}

func simFaults(t *testing.T, s *simFleet, f *simFigures) {
	for _, fault := range []struct {
		name    string
		found   simFound
		noticed time.Duration
	}{{"hangs", hangs, 15 * time.Second}, {"refuses connections", refuses, 12 * time.Second}} {
		upstreams := s.pick(40)
		times := s.each(upstreams, fault.found, 10*time.Second)
		s.sleep(50 * time.Second)
		noticed := s.noticed(times, health.Down)
		if worst := noticed.worst(); worst > fault.noticed {
			t.Errorf("an upstream that %s is down at all members after %s", fault.name, worst)
		}
		f.add("an upstream "+fault.name+": down at all members after", "%s", noticed)
		times = s.each(upstreams, passes, 10*time.Second)
		s.sleep(50 * time.Second)
		returned := s.noticed(times, health.Up)
		if worst := returned.worst(); worst > 15*time.Second {
			t.Errorf("an upstream that returned is up at all members after %s", worst)
		}
		f.add("it returns: up at all members after", "%s", returned)
	}
	f.add("verdicts that own probes contradict, or \"down\" of an upstream in reach", "%d", len(s.wrong)+s.false)
}

func simBlind(t *testing.T, s *simFleet, f *simFigures) {
	blind := s.members[0]
	s.finds(func(m, _ int) simFound {
		if m == blind.number {
			return hangs
		}
		return passes
	})
	began := time.Now()
	own := blind.probes.Load()
	idle := s.expected()
	first := s.perTarget(30 * time.Second)
	first -= float64(blind.probes.Load()-own) / 30 / float64(len(s.upstreams))
	own = blind.probes.Load()
	later := s.perTarget(60 * time.Second)
	later -= float64(blind.probes.Load()-own) / 60 / float64(len(s.upstreams))
	var took spans
	for _, m := range s.members {
		for u, t := range m.targets {
			t.mu.Lock()
			if t.status != health.Up && m != blind || t.status != health.Down && m == blind {
				s.t.Errorf("upstream %d is %s at member %d", u, t.status, m.number)
			}
			if m == blind {
				took = append(took, t.changed.Sub(began))
			}
			t.mu.Unlock()
		}
	}
	f.add("one member reaches no upstream: probes a target and second of the others in the first 30 s, later, and before", "%.2f, %.2f, %.2f", first, later, idle)
	f.add("all is down there after", "%s", took)
	s.finds(func(int, int) simFound { return passes })
	f.add("it reaches all again: all share their probes again after", "%.0f s", s.until(time.Second, 2*time.Minute, "sharing", s.shares).Seconds())
}

func simCrash(t *testing.T, s *simFleet, f *simFigures) {
	n := len(s.members) / 10
	var ending sync.WaitGroup
	for _, i := range s.random.Perm(len(s.members))[:n] {
		ending.Go(s.members[i].crash)
	}
	ending.Wait()
	least, few := s.coverage()
	took := s.until(time.Second, time.Minute, "enough probers", func() bool { _, few := s.coverage(); return few == 0 })
	f.add(fmt.Sprintf("%d members crash: upstreams with fewer than %d probers, and the fewest", n, simProbers), "%d, %d", few, least)
	f.add("all have as many again after", "%.0f s", took.Seconds())
}

func simSplit(t *testing.T, s *simFleet, f *simFigures) {
	far := func(m, u int) bool { return m%2 == 0 && u%2 == 0 }
	began := time.Now()
	s.finds(func(m, u int) simFound {
		if far(m, u) {
			return hangs
		}
		return passes
	})
	for range 30 {
		s.sleep(time.Second)
		for _, m := range s.members {
			for u, one := range m.targets {
				if !far(m.number, u) && one.Status() != health.Up {
					t.Errorf("upstream %d is %s at member %d, which reaches it", u, one.Status(), m.number)
				}
			}
		}
	}
	s.sleep(90 * time.Second)
	var took spans
	missing := 0
	for _, m := range s.members {
		for u, one := range m.targets {
			one.mu.Lock()
			switch {
			case !far(m.number, u):
			case one.status != health.Down:
				missing++
			default:
				took = append(took, one.changed.Sub(began))
			}
			one.mu.Unlock()
		}
	}
	f.add("half of the members do not reach half of the upstreams: down there after", "%s", took)
	slices.Sort(took)
	f.add("that for 99 %", "%.1f s", took[len(took)*99/100].Seconds())
	f.add("not noticed after 120 s", "%d", missing)
	f.add("probes a target and second meanwhile", "%.2f", s.perTarget(30*time.Second))
	s.finds(func(int, int) simFound { return passes })
	f.add("it heals: all share their probes again after", "%.0f s", s.until(time.Second, 3*time.Minute, "sharing", s.shares).Seconds())
}

func simStorage(t *testing.T, s *simFleet, f *simFigures) {
	for _, fault := range []struct {
		name  string
		begin func()
	}{
		{"fails", func() { s.engine.Fail(errors.New("connection refused")) }},
		{"hangs", s.engine.Hang},
	} {
		fault.begin()
		took := s.until(100*time.Millisecond, simEvery+2*time.Second, "probing all", func() bool {
			return !slices.ContainsFunc(s.members, func(m *simMember) bool { return m.alone() == "" || m.thin() > 0 })
		})
		f.add("the storage "+fault.name+": all members probe all after", "%.1f s", took.Seconds())
		now := time.Now()
		for _, m := range s.members {
			for _, one := range m.targets {
				if next := one.Brief().Next.Sub(now); next > simSettings.Interval*11/10 {
					t.Errorf("the next probe is after %s", next)
				}
			}
		}
		s.sleep(30 * time.Second)
		s.engine.Mend()
		took = s.until(time.Second, 2*time.Minute, "sharing", s.shares)
		f.add("it works again: all share their probes after", "%.0f s", took.Seconds())
		if least, few := s.coverage(); few > 0 {
			t.Errorf("%d upstreams are probed by too few members, one by %d", few, least)
		}
	}
}

func simOutage(t *testing.T, s *simFleet, f *simFigures) {
	for _, rewritten := range []bool{false, true} {
		upstreams := s.pick(len(s.upstreams) * 3 / 10)
		what := fmt.Sprintf("%d upstreams hang at once: down at all members after", len(upstreams))
		stop := make(chan struct{})
		var rewriting sync.WaitGroup
		if rewritten {
			what = "the same while another program rewrites the news twice a second"
			key := s.engine.Keys("alive/news/")[0]
			value, _ := s.engine.Get(key)
			rewriting.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(500 * time.Millisecond):
						s.engine.Put(key, value)
					}
				}
			})
		}
		times := s.each(upstreams, hangs, 0)
		s.sleep(90 * time.Second)
		f.add(what, "%s", s.noticed(times, health.Down))
		times = s.each(upstreams, passes, 0)
		s.sleep(60 * time.Second)
		f.add("they return: up at all members after", "%s", s.noticed(times, health.Up))
		close(stop)
		rewriting.Wait()
	}
}
