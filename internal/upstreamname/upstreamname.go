// SPDX-License-Identifier: Apache-2.0

// Package upstreamname says which upstreams an option of the config means by a name: what
// stands in the list of the handler, another way to write it, a range of ports or of
// addresses, or what placeholders stand for. It knows no option's meaning beyond weights
// and backups. It has no state and no locks.
package upstreamname

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/suggest"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// Given are the names by which an option means upstreams, by dial address or range of
// addresses. The zero value has none.
type Given map[string]string

// Note records that an option names an upstream or a range of addresses, and returns an
// error if that is neither, or if the option has named the same in another way. What
// placeholders stand for is known when the config is loaded.
func (n *Given) Note(name string) error {
	r, isRange, err := parseRange(name)
	if err != nil {
		return fmt.Errorf("%s: %v", name, err)
	}
	if isRange {
		return n.addRange(r, name)
	}
	dials, err := Dials(name)
	if err != nil {
		return fmt.Errorf("%s: %v", name, err)
	}
	for _, dial := range dials {
		if err := n.add(dial, name); err != nil {
			return err
		}
	}
	return nil
}

// add records that an option means an upstream by a name, and returns an error if it
// means the same one by another name, too.
func (n *Given) add(dial, name string) error {
	if other, same := n.record(dial, name); same {
		return fmt.Errorf("%s and %s are the same upstream", other, name)
	}
	return nil
}

// addRange does what add does, with a range of addresses.
func (n *Given) addRange(r netip.Prefix, name string) error {
	if other, same := n.record(r.String(), name); same {
		return fmt.Errorf("%s and %s are the same range of addresses", other, name)
	}
	return nil
}

// record records the name of something. It reports whether that has another name, too.
func (n *Given) record(what, name string) (other string, same bool) {
	if other, given := (*n)[what]; given && other != name {
		return other, true
	}
	if *n == nil {
		*n = make(Given)
	}
	(*n)[what] = name
	return "", false
}

// Listed are the upstreams that the config of a handler lists.
type Listed struct {
	dials     []string          // in their order
	addresses map[string]string // by dial address, as operators see it
	dynamic   bool              // a dynamic source can bring others
}

// List returns those of a handler.
func List(h *reverseproxy.Handler) (Listed, error) {
	listed := Listed{addresses: make(map[string]string), dynamic: h.DynamicUpstreamsRaw != nil || h.DynamicUpstreams != nil}
	for _, u := range h.Upstreams {
		address := monitor.DisplayAddress(u.Dial)
		if err := monitor.CheckSpaces(address); err != nil {
			return listed, fmt.Errorf("upstream %s: %v", u.Dial, err)
		}
		listed.dials = append(listed.dials, u.Dial)
		listed.addresses[u.Dial] = address
	}
	return listed, nil
}

// Weights returns the weights that are configured by name.
func (l Listed) Weights(configured map[string]int) (Numbers, error) {
	weights, err := l.Numbers(configured)
	if err != nil {
		return Numbers{}, err
	}
	if l.isAllListed(func(dial string) bool { weight, given := weights.Of(dial); return given && weight == 0 }) {
		return Numbers{}, errors.New("every upstream has the weight 0, so none would ever get a request; give at least one a weight above 0")
	}
	return weights, nil
}

// Numbers returns the numbers that are configured by name.
func (l Listed) Numbers(configured map[string]int) (Numbers, error) {
	c := l.collect()
	for _, name := range slices.Sorted(maps.Keys(configured)) {
		if err := c.add(name, configured[name]); err != nil {
			return Numbers{}, err
		}
	}
	return c.finish()
}

// Groups returns the groups of the upstreams that are configured as backups: 1 for the
// first group, and so on. All others are primaries.
func (l Listed) Groups(configured [][]string) (Numbers, error) {
	c := l.collect()
	for i, group := range configured {
		for _, name := range group {
			if err := c.add(name, i+1); err != nil {
				return Numbers{}, err
			}
		}
	}
	groups, err := c.finish()
	if err != nil {
		return Numbers{}, err
	}
	if l.isAllListed(func(dial string) bool { group, _ := groups.Of(dial); return group > 0 }) {
		return Numbers{}, errors.New("every upstream is a backup; at least one must be a primary")
	}
	return groups, nil
}

// isAllListed reports whether there are only listed upstreams, and something is true of
// each.
func (l Listed) isAllListed(is func(dial string) bool) bool {
	return !l.dynamic && len(l.dials) > 0 && !slices.ContainsFunc(l.dials, func(dial string) bool { return !is(dial) })
}

