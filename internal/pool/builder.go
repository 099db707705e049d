// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"
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
	spills    *spills // those of the handler for an answer of a dynamic source

	groups int   // how many there are
	ready  []int // how many are ready, whatever their health, by group
	inUse  int   // the last of the groups that are in use while each has an upstream that serves
}

// count finds what decides about the pool as a whole.
func (b *builder) count() {
	s := b.made
	b.groups = 1
	for _, m := range s.members {
		b.groups = max(b.groups, m.Group+1)
	}
	b.ready = make([]int, b.groups)
	s.ready = make([]int, len(b.standings))
	s.up = make([][]int, b.groups)
	for group := range s.up {
		s.up[group] = make([]int, len(b.standings))
	}
	for i, m := range s.members {
		st := &b.standings[i]
		if st.weight == 0 || !st.ready {
			continue
		}
		s.ready[i] = st.weight
		b.ready[m.Group]++
		if st.status == health.Up {
			s.up[m.Group][i] = st.weight
		}
		if m.Group > 0 {
			continue
		}
		switch st.status {
		case health.Unknown:
			s.undecided = true
		case health.Up, health.Down:
			s.decided++
		}
	}
}

// limit finds the limits of members. They grow in a slow start, as their weights do.
func (b *builder) limit(ramps []int) {
	s := b.made
	for i, m := range s.members {
		if m.Slots == nil {
			continue
		}
		if s.limits == nil {
			s.limits = make([]int, len(s.members))
		}
		s.limits[i] = max(1, m.limitNow()*ramps[i]/rampSteps)
	}
}

// bind finds what the clients do that are bound to members.
func (b *builder) bind() {
	s, r := b.made, &b.handler.Rules
	for i, m := range s.members {
		st := &b.standings[i]
		if r.Sticky != nil {
			s.bindings = append(s.bindings, bindingOf(r, m, st))
		}
		if r.bindsBySelect() && st.keeps && !st.ready {
			s.draining = append(s.draining, i)
		}
	}
}

// spill finds which groups are in use: the first that serves, and those that join it
// because too little of its weight serves. Ramps are by position.
func (b *builder) spill(ramps []int) {
	serving, full := make([]float64, b.groups), make([]float64, b.groups)
	serves := make([]bool, b.groups)
	for i, m := range b.made.members {
		st := &b.standings[i]
		full[m.Group] += float64(st.full)
		if st.ready && st.status == health.Unknown { // else groups would join at each cold start
			serving[m.Group] += float64(st.weight)
		}
		if st.ready && st.status == health.Up && !st.ejected {
			serving[m.Group] += float64(st.weight) * float64(ramps[i]) / rampSteps
			serves[m.Group] = serves[m.Group] || !st.suspect
		}
	}
	if percent := b.handler.Rules.Spill; percent > 0 {
		base := full[0]
		if b.spills == &b.handler.spills {
			base, b.made.firstSum = b.spills.largest(full[0], b.now), full[0]
		}
		for _, sum := range full[1:] {
			if base == 0 {
				base = sum
			}
		}
		var again time.Time
		b.made.spill, again = b.spills.current().next(percent, base, serving, b.now)
		if !again.IsZero() {
			b.made.remakeAt(again)
		}
	}
	b.inUse = b.made.spill.joined
	for b.inUse < b.groups-1 && !slices.Contains(serves[:b.inUse+1], true) {
		b.inUse++
	}
}

// awaitTrials notes which ejections are over, or when they are. Groups that are not in use
// wait: they get no requests, and so no trial.
func (b *builder) awaitTrials() {
	s := b.made
	for i, m := range s.members {
		if st := &b.standings[i]; !st.ready || !st.ejected || m.Group > b.inUse {
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
	ramps, again := b.ramps()
	if again > 0 {
		s.remakeAt(b.now.Add(again))
	}
	b.limit(ramps)
	b.bind()
	b.spill(ramps)
	b.awaitTrials()
	s.allPrimaries = sync.OnceValue(func() *tier { return b.whateverHealth(0) })
	if !s.backupIsUp() && b.handler.Rules.FailOpen.isTooFew(countWeights(s.up[0]), s.decided) {
		s.state = FailedOpen
		s.serving = append(s.serving, s.allPrimaries())
	}
	b.add(func(i int) bool { return b.standings[i].serves() }, s.spill.joined, ramps, tier{})
	b.add(func(i int) bool {
		st := &b.standings[i]
		return st.ready && st.status == health.Up && st.suspect && !st.ejected
	}, 0, nil, tier{suspect: true})
	b.add(func(i int) bool { return !b.standings[i].ready && !b.standings[i].ejected }, 0, nil, tier{fallback: true})
	b.add(func(i int) bool { return b.standings[i].ejected }, 0, nil, tier{fallback: true})
}

// add adds the tiers of members that take part, one for each group. The first groups are
// one tier, as many as have joined the primaries. Empty tiers are left out.
func (b *builder) add(takesPart func(i int) bool, joined int, ramps []int, as tier) {
	for group := joined; group < b.groups; group++ {
		has := false
		weights := make([]int, len(b.standings))
		for i, m := range b.made.members {
			if m.Group == group || group == joined && m.Group < group {
				weights[i] = b.weightIf(i, takesPart(i))
				has = has || weights[i] > 0
			}
		}
		if !has {
			continue
		}
		t := newTier(weights, ramps)
		t.suspect, t.fallback = as.suspect, as.fallback
		b.made.serving = append(b.made.serving, t)
	}
}

// notServing makes what is hardly ever needed when it is asked for.
func (b *builder) notServing() {
	s := b.made
	s.unknown = sync.OnceValue(func() *tier {
		weights := make([]int, len(b.standings))
		first := b.groups // only if no upstream of a group before it can still turn out to serve
		for i, m := range s.members {
			if st := &b.standings[i]; st.ready && st.weight > 0 && st.status == health.Unknown {
				first = min(first, m.Group)
			}
		}
		for i, m := range s.members {
			st := &b.standings[i]
			weights[i] = b.weightIf(i, st.ready && m.Group == first && st.status == health.Unknown)
		}
		return newTier(weights, nil)
	})
	s.lastResort = sync.OnceValue(func() *tier {
		if b.handler.Rules.FailOpen.Never {
			return new(tier)
		}
		return b.whateverHealth(max(0, slices.IndexFunc(b.ready, func(n int) bool { return n > 0 })))
	})
}

// whateverHealth returns the tier of the ready members of a group.
func (b *builder) whateverHealth(group int) *tier {
	weights := make([]int, len(b.standings))
	for i, m := range b.made.members {
		if m.Group == group {
			weights[i] = b.made.ready[i]
		}
	}
	t := newTier(weights, nil)
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
