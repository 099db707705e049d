// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"sync"
	"time"
)

const (
	// spillMargin is how many percentage points above the threshold a group leaves again, so
	// that a pool at its threshold does not switch to and fro.
	spillMargin = 10
	// spillHeld is how long it must be above that.
	spillHeld = 5 * time.Second
	// spillBaseFor is how long the base remembers the weights of answers of a dynamic source,
	// and spillBaseEvery is how often requests note what they have brought.
	spillBaseFor   = 10 * time.Minute
	spillBaseEvery = time.Second
)

// SpillEnds returns from which percentage on a group that has joined leaves again.
func (r *Rules) SpillEnds() float64 { return min(100, r.Spill+spillMargin) }

// spillState is how many backup groups have joined those before them because too little
// of their weight serves.
type spillState struct {
	joined  int
	leaveAt time.Time // when the last one leaves, zero if it does not
}

// next returns the state that follows, and when it may change without any other change:
// the zero time if it does not. Serving has the serving weight of each group.
func (s spillState) next(percent float64, base float64, serving []float64, now time.Time) (spillState, time.Time) {
	share := func(groups int) (sum float64) {
		for _, weight := range serving[:groups+1] {
			sum += weight
		}
		return 100 * sum
	}
	const rounding = 1e-6
	last := len(serving) - 1
	s.joined = min(s.joined, last)
	joined := s.joined
	for joined < last && share(joined) < percent*base-rounding {
		joined++
	}
	if joined > s.joined {
		return spillState{joined: joined}, time.Time{}
	}
	for s.joined > 0 && share(s.joined-1) >= min(100, percent+spillMargin)*base-rounding {
		if s.leaveAt.IsZero() {
			s.leaveAt = now.Add(spillHeld)
		}
		if now.Before(s.leaveAt) {
			return s, s.leaveAt
		}
		s = spillState{joined: s.joined - 1}
	}
	s.leaveAt = time.Time{}
	return s, time.Time{}
}

// spills is what the pool of the config, or those of the answers of a dynamic source, know
// of their groups.
type spills struct {
	mu    sync.Mutex // guards what follows
	state spillState
	sums  []sumAt // of the first groups of dynamic answers, the largest first, newer ones behind
}

// sumAt is a sum of weights at a time.
type sumAt struct {
	at  time.Time
	sum float64
}

// current returns the state.
func (s *spills) current() spillState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// largest returns the largest sum of a while, this one included.
func (s *spills) largest(sum float64, now time.Time) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seen := range s.sums {
		if now.Sub(seen.at) < spillBaseFor {
			sum = max(sum, seen.sum)
		}
	}
	return sum
}

// keep keeps the state of a snapshot that is used from now on.
func (s *spills) keep(made *Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = made.spill
}

// remember remembers what the upstreams of the first group of an answer weigh, which a request
// has brought now.
func (s *spills) remember(made *Snapshot, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.sums) > 0 && now.Sub(s.sums[0].at) >= spillBaseFor {
		s.sums = s.sums[1:]
	}
	for len(s.sums) > 0 && s.sums[len(s.sums)-1].sum <= made.firstSum {
		s.sums = s.sums[:len(s.sums)-1]
	}
	s.sums = append(s.sums, sumAt{now, made.firstSum})
}
