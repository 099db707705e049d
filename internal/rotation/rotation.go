// SPDX-License-Identifier: Apache-2.0

// Package rotation turns weights into the order in which upstreams get
// requests. It knows neither upstreams nor health: weights go in, an
// immutable cycle of indexes comes out.
package rotation

import "math"

// Order is a cycle of indexes into the weights it was made from. It never
// changes, so any number of goroutines may read it at once. The zero value
// is empty.
type Order struct {
	cycle []int32
}

// MaxLen bounds the length of a cycle, and so the memory and time that it takes.
const MaxLen = 1 << 18

// New returns the smooth weighted order of nginx's upstream module: in one
// cycle every index appears as often as its weight says (divided by the
// greatest common divisor of all), and as evenly spread as can be: the weights
// 5, 1, 1 give 0 0 1 0 2 0 0. Equal weights give plain round robin. Indexes
// with a weight of 0 or less do not appear.
//
// nginx adds to every peer its weight at every step, takes the peer with the
// largest sum (the first of equals) and subtracts the total from it. Peers of
// equal weight only ever differ by how often they were taken, and are taken in
// turn; so it is enough to compare one peer of each distinct weight, and a
// cycle costs its length times the number of distinct weights.
//
// Weights whose cycle would be longer than [MaxLen] are scaled down to about
// that and rounded, but never to 0: the share of an index is then off by at most
// one turn in a cycle, or one in MaxLen requests, and by the like of what is
// added to indexes of tiny weight. With more than MaxLen indexes, the cycle has
// one turn for each.
func New(weights []int) Order {
	divisor, sum, n := 0, 0, 0
	for _, w := range weights {
		if w > 0 {
			divisor = gcd(divisor, w)
			sum += w
			n++
		}
	}
	if n == 0 {
		return Order{}
	}
	total := sum / divisor
	scale := func(w int) int { return w / divisor }
	if total > MaxLen {
		scale = func(w int) int { return max(1, int(math.Round(float64(w)/float64(sum)*MaxLen))) }
		total = 0
		for _, w := range weights {
			if w > 0 {
				total += scale(w)
			}
		}
	}

	var classes []*class
	byTurns := make(map[int]*class)
	for i, w := range weights {
		if w <= 0 {
			continue
		}
		turns := scale(w)
		c := byTurns[turns]
		if c == nil {
			c = &class{turns: turns}
			byTurns[turns] = c
			classes = append(classes, c)
		}
		c.members = append(c.members, int32(i))
	}

	cycle := make([]int32, 0, total)
	for step := 1; step <= total; step++ {
		best := classes[0]
		for _, c := range classes[1:] {
			a, b := c.sum(step, total), best.sum(step, total)
			if a > b || a == b && c.front() < best.front() {
				best = c
			}
		}
		cycle = append(cycle, best.front())
		best.taken++
	}
	return Order{cycle: cycle}
}

// Len returns the length of the cycle: 0 when nothing had a weight above 0.
func (o Order) Len() int { return len(o.cycle) }

// At returns the index whose turn the ticket is. Consecutive tickets walk the
// cycle, so callers that draw them from one counter share requests exactly,
// however many draw at once. It panics when Len is 0.
func (o Order) At(ticket uint64) int {
	return int(o.cycle[ticket%uint64(len(o.cycle))])
}

// class holds the indexes that have equally many turns in a cycle, and how many
// they had so far in all.
type class struct {
	turns   int
	members []int32
	taken   int
}

// front is the member whose turn is next within its class.
func (c *class) front() int32 { return c.members[c.taken%len(c.members)] }

// sum is what nginx would have in the front member's current weight.
func (c *class) sum(step, total int) int {
	return step*c.turns - c.taken/len(c.members)*total
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
