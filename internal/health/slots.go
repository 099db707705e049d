// SPDX-License-Identifier: Apache-2.0

package health

import (
	"math/rand/v2"
	"sync"
	"time"
)

// Probes begin at slots, which all targets of an interval have in common: one wake-up for
// several probes takes a fraction of the CPU time of one for each. An interval is
// divided into minSlots to maxSlots slots, which are slotLength apart where that is
// possible. If the jitter is shorter than that, the slots are closer.
const (
	minSlots   = 16
	maxSlots   = 80
	slotLength = 100 * time.Millisecond
)

const (
	// manyTargets is from how many targets of an interval on their probes must not begin
	// all at once.
	manyTargets = 100
	// window is the share of an interval in which no more than mostInWindow of the
	// targets should begin, where the jitter allows that.
	window       = 0.05
	mostInWindow = 0.12
)

// epoch is the time of the first slot. A change of the system clock moves no slot.
var epoch = time.Now()

// slot is one of those that are a step apart. The zero slot is none.
type slot struct {
	step  time.Duration
	index int64
}

// timetable counts how many probes of this process begin at which slot. A target takes the
// slot with the fewest among those that the jitter allows, so targets that start together
// spread over the whole interval, and stay spread.
type timetable struct {
	mu      sync.Mutex // guards all below; no other lock is taken while it is held
	taken   map[slot]int
	running map[time.Duration]int // targets whose probes run, by interval
}

var slots = timetable{taken: make(map[slot]int), running: make(map[time.Duration]int)}

// count counts targets whose probes begin to run, or end with a negative number.
func (s *timetable) count(interval time.Duration, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[interval] += n; s.running[interval] == 0 {
		delete(s.running, interval)
	}
}

// crowded reports whether so many targets run that their probes must not begin all at
// once.
func (s *timetable) crowded(interval time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[interval] >= manyTargets
}

// free gives a slot back.
func (s *timetable) free(at *slot) {
	if at.step == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken[*at]--; s.taken[*at] <= 0 {
		delete(s.taken, *at)
	}
	*at = slot{}
}

// take takes a slot for a probe that is due after a delay: the first one at or after
// earliest, or another one that is no later than reach after that.
//
// Targets that start together, within 1 ms each, can only choose among the same few slots
// after their first interval, because an interval is never shorter than configured and
// longer by the jitter at most. So if first says that this is the first interval, and
// the targets are many, those that find these slots full get a longer one, by up to half
// of it. This is the only case in which it takes longer than documented to notice a dead
// upstream.
func (s *timetable) take(set *Settings, earliest time.Time, reach, delay time.Duration, first bool) (time.Time, slot) {
	step := slotStep(delay, reach)
	least := slot{step, -floorDiv(-earliest.Sub(epoch), step)}
	last := slot{step, floorDiv(earliest.Add(reach).Sub(epoch), step)}
	last.index = max(last.index, least.index)
	s.mu.Lock()
	defer s.mu.Unlock()
	best := s.emptiest(least, last)
	if targets := s.running[set.Interval]; first && targets >= manyTargets {
		inWindow := -floorDiv(-time.Duration(window*float64(delay)), step)
		most := int(mostInWindow * float64(targets) / float64(inWindow))
		if s.taken[best] >= most {
			for at := (slot{step, last.index + 1}); at.index <= least.index+int64(delay/step); at.index++ {
				if s.taken[at] < most {
					best = at
					break
				}
			}
		}
	}
	s.taken[best]++
	return epoch.Add(time.Duration(best.index) * step), best
}

// emptiest returns the slot with the fewest probes, from one to another. Among equals it
// chooses at random. s.mu must be held.
func (s *timetable) emptiest(least, last slot) slot {
	best, ties := least, 1
	for at := (slot{least.step, least.index + 1}); at.index <= last.index; at.index++ {
		switch n, fewest := s.taken[at], s.taken[best]; {
		case n < fewest:
			best, ties = at, 1
		case n == fewest:
			if ties++; rand.IntN(ties) == 0 {
				best = at
			}
		}
	}
	return best
}

// slotStep returns how far apart the slots of an interval are, so that some of them are
// within reach.
func slotStep(delay, reach time.Duration) time.Duration {
	n := min(max((delay+slotLength-1)/slotLength, minSlots), maxSlots)
	if step := (delay + n - 1) / n; step <= reach {
		return step
	}
	return max(reach/2, 1)
}

// floorDiv returns t divided by d, rounded down also below 0.
func floorDiv(t, d time.Duration) int64 {
	n := t / d
	if t%d < 0 {
		n--
	}
	return int64(n)
}
