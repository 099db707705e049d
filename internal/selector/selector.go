// SPDX-License-Identifier: Apache-2.0

// Package selector says which of Caddy's selection policies can pick among the upstreams
// that are alive. It knows policies by their names and JSON only, and loads none. It has
// no state and no locks.
package selector

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/suggest"
)

// Can reports whether a policy can pick among the upstreams alive.
func Can(policy string) bool { return slices.Contains(Known(), policy) }

// ErrCannot is the error for a policy that cannot.
func ErrCannot(policy string) error {
	return fmt.Errorf("select takes one of the selection policies %s; got '%s'%s", strings.Join(Known(), ", "), policy, suggest.DidYouMean(policy, Known()))
}

// CountsPositions reports whether any policy in the JSON of another one, such as its
// fallback, counts the positions of a pool. Those would be other upstreams whenever one
// goes down.
func CountsPositions(policy json.RawMessage) bool {
	var value any
	if err := json.Unmarshal(policy, &value); err != nil {
		return false // which never loads
	}
	return nests(value)
}

// nests reports whether any policy in a part of a config does.
func nests(value any) bool {
	switch value := value.(type) {
	case map[string]any:
		if value["policy"] == Positional {
			return true
		}
		for _, v := range value {
			if nests(v) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(value, nests)
	}
	return false
}

// Positional is the policy that counts the positions of a pool.
const Positional = "weighted_round_robin"

// ErrPositional is the error for a policy that uses it.
var ErrPositional = errors.New(Positional + " cannot be a fallback either: it counts the positions of the whole pool, and gets those alive only; weights are an option of lb_policy alive, without select")

// Known lists the policies that can pick among the upstreams alive: all
// but this one, and weighted_round_robin, which counts the positions of a pool.
func Known() []string {
	var names []string
	for _, info := range caddy.GetModules("http.reverse_proxy.selection_policies") {
		if name := info.ID.Name(); name != "alive" && name != Positional {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
