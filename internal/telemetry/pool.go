// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

const (
	// recentFor is how long after it left a source may still pick: far longer than a
	// request that is in flight takes to pick.
	recentFor = 10 * time.Second
	// maxRecent bounds how many sources that left are kept.
	maxRecent = 64
)

// A Source picks upstreams of a pool. It is a pointer.
type Source interface {
	// Selections returns how often each upstream was picked, those that were not
	// included, by addresses that are valid UTF-8.
	Selections() map[string]uint64
	// QueueLength returns how many requests may wait for an upstream that is not full: 0 if
	// the source has no queue.
	QueueLength() int
}

// PoolCounters count for a pool, in all configs and handlers of the process that have
// one of that name.
type PoolCounters struct {
	name     string
	held     atomic.Uint64
	failOpen failOpenEvents
	traffic  trafficCounts
	queue    queueCounts
	rates    rates
	reports  *trafficReports

	mu      sync.Mutex // guards what follows; traffic.mu may be taken while it is held
	sources map[Source]struct{}
	joined  uint64            // how many sources have joined so far
	recent  []*leftSource     // sources that left a short while ago, the oldest first
	settled map[string]uint64 // selections of those that left before, by upstream
	shown   map[string]uint64 // what Selections returned last
	cleanUp *time.Timer       // nil until the first source leaves
}

// leftSource is a source that left its pool. Requests in flight may still pick by it,
// so it is read for a while longer.
type leftSource struct {
	Source
	at time.Time
}

// JoinPool adds a source to the pool of a name, and returns the counters of that pool.
// Leave must follow.
func JoinPool(name string, s Source) (*PoolCounters, error) {
	name = view.ValidText(name)
	found, _, err := shared.PoolCounters.LoadOrNew(name, func() (caddy.Destructor, error) { return newPoolCounters(name), nil })
	if err != nil {
		return nil, err
	}
	p := found.(*PoolCounters)
	p.failOpen.join(s)
	p.join(s)
	return p, nil
}

func newPoolCounters(name string) *PoolCounters {
	p := &PoolCounters{name: name, reports: newTrafficReports(), sources: make(map[Source]struct{}), settled: make(map[string]uint64)}
	p.queue.init(name)
	return p
}

// Leave undoes JoinPool. What the source counted stays while other sources have joined.
// If the pool ignores health no longer because the source left, report is called.
func (p *PoolCounters) Leave(s Source, report func(active bool)) error {
	p.failOpen.leave(s)
	p.failOpen.report(report)
	p.leave(s, time.Now())
	_, err := shared.PoolCounters.Delete(p.name)
	return err
}

// Destruct ends the counters when the last source has left.
func (p *PoolCounters) Destruct() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cleanUp != nil {
		p.cleanUp.Stop()
	}
	return nil
}

// CountHeld counts a request that waits for verdicts.
func (p *PoolCounters) CountHeld() { p.held.Add(1) }

// Held returns how many requests have waited for verdicts.
func (p *PoolCounters) Held() uint64 { return p.held.Load() }

// CountWaiting counts a request that waits for an upstream that is not full. ObserveWait must
// follow.
func (p *PoolCounters) CountWaiting() { p.queue.waiting.Add(1) }

// ObserveWait counts a request that has waited for an upstream that is not full, however the
// wait ended.
func (p *PoolCounters) ObserveWait(waited time.Duration) { p.queue.observe(waited) }

// CountRefused counts a request that the queue refused, by the reason: [RefusedFull] or
// [RefusedTimeout].
func (p *PoolCounters) CountRefused(reason string) { p.queue.refuse(reason) }

// Waiting returns how many requests wait, also those of sources that have left, and how many
// may: 0 if no source has a queue.
func (p *PoolCounters) Waiting() (n, limit int) {
	for _, s := range p.Sources() {
		limit += s.QueueLength()
	}
	return int(p.queue.waiting.Load()), limit
}

// CountAccusation counts a request that speaks against an upstream, by its cause: connect,
// outcome or stall.
func (p *PoolCounters) CountAccusation(upstream, cause string) {
	p.countTraffic(upstream, func(c *trafficCount) { c.accusations[cause]++ })
}

// CountEjection counts an ejection of an upstream.
func (p *PoolCounters) CountEjection(upstream string) {
	p.countTraffic(upstream, func(c *trafficCount) { c.ejections++ })
}

// countTraffic changes the count of an upstream. While many upstreams come and go, the
// counts of those that left are dropped.
func (p *PoolCounters) countTraffic(upstream string, change func(*trafficCount)) {
	if p.traffic.add(view.ValidText(upstream), change) {
		p.pruneTraffic()
	}
}

