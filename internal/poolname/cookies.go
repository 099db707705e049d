// SPDX-License-Identifier: Apache-2.0

package poolname

import (
	"maps"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// Cookie is what decides whether two pools understand each other's cookie, if they have the
// same upstreams.
type Cookie struct {
	Name   string // empty if the pool has none
	Secret Key    // a hash of the secret
}

// SharedCookie is a cookie that several pools of a server set for the same clients, each for
// upstreams, or with a secret, of its own.
type SharedCookie struct {
	Server, Cookie string
	Pools          []string // their names, in the order of the config
}

// SharedCookies returns those of the config, each once: further calls return what is new.
// Read is that of [Names.Of].
func (n *Names) SharedCookies(ctx caddy.Context, read func(policy, handler []byte) (Pool, error)) []SharedCookie {
	n.readAll(ctx, read)
	shared := n.shared
	n.shared = nil
	return shared
}

// place is where a part of a config is.
type place struct {
	server string
	// hosts are those of the routes around it: each route is for any host of one of these
	// lists. Routes for all hosts are left out.
	hosts [][]string
}

// within returns the place of what is in an object, which can be a route for some hosts.
func (p place) within(object map[string]any) place {
	sets, _ := object["match"].([]any)
	var hosts []string
	for _, set := range sets {
		matchers, _ := set.(map[string]any)
		list, ok := matchers["host"].([]any)
		if !ok {
			return p // this set of matchers is for all hosts
		}
		for _, host := range list {
			if host, ok := host.(string); ok {
				hosts = append(hosts, host)
			}
		}
	}
	if len(sets) > 0 {
		p.hosts = append(slices.Clone(p.hosts), hosts)
	}
	return p
}

// meets reports whether a client can reach both places by the same host, so that it sends
// the cookies of one to the other.
func (p place) meets(other place) bool {
	for _, hosts := range p.hosts {
		for _, others := range other.hosts {
			if !slices.ContainsFunc(hosts, func(host string) bool {
				return slices.ContainsFunc(others, func(other string) bool { return hostsMeet(host, other) })
			}) {
				return false
			}
		}
	}
	return true
}

// hostsMeet reports whether any host matches both patterns of Caddy's host matcher. A
// placeholder can stand for any.
func hostsMeet(a, b string) bool {
	if strings.Contains(a, "{") || strings.Contains(b, "{") {
		return true
	}
	labels, others := strings.Split(a, "."), strings.Split(b, ".")
	return slices.EqualFunc(labels, others, func(label, other string) bool {
		return label == "*" || other == "*" || strings.EqualFold(label, other)
	})
}

// placed is a pool and where it is.
type placed struct {
	Pool
	at place
}

// findShared returns the cookies that pools share. Those of the same upstreams with the same
// secret understand each other.
func (n *Names) findShared(pools []placed) (shared []SharedCookie) {
	type cookie struct{ server, name string }
	users := make(map[cookie][]placed)
	for _, p := range pools {
		if p.Cookie.Name != "" {
			of := cookie{p.at.server, p.Cookie.Name}
			users[of] = append(users[of], p)
		}
	}
	all := slices.SortedFunc(maps.Keys(users), func(a, b cookie) int {
		return strings.Compare(a.server+"\x00"+a.name, b.server+"\x00"+b.name)
	})
	for _, of := range all {
		var names []string
		for _, p := range users[of] {
			fights := func(other placed) bool {
				return (p.Default != other.Default || p.Cookie != other.Cookie) && p.at.meets(other.at)
			}
			if name := n.shownName(p.Pool); slices.ContainsFunc(users[of], fights) && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		if len(names) > 0 {
			shared = append(shared, SharedCookie{of.server, of.name, names})
		}
	}
	return shared
}

// shownName returns the name of a pool, with its upstreams if others can have the same name.
func (n *Names) shownName(p Pool) string {
	if p.Given == "" {
		return n.add(p)
	}
	return p.Given + " (" + p.Default + ")"
}
