// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"slices"
	"strings"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// EmptyPools returns the pools of the newest started config with a source that is
// the same for all requests, and whether requests find no upstream, because it returns none.
func EmptyPools() map[string]bool {
	empty := make(map[string]bool)
	for _, b := range Newest().All() {
		if b.source.list != nil {
			name := view.ValidText(b.Name())
			empty[name] = empty[name] || b.source.isOutage()
		}
	}
	return empty
}

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
		p.Empty = p.Empty || b.source.isOutage()
		if b.counters != nil {
			_, traffic, trend := b.counters.Traffic() // of all handlers of the name
			p.SetTraffic(traffic, trend)
		}
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
