// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/testkit/storages"
)

// simFigures are what a simulation measures, for the table in the docs.
type simFigures struct {
	rows          []string
	wrong, unfair int
}

func (f *simFigures) add(what, format string, args ...any) {
	f.rows = append(f.rows, fmt.Sprintf("| %s | %s |", what, fmt.Sprintf(format, args...)))
}

// simSize is how many members and upstreams are simulated.
func simSize() (members, upstreams int) {
	switch {
	case testkit.RaceDetector:
		return 8, 24
	case *wholeSimulation:
		return 100, 1000
	default:
		return 20, 200
	}
}

// TestSimulation simulates a fleet to which all happens, one after the other, and logs a
// table of what it measures. With the race detector it is another and smaller fleet each time,
// since it crashes after many timers of one bubble: https://go.dev/issue/78156
func TestSimulation(t *testing.T) {
	members, upstreams := simSize()
	all := []func(*testing.T, *simFleet, *simFigures){
		simIdle, simFaults, simOutage, simBlind, simSplit, simStorage, simCrash,
	}
	atOnce := len(all)
	if testkit.RaceDetector {
		atOnce = 1
	}
	var f simFigures
	for some := range slices.Chunk(all, atOnce) {
		simulate(t, members, upstreams, func(s *simFleet) {
			for _, happens := range some {
				happens(t, s, &f)
				s.check()
			}
			f.wrong += s.wrong
			f.unfair += s.unfair
		})
	}
	f.add("verdicts that a member's own probes contradict", "%d", f.wrong)
	f.add("upstreams that are down at members which reach them", "%d", f.unfair)
	t.Logf("seed %d\n| %d members, %d upstreams | |\n|---|---|\n%s", *simulationSeed, members, upstreams, strings.Join(f.rows, "\n"))
}

// spans are times that something took.
type spans []time.Duration

// String returns the median and the longest one.
func (s spans) String() string {
	return fmt.Sprintf("%.1f s, at worst %.1f s", s.share(50).Seconds(), s.share(100).Seconds())
}

// share returns the time within which a percentage of them is.
func (s spans) share(percent int) time.Duration {
	if len(s) == 0 {
		return 0
	}
	slices.Sort(s)
	return s[min(len(s)*percent/100, len(s)-1)]
}

