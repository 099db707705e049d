// SPDX-License-Identifier: Apache-2.0

package health

import (
	"cmp"
	"time"
)

// startSchedule starts the probes, the first of them after a delay. t.mu must be held.
func (t *Target) startSchedule(delay time.Duration) {
	s := &schedule{due: time.Now().Add(delay), pacer: cmp.Or(t.drivers[0].Pacer, &outOfTurn)}
	s.timer = time.AfterFunc(delay, func() { t.fire(s) })
	t.schedule = s
	slots.count(t.settings.Interval, 1)
}

// stopSchedule ends the probes. It returns channels that are closed when the result of the
// last probe has been delivered, and when its straggler has ended; nil where there is
// nothing to wait for. t.mu must be held.
func (t *Target) stopSchedule() (delivered, ended <-chan struct{}) {
	s := t.schedule
	t.schedule = nil
	s.timer.Stop()
	slots.free(&s.slot)
	slots.count(t.settings.Interval, -1)
	if a := s.attempt; a != nil {
		a.cancel()
		s.attempt = nil
		t.giveUp(a)
		t.waiters = append(t.waiters, a.waiters...)
	} else if s.probing {
		s.idle = make(chan struct{})
		delivered = s.idle
	}
	if a := t.straggler; a != nil {
		if a.over == nil {
			a.over = make(chan struct{})
		}
		ended = a.over
	}
	t.requeue(nil)
	return delivered, ended
}

// armEarly sets that the next probe begins before its turn, but no sooner than a part of
// the fast interval after the last one began. It has no effect while a probe is in flight.
// t.mu must be held.
func (t *Target) armEarly(why early, now time.Time) {
	s := t.schedule
	at := t.earliest(now)
	if s.probing || !at.Before(s.due) {
		if why == accused && s.early == optional {
			s.early = accused
		}
		return
	}
	if s.turn.at.IsZero() {
		s.turn = turn{s.due, t.interval(now)}
	}
	s.arm(at)
	s.early = why
}

// earliest returns when the next probe may begin before its turn. t.mu must be held.
func (t *Target) earliest(now time.Time) time.Time {
	if at := t.began.Add(t.burst.spacing(&t.settings)); at.After(now) {
		return at
	}
	return now
}

// admit reports whether a probe that is before its turn may begin now. Otherwise it waits:
// until not too many others begin, or until its turn. t.mu must be held.
func (t *Target) admit(s *schedule, now time.Time) bool {
	switch s.early {
	case optional:
		if !s.pacer.try(now) && s.turn.at.After(now) {
			s.arm(s.turn.at)
			s.turn = turn{}
			return false
		}
	case accused:
		if at := s.pacer.reserve(now, s.turn.next(t.began, now, t.interval(now))); at.After(now) {
			s.arm(at)
			s.early = admitted
			return false
		}
	case inTurn, admitted:
	}
	return true
}

// fire is called when the timer of a schedule fires: for a heartbeat of the probe in
// flight, or to begin the next one.
func (t *Target) fire(s *schedule) {
	t.mu.Lock()
	now := time.Now()
	var begun, unended *attempt
	switch {
	case t.schedule != s: // the last driver was detached just now
	case s.attempt != nil:
		if next := s.attempt.heartbeat.tick(now); next > 0 {
			s.timer.Reset(next)
		} else {
			unended, s.attempt = s.attempt, nil
			t.giveUp(unended)
		}
	case s.probing || now.Before(s.due): // it was set for a probe that is over
	default:
		begun = t.begin(s, now)
	}
	t.mu.Unlock()
	switch {
	case unended != nil:
		t.settle(s, unended, newOutcome(unended, false, errUnended, now))
	case begun == nil:
	case begun.skipped:
		t.settle(s, begun, newOutcome(begun, false, errStillRunning, now))
	default:
		t.run(s, begun)
	}
}

