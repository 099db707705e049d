// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// What Prometheus is shown.
var (
	upDesc          = desc("upstream_up", "1 if an upstream passes a check, else 0; the worst of several checks with one label. No series in maintenance.", "upstream", "check")
	checksDesc      = desc("checks_total", "Results of checks: pass, fail, or void if only this process was the cause.", "upstream", "check", "result")
	transitionsDesc = desc("transitions_total", "Changes of status by a check.", "upstream", "check", "to")
	poolDesc        = desc("pool_upstreams", "Upstreams of a pool by state: up, suspect, ejected, down, unknown, draining or maintenance.", "pool", "state")
	failOpenDesc    = desc("pool_fail_open", "Whether a pool ignores health, because too few or none of its upstreams serve.", "pool")
	emptyDesc       = desc("pool_empty", "Whether requests find no upstream, because the dynamic source of the pool returns none. No series without a source.", "pool")
	selectionsDesc  = desc("selections_total", "How often an upstream was picked, retries included.", "pool", "upstream")
	accusationsDesc = desc("accusations_total", "How often a request spoke against an upstream, by cause: connect, outcome or stall.", "pool", "upstream", "cause")
	ejectionsDesc   = desc("ejections_total", "How often an upstream was ejected because its requests failed while its checks passed.", "pool", "upstream")
	heldDesc        = desc("held_requests_total", "Requests that waited for verdicts at a cold start.", "pool")
	queueDesc       = desc("queue_length", "Requests that wait for an upstream that is not full.", "pool")
	refusedDesc     = desc("queue_refused_total", "Requests that the queue refused, by reason: full or timeout.", "pool", "reason")

	checkDuration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "alive", Name: "check_duration_seconds",
		Help:    "How long checks took.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"kind"})
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName("caddy", "alive", name), help, labels, nil)
}

// Collector shows the metrics of the whole process. It is registered with each config
// anew. It is one collector for everything: two whose series have the same labels would
// be an error of the whole scrape.
type Collector struct {
	// Rows returns the upstreams of the newest running config. Recent results and
	// sentences are not needed. Texts must be valid UTF-8.
	Rows func() []view.Upstream
	// Empty returns the pools with a dynamic source, and whether requests find no upstream there,
	// because it returns none.
	Empty func() map[string]bool
}

// Register shows the metrics in the registry of a config.
func Register(registry *prometheus.Registry, c Collector) error {
	err := registry.Register(c)
	if known := new(prometheus.AlreadyRegisteredError); errors.As(err, known) {
		return nil
	}
	return err
}

// Describe sends the descriptions of all metrics.
func (Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{upDesc, checksDesc, transitionsDesc, poolDesc, failOpenDesc, emptyDesc, selectionsDesc, accusationsDesc, ejectionsDesc, heldDesc, queueDesc, refusedDesc} {
		ch <- d
	}
	checkDuration.Describe(ch)
	newQueueSeconds().Describe(ch)
}

// Collect sends all metrics.
func (c Collector) Collect(ch chan<- prometheus.Metric) {
	out := output(ch)
	out.checkCounters()
	out.poolCounters()
	out.gauges(c.Rows())
	for name, empty := range c.Empty() {
		out.flag(emptyDesc, empty, name)
	}
	checkDuration.Collect(ch)
}

// output is where metrics are sent.
type output chan<- prometheus.Metric

func (out output) counter(d *prometheus.Desc, n uint64, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

func (out output) gauge(d *prometheus.Desc, n int, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
}

// checkCounters sends the counters of checks.
func (out output) checkCounters() {
	all := make(map[checkKey]*checkCounts) // a copy: Range holds a lock, and the receiver may be slow
	shared.CheckCounters.Range(func(key, value any) bool {
		all[key.(checkKey)] = value.(*checkCounts)
		return true
	})
	for key, counts := range all {
		out.counter(checksDesc, counts.passed.Load(), key.upstream, key.check, "pass")
		out.counter(checksDesc, counts.failed.Load(), key.upstream, key.check, "fail")
		out.counter(checksDesc, counts.inconclusive.Load(), key.upstream, key.check, "void")
		out.counter(transitionsDesc, counts.up.Load(), key.upstream, key.check, "up")
		out.counter(transitionsDesc, counts.down.Load(), key.upstream, key.check, "down")
	}
}

// poolCounters sends the counters of pools.
func (out output) poolCounters() {
	var all []*PoolCounters // a copy, as above
	shared.PoolCounters.Range(func(_, value any) bool {
		all = append(all, value.(*PoolCounters))
		return true
	})
	for _, p := range all {
		out.counter(heldDesc, p.Held(), p.name)
		out.queue(p)
		traffic := p.traffic.read()
		for upstream, n := range p.Selections() { // those that are in the pool now
			out.counter(selectionsDesc, n, p.name, upstream)
			out.counter(ejectionsDesc, traffic[upstream].ejections, p.name, upstream)
			for cause, n := range traffic[upstream].accusations {
				out.counter(accusationsDesc, n, p.name, upstream, cause)
			}
		}
	}
}

// queue sends what is known of the queue of a pool, if it has one.
func (out output) queue(p *PoolCounters) {
	waiting, limit := p.Waiting()
	if limit == 0 {
		return
	}
	out.gauge(queueDesc, waiting, p.name)
	for reason, n := range p.queue.refusals() {
		out.counter(refusedDesc, n, p.name, reason)
	}
	out <- p.queue.waited
}

// flag sends a gauge that is 1 if something is so, otherwise 0.
func (out output) flag(d *prometheus.Desc, is bool, labels ...string) {
	n := 0
	if is {
		n = 1
	}
	out.gauge(d, n, labels...)
}

// gauges sends the gauges of upstreams and their pools.
func (out output) gauges(rows []view.Upstream) {
	up := make(map[checkKey]int)
	for i := range rows {
		row := &rows[i]
		if row.Gone || row.Stale || row.Mode == "maintenance" {
			continue // its status is no alarm, or there is none
		}
		for _, c := range row.Checks {
			key, value := checkKey{row.Upstream, c.Check}, 0
			if c.Status == "up" {
				value = 1
			}
			if known, seen := up[key]; seen {
				value = min(value, known)
			}
			up[key] = value
		}
	}
	for key, value := range up {
		out.gauge(upDesc, value, key.upstream, key.check)
	}
	for _, p := range view.Pools(rows) {
		for state, n := range p.States {
			out.gauge(poolDesc, n, p.Pool, state)
		}
		out.flag(failOpenDesc, p.FailOpen, p.Pool)
	}
}

// Interface guard
var _ prometheus.Collector = Collector{}
