// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// inheritance gives targets that are new what is known of their upstream from checks
// that leave with this config, so that a changed check does not begin as if nothing
// were known. The worst status counts. Those that leave are the targets that run
// although nothing in the config watches them. Its policies come one after the
// other, and each can turn out to watch what seemed to leave.
type inheritance struct {
	stays   map[*health.Target]bool
	heirs   map[string][]*health.Target // those that are new, by upstream
	running map[string][]*health.Target // by upstream, before this config starts
}

// add takes the watches of one more policy into account.
func (h *inheritance) add(watches []*watch) {
	if h.stays == nil {
		h.stays = make(map[*health.Target]bool)
		h.heirs = make(map[string][]*health.Target)
		h.running = make(map[string][]*health.Target)
		targets.Range(func(key, value any) bool {
			if target := value.(sharedTarget).Target; target.Running() {
				upstream := key.(targetKey).upstream
				h.running[upstream] = append(h.running[upstream], target)
			}
			return true
		})
	}
	upstreams := make(map[string]bool)
	for _, w := range watches {
		upstream := w.key.upstream
		if !h.stays[w.target] && w.target.New() {
			h.heirs[upstream] = append(h.heirs[upstream], w.target)
		}
		h.stays[w.target] = true
		upstreams[upstream] = true
	}
	for upstream := range upstreams {
		if len(h.heirs[upstream]) > 0 && len(h.running[upstream]) > 0 {
			h.pass(upstream)
		}
	}
}

// pass has the heirs of an upstream inherit from what leaves.
func (h *inheritance) pass(upstream string) {
	var left legacy
	for _, target := range h.running[upstream] {
		if !h.stays[target] {
			left = left.worse(target)
		}
	}
	for _, target := range h.heirs[upstream] {
		target.Inherit(left.status, left.draining, left.since)
	}
}

// legacy is what is known of an upstream that loses a check.
type legacy struct {
	status   health.Status
	draining bool
	since    time.Time
}

// worse takes one more check into account. What has no verdict does not count.
func (l legacy) worse(target *health.Target) legacy {
	status, since := target.Status(), target.Since()
	switch {
	case status == health.Unknown || l.status == health.Down && status == health.Up:
		return l
	case status == health.Down && l.status != health.Down:
		return legacy{status: status, since: since}
	case since.Before(l.since):
		since = l.since // as long as all have been so
	}
	return legacy{status: status, draining: l.draining || target.Draining(), since: since}
}
