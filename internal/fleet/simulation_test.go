// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit/storages"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// The simulation runs the members of a fleet in virtual time: real targets, real stores of
// settings, real news, and a real part of the fleet for each. Only the storage and what probes
// find are simulated. What is random is the same for equal seeds, except for the slots of
// probes, and what happens at the same moment has no order. So figures differ a little from
// run to run, and tests hold them to bounds.

var wholeSimulation = flag.Bool("simulation", false, "simulate a fleet as large as the table in the docs says")

var simulationSeed = flag.Uint64("seed", 1, "from which the simulation of a fleet draws what is random")

// The settings of simulated members and checks are those that are the default.
const (
	simEvery   = time.Second
	simProbers = 3
	simCheck   = "http"
)

var simSettings = health.Settings{
	Interval: 5 * time.Second, FastInterval: time.Second, DownInterval: 5 * time.Second,
	Timeout: 2 * time.Second, Passes: 2, Fails: 3, Jitter: 0.1,
}

// simMoment is the least time between the starts of two members.
const simMoment = 50 * time.Millisecond

// simLatency is how long each use of the storage takes.
const simLatency = 4 * time.Millisecond

// simFound is what a probe finds.
type simFound int

const (
	passes  simFound = iota
	refuses          // the connection is refused, at once
	hangs            // no answer comes
)

// simFleet is a simulated fleet.
type simFleet struct {
	t         *testing.T
	random    *rand.Rand
	engine    *storages.Engine
	upstreams []string
	members   []*simMember
	find      atomic.Pointer[func(member, upstream int) simFound] // what a probe finds that begins now
	unfair    int                                                 // upstreams that were down at members that reach them

	mu       sync.Mutex // guards what follows
	problems []string   // verdicts that the member's own probes contradict
	wrong    int        // how many there were
}

// simMember is one member.
type simMember struct {
	sim     *simFleet
	number  int
	storage *storages.Client
	set     *settings.Set
	fleet   *Fleet
	pacer   health.Pacer
	targets map[int]*simTarget // by the number of the upstream
	config  *simConfig         // that runs, nil before the start and after the end
	probes  atomic.Int64

	mu    sync.Mutex             // guards what follows
	lists map[string][]time.Time // when it listed, by prefix
}

// simConfig is a config of a member. It is what package fleet knows of a registry.
type simConfig struct {
	member  *simMember
	targets []Target
	detach  []func()
	store   *settings.Store
	part    *Part
	stop    context.CancelFunc
	running sync.WaitGroup
}

// simTarget is an upstream at a member, with what the member's own probes say of it.
type simTarget struct {
	*health.Target
	upstream int

	mu            sync.Mutex // guards what follows
	last          error      // what the last probe returned
	status        health.Status
	wasUp         bool
	passes, fails int
	changed       time.Time // when the status changed
}

// simulate runs a fleet in virtual time. Its members start within five seconds, and all have
// all upstreams. Function f is called when they have settled, and says what happens.
func simulate(t *testing.T, members, upstreams int, f func(s *simFleet)) {
	t.Helper()
	simulateWith(t, upstreams, func(s *simFleet) {
		s.join(members, 5*time.Second, func(int) []int { return s.all() })
		s.sleep(s.settled())
		f(s)
	})
}

// simulateWith is simulate without members.
func simulateWith(t *testing.T, upstreams int, f func(s *simFleet)) {
	t.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // the targets of all members are a large heap
	synctest.Test(t, func(t *testing.T) {
		s := &simFleet{t: t, random: rand.New(rand.NewPCG(*simulationSeed, 0)), engine: storages.New()}
		s.engine.SetLatency(simLatency)
		for i := range upstreams {
			s.upstreams = append(s.upstreams, fmt.Sprintf("10.0.%d.%d:8080", i>>8, i&255))
		}
		s.finds(func(int, int) simFound { return passes })
		f(s)
		s.check()
		var ending sync.WaitGroup
		for _, m := range s.live() {
			ending.Go(m.leave)
		}
		ending.Wait()
	})
}

