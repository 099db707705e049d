// SPDX-License-Identifier: Apache-2.0

// Package balancer is what runs for a config: a [Balancer] for each reverse_proxy handler
// that uses the policy, and a [Registry] of all of them. A balancer has the pool of the
// upstreams that the config lists, the pools that requests bring from a dynamic source,
// and the monitors of both. The package knows neither the configuration types nor the
// kinds of checks.
//
// Locks, in the order in which they are taken: dynamic.mu, then one of watchList.mu,
// addressSet.mu, that of pool.Handler or those of shared.Targets and its targets;
// sharedListing.mu, then that of running. All others are taken alone: those of Registry,
// running, monitors and Listing. None is held while a log line, an event, a callback, a
// monitor, a check or a subscriber runs.
package balancer

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
	"github.com/caddy-alive/caddy-alive/internal/upstreamname"
)

// Config is what a policy configures.
type Config struct {
	// Name is that of the pool, and Named says that the config gives it.
	Name  string
	Named bool
	Rules pool.Rules
	// Weights are 1 where none is given, and groups 0, which is that of the primaries.
	Weights, Groups upstreamname.Numbers
	// Limits are how many requests upstreams get at once. Others have Limit, 0 for none.
	Limits upstreamname.Numbers
	Limit  int
	Checks []*monitor.Check
	// Transport is how upstreams are reached.
	Transport *monitor.Transport
	// Proxy is the handler. Its upstreams are those that the config lists.
	Proxy  *reverseproxy.Handler
	Logger *zap.Logger
	// Ended is closed when the config ends.
	Ended <-chan struct{}
}

// Balancer selects the upstreams of one reverse_proxy handler. It is part of the policy
// by value, so that a pick reaches the snapshot without further pointers.
type Balancer struct {
	listed  reverseproxy.UpstreamPool // the upstreams that the config lists
	pool    pool.Pool                 // of those
	handler pool.Handler
	source  lastReturn

	registry *Registry
	config   Config
	members  index
	monitors monitors
	dynamic  *dynamic
	counters *telemetry.PoolCounters
	traffic  traffic
	added    bool // to the registry

	closing sync.Once
	closed  error // by closing
}

// Init makes the balancer of a handler that is being provisioned, and adds it to the
// registry of its config. Nothing is probed before the registry starts. Close undoes it,
// also after an error.
func (b *Balancer) Init(r *Registry, c Config) error {
	b.configure(r, c)
	if err := b.traffic.init(b); err != nil {
		return err
	}
	members, err := b.buildMembers()
	if err != nil {
		return err
	}
	return b.join(members)
}

// configure sets what follows from the config alone.
func (b *Balancer) configure(r *Registry, c Config) {
	b.registry, b.config, b.listed = r, c, c.Proxy.Upstreams
	b.traffic.balancer = b
	b.traffic.variable, b.traffic.placement = fmt.Sprintf("alive.tried.%p", b), fmt.Sprintf("alive.placed.%p", b)
	h := &b.handler
	h.Rules, h.Name, h.Proxy, h.Logger, h.Ended = c.Rules, c.Name, c.Proxy, c.Logger, c.Ended
	h.Settings, h.Exiting = r.Settings, r.Exiting
	h.Remember = b.traffic.remember
	h.OnHold = func() { b.counters.CountHeld() }
	h.OnWaiting = func() { b.counters.CountWaiting() }
	h.OnQueued = func(waited time.Duration) { b.counters.ObserveWait(waited) }
	h.OnRefused = b.reportRefused
	h.OnFailOpen = b.reportFailOpen
	b.dynamic = newDynamic(b) // before the first change of a status
}

// join makes the pool of the members, and adds b to what runs.
func (b *Balancer) join(members []*pool.Member) (err error) {
	b.pool.Init(&b.handler, members, b.listed)
	b.pool.Refresh()
	b.traffic.connect()
	for _, m := range b.monitors.all() {
		m.Subscribe(b.traffic.follow(b.members.byDial[m.Upstream.Dial]))
	}
	b.pool.Refresh() // for what has changed meanwhile
	if err := b.dynamic.init(); err != nil {
		return err
	}
	if b.counters, err = telemetry.JoinPool(b.config.Name, b); err != nil { // not before: from now on scrapes read b
		return err
	}
	b.traffic.reportTo(b.counters.NewTrafficLog(b.config.Logger, b.registry.Events))
	b.added = true
	b.registry.add(b)
	return nil
}

