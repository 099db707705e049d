// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"sync"
	"sync/atomic"
	"time"
)

// safeTrial is how long a trial waits for a request that is safe to repeat.
const safeTrial = time.Second

// maxVoidTrial is how long a trial goes on at most before another one follows.
const maxVoidTrial = 30 * time.Second

// ejection is whether an upstream is taken out although its checks pass, and the trial
// that follows.
type ejection struct {
	until    atomic.Pointer[time.Time] // nil if it is not ejected
	returned atomic.Pointer[time.Time] // when the last one ended; nil if there was none

	mu     sync.Mutex // guards what follows, and writing to the above
	reason string     // of the last one
	inRow  int        // ejections in a row
	ended  time.Time  // when the last one ended
	trial  trial
}

// trial is the request that decides whether an ejection ends.
type trial struct {
	id      uint64    // of the one that was claimed last
	claimed time.Time // when, the zero time if none is under way
	begun   bool      // it travels
	asked   time.Time // when there was first a request for it that is not safe to repeat
	void    int       // how many before it went on for too long
}

func load(p *atomic.Pointer[time.Time]) time.Time {
	if t := p.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

// isOn reports whether the upstream is ejected.
func (e *ejection) isOn() bool { return e.until.Load() != nil }

// untilNow returns until when it is ejected, the zero time if it is not.
func (e *ejection) untilNow() time.Time { return load(&e.until) }

// reasonNow returns why it is ejected, empty if it is not.
func (e *ejection) reasonNow() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.isOn() {
		return ""
	}
	return e.reason
}

// begin ejects the upstream, or ejects it once more. It returns until when, and how many
// ejections there were in a row: 0 if it is ejected already.
func (e *ejection) begin(now time.Time, again bool, reason string, set *Settings) (until time.Time, inRow int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.isOn() != again {
		return until, 0
	}
	if !again && now.Sub(e.ended) >= set.EjectLongest {
		e.inRow = 0
	}
	e.inRow++
	e.reason = reason
	until = now.Add(min(time.Duration(e.inRow)*set.EjectFor, set.EjectLongest))
	e.trial = trial{id: e.trial.id}
	e.until.Store(&until)
	return until, e.inRow
}

// undo takes back an ejection that has begun just now.
func (e *ejection) undo() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.isOn() {
		e.inRow--
		e.until.Store(nil)
	}
}

// end ends the ejection, and reports whether there was one.
func (e *ejection) end(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.isOn() {
		return false
	}
	e.ended = now
	e.trial = trial{id: e.trial.id}
	e.until.Store(nil)
	e.returned.Store(&now)
	return true
}

// shorten makes the trial due now, and reports whether it was not.
func (e *ejection) shorten(now time.Time) bool {
	if until := e.untilNow(); until.IsZero() || !until.After(now) {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.isOn() {
		return false
	}
	e.until.Store(&now)
	return true
}

// claimTrial reports whether a request is to be the trial. One that goes on for longer than
// a stall is void, and another follows: at once for the first, and then after twice the time
// of the one before, because an upstream that hangs would get one after the other.
func (e *ejection) claimTrial(safe bool, now time.Time, stall time.Duration) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := &e.trial
	under := !t.claimed.IsZero()
	if until := e.untilNow(); until.IsZero() || until.After(now) || under && now.Sub(t.claimed) < min(stall<<t.void, maxVoidTrial) {
		return false
	}
	if !safe && t.asked.IsZero() {
		t.asked = now
	}
	if !safe && now.Sub(t.asked) < safeTrial {
		return false
	}
	void := t.void
	if under && void < 10 {
		void++
	}
	*t = trial{id: t.id + 1, claimed: now, void: void}
	return true
}

// beginTrial returns which trial a round trip is that begins now, 0 if it is none.
func (e *ejection) beginTrial() uint64 {
	if !e.isOn() {
		return 0
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.trial.claimed.IsZero() || e.trial.begun {
		return 0
	}
	e.trial.begun = true
	return e.trial.id
}

// endTrial ends a trial, and reports whether that was still under way.
func (e *ejection) endTrial(id uint64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if id == 0 || e.trial.id != id || e.trial.claimed.IsZero() {
		return false
	}
	e.trial.claimed = time.Time{}
	return true
}
