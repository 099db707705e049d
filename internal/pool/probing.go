// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

const (
	// maxProbedDown is how many upstreams that are down are probed at once for a request
	// that has tried all that serve. Further requests probe others: those whose checks
	// failed the longest ago come first.
	maxProbedDown = 32
	// hastenEvery is how often requests probe upstreams that may be back.
	hastenEvery = 10 * time.Millisecond
)

// probeDown probes upstreams that are down before their turn, since the last one that
// serves is accused or has failed a request.
func probeDown(now *Snapshot, upstreams reverseproxy.UpstreamPool, tried *Tried) {
	type candidate struct {
		*Member
		failed time.Time
	}
	var down []candidate
	for i, weight := range now.ready {
		if m := now.members[i]; weight > 0 && m.Status() == health.Down && !tried.has(upstreams[i]) {
			down = append(down, candidate{m, m.lastFailed()})
		}
	}
	slices.SortFunc(down, func(a, b candidate) int { return a.failed.Compare(b.failed) })
	for _, m := range down[:min(len(down), maxProbedDown)] {
		m.probe(health.Down)
	}
}

// probingSince is what the time of the last probes is measured from: a hundred years before
// the process starts, so that it is before all of them, on a virtual clock, too.
var probingSince = time.Now().Add(-100 * 365 * 24 * time.Hour)

// mayProbe reports whether a request may cause probes, because others have not done so a
// moment ago.
func mayProbe(p *Pool) bool { return isFirst(&p.lastProbed, hastenEvery) }

// isFirst reports whether an interval has passed since it was last true. The time is measured
// from probingSince.
func isFirst(last *atomic.Int64, every time.Duration) bool {
	at, before := int64(time.Since(probingSince)), last.Load()
	return at-before >= int64(every) && last.CompareAndSwap(before, at)
}

// hasten probes upstreams that the traffic has turned down a short while ago: none serves,
// and they may be back any moment. If all of the pool went that way, one pass brings each
// back.
func hasten(p *Pool, now *Snapshot) {
	if !mayProbe(p) {
		return
	}
	var convicted []*Member
	ready := 0
	for i, weight := range now.ready {
		if weight == 0 {
			continue
		}
		ready++
		if m := now.members[i]; m.isConvicted() {
			convicted = append(convicted, m)
		}
	}
	for _, m := range convicted[:min(len(convicted), maxProbedDown)] {
		for _, c := range m.Checks {
			c.Target.Hasten(len(convicted) == ready)
		}
	}
}