// each makes some upstreams behave in a way at all members, one after the other at random
// within a time from now on. It returns when each does. The others do not change.
func (s *simFleet) each(upstreams []int, found simFound, within time.Duration) map[int]time.Time {
	times := make(map[int]time.Time)
	now := time.Now()
	for _, u := range upstreams {
		times[u] = now.Add(time.Duration(s.random.Int64N(int64(within) + 1)))
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

// noticed returns how long it took until each of some upstreams had a status at all members
// that have it.
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

// wantWithin fails if something took longer than it may.
func (s *simFleet) wantWithin(what string, took spans, limit time.Duration) {
	s.t.Helper()
	if worst := took.share(100); worst > limit {
		s.t.Errorf("%s after %s, want within %s", what, worst, limit)
	}
}

// noticeLimit is after how long all members at the latest have an upstream down that hangs: a
// prober fails twice, all hear of it, and all fail as often as it takes.
const noticeLimit = 5500*time.Millisecond + 2*2*time.Second + simEvery + 3*2*time.Second + 500*time.Millisecond

// perTarget returns how many probes a target got a second in a time that passes now. Those of
// some members do not count.
func (s *simFleet) perTarget(d time.Duration, without ...*simMember) float64 {
	count := func() (probes int64) {
		for _, m := range s.members {
			if !slices.Contains(without, m) {
				probes += m.probes.Load()
			}
		}
		return probes
	}
	before := count()
	s.sleep(d)
	return float64(count()-before) / d.Seconds() / float64(len(s.upstreams))
}

// expected is how many probes a target should get a second while nothing happens.
func (s *simFleet) expected() float64 {
	n := len(s.live())
	interval := simSettings.Interval.Seconds() * (1 + simSettings.Jitter/2)
	thin := float64((n + simProbers - 1) / simProbers)
	return simProbers/interval + float64(n-simProbers)/interval/thin
}

// coverage returns how many upstreams fewer members probe at the interval than there should
// be, and how many probe the one that has the fewest.
func (s *simFleet) coverage() (few, least int) {
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
	return few, slices.Min(counts)
}

// isCovered reports whether enough members probe each upstream at the interval.
func (s *simFleet) isCovered() bool { few, _ := s.coverage(); return few == 0 }

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

// untilShared waits until all members leave to others what they are no probers of.
func (s *simFleet) untilShared() time.Duration {
	s.t.Helper()
	return s.until(time.Second, 2*time.Minute, "sharing", func() bool {
		return !slices.ContainsFunc(s.live(), func(m *simMember) bool { return !m.shares() })
	})
}

// shares reports whether a member shares nearly all of its probes: it is a prober of the
// target, or probes it less often than at its interval.
func (m *simMember) shares() bool {
	m.fleet.mu.Lock()
	defer m.fleet.mu.Unlock()
	s := &m.fleet.sharing
	return s.alone == "" && len(s.probes) > 0 && len(s.probes)+len(s.factors) >= len(m.targets)*9/10
}

// sharing returns whether a member probes all itself, and how many targets it probes less
// often than at their interval.
func (m *simMember) sharing() (alone bool, thin int) {
	m.fleet.mu.Lock()
	defer m.fleet.mu.Unlock()
	return m.fleet.sharing.alone != "", len(m.fleet.sharing.factors)
}

// watch lets time pass. Meanwhile no upstream may be down at a member that reaches it.
func (s *simFleet) watch(d time.Duration) {
	for range d / time.Second {
		s.sleep(time.Second)
		find := *s.find.Load()
		for _, m := range s.live() {
			for u, t := range m.targets {
				if find(m.number, u) == passes && t.Status() != health.Up {
					s.unfair++
					s.t.Errorf("upstream %d is %s at member %d, which reaches it", u, t.Status(), m.number)
				}
			}
		}
	}
}

// allUp makes all upstreams pass at all members, and waits until all share their probes.
func (s *simFleet) allUp() time.Duration {
	s.t.Helper()
	s.finds(func(int, int) simFound { return passes })
	took := s.untilShared()
	took += s.until(time.Second, time.Minute, "all up", func() bool {
		return !slices.ContainsFunc(s.live(), func(m *simMember) bool {
			for _, t := range m.targets {
				if t.Status() != health.Up {
					return true
				}
			}
			return false
		})
	})
	return took
}

func simIdle(t *testing.T, s *simFleet, f *simFigures) {
	const d = 30 * time.Second
	s.engine.ResetCounts()
	probes := s.perTarget(d)
	n := len(s.members)
	perMember := func(op storages.Op, prefix string) float64 {
		return float64(s.engine.Count(op, prefix)) / float64(n) / d.Seconds()
	}
	looks, members, stores := perMember(storages.Load, "alive/news/"), perMember(storages.Load, "alive/members/"), perMember(storages.Store, "")
	if want := s.expected(); probes < 0.9*want || probes > 1.1*want {
		t.Errorf("%.2f probes a target and second, want %.2f", probes, want)
	}
	if looks > 1.05/simEvery.Seconds() {
		t.Errorf("%.2f Loads of the news a member and second", looks)
	}
	period := max(leastPeriod, time.Duration(n)*periodPerMember)
	if most := 1.05 * float64(n) / period.Seconds(); members > most {
		t.Errorf("%.2f Loads of members a member and second, want at most %.2f", members, most)
	}
	if few, least := s.coverage(); few > 0 {
		t.Errorf("%d upstreams are probed by too few members, one by %d", few, least)
	}
	f.add("probes a target and second, idle", "%.2f", probes)
	f.add("the same without `probers`", "%.1f", float64(n)/simSettings.Interval.Seconds()/(1+simSettings.Jitter/2))
	f.add("idle, a member and second: Loads of the news", "%.2f", looks)
	f.add("… Loads of members", "%.1f", members)
	f.add("… Stores", "%.2f", stores)
}

// wantFewLists checks that no member listed a prefix often, after its start.
func (s *simFleet) wantFewLists() {
	s.t.Helper()
	for _, m := range s.members {
		m.mu.Lock()
		for prefix, times := range m.lists {
			for i := 2; i < len(times); i++ {
				if gap := times[i].Sub(times[i-1]); gap < 30*time.Second {
					s.t.Errorf("member %d lists %s again after %s", m.number, prefix, gap)
				}
			}
		}
		m.mu.Unlock()
	}
}

func simFaults(_ *testing.T, s *simFleet, f *simFigures) {
	upstreams := s.pick(min(60, len(s.upstreams)/3))
	hanging, refusing := upstreams[:len(upstreams)/2], upstreams[len(upstreams)/2:]
	const within = 5 * time.Second
	hung, refused := s.each(hanging, hangs, within), s.each(refusing, refuses, within)
	s.sleep(within + 25*time.Second)
	took := s.noticed(hung, health.Down)
	f.add("an upstream hangs: down at all members after", "%s", took)
	s.wantWithin("an upstream that hangs is down at all members", took, noticeLimit)
	took = s.noticed(refused, health.Down)
	f.add("an upstream refuses connections: the same", "%s", took)
	s.wantWithin("an upstream that refuses is down at all members", took, 12*time.Second)
	back := s.each(upstreams, passes, within)
	s.sleep(within + 20*time.Second)
	took = s.noticed(back, health.Up)
	f.add("it returns: up at all members after", "%s", took)
	s.wantWithin("an upstream that returned is up at all members", took, 20*time.Second)
	s.wantFewLists()
	s.allUp()
}

func simOutage(t *testing.T, s *simFleet, f *simFigures) {
	upstreams := s.pick(len(s.upstreams) * 3 / 10)
	s.outage(upstreams, f, fmt.Sprintf("%d upstreams hang at once: down at all members after", len(upstreams)))

	// the news have nothing any more, whatever members write
	key := s.engine.Keys("alive/news/")[0]
	stop := make(chan struct{})
	var rewriting sync.WaitGroup
	rewriting.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
				s.engine.Put(key, "overwritten")
			}
		}
	})
	s.outage(upstreams[:min(30, len(upstreams))], f, "30 at most do while another program overwrites the news ten times a second: the same")
	close(stop)
	rewriting.Wait()
	s.allUp()
}

