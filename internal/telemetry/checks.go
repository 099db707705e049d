// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// checkKey tells apart the metrics of checks. It is the key of shared.CheckCounters.
type checkKey struct{ upstream, check string }

// checkCounts are the counts of a check of an upstream, for all configs and handlers of
// the process. It is the value of shared.CheckCounters.
type checkCounts struct{ passed, failed, inconclusive, up, down atomic.Uint64 }

// Destruct has nothing to do.
func (*checkCounts) Destruct() error { return nil }

// CheckCounters count what a check of an upstream finds. All that have the same upstream
// and label count together, across handlers and configs.
type CheckCounters struct {
	*checkCounts
	key      checkKey
	duration prometheus.Observer
}

// NewCheckCounters returns the counters of a check of an upstream: those that are in use,
// or new ones. Close must follow.
func NewCheckCounters(upstream, label, kind string) (*CheckCounters, error) {
	key := checkKey{view.ValidText(upstream), view.ValidText(label)}
	counts, _, err := shared.CheckCounters.LoadOrNew(key, func() (caddy.Destructor, error) { return new(checkCounts), nil })
	if err != nil {
		return nil, err
	}
	return &CheckCounters{counts.(*checkCounts), key, checkDuration.WithLabelValues(kind)}, nil
}

// Close ends the use of the counters. The last user that releases them removes their
// metrics.
func (c *CheckCounters) Close() error {
	_, err := shared.CheckCounters.Delete(c.key)
	return err
}

// Probed counts a result.
func (c *CheckCounters) Probed(r health.Result) {
	if r.Passed() {
		c.passed.Add(1)
	} else {
		c.failed.Add(1)
	}
	c.duration.Observe(r.Took.Seconds())
}

// Inconclusive counts a result that says something about this process only.
func (c *CheckCounters) Inconclusive() { c.inconclusive.Add(1) }

// Changed counts a change of status.
func (c *CheckCounters) Changed(t health.Transition) {
	switch {
	case t.From == t.To:
	case t.To == health.Up:
		c.up.Add(1)
	default:
		c.down.Add(1)
	}
}
