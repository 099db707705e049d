// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"time"
)

// ErrEnded says that there is nothing to probe any more.
var ErrEnded = errors.New("the probes have ended")

// Pause ends the probes until they are resumed, and waits for none: one in flight is
// cut off and counts for nothing. What was known is known no more, so that the first
// result after a pause decides alone.
func (t *Target) Pause(paused bool) {
	t.mu.Lock()
	if t.paused == paused {
		t.mu.Unlock()
		return
	}
	t.paused = paused
	known := t.state.status != Unknown
	t.state = state{}
	t.suspicion = suspicion{}
	t.lateInRow = 0
	t.publish(time.Time{})
	if l := t.loop; l != nil {
		if l.attempt != nil {
			l.discard(time.Now())
		}
		switch {
		case !paused || len(t.waiters) > 0:
			l.probeNext()
		case !l.probing:
			l.timer.Stop()
		}
	}
	var subscribers []func()
	if known {
		subscribers = t.listeners()
	}
	t.mu.Unlock()
	for _, f := range subscribers {
		f()
	}
}

// answer is what came of a probe, and why that counts for nothing, if it does.
type answer struct {
	Result
	inconclusive *InconclusiveError
}

// Check probes at once, or as soon as the probe in flight is over, on a fresh
// connection and even in a pause, and returns what came of it. The result counts as
// any other does, except in a pause. The error is [ErrEnded], that of the context, or
// an [InconclusiveError] beside a result that says nothing of the target.
func (t *Target) Check(ctx context.Context) (Result, error) {
	waiter := make(chan answer, 1)
	t.mu.Lock()
	if t.loop == nil {
		t.mu.Unlock()
		return Result{}, ErrEnded
	}
	t.waiters = append(t.waiters, waiter)
	t.loop.probeNext()
	t.mu.Unlock()
	select {
	case found, ok := <-waiter:
		switch {
		case !ok:
			return Result{}, ErrEnded
		case found.inconclusive != nil:
			return found.Result, found.inconclusive
		}
		return found.Result, nil
	case <-ctx.Done():
		return Result{}, context.Cause(ctx)
	}
}

// ProbeNow has the next probe begin at once, but no sooner than a quarter of the fast
// interval after the last one began, however often it is called. It never waits. It
// has no effect in a pause, when the probes have ended, or while a probe is in flight,
// whose result is the answer. Before the probes begin it has the first one do so without
// a delay.
func (t *Target) ProbeNow() {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.loop
	if l == nil || l.probing || t.paused {
		t.wanted = t.wanted || !t.ran
		return
	}
	at := time.Now()
	if earliest := t.began.Add(t.settings.FastInterval / burstFactor); at.Before(earliest) {
		at = earliest
	}
	if at.Before(l.due) {
		l.arm(at)
	}
}

// askAgain has waiters wait for the next probe, if there is one, as theirs counts for
// nothing. t.mu must be held.
func (t *Target) askAgain(waiters []chan<- answer) {
	t.waiters = append(t.waiters, waiters...)
	if t.loop == nil {
		for _, waiter := range t.waiters {
			close(waiter)
		}
		t.waiters = nil
	} else if len(t.waiters) > 0 {
		t.loop.probeNext()
	}
}
