// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/rotation"
)

// snapshot is who may get requests, frozen until a verdict changes.
type snapshot struct {
	serving tier // all checks passed, or unchecked
	unknown tier // no verdict yet
	all     tier // everybody
	// superseded is closed when a newer snapshot replaced this one.
	superseded chan struct{}
}

// tier is a part of a pool, in the order in which its members get requests.
type tier struct {
	pool  reverseproxy.UpstreamPool
	order rotation.Order
}

func (t *tier) empty() bool { return t.order.Len() == 0 }

func (t *tier) at(ticket uint64) *reverseproxy.Upstream { return t.pool[t.order.At(ticket)] }

// lastResort reports whether nobody serves and nobody is left to wait for.
func (s *snapshot) lastResort() bool {
	return s.serving.empty() && s.unknown.empty() && !s.all.empty()
}

// view returns a snapshot of a pool.
func (s *Selection) view(pool reverseproxy.UpstreamPool) *snapshot {
	serving, unknown, all := make([]int, len(pool)), make([]int, len(pool)), make([]int, len(pool))
	own := s.owns(pool)
	for i, u := range pool {
		all[i] = 1
		var watches []*watch
		if own {
			watches = s.members[i]
		} else {
			watches = s.watched[u.Dial]
		}
		switch statusOf(watches) {
		case health.Up:
			serving[i] = 1
		case health.Unknown:
			unknown[i] = 1
		case health.Down:
		}
	}
	return &snapshot{
		serving:    tier{pool, rotation.New(serving)},
		unknown:    tier{pool, rotation.New(unknown)},
		all:        tier{pool, rotation.New(all)},
		superseded: make(chan struct{}),
	}
}

// statusOf is that of an upstream: down if any of its checks is, up if all are.
// What is not checked is up.
func statusOf(watches []*watch) health.Status {
	status := health.Up
	for _, w := range watches {
		switch w.target.Status() {
		case health.Down:
			return health.Down
		case health.Unknown:
			status = health.Unknown
		case health.Up:
		}
	}
	return status
}