// buildMembers makes the members of the list, and their monitors. An upstream that is
// listed twice counts twice, but is probed once.
func (b *Balancer) buildMembers() ([]*pool.Member, error) {
	b.members.byDial = make(map[string]*pool.Member)
	members := make([]*pool.Member, 0, len(b.listed))
	for _, u := range b.listed {
		if b.members.byDial[u.Dial] == nil {
			opened, err := b.open(u.Dial)
			opened.log()
			if err != nil {
				return nil, fmt.Errorf("upstream %s: %v", u.Dial, err)
			}
			m := opened.member
			b.members.byDial[u.Dial] = m
			_, done, err := b.monitors.add(opened.monitors)
			if err != nil {
				return nil, err
			}
			done() // the registry starts them
		}
		members = append(members, b.members.byDial[u.Dial])
	}
	return members, nil
}

// Close ends what Init began. Picks still work afterwards, on what was known last, for
// requests that are in flight.
func (b *Balancer) Close() error {
	b.closing.Do(func() { b.closed = b.close() })
	return b.closed
}

func (b *Balancer) close() error {
	if b.registry == nil {
		return nil
	}
	b.pool.Close()
	var errs []error
	if b.counters != nil {
		errs = append(errs, b.counters.Leave(b, b.reportLeft))
	}
	errs = append(errs, b.dynamic.close())
	if b.added {
		b.registry.remove(b)
	}
	b.handler.SetRunning(false)
	for _, m := range b.monitors.close() {
		errs = append(errs, m.Release())
	}
	for _, m := range b.allMembers() {
		b.traffic.remove(m)
	}
	errs = append(errs, b.traffic.close())
	return errors.Join(errs...)
}

// Name returns the name of the pool.
func (b *Balancer) Name() string { return b.config.Name }

// Rules returns what is configured about which upstreams get requests.
func (b *Balancer) Rules() pool.Rules { return b.config.Rules }

// HasSelect reports whether another selection policy picks among the upstreams alive.
func (b *Balancer) HasSelect() bool { return b.config.Rules.Select != nil }

// takesWeight reports whether a weight that was set for another pool can be that of this
// one: not if the config gives the pool a name of its own, and not if another policy
// picks, which knows no weights but 0.
func (b *Balancer) takesWeight(weight *int) bool {
	return !b.config.Named && (!b.HasSelect() || weight == nil || *weight == 0)
}

// Owns reports whether upstreams are those that the config lists, for which the current
// snapshot is made, rather than those of a dynamic source or of another policy.
func (b *Balancer) Owns(upstreams reverseproxy.UpstreamPool) bool {
	return len(upstreams) == len(b.listed) && (len(upstreams) == 0 || upstreams[0] == b.listed[0])
}

// BroughtList notes that a request brings the upstreams that the config lists. Beside a dynamic
// source, that is because the source returned none.
func (b *Balancer) BroughtList(r *http.Request) {
	if b.source.besideList {
		b.source.note(nothing, r)
	}
}

// Current returns the snapshot of the upstreams that the config lists.
func (b *Balancer) Current() *pool.Snapshot { return b.pool.Current() }

// Decide picks when the fast path did not. It is nil only if none can take the request:
// all that serve are full, the circuit breaker is open, none is alive and that must not
// be ignored, or there is no upstream at all.
func (b *Balancer) Decide(upstreams reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	if len(upstreams) == 0 {
		b.source.noteEmpty(r)
		return nil
	}
	p := &b.pool
	if !b.Owns(upstreams) {
		p = b.dynamic.poolOf(upstreams)
		b.source.note(some, r)
	}
	return b.traffic.choose(p, pool.Attempt{Upstreams: upstreams, Request: r, Writer: w, Tried: b.traffic.tried(r)}).Upstream
}

// Observe puts around the transport of the handler what sees how round trips end. If
// retries can follow from answers, all answers are noted for that.
func (b *Balancer) Observe(inner http.RoundTripper, retriesAnswers bool) http.RoundTripper {
	return b.traffic.observe(inner, retriesAnswers)
}

