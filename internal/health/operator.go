// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"time"
)

// ErrEnded says that there is nobody to probe any more.
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
	t.state = state{drift: t.state.drift}
	t.suspicion = suspicion{}
	t.publish(time.Time{})
	if l := t.loop; l != nil {
		if a := l.attempt; a != nil {
			a.discard = true
			a.cut(context.Canceled)
		}
		switch {
		case !paused || len(t.asked) > 0:
			l.hurry()
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

// Check probes at once, or as soon as the probe in flight is over, on a fresh
// connection and even in a pause, and returns what came of it. The result counts as
// any other does, but in a pause. The error is [ErrEnded], or that of the context.
func (t *Target) Check(ctx context.Context) (Result, error) {
	answer := make(chan Result, 1)
	t.mu.Lock()
	if t.loop == nil {
		t.mu.Unlock()
		return Result{}, ErrEnded
	}
	t.asked = append(t.asked, answer)
	t.loop.hurry()
	t.mu.Unlock()
	select {
	case result, ok := <-answer:
		if !ok {
			return Result{}, ErrEnded
		}
		return result, nil
	case <-ctx.Done():
		return Result{}, context.Cause(ctx)
	}
}

// ProbeNow has the next probe begin at once, but no sooner than a quarter of the fast
// interval after the last one began, however often it is called. It never waits. It
// has no effect in a pause, when the probes have ended, or while a probe is in flight,
// whose result is the answer.
func (t *Target) ProbeNow() {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.loop
	if l == nil || l.probing || t.paused {
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

// askAgain has those who asked wait for the next probe, if there is one, for theirs
// counts for nothing. t.mu must be held.
func (t *Target) askAgain(asked []chan<- Result) {
	t.asked = append(t.asked, asked...)
	if t.loop == nil {
		for _, answer := range t.asked {
			close(answer)
		}
		t.asked = nil
	} else if len(t.asked) > 0 {
		t.loop.hurry()
	}
}
