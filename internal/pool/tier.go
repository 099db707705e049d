// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math"
	"math/rand/v2"
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

// newTier makes a tier of the members of a pool by their weights in it.
func newTier(members []*Member, weight func(i int, m *Member) int) *tier {
	t := &tier{weights: make([]int, len(members)), tickets: new(atomic.Uint64)}
	t.tickets.Store(uint64(rand.Uint32())) // begins anywhere, each time anew
	for i, m := range members {
		t.weights[i] = weight(i, m)
	}
	t.order = rotation.New(t.weights)
	return t
}

func (t *tier) empty() bool { return t.order.Len() == 0 }

// serves reports whether Caddy itself considers u healthy, where that counts.
func (t *tier) serves(u *reverseproxy.Upstream) bool { return t.anyHealth || u.Healthy() }

// countHealthy counts the members that Caddy itself considers healthy.
func (t *tier) countHealthy(upstreams reverseproxy.UpstreamPool) int {
	return countHealthy(t.weights, upstreams)
}

// countHealthy counts the upstreams with a weight that Caddy itself considers healthy.
func countHealthy(weights []int, upstreams reverseproxy.UpstreamPool) (n int) {
	for i, weight := range weights {
		if weight > 0 && upstreams[i].Healthy() {
			n++
		}
	}
	return n
}

// newRampedTier is newTier, but members that came up a short while ago have a part of
// their weight. They ramp only while another member is past its slow start: when a whole
// pool starts, none could take the load off the new ones. It also returns after which
// time the tier is to be made again, 0 if never.
func newRampedTier(members []*Member, weight func(i int, m *Member) int, r *Rules, now time.Time) (t *tier, again time.Duration) {
	all, past := 0, 0
	longest, shortest := time.Duration(0), r.SlowStart // of those that are not past it
	if r.SlowStart > 0 {
		for i, m := range members {
			if weight(i, m) == 0 {
				continue
			}
			all++
			if up := m.upFor(now); up >= r.SlowStart {
				past++
			} else {
				longest, shortest = max(longest, up), min(shortest, up)
			}
		}
	}
	if past == 0 && longest > shortest {
		again = r.SlowStart - longest // when the first is past it, the others ramp
	}
	if past == all || past == 0 {
		return newTier(members, weight), again
	}

	step := max(r.SlowStart/rampSteps, 1)
	floor := max(1, int(math.Ceil(r.Floor*rampSteps-1e-9)))
	t = &tier{weights: make([]int, len(members)), scale: rampSteps, tickets: new(atomic.Uint64)}
	sum, least := int64(0), int64(math.MaxInt64)
	for i, m := range members {
		if weight(i, m) == 0 {
			continue
		}
		steps := rampSteps
		if up := m.upFor(now); up < r.SlowStart {
			steps = min(max(floor, int(up/step)), rampSteps)
			again = step // one for all, however many there are
		}
		t.weights[i] = weight(i, m) * steps
		sum += int64(t.weights[i])
		least = min(least, int64(t.weights[i]))
	}
	// four turns or more for the least weight, so that rounding takes or gives no more
	// than an eighth of it
	length := min(max(rampedLen, 4*(sum/least)), rotation.MaxLen)
	t.order = rotation.NewBounded(t.weights, int(length))
	return t, again
}
