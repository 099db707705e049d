// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/rotation"
	"github.com/caddy-alive/caddy-alive/internal/settings"
)

// Snapshot says which members of a pool may get requests, and in which order, until a
// verdict or a setting changes. Positions are those of the pool.
type Snapshot struct {
	members []*Member
	state   State     // by the checks alone
	made    version   // when it was made
	until   time.Time // when a slow start goes on; zero if there is none
	tiers

	// fast: the upstream of the next ticket gets the request if it can take it. canBeFast is
	// the same by the checks alone; Caddy's own health can forbid it.
	canBeFast bool
	fast      atomic.Bool

	// tickets are drawn for best, from first on: so they also tell how often each upstream
	// was picked. They change all the time, and must not share a cache line with what does
	// not.
	best    rotation.Order // of the first tier, empty if that ignores health
	first   uint64
	_       [64]byte
	tickets atomic.Uint64
	_       [64]byte
}

// version counts the changes of a handler.
type version uint64

// tiers are the members of a snapshot by what they are good for.
type tiers struct {
	// serving are the members that serve, the best tier first, and then those that would
	// if they did not drain. None is empty.
	serving []*tier
	// primaries and backups are the tiers of serving members that are such, nil if there
	// are none. allPrimaries are the ready primaries, whatever their health, and decided
	// is how many of them have a verdict. fail_open goes by these.
	primaries, backups *tier
	allPrimaries       func() *tier
	decided            int
	// undecided: a primary has no verdict yet.
	undecided bool
	// unknown are members without a verdict, for when none serves.
	unknown func() *tier
	// lastResort are the members to ask in the end, whatever their health.
	lastResort func() *tier
	// ready are the weights of members that are neither draining nor in maintenance,
	// whatever their health.
	ready []int
}

// Fast reports whether the upstream that Draw returns gets the request if it can take
// it.
func (s *Snapshot) Fast() bool { return s.fast.Load() }

// Draw returns the position of the next upstream in the order.
func (s *Snapshot) Draw() int { return s.best.At(s.tickets.Add(1)) }

// Skip says that the upstream drawn does not get the request.
func (s *Snapshot) Skip(position int) { s.members[position].Extra.Add(-1) }

// Members returns the members of the pool, by position.
func (s *Snapshot) Members() []*Member { return s.members }

// probeUnknown probes members without a verdict at once, instead of when it is their turn
// among all first probes: a request waits for them.
func (s *Snapshot) probeUnknown() {
	for _, m := range s.members {
		m.probe(health.Unknown)
	}
}

// isTooFewHealthy reports whether fail_open ignores health because Caddy itself considers
// too many upstreams unhealthy, which do not serve either. The snapshot knows of the
// checks only.
func (s *Snapshot) isTooFewHealthy(r *Rules, upstreams reverseproxy.UpstreamPool) bool {
	if !r.CountsHealthy || s.state == FailedOpen || s.backups.countHealthy(upstreams) > 0 {
		return false
	}
	return r.FailOpen.isTooFew(s.primaries.countHealthy(upstreams), s.decided)
}

// standing is what decides about one member in a snapshot.
type standing struct {
	status health.Status
	weight int  // 0 if it gets nothing, not even as the last resort
	ready  bool // it has a weight, and neither drains nor is in maintenance
}

// standingOf returns what decides about a member.
func (h *Handler) standingOf(m *Member) standing {
	set := h.Settings.Of(m.Address)
	mode := set.ModeNow()
	s := standing{status: m.Status(), weight: set.WeightIn(h.Name, m.Weight)}
	up := s.status == health.Up
	s.ready = s.weight > 0 && mode == settings.Ready && (!up || !m.Draining())
	if mode == settings.Maintenance || mode == settings.Drain && !up {
		s.weight = 0
	}
	return s
}

// newSnapshot decides which members may get requests, and in which order.
func (h *Handler) newSnapshot(members []*Member, now time.Time) *Snapshot {
	made := version(h.version.Load()) // first: a change that follows makes it outdated
	s := &Snapshot{members: members, made: made}
	all := make([]standing, len(members))
	var primaries, serving, down, backups int // of those that are ready
	var draining [2]int                       // primaries and backups that would serve
	for i, m := range members {
		all[i] = h.standingOf(m)
		up := all[i].status == health.Up
		switch {
		case all[i].weight == 0:
		case !all[i].ready:
			draining[index(m.Backup)]++
		case m.Backup && up:
			backups++
		case m.Backup:
		default:
			primaries++
			switch all[i].status {
			case health.Up:
				serving++
			case health.Down:
				down++
			case health.Unknown:
				s.undecided = true
			}
		}
	}
	// weightIf is the weight of members that take part
	weightIf := func(i int, takesPart bool) int {
		if takesPart {
			return all[i].weight
		}
		return 0
	}
	whateverHealth := func(backup bool) *tier {
		t := newTier(members, func(i int, m *Member) int {
			if m.Backup == backup {
				return s.ready[i]
			}
			return 0
		})
		t.anyHealth = true
		return t
	}
	alive := func(backup bool) *tier {
		t, again := newRampedTier(members, func(i int, m *Member) int {
			return weightIf(i, m.Backup == backup && all[i].ready && all[i].status == health.Up)
		}, &h.Rules, now)
		if again > 0 {
			s.remakeAt(now.Add(again))
		}
		return t
	}

	s.ready = make([]int, len(members))
	for i := range members {
		s.ready[i] = weightIf(i, all[i].ready)
	}
	s.decided = serving + down
	s.allPrimaries = sync.OnceValue(func() *tier { return whateverHealth(false) })
	if backups == 0 && h.Rules.FailOpen.isTooFew(serving, s.decided) {
		s.state = FailedOpen
		s.serving = append(s.serving, s.allPrimaries())
	}
	if serving > 0 {
		s.primaries = alive(false)
		s.serving = append(s.serving, s.primaries)
	}
	if backups > 0 {
		s.backups = alive(true)
		s.serving = append(s.serving, s.backups)
	}
	for backup, n := range draining {
		if n > 0 { // better than an error
			t := newTier(members, func(i int, m *Member) int {
				return weightIf(i, !all[i].ready && index(m.Backup) == backup)
			})
			t.draining = true
			s.serving = append(s.serving, t)
		}
	}
	if len(s.serving) > 0 && !s.serving[0].anyHealth {
		s.best = s.serving[0].order
		s.serving[0].tickets, s.serving[0].counted = &s.tickets, true
	}

	// what follows is hardly ever needed, so it is made when it is asked for
	s.unknown = sync.OnceValue(func() *tier {
		backup := !s.undecided // only if no primary can still turn out to serve
		return newTier(members, func(i int, m *Member) int {
			return weightIf(i, all[i].ready && m.Backup == backup && all[i].status == health.Unknown)
		})
	})
	s.lastResort = sync.OnceValue(func() *tier {
		if h.Rules.FailOpen.Never {
			return new(tier)
		}
		return whateverHealth(primaries == 0)
	})
	if len(s.serving) == 0 && len(members) > 0 && s.unknown().empty() {
		s.state = LastResort
		if s.lastResort().empty() {
			s.state = Unavailable
		}
	}
	return s
}

// index is 0 for a primary, and 1 for a backup.
func index(backup bool) int {
	if backup {
		return 1
	}
	return 0
}

// remakeAt makes the pool make a new snapshot at a time, or sooner.
func (s *Snapshot) remakeAt(at time.Time) {
	if s.until.IsZero() || at.Before(s.until) {
		s.until = at
	}
}
