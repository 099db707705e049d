// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// Upstream is what the traffic of one pool says of an upstream. Its exported methods take
// no lock, except where they say so.
type Upstream struct {
	// Address is that of the upstream, as operators name it.
	Address string

	pool *Pool
	flow flow
	// stage has the epoch and the count of the requests that begin now.
	stage atomic.Uint64
	// attentive: what becomes of the next request matters, even if it ends well.
	attentive atomic.Bool
	suspect   atomic.Bool
	ejection  ejection
	trouble   atomic.Pointer[time.Time] // when it last had two outcomes or stalls in a row

	mu        sync.Mutex // guards what follows
	bindings  []binding
	down      bool       // as far as FollowChecks knows
	outSince  time.Time  // since when it is not up, as far as FollowChecks knows; the zero time if it is
	suspicion *suspicion // nil if there is none
	connected time.Time  // when the last suspicion because of a connection began
	backoffs  [causes]backoff
	row       row
}

// binding is the use of an upstream by one handler.
type binding struct {
	handler *Handler
	targets []*health.Target
}

// Stages tell apart requests that begin at different times. A new epoch begins when the
// upstream is acquitted, or returns: requests of an earlier one say nothing about it now.
// The count goes up with each outcome that counts: requests that were in flight at that
// moment count no more.
const oneEpoch = 1 << 32

func epochOf(stage uint64) uint64 { return stage / oneEpoch }

// newEpoch begins a new epoch.
func (u *Upstream) newEpoch() {
	u.flow.newEpoch()
	u.stage.Add(oneEpoch)
}

// EjectionReason returns why the upstream is ejected, empty if it is not. It takes a lock.
func (u *Upstream) EjectionReason() string { return u.ejection.reasonNow() }

// Ejection returns until when the upstream is ejected, and the zero time if it is not. If
// that time is over, the next request is a trial.
func (u *Upstream) Ejection() time.Time { return u.ejection.untilNow() }

// Returned returns when the upstream last returned from an ejection, the zero time if it
// never did.
func (u *Upstream) Returned() time.Time { return load(&u.ejection.returned) }

// ClaimTrial reports whether a request is to be the trial of the upstream, whose ejection
// is over. The trial is the first request that is safe to repeat, or any if there is none
// for a second. It takes a lock.
func (u *Upstream) ClaimTrial(safe bool) bool {
	h := u.handler()
	return h != nil && u.ejection.claimTrial(safe, time.Now(), u.flow.stall(&h.Settings))
}

// FirstBytes returns how many requests got a first byte from the upstream so far.
func (u *Upstream) FirstBytes() uint64 { return u.flow.firsts() }

// accuse takes an accusation. It returns what was counted, to be taken back. It takes locks.
func (u *Upstream) accuse(a accusation) (c Counted) {
	now := time.Now()
	h := u.handler()
	if h == nil || h.Settings.Off || a.cause == Stall && !h.wantsStalls() || a.byRequest && epochOf(a.stage) != epochOf(u.stage.Load()) {
		return c
	}
	u.mu.Lock()
	u.attentive.Store(true)
	targets := u.targetsOf(h)
	if u.count(a, now, isDown(targets) || u.ejection.isOn()) {
		c = Counted{u, u.row.id}
	}
	urgent := false
	if a.byRequest && a.cause != Connect {
		u.row.request(now)
		urgent = u.row.isUrgent(now)
	}
	length := u.row.length
	first := a.answered && u.row.streak < minAnswers // since it was last down, if it was
	single := first && !urgent
	// a single answer ejects only if that is what is wanted
	enough := h.Settings.EjectAfter > 0 && length >= h.Settings.EjectAfter && (!first || h.Settings.EjectAfter < minAnswers)
	u.mu.Unlock()

	common := u.pool.isCommonTrouble(now)
	if common {
		u.pool.tryEjected(now)
	}
	ejected := u.ejection.isOn()
	if c.upstream != nil && enough && !common && isUp(targets) && !ejected && h.Hooks.MayEject(u) {
		ejected = u.eject(h, now, false)
	}
	began := false
	if !ejected && !isDown(targets) && !single && (!common || a.cause == Connect || a.cause == Outcome && !a.answered) {
		// requests that are reset everywhere are no reason to hurry
		began = u.suspectNow(h, a, urgent && !common, now)
	}
	h.Hooks.Accused(u.Address, a.cause, a.reason, began)
	return c
}

// count notes an accusation, and reports whether it counts towards an ejection. That of an
// upstream that is out, and gets requests as the last resort, does not. u.mu must be held.
func (u *Upstream) count(a accusation, now time.Time, out bool) (counts bool) {
	switch {
	case a.cause == Connect:
		return false
	case a.byRequest && !u.stage.CompareAndSwap(a.stage, a.stage+1): // it was in flight at the last one
		return false
	case a.cause == Stall: // a slow endpoint stalls once, and then its answers come
		counts = u.row.stall(u.flow.firsts(), u.flow.begun())
	default:
		counts = !a.unsure
	}
	counts = counts && !out
	u.row.add(counts, a.reason)
	if max(u.row.streak, u.row.length) >= 2 {
		u.trouble.Store(&now)
	}
	return counts
}

