// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"time"

	"github.com/caddy-alive/caddy-alive/internal/fleet"
	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// InFleet is a registry as the other members of its fleet see it.
type InFleet struct{ *Registry }

// NotUp returns the upstreams that are not up, by check: without those that requests no
// longer bring, and those that operators keep from being checked.
func (r InFleet) NotUp() []view.NotUp {
	var rows []view.NotUp
	now := time.Now()
	for _, t := range r.Targets() {
		v := t.Brief()
		if v.Status == health.Up {
			continue
		}
		row := view.NotUp{Upstream: t.Upstream, Check: t.Check, Status: v.Status.String(), Reason: v.LastFailed.Reason}
		if !v.Since.IsZero() {
			row.Lasts = now.Sub(v.Since).Seconds()
		}
		rows = append(rows, row)
	}
	return rows
}

// Targets returns what is probed, each once.
func (r InFleet) Targets() []fleet.Target {
	var targets []fleet.Target
	seen := make(map[*health.Target]bool)
	for _, b := range r.All() {
		for _, m := range b.monitors.all() {
			address := monitor.DisplayAddress(m.Upstream.Dial)
			if seen[m.Target] || b.isStale(m.Upstream.Dial) || r.Settings.Of(address).ModeNow() == settings.Maintenance {
				continue
			}
			seen[m.Target] = true
			targets = append(targets, fleet.Target{Upstream: address, Check: view.ValidText(m.Check.Label), Target: m.Target})
		}
	}
	return targets
}

// Requests returns what is known of the requests to an upstream, also those of configs that
// have ended.
func (r InFleet) Requests(upstream string) (known fleet.Requests) {
	for _, row := range list(r.Registry, Filter{Upstream: upstream, Brief: true}) {
		known.Bound += row.Bound
		known.Gets = known.Gets || row.EffectiveWeight > 0
	}
	known.InFlight = inFlight(upstream)
	return known
}

// Interface guard
var _ fleet.Local = InFleet{}
