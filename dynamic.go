// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"cmp"
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
	// maxPools is how many different answers of dynamic sources are kept ready,
	// and maxPooled how many addresses they may have in all if they are several.
	maxPools  = 256
	maxPooled = 1 << 16
	// pastAfter is how long requests have to bring other pools until one is past: a
	// deployment that replaces every upstream leaves such behind, all of them dead.
	pastAfter = time.Minute
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
	key    string // of the list
	list   *watchList

	// pools are the answers seen last, by hash. The map is never changed, but
	// replaced.
	pools atomic.Pointer[map[uint64]*dynamicPool]
	// unchecked stands for all addresses past the limit
	unchecked *member

	mu        sync.Mutex // guards what follows
	sightings map[string]*sighting
	said      map[uint64]*atomic.Int32 // the mood last logged, by the addresses in any order
	lastUse   time.Time                // when a request last brought a pool
	lastSweep time.Time
	batch     int  // how many sightings there were before the pool at hand
	together  bool // nothing was known of any address of the pool at hand
	warned    bool // that there are too many
	sweeping  bool
	closed    bool

	stop    chan struct{} // closed with closed
	sweeper sync.WaitGroup
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
	// upstreams are those of a request that brought it
	upstreams atomic.Pointer[reverseproxy.UpstreamPool]
	seen      atomic.Int64 // when a request last brought it, in Unix nanoseconds
	making    sync.Mutex   // held by whoever makes a snapshot
	current   atomic.Pointer[datedSnapshot]
	said      *atomic.Int32 // the mood last logged, shared by all orders of the addresses
}

// datedSnapshot is a snapshot with what tells whether it still holds.
type datedSnapshot struct {
	*snapshot
	generation uint64
	until      time.Time // when a slow start goes on; zero if there is none
}

func newDynamic(s *Selection, key string, list *watchList) *dynamic {
	d := &dynamic{
		policy: s, seed: maphash.MakeSeed(), key: key, list: list, stop: make(chan struct{}),
		unchecked: &member{weight: 1},
		sightings: make(map[string]*sighting), said: make(map[uint64]*atomic.Int32),
	}
	d.pools.Store(new(map[uint64]*dynamicPool))
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
	d.startSweeper()
}

// snapshotOf returns who of a pool may get requests at this moment.
func (d *dynamic) snapshotOf(pool reverseproxy.UpstreamPool) *snapshot {
	p := d.find(pool)
	p.seen.Store(time.Now().UnixNano())
	p.keepUpstreams(pool)
	return d.snapshotNow(p)
}

// keepUpstreams keeps the upstreams of a request if those kept are outdated: Caddy
// forgets what it counts of a host that had no request for a while, and counts anew.
func (p *dynamicPool) keepUpstreams(pool reverseproxy.UpstreamPool) {
	sameHost := func(a, b *reverseproxy.Upstream) bool { return a.Host == b.Host }
	if !slices.EqualFunc(*p.upstreams.Load(), pool, sameHost) {
		kept := slices.Clone(pool)
		p.upstreams.Store(&kept)
	}
}

// lately returns the pools that requests brought, the last one first, and how many of
// them are not past.
func (d *dynamic) lately() (pools []*dynamicPool, present int) {
	seen := make(map[*dynamicPool]int64) // requests may bring one meanwhile
	for _, p := range *d.pools.Load() {
		pools = append(pools, p)
		seen[p] = p.seen.Load()
	}
	slices.SortFunc(pools, func(a, b *dynamicPool) int { return cmp.Compare(seen[b], seen[a]) })
	for present < len(pools) && seen[pools[0]]-seen[pools[present]] < int64(pastAfter) {
		present++
	}
	return pools, present
}

// snapshotNow returns who of a known pool may get requests at this moment.
func (d *dynamic) snapshotNow(p *dynamicPool) *snapshot {
	now := time.Now()
	known := p.current.Load()
	if d.holds(known, now) {
		return known.snapshot
	}
	if known == nil {
		p.making.Lock()
	} else if !p.making.TryLock() {
		return known.snapshot // somebody is at it; until then the old one does
	}
	defer p.making.Unlock()
	if known = p.current.Load(); d.holds(known, now) {
		return known.snapshot
	}
	generation := d.policy.generation.Load()
	made := &datedSnapshot{snapshot: newSnapshot(p.members, d.policy.rules, now), generation: generation}
	made.said = p.said
	if made.next > 0 {
		made.until = now.Add(made.next)
	}
	var before *snapshot
	if known != nil {
		before = known.snapshot
	}
	d.policy.succeed(made.snapshot, before, func() { p.current.Store(made) })
	d.policy.announce(p.said, func() situation { return d.policy.situation(p.current.Load().snapshot, *p.upstreams.Load()) }, func() []string { return aFew(p.dials) })
	return made.snapshot
}

// holds reports whether nothing has changed since a snapshot was made.
func (d *dynamic) holds(s *datedSnapshot, now time.Time) bool {
	return s != nil && s.generation == d.policy.generation.Load() && (s.until.IsZero() || now.Before(s.until))
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
	d.together = d.allNew(pool)
	kept := slices.Clone(pool)
	p.upstreams.Store(&kept)
	var unordered uint64
	for _, u := range pool {
		p.dials = append(p.dials, u.Dial)
		p.members = append(p.members, d.sight(u.Dial, now))
		unordered += maphash.String(d.seed, u.Dial)
	}
	if p.said = d.said[unordered]; p.said == nil {
		if len(d.said) >= maxDynamic {
			for _, said := range d.said {
				d.policy.forgetMood(said)
			}
			clear(d.said) // rather say something twice than remember without end
			d.replace(make(map[uint64]*dynamicPool))
		}
		p.said = new(atomic.Int32)
		d.said[unordered] = p.said
	}
	p.seen.Store(now.UnixNano())
	d.keep(p)
	d.lastUse = now
	d.startSweeper()
	return p
}

