// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"

	"github.com/caddy-alive/caddy-alive/internal/slots"
)

// awaited are slots for which requests of a snapshot wait.
type awaited struct {
	set       *slots.Set
	positions []int
}

// LimitOf returns how many requests a member gets at once, 0 for any number.
func (s *Snapshot) LimitOf(i int) int {
	if s.limits == nil {
		return 0
	}
	return s.limits[i]
}

// awaitedSlots returns the slots for which requests wait that have tried no upstream.
func (s *Snapshot) awaitedSlots() *awaited {
	if known := s.awaited.Load(); known != nil {
		return known
	}
	limits := make(map[*slots.Address]int)
	a := new(awaited)
	for _, t := range s.leading() {
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

// awaitedAt returns the slots of the members at some positions, in their order. Requests that
// wait for the same ones share them: many sets at one address would make each slot that is
// freed, and each request that looks again, as expensive as there are waiting requests.
func (s *Snapshot) awaitedAt(positions []int) *slots.Set {
	for _, known := range []*awaited{s.awaitedSlots(), s.partly.Load()} {
		if known != nil && slices.Equal(positions, known.positions) {
			return known.set
		}
	}
	limits := make(map[*slots.Address]int, len(positions))
	for _, i := range positions {
		limits[s.members[i].Slots] = s.LimitOf(i)
	}
	made := &awaited{slots.NewSet(limits), slices.Clone(positions)}
	s.partly.Store(made)
	return made.set
}

// leading returns the tiers whose members a request waits for while all of them are full.
func (s *Snapshot) leading() (leading []*tier) {
	for _, t := range s.serving {
		if first := s.serving[0]; t.suspect == first.suspect && t.fallback == first.fallback {
			leading = append(leading, t)
		}
	}
	switch {
	case len(leading) > 0:
		return leading
	case !s.unknown().empty():
		return []*tier{s.unknown()}
	default:
		return []*tier{s.lastResort()}
	}
}

// moveWaiting makes the requests that wait by s wait by another snapshot, which is used from
// now on. They keep their order.
func (s *Snapshot) moveWaiting(made *Snapshot) {
	if a := s.awaited.Load(); a != nil {
		slots.Move(a.set, made.awaitedSlots().set)
	}
}

// inOrder returns positions in their order, each once.
func inOrder(positions []int) []int {
	slices.Sort(positions)
	return slices.Compact(positions)
}