// pruneTraffic drops what traffic said of upstreams that no source has.
func (p *PoolCounters) pruneTraffic() {
	p.mu.Lock()
	joined := p.joined
	p.mu.Unlock()
	known, present := p.traffic.upstreams(), p.present()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.joined != joined {
		return // as in prune
	}
	p.traffic.forget(slices.DeleteFunc(known, func(upstream string) bool {
		_, there := present[upstream]
		return there
	}))
}

// ReportFailOpen changes by delta how many pools of a source ignore health. It calls report
// when the first pool of this name begins to, and when the last one ends. A source that
// has left counts for nothing.
func (p *PoolCounters) ReportFailOpen(s Source, delta int, report func(active bool)) {
	p.failOpen.add(s, delta)
	p.failOpen.report(report)
}

// FailOpen returns how many pools of this name ignore health.
func (p *PoolCounters) FailOpen() int { return p.failOpen.count() }

// Sources returns the sources that have joined and not left.
func (p *PoolCounters) Sources() []Source {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.sources))
}

func (p *PoolCounters) join(s Source) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sources[s] = struct{}{}
	p.joined++
}

func (p *PoolCounters) leave(s Source, now time.Time) {
	p.mu.Lock()
	delete(p.sources, s)
	p.recent = append(p.recent, &leftSource{s, now})
	if p.cleanUp == nil {
		p.cleanUp = time.AfterFunc(recentFor, func() { p.settle(time.Now()); p.prune(); p.pruneTraffic() })
	} else {
		p.cleanUp.Reset(recentFor)
	}
	p.mu.Unlock()
	p.settle(now)
}

// settle adds up the counts of sources that left long ago, and drops the sources.
func (p *PoolCounters) settle(now time.Time) {
	for _, left := range p.due(now) {
		counts := left.Selections()
		p.mu.Lock()
		if i := slices.Index(p.recent, left); i >= 0 { // else another goroutine has done it
			p.recent = slices.Delete(p.recent, i, i+1)
			for upstream, n := range counts {
				p.settled[upstream] += n
			}
		}
		p.mu.Unlock()
	}
}

// due returns the sources that left long ago, and those that are too many.
func (p *PoolCounters) due(now time.Time) []*leftSource {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := max(0, len(p.recent)-maxRecent)
	for n < len(p.recent) && now.Sub(p.recent[n].at) >= recentFor {
		n++
	}
	return slices.Clone(p.recent[:n])
}

// present returns the upstreams that sources have.
func (p *PoolCounters) present() map[string]uint64 {
	present := make(map[string]uint64)
	for _, s := range p.Sources() {
		add(present, s.Selections())
	}
	return present
}

// prune drops the counts of upstreams that no source has.
func (p *PoolCounters) prune() {
	p.mu.Lock()
	joined := p.joined
	p.mu.Unlock()
	present := p.present()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.joined != joined {
		return // a source that has joined meanwhile may have them; the next to leave prunes
	}
	gone := func(upstream string, _ uint64) bool {
		_, there := present[upstream]
		return !there
	}
	maps.DeleteFunc(p.settled, gone)
	maps.DeleteFunc(p.shown, gone)
}

// Selections returns how often the upstreams were picked that are in the pool now.
//
// A read leaves one trace, in p.shown: a source counts a ticket before it is known
// whether the pick follows it, and takes it back if not. A counter of Prometheus must not
// go back, since that means a restart. So an upstream never shows less than the read
// before has shown. The counts themselves do not change.
func (p *PoolCounters) Selections() map[string]uint64 {
	p.mu.Lock()
	sources := slices.Collect(maps.Keys(p.sources))
	recent, settled := slices.Clone(p.recent), maps.Clone(p.settled)
	p.mu.Unlock()
	all := make(map[string]uint64)
	for _, s := range sources {
		add(all, s.Selections())
	}
	addSettled := func(counts map[string]uint64) {
		for upstream, n := range counts {
			if _, there := all[upstream]; there {
				all[upstream] += n
			}
		}
	}
	addSettled(settled)
	for _, left := range recent {
		addSettled(left.Selections())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for upstream, n := range all {
		all[upstream] = max(n, p.shown[upstream])
	}
	p.shown = maps.Clone(all)
	return all
}

// add adds counts to a sum.
func add(sum, counts map[string]uint64) {
	for upstream, n := range counts {
		sum[upstream] += n
	}
}
