// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// mood is a state of a whole pool that is worth a line in the log.
type mood int32

const (
	fine        mood = iota
	failedOpen       // too few serve, so health is ignored
	lastResort       // none serves, so health is ignored
	unavailable      // none serves, and health is not ignored

	// forgotten is the mood last told of a pool of which nothing is told any more.
	forgotten mood = -1
	// unseen is what a decision saw that was broken off.
	unseen mood = -2
)

// ignoresHealth reports whether requests go to upstreams whatever their health.
func (m mood) ignoresHealth() bool { return m == failedOpen || m == lastResort }

// situation is what becomes of the requests of a pool at one moment. It follows from
// the snapshot, which knows of the checks, and from Caddy's own health (passive and
// active health checks, circuit breaker), which changes without a new snapshot.
type situation struct {
	mood mood
	// gets is the tier whose members get requests as long as one of them is not full;
	// nil if no upstream gets any.
	gets *tier
	// byCaddy: without Caddy's own health the mood would be another.
	byCaddy bool
	// broken: the circuit breaker is open.
	broken bool
}

// situation returns the situation of a pool by its snapshot. It decides as decision
// does for a request that has tried no upstream yet, and changes nothing.
func (s *Selection) situation(now *snapshot, pool reverseproxy.UpstreamPool) situation {
	if len(now.members) == 0 {
		return situation{mood: fine}
	}
	ownHealth := s.running.Load() && pool[0].Host != nil // else the handler may not be provisioned yet
	if ownHealth && s.circuitOpen() {
		return situation{mood: unavailable, byCaddy: true, broken: true}
	}
	serves := func(t *tier) bool {
		if t.empty() || t.anyHealth || !ownHealth {
			return !t.empty()
		}
		for i, weight := range t.weights {
			if weight > 0 && pool[i].Healthy() {
				return true
			}
		}
		return false
	}
	is := func(m mood, t *tier) situation { return situation{mood: m, gets: t, byCaddy: m != now.mood} }

	if ownHealth && s.tooFewHealthy(now, pool) {
		return is(failedOpen, now.all())
	}
	for _, t := range now.tiers {
		if serves(t) {
			if t.anyHealth {
				return is(failedOpen, t)
			}
			return is(fine, t)
		}
	}
	if t := now.unknown(); serves(t) {
		return is(fine, t)
	}
	if t := now.resort(); !t.empty() {
		return is(lastResort, t)
	}
	return is(unavailable, nil)
}

// tooFewHealthy reports whether fail_open ignores health because Caddy itself
// holds too many unhealthy, which do not serve either. The snapshot knows of the
// checks only.
func (s *Selection) tooFewHealthy(now *snapshot, pool reverseproxy.UpstreamPool) bool {
	if !s.countHealthy || now.mood == failedOpen || healthy(now.backups, pool) > 0 {
		return false
	}
	return s.rules.failOpen.tooFew(healthy(now.primaries, pool), now.decided)
}

// healthy counts the members of a tier that Caddy itself holds healthy.
func healthy(t *tier, pool reverseproxy.UpstreamPool) (n int) {
	if t == nil {
		return 0
	}
	for i, weight := range t.weights {
		if weight > 0 && pool[i].Healthy() {
			n++
		}
	}
	return n
}

// report tells of what the decision saw, if that is news. Requests are what notices a
// change of Caddy's own health: there is no signal of it. While it makes a difference,
// every pick is a decision, so that the first one afterwards notices the end.
func (d *decision) report() {
	if d.saw == unseen {
		return
	}
	if direct := d.now.quick && d.saw == d.now.mood; d.now.direct.Load() != direct {
		d.now.direct.Store(direct)
	}
	if said := d.now.said; mood(said.Load()) != d.saw {
		d.announce(said, func() situation { return d.situation(d.freshSnapshotOf(d.pool), d.pool) }, d.names)
	}
}

// names returns the addresses of the pool, a few if there are many.
func (d *decision) names() []string {
	names := make([]string, 0, len(d.pool))
	for _, u := range d.pool {
		names = append(names, u.Dial)
	}
	return aFew(names)
}

// announceOwn logs the mood of the proxy's own list, if that is news.
func (s *Selection) announceOwn() {
	s.announce(&s.said, func() situation { return s.situation(s.current.Load(), s.upstreams) }, s.names)
}

// announce logs the mood of a pool of these upstreams, if it is not the last one
// that was said. It may have changed meanwhile, and the goroutine that changed it may
// have found nothing new to say; so the last look is after the last line.
func (s *Selection) announce(said *atomic.Int32, current func() situation, names func() []string) {
	for s.running.Load() {
		before, now := mood(said.Load()), current()
		if before == now.mood || before == forgotten {
			return
		}
		if !said.CompareAndSwap(int32(before), int32(now.mood)) {
			continue
		}
		s.tellFailOpen(before, now.mood)
		s.logMood(now, zap.Strings("pool", names()))
	}
}

// logMood writes the one line of a change of mood.
func (s *Selection) logMood(now situation, pool zap.Field) {
	switch now.mood {
	case failedOpen:
		open := zap.String("fail_open", s.FailOpen)
		if now.byCaddy {
			s.logger.Warn("too few upstreams are alive and held healthy by Caddy's own health checks: requests go to all of them, whatever their health", pool, open)
			return
		}
		s.logger.Warn("too few upstreams are alive: requests go to all of them, whatever their health", pool, open)
	case lastResort:
		if now.byCaddy {
			s.logger.Warn("Caddy's own health checks hold every upstream unhealthy that is alive: requests go to all of them, as the last resort", pool)
			return
		}
		s.logger.Warn("no upstream is alive: requests go to all of them, as the last resort", pool)
	case unavailable:
		switch {
		case now.broken:
			s.logger.Warn("the circuit breaker is open: requests are answered 503", pool)
		case now.byCaddy:
			s.logger.Warn("Caddy's own health checks hold every upstream unhealthy that is alive: requests are answered 503", pool)
		default:
			s.logger.Warn("no upstream is alive that may get requests: they are answered 503", pool)
		}
	default:
		s.logger.Info("enough upstreams are alive again: requests go to those alive only", pool)
	}
}

// unsay forgets the mood of a pool that requests do not bring any more. It reports
// whether there was anything to be said about that.
func (s *Selection) unsay(said *atomic.Int32) bool {
	return s.replaceMood(said, fine)
}

// forgetMood is unsay for good: nothing is told of the pool any more, not even by a
// request that still has it.
func (s *Selection) forgetMood(said *atomic.Int32) {
	s.replaceMood(said, forgotten)
}

func (s *Selection) replaceMood(said *atomic.Int32, now mood) bool {
	before := mood(said.Load())
	for before != forgotten && !said.CompareAndSwap(int32(before), int32(now)) {
		before = mood(said.Load())
	}
	if before == forgotten {
		return false
	}
	s.tellFailOpen(before, fine)
	return before != fine
}

// tellFailOpen tells operators when a pool begins to ignore health, and when it does
// no longer: once, if several handlers have it.
func (s *Selection) tellFailOpen(before, now mood) {
	if before.ignoresHealth() == now.ignoresHealth() || s.counters == nil {
		return
	}
	delta := 1
	if !now.ignoresHealth() {
		delta = -1
	}
	s.counters.AddFailOpen((*picks)(s), delta, func(active bool) { s.app.eventQueue().FailOpen(s.pool, active) })
}
