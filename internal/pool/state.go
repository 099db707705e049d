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
	if t == nil || t.weights[i] == 0 || u.Host != nil && !t.anyHealth && !u.Healthy() {
		return 0
	}
	return float64(t.weights[i]) / float64(max(1, t.scale))
}

// situationOf returns the situation of a pool by a snapshot, for the upstreams that a
// request has brought. It decides as a decision does for a request that has tried no
// upstream yet, and changes nothing.
func situationOf(h *Handler, now *Snapshot, upstreams reverseproxy.UpstreamPool) Situation {
	if len(now.members) == 0 {
		return Situation{State: Normal}
	}
	ownHealth := h.IsRunning() && upstreams[0].Host != nil // else the handler may not be provisioned yet
	if ownHealth && h.breakerOpen() {
		return Situation{State: Unavailable, ByCaddy: true, BreakerOpen: true}
	}
	serves := func(t *tier) bool {
		if t.empty() || t.anyHealth || !ownHealth {
			return !t.empty()
		}
		return h.countHealthy(t.weights, upstreams) > 0
	}
	is := func(s State, t *tier) Situation { return Situation{State: s, ByCaddy: s != now.state, receiving: t} }

	if ownHealth && now.isTooFewHealthy(h, upstreams) {
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

// LoggedState is the state of a pool that was last logged. Pools of the same upstreams
// share one.
type LoggedState struct{ state atomic.Int32 }

// load returns the state.
func (l *LoggedState) load() State { return State(l.state.Load()) }

// log logs the state of a pool, if it is not the one that was logged last. The
// state may change while a line is written, so it is compared again after each line.
func (l *LoggedState) log(h *Handler, current func() (Situation, reverseproxy.UpstreamPool)) {
	for h.IsRunning() {
		before := l.load()
		now, upstreams := current()
		if before == now.State || before == forgotten {
			return
		}
		if !l.state.CompareAndSwap(int32(before), int32(now.State)) {
			continue
		}
		h.reportFailOpen(before, now.State)
		now.writeTo(h.Logger, h.Rules.FailOpen.Text, zap.Strings("pool", Names(upstreams)))
	}
}

// Reset takes back what was logged of a pool that requests do not bring any more. It
// reports whether that was a state worth a line.
func (l *LoggedState) Reset(h *Handler) bool { return l.replace(h, Normal) }

// Forget is Reset for good: nothing is logged of the pool any more, not even by a request
// that still has it.
func (l *LoggedState) Forget(h *Handler) { l.replace(h, forgotten) }

func (l *LoggedState) replace(h *Handler, now State) bool {
	before := l.load()
	for before != forgotten && !l.state.CompareAndSwap(int32(before), int32(now)) {
		before = l.load()
	}
	if before == forgotten {
		return false
	}
	h.reportFailOpen(before, Normal)
	return before != Normal
}

// writeTo writes the one line of a change of state.
func (s Situation) writeTo(logger *zap.Logger, failOpen string, pool zap.Field) {
	switch s.State {
	case FailedOpen:
		open := zap.String("fail_open", failOpen)
		if s.ByCaddy {
			logger.Warn("too few upstreams are alive and healthy by Caddy's own health checks: requests go to all of them, whatever their health", pool, open)
			return
		}
		logger.Warn("too few upstreams are alive: requests go to all of them, whatever their health", pool, open)
	case LastResort:
		if s.ByCaddy {
			logger.Warn("Caddy's own health checks consider every upstream unhealthy that is alive: requests go to all of them, as the last resort", pool)
			return
		}
		logger.Warn("no upstream is alive: requests go to all of them, as the last resort", pool)
	case Unavailable:
		switch {
		case s.BreakerOpen:
			logger.Warn("the circuit breaker is open: requests are answered 503", pool)
		case s.ByCaddy:
			logger.Warn("Caddy's own health checks consider every upstream unhealthy that is alive: requests are answered 503", pool)
		default:
			logger.Warn("no upstream is alive that may get requests: they are answered 503", pool)
		}
	default:
		logger.Info("enough upstreams are alive again: requests go to those alive only", pool)
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