// allNew reports whether nothing is known of any address of a pool. d.mu must be held.
func (d *dynamic) allNew(pool reverseproxy.UpstreamPool) bool {
	dials := make([]string, 0, len(pool))
	for _, u := range pool {
		if d.policy.byDial[u.Dial] != nil || d.sightings[u.Dial] != nil {
			return false
		}
		dials = append(dials, u.Dial)
	}
	return !anyProbed(dials)
}

// keep adds a pool to those that are known again, in place of those that
// requests brought the longest time ago. d.mu must be held.
func (d *dynamic) keep(p *dynamicPool) {
	pools := maps.Clone(*d.pools.Load())
	if pools == nil {
		pools = make(map[uint64]*dynamicPool)
	}
	size := len(p.dials)
	for _, other := range pools {
		size += len(other.dials)
	}
	if len(pools) >= maxPools || size > maxPooled {
		// some more than needed, so as not to do this for every new one
		lately, _ := d.lately()
		clear(pools)
		size = len(p.dials)
		for _, other := range lately {
			if size += len(other.dials); len(pools) < maxPools*3/4 && size <= maxPooled {
				pools[other.hash] = other
			} else {
				d.note(other)
			}
		}
	}
	pools[p.hash] = p
	d.replace(pools)
}

// replace puts other pools in place of those there are. d.mu must be held.
func (d *dynamic) replace(pools map[uint64]*dynamicPool) {
	d.policy.counting.Lock()
	defer d.policy.counting.Unlock()
	for hash, p := range *d.pools.Load() {
		if now := p.current.Load(); now != nil && pools[hash] != p {
			d.policy.retire(now.snapshot)
		}
	}
	d.pools.Store(&pools)
}

// startSweeper has somebody look after what to forget, once there is something.
// d.mu must be held.
func (d *dynamic) startSweeper() {
	if !d.sweeping && !d.closed && len(d.sightings) > 0 {
		d.sweeping = true
		d.sweeper.Go(d.sweepUntilClosed)
	}
}

// known returns the pool of these addresses, nil if it is new.
func (d *dynamic) known(pool reverseproxy.UpstreamPool, hash uint64) *dynamicPool {
	p := (*d.pools.Load())[hash]
	if p == nil || !slices.EqualFunc(p.dials, pool, func(dial string, u *reverseproxy.Upstream) bool { return dial == u.Dial }) {
		return nil
	}
	return p
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
	if d.closed {
		return d.unchecked
	}
	if len(d.sightings) >= maxDynamic {
		if !d.warned {
			d.warned = true
			d.policy.logger.Warn("too many upstreams from a dynamic source: those past the limit are not checked and count as alive",
				zap.Int("limit", maxDynamic), zap.String("upstream", dial))
		}
		return d.unchecked
	}
	delay := time.Duration(len(d.sightings)-d.batch) * firstProbeSpacing
	watches, err := d.policy.watch(dial, delay, d.together)
	if err != nil {
		// Caddy itself will say so when a request gets it
		d.policy.logger.Debug("upstream from a dynamic source cannot be checked", zap.String("upstream", dial), zap.Error(err))
	}
	m := &member{address: shownAddress(dial), watches: watches, weight: 1}
	d.sightings[dial] = &sighting{member: m, last: now}
	d.list.add(dial)
	if d.policy.running.Load() { // else another config's modes hold
		m.pause(d.policy.rules.operations) // it may have changed since it is watched
	}
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

// all returns the members that are watched.
func (d *dynamic) all() []*member {
	d.mu.Lock()
	defer d.mu.Unlock()
	members := make([]*member, 0, len(d.sightings))
	for _, dial := range slices.Sorted(maps.Keys(d.sightings)) {
		members = append(members, d.sightings[dial].member)
	}
	return members
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

// sweepUntilClosed forgets addresses until the config ends.
func (d *dynamic) sweepUntilClosed() {
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-d.stop:
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
		gone[d.unchecked] = true // there is room again for those past the limit
		pools := maps.Clone(*d.pools.Load())
		maps.DeleteFunc(pools, func(_ uint64, p *dynamicPool) bool {
			return slices.ContainsFunc(p.members, func(m *member) bool { return gone[m] })
		})
		d.replace(pools)
	}
	moods := maps.Clone(d.said)
	pools, present := d.lately()
	for _, p := range pools[:present] {
		maps.DeleteFunc(moods, func(_ uint64, said *atomic.Int32) bool { return said == p.said })
	}
	d.mu.Unlock()
	for _, said := range moods {
		if d.policy.unsay(said) {
			d.policy.logger.Info("requests bring other upstreams now than those of which too few were alive")
		}
	}
	for m := range gone {
		d.policy.unwatch(m.watches)
		d.policy.app.forget(m.address)
	}
}

// close ends it: nothing is watched any more that was not before.
func (d *dynamic) close() {
	d.mu.Lock()
	if !d.closed {
		d.closed = true
		close(d.stop)
		for dial := range d.sightings {
			d.list.remove(dial)
		}
	}
	d.mu.Unlock()
	d.sweeper.Wait()
}

// watchLists are the addresses that policies watch, by where these come from:
// what one has seen, the same policy of the next config goes on watching.
var watchLists = caddy.NewUsagePool()

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
