// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"slices"
	"strings"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// listPools returns the pools of a registry by name, also those without upstreams at present.
// Handlers of one name are one pool.
func listPools(r *Registry, rows []view.Upstream) []view.Pool {
	pools := view.Pools(rows)
	at := make(map[string]int, len(pools))
	for i := range pools {
		at[pools[i].Pool] = i
	}
	for _, b := range r.All() {
		i, known := at[b.Name()]
		if !known {
			i = len(pools)
			at[b.Name()] = i
			pools = append(pools, view.NewPool(b.Name()))
		}
		p := &pools[i]
		if limit := b.config.Rules.Queue.Length; limit > 0 {
			if p.Queue == nil {
				waiting, _ := b.counters.Waiting() // in all handlers of the name
				p.Queue = &view.Queue{Waiting: waiting}
			}
			p.Queue.Limit += limit
		}
	}
	slices.SortFunc(pools, func(a, b view.Pool) int { return strings.Compare(a.Pool, b.Pool) })
	return pools
}
