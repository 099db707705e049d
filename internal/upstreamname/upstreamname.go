// SPDX-License-Identifier: Apache-2.0

// Package upstreamname says which upstreams an option of the config means by a name: what
// stands in the list of the handler, another way to write it, a range of ports, or what
// placeholders stand for. It knows no option's meaning beyond weights and backups. It has
// no state and no locks.
package upstreamname

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/suggest"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// Given are the names by which an option means upstreams, by dial address. The zero value
// has none.
type Given map[string]string

// Note records that an option names an upstream, and returns an error if that is no
// address, or if the option has named the same upstream in another way. What
// placeholders stand for is known when the config is loaded.
func (n *Given) Note(name string) error {
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
	if other, given := (*n)[dial]; given && other != name {
		return fmt.Errorf("%s and %s are the same upstream", other, name)
	}
	if *n == nil {
		*n = make(Given)
	}
	(*n)[dial] = name
	return nil
}

// Listed are the upstreams that the config of a handler lists.
type Listed struct {
	proxy     *reverseproxy.Handler
	addresses map[string]string // by dial address, as operators see it
}

// List returns those of a handler.
func List(h *reverseproxy.Handler) (Listed, error) {
	listed := Listed{h, make(map[string]string)}
	for _, u := range h.Upstreams {
		address := monitor.DisplayAddress(u.Dial)
		if err := monitor.CheckSpaces(address); err != nil {
			return listed, fmt.Errorf("upstream %s: %v", u.Dial, err)
		}
		listed.addresses[u.Dial] = address
	}
	return listed, nil
}

// Weights returns the weights that are configured by name, by dial address.
func (l Listed) Weights(configured map[string]int) (Numbers, error) {
	var names Given
	weights := make(map[string]int)
	for _, name := range slices.Sorted(maps.Keys(configured)) {
		dials, err := l.resolveName(name)
		if err != nil {
			return Numbers{}, err
		}
		for _, dial := range dials {
			if err := names.add(dial, name); err != nil {
				return Numbers{}, err
			}
			weights[dial] = configured[name]
		}
	}
	if l.isAllListed(func(dial string) bool { weight, given := weights[dial]; return given && weight == 0 }) {
		return Numbers{}, errors.New("every upstream has the weight 0, so none would ever get a request; give at least one a weight above 0")
	}
	return NumbersOf(weights), nil
}

// Groups returns the groups of the upstreams that are configured as backups, by dial
// address: 1 for the first group, and so on. All others are primaries.
func (l Listed) Groups(configured [][]string) (Numbers, error) {
	var names Given
	groups := make(map[string]int)
	for i, group := range configured {
		for _, name := range group {
			dials, err := l.resolveName(name)
			if err != nil {
				return Numbers{}, err
			}
			for _, dial := range dials {
				if err := names.add(dial, name); err != nil {
					return Numbers{}, err
				}
				groups[dial] = i + 1
			}
		}
	}
	if len(groups) > 0 && l.isAllListed(func(dial string) bool { return groups[dial] > 0 }) {
		return Numbers{}, errors.New("every upstream is a backup; at least one must be a primary")
	}
	return NumbersOf(groups), nil
}

// isAllListed reports whether there are only listed upstreams, and something is true of
// each.
func (l Listed) isAllListed(is func(dial string) bool) bool {
	if len(l.addresses) == 0 || l.proxy.DynamicUpstreamsRaw != nil {
		return false
	}
	for dial := range l.addresses {
		if !is(dial) {
			return false
		}
	}
	return true
}

// resolveName returns the dial addresses that an option means by a name: what stands in
// the list, another way to write it, or what its placeholders stand for.
func (l Listed) resolveName(name string) ([]string, error) {
	if len(l.addresses) == 0 {
		return nil, fmt.Errorf("%s: weight and backup can name only upstreams in the list of reverse_proxy, which is empty", name)
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
		known := make([]string, 0, len(l.proxy.Upstreams))
		for _, u := range l.proxy.Upstreams {
			known = append(known, u.Dial)
		}
		return nil, fmt.Errorf("%s is not one of the upstreams, which are %s%s", name, strings.Join(view.Few(known), ", "), suggest.DidYouMean(name, known))
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
	if dials, err := Dials(name); err == nil {
		return dials
	}
	return []string{name} // an error, as soon as it is provisioned
}
