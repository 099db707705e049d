// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

const (
	// maxDynamic is how many addresses of dynamic sources one policy watches.
	maxDynamic = 1024
	// maxPools is how many different answers of dynamic sources are kept ready.
	maxPools = 16
	// missingFor is how long requests have to see pools without an address until
	// it is forgotten.
	missingFor = 5 * time.Minute
	// idleFor is how long there has to be no request until all are.
	idleFor = time.Hour
	// sweepInterval is how often that is looked after.
	sweepInterval = 30 * time.Second
)

// dynamic has the upstreams that are not in the proxy's own list: requests bring
// them along, from a dynamic source. Each is watched from when it is first seen.
type dynamic struct {
	policy *Selection
	seed   maphash.Seed
	key    watchListKey
	list   *watchList

	// pools are the answers seen last. The slice is never changed, but replaced.
	pools atomic.Pointer[[]*dynamicPool]

	mu        sync.Mutex // guards what follows
	sightings map[string]*sighting
	lastUse   time.Time // when a request last brought a pool
	lastSweep time.Time
	batch     int  // how many sightings there were before the pool at hand
	warned    bool // that there are too many
	sweeping  bool
	closed    bool
	sweeper   sync.WaitGroup
}

// sighting is one address, and when it was seen.
type sighting struct {
	member  *member
	last    time.Time // when it was last in a pool
	missing time.Time // since when pools came without it, zero if they did not
}

// dynamicPool is one answer of a source: the same addresses in the same order.
type dynamicPool struct {
	hash    uint64
	dials   []string
	members []*member
	seen    atomic.Int64 // when a request last brought it, in Unix nanoseconds
	current atomic.Pointer[datedSnapshot]
	said    atomic.Int32 // the mood that was last logged
}

// datedSnapshot is a snapshot with what tells whether it still holds.
type datedSnapshot struct {
	*snapshot
	generation uint64
	until      time.Time // when a slow start goes on; zero if there is none
}

func newDynamic(s *Selection, key watchListKey, list *watchList) *dynamic {
	d := &dynamic{policy: s, seed: maphash.MakeSeed(), key: key, list: list, sightings: make(map[string]*sighting)}
	d.pools.Store(new([]*dynamicPool))
	return d
}

// resume watches what an earlier config with the same source did.
func (d *dynamic) resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.lastUse, d.lastSweep = now, now
	for _, dial := range d.list.addresses() {
		d.sight(dial, now)
	}
}

// snapshotOf returns who of a pool may get requests at this moment.
func (d *dynamic) snapshotOf(pool reverseproxy.UpstreamPool) *snapshot {
	now := time.Now()
	p := d.find(pool)
	p.seen.Store(now.UnixNano())

	generation := d.policy.generation.Load()
	if known := p.current.Load(); known != nil && known.generation == generation &&
		(known.until.IsZero() || now.Before(known.until)) {
		return known.snapshot
	}
	made := &datedSnapshot{snapshot: newSnapshot(p.members, d.policy.rules, now), generation: generation}
	if made.next > 0 {
		made.until = now.Add(made.next)
	}
	p.current.Store(made)
	d.policy.announce(&p.said, made.mood, func() []string { return aFew(p.dials) })
	return made.snapshot
}

