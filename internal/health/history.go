// SPDX-License-Identifier: Apache-2.0

package health

import (
	"slices"
	"time"
)

// Remembered is how many results a target remembers.
const Remembered = 60

// history is the last results of a target. Reasons would take the most memory, so only
// those of the last result and of the last failure are kept.
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

// PastResult is a result without its reason.
type PastResult struct {
	// Took is how long the probe took.
	Took time.Duration
	// Passed reports whether the probe passed.
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
