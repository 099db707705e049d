// SPDX-License-Identifier: Apache-2.0

package upstreamname

import (
	"net"
	"net/netip"
)

// Numbers are what an option gives to upstreams, each one number. The zero value gives none.
type Numbers struct {
	byDial map[string]int
	ranges []rangeNumber // the narrowest first
}

// rangeNumber is what an option gives to all addresses of a range.
type rangeNumber struct {
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
	host, _, err := net.SplitHostPort(dial)
	if err != nil {
		return 0, false
	}
	address, err := netip.ParseAddr(host)
	if err != nil {
		return 0, false
	}
	for _, r := range n.ranges {
		if r.addresses.Contains(address.Unmap().WithZone("")) {
			return r.number, true
		}
	}
	return 0, false
}
