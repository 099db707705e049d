// SPDX-License-Identifier: Apache-2.0

package health

import "time"

// Status is what is known of a target.
type Status int32

const (
	// Unknown is the status until the first result.
	Unknown Status = iota
	// Up targets passed: the first probe, or Passes probes in a row.
	Up
	// Down targets failed: the first probe, or Fails probes in a row.
	Down
)

// String returns the status as logs show it.
func (s Status) String() string {
	switch s {
	case Up:
		return "up"
	case Down:
		return "down"
	default:
		return "unknown"
	}
}

// Settings say how often a target is probed and how many results in a row
// change its status. They are comparable, so that they can be part of a key.
// All durations must be above 0, Passes and Fails at least 1.
type Settings struct {
	// Interval is the time from start to start of probes while up and settled.
	Interval time.Duration
	// FastInterval replaces it while a streak against the present status is in
	// progress, and until the target was up once.
	FastInterval time.Duration
	// DownInterval replaces it while down.
	DownInterval time.Duration
	// Timeout bounds one probe.
	Timeout time.Duration
	// Passes in a row turn a target up that is down.
	Passes int
	// Fails in a row turn a target down that is up.
	Fails int
	// Jitter is the largest share (0.1 for 10 %) by which an interval is
	// lengthened at random, so that targets started together drift apart.
	Jitter float64
}

// state is the verdict and what it follows from. It needs no clock and no lock.
type state struct {
	status   Status
	draining bool // it is up, but asked for no new requests
	wasUp    bool // it was up at least once
	onePass  bool // one pass is enough to come back
	passes   int  // consecutive passes
	fails    int  // consecutive fails
}

// record counts one result and reports whether it changed the status. Only
// results in a row do: a pass ends a streak of fails, and the reverse. The
// first result decides alone, and a target that was never up needs only
// one pass, so that a start is as quick as the upstreams are. The last pass alone decides
// whether the target is draining.
func (s *state) record(passed, draining bool, set *Settings) (changed bool) {
	before := *s
	s.count(passed, set)
	if passed {
		s.draining = draining
	}
	s.draining = s.draining && s.status == Up
	return s.status != before.status || s.draining != before.draining
}

// count counts one result, and changes the status if the streak is long enough.
func (s *state) count(passed bool, set *Settings) {
	if passed {
		s.passes++
		s.fails = 0
	} else {
		s.fails++
		s.passes = 0
	}
	switch {
	case passed && (s.status == Unknown || s.status == Down && (!s.wasUp || s.onePass || s.passes >= set.Passes)):
		s.status, s.wasUp, s.onePass = Up, true, false
	case !passed && (s.status == Unknown || s.status == Up && s.fails >= set.Fails):
		s.status = Down
	}
}

// settled reports whether it is up and the last result was a pass.
func (s *state) settled() bool { return s.status == Up && s.fails == 0 }

// interval is the time from the start of one probe to the start of the next, without
// the jitter.
func (s *state) interval(set *Settings) time.Duration {
	switch {
	case !s.wasUp,
		s.status == Up && s.fails > 0,
		s.status == Down && s.passes > 0:
		return set.FastInterval
	case s.status == Down:
		return set.DownInterval
	}
	return set.Interval
}

// startState is how far the start of a target is.
type startState int

const (
	// notStarted: no driver was ever attached.
	notStarted startState = iota
	// startAtOnce: the same, and the first probe is to begin without a delay.
	startAtOnce
	// started: a driver was attached.
	started
)
