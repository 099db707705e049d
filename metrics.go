// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// seriesKey is what metrics of checks are told apart by.
type seriesKey struct{ upstream, check string }

// newSeriesKey returns a key whose parts can be labels.
func newSeriesKey(upstream, check string) seriesKey {
	return seriesKey{view.ValidText(upstream), view.ValidText(check)}
}

// checkTally counts what comes of a check of an upstream, for all configs and
// handlers of the process.
type checkTally struct{ passed, failed, void, up, down atomic.Uint64 }

// Destruct has nothing to do.
func (*checkTally) Destruct() error { return nil }

// newCheckTally finds or makes the tally of a check.
func newCheckTally(key seriesKey) (*checkTally, error) {
	tally, _, err := shared.CheckCounters.LoadOrNew(key, func() (caddy.Destructor, error) { return new(checkTally), nil })
	if err != nil {
		return nil, err
	}
	return tally.(*checkTally), nil
}

// probed counts a result.
func (t *checkTally) probed(duration prometheus.Observer, r health.Result) {
	if r.Passed() {
		t.passed.Add(1)
	} else {
		t.failed.Add(1)
	}
	duration.Observe(r.Took.Seconds())
}

// flipped counts a change of status.
func (t *checkTally) flipped(change health.Transition) {
	switch {
	case change.From == change.To:
	case change.To == health.Up:
		t.up.Add(1)
	default:
		t.down.Add(1)
	}
}

// poolTally counts what comes of a pool, for all configs and handlers of the process
// that have one of that name.
type poolTally struct {
	held     atomic.Uint64
	failOpen failOpenTally

	mu       sync.Mutex // guards what follows
	policies map[*Selection]bool
	ending   []ended           // policies that ended a short while ago, the oldest first
	ended    map[string]uint64 // selections of those that ended before, by upstream
	told     map[string]uint64 // what was told last
}

// Destruct has nothing to do.
func (*poolTally) Destruct() error { return nil }

// joinPool has s count for the pool of its name.
func (s *Selection) joinPool() error {
	found, _, err := shared.PoolCounters.LoadOrNew(s.pool, func() (caddy.Destructor, error) {
		return &poolTally{policies: make(map[*Selection]bool), ended: make(map[string]uint64)}, nil
	})
	if err != nil {
		return err
	}
	s.tally = found.(*poolTally)
	s.tally.mu.Lock()
	defer s.tally.mu.Unlock()
	s.tally.policies[s] = true
	s.tally.failOpen.join(s)
	return nil
}

// leavePool undoes joinPool. What s counted stays, while others count.
func (s *Selection) leavePool() error {
	if s.tally == nil {
		return nil
	}
	s.tally.failOpen.leave(s)
	s.tally.failOpen.tell(s.tellLeft)
	s.tally.end(s, time.Now())
	_, err := shared.PoolCounters.Delete(s.pool)
	return err
}

// tellLeft tells that a pool ignores health no longer, since a config ended: in the
// config that runs on. At the end of the last one nothing is left to tell it to.
func (s *Selection) tellLeft(active bool) {
	if newest := newestApp(); newest != s.app || newest.announcer().heir() != nil {
		newest.announcer().failedOpen(s.pool, active)
	}
}

// ended is a policy that left its pool. Requests that are in flight may still pick by it,
// so it is counted a while later.
type ended struct {
	*Selection
	at time.Time
}

// end has a policy count as one of the past.
func (t *poolTally) end(s *Selection, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.policies, s)
	t.ending = append(t.ending, ended{s, now})
	t.settle(now)
}

// settle adds up what policies have counted that ended long ago. t.mu must be held.
func (t *poolTally) settle(now time.Time) {
	due := max(0, len(t.ending)-maxRetired)
	for due < len(t.ending) && now.Sub(t.ending[due].at) > retiredFor {
		due++
	}
	for _, e := range t.ending[:due] {
		for upstream, n := range e.selections() {
			t.ended[upstream] += n
		}
	}
	t.ending = slices.Delete(t.ending, 0, due)
}

