// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"
	"sync"
	"time"
)

// counters count the picks of a pool that Init made. They are counted from the tickets
// that are drawn anyway: the order of a snapshot says how often each upstream had its
// turn. Picks that no ticket decided are counted in Member.Extra.
type counters struct {
	mu      sync.Mutex // held while a snapshot replaces another
	retired []retired  // guarded by mu
}

// retired is a snapshot that another replaced. A pick that began before may still draw a
// ticket of it, so it is counted a while later.
type retired struct {
	*Snapshot
	at time.Time
}

const (
	// retiredFor is much longer than a pick takes.
	retiredFor = 10 * time.Second
	// maxRetired bounds how many snapshots wait to be counted.
	maxRetired = 64
)

// retire has a snapshot that is not used any more counted later. c.mu must be held.
func (c *counters) retire(before *Snapshot) {
	if before == nil || before.best.Len() == 0 {
		return
	}
	now := time.Now()
	c.retired = append(c.retired, retired{before, now})
	due := max(0, len(c.retired)-maxRetired)
	for due < len(c.retired) && now.Sub(c.retired[due].at) > retiredFor {
		due++
	}
	for _, r := range c.retired[:due] {
		r.perMember(func(m *Member, n uint64) { m.Extra.Add(int64(n)) })
	}
	c.retired = slices.Delete(c.retired, 0, due)
}

// perMember tells how many turns each member had by tickets.
func (s *Snapshot) perMember(tell func(m *Member, n uint64)) {
	length := uint64(s.best.Len())
	if length == 0 {
		return
	}
	last := s.tickets.Load()
	cycles, rest := (last-s.first)/length, (last-s.first)%length
	turns := make([]uint64, len(s.members))
	if cycles > 0 {
		for ticket := range length {
			turns[s.best.At(ticket)] += cycles
		}
	}
	for ticket := last - rest + 1; ticket <= last; ticket++ {
		turns[s.best.At(ticket)]++
	}
	for i, n := range turns {
		if n > 0 {
			tell(s.members[i], n)
		}
	}
}

// picks returns how often each of some members was picked, with the tickets of p.
func (c *counters) picks(p *Pool, members []*Member) map[*Member]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	counts := make(map[*Member]int64, len(members))
	for _, m := range members {
		counts[m] = 0
	}
	add := func(m *Member, n uint64) {
		if _, wanted := counts[m]; wanted {
			counts[m] += int64(n)
		}
	}
	if now := p.current.Load(); now != nil {
		now.perMember(add)
	}
	for _, r := range c.retired {
		r.perMember(add)
	}
	picks := make(map[*Member]uint64, len(counts))
	for m, n := range counts { // after the tickets, of which some were not followed
		picks[m] = uint64(max(0, n+m.Extra.Load()))
	}
	return picks
}