// outage makes upstreams hang at once, and return.
func (s *simFleet) outage(upstreams []int, f *simFigures, what string) {
	times := s.each(upstreams, hangs, 0)
	s.sleep(40 * time.Second)
	took := s.noticed(times, health.Down)
	f.add(what, "%s", took)
	times = s.each(upstreams, passes, 0)
	s.sleep(30 * time.Second)
	f.add("they return: up at all members after", "%s", s.noticed(times, health.Up))
}

func simBlind(_ *testing.T, s *simFleet, f *simFigures) {
	blind := s.members[0]
	before := s.expected()
	s.finds(func(m, _ int) simFound {
		if m == blind.number {
			return hangs
		}
		return passes
	})
	began := time.Now()
	first := s.perTarget(20*time.Second, blind)
	s.sleep(10 * time.Second)
	later := s.perTarget(20*time.Second, blind)
	s.watch(time.Second)
	var down spans
	for u, t := range blind.targets {
		if t.mu.Lock(); t.status != health.Down {
			s.t.Errorf("upstream %d is %s at a member that reaches none", u, t.status)
		}
		down = append(down, t.changed.Sub(began))
		t.mu.Unlock()
	}
	f.add("one member reaches no upstream: all is down there after", "%s", down)
	f.add("… probes a target and second of the others in 20 s, later, and before", "%.2f, %.2f, %.2f", first, later, before)
	if later > 1.3*before {
		s.t.Errorf("the others make %.2f probes a target and second, want about %.2f", later, before)
	}
	// the longest interval of this fleet, 35 s, and half a minute to be apart and to turn all down
	s.wantWithin("all is down at a member that reaches none", down, 65*time.Second)
	f.add("… it reaches all again: all share their probes again after", "%.0f s", s.allUp().Seconds())
}

