// SPDX-License-Identifier: Apache-2.0

package settings

import "maps"

// Carried is a weight that follows its upstream into a pool of another name: the name of
// a pool is the list of its upstreams, unless the config names it.
type Carried struct {
	Address, From, To string
	Weight            Weight
}

// Carry sets a weight for a pool as of when it was set for another one. It is not stored
// before KeepCarried: the config may still fail to start.
func (s *Set) Carry(c Carried) {
	s.mu.Lock()
	s.replace(Merge(s.Of(c.Address), &Setting{Address: c.Address, Weights: map[string]Weight{c.To: c.Weight}}))
	s.mu.Unlock()
	s.notify(c.Address)
}

// KeepCarried marks a carried weight to be stored. With move, it is taken back for the
// pool that it was set for.
func (s *Set) KeepCarried(c Carried, move bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.Of(c.Address)
	if known == nil || !known.Weights[c.To].Changed.Equal(c.Weight.Changed) {
		return // it has changed since
	}
	if move {
		// it is newer than what is taken back, so that it can be carried back
		taken := Weight{Changed: c.Weight.Changed.Add(1)}
		moved := Weight{Weight: c.Weight.Weight, Changed: c.Weight.Changed.Add(2)}
		s.replace(Merge(known, &Setting{Address: c.Address, Weights: map[string]Weight{c.From: taken, c.To: moved}}))
	}
	s.unstored[c.Address] = true
	s.revision.Add(1)
}

// DropCarried takes a carried weight back: its config never began.
func (s *Set) DropCarried(c Carried) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.Of(c.Address)
	if known == nil || !known.Weights[c.To].Changed.Equal(c.Weight.Changed) {
		return
	}
	without := *known
	without.Weights = maps.Clone(known.Weights)
	delete(without.Weights, c.To)
	s.replace(&without)
}