// selections returns how often the upstreams were picked that are in the pool now.
func (t *poolTally) selections() map[string]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settle(time.Now())
	all := make(map[string]uint64)
	defer func() { t.told = all }()
	for s := range t.policies {
		for upstream, n := range s.selections() {
			all[upstream] += n
		}
	}
	for upstream := range t.ended {
		if _, there := all[upstream]; !there {
			delete(t.ended, upstream)
		}
	}
	add := func(past map[string]uint64) {
		for upstream, n := range past {
			if _, there := all[upstream]; there {
				all[upstream] += n
			}
		}
	}
	add(t.ended)
	for _, e := range t.ending {
		add(e.selections())
	}
	// a ticket counts before it is known whether it is followed, and a counter must not
	// go back
	for upstream, n := range all {
		all[upstream] = max(n, t.told[upstream])
	}
	return all
}

// What Prometheus is shown. Everything is one collector, registered with every
// config anew: labels of two could be the same, and that would be an error for all.
var (
	upDesc          = desc("upstream_up", "Whether an upstream passes a check, the worst if several have its label. None in maintenance, for nothing is checked.", "upstream", "check")
	checksDesc      = desc("checks_total", "Results of checks: pass, fail, or void for one that says something about this process only and does not count.", "upstream", "check", "result")
	transitionsDesc = desc("transitions_total", "Changes of status by a check.", "upstream", "check", "to")
	poolDesc        = desc("pool_upstreams", "Upstreams of a pool by state: up, down, unknown, draining or maintenance.", "pool", "state")
	failOpenDesc    = desc("pool_fail_open", "Whether a pool ignores health, for too few or none of its upstreams serve.", "pool")
	selectionsDesc  = desc("selections_total", "How often an upstream was picked, retries included.", "pool", "upstream")
	heldDesc        = desc("held_requests_total", "Requests that waited for verdicts at a cold start.", "pool")

	checkDuration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "alive", Name: "check_duration_seconds",
		Help:    "How long checks took.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"kind"})
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName("caddy", "alive", name), help, labels, nil)
}

// collector shows what the newest started config does.
type collector struct{}

// Describe sends what there can be.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{upDesc, checksDesc, transitionsDesc, poolDesc, failOpenDesc, selectionsDesc, heldDesc} {
		ch <- d
	}
	checkDuration.Describe(ch)
}

// Collect sends what there is.
func (collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	shared.CheckCounters.Range(func(key, value any) bool {
		k, t := key.(seriesKey), value.(*checkTally)
		counter(checksDesc, t.passed.Load(), k.upstream, k.check, "pass")
		counter(checksDesc, t.failed.Load(), k.upstream, k.check, "fail")
		counter(checksDesc, t.void.Load(), k.upstream, k.check, "void")
		counter(transitionsDesc, t.up.Load(), k.upstream, k.check, "up")
		counter(transitionsDesc, t.down.Load(), k.upstream, k.check, "down")
		return true
	})
	shared.PoolCounters.Range(func(key, value any) bool {
		pool, t := key.(string), value.(*poolTally)
		counter(heldDesc, t.held.Load(), pool)
		for upstream, n := range t.selections() {
			counter(selectionsDesc, n, pool, upstream)
		}
		return true
	})

	up := make(map[seriesKey]int)
	states := make(map[string]map[string]int)
	failOpen := make(map[string]int)
	for _, e := range overview(filter{brief: true}) {
		if e.Gone {
			continue
		}
		if states[e.Pool] == nil {
			states[e.Pool] = map[string]int{"up": 0, "down": 0, "unknown": 0, "draining": 0, "maintenance": 0}
			failOpen[e.Pool] = 0
		}
		if !e.Past {
			states[e.Pool][e.State()]++
		}
		if e.FailOpen {
			failOpen[e.Pool] = 1
		}
		if e.Past || e.Mode == settings.Maintenance {
			continue // its status is no alarm, or there is none
		}
		for _, c := range e.Checks {
			key, value := seriesKey{e.Upstream, c.Check}, 0
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
		gauge(upDesc, value, key.upstream, key.check)
	}
	for pool, counts := range states {
		for state, n := range counts {
			gauge(poolDesc, n, pool, state)
		}
		gauge(failOpenDesc, failOpen[pool], pool)
	}
	checkDuration.Collect(ch)
}

// registerMetrics shows the metrics in the registry of a config.
func registerMetrics(registry *prometheus.Registry) error {
	err := registry.Register(collector{})
	if known := new(prometheus.AlreadyRegisteredError); errors.As(err, known) {
		return nil
	}
	return err
}

// Interface guard
var _ prometheus.Collector = collector{}
