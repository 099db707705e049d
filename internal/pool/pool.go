// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// Pool is one list of upstreams. There are two sorts. One that [Pool.Init] makes is for
// the list of the config: it gets a new snapshot as soon as anything changes, and its
// picks are counted by its tickets. One that [New] makes is for an answer of a dynamic
// source, of which there can be many, and each can be dropped at any moment: it gets a
// new snapshot when a request needs it, and each pick is counted by itself.
type Pool struct {
	handler *Handler
	members []*Member
	logged  *LoggedState
	atOnce  bool // it is of the first sort
	spills  *spills

	// upstreams are those of a request that brought them.
	upstreams atomic.Pointer[reverseproxy.UpstreamPool]
	current   atomic.Pointer[Snapshot]
	counters  counters
	waiters   waiters

	lastProbed  atomic.Int64   // when requests last caused probes, since probingSince
	lastBrought atomic.Int64   // when a request last noted for spill that it brought the pool, in the same way
	lastLooked  atomic.Int64   // when requests that wait last looked for verdicts, in the same way
	sessions    map[string]int // positions by the cookies that bind clients to them; nil if none do

	// OnResume is called when a request that was held goes on. It may be nil, and is set
	// before the first pick.
	OnResume func()

	refreshing
}

// refreshing is how a pool gets new snapshots.
type refreshing struct {
	making sync.Mutex  // held while a snapshot is made; guards what follows
	due    atomic.Bool // Refresh waits for making, and will see all that changed
	first  uint64      // the ticket with which the first snapshot begins
	ramp   *time.Timer // refreshes while a slow start goes on
	closed bool        // nothing is started any more
}

// Init makes the pool of a list that does not change.
func (p *Pool) Init(h *Handler, members []*Member, upstreams reverseproxy.UpstreamPool) {
	p.init(h, members, upstreams, new(LoggedState))
	p.atOnce, p.spills = true, new(spills)
}

// New returns the pool of an answer of a dynamic source. Pools of the same upstreams in
// another order share what was logged of them.
func New(h *Handler, members []*Member, upstreams reverseproxy.UpstreamPool, logged *LoggedState) *Pool {
	p := new(Pool)
	p.init(h, members, slices.Clone(upstreams), logged)
	p.spills = &h.spills
	return p
}

func (p *Pool) init(h *Handler, members []*Member, upstreams reverseproxy.UpstreamPool, logged *LoggedState) {
	p.handler, p.members, p.logged = h, members, logged
	p.upstreams.Store(&upstreams)
	p.first = uint64(rand.Uint32()) // every pool begins somewhere else
	if cookie := h.Rules.Sticky; cookie != nil {
		p.sessions = make(map[string]int, len(upstreams))
		for i, u := range slices.Backward(upstreams) { // of one that is listed twice, the first counts
			p.sessions[cookie.Value(u.Dial)] = i
		}
	}
}

// Members returns the members, by position.
func (p *Pool) Members() []*Member { return p.members }

// Upstreams returns the upstreams, by position, as a request brought them.
func (p *Pool) Upstreams() reverseproxy.UpstreamPool { return *p.upstreams.Load() }

// KeepUpstreams keeps the upstreams of a request if those kept are outdated: Caddy
// forgets what it counts of a host that had no request for a while, and counts anew.
func (p *Pool) KeepUpstreams(upstreams reverseproxy.UpstreamPool) {
	sameHost := func(a, b *reverseproxy.Upstream) bool { return a.Host == b.Host }
	if !slices.EqualFunc(p.Upstreams(), upstreams, sameHost) {
		kept := slices.Clone(upstreams)
		p.upstreams.Store(&kept)
	}
}

// Current returns the snapshot of a pool that [Pool.Init] made. It never waits.
func (p *Pool) Current() *Snapshot { return p.current.Load() }

// Refresh makes a new snapshot and swaps it in, for a pool that [Pool.Init] made.
// Requests go on with the old one meanwhile. If several goroutines call it while one
// makes a snapshot, one of them waits and makes one for all.
func (p *Pool) Refresh() {
	if !p.due.Swap(true) {
		p.RefreshNow()
	}
}

// RefreshNow is Refresh, but returns when a snapshot that was begun after the call is in
// use.
func (p *Pool) RefreshNow() {
	p.making.Lock()
	p.due.Store(false)
	now := time.Now()
	made := p.handler.newSnapshot(p.members, now, p.spills)
	r := &p.handler.Rules
	made.canBeFast = made.mayBeFast() && !r.CountsHealthy && r.Select == nil && r.Sticky == nil
	p.counters.mu.Lock()
	p.counters.retire(p.install(made))
	p.counters.mu.Unlock()
	if p.ramp != nil {
		p.ramp.Stop()
	}
	if !made.until.IsZero() && !p.closed {
		p.ramp = time.AfterFunc(made.until.Sub(now), p.Refresh)
	}
	p.calmSuspects(made)
	p.making.Unlock()
	if made.canBeFast {
		p.setFast(made, p.Situation(made).State == made.state)
	}
	p.waiters.wake()
	p.LogState()
}

