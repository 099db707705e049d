// SPDX-License-Identifier: Apache-2.0

package health

import (
	"math/rand/v2"
	"sync"
	"time"
)

// Probes start at slots, which all targets of an interval have in common: to wake up once
// for some of them takes a fraction of the CPU time of waking up for each. An interval is
// a whole number of slots, apart from nanoseconds, from minSlots to maxSlots of them and
// slotLength long between these. A jitter that reaches no slot has shorter ones.
const (
	minSlots   = 16
	maxSlots   = 80
	slotLength = 100 * time.Millisecond
)

const (
	// manyTargets is from how many targets of an interval on it matters that they do not come
	// all at once.
	manyTargets = 100
	// window is the share of an interval in which no more than mostInWindow of the
	// targets are to start, where they have the choice.
	window       = 0.05
	mostInWindow = 0.12
)

// epoch is one slot. It is this process's own, as a clock that is set moves none.
var epoch = time.Now()

// slot is one of those that are slotLength or so apart. The zero slot is none.
type slot struct {
	step  time.Duration
	index int64
}

// timetable is how many probes of this process are to start when. Of the slots that
// the jitter lets a target choose from it takes the one with the fewest, so targets that
// start together spread over the whole interval, and stay spread.
//
// Its mutex is held for moments, and no other is taken meanwhile.
type timetable struct {
	mu      sync.Mutex
	taken   map[slot]int
	running map[time.Duration]int // targets whose probes run, by interval
}

var slots = timetable{taken: make(map[slot]int), running: make(map[time.Duration]int)}

// run counts a target whose probes begin to run, or end with -1.
func (s *timetable) run(interval time.Duration, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[interval] += n; s.running[interval] == 0 {
		delete(s.running, interval)
	}
}

// crowded reports whether so many targets run that they must not come all at once.
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

// take takes a slot for the probe of a target that is to start in delay, from the one at
// or after earliest on, and no later than reach after it.
//
// Targets that start together, within 1 ms each, all have to choose from the same few
// slots after their first interval: neither may a probe come sooner than the interval
// after the last one, nor later than that and the jitter. So where they are many, and
// first says that this is the first interval, it may be longer for those that find these
// slots taken, by up to half of it. That is the only time that the time to notice a dead
// upstream can be longer than it says.
func (s *timetable) take(set *Settings, earliest time.Time, reach, delay time.Duration, first bool) (time.Time, slot) {
	step := slotStep(delay, reach)
	least := slot{step, -floorDiv(-earliest.Sub(epoch), step)}
	last := slot{step, floorDiv(earliest.Add(reach).Sub(epoch), step)}
	last.index = max(last.index, least.index)
	s.mu.Lock()
	defer s.mu.Unlock()
	best, ties := least, 1
	for at := (slot{step, least.index + 1}); at.index <= last.index; at.index++ {
		switch n, fewest := s.taken[at], s.taken[best]; {
		case n < fewest:
			best, ties = at, 1
		case n == fewest:
			if ties++; rand.IntN(ties) == 0 {
				best = at
			}
		}
	}
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

// slotStep returns how far apart slots are, for an interval of which there are some
// within reach.
func slotStep(delay, reach time.Duration) time.Duration {
	n := min(max((delay+slotLength-1)/slotLength, minSlots), maxSlots)
	if step := (delay + n - 1) / n; step <= reach {
		return step
	}
	return max(reach/2, 1)
}

// floorDiv returns how often d fits into t, rounded down also below 0.
func floorDiv(t, d time.Duration) int64 {
	n := t / d
	if t%d < 0 {
		n--
	}
	return int64(n)
}