func simSplit(_ *testing.T, s *simFleet, f *simFigures) {
	far := func(m, u int) bool { return m%2 == 0 && u%2 == 0 }
	began := time.Now()
	s.finds(func(m, u int) simFound {
		if far(m, u) {
			return hangs
		}
		return passes
	})
	s.watch(40 * time.Second)
	var took spans
	for _, m := range s.members {
		for u, t := range m.targets {
			if !far(m.number, u) {
				continue
			}
			if t.mu.Lock(); t.status != health.Down {
				s.t.Errorf("upstream %d is %s at member %d, which does not reach it", u, t.status, m.number)
			}
			took = append(took, t.changed.Sub(began))
			t.mu.Unlock()
		}
	}
	f.add("half of the members reach half of the upstreams no more: down there after", "%s, 99 %% within %.1f s", took, took.share(99).Seconds())
	f.add("… probes a target and second after that", "%.2f", s.perTarget(10*time.Second))
	f.add("… it heals: all share their probes again after", "%.0f s", s.allUp().Seconds())
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
		took := s.until(100*time.Millisecond, simEvery+2*time.Second+200*time.Millisecond, "probing all", func() bool {
			return !slices.ContainsFunc(s.members, func(m *simMember) bool { alone, thin := m.sharing(); return !alone || thin > 0 })
		})
		f.add("the storage "+fault.name+": each member probes all itself after", "%.1f s", took.Seconds())
		now := time.Now()
		for _, m := range s.members {
			for u, one := range m.targets {
				if next := one.Brief().Next.Sub(now); next > simSettings.Interval*11/10 {
					t.Errorf("member %d probes upstream %d after %s", m.number, u, next)
				}
			}
		}
		times := s.each(s.pick(10), hangs, 0)
		s.sleep(12 * time.Second)
		s.wantWithin("an upstream that hangs is down at all members", s.noticed(times, health.Down), 12*time.Second)
		s.engine.Mend()
		f.add("… it works again: all share their probes after", "%.0f s", s.untilShared().Seconds())
		if few, least := s.coverage(); few > 0 {
			t.Errorf("%d upstreams are probed by too few members, one by %d", few, least)
		}
		s.allUp()
	}
}

func simCrash(_ *testing.T, s *simFleet, f *simFigures) {
	s.sleep(20 * time.Second)
	n := len(s.members) / 10
	var ending sync.WaitGroup
	for _, i := range s.random.Perm(len(s.members))[:n] {
		ending.Go(s.members[i].crash)
	}
	ending.Wait()
	few, least := s.coverage()
	took := s.until(time.Second, time.Minute, "enough probers", s.isCovered)
	f.add(fmt.Sprintf("%d members crash: upstreams that fewer than %d members probe at the interval, and the fewest", n, simProbers), "%d, %d", few, least)
	f.add("… enough probe all after", "%.0f s", took.Seconds())
}

// Members have different upstreams, and come and go.
func TestSimulation_DifferentMembers(t *testing.T) {
	members, upstreams := 30, 200
	if testkit.RaceDetector {
		members, upstreams = 10, 30
	}
	simulateWith(t, upstreams, func(s *simFleet) {
		few := s.all()[:upstreams*9/10]
		has := func(number int) []int {
			if number%2 == 0 {
				return few
			}
			return s.all()
		}
		s.join(members, 5*time.Second, has)
		s.sleep(s.settled())
		s.untilShared()
		if few, least := s.coverage(); few > 0 {
			t.Errorf("%d upstreams are probed by too few members, one by %d", few, least)
		}

		// what only a half has is shared by that half
		last := upstreams - 1
		took := s.noticedAfter([]int{last}, hangs, health.Down, 25*time.Second)
		s.wantWithin("an upstream of half of the members is down there", took, noticeLimit)
		s.noticedAfter([]int{last}, passes, health.Up, 20*time.Second)

		// a reload keeps what is known, and brings what is new
		s.noticedAfter([]int{0}, hangs, health.Down, 25*time.Second)
		m := s.members[0]
		m.reload(s.all())
		s.sleep(2 * time.Second)
		for u, one := range m.targets {
			if isUp := one.Status() == health.Up; isUp != (u != 0) {
				t.Errorf("after a reload upstream %d is %s", u, one.Status())
			}
		}
		if alone, thin := m.sharing(); !alone || thin > 0 {
			t.Errorf("after a reload a member probes %d upstreams less often than at their interval", thin)
		}
		s.watch(10 * time.Second)
		s.untilShared()
		s.allUp()

		// members that join probe all themselves, and are then relied on
		s.join(members/5, time.Second, has)
		s.sleep(2 * time.Second)
		s.watch(time.Second)
		s.until(time.Second, s.settled(), "shared with those that joined", func() bool {
			return !slices.ContainsFunc(s.members[members:], func(m *simMember) bool { alone, _ := m.sharing(); return alone })
		})
		s.untilShared()

		// members that leave are replaced when the others next read them
		for _, m := range s.members[members:] {
			m.leave()
		}
		s.until(time.Second, leastPeriod+simEvery+time.Second, "enough probers after members left", s.isCovered)
		s.watch(time.Second)
	})
}

// noticedAfter makes upstreams behave in a way, waits, and returns when all had noticed.
func (s *simFleet) noticedAfter(upstreams []int, found simFound, want health.Status, d time.Duration) spans {
	s.t.Helper()
	times := s.each(upstreams, found, 0)
	s.sleep(d)
	return s.noticed(times, want)
}
