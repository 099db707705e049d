// SPDX-License-Identifier: Apache-2.0

package health

import "time"

const (
	// heartbeats is how many heartbeats fit into a timeout.
	heartbeats = 8
	// minHeartbeat is the shortest time between two heartbeats.
	minHeartbeat = 10 * time.Millisecond
	// maxGrace is the longest time that a probe has to return after its context ended.
	maxGrace = 100 * time.Millisecond
	// noise is by how much a heartbeat may be late on any machine.
	noise = 20 * time.Millisecond
)

// heartbeat measures how late this process is (stopped, starved or throttled) while a
// probe is in flight, because a timeout then says nothing of the other side. The timer of
// the target fires for each heartbeat. The largest delay counts: small ones are usual, and
// do not add up.
type heartbeat struct {
	step, grace time.Duration
	deadline    time.Time // of the probe
	due         time.Time // the next heartbeat is
	ended       bool      // the context of the probe ended, so the next heartbeat is the last
	late        time.Duration
}

func newHeartbeat(now time.Time, timeout time.Duration) heartbeat {
	h := heartbeat{
		step:     max(timeout/heartbeats, minHeartbeat),
		grace:    min(max(timeout/4, minHeartbeat), maxGrace),
		deadline: now.Add(timeout),
	}
	h.next(now)
	return h
}

// tick notes how late the heartbeat is, and returns the time until the next one: 0 or
// less if the probe should have returned by now.
func (h *heartbeat) tick(now time.Time) time.Duration {
	h.observe(now)
	switch {
	case h.ended:
	case now.Before(h.deadline):
		h.next(now)
	default:
		h.end(now)
	}
	return h.due.Sub(now)
}

// end is called when the context of the probe ended. One heartbeat follows, by which the
// probe should have returned.
func (h *heartbeat) end(now time.Time) {
	if !h.ended {
		h.ended = true
		h.due = now.Add(h.grace)
	}
}

// observe notes by how much the next heartbeat is overdue.
func (h *heartbeat) observe(now time.Time) { h.late = max(h.late, now.Sub(h.due)) }

// next sets when the next heartbeat is due. One is due at the deadline.
func (h *heartbeat) next(now time.Time) {
	h.due = now.Add(h.step)
	if h.due.After(h.deadline) {
		h.due = h.deadline
	}
}

// lateness returns by how much this process was late, at the end of the probe. The last
// heartbeat may be overdue, too.
func (h *heartbeat) lateness(now time.Time) time.Duration {
	h.observe(now)
	return h.late
}

// lateTimeouts counts the timeouts in a row that counted for nothing because this process
// was late.
type lateTimeouts int

// inconclusive returns why the outcome of a probe counts for nothing, nil if it counts.
//
// A timeout counts for nothing while this process is late by more than a quarter of it. At
// most as many in a row do as turn the target down: a busy process must not hide a dead
// target. After that they count, until a result comes that lateness does not explain. A
// shortage has no such limit, because nothing was sent to the target.
func (n *lateTimeouts) inconclusive(a *attempt, o *outcome, set *Settings) *InconclusiveError {
	if o.shortage != "" {
		return &InconclusiveError{Shortage: o.shortage, Reason: o.Reason}
	}
	late := a.heartbeat.lateness(o.ended())
	if !o.slow || late <= max(set.Timeout/4, noise) {
		*n = 0
		return nil
	}
	if int(*n) >= set.Fails {
		return nil
	}
	*n++
	return &InconclusiveError{Late: late, Reason: o.Reason}
}
