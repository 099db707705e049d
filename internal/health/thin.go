// SPDX-License-Identifier: Apache-2.0

package health

import "time"

// maxThin is the longest interval that Thin leads to.
const maxThin = 5 * time.Minute

// thinOut makes the probes of a target factor times as far apart. t.mu must be held.
func (s *schedule) thinOut(t *Target, factor int, now time.Time) {
	before := t.interval(now)
	s.thin = factor
	interval := t.interval(now)
	if interval == before || s.probing || t.paused || t.burst.active() {
		return // the probe that follows is scheduled by the new interval
	}
	due := s.due
	isEarly := !s.turn.at.IsZero()
	if isEarly {
		due = s.turn.at
	}
	if interval < before && due.Sub(now) <= interval {
		return
	}
	at, taken := slots.take(&t.settings, now, interval, interval, false)
	if !isEarly {
		s.armSlot(at, taken)
		return
	}
	// the next probe begins before its turn, unless too many others do
	slots.free(&taken)
	s.turn = turn{at, interval}
}

// isCertain reports whether no streak against the status is in progress, and it was up once.
func (s *state) isCertain() bool {
	return s.wasUp && (s.status == Up && s.fails == 0 || s.status == Down && s.passes == 0)
}
