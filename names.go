// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
)

// provisionName checks the name of the pool, or finds one.
func (s *Selection) provisionName(ctx caddy.Context) error {
	if err := limits.Name(s.Name); err != nil {
		return err
	}
	if s.pool = s.Name; s.pool == "" {
		s.pool = s.app.names.of(ctx, s)
	}
	s.rules.operations, s.rules.pool = s.app.operations, s.pool
	return nil
}

// defaultName is the name of a pool by its upstreams: as they are configured, and
// where others come from.
func (s *Selection) defaultName() string {
	names := make([]string, 0, len(s.upstreams))
	for _, u := range s.upstreams {
		names = append(names, monitor.DisplayAddress(u.Dial))
	}
	if source := s.proxy.DynamicUpstreamsRaw; source != nil {
		names = append(names, sourceName(source))
	}
	return limits.ShortName(strings.Join(names, " "))
}

// sourceName names a dynamic source by its kind and what it asks for.
func sourceName(source json.RawMessage) string {
	var options map[string]any
	_ = json.Unmarshal(source, &options) // what is no JSON never loads
	return "dynamic " + describeSource(options)
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

// poolNames gives names to the pools of one config that have none. Pools of the same
// upstreams that differ in which get requests are numbered in the order of the config,
// and not in that in which Caddy provisions them, which differs from one load to the
// next: so each keeps its number, and with it the weights that were set at run time.
type poolNames struct {
	mu    sync.Mutex
	apps  map[*caddyhttp.App]bool // whose config was read
	given map[string]bool         // names that the config gives
	// pools are what tells pools apart, by the name that they would have
	pools map[string][]poolKey
}

// poolKey tells whether two pools of the same upstreams are the same.
type poolKey [sha256.Size]byte

// of returns the name of a pool.
func (n *poolNames) of(ctx caddy.Context, s *Selection) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.read(ctx)
	return n.add(s)
}

// add returns the name of a pool, which may be new.
func (n *poolNames) add(s *Selection) string {
	name, key := s.defaultName(), s.poolKey()
	at := slices.Index(n.pools[name], key)
	if at < 0 {
		at = len(n.pools[name])
		n.pools[name] = append(n.pools[name], key)
	}
	if at == 0 {
		return name
	}
	numbered := ""
	for number := 2; at > 0; number++ {
		if numbered = fmt.Sprintf("%s #%d", name, number); !n.given[numbered] {
			at--
		}
	}
	return numbered
}

// read finds the pools of the whole config before the first one gets its name. At
// that moment, everything from the first one on is still to be loaded.
func (n *poolNames) read(ctx caddy.Context) {
	if n.apps == nil {
		n.apps, n.given, n.pools = make(map[*caddyhttp.App]bool), make(map[string]bool), make(map[string][]poolKey)
	}
	for _, m := range ctx.Modules() {
		app, ok := m.(*caddyhttp.App)
		if !ok || n.apps[app] {
			continue
		}
		n.apps[app] = true
		if encoded, err := json.Marshal(app); err == nil {
			var found []*Selection
			findPools(decode(encoded), &found)
			for _, s := range found {
				n.given[s.Name] = true
			}
			for _, s := range found {
				if s.Name == "" {
					n.add(s)
				}
			}
		}
	}
}

// decode returns JSON as maps, lists and so on.
func decode(encoded []byte) any {
	decoder := json.NewDecoder(bytes.NewReader(encoded))
	decoder.UseNumber()
	var value any
	_ = decoder.Decode(&value)
	return value
}

// findPools appends the policies that a part of a config has, with what is
// configured of their proxies.
func findPools(part any, found *[]*Selection) {
	switch part := part.(type) {
	case []any:
		for _, element := range part {
			findPools(element, found)
		}
	case map[string]any:
		if balancing, ok := part["load_balancing"].(map[string]any); ok {
			for _, policy := range findPolicies(balancing["selection_policy"]) {
				s, proxy := new(Selection), new(reverseproxy.Handler)
				if convert(policy, s) == nil && convert(part, proxy) == nil {
					s.proxy, s.upstreams = proxy, proxy.Upstreams
					*found = append(*found, s)
				}
			}
		}
		// what a server does first stands first, and what follows by name
		keys := slices.SortedFunc(maps.Keys(part), func(a, b string) int {
			return cmp.Or(cmp.Compare(index(a != "routes"), index(b != "routes")), cmp.Compare(a, b))
		})
		for _, key := range keys {
			findPools(part[key], found)
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

// convert turns decoded JSON into a value of a type of its own.
func convert(decoded, value any) error {
	encoded, err := json.Marshal(decoded)
	if err != nil {
		return err
	}
	return json.Unmarshal(encoded, value)
}

// poolKey returns what tells the pool apart from others of the same upstreams: all
// that is configured about which upstreams get requests. Nothing must be provisioned yet.
func (s *Selection) poolKey() poolKey {
	type check struct {
		Probe    string
		Settings any
		Where    []any
	}
	different := struct {
		Checks   []string
		Weights  map[string]string
		Backups  []string
		FailOpen string
		Select   any
		Source   any
		Limits   []int
		Health   *reverseproxy.HealthChecks
		Breaker  any
	}{
		FailOpen: cmp.Or(s.FailOpen, "none_up"),
		Select:   decode(s.SelectRaw),
		Source:   decode(s.proxy.DynamicUpstreamsRaw),
		Health:   s.proxy.HealthChecks,
		Breaker:  decode(s.proxy.CBRaw),
		Weights:  make(map[string]string),
	}
	for _, c := range s.Checks {
		if c == nil {
			continue // an error, as soon as it is provisioned
		}
		_, probe, _ := identify(c.ProbeRaw)
		settings, _ := c.resolve()
		encoded, _ := json.Marshal(check{probe, settings, []any{c.Port, c.Address, c.ProxyProtocol, c.KeepConnection}})
		different.Checks = append(different.Checks, string(encoded))
	}
	if len(s.Checks) == 0 {
		return (&Selection{
			Checks: []*HealthCheck{defaultCheck()}, Weights: s.Weights, Backups: s.Backups, FailOpen: s.FailOpen,
			SelectRaw: s.SelectRaw, proxy: s.proxy, upstreams: s.upstreams,
		}).poolKey()
	}
	slices.Sort(different.Checks)
	for name, weight := range s.Weights {
		share := string(weight)
		if number, err := weight.resolve(); err == nil {
			share = fmt.Sprint(number)
		}
		for _, address := range addressesOf(name) {
			if share != "1" {
				different.Weights[address] = share
			}
		}
	}
	for _, name := range s.Backups {
		different.Backups = append(different.Backups, addressesOf(name)...)
	}
	slices.Sort(different.Backups)
	different.Backups = slices.Compact(different.Backups)
	for _, u := range s.upstreams {
		different.Limits = append(different.Limits, u.MaxRequests)
	}
	encoded, _ := json.Marshal(different) // what cannot be encoded was never decoded
	return sha256.Sum256(encoded)
}

// addressesOf returns the addresses that an option means by a name.
func addressesOf(name string) []string {
	name = monitor.DisplayAddress(name)
	if dials, err := dialAddresses(name); err == nil {
		return dials
	}
	return []string{name} // an error, as soon as it is provisioned
}
