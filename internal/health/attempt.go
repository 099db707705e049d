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
	// minBeat is the shortest time between two looks.
	minBeat = 10 * time.Millisecond
	// maxGrace is the longest time that a probe is waited for after it was to end.
	maxGrace = 100 * time.Millisecond
)

// attempt is a probe in flight, and its context. The timer of the target ends it in
// time, so a target needs one timer for everything, and a probe that is answered soon
// needs none.
//
// The timer beats meanwhile. How late a beat is, at most, says how late this process
// is (stopped, starved or throttled): a timeout then says nothing of the other
// side. Small delays are usual and do not add up to something.
//
// Except for the context, all is guarded by the target's mutex.
type attempt struct {
	ending
	began    time.Time
	due      time.Time // it was due then, from which the interval counts
	deadline time.Time
	driver   *Driver
	waiters  []chan<- answer // are sent what came of it
	fresh    bool            // it is not to rely on an earlier connection
	discard  bool            // it counts for nothing
	unasked  bool            // it is not made, as an earlier one is still running
	givenUp  bool            // nothing waits for it any more
	over     chan struct{}   // closed when one that was given up has ended, if detach waits

	step    time.Duration
	grace   time.Duration
	beatDue time.Time     // the next beat is
	ended   bool          // the context ended, so the next beat is the last
	late    time.Duration // most that a beat was late
}

// newAttempt begins to measure.
func newAttempt(driver *Driver, now time.Time, timeout time.Duration) *attempt {
	a := &attempt{
		driver: driver, began: now, deadline: now.Add(timeout),
		step: max(timeout/beats, minBeat), grace: min(max(timeout/4, minBeat), maxGrace),
	}
	a.next(now)
	return a
}

// Deadline returns when the timeout is over.
func (a *attempt) Deadline() (time.Time, bool) { return a.deadline, true }

// beat looks how late it is, ends the context if it is time, and returns after
// which time to look again: 0 or less if the probe was to end and has not.
func (a *attempt) beat(now time.Time) time.Duration {
	a.look(now)
	switch {
	case a.ended:
	case now.Before(a.deadline):
		a.next(now)
	default:
		a.end(now, context.DeadlineExceeded)
	}
	return a.beatDue.Sub(now)
}

// end ends the context. One beat follows, when the probe must have returned.
func (a *attempt) end(now time.Time, err error) {
	a.cut(err)
	if !a.ended {
		a.ended = true
		a.beatDue = now.Add(a.grace)
	}
}

// look notes by how much the next beat is overdue.
func (a *attempt) look(now time.Time) { a.late = max(a.late, now.Sub(a.beatDue)) }

// next sets when the next beat is due. One is when the deadline is.
func (a *attempt) next(now time.Time) {
	a.beatDue = now.Add(a.step)
	if a.beatDue.After(a.deadline) {
		a.beatDue = a.deadline
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
	done    chan struct{} // nil until it is asked for
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
