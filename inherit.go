// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// inherit gives targets that are new what is known of their upstream from checks
// that leave with this config, so that a changed check does not begin as if
// nothing were known. The worst status counts. Those that leave are the targets
// that run although none of the policies watches them: those of a config that come
// one after the other, so it is called again for each, with all there are by then.
func inherit(policies []*Selection) {
	stays := make(map[*health.Target]bool)
	fresh := make(map[string][]*health.Target) // by upstream
	for _, s := range policies {
		for _, w := range s.allWatches() {
			if !stays[w.target] && w.target.New() {
				fresh[w.key.upstream] = append(fresh[w.key.upstream], w.target)
			}
			stays[w.target] = true
		}
	}
	if len(fresh) == 0 {
		return
	}
	left := make(map[string]legacy)
	targets.Range(func(key, value any) bool {
		upstream, target := key.(targetKey).upstream, value.(sharedTarget).Target
		if fresh[upstream] != nil && !stays[target] && target.Running() {
			left[upstream] = left[upstream].worse(target)
		}
		return true
	})
	for upstream, news := range fresh {
		for _, target := range news {
			l := left[upstream]
			target.Inherit(l.status, l.draining, l.since)
		}
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