// begin returns the probe that begins now, nil if none does. While a straggler runs, the
// probe is not made and has failed. But a straggler that was canceled before its deadline
// says nothing until then, and the next probe waits. t.mu must be held.
func (t *Target) begin(s *schedule, now time.Time) *attempt {
	if t.paused && len(t.waiters) == 0 { // paused just now
		return nil
	}
	if t.straggler != nil && now.Before(t.straggler.heartbeat.deadline) {
		s.arm(t.straggler.heartbeat.deadline)
		s.postponed = true
		return nil
	}
	if !t.admit(s, now) {
		return nil
	}
	late := now.Sub(s.due)
	if t.isOverdue(s, late) {
		delay := t.interval(now)
		s.armSlot(slots.take(&t.settings, now, min(4*late, delay), delay, false))
		s.delayed = true
		return nil
	}
	a := newAttempt(t.drivers[len(t.drivers)-1], now, t.settings.Timeout)
	a.due = s.due
	if late > min(onTime, t.settings.FastInterval/minSlots) {
		a.due = now
	}
	a.waiters, t.waiters = t.waiters, nil
	t.began = now
	s.probing = true
	if t.straggler != nil {
		a.skipped, a.heartbeat.late = true, late
		a.cancel()
		return a
	}
	a.fresh = !t.state.settled() || t.burst.active() || len(a.waiters) > 0
	s.attempt = a
	s.timer.Reset(a.heartbeat.due.Sub(now))
	return a
}

// isOverdue reports whether a probe is too late to begin at once, because the process was
// stopped or starved, and so are many others. They are spread over the next interval, or
// over less if the process was not stopped for long. Each is put off once. t.mu must be
// held.
func (t *Target) isOverdue(s *schedule, late time.Duration) bool {
	return late > max(t.interval(s.due)/40, noise) && !s.delayed &&
		t.state.status != Unknown && !t.burst.active() && len(t.waiters) == 0 &&
		slots.crowded(t.settings.Interval)
}

// run makes a probe. Its result counts unless the probe was given up meanwhile.
func (t *Target) run(s *schedule, a *attempt) {
	draining, err := a.run()
	o := newOutcome(a, draining, err, time.Now())
	a.cancel()
	t.mu.Lock()
	if a.givenUp {
		t.endStraggler(a)
		t.mu.Unlock()
		return
	}
	s.attempt = nil
	t.mu.Unlock()
	t.settle(s, a, o)
}

// giveUp stops waiting for a probe, which is the target's straggler until it returns.
// t.mu must be held.
func (t *Target) giveUp(a *attempt) {
	a.givenUp = true
	t.straggler = a
}

// endStraggler notes that a probe which was given up has returned. t.mu must be held.
func (t *Target) endStraggler(a *attempt) {
	t.straggler = nil
	if a.over != nil {
		close(a.over)
	}
	if s := t.schedule; s != nil && s.postponed {
		s.arm(time.Now())
	}
}

// settle counts the result of a probe, reports it, and schedules the next probe. Probes of
// one target never overlap: one that takes longer than the interval delays the next.
func (t *Target) settle(s *schedule, a *attempt, o outcome) {
	t.mu.Lock()
	if t.schedule != s || a.discarded { // it counts for nothing, and the next probe is due at once
		t.requeue(a.waiters)
		t.scheduleNext(s, time.Now(), slot{})
		t.mu.Unlock()
		return
	}
	ordinary := turn{a.due.Add(t.interval(a.began)), t.interval(a.began)}
	r := t.count(a, o)
	var next time.Time
	var taken slot
	switch {
	case a.givenUp: // its interval is over already, and a straggler must not fail twice
		next, taken = t.nextDue(s, o.ended())
	case t.burst.active(): // scheduleNext decides
		if s.turn.at.IsZero() {
			s.turn = ordinary
		}
	case !s.turn.at.IsZero(): // it returns to its turns
		next, taken = t.nextDue(s, s.turn.begin(a.began, o.ended(), t.interval(o.ended())))
		s.turn = turn{}
	default:
		next, taken = t.nextDue(s, a.due)
	}
	thin := s.thin
	t.mu.Unlock()
	r.deliver()
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.thin != thin { // changed meanwhile
		slots.free(&taken)
		next, taken = t.nextDue(s, time.Now())
	}
	t.scheduleNext(s, next, taken)
}