// find returns the pool as it is known, after watching what is new in it.
func (d *dynamic) find(pool reverseproxy.UpstreamPool) *dynamicPool {
	var h maphash.Hash
	h.SetSeed(d.seed)
	for _, u := range pool {
		_, _ = h.WriteString(u.Dial)
		_ = h.WriteByte(0)
	}
	hash := h.Sum64()
	if p := d.known(pool, hash); p != nil {
		return p
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.known(pool, hash); p != nil {
		return p
	}
	now := time.Now()
	d.batch = len(d.sightings)
	p := &dynamicPool{hash: hash}
	for _, u := range pool {
		p.dials = append(p.dials, u.Dial)
		p.members = append(p.members, d.sight(u.Dial, now))
	}
	p.seen.Store(now.UnixNano())
	pools := append([]*dynamicPool{p}, *d.pools.Load()...)
	if len(pools) > maxPools {
		oldest := 1 // never the new one
		for i := range pools[1:] {
			if pools[i+1].seen.Load() < pools[oldest].seen.Load() {
				oldest = i + 1
			}
		}
		d.note(pools[oldest])
		pools = slices.Delete(pools, oldest, oldest+1)
	}
	d.pools.Store(&pools)
	d.lastUse = now
	if !d.sweeping && !d.closed {
		d.sweeping = true
		d.sweeper.Go(d.sweepUntilUnloaded)
	}
	return p
}

// known returns the pool of these addresses, nil if it is new.
func (d *dynamic) known(pool reverseproxy.UpstreamPool, hash uint64) *dynamicPool {
	for _, p := range *d.pools.Load() {
		if p.hash == hash && slices.EqualFunc(p.dials, pool, func(dial string, u *reverseproxy.Upstream) bool { return dial == u.Dial }) {
			return p
		}
	}
	return nil
}

// sight returns the member at an address, which is watched from now on if it can
// be. d.mu must be held.
func (d *dynamic) sight(dial string, now time.Time) *member {
	if m := d.policy.byDial[dial]; m != nil {
		return m // in the proxy's own list, too
	}
	if s := d.sightings[dial]; s != nil {
		s.last = now
		return s.member
	}
	unchecked := &member{weight: 1}
	if d.closed {
		return unchecked
	}
	if len(d.sightings) >= maxDynamic {
		if !d.warned {
			d.warned = true
			d.policy.logger.Warn("too many upstreams from a dynamic source: those past the limit are not checked and count as alive",
				zap.Int("limit", maxDynamic), zap.String("upstream", dial))
		}
		return unchecked
	}
	delay := time.Duration(len(d.sightings)-d.batch) * firstProbeSpacing
	watches, err := d.policy.watch(dial, delay)
	if err != nil {
		// Caddy itself will say so when a request gets it
		d.policy.logger.Debug("upstream from a dynamic source cannot be checked", zap.String("upstream", dial), zap.Error(err))
	}
	m := &member{watches: watches, weight: 1}
	d.sightings[dial] = &sighting{member: m, last: now}
	d.list.add(dial)
	return m
}

// memberAt returns the member that is watched at an address, nil if none is.
func (d *dynamic) memberAt(dial string) *member {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.sightings[dial]; s != nil {
		return s.member
	}
	return nil
}

// note remembers when the addresses of a pool were seen. d.mu must be held.
func (d *dynamic) note(p *dynamicPool) {
	seen := time.Unix(0, p.seen.Load())
	if seen.After(d.lastUse) {
		d.lastUse = seen
	}
	for _, dial := range p.dials {
		if s := d.sightings[dial]; s != nil && seen.After(s.last) {
			s.last = seen
		}
	}
}

// sweepUntilUnloaded forgets addresses until the config ends.
func (d *dynamic) sweepUntilUnloaded() {
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-d.policy.unloaded:
			return
		case <-ticker.C:
			d.sweep(time.Now())
		}
	}
}

// sweep forgets what requests have not seen for long.
func (d *dynamic) sweep(now time.Time) {
	d.mu.Lock()
	for _, p := range *d.pools.Load() {
		d.note(p)
	}
	idle := now.Sub(d.lastUse) >= idleFor
	used := d.lastUse.After(d.lastSweep)
	gone := make(map[*member]bool)
	for dial, s := range d.sightings {
		switch {
		case d.closed: // the list is no longer this policy's business
			continue
		case !idle && s.last.After(d.lastSweep):
			s.missing = time.Time{}
		case !idle && used && s.missing.IsZero():
			s.missing = d.lastSweep
		}
		if idle || !s.missing.IsZero() && d.lastUse.Sub(s.missing) >= missingFor {
			gone[s.member] = true
			delete(d.sightings, dial)
			d.list.remove(dial)
		}
	}
	d.lastSweep = now
	if len(gone) > 0 {
		pools := slices.DeleteFunc(slices.Clone(*d.pools.Load()), func(p *dynamicPool) bool {
			return slices.ContainsFunc(p.members, func(m *member) bool { return gone[m] })
		})
		d.pools.Store(&pools)
	}
	d.mu.Unlock()
	for m := range gone {
		d.policy.unwatch(m.watches)
	}
}

// close ends it: nothing is watched any more that was not before.
func (d *dynamic) close() {
	d.mu.Lock()
	d.closed = true
	for dial := range d.sightings {
		d.list.remove(dial)
	}
	d.mu.Unlock()
	d.sweeper.Wait()
}

// watchLists are the addresses that policies watch which have the same source
// and checks, by both: what one knows, the same policy of the next config goes on
// watching.
var watchLists = caddy.NewUsagePool()

// watchListKey is what tells watch lists apart: where upstreams come from, and
// how they are checked.
type watchListKey struct{ source, checks string }

// watchList is a set of addresses.
type watchList struct {
	mu  sync.Mutex
	set map[string]int // how many policies watch it
}

// Destruct has nothing to do.
func (*watchList) Destruct() error { return nil }

func (l *watchList) add(dial string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set[dial]++
}

func (l *watchList) remove(dial string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.set[dial]--; l.set[dial] <= 0 {
		delete(l.set, dial)
	}
}

func (l *watchList) addresses() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.set))
}