// FollowChecks is to be called when the checks of a handler may hold the upstream down, or no
// longer do, and when another handler may decide. The checks of the one that decides count.
// Down ends an ejection, but that counts for the next one. What failed in a row is forgotten
// after a long down or maintenance. It takes a lock.
func (u *Upstream) FollowChecks() {
	now := time.Now()
	h := u.handler()
	if h != nil && h.Settings.EjectAfter == 0 {
		u.endEjection(now)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	targets := u.targetsOf(h)
	if down := isDown(targets); u.down != down {
		u.down = down
		u.newEpoch()
		if down {
			u.convict()
			u.ejection.end(now)
		}
	}
	switch up := isUp(targets); {
	case !up && u.outSince.IsZero():
		u.outSince = now
	case up && !u.outSince.IsZero():
		u.row.convict()
		if now.Sub(u.outSince) >= longDown {
			u.row.reset()
		}
		u.outSince = time.Time{}
	}
}

// isDown reports whether a check fails.
func isDown(targets []*health.Target) bool {
	return slices.ContainsFunc(targets, func(t *health.Target) bool { return t.Status() == health.Down })
}

// isUp reports whether all checks pass, if there are any.
func isUp(targets []*health.Target) bool {
	return !slices.ContainsFunc(targets, func(t *health.Target) bool { return t.Status() != health.Up })
}

// good notes a good answer, when that matters.
func (u *Upstream) good(trial uint64) {
	u.mu.Lock()
	u.row.reset()
	returned := u.ejection.endTrial(trial) && u.ejection.end(time.Now())
	if returned {
		u.newEpoch()
	}
	u.attentive.Store(u.ejection.isOn())
	u.mu.Unlock()
	if returned {
		u.reportReturn()
	}
}

// bad notes that a trial has failed.
func (u *Upstream) bad(trial uint64, reason string) {
	now := time.Now()
	h := u.handler()
	if h == nil || !u.ejection.endTrial(trial) {
		return
	}
	if h.Settings.EjectAfter > 0 && !u.pool.isCommonTrouble(now) {
		u.mu.Lock()
		u.row.add(true, reason)
		u.mu.Unlock()
		u.eject(h, now, true)
		return
	}
	u.endEjection(now) // nothing is to be ejected, or the others do not answer better
}

// endEjection ends the ejection, if there is one.
func (u *Upstream) endEjection(now time.Time) {
	u.mu.Lock()
	ended := u.ejection.end(now)
	if ended {
		u.newEpoch()
	}
	u.mu.Unlock()
	if ended {
		u.reportReturn()
	}
}

func (u *Upstream) reportReturn() {
	u.pool.changed()
	if h := u.handler(); h != nil {
		h.Hooks.Returned(u.Address)
	}
}

// eject takes the upstream out for a while: once more, if a trial has failed. It reports
// whether it did: not if another one was ejected at the same moment, and too little is left.
func (u *Upstream) eject(h *Handler, now time.Time, again bool) bool {
	u.mu.Lock()
	reason := u.row.describe(again, len(u.targetsOf(h)) > 0)
	u.mu.Unlock()
	until, inRow := u.ejection.begin(now, again, reason, &h.Settings)
	if inRow == 0 {
		return true
	}
	if !again && !h.Hooks.MayEject(u) {
		u.ejection.undo()
		u.pool.changed()
		return false
	}
	u.mu.Lock()
	u.row.reset()
	u.attentive.Store(true)
	u.mu.Unlock()
	u.pool.changed()
	h.Hooks.Ejected(u.Address, reason, until, inRow)
	return true
}

// targetsOf returns the targets of the upstream for a handler. u.mu must be held.
func (u *Upstream) targetsOf(h *Handler) []*health.Target {
	for _, b := range u.bindings {
		if b.handler == h {
			return b.targets
		}
	}
	return nil
}

// bind adds the use by a handler.
func (u *Upstream) bind(h *Handler, targets []*health.Target) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.bindings = append(u.bindings, binding{h, targets})
}

// unbind takes back bind, and reports whether no handler uses the upstream any more.
func (u *Upstream) unbind(h *Handler) (unused bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if i := slices.IndexFunc(u.bindings, func(b binding) bool { return b.handler == h }); i >= 0 {
		u.bindings = slices.Delete(u.bindings, i, i+1)
	}
	return len(u.bindings) == 0
}

// handler returns the newest handler that uses the upstream and follows, one that runs if
// there is one; nil if there is none. It takes a lock.
func (u *Upstream) handler() (newest *Handler) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, b := range slices.Backward(u.bindings) {
		switch {
		case !b.handler.follows.Load():
		case b.handler.running.Load():
			return b.handler
		case newest == nil:
			newest = b.handler
		}
	}
	return newest
}
