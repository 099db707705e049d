// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/rotation"
)

const (
	// rampSteps is how often the weight of an upstream grows during its slow start.
	rampSteps = 20
	// rampedLen bounds the cycle of an order while an upstream ramps, unless that would
	// distort the least weight. Many distinct weights make an order costly, and this one
	// is made again at every step.
	rampedLen = 1 << 15
)

// tier is some of the members of a pool, in the order in which they get requests.
type tier struct {
	order   rotation.Order
	weights []int // by position, 0 for members that are not in it
	// anyHealth: they get requests whatever their health.
	anyHealth bool
	// suspect: they get requests only while no other upstream serves.
	suspect bool
	// fallback: they drain or are ejected, and get requests only while none serves.
	fallback bool
	// scale is what a weight of 1 is in it, 1 if it is 0.
	scale int
	// tickets are drawn for the order: those of the snapshot if counted is true, else
	// those of the tier.
	tickets *atomic.Uint64
	counted bool
}

// newTier makes a tier of members by their weights in it. With ramps, those in their slow
// start have a part of their weight.
func newTier(weights, ramps []int) *tier {
	t := &tier{weights: weights, tickets: new(atomic.Uint64)}
	t.tickets.Store(uint64(rand.Uint32())) // begins anywhere, each time anew
	isPast := func(i int) bool { return weights[i] == 0 || ramps[i] == rampSteps }
	if ramps == nil || allPositions(len(weights), isPast) {
		t.order = rotation.New(weights)
		return t
	}
	t.scale = rampSteps
	sum, least := int64(0), int64(math.MaxInt64)
	for i, weight := range weights {
		if weight == 0 {
			continue
		}
		weights[i] = weight * ramps[i]
		sum += int64(weights[i])
		least = min(least, int64(weights[i]))
	}
	// four turns or more for the least weight, so that rounding takes or gives no more
	// than an eighth of it
	length := min(max(rampedLen, 4*(sum/least)), rotation.MaxLen)
	t.order = rotation.NewBounded(weights, int(length))
	return t
}

func allPositions(n int, is func(i int) bool) bool {
	for i := range n {
		if !is(i) {
			return false
		}
	}
	return true
}

func (t *tier) empty() bool { return t.order.Len() == 0 }

// serves reports whether Caddy itself considers u healthy, where that counts.
func (t *tier) serves(h *Handler, u *reverseproxy.Upstream) bool {
	return t.anyHealth || h.isHealthy(u)
}

// ramps returns which part of its weight each member that serves gets, in steps, and after
// which time that changes, 0 if it does not. Members ramp only while another of their group
// is past its slow start: when a whole group starts, none could take the load off the new
// ones.
func (b *builder) ramps() (steps []int, again time.Duration) {
	steps = slices.Repeat([]int{rampSteps}, len(b.standings))
	if b.handler.Rules.SlowStart == 0 {
		return steps, 0
	}
	for group := range b.groups {
		if change := b.rampGroup(group, steps); change > 0 && (again == 0 || change < again) {
			again = change
		}
	}
	return steps, again
}

// rampGroup is ramps for one group.
func (b *builder) rampGroup(group int, steps []int) (again time.Duration) {
	r := &b.handler.Rules
	var serving []int
	past := 0
	longest, shortest := time.Duration(0), r.SlowStart // of those that are not past it
	for i, m := range b.made.members {
		if m.Group != group || !b.standings[i].serves() || b.standings[i].weight == 0 {
			continue
		}
		serving = append(serving, i)
		if up := m.upFor(b.now); up >= r.SlowStart {
			past++
		} else {
			longest, shortest = max(longest, up), min(shortest, up)
		}
	}
	switch {
	case past == len(serving):
		return 0
	case past == 0 && longest > shortest:
		return r.SlowStart - longest // when the first is past it, the others ramp
	case past == 0:
		return 0
	}
	step := max(r.SlowStart/rampSteps, 1)
	floor := max(1, int(math.Ceil(r.Floor*rampSteps-1e-9)))
	for _, i := range serving {
		if up := b.made.members[i].upFor(b.now); up < r.SlowStart {
			steps[i] = min(max(floor, int(up/step)), rampSteps)
		}
	}
	return step // one for all, however many there are
}
