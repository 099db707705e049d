// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/suggest"
)

// CanSelect reports whether a policy can pick among the upstreams alive.
func CanSelect(policy string) bool { return slices.Contains(Selectable(), policy) }

// ErrCannotSelect is the error for a policy that cannot.
func ErrCannotSelect(policy string) error {
	return fmt.Errorf("select takes one of the selection policies %s; got '%s'%s", strings.Join(Selectable(), ", "), policy, suggest.DidYouMean(policy, Selectable()))
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

// Selectable lists the policies that can pick among the upstreams alive: all
// but this one, and weighted_round_robin, which counts the positions of a pool.
func Selectable() []string {
	var names []string
	for _, info := range caddy.GetModules("http.reverse_proxy.selection_policies") {
		if name := info.ID.Name(); name != "alive" && name != Positional {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// pickBySelect has the policy of select pick among those of t that can take the request
// and were not tried by it. It may want none of them.
func (d *decision) pickBySelect(t *tier) *reverseproxy.Upstream {
	candidates := make(reverseproxy.UpstreamPool, 0, len(t.weights))
	for i, weight := range t.weights {
		if u := d.Upstreams[i]; weight > 0 && d.takes(t, u) {
			candidates = append(candidates, u)
		}
	}
	if len(candidates) == 0 {
		return nil
	}
	writer := d.Writer
	if writer == nil {
		writer = discard{} // under header and query there is none, and cookie wants one
	}
	return d.pool.handler.Rules.Select.Select(candidates, d.Request, writer)
}

// discard is a response that is not sent.
type discard struct{}

// Header returns fields that are not kept.
func (discard) Header() http.Header { return make(http.Header) }

// Write takes p and drops it.
func (discard) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader does nothing.
func (discard) WriteHeader(int) {}
