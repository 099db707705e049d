// SPDX-License-Identifier: Apache-2.0

package upstreamname

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Numbers are what an option gives to upstreams, each one number. The zero value gives none.
type Numbers struct {
	byDial map[string]int
	ranges []rangeNumber // the narrowest first
}

// rangeNumber is what an option gives to all addresses of a range.
type rangeNumber struct {
	name      string // as the config has it
	addresses netip.Prefix
	number    int
}

// NumbersOf returns the numbers of dial addresses.
func NumbersOf(byDial map[string]int) Numbers { return Numbers{byDial: byDial} }

// Any reports whether there are any.
func (n Numbers) Any() bool { return len(n.byDial) > 0 || len(n.ranges) > 0 }

// Of returns the number of the upstream at a dial address: its own, or else that of the
// narrowest range that it is in. It also reports whether there is one.
func (n Numbers) Of(dial string) (number int, given bool) {
	if number, given = n.byDial[dial]; given || len(n.ranges) == 0 {
		return number, given
	}
	return n.ofRange(dial)
}

// ofRange returns the number of the narrowest range that a dial address is in.
func (n Numbers) ofRange(dial string) (number int, given bool) {
	address, ok := addressOf(dial)
	if !ok {
		return 0, false
	}
	for _, r := range n.ranges {
		if r.addresses.Contains(address) {
			return r.number, true
		}
	}
	return 0, false
}

// collector collects the numbers that an option gives by name.
type collector struct {
	listed  Listed
	names   Given
	seen    map[string]bool // names
	numbers Numbers
}

// collect returns a collector of the numbers that an option gives.
func (l Listed) collect() *collector {
	return &collector{listed: l, seen: make(map[string]bool), numbers: NumbersOf(make(map[string]int))}
}

// add gives a number to what a name means.
func (c *collector) add(name string, number int) error {
	if c.seen[name] {
		return fmt.Errorf("%s is given twice", name)
	}
	c.seen[name] = true
	r, isRange, err := rangeOf(name)
	if err != nil {
		return err
	}
	if isRange {
		c.numbers.ranges = append(c.numbers.ranges, rangeNumber{name, r, number})
		return c.names.addRange(r, name)
	}
	dials, err := c.listed.resolveName(name)
	if err != nil {
		return err
	}
	for _, dial := range dials {
		if err := c.names.add(dial, name); err != nil {
			return err
		}
		c.numbers.byDial[dial] = number
	}
	return nil
}

// finish returns the numbers. Upstreams of the list are given theirs here, since only the
// list knows the address that a placeholder stands for.
func (c *collector) finish() (Numbers, error) {
	n := c.numbers
	for _, r := range n.ranges {
		if !c.listed.dynamic && !c.listed.hasIn(r.addresses) {
			return Numbers{}, fmt.Errorf("%s: no upstream in the list of reverse_proxy has an address in this range, and there is no dynamic source that could bring one", r.name)
		}
	}
	slices.SortFunc(n.ranges, func(a, b rangeNumber) int { return cmp.Compare(b.addresses.Bits(), a.addresses.Bits()) })
	for dial, address := range c.listed.addresses {
		if _, given := n.byDial[dial]; !given {
			if number, given := n.ofRange(address); given {
				n.byDial[dial] = number
			}
		}
	}
	return n, nil
}
