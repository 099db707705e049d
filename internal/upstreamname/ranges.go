// SPDX-License-Identifier: Apache-2.0

package upstreamname

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"

	"github.com/caddyserver/caddy/v2"
)

// howToName says how an option names an upstream of a dynamic source that it names in
// another way.
func howToName(name string) string {
	if dials, err := Dials(name); err == nil {
		if address, ok := addressOf(dials[0]); ok {
			return fmt.Sprintf("a range of addresses: write %s for this one, whatever its port", netip.PrefixFrom(address, address.BitLen()))
		}
	}
	return "a range of addresses, like 10.2.0.0/16, or 10.2.0.5/32 for one"
}

// rangeLike is what can only be meant as a range of addresses. Networks, such as udp/ and
// fd/, have neither a dot nor a colon.
var rangeLike = regexp.MustCompile(`^\[?[0-9A-Fa-f]*[.:][0-9A-Fa-f.:]*(%[^/]*)?\]?/`)

// parseRange reads a range of addresses, and reports whether a name is meant as one.
func parseRange(name string) (r netip.Prefix, isRange bool, err error) {
	if !rangeLike.MatchString(name) {
		return r, false, nil
	}
	r, err = netip.ParsePrefix(name)
	switch {
	case err != nil:
		err = errors.New("a range of addresses is like 10.2.0.0/16 or 2001:db8::/32, without a port")
	case r.Addr().Is4In6():
		err = errors.New("write a range of IPv4 addresses as one, like 10.2.0.0/16")
	case r != r.Masked():
		one := netip.PrefixFrom(r.Addr(), r.Addr().BitLen())
		err = fmt.Errorf("write %s for the whole range, or %s for the one address", r.Masked(), one)
	}
	return r, true, err
}

// addressOf returns the IP address in the dial address of an upstream, and reports whether
// there is one.
func addressOf(dial string) (netip.Addr, bool) {
	_, host, _, err := caddy.SplitNetworkAddress(dial)
	if err != nil {
		return netip.Addr{}, false
	}
	address, err := netip.ParseAddr(host)
	return address.Unmap().WithZone(""), err == nil
}