// Refresh makes a new snapshot, which later requests use.
func (b *Balancer) Refresh() {
	b.handler.Changed()
	b.pool.Refresh()
}

// refreshNow is Refresh, but returns when the new snapshot is in use.
func (b *Balancer) refreshNow() {
	b.handler.Changed()
	b.pool.RefreshNow()
}

// start marks b as running, so monitors added later start at once, and returns the
// existing ones to be started.
func (b *Balancer) start() []*monitor.Monitor {
	b.handler.SetRunning(true)
	b.traffic.setRunning(true)
	return b.monitors.setRunning(true)
}

// stop takes back start, and returns the monitors to stop.
func (b *Balancer) stop() []*monitor.Monitor {
	b.handler.SetRunning(false)
	b.traffic.setRunning(false)
	return b.monitors.setRunning(false)
}

// applySetting follows a change of the setting of an address: its targets pause in
// maintenance, and requests go by a new snapshot.
func (b *Balancer) applySetting(address string) {
	if m := b.Member(address); m != nil {
		b.pause(m)
		b.refreshNow()
	}
}

// applyModes pauses the targets of all upstreams in maintenance, and resumes the others.
func (b *Balancer) applyModes() {
	for _, m := range b.allMembers() {
		b.pause(m)
	}
}

// pause pauses or resumes the probes of a member by its mode. Several goroutines may do
// so at once, and the last one follows the last change. A target that runs for another
// config is left alone until this one has started: it may be of another fleet, and it may
// never start.
func (b *Balancer) pause(m *pool.Member) {
	for {
		follows := b.handler.IsRunning() && !b.registry.mayStillFail()
		set := b.registry.Settings.Of(m.Address)
		for _, c := range m.Checks {
			if follows || !c.Target.Running() {
				c.Target.Pause(set.ModeNow() == settings.Maintenance)
			}
		}
		if b.registry.Settings.Of(m.Address) == set {
			return
		}
	}
}

// Member returns the member at an address as operators name it, nil if there is none.
func (b *Balancer) Member(address string) *pool.Member {
	if m := b.members.at(address); m != nil {
		return m
	}
	return b.dynamic.memberNamed(address)
}

// allMembers returns the members that the config lists, and those that requests brought.
func (b *Balancer) allMembers() []*pool.Member {
	return append(slices.Collect(maps.Values(b.members.byDial)), b.dynamic.members()...)
}

// isStale reports whether the config does not list the upstream at a dial address, and
// requests no longer bring it.
func (b *Balancer) isStale(dial string) bool {
	return b.members.byDial[dial] == nil && b.dynamic.isStale(dial)
}

// Selections returns how often each upstream was picked, by address.
func (b *Balancer) Selections() map[string]uint64 {
	var members []*pool.Member
	for _, m := range b.allMembers() {
		if m.Address != "" {
			members = append(members, m)
		}
	}
	all := make(map[string]uint64)
	for m, n := range b.pool.Picks(members) {
		all[m.Address] += n
	}
	return all
}

// QueueLength returns how many requests may wait for an upstream that is not full: 0 if the
// handler has no queue.
func (b *Balancer) QueueLength() int { return b.config.Rules.Queue.Length }

// reportRefused reports that a request got no upstream because all were full.
func (b *Balancer) reportRefused(timedOut bool) {
	reason := telemetry.RefusedFull
	if timedOut {
		reason = telemetry.RefusedTimeout
	}
	b.traffic.report(func(l *telemetry.TrafficLog) { l.Refused(reason) })
}

// reportFailOpen counts a pool that begins to ignore health, or no longer does, and
// reports changes to operators: once, if several handlers have the pool.
func (b *Balancer) reportFailOpen(begins bool) {
	if b.counters == nil {
		return
	}
	delta := 1
	if !begins {
		delta = -1
	}
	b.counters.ReportFailOpen(b, delta, func(active bool) { b.registry.Events.FailOpen(b.config.Name, active) })
}

// reportLeft reports that a pool no longer ignores health because a config ended: in the
// config that runs on. At the end of the last one there is nothing left to report.
func (b *Balancer) reportLeft(active bool) {
	if newest := Newest(); newest != b.registry || newest.Events.Successor() != nil {
		newest.queue().FailOpen(b.config.Name, active)
	}
}

// Interface guard
var _ telemetry.Source = (*Balancer)(nil)
