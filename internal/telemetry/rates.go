// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

const (
	// sampleInterval is how often counts are read for rates.
	sampleInterval = view.TrendInterval
	// minuteSamples is how many samples make the last minute.
	minuteSamples = int(time.Minute / sampleInterval)
	// rateSamples is how many samples make a rate.
	rateSamples = 2
)

// rates are what the counts of a pool have grown by lately. A read changes nothing: [Sample]
// is called at its interval, whether or not anything reads.
type rates struct {
	mu        sync.Mutex // guards what follows
	at        time.Time  // of the last sample, zero before the first
	samples   int        // how many there were, without the first
	lasted    [minuteSamples]time.Duration
	upstreams map[string]*upstreamRates
	all       [minuteSamples]growth // of the pool, with those of upstreams that have left
	trend     []view.TrendPoint     // the oldest first
}

// upstreamRates are those of one upstream.
type upstreamRates struct {
	seen  growth // the counts at the last sample
	grown [minuteSamples]growth
}

// growth is by how much counts have grown.
type growth struct{ picks, failures uint64 }

func (g *growth) add(other growth) {
	g.picks += other.picks
	g.failures += other.failures
}

// since returns the growth from an earlier count. Tickets that are taken back may make a count
// go back.
func (g growth) since(earlier growth) growth {
	return growth{g.picks - min(g.picks, earlier.picks), g.failures - min(g.failures, earlier.failures)}
}

// isDue reports whether it is time for a sample.
func (r *rates) isDue(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.isDueLocked(now)
}

// isDueLocked is isDue. r.mu must be held.
func (r *rates) isDueLocked(now time.Time) bool {
	return r.at.IsZero() || now.Sub(r.at) >= sampleInterval/2 // two configs sample for a moment
}

// sample takes in counts, unless another config has done so meanwhile. Those of an upstream that
// is new begin here.
func (r *rates) sample(now time.Time, counts map[string]growth) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.isDueLocked(now) {
		return
	}
	at, isFirst, lasted := r.samples%minuteSamples, r.at.IsZero(), now.Sub(r.at)
	r.at, r.lasted[at] = now, lasted
	var all growth
	upstreams := make(map[string]*upstreamRates, len(counts))
	for name, count := range counts {
		u := r.upstreams[name]
		if u == nil {
			u = &upstreamRates{seen: count}
		}
		u.grown[at] = count.since(u.seen)
		u.seen = count
		all.add(u.grown[at])
		upstreams[name] = u
	}
	r.upstreams, r.all[at] = upstreams, all // without those that have left
	if isFirst {
		return
	}
	if len(r.trend) == view.TrendLength {
		r.trend = slices.Delete(r.trend, 0, 1)
	}
	r.trend = append(r.trend, view.TrendPoint{Requests: float64(all.picks) / lasted.Seconds(), Failures: float64(all.failures) / lasted.Seconds()})
	r.samples++
}

// of returns the traffic of upstreams, and that of all together.
func (r *rates) of() (upstreams map[string]view.Traffic, pool view.Traffic, trend []view.TrendPoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	upstreams = make(map[string]view.Traffic, len(r.upstreams))
	for name, u := range r.upstreams {
		upstreams[name] = r.traffic(&u.grown)
	}
	return upstreams, r.traffic(&r.all), slices.Clone(r.trend)
}

// traffic sums up what has grown. r.mu must be held.
func (r *rates) traffic(grown *[minuteSamples]growth) view.Traffic {
	var recent, minute growth
	var recentFor time.Duration
	for back := range min(r.samples, minuteSamples) {
		i := (r.samples - 1 - back) % minuteSamples
		minute.add(grown[i])
		if back < rateSamples {
			recent.add(grown[i])
			recentFor += r.lasted[i]
		}
	}
	t := view.Traffic{Picks: minute.picks, Failures: minute.failures}
	if recentFor > 0 {
		t.PerSecond = float64(recent.picks) / recentFor.Seconds()
	}
	return t
}

// Traffic returns what requests did lately: for each upstream of the pool, and for all
// together. The trend is that of all.
func (p *PoolCounters) Traffic() (upstreams map[string]view.Traffic, pool view.Traffic, trend []view.TrendPoint) {
	return p.rates.of()
}

// sample reads the counts for rates.
func (p *PoolCounters) sample(now time.Time) {
	if !p.rates.isDue(now) {
		return
	}
	counts, traffic := make(map[string]growth), p.traffic.read()
	for upstream, picks := range p.Selections() {
		g := growth{picks: picks}
		for _, n := range traffic[upstream].accusations {
			g.failures += n
		}
		counts[upstream] = g
	}
	p.rates.sample(now, counts)
}

// sampleAll reads the counts of all pools.
func sampleAll(now time.Time) {
	var all []*PoolCounters // a copy: Range holds a lock
	shared.PoolCounters.Range(func(_, value any) bool {
		all = append(all, value.(*PoolCounters))
		return true
	})
	for _, p := range all {
		p.sample(now)
	}
}

// Sample reads the counts of all pools at each interval, until the context ends. Rates go on
// across configs.
func Sample(ctx context.Context) {
	ticker := time.NewTicker(sampleInterval)
	defer ticker.Stop()
	for {
		sampleAll(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
