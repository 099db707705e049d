// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"

	"github.com/caddy-alive/caddy-alive/internal/slots"
)

// awaited are the slots for which the requests of a snapshot wait that have tried no
// upstream.
type awaited struct {
	set       *slots.Set
	positions []int
}

// awaitedSlots returns the slots for which requests wait that have tried no upstream.
func awaitedSlots(s *Snapshot) *awaited {
	if known := s.awaited.Load(); known != nil {
		return known
	}
	limits := make(map[*slots.Address]int)
	a := new(awaited)
	for _, t := range leading(s) {
		for i, weight := range t.weights {
			if limit := s.LimitOf(i); weight > 0 && limit > 0 {
				a.positions = append(a.positions, i)
				limits[s.members[i].Slots] = limit
			}
		}
	}
	a.positions = inOrder(a.positions)
	a.set = slots.NewSet(limits)
	if !s.awaited.CompareAndSwap(nil, a) {
		return s.awaited.Load()
	}
	return a
}

// leading returns the tiers whose members a request waits for while all of them are full.
func leading(s *Snapshot) (tiers []*tier) {
	for _, t := range s.serving {
		if first := s.serving[0]; t.suspect == first.suspect && t.fallback == first.fallback {
			tiers = append(tiers, t)
		}
	}
	switch {
	case len(tiers) > 0:
		return tiers
	case !s.lastResort().empty():
		return []*tier{s.lastResort()}
	default:
		return []*tier{s.unknown()}
	}
}

// moveWaiting makes the requests that wait by s wait by another snapshot, which is used from
// now on. They keep their order.
func moveWaiting(s, made *Snapshot) {
	if a := s.awaited.Load(); a != nil {
		slots.Move(a.set, awaitedSlots(made).set)
	}
}

// inOrder returns positions in their order, each once.
func inOrder(positions []int) []int {
	slices.Sort(positions)
	return slices.Compact(positions)
}
