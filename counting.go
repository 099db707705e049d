// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// Picks of the proxy's own list are counted from the tickets that are drawn anyway: a
// snapshot's order says how often each upstream had its turn. What its order does not
// decide is counted by itself, and so is every pick of a pool that requests bring.

// retired is a snapshot that another replaced. A pick may still draw a ticket of it
// that began before, so it is counted a while later.
type retired struct {
	*snapshot
	at time.Time
}

const (
	// retiredFor is how long a pick may take, by far.
	retiredFor = 10 * time.Second
	// maxRetired bounds how many snapshots wait to be counted.
	maxRetired = 64
)

// succeed has a snapshot take the place of another: it goes on where that is in
// the order. The zero snapshot, nil, is the first one's predecessor.
func (s *Selection) succeed(now, before *snapshot, swap func()) {
	s.counting.Lock()
	defer s.counting.Unlock()
	now.first = s.first
	if before != nil {
		now.first = before.tickets.Load()
	}
	now.tickets.Store(now.first)
	swap()
	s.retire(before)
}

// retire has a snapshot that is not used any more counted later. s.counting must be
// held.
func (s *Selection) retire(before *snapshot) {
	if before == nil || before.best.Len() == 0 {
		return
	}
	now := time.Now()
	s.retired = append(s.retired, retired{before, now})
	due := max(0, len(s.retired)-maxRetired)
	for due < len(s.retired) && now.Sub(s.retired[due].at) > retiredFor {
		due++
	}
	for _, r := range s.retired[:due] {
		r.turns(func(m *member, n uint64) { m.picked.Add(int64(n)) })
	}
	s.retired = slices.Delete(s.retired, 0, due)
}

// turns tells how many turns each member had by tickets.
func (s *snapshot) turns(tell func(m *member, n uint64)) {
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

// count counts a pick that no ticket of the snapshot decided.
func (d *decision) count(u *reverseproxy.Upstream) {
	if d.drawn {
		return
	}
	if i := slices.Index(d.pool, u); i >= 0 && i < len(d.now.members) {
		d.now.members[i].picked.Add(1)
	}
}

// selections returns how often each upstream was picked.
func (s *Selection) selections() map[string]uint64 {
	members := slices.Clone(s.members)
	if s.dynamic != nil {
		members = append(members, s.dynamic.all()...)
	}
	s.counting.Lock()
	defer s.counting.Unlock()
	var snapshots []*snapshot
	if now := s.current.Load(); now != nil {
		snapshots = append(snapshots, now)
	}
	for _, r := range s.retired {
		snapshots = append(snapshots, r.snapshot)
	}

	counts := make(map[*member]int64)
	for _, m := range members {
		if m.address != "" {
			counts[m] = 0
		}
	}
	for _, now := range snapshots {
		now.turns(func(m *member, n uint64) {
			if _, there := counts[m]; there {
				counts[m] += int64(n)
			}
		})
	}
	for m := range counts { // after the tickets, of which some were not followed
		counts[m] += m.picked.Load()
	}
	all := make(map[string]uint64)
	for m, n := range counts {
		all[m.address] += uint64(max(0, n))
	}
	return all
}
