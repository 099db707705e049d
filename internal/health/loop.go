// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"time"
)

// loop is the probes from the first driver's coming to the last one's leaving.
// Between two of them there is only a timer, which begins the next one in a
// goroutine of its own. All is guarded by the target's mutex.
type loop struct {
	timer     *time.Timer   // of the next probe, or of the one in flight
	due       time.Time     // the next probe is
	again     bool          // after the probe in flight, the next follows at once
	probing   bool          // a probe is in flight, or what came of it is being told
	slot      slot          // of due
	spread    bool          // the first interval is over, or has been decided on
	delayed   bool          // the next probe was overdue, and put off to be spread again
	postponed bool          // the next probe waits for a straggler
	idle      chan struct{} // closed when probing is over, if detach waits for it
	attempt   *attempt      // the probe in flight, nil if there is none
}

// arm has the next probe begin at a time.
func (l *loop) arm(at time.Time) {
	slots.free(&l.slot)
	l.due, l.postponed, l.delayed = at, false, false
	l.timer.Reset(time.Until(at))
}

// probeNext has the next probe begin at once, or right after the one in flight.
func (l *loop) probeNext() {
	if l.probing {
		l.again = true
	} else {
		l.arm(time.Now())
	}
}

// discard cuts off the probe in flight, which counts for nothing.
func (l *loop) discard(now time.Time) {
	l.attempt.discard = true
	l.attempt.end(now, context.Canceled)
	l.timer.Reset(l.attempt.beatDue.Sub(now))
}

// tick is called when the timer fires: for the probe in flight, or to begin the
// next one.
func (t *Target) tick(l *loop) {
	t.mu.Lock()
	now := time.Now()
	var begun, unended *attempt
	switch {
	case t.loop != l: // the last driver left in this very moment
	case l.attempt != nil:
		a := l.attempt
		if next := a.beat(now); next > 0 {
			l.timer.Reset(next)
			break
		}
		l.attempt = nil
		t.giveUp(a)
		unended = a
	case l.probing || now.Before(l.due): // it fired for a probe that was over by then
	default:
		begun = t.begin(l, now)
	}
	t.mu.Unlock()
	switch {
	case unended != nil:
		t.settle(l, unended, t.outcome(unended, false, errUnended, now))
	case begun == nil:
	case begun.unasked:
		t.settle(l, begun, t.outcome(begun, false, errStillRunning, now))
	default:
		growStack()
		t.run(l, begun)
	}
}

// punctual is how late a probe may begin and still count as on time: intervals count
// from when it was due, or small delays would take it from slot to slot.
const punctual = 5 * time.Millisecond

// begin returns the probe that begins now, nil if none does. While a straggler runs,
// the probe is not made and has failed; but as long as the straggler has time left,
// having been cut off early, it says nothing, and the next probe waits. t.mu must be
// held.
func (t *Target) begin(l *loop, now time.Time) *attempt {
	if t.paused && len(t.waiters) == 0 { // paused in this very moment
		return nil
	}
	s := t.straggler
	if s != nil && now.Before(s.deadline) {
		l.arm(s.deadline)
		l.postponed = true
		return nil
	}
	if late := now.Sub(l.due); t.isOverdue(l, late) {
		delay := t.state.interval(&t.settings)
		at, taken := slots.take(&t.settings, now, min(4*late, delay), delay, false)
		l.arm(at)
		l.slot, l.delayed = taken, true
		return nil
	}
	due := l.due
	if now.Sub(due) > min(punctual, t.settings.FastInterval/minSlots) {
		due = now
	}
	t.began = now
	t.suspicion.probing()
	a := newAttempt(t.drivers[len(t.drivers)-1], now, t.settings.Timeout)
	a.due = due
	a.waiters, t.waiters = t.waiters, nil
	l.probing = true
	if s != nil {
		a.unasked, a.late = true, now.Sub(l.due)
		return a
	}
	a.fresh = !t.state.settled() || t.suspicion.burst || len(a.waiters) > 0
	l.attempt = a
	l.timer.Reset(a.beatDue.Sub(now))
	return a
}

// isOverdue reports whether a probe comes too late to begin at once: the process was
// stopped, or starved, and it is one of many to which that happened. They are spread over
// the next interval, or over less if it was not for long, and each is put off once. t.mu
// must be held.
func (t *Target) isOverdue(l *loop, late time.Duration) bool {
	return late > max(t.state.interval(&t.settings)/40, noise) && !l.delayed &&
		t.state.status != Unknown && !t.suspicion.raised && !t.suspicion.burst && len(t.waiters) == 0 &&
		slots.crowded(t.settings.Interval)
}