// setFast says whether the upstream of the next ticket gets the request, by the state of
// the pool. It does not while a request may have tried it.
func (p *Pool) setFast(s *Snapshot, fast bool) {
	s.fast.Store(fast && !p.handler.HasRetries())
	if fast && p.handler.HasRetries() { // one has begun just now
		s.fast.Store(false)
	}
}

// BeginRetry says that a try of a request has failed, until end is called. It is for a pool
// that [Pool.Init] made, whatever pool the request is for.
func (p *Pool) BeginRetry() (end func()) {
	p.handler.retrying.Add(1)
	p.Current().fast.Store(false)
	return func() { p.handler.retrying.Add(-1) }
}

// install puts a snapshot in place of the current one, which it returns. The new one goes
// on in the order where the old one is. p.making must be held.
func (p *Pool) install(made *Snapshot) (before *Snapshot) {
	before = p.current.Load()
	made.first = p.first
	if before != nil {
		made.first = before.tickets.Load()
	}
	made.tickets.Store(made.first)
	if !p.atOnce && len(made.serving) > 0 {
		made.serving[0].counted = false // tickets that are drawn after the pool was dropped would be lost
	}
	if p.handler.Rules.Spill > 0 {
		p.spills.keep(made)
		if !p.atOnce {
			p.spills.remember(made, time.Now())
		}
	}
	p.current.Store(made)
	if before != nil {
		moveWaiting(before, made)
	}
	return before
}

// Close ends what goes on by itself. The last snapshot still serves requests that are
// in flight.
func (p *Pool) Close() {
	p.making.Lock()
	defer p.making.Unlock()
	p.closed = true
	if p.ramp != nil {
		p.ramp.Stop()
	}
}

// snapshot returns which members may get requests at this moment. While another request
// makes the snapshot of a pool that [New] made, the old one serves. The old snapshot lags
// a verdict by the time of two builds at most. A patient request waits for the new one;
// so does one for which the old one has no upstream.
func (p *Pool) snapshot(patient bool) *Snapshot {
	known := p.current.Load()
	if p.atOnce {
		return known
	}
	now := time.Now()
	if p.isCurrent(known, now) {
		if p.handler.Rules.Spill > 0 && isFirst(&p.lastBrought, spillBaseEvery) {
			p.spills.remember(known, now)
		}
		return known
	}
	made, isNew := p.remake(known, now, patient)
	if isNew { // those that were quicker wait by the old one
		p.waiters.wake()
	}
	return made
}

// remake makes the snapshot for a request, in place of one that is outdated. It reports
// whether it has: another request may have been quicker, or be at it.
func (p *Pool) remake(known *Snapshot, now time.Time, patient bool) (s *Snapshot, isNew bool) {
	if known == nil || patient || len(known.serving) == 0 {
		p.making.Lock()
	} else if !p.making.TryLock() {
		return known, false
	}
	defer p.making.Unlock()
	if known = p.current.Load(); p.isCurrent(known, now) {
		return known, false
	}
	made := p.handler.newSnapshot(p.members, now, p.spills)
	p.install(made)
	p.calmSuspects(made)
	return made, true
}

// calmSuspects says how much the suspects of a snapshot suffer from an accusation, if the probes
// run: other configs share what is probed.
func (p *Pool) calmSuspects(s *Snapshot) {
	if p.handler.IsRunning() {
		s.calmSuspects()
	}
}

// lookAgain makes the pool follow verdicts although its config has ended, so that nothing
// tells of them.
func (p *Pool) lookAgain() {
	if !isFirst(&p.lastLooked, lookEvery) {
		return
	}
	p.handler.version.Add(1)
	if p.atOnce {
		p.Refresh()
	}
}

// Peek returns the snapshot as it is at this moment, and changes nothing.
func (p *Pool) Peek() *Snapshot {
	now := time.Now()
	if known := p.current.Load(); p.atOnce || p.isCurrent(known, now) {
		return known
	}
	return p.handler.newSnapshot(p.members, now, p.spills)
}

// isCurrent reports whether nothing has changed since a snapshot was made.
func (p *Pool) isCurrent(s *Snapshot, now time.Time) bool {
	return s != nil && s.made == version(p.handler.version.Load()) && (s.until.IsZero() || now.Before(s.until))
}

// Situation returns what becomes of the requests of the pool by one of its snapshots. It
// changes nothing.
func (p *Pool) Situation(now *Snapshot) Situation {
	return situationOf(p.handler, now, p.Upstreams())
}

// LogState logs the state of the pool, if it has changed.
func (p *Pool) LogState() { p.logStateFor(p.Upstreams()) }

// logStateFor is LogState for the upstreams that a request has brought.
func (p *Pool) logStateFor(upstreams reverseproxy.UpstreamPool) {
	p.logged.log(p.handler, func() (Situation, reverseproxy.UpstreamPool) {
		return situationOf(p.handler, p.snapshot(true), upstreams), upstreams
	})
}

// Picks returns how often each of some members was picked, with the tickets of a pool
// that Init made.
func (p *Pool) Picks(members []*Member) map[*Member]uint64 {
	return p.counters.picks(p, members)
}
