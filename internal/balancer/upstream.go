// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/slots"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
)

// index finds the members that the config lists.
type index struct {
	byDial map[string]*pool.Member

	making    sync.Once
	byAddress map[string]*pool.Member // those whose dial address is not what operators name; after making
}

// at returns the member at an address as operators name it, nil if there is none.
func (i *index) at(address string) *pool.Member {
	if m := i.byDial[address]; m != nil && m.Address == address {
		return m
	}
	i.making.Do(func() {
		for dial, m := range i.byDial {
			if m.Address != dial {
				if i.byAddress == nil {
					i.byAddress = make(map[string]*pool.Member)
				}
				i.byAddress[m.Address] = m
			}
		}
	})
	return i.byAddress[address]
}

// opened is a member with its monitors, which are not started.
type opened struct {
	member   *pool.Member
	monitors []*monitor.Monitor
	// unlogged are log lines, to be written when the caller holds no lock.
	unlogged []func()
}

// log writes the lines.
func (o *opened) log() {
	for _, write := range o.unlogged {
		write()
	}
}

// open makes the member at a dial address, and its monitors: none if how it is reached
// depends on the request.
func (b *Balancer) open(dial string) (o opened, err error) {
	o.member = &pool.Member{Address: monitor.DisplayAddress(dial), Weight: 1}
	if weight, given := b.config.Weights.Of(dial); given {
		o.member.Weight = weight
	}
	o.member.Group, _ = b.config.Groups.Of(dial)
	if o.member.Limit = b.limitOf(dial); o.member.Limit > 0 {
		if o.member.Slots, err = slots.Open(dial, o.member.Limit); err != nil {
			return o, err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.member.CloseSlots())
		}
	}()
	unchecked := func(fields ...zap.Field) {
		if b.monitors.warnOnce(b.pool.Current() != nil) {
			o.unlogged = append(o.unlogged, func() {
				b.config.Logger.Warn("upstream cannot be checked: its address or TLS server name depends on the request or can change at any time; it counts as alive",
					append(fields, zap.String("upstream", dial))...)
			})
		}
	}
	upstream, err := monitor.ParseUpstream(dial)
	if errors.Is(err, monitor.ErrPerRequest) {
		unchecked()
		return o, nil
	}
	if err != nil {
		return o, err
	}
	hooks, member := b.hooks(), o.member
	hooks.Answers = func() (n uint64) {
		if member.Witness != nil {
			n = member.Witness.FirstBytes()
		}
		return n
	}
	for _, check := range b.config.Checks {
		m, err := b.config.Transport.Open(upstream, check, hooks)
		if errors.Is(err, monitor.ErrPerRequest) {
			unchecked(zap.String("check", check.Label))
			continue
		}
		if err != nil {
			for _, m := range o.monitors {
				err = errors.Join(err, m.Release())
			}
			o.monitors, o.member.Checks = nil, nil
			return o, fmt.Errorf("check '%s': %w", check.Label, err)
		}
		o.monitors = append(o.monitors, m)
		o.member.Checks = append(o.member.Checks, pool.Check{Label: check.Label, Target: m.Target})
	}
	b.traffic.add(o.member)
	return o, nil
}

// limitOf returns how many requests the upstream at a dial address gets at once, 0 for any
// number.
func (b *Balancer) limitOf(dial string) int {
	if limit, given := b.config.Limits.Of(dial); given {
		return limit
	}
	return b.config.Limit
}

// hooks connect the monitors to the log, the counters and the events.
func (b *Balancer) hooks() monitor.Hooks {
	events := b.registry.queue()
	return monitor.Hooks{
		Logger: b.config.Logger,
		Counters: func(upstream string, check *monitor.Check) (monitor.Counters, error) {
			return telemetry.NewCheckCounters(upstream, check.Label, check.Kind)
		},
		Emit: func(upstream string, check *monitor.Check, change health.Transition) {
			events.StatusChanged(upstream, check.Label, change)
		},
		Found: func(upstream string, check *monitor.Check, status health.Status, changed bool) {
			if p := b.registry.Part; p != nil {
				p.Found(upstream, check.Label, status, changed)
			}
		},
		Stale: func(m *monitor.Monitor) bool { return b.isStale(m.Upstream.Dial) && isStaleElsewhere(m) },
	}
}