// settled is how long it takes at most until all members share their probes after a start:
// until each has stored what it has, has been read by all, and its config is not new.
func (s *simFleet) settled() time.Duration {
	period := max(leastPeriod, time.Duration(len(s.members))*periodPerMember)
	return 2*period + 5*time.Second
}

// sleep lets time pass, and waits for what happens at its end.
func (s *simFleet) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// all returns the numbers of all upstreams.
func (s *simFleet) all() (numbers []int) {
	for i := range s.upstreams {
		numbers = append(numbers, i)
	}
	return numbers
}

// pick returns n of the upstreams, drawn at random.
func (s *simFleet) pick(n int) []int { return s.random.Perm(len(s.upstreams))[:n] }

// finds sets what probes find.
func (s *simFleet) finds(find func(member, upstream int) simFound) { s.find.Store(&find) }

// live returns the members that run.
func (s *simFleet) live() []*simMember {
	return slices.DeleteFunc(slices.Clone(s.members), func(m *simMember) bool { return m.config == nil })
}

// join makes n new members start within a time. Function has says which upstreams one has.
func (s *simFleet) join(n int, within time.Duration, has func(number int) []int) {
	var starting sync.WaitGroup
	for range n {
		m := &simMember{
			sim: s, number: len(s.members), storage: s.engine.Client(), set: settings.NewSet(), fleet: New(),
			targets: make(map[int]*simTarget), lists: make(map[string][]time.Time),
		}
		m.fleet.id = formatID(s.random.Uint64())
		m.storage.Before(m.noteList)
		s.members = append(s.members, m)
		// few different moments, since each costs the time to look at all timers
		delay := time.Duration(s.random.Int64N(int64(within/simMoment))) * simMoment
		starting.Go(func() {
			time.Sleep(delay)
			m.reload(has(m.number))
		})
	}
	starting.Wait()
}

// noteList notes when a member lists.
func (m *simMember) noteList(_ context.Context, call storages.Call) error {
	if call.Op == storages.List {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.lists[call.Key] = append(m.lists[call.Key], time.Now())
	}
	return nil
}

// reload starts a config with some upstreams, and ends the one before, as a registry does.
func (m *simMember) reload(upstreams []int) {
	c := &simConfig{member: m, store: settings.NewStore(m.set, m.storage, "alive/fleets/shops", simEvery, zap.NewNop())}
	c.part = m.fleet.Join(c.store, Config{
		Fleet: "shops", Member: fmt.Sprintf("edge-%d", m.number), Probers: simProbers, Every: simEvery,
		Local: c, Set: m.set, Logger: zap.NewNop(),
	})
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.store.Sync(ctx, true)
	before := m.config
	m.config = c
	kept := make(map[int]*simTarget)
	for i, u := range upstreams {
		t := m.targets[u]
		if t == nil {
			t = &simTarget{Target: health.NewTarget(simSettings), upstream: u}
		}
		kept[u] = t
		c.targets = append(c.targets, Target{Upstream: m.sim.upstreams[u], Check: simCheck, Target: t.Target})
		spread := min(time.Duration(len(upstreams))*time.Millisecond, simSettings.Interval)
		c.detach = append(c.detach, t.Attach(c.driver(t), spread*time.Duration(i)/time.Duration(len(upstreams))))
	}
	m.targets = kept
	c.part.Start(ctx)
	c.running.Go(func() { c.store.Run(ctx) })
	if before != nil {
		before.end()
		before.part.Stop(context.Background())
		before.store.Wait()
	}
}

// end ends all that a config does by itself.
func (c *simConfig) end() {
	c.stop()
	for _, detach := range c.detach {
		detach()
	}
	c.running.Wait()
}

