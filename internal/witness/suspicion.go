// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// suspicion is an accusation that probes are to decide.
type suspicion struct {
	cause   Cause
	reason  string // of the accusation
	pending int    // targets without a verdict, and 1 while they are being asked
	asked   bool   // a target is to decide
	worst   health.Verdict
}

// IsSuspect reports whether probes have yet to decide about an accusation by this pool.
func (u *Upstream) IsSuspect() bool { return u.suspect.Load() }

// Suspicion returns what made the upstream suspect, empty if this pool does not suspect it.
// It takes a lock.
func (u *Upstream) Suspicion() (reason string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.suspicion != nil {
		reason = u.suspicion.reason
	}
	return reason
}

// suspectNow has the targets of the upstream decide, unless a back-off forbids it. It
// reports whether it did.
func (u *Upstream) suspectNow(h *Handler, a accusation, urgent bool, now time.Time) bool {
	u.mu.Lock()
	targets := u.targetsOf(h)
	if u.suspicion != nil || len(targets) == 0 || !urgent && u.isHeldBack(a.cause, now) {
		u.mu.Unlock()
		return false
	}
	s := &suspicion{cause: a.cause, reason: a.reason, pending: len(targets) + 1, worst: health.Acquitted}
	u.suspicion = s
	if a.cause == Connect {
		u.connected = now
	}
	u.suspect.Store(true)
	u.mu.Unlock()
	for _, t := range targets {
		if t.Accuse(a.cause == Connect, func(v health.Verdict) { u.decide(s, v) }) {
			s.asked = true
		} else {
			u.decide(s, health.Undecided)
		}
	}
	u.pool.changed()
	asked := s.asked // decide reads it only after the next call
	u.decide(s, health.Acquitted)
	return asked
}

// isHeldBack reports whether no burst may begin now. u.mu must be held.
func (u *Upstream) isHeldBack(cause Cause, now time.Time) bool {
	if cause == Connect {
		return now.Sub(u.connected) < minBackoff
	}
	return now.Before(u.backoffs[cause].until)
}

// decide takes the verdict of one target. The upstream is acquitted when all have passed.
func (u *Upstream) decide(s *suspicion, v health.Verdict) {
	now := time.Now()
	u.mu.Lock()
	s.pending--
	s.worst = worse(s.worst, v)
	if u.suspicion != s || s.pending > 0 {
		u.mu.Unlock()
		return
	}
	u.suspicion = nil
	u.suspect.Store(false)
	if s.asked {
		u.conclude(s, now)
	}
	acquitted := s.asked && s.worst == health.Acquitted
	u.mu.Unlock()
	u.pool.changed()
	if h := u.handler(); h != nil && acquitted {
		h.Hooks.Acquitted(u.Address)
	}
}

// worse returns the worse of two verdicts.
func worse(a, b health.Verdict) health.Verdict {
	if a == health.Convicted || b == health.Acquitted {
		return a
	}
	return b
}

// conclude notes what a suspicion has led to. u.mu must be held.
func (u *Upstream) conclude(s *suspicion, now time.Time) {
	u.newEpoch()
	if s.worst == health.Convicted {
		u.convict()
		return
	}
	u.backoffs[s.cause].lengthen(now)
	if s.cause == Stall {
		u.row.acquitStall(u.flow.firsts())
	}
}

// convict begins anew, since probes have decided, except for what counts towards an ejection.
// A check can pass and fail by chance, for instance one by TCP of an upstream that resets each
// connection: if each failure began a new count, that upstream would be ejected late or never. u.mu
// must be held.
func (u *Upstream) convict() {
	u.row.convict()
	u.backoffs = [causes]backoff{}
}
