// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The reasons for which a queue refuses a request.
const (
	RefusedFull    = "full"    // as many requests wait as may
	RefusedTimeout = "timeout" // the request has waited for as long as it may
)

// queueCounts count the requests of a pool that wait for an upstream that is not full.
type queueCounts struct {
	waiting atomic.Int64 // requests that wait now, in all configs
	waited  prometheus.Histogram

	mu      sync.Mutex // guards refused
	refused map[string]uint64
}

// newQueueSeconds returns a histogram of times waited. Each pool has one of its own, so that
// its series goes away with it.
func newQueueSeconds() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "alive", Name: "queue_seconds",
		Help:    "How long requests waited for an upstream that was not full, however the wait ended.",
		Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"pool"})
}

func (q *queueCounts) init(pool string) {
	q.waited = newQueueSeconds().WithLabelValues(pool).(prometheus.Histogram)
	q.refused = map[string]uint64{RefusedFull: 0, RefusedTimeout: 0}
}

// observe counts a wait that has ended.
func (q *queueCounts) observe(waited time.Duration) {
	q.waiting.Add(-1)
	q.waited.Observe(waited.Seconds())
}

// refuse counts a refusal.
func (q *queueCounts) refuse(reason string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.refused[reason]++
}

// refusals returns how many requests were refused, by reason.
func (q *queueCounts) refusals() map[string]uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return maps.Clone(q.refused)
}
