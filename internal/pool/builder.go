// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"sync"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// builder sorts the members of a snapshot into tiers.
type builder struct {
	handler   *Handler
	made      *Snapshot
	standings []standing // by position
	now       time.Time

	primaries int // that are ready, whatever their health
}

// count finds what decides about the pool as a whole.
func (b *builder) count() {
	s := b.made
	s.ready = make([]int, len(b.standings))
	s.up = [2][]int{make([]int, len(b.standings)), make([]int, len(b.standings))}
	for i, m := range s.members {
		st := &b.standings[i]
		if st.weight == 0 || !st.ready {
			continue
		}
		s.ready[i] = st.weight
		if st.status == health.Up {
			s.up[index(m.Backup)][i] = st.weight
		}
		if m.Backup {
			continue
		}
		b.primaries++
		switch st.status {
		case health.Unknown:
			s.undecided = true
		case health.Up, health.Down:
			s.decided++
		}
	}
}

// awaitTrials notes which ejections are over, or when they are. Backups wait while a primary
// serves: they get no requests then, and so no trial.
func (b *builder) awaitTrials() {
	s := b.made
	primaryServes := false
	for i, m := range s.members {
		primaryServes = primaryServes || !m.Backup && b.standings[i].serves()
	}
	for i, m := range s.members {
		if st := &b.standings[i]; !st.ready || !st.ejected || m.Backup && primaryServes {
			continue
		}
		if until := m.Ejection(); until.After(b.now) {
			s.remakeAt(until)
		} else {
			s.trials = append(s.trials, i)
		}
	}
}

// serving makes the tiers of members that serve, and of those that are better than an
// error.
func (b *builder) serving() {
	s := b.made
	s.allPrimaries = sync.OnceValue(func() *tier { return b.whateverHealth(false) })
	if countWeights(s.up[1]) == 0 && b.handler.Rules.FailOpen.isTooFew(countWeights(s.up[0]), s.decided) {
		s.state = FailedOpen
		s.serving = append(s.serving, s.allPrimaries())
	}
	b.add(func(i int) bool { return b.standings[i].serves() }, tier{})
	b.add(func(i int) bool {
		st := &b.standings[i]
		return st.ready && st.status == health.Up && st.suspect && !st.ejected
	}, tier{suspect: true})
	b.add(func(i int) bool { return !b.standings[i].ready && !b.standings[i].ejected }, tier{fallback: true})
	b.add(func(i int) bool { return b.standings[i].ejected }, tier{fallback: true})
}

// add adds the tiers of members that take part: primaries first, then backups. Empty ones
// are left out.
func (b *builder) add(takesPart func(i int) bool, as tier) {
	var has [2]bool
	for i, m := range b.made.members {
		has[index(m.Backup)] = has[index(m.Backup)] || takesPart(i) && b.standings[i].weight > 0
	}
	for group, any := range has {
		if !any {
			continue
		}
		weight := func(i int, m *Member) int { return b.weightIf(i, index(m.Backup) == group && takesPart(i)) }
		var t *tier
		if as.suspect || as.fallback {
			t = newTier(b.made.members, weight)
		} else {
			var again time.Duration
			if t, again = newRampedTier(b.made.members, weight, &b.handler.Rules, b.now); again > 0 {
				b.made.remakeAt(b.now.Add(again))
			}
		}
		t.suspect, t.fallback = as.suspect, as.fallback
		b.made.serving = append(b.made.serving, t)
	}
}

// notServing makes what is hardly ever needed when it is asked for.
func (b *builder) notServing() {
	s := b.made
	s.unknown = sync.OnceValue(func() *tier {
		backup := !s.undecided // only if no primary can still turn out to serve
		return newTier(s.members, func(i int, m *Member) int {
			st := &b.standings[i]
			return b.weightIf(i, st.ready && m.Backup == backup && st.status == health.Unknown)
		})
	})
	s.lastResort = sync.OnceValue(func() *tier {
		if b.handler.Rules.FailOpen.Never {
			return new(tier)
		}
		return b.whateverHealth(b.primaries == 0)
	})
}

// whateverHealth returns the tier of ready primaries, or of ready backups.
func (b *builder) whateverHealth(backup bool) *tier {
	t := newTier(b.made.members, func(i int, m *Member) int {
		if m.Backup == backup {
			return b.made.ready[i]
		}
		return 0
	})
	t.anyHealth = true
	return t
}

// weightIf is the weight of a member that takes part, and 0 for others.
func (b *builder) weightIf(i int, takesPart bool) int {
	if takesPart {
		return b.standings[i].weight
	}
	return 0
}

// countWeights counts the weights above 0.
func countWeights(weights []int) (n int) {
	for _, weight := range weights {
		if weight > 0 {
			n++
		}
	}
	return n
}