// count counts the result of a probe and returns what to report. t.mu must be held.
func (t *Target) count(a *attempt, o outcome) report {
	r := report{driver: t.drivers[len(t.drivers)-1], waiters: a.waiters}
	r.answer = answer{o.Result, t.late.inconclusive(a, &o, &t.settings)}
	if r.inconclusive != nil {
		r.ended = append(t.burst.giveUp(t.settings.Fails), t.burst.expire(o.ended(), &t.settings)...)
		if t.showSuspect() {
			r.subscribers = t.subscribers.list()
		}
		return r
	}
	t.history.add(o.Result)
	if t.paused {
		return r
	}
	before, since, now := t.state, t.published.since(), o.ended()
	changed := t.state.record(o.Passed(), o.draining, &t.settings)
	if before.status != t.state.status {
		t.burst.conviction = conviction{}
		if t.state.status == Down && t.burst.active() {
			t.burst.conviction.at = t.burst.began
		}
	}
	r.ended = append(t.burst.decide(o.Passed(), a.began, t.state.status), t.burst.expire(now, &t.settings)...)
	if t.showSuspect() || changed {
		r.subscribers = t.subscribers.list()
	}
	if !changed {
		return r
	}
	r.change = &Transition{
		From: before.status, To: t.state.status,
		WasDraining: before.draining, Draining: t.state.draining,
		Reason: o.Reason,
	}
	if !since.IsZero() {
		if before.status == t.state.status {
			now = since
		} else {
			r.change.Lasted = now.Sub(since)
		}
	}
	t.published.set(&t.state, now)
	return r
}

// nextDue returns when the next probe is due if the interval counts from a time, and its
// slot, if it has one. t.mu must be held.
func (t *Target) nextDue(s *schedule, from time.Time) (time.Time, slot) {
	delay := t.interval(time.Now())
	jitter := time.Duration(t.settings.Jitter * float64(delay))
	if jitter == 0 {
		return from.Add(delay), slot{}
	}
	first := !s.spread
	s.spread = true
	return slots.take(&t.settings, from.Add(delay), jitter, delay, first)
}

// interval is the time from the start of one probe to the start of the next, without the
// jitter. t.mu must be held.
func (t *Target) interval(now time.Time) time.Duration {
	if t.state.status == Down && t.burst.conviction.isRecent(now, &t.settings) {
		return t.settings.FastInterval
	}
	interval := t.state.interval(&t.settings)
	if s := t.schedule; s != nil && s.thin > 1 && t.state.isCertain() {
		return max(interval, min(interval*time.Duration(s.thin), maxThin))
	}
	return interval
}

// scheduleNext sets when the next probe begins, after the one before is over: at a time,
// for which a slot may be taken, or at once if that was requested. t.mu must be held.
func (t *Target) scheduleNext(s *schedule, next time.Time, taken slot) {
	s.probing = false
	now := time.Now()
	switch {
	case t.schedule != s:
		if s.idle != nil {
			close(s.idle)
		}
	case s.atOnce || len(t.waiters) > 0:
		s.atOnce = false
		s.arm(now)
	case t.paused:
	case t.burst.active():
		s.arm(t.earliest(now))
		s.early = accused
	case now.Sub(next) > onTime: // the probe took longer than the interval
		s.arm(now)
	default:
		s.armSlot(next, taken)
		if t.state.status == Down && t.burst.conviction.isRecent(now, &t.settings) { // it may be back any moment
			t.armEarly(optional, now)
		}
		return
	}
	slots.free(&taken)
}

// requeue moves waiters to the next probe, or closes their channels if there is none.
// t.mu must be held.
func (t *Target) requeue(waiters []chan<- answer) {
	t.waiters = append(t.waiters, waiters...)
	if t.schedule == nil {
		for _, waiter := range t.waiters {
			close(waiter)
		}
		t.waiters = nil
	} else if len(t.waiters) > 0 {
		t.schedule.probeNow()
	}
}