// next returns when the probe after one from then on is due, and its slot, if it has
// one. t.mu must be held.
func (t *Target) next(l *loop, from time.Time) (time.Time, slot) {
	delay := t.state.interval(&t.settings)
	jitter := time.Duration(t.settings.Jitter * float64(delay))
	if jitter == 0 {
		return from.Add(delay), slot{}
	}
	first := !l.spread
	l.spread = true
	return slots.take(&t.settings, from.Add(delay), jitter, delay, first)
}

// run makes a probe. What came of it counts unless it was given up meanwhile.
func (t *Target) run(l *loop, a *attempt) {
	draining, err := safely(a, a.driver.Probe, a.fresh)
	o := t.outcome(a, draining, err, time.Now())
	a.cut(context.Canceled)
	t.mu.Lock()
	if a.givenUp {
		t.endStraggler(a)
		t.mu.Unlock()
		return
	}
	l.attempt = nil
	t.mu.Unlock()
	t.settle(l, a, o)
}

// giveUp has nothing wait for a probe any more. It is the target's straggler until it
// ends. t.mu must be held.
func (t *Target) giveUp(a *attempt) {
	a.givenUp = true
	t.straggler = a
}

// endStraggler notes that a probe which was given up has ended. t.mu must be held.
func (t *Target) endStraggler(a *attempt) {
	t.straggler = nil
	if a.over != nil {
		close(a.over)
	}
	if l := t.loop; l != nil && l.postponed {
		l.arm(time.Now())
	}
}

// settle counts what came of a probe, tells of it, and has the next one follow. Probes
// of one target never overlap: one that takes longer than the interval delays the next.
func (t *Target) settle(l *loop, a *attempt, o outcome) {
	t.mu.Lock()
	if t.loop != l || a.discard { // it counts for nothing, and a successor's is due at once
		t.askAgain(a.waiters)
		t.follow(l, time.Now(), slot{})
		t.mu.Unlock()
		return
	}
	var change *Transition
	var subscribers []func()
	burst := t.suspicion.burst
	inconclusive := t.inconclusive(a, o)
	if inconclusive == nil {
		t.history.add(o.Result)
		if !t.paused {
			ended := o.ended()
			if change = t.record(o.Passed(), o.draining, o.Reason, ended); change != nil {
				subscribers = t.listeners()
			}
			burst = t.suspicion.record(o.Passed(), t.state.status, ended)
		}
	}
	newest := t.drivers[len(t.drivers)-1]
	from := a.due
	if a.givenUp { // its interval is over already, and one that is slow to end must not fail twice
		from = o.ended()
	}
	var next time.Time
	var taken slot
	if burst && !a.givenUp {
		next = a.began.Add(t.settings.FastInterval / burstFactor)
	} else {
		next, taken = t.next(l, from)
	}
	t.mu.Unlock()

	for _, f := range subscribers {
		f()
	}
	switch {
	case inconclusive == nil && newest.Probed != nil:
		newest.Probed(o.Result)
	case inconclusive != nil && newest.Inconclusive != nil:
		newest.Inconclusive(inconclusive)
	}
	if change != nil && newest.Report != nil {
		newest.Report(*change)
	}
	for _, waiter := range a.waiters {
		waiter <- answer{o.Result, inconclusive}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.follow(l, next, taken)
}

// follow has the next probe follow at a time, for which a slot may be taken, or at once
// if that is wanted. t.mu must be held.
func (t *Target) follow(l *loop, next time.Time, taken slot) {
	l.probing = false
	if t.loop != l {
		slots.free(&taken)
		if l.idle != nil {
			close(l.idle)
		}
		return
	}
	now := time.Now()
	switch {
	case l.again || len(t.waiters) > 0:
		l.again, next = false, now
		slots.free(&taken)
	case t.paused:
		slots.free(&taken)
		return
	case now.Sub(next) > punctual: // the probe took longer than the interval
		next = now
		slots.free(&taken)
	}
	l.arm(next)
	l.slot = taken
}

// record counts a result and returns the change, if it made one. t.mu must be
// held.
func (t *Target) record(passed, draining bool, reason string, now time.Time) *Transition {
	before := t.state
	if !t.state.record(passed, draining, &t.settings) {
		return nil
	}
	change := &Transition{
		From: before.status, To: t.state.status,
		WasDraining: before.draining, Draining: t.state.draining,
		Reason: reason,
	}
	if since := t.since.Load(); since != nil {
		if change.From == change.To {
			now = *since
		} else {
			change.Lasted = now.Sub(*since)
		}
	}
	t.publish(now)
	return change
}
