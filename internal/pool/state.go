// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// State is what becomes of the requests of a pool.
type State int32

const (
	// Normal: requests go to upstreams that are alive, or wait for one.
	Normal State = iota
	// FailedOpen: too few upstreams serve, so health is ignored.
	FailedOpen
	// LastResort: no upstream serves, so health is ignored.
	LastResort
	// Unavailable: no upstream serves, and health is not ignored.
	Unavailable

	// forgotten is the logged state of a pool of which nothing is logged any more.
	forgotten State = -1
	// notSeen is the state for a decision that was broken off.
	notSeen State = -2
)

// IgnoresHealth reports whether requests go to upstreams whatever their health.
func (s State) IgnoresHealth() bool { return s == FailedOpen || s == LastResort }

// Situation is what becomes of the requests of a pool at one moment. It follows from
// the snapshot, which knows of the checks, and from Caddy's own health (passive and
// active health checks, circuit breaker), which changes without a new snapshot.
type Situation struct {
	State State
	// ByCaddy: without Caddy's own health the state would be another.
	ByCaddy bool
	// BreakerOpen: the circuit breaker is open.
	BreakerOpen bool
	// receiving is the tier whose members get requests as long as one of them is not full;
	// nil if no upstream gets any.
	receiving *tier
}

// Weight returns the weight with which the upstream at a position gets requests.
func (s Situation) Weight(i int, u *reverseproxy.Upstream) float64 {
	t := s.receiving
	if t == nil || t.weights[i] == 0 || u.Host != nil && !t.serves(u) {
		return 0
	}
	return float64(t.weights[i]) / float64(max(1, t.scale))
}

// Situation returns the situation by a snapshot of the pool. It changes nothing.
func (p *Pool) Situation(now *Snapshot) Situation { return p.situation(now, p.Upstreams()) }

// situation is Situation for the upstreams that a request has brought. It decides as a
// decision does for a request that has tried no upstream yet.
func (p *Pool) situation(now *Snapshot, upstreams reverseproxy.UpstreamPool) Situation {
	if len(now.members) == 0 {
		return Situation{State: Normal}
	}
	ownHealth := p.handler.IsRunning() && upstreams[0].Host != nil // else the handler may not be provisioned yet
	if ownHealth && p.handler.breakerOpen() {
		return Situation{State: Unavailable, ByCaddy: true, BreakerOpen: true}
	}
	serves := func(t *tier) bool {
		if t.empty() || t.anyHealth || !ownHealth {
			return !t.empty()
		}
		return t.countHealthy(upstreams) > 0
	}
	is := func(s State, t *tier) Situation { return Situation{State: s, ByCaddy: s != now.state, receiving: t} }

	if ownHealth && p.isTooFewHealthy(now, upstreams) {
		return is(FailedOpen, now.allPrimaries())
	}
	for _, t := range now.serving {
		if serves(t) {
			if t.anyHealth {
				return is(FailedOpen, t)
			}
			return is(Normal, t)
		}
	}
	if t := now.unknown(); serves(t) {
		return is(Normal, t)
	}
	if t := now.lastResort(); !t.empty() {
		return is(LastResort, t)
	}
	return is(Unavailable, nil)
}

// isTooFewHealthy reports whether fail_open ignores health because Caddy itself holds
// too many upstreams unhealthy, which do not serve either. The snapshot knows of the
// checks only.
func (p *Pool) isTooFewHealthy(now *Snapshot, upstreams reverseproxy.UpstreamPool) bool {
	r := &p.handler.Rules
	if !r.CountsHealthy || now.state == FailedOpen || now.backups.countHealthy(upstreams) > 0 {
		return false
	}
	return r.FailOpen.isTooFew(now.primaries.countHealthy(upstreams), now.decided)
}

// LoggedState is the state of a pool that was last logged. Pools of the same upstreams
// share one.
type LoggedState struct{ state atomic.Int32 }

// load returns the state.
func (l *LoggedState) load() State { return State(l.state.Load()) }

// LogState logs the state of the pool, if it has changed.
func (p *Pool) LogState() {
	p.handler.logState(p.logged, func() (Situation, reverseproxy.UpstreamPool) {
		upstreams := p.Upstreams()
		return p.situation(p.snapshot(true), upstreams), upstreams
	})
}

// logState logs the state of a pool, if it is not the one that was logged last. It may
// have changed meanwhile, and the goroutine that changed it may have found nothing new
// to log. So the last look comes after the last line.
func (h *Handler) logState(logged *LoggedState, current func() (Situation, reverseproxy.UpstreamPool)) {
	for h.IsRunning() {
		before := logged.load()
		now, upstreams := current()
		if before == now.State || before == forgotten {
			return
		}
		if !logged.state.CompareAndSwap(int32(before), int32(now.State)) {
			continue
		}
		h.tellFailOpen(before, now.State)
		h.log(now, zap.Strings("pool", Names(upstreams)))
	}
}

// ResetLogged takes back what was logged of a pool that requests do not bring any more.
// It reports whether that was a state worth a line.
func (h *Handler) ResetLogged(logged *LoggedState) bool { return h.replaceLogged(logged, Normal) }

// ForgetLogged is ResetLogged for good: nothing is logged of the pool any more, not even
// by a request that still has it.
func (h *Handler) ForgetLogged(logged *LoggedState) { h.replaceLogged(logged, forgotten) }

func (h *Handler) replaceLogged(logged *LoggedState, now State) bool {
	before := logged.load()
	for before != forgotten && !logged.state.CompareAndSwap(int32(before), int32(now)) {
		before = logged.load()
	}
	if before == forgotten {
		return false
	}
	h.tellFailOpen(before, Normal)
	return before != Normal
}

// tellFailOpen tells when a pool begins to ignore health, and when it no longer does.
func (h *Handler) tellFailOpen(before, now State) {
	if h.OnFailOpen != nil && before.IgnoresHealth() != now.IgnoresHealth() {
		h.OnFailOpen(now.IgnoresHealth())
	}
}

// log writes the one line of a change of state.
func (h *Handler) log(now Situation, pool zap.Field) {
	switch now.State {
	case FailedOpen:
		open := zap.String("fail_open", h.Rules.FailOpen.Text)
		if now.ByCaddy {
			h.Logger.Warn("too few upstreams are alive and held healthy by Caddy's own health checks: requests go to all of them, whatever their health", pool, open)
			return
		}
		h.Logger.Warn("too few upstreams are alive: requests go to all of them, whatever their health", pool, open)
	case LastResort:
		if now.ByCaddy {
			h.Logger.Warn("Caddy's own health checks hold every upstream unhealthy that is alive: requests go to all of them, as the last resort", pool)
			return
		}
		h.Logger.Warn("no upstream is alive: requests go to all of them, as the last resort", pool)
	case Unavailable:
		switch {
		case now.BreakerOpen:
			h.Logger.Warn("the circuit breaker is open: requests are answered 503", pool)
		case now.ByCaddy:
			h.Logger.Warn("Caddy's own health checks hold every upstream unhealthy that is alive: requests are answered 503", pool)
		default:
			h.Logger.Warn("no upstream is alive that may get requests: they are answered 503", pool)
		}
	default:
		h.Logger.Info("enough upstreams are alive again: requests go to those alive only", pool)
	}
}

// Names returns the addresses of upstreams, a few if they are many.
func Names(upstreams reverseproxy.UpstreamPool) []string {
	names := make([]string, 0, len(upstreams))
	for _, u := range upstreams {
		names = append(names, u.Dial)
	}
	return view.Few(names)
}
