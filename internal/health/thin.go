// SPDX-License-Identifier: Apache-2.0

package health

import "time"

// maxThin is the longest interval that Thin leads to.
const maxThin = 5 * time.Minute

// thinOut makes the probes of a schedule factor times as far apart. t.mu must be held.
func (t *Target) thinOut(s *schedule, factor int, now time.Time) {
	before := t.interval(now)
	s.thin = factor
	interval := t.interval(now)
	if interval == before || s.probing || t.paused || t.burst.active() || s.early != inTurn || !s.turn.at.IsZero() {
		return // the probe that follows is scheduled by the new interval
	}
	if interval < before && s.due.Sub(now) <= interval {
		return
	}
	s.armSlot(slots.take(&t.settings, now, interval, interval, false))
}

// isCertain reports whether no streak against the status is in progress, and it was up once.
func (s *state) isCertain() bool {
	return s.wasUp && (s.status == Up && s.fails == 0 || s.status == Down && s.passes == 0)
}