// Primaries returns how many upstreams are in no group, and whether that is known: not
// with a dynamic source. One that is listed twice counts twice, and one of the weight 0
// does not.
func (l Listed) Primaries(weights, groups Numbers) (count int, known bool) {
	for _, dial := range l.dials {
		weight, given := weights.Of(dial)
		if group, _ := groups.Of(dial); group == 0 && (!given || weight > 0) {
			count++
		}
	}
	return count, !l.dynamic
}

// hasIn reports whether any upstream has an address in a range.
func (l Listed) hasIn(r netip.Prefix) bool {
	return slices.ContainsFunc(l.dials, func(dial string) bool {
		address, ok := addressOf(l.addresses[dial])
		return ok && r.Contains(address)
	})
}

// rangeOf returns the range of addresses that an option means by a name, and reports
// whether it means one. Placeholders can stand for it.
func rangeOf(name string) (r netip.Prefix, isRange bool, err error) {
	r, isRange, err = parseRange(name)
	if resolved := monitor.DisplayAddress(name); !isRange && resolved != name {
		if r, isRange, err = parseRange(resolved); err != nil {
			err = errors.New("what its placeholders stand for is no range of addresses, like 10.2.0.0/16 or 2001:db8::/32") // and may be secret
		}
	}
	if err != nil {
		err = fmt.Errorf("%s: %v", name, err)
	}
	return r, isRange, err
}

// resolveName returns the dial addresses that an option means by a name: what stands in
// the list, another way to write it, or what its placeholders stand for.
func (l Listed) resolveName(name string) ([]string, error) {
	if len(l.dials) == 0 && l.dynamic {
		return nil, fmt.Errorf("%s: upstreams of a dynamic source are named by %s", name, howToName(name))
	}
	if len(l.dials) == 0 {
		return nil, fmt.Errorf("%s: only upstreams in the list of reverse_proxy can be named, and it is empty", name)
	}
	dials, err := l.matching(name)
	if resolved := monitor.DisplayAddress(name); len(dials) == 0 && err == nil && resolved != name {
		if resolved == "" {
			return nil, fmt.Errorf("%s: its placeholders are empty", name)
		}
		dials, err = l.matching(resolved)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %v", name, err)
	}
	if len(dials) == 0 {
		hint := suggest.DidYouMean(name, l.dials)
		if l.dynamic {
			hint += "; those of the dynamic source are named by " + howToName(name)
		}
		return nil, fmt.Errorf("%s is not one of the upstreams, which are %s%s", name, strings.Join(view.Few(l.dials), ", "), hint)
	}
	return dials, nil
}

// matching returns the dial addresses that a name means: all of a range of ports, or none.
func (l Listed) matching(name string) ([]string, error) {
	meant, err := Dials(name)
	if err != nil {
		return nil, err
	}
	var dials []string
	for _, dial := range meant {
		if _, listed := l.addresses[dial]; listed {
			dials = append(dials, dial)
			continue
		}
		found := false
		for _, listed := range slices.Sorted(maps.Keys(l.addresses)) {
			// an address without a port is not the one with Caddy's default
			if address := l.addresses[listed]; address == dial || address == name {
				dials, found = append(dials, listed), true
			}
		}
		if !found {
			return nil, nil
		}
	}
	return dials, nil
}

// Dials returns what Caddy makes of an upstream as the reverse_proxy directive
// names it: app1 is app1:80, https://app1 is app1:443, and a range of ports is all of
// them. Caddy's own parser says so.
func Dials(name string) ([]string, error) {
	var h reverseproxy.Handler
	tokens := []caddyfile.Token{{Text: "reverse_proxy", Line: 1}, {Text: name, Line: 1}}
	if err := h.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)); err != nil || name == "" {
		return nil, errors.New("not an address that reverse_proxy accepts")
	}
	dials := make([]string, 0, len(h.Upstreams))
	for _, u := range h.Upstreams {
		if err := monitor.CheckSpaces(u.Dial); err != nil {
			return nil, err
		}
		dials = append(dials, u.Dial)
	}
	return dials, nil
}

// Addresses returns the addresses that an option means by a name, whether they are listed
// or not.
func Addresses(name string) []string {
	name = monitor.DisplayAddress(name)
	if r, isRange, err := parseRange(name); isRange && err == nil {
		return []string{r.String()}
	}
	if dials, err := Dials(name); err == nil {
		return dials
	}
	return []string{name} // an error, as soon as it is provisioned
}
