// SPDX-License-Identifier: Apache-2.0

package health

import "time"

const (
	// burstFactor is how many probes of a burst fit into the fast interval.
	burstFactor = 4
	// minCalm and maxCalm bound the time after a burst that found nothing in
	// which suspicions are ignored. It doubles while bursts go on finding nothing.
	minCalm = time.Second
	maxCalm = 30 * time.Second
)

// suspicion is the burst of probes that follows a failure which no probe saw.
type suspicion struct {
	raised bool // the next probe begins a burst
	burst  bool // one is under way
	calm   time.Duration
	until  time.Time // no new suspicion before
}

// raise reports whether a suspicion is new and to be looked into.
func (s *suspicion) raise(now time.Time) bool {
	if s.raised || s.burst || now.Before(s.until) {
		return false
	}
	s.raised = true
	return true
}

// probing is called when a probe begins. One that began before the suspicion
// must not clear it, so a burst begins here.
func (s *suspicion) probing() {
	if s.raised {
		s.raised, s.burst = false, true
	}
}

// record takes the result of a probe and reports whether the burst goes on. A
// pass clears the target, and makes the next burst wait.
func (s *suspicion) record(passed bool, status Status, now time.Time) (goesOn bool) {
	switch {
	case !s.burst:
	case passed:
		s.burst = false
		if now.Sub(s.until) > maxCalm { // the last burst is long ago
			s.calm = 0
		}
		s.calm = min(max(2*s.calm, minCalm), maxCalm)
		s.until = now.Add(s.calm)
	case status == Down:
		*s = suspicion{} // it was right
	}
	return s.burst
}
