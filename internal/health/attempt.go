// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	// beats is how often, within a timeout, this process looks whether it is late.
	beats = 8
	// minBeat is the shortest time between two looks. Timers are a little late
	// always, and that must not add up to something.
	minBeat = 10 * time.Millisecond
)

// attempt is a probe in flight, and its context. That it ends in time is up to who
// has it beat; so a target needs one timer for everything, and a probe that is
// answered soon needs none.
//
// How late the beats are adds up to how late this process is meanwhile, be it
// stopped, starved or throttled: then a timeout says nothing of the other side.
//
// But for the context, all is guarded by the target's mutex.
type attempt struct {
	context.Context
	cut      context.CancelCauseFunc // ends the context
	deadline time.Time
	over     atomic.Bool // the deadline is
	driver   *Driver
	discard  bool // it counts for nothing
	step     time.Duration
	due      time.Time // the next beat is
	late     time.Duration
}

// newAttempt begins to measure.
func newAttempt(parent context.Context, driver *Driver, now time.Time, timeout time.Duration) *attempt {
	a := &attempt{driver: driver, deadline: now.Add(timeout), step: max(timeout/beats, minBeat)}
	a.Context, a.cut = context.WithCancelCause(parent)
	a.next(now)
	return a
}

// Deadline returns when the timeout is over.
func (a *attempt) Deadline() (time.Time, bool) { return a.deadline, true }

// Err returns why the context ended, if it did.
func (a *attempt) Err() error {
	err := a.Context.Err()
	if err != nil && a.over.Load() {
		return context.DeadlineExceeded
	}
	return err
}

// beat looks how late it is, ends the context if it is time, and returns after
// which time to look again.
func (a *attempt) beat(now time.Time) time.Duration {
	a.look(now)
	if !now.Before(a.deadline) && a.Context.Err() == nil {
		a.over.Store(true)
		a.cut(context.DeadlineExceeded)
	}
	a.next(now)
	return a.due.Sub(now)
}

// look adds the time by which the next beat is overdue.
func (a *attempt) look(now time.Time) {
	if over := now.Sub(a.due); over > 0 {
		a.late += over
	}
}

// next sets when the next beat is due. One is when the deadline is.
func (a *attempt) next(now time.Time) {
	a.due = now.Add(a.step)
	if now.Before(a.deadline) && a.due.After(a.deadline) {
		a.due = a.deadline
	}
}

// lateness returns by how much this process was late, at the end: the last beat,
// too, can be overdue.
func (a *attempt) lateness(now time.Time) time.Duration {
	a.look(now)
	return a.late
}