// leave ends a member as Caddy does when it is told to.
func (m *simMember) leave() {
	c := m.config
	m.config = nil
	c.end()
	c.part.Stop(context.Background())
	c.store.Wait()
}

// crash ends a member in mid-run. No other hears of that.
func (m *simMember) crash() {
	c := m.config
	m.config = nil
	m.storage.Fail(errors.New("the process has crashed"))
	c.end()
}

// driver makes the probes of a target, as a monitor does.
func (c *simConfig) driver(t *simTarget) health.Driver {
	m, s := c.member, c.member.sim
	upstream := s.upstreams[t.upstream]
	return health.Driver{
		Pacer: &m.pacer,
		Probe: func(ctx context.Context, _ bool) (draining bool, err error) {
			m.probes.Add(1)
			switch (*s.find.Load())(m.number, t.upstream) {
			case refuses:
				err = errors.New("connection refused")
			case hangs:
				<-ctx.Done()
				err = ctx.Err()
			case passes:
			}
			t.mu.Lock()
			defer t.mu.Unlock()
			t.last = err
			return false, err
		},
		Probed: func(r health.Result) {
			if problem := t.probed(r); problem != "" {
				s.mu.Lock()
				s.problems = append(s.problems, fmt.Sprintf("member %d, upstream %d: %s", m.number, t.upstream, problem))
				s.mu.Unlock()
			}
			if !r.Passed() && t.FailsInRow() == 2 {
				c.part.Found(upstream, simCheck, t.Status(), false)
			}
		},
		Report: func(change health.Transition) {
			if change.From != change.To {
				c.part.Found(upstream, simCheck, change.To, true)
			}
		},
	}
}

// probed counts the result of an own probe by the documented rules, and returns what the
// verdict has against them.
func (t *simTarget) probed(r health.Result) (problem string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.Passed() != (t.last == nil) {
		return fmt.Sprintf("a probe returned %v, but %q counts", t.last, r.Reason)
	}
	if r.Passed() {
		t.passes, t.fails = t.passes+1, 0
	} else {
		t.passes, t.fails = 0, t.fails+1
	}
	before := t.status
	switch {
	case r.Passed() && (before == health.Unknown || !t.wasUp || t.passes >= simSettings.Passes):
		t.status, t.wasUp = health.Up, true
	case !r.Passed() && (before == health.Unknown || t.fails >= simSettings.Fails):
		t.status = health.Down
	}
	if t.status != before {
		t.changed = time.Now()
	}
	if t.Status() != t.status {
		return fmt.Sprintf("it is %s after %d passes and %d fails in a row, want %s", t.Status(), t.passes, t.fails, t.status)
	}
	return ""
}

// check checks what must always be true: each member has the verdicts of its own probes.
func (s *simFleet) check() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.live() {
		for _, t := range m.targets {
			t.mu.Lock()
			if t.Status() != t.status {
				s.problems = append(s.problems, fmt.Sprintf("member %d: upstream %d is %s, but by its own probes %s", m.number, t.upstream, t.Status(), t.status))
			}
			t.mu.Unlock()
		}
	}
	for _, problem := range s.problems[:min(10, len(s.problems))] {
		s.t.Error(problem)
	}
	s.wrong += len(s.problems)
	s.problems = nil
}

// NotUp is what the registry says of targets.
func (c *simConfig) NotUp() (rows []view.NotUp) {
	now := time.Now()
	for _, t := range c.targets {
		if t.Status() == health.Up {
			continue
		}
		v := t.Brief()
		row := view.NotUp{Upstream: t.Upstream, Check: t.Check, Status: v.Status.String(), Reason: v.LastFailed.Reason}
		if !v.Since.IsZero() {
			row.Lasts = now.Sub(v.Since).Seconds()
		}
		rows = append(rows, row)
	}
	return rows
}

// Targets returns all that the config has.
func (c *simConfig) Targets() []Target { return c.targets }

// Requests says that there are none.
func (*simConfig) Requests(string) Requests { return Requests{} }
