// SPDX-License-Identifier: Apache-2.0

// Package poolname names the pools of a config: by their upstreams, with a number where
// pools of the same upstreams differ. It also finds pools that use the same cookie. It reads configs as JSON, and does not know what
// makes two pools different: its caller gives a key. It has no locks: Caddy provisions the
// handlers of a config one after the other.
package poolname

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
)

// Pool is what decides about the name of one pool.
type Pool struct {
	Given   string // the name that the config gives, empty if none
	Default string // the name that it would have
	Key     Key    // what tells it apart from others of the same default name
	Cookie  Cookie // that binds clients to its upstreams, the zero value if none does
}

// Key tells whether two pools of the same upstreams are the same.
type Key [sha256.Size]byte

// Names gives names to the pools of one config that have none. Pools of the same
// upstreams that differ are numbered in the order of the config. Caddy provisions them in
// an order that differs from one load to the next, so that order does not count: each
// pool keeps its number, and with it the weights that were set at run time. It is not safe
// for concurrent use.
type Names struct {
	apps   map[*caddyhttp.App]bool // whose config was read
	given  map[string]bool         // names that the config gives
	keys   map[string][]Key        // by default name
	shared []SharedCookie          // not yet asked for
}

// Of returns the name of a pool without a given one. Read decodes a policy alive and the
// handler that has it, given as JSON.
func (n *Names) Of(ctx caddy.Context, p Pool, read func(policy, handler []byte) (Pool, error)) string {
	n.readAll(ctx, read)
	return n.add(p)
}

// add returns the name of a pool, which may be new.
func (n *Names) add(p Pool) string {
	at := slices.Index(n.keys[p.Default], p.Key)
	if at < 0 {
		at = len(n.keys[p.Default])
		n.keys[p.Default] = append(n.keys[p.Default], p.Key)
	}
	if at == 0 {
		return p.Default
	}
	numbered := ""
	for number := 2; at > 0; number++ {
		if numbered = fmt.Sprintf("%s #%d", p.Default, number); !n.given[numbered] {
			at--
		}
	}
	return numbered
}

// init makes the maps.
func (n *Names) init() {
	if n.apps == nil {
		n.apps, n.given, n.keys = make(map[*caddyhttp.App]bool), make(map[string]bool), make(map[string][]Key)
	}
}

// readAll finds the pools of the whole config before the first one gets its name. At that
// moment, everything from the first one on is still to be loaded.
func (n *Names) readAll(ctx caddy.Context, read func(policy, handler []byte) (Pool, error)) {
	n.init()
	for _, m := range ctx.Modules() {
		app, ok := m.(*caddyhttp.App)
		if !ok || n.apps[app] {
			continue
		}
		n.apps[app] = true
		encoded, err := json.Marshal(app)
		if err != nil {
			continue
		}
		n.readApp(Decode(encoded), read)
	}
}

// readApp finds the pools in the config of an app http.
func (n *Names) readApp(app any, read func(policy, handler []byte) (Pool, error)) {
	var pools []placed
	findAll(app, func(policy, handler any, at place) {
		encodedPolicy, _ := json.Marshal(policy) // both were decoded from JSON
		encodedHandler, _ := json.Marshal(handler)
		if p, err := read(encodedPolicy, encodedHandler); err == nil {
			pools = append(pools, placed{p, at})
		}
	})
	for _, p := range pools {
		n.given[p.Given] = true
	}
	for _, p := range pools {
		if p.Given == "" {
			n.add(p.Pool)
		}
	}
	n.shared = append(n.shared, n.findShared(pools)...)
}

// Decode returns JSON as maps, lists and so on, nil if it is none.
func Decode(encoded []byte) any {
	decoder := json.NewDecoder(bytes.NewReader(encoded))
	decoder.UseNumber()
	var value any
	_ = decoder.Decode(&value)
	return value
}

// findAll calls found for each policy alive in the config of an app http, with the handler
// that has it and its place.
func findAll(app any, found func(policy, handler any, at place)) {
	options, _ := app.(map[string]any)
	servers, _ := options["servers"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(servers)) {
		findPools(servers[name], place{server: name}, found)
	}
}

// findPools calls found for each policy alive in a part of a config at a place, with the
// handler that has it.
func findPools(part any, at place, found func(policy, handler any, at place)) {
	switch part := part.(type) {
	case []any:
		for _, element := range part {
			findPools(element, at, found)
		}
	case map[string]any:
		at = at.within(part)
		if balancing, ok := part["load_balancing"].(map[string]any); ok {
			for _, policy := range findPolicies(balancing["selection_policy"]) {
				found(policy, part, at)
			}
		}
		// what a server does first stands first, and what follows by name
		keys := slices.SortedFunc(maps.Keys(part), func(a, b string) int {
			switch {
			case a == b:
				return 0
			case a == "routes":
				return -1
			case b == "routes":
				return 1
			default:
				return cmp.Compare(a, b)
			}
		})
		for _, key := range keys {
			findPools(part[key], at, found)
		}
	}
}

// findPolicies returns the policies alive in a policy, which can be another one that
// falls back on it.
func findPolicies(policy any) []any {
	options, ok := policy.(map[string]any)
	if !ok {
		return nil
	}
	if options["policy"] == "alive" {
		return []any{options}
	}
	var found []any
	for _, key := range slices.Sorted(maps.Keys(options)) {
		found = append(found, findPolicies(options[key])...)
	}
	return found
}

// Default returns the name of a pool by the dial addresses of its upstreams, as they are
// configured, and by the dynamic source of others, if there is one.
func Default(dials []string, source json.RawMessage) string {
	names := make([]string, 0, len(dials)+1)
	for _, dial := range dials {
		names = append(names, monitor.DisplayAddress(dial))
	}
	if source != nil {
		var options map[string]any
		_ = json.Unmarshal(source, &options) // what is no JSON never loads
		names = append(names, "dynamic "+describeSource(options))
	}
	return shorten(strings.Join(names, " "))
}

// shorten shortens a text that is too long for a name. Different texts stay different.
func shorten(name string) string {
	if len(name) <= limits.MaxName {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	end := fmt.Sprintf("… #%x", sum[:4])
	return strings.ToValidUTF8(name[:limits.MaxName-len(end)], "") + end
}

// describeSource tells dynamic sources apart by what can be read, and else by a hash.
func describeSource(options map[string]any) string {
	kind, _ := options["source"].(string)
	description := kind
	for _, key := range []string{"service", "proto", "name", "port"} {
		if text, ok := options[key].(string); ok && text != "" {
			description += " " + monitor.DisplayAddress(text)
		}
	}
	if sources, ok := options["sources"].([]any); ok { // as multi has them
		parts := make([]string, 0, len(sources))
		for _, source := range sources {
			options, _ := source.(map[string]any)
			parts = append(parts, describeSource(options))
		}
		description += " (" + strings.Join(parts, ", ") + ")"
	}
	if description == kind && len(options) > 1 {
		// a hash of all of it, since which part is secret is not known
		encoded, _ := json.Marshal(options)
		sum := sha256.Sum256(encoded)
		description += fmt.Sprintf(" #%x", sum[:4])
	}
	return description
}
