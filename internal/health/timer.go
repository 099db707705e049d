// SPDX-License-Identifier: Apache-2.0

package health

import "time"

// schedule is when probes begin, from the first driver that is attached to the last one
// that is detached. One timer does everything: it begins the next probe, and fires for the
// heartbeats of the one in flight. All is guarded by Target.mu.
type schedule struct {
	timer     *time.Timer
	due       time.Time     // when the next probe is due
	slot      slot          // of due
	atOnce    bool          // the next probe follows the one in flight at once
	probing   bool          // a probe is in flight, or its result is being delivered
	attempt   *attempt      // the probe in flight, nil if there is none
	spread    bool          // the first interval is over, or its length has been decided
	delayed   bool          // the next probe was overdue, and was put off to be spread again
	early     early         // whether the next probe begins before its turn
	turn      turn          // when it would be
	postponed bool          // the next probe waits for a straggler
	idle      chan struct{} // closed when probing ends; nil unless detach waits for it
	pacer     *Pacer        // of the probes that begin before their turn
	thin      int           // how many times as far apart probes are, 0 or 1 for once
}

// arm sets when the next probe begins.
func (s *schedule) arm(at time.Time) {
	slots.free(&s.slot)
	s.due, s.postponed, s.delayed, s.early = at, false, false, inTurn
	s.timer.Reset(time.Until(at))
}

// armSlot sets that the next probe begins at a slot that was taken.
func (s *schedule) armSlot(at time.Time, taken slot) {
	s.arm(at)
	s.slot = taken
}

// probeNow makes the next probe begin at once, or right after the one in flight.
func (s *schedule) probeNow() {
	if s.probing {
		s.atOnce = true
	} else {
		s.arm(time.Now())
	}
}

// discard cancels the probe in flight. Its result counts for nothing.
func (s *schedule) discard(now time.Time) {
	a := s.attempt
	a.discarded = true
	a.cancel()
	a.heartbeat.end(now)
	s.timer.Reset(a.heartbeat.due.Sub(now))
}
