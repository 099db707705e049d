// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"
	"sync/atomic"

	"github.com/caddy-alive/caddy-alive/internal/slots"
)

// awaited are slots for which requests of a snapshot wait.
type awaited struct {
	set       *slots.Set
	positions []int
}

// awaitedSets are those that requests share. Each is nil before one waits.
type awaitedSets struct {
	all  atomic.Pointer[awaited] // for requests that have tried no upstream
	part atomic.Pointer[awaited] // the last one of others, such as while Caddy's own health leaves an upstream out
}

// awaitedSlots returns the slots for which requests wait that have tried no upstream.
func awaitedSlots(s *Snapshot) *awaited {
	if known := s.awaited.all.Load(); known != nil {
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
	if !s.awaited.all.CompareAndSwap(nil, a) {
		return s.awaited.all.Load()
	}
	return a
}

// awaitedAt returns the slots of the members at some positions, in their order. Requests that
// wait for the same ones share them: many sets at one address would make each slot that is
// freed, and each request that looks again, as expensive as there are waiting requests.
func awaitedAt(s *Snapshot, positions []int) *slots.Set {
	for _, known := range []*awaited{awaitedSlots(s), s.awaited.part.Load()} {
		if known != nil && slices.Equal(positions, known.positions) {
			return known.set
		}
	}
	limits := make(map[*slots.Address]int, len(positions))
	for _, i := range positions {
		limits[s.members[i].Slots] = s.LimitOf(i)
	}
	made := &awaited{slots.NewSet(limits), slices.Clone(positions)}
	s.awaited.part.Store(made)
	return made.set
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
	if a := s.awaited.all.Load(); a != nil {
		slots.Move(a.set, awaitedSlots(made).set)
	}
}

// inOrder returns positions in their order, each once.
func inOrder(positions []int) []int {
	slices.Sort(positions)
	return slices.Compact(positions)
}
