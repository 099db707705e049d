// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"slices"
	"sync"
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
	ending
	deadline time.Time
	driver   *Driver
	discard  bool // it counts for nothing
	step     time.Duration
	due      time.Time // the next beat is
	late     time.Duration
}

// newAttempt begins to measure.
func newAttempt(driver *Driver, now time.Time, timeout time.Duration) *attempt {
	a := &attempt{driver: driver, deadline: now.Add(timeout), step: max(timeout/beats, minBeat)}
	a.next(now)
	return a
}

// Deadline returns when the timeout is over.
func (a *attempt) Deadline() (time.Time, bool) { return a.deadline, true }

// beat looks how late it is, ends the context if it is time, and returns after
// which time to look again.
func (a *attempt) beat(now time.Time) time.Duration {
	a.look(now)
	if !now.Before(a.deadline) {
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

// ending is the part of a context that ends. Those of the standard library take
// several allocations and a map to be waited for; a probe waits in one place, by
// AfterFunc, which is what this makes cheap.
type ending struct {
	mu      sync.Mutex
	err     error
	done    chan struct{} // nil until somebody asks for it
	waiting []*waiter
	room    [1]*waiter // for the usual one
}

// waiter is a function that is called when a context ends.
type waiter struct {
	on *ending
	f  func()
}

// Done returns a channel that is closed when it ends.
func (e *ending) Done() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done == nil {
		e.done = make(chan struct{})
		if e.err != nil {
			close(e.done)
		}
	}
	return e.done
}

// Err returns why it ended, if it did.
func (e *ending) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// Value returns nil: it has none.
func (*ending) Value(any) any { return nil }

// AfterFunc has f called in a goroutine of its own when it ends, as [context.AfterFunc]
// does, which calls this.
func (e *ending) AfterFunc(f func()) (stop func() bool) {
	w := &waiter{on: e, f: f}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		go f()
		return w.stop
	}
	if e.waiting == nil {
		e.waiting = e.room[:0]
	}
	e.waiting = append(e.waiting, w)
	return w.stop
}

// stop has it not called any more, and reports whether it was not.
func (w *waiter) stop() bool {
	w.on.mu.Lock()
	defer w.on.mu.Unlock()
	i := slices.Index(w.on.waiting, w)
	if i < 0 {
		return false
	}
	w.on.waiting = slices.Delete(w.on.waiting, i, i+1)
	return true
}

// cut ends it, if it has not ended yet.
func (e *ending) cut(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return
	}
	e.err = err
	if e.done != nil {
		close(e.done)
	}
	for _, w := range e.waiting {
		go w.f()
	}
	e.waiting = nil
}