// isStaleElsewhere reports whether no other handler has the upstream of a monitor at
// present: neither in its list nor brought by requests. Monitors of several handlers can
// share a target, and only one of them reports its changes.
func isStaleElsewhere(m *monitor.Monitor) bool {
	for _, b := range Newest().All() {
		for _, other := range b.monitors.all() {
			if other != m && other.Target == m.Target && !b.isStale(other.Upstream.Dial) {
				return false
			}
		}
	}
	return true
}

// run starts the monitors of a member that requests brought; their first probe follows
// after a delay. Those that began with all others of a pool have no slow start.
func (b *Balancer) run(o opened, delay time.Duration, withAll bool) {
	start, done, err := b.monitors.add(o.monitors)
	if err != nil { // the config has ended meanwhile
		b.release(o.monitors)
		b.traffic.remove(o.member)
		return
	}
	defer done()
	if !start {
		return
	}
	paused := b.registry.Settings.Of(o.member.Address).ModeNow() == settings.Maintenance
	for _, m := range o.monitors {
		m.Target.MarkOrigin(withAll)
		m.Target.Pause(paused)
		m.Start(delay % m.Check.Settings.Interval)
	}
	if !b.monitors.isRunning() { // all were stopped before these had started
		monitor.StopAll(o.monitors)
	}
	b.pause(o.member) // its mode may have changed meanwhile
}

// release ends monitors. It may wait for probes to be cut off, for all of them at once.
func (b *Balancer) release(monitors []*monitor.Monitor) {
	b.monitors.remove(monitors)
	monitor.StopAll(monitors)
	for _, m := range monitors {
		if err := m.Release(); err != nil {
			b.config.Logger.Error("releasing an upstream", zap.Error(err))
		}
	}
}

// monitors are those of one balancer.
type monitors struct {
	mu      sync.Mutex // guards what follows
	list    []*monitor.Monitor
	running bool
	closed  bool
	warned  bool // that some upstream of a dynamic source cannot be checked

	starting sync.WaitGroup // those that were added and are not started yet
}

// all returns the monitors that there are now.
func (m *monitors) all() []*monitor.Monitor {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.list)
}

var errClosed = errors.New("the balancer is closed")

// add adds monitors, and reports whether they are to be started. Close waits until done is
// called. It is an error when all were taken out for good.
func (m *monitors) add(more []*monitor.Monitor) (start bool, done func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false, nil, errClosed
	}
	m.list = append(m.list, more...)
	m.starting.Add(1)
	return m.running, m.starting.Done, nil
}

// remove takes monitors out.
func (m *monitors) remove(gone []*monitor.Monitor) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = slices.DeleteFunc(m.list, func(one *monitor.Monitor) bool { return slices.Contains(gone, one) })
}

// setRunning says whether monitors that are added are to be started, and returns those
// that there are now.
func (m *monitors) setRunning(running bool) []*monitor.Monitor {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running = running
	return slices.Clone(m.list)
}

// close takes all monitors out for good, once none is being started.
func (m *monitors) close() []*monitor.Monitor {
	m.mu.Lock()
	left := m.list
	m.list, m.running, m.closed = nil, false, true
	m.mu.Unlock()
	m.starting.Wait()
	return left
}

func (m *monitors) isRunning() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running
}

// warnOnce reports whether to warn of an upstream that cannot be checked: of each that
// the config lists, and of the first that requests bring, since thousands may follow.
func (m *monitors) warnOnce(broughtByRequest bool) bool {
	if !broughtByRequest {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	warned := m.warned
	m.warned = true
	return !warned
}
