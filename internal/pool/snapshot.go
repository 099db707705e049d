// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"
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
	until   time.Time // when a slow start goes on, or an ejection ends; zero if there is none
	tiers

	// spill are the groups that are in use. firstSum is what the first of them weighs in an
	// answer of a dynamic source.
	spill    spillState
	firstSum float64

	// awaited are the slots for which requests wait.
	awaited awaitedSets

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
	// if they did not drain, or were not ejected. None is empty.
	serving []*tier
	// up are the weights of those that are up, suspects and ejected ones, too, by group.
	// allPrimaries are the ready primaries, whatever their health, and decided is how many
	// of them have a verdict. fail_open goes by these.
	up           [][]int
	allPrimaries func() *tier
	decided      int
	// trials are the members whose ejection is over: a request is to try them.
	trials []int
	// undecided: a primary has no verdict yet.
	undecided bool
	// unknown are members without a verdict, for when none serves.
	unknown func() *tier
	// lastResort are the members to ask in the end, whatever their health.
	lastResort func() *tier
	// ready are the weights of members that are neither draining nor in maintenance,
	// whatever their health.
	ready []int
	// limits are how many requests members get at once, 0 for any number; nil if none has a
	// limit.
	limits []int
	// bindings are what the clients do that are bound to members; nil if none are.
	bindings []binding
	// draining are those that drain and are up, for a policy that binds clients.
	draining []int
}

// Fast reports whether the upstream that Draw returns gets the request if it can take
// it.
func (s *Snapshot) Fast() bool { return s.fast.Load() }

// Draw returns the position of the next upstream in the order.
func (s *Snapshot) Draw() int { return s.best.At(s.tickets.Add(1)) }

// Skip says that the upstream drawn does not get the request.
func (s *Snapshot) Skip(position int) { s.members[position].Extra.Add(-1) }

// LimitOf returns how many requests a member gets at once, 0 for any number.
func (s *Snapshot) LimitOf(i int) int {
	if s.limits == nil {
		return 0
	}
	return s.limits[i]
}

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
func (s *Snapshot) isTooFewHealthy(h *Handler, upstreams reverseproxy.UpstreamPool) bool {
	if !h.Rules.CountsHealthy || s.state == FailedOpen {
		return false
	}
	for _, weights := range s.up[1:] {
		if h.countHealthy(weights, upstreams) > 0 {
			return false
		}
	}
	return h.Rules.FailOpen.isTooFew(h.countHealthy(s.up[0], upstreams), s.decided)
}

// standing is what decides about one member in a snapshot.
type standing struct {
	status health.Status
	weight int  // 0 if it gets nothing, not even as the last resort
	full   int  // its weight, whatever its mode
	keeps  bool // clients that are bound to it stay
	ready  bool // it has a weight, and neither drains nor is in maintenance
	// suspect and ejected: the traffic says so, and the handler heeds it
	suspect bool
	ejected bool
}

// serves reports whether it serves as others do.
func (s *standing) serves() bool {
	return s.ready && s.status == health.Up && !s.suspect && !s.ejected
}

// standingOf returns what decides about a member.
func (h *Handler) standingOf(m *Member) standing {
	set := h.Settings.Of(m.Address)
	mode := set.ModeNow()
	s := standing{status: m.Status(), weight: set.WeightIn(h.Name, m.Weight)}
	s.full = s.weight
	up := s.status == health.Up
	s.ready = s.weight > 0 && mode == settings.Ready && (!up || !m.Draining())
	if up && !h.Rules.Witness.Off {
		s.suspect, s.ejected = m.IsSuspect(), !m.Ejection().IsZero()
	}
	if mode == settings.Maintenance || mode == settings.Drain && !up {
		s.weight = 0
	}
	s.keeps = up && s.weight > 0 && !s.ejected && !set.RebindNow()
	return s
}

// newSnapshot decides which members may get requests, and in which order. It changes nothing.
func (h *Handler) newSnapshot(members []*Member, now time.Time, groups *spills) *Snapshot {
	made := version(h.version.Load()) // first: a change that follows makes it outdated
	s := &Snapshot{members: members, made: made}
	all := make([]standing, len(members))
	for i, m := range members {
		all[i] = h.standingOf(m)
	}
	b := &builder{handler: h, made: s, standings: all, now: now, spills: groups}
	b.count()
	b.serving()
	if len(s.serving) > 0 && !s.serving[0].anyHealth {
		s.best = s.serving[0].order
		s.serving[0].tickets, s.serving[0].counted = &s.tickets, true
	}
	b.notServing()
	if len(s.serving) == 0 && len(members) > 0 && s.unknown().empty() {
		s.state = LastResort
		if s.lastResort().empty() {
			s.state = Unavailable
		}
	}
	return s
}

// mayBeFast reports whether the first tier is enough to pick from.
func (s *Snapshot) mayBeFast() bool {
	return s.best.Len() > 0 && len(s.trials) == 0 && s.limits == nil && !s.serving[0].suspect && !s.serving[0].fallback
}

// backupIsUp reports whether a backup is up.
func (s *Snapshot) backupIsUp() bool {
	return slices.ContainsFunc(s.up[1:], func(weights []int) bool { return countWeights(weights) > 0 })
}

// remakeAt makes the pool make a new snapshot at a time, or sooner.
func (s *Snapshot) remakeAt(at time.Time) {
	if s.until.IsZero() || at.Before(s.until) {
		s.until = at
	}
}

// calmSuspects says whether upstreams that do not suffer from an accusation serve beside
// the suspects.
func (s *Snapshot) calmSuspects() {
	alone := len(s.serving) > 0 && s.serving[0].suspect
	for _, t := range s.serving {
		if !t.suspect {
			continue
		}
		for i, weight := range t.weights {
			if weight > 0 {
				s.members[i].calm(alone)
			}
		}
	}
}

// MayEject reports whether enough serves of the group of a member when it is ejected, or
// while it is: all but a share of the serving weight. One of two or three equal ones may always go.
func (s *Snapshot) MayEject(m *Member, share float64) bool {
	base, left, n, ejected, equal := 0, 0, 0, 0, true
	own := 0
	for i, weight := range s.up[m.Group] {
		if weight == 0 {
			continue
		}
		out := !s.members[i].Ejection().IsZero()
		n++
		base += weight
		equal = equal && (own == 0 || own == weight)
		own = weight
		switch {
		case s.members[i] == m:
		case out:
			ejected++
		default:
			left += weight
		}
	}
	if left == 0 {
		return false
	}
	if ejected == 0 && equal && n <= 3 {
		return true
	}
	return float64(left) >= (1-share)*float64(base)-1e-9 // of rounding
}
