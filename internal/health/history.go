// SPDX-License-Identifier: Apache-2.0

package health

import (
	"slices"
	"time"
)

// Remembered is how many results a target remembers.
const Remembered = 60

// history is the last results of a target, without their reasons, which would take
// the most memory: only those of the last result and of the last failure are kept.
type history struct {
	results      []PastResult // a ring once it is full
	oldest       int
	last, failed Result // the zero Result if there is none
}

func (h *history) add(r Result) {
	past := PastResult{Took: r.Took, Passed: r.Passed()}
	if len(h.results) < Remembered {
		h.results = append(h.results, past)
	} else {
		h.results[h.oldest] = past
		h.oldest = (h.oldest + 1) % Remembered
	}
	h.last = r
	if !past.Passed {
		h.failed = r
	}
}

// recent returns the results, the oldest first.
func (h *history) recent() []PastResult {
	return slices.Concat(h.results[h.oldest:], h.results[:h.oldest])
}

// PastResult is what remains of a result that others followed.
type PastResult struct {
	// Took is how long the probe took.
	Took time.Duration
	// Passed says what came of it.
	Passed bool
}

// View is what is known of a target at one moment.
type View struct {
	Status   Status
	Draining bool // it is up, but asked for no new requests
	Paused   bool
	// Since is when the status last changed, the zero time if it never did.
	Since time.Time
	// Passes and Fails are how many results of that kind came last, in a row.
	Passes, Fails int
	// Last is the last result, and LastFailed the last that was a failure. Their
	// times are zero if there was none.
	Last, LastFailed Result
	// Recent are the last results, the oldest first, [Remembered] at most.
	Recent []PastResult
	// Next is when the next probe is due, the zero time if none is: one is in flight,
	// or they are paused or have ended.
	Next time.Time
}

// View returns what is known at this moment.
func (t *Target) View() View {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.brief()
	v.Recent = t.history.recent()
	return v
}

// Brief is [Target.View] without the recent results, which are the most of it.
func (t *Target) Brief() View {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.brief()
}

// brief is Brief; t.mu must be held.
func (t *Target) brief() View {
	v := View{
		Status: t.state.status, Draining: t.state.draining, Paused: t.paused,
		Passes: t.state.passes, Fails: t.state.fails,
		Since: t.Since(),
		Last:  t.history.last, LastFailed: t.history.failed,
	}
	if t.loop != nil && !t.loop.probing && !t.paused {
		v.Next = t.loop.due
	}
	return v
}

// LastFailed returns when the last probe that failed began, the zero time if none did.
func (t *Target) LastFailed() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.history.failed.At
}
