// SPDX-License-Identifier: Apache-2.0

// Package rotation turns weights into the order in which upstreams get requests.
//
// It must not know upstreams or their health: it takes weights and returns a cycle of
// indexes that never changes. It has no locks.
package rotation

import "math"

// Order is a cycle of indexes into the weights that it was made from. It does not
// change, so any number of goroutines may read it at once. The zero value is empty.
type Order struct {
	cycle []int32
}

// MaxLen bounds the length of the cycles that New makes, and so their memory and the
// time to make them.
const MaxLen = 1 << 18

// New returns the smooth weighted order of nginx's upstream module. In one cycle every
// index appears as often as its weight says (divided by the greatest common divisor of
// all weights), spread as evenly as possible: the weights 5, 1, 1 give 0 0 1 0 2 0 0.
// Equal weights give plain round robin. Indexes with a weight of 0 or less do not
// appear. The length of a cycle is bounded by [MaxLen], as [NewBounded] says. The sum
// of all weights must be less than 2⁶³.
//
// In every step nginx adds to every peer its weight, takes the peer with the largest
// sum (the first of equals), and subtracts the total from it. Peers of equal weight
// differ only by how often they were taken, and are taken in turn. So it is enough to
// compare one peer of each distinct weight, and a cycle costs its length times the
// number of distinct weights.
func New(weights []int) Order { return NewBounded(weights, MaxLen) }

// NewBounded is New with another bound. Weights that give a longer cycle are scaled and
// rounded, but never to 0, so n indexes give a cycle of at most bound + n. The number
// of turns of an index differs from its exact share of the cycle by less than 1 + n
// times that share.
func NewBounded(weights []int, bound int) Order {
	divisor, sum := 0, int64(0) // a sum of int weights may need 64 bits
	for _, w := range weights {
		if w > 0 {
			divisor = gcd(divisor, w)
			sum += int64(w)
		}
	}
	if sum == 0 {
		return Order{}
	}
	turns := func(w int) int { return w / divisor }
	if sum/int64(divisor) > int64(bound) {
		turns = func(w int) int { return max(1, int(math.Round(float64(w)/float64(sum)*float64(bound)))) }
	}

	total := int64(0)
	var classes []class
	byTurns := make(map[int]int)
	for i, w := range weights {
		if w <= 0 {
			continue
		}
		each := turns(w)
		total += int64(each)
		at, known := byTurns[each]
		if !known {
			at = len(classes)
			byTurns[each] = at
			classes = append(classes, class{turns: int64(each)})
		}
		classes[at].members = append(classes[at].members, int32(i))
	}
	for i := range classes {
		classes[i].front = classes[i].members[0]
	}

	cycle := make([]int32, 0, total)
	for step := int64(1); step <= total; step++ {
		best, most := 0, step*classes[0].turns-classes[0].taken
		for i := 1; i < len(classes); i++ {
			c := &classes[i]
			// nginx's current weight of the front member
			if sum := step*c.turns - c.taken; sum > most || sum == most && c.front < classes[best].front {
				best, most = i, sum
			}
		}
		cycle = append(cycle, classes[best].front)
		classes[best].advance(total)
	}
	return Order{cycle: cycle}
}

// Len returns the length of the cycle, 0 if no weight is above 0.
func (o Order) Len() int { return len(o.cycle) }

// At returns the index at a ticket. Consecutive tickets go through the cycle, so
// callers that draw them from one counter share requests exactly, even if they draw at
// the same time. It panics if Len is 0.
func (o Order) At(ticket uint64) int {
	return int(o.cycle[ticket%uint64(len(o.cycle))])
}

// class is the indexes with equally many turns in a cycle. They are taken one after the
// other.
type class struct {
	turns   int64
	taken   int64 // what was subtracted from the front member so far
	front   int32 // the member that is taken next
	next    int   // its position
	members []int32
}

// advance takes the member in front.
func (c *class) advance(total int64) {
	if c.next++; c.next == len(c.members) {
		c.next = 0
		c.taken += total // all members were taken once more
	}
	c.front = c.members[c.next]
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
