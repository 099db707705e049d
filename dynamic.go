// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"cmp"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
)

const (
	// maxDynamic is how many addresses of dynamic sources one policy watches.
	maxDynamic = 1024
	// maxPools is how many different answers of dynamic sources are kept ready,
	// and maxPooled how many addresses they may have in all if they are several.
	maxPools  = 256
	maxPooled = 1 << 16
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
	// newest is the pool that a request brought last, nil before the first request.
	newest  atomic.Pointer[dynamicPool]
	waiters waiters
	// unchecked stands for all addresses past the limit
	unchecked *member

	mu        sync.Mutex // guards what follows; locked before that of the list and of waiters
	sightings map[string]*sighting
	sets      map[uint64]*addressSet // by the addresses in any order
	lastUse   time.Duration          // when a request last brought a pool, as far as noted
	lastSweep time.Duration
	batch     int  // how many sightings there were before the pool at hand
	together  bool // nothing was known of any address of the pool at hand
	warned    bool // that there are too many
	sweeping  bool
	closed    bool
	untold    []func() // log lines to write once mu is free

	stop    chan struct{} // closed with closed
	sweeper sync.WaitGroup
}

// sighting is one address, and when requests brought it.
type sighting struct {
	member *member
	presence
}

// dynamicPool is one answer of a source: the same addresses in the same order.
type dynamicPool struct {
	hash    uint64
	dials   []string
	members []*member
	// upstreams are those of a request that brought it
	upstreams atomic.Pointer[reverseproxy.UpstreamPool]
	last      atomic.Int64 // when a request last brought it, as elapsed
	making    sync.Mutex   // held while a snapshot is made
	current   atomic.Pointer[datedSnapshot]
	set       *addressSet
}

// addressSet is what pools have in common whose addresses are the same in another order.
// It outlives pools that are not kept ready.
type addressSet struct {
	said atomic.Int32 // the mood last logged
	last atomic.Int64 // when a request last brought it, as elapsed

	mu         sync.Mutex    // guards what follows
	back, away time.Duration // as in presence
}

// datedSnapshot is a snapshot with what tells whether it still holds.
type datedSnapshot struct {
	*snapshot
	generation uint64
	until      time.Time // when a slow start goes on; zero if there is none
}

// newDynamic makes one that watches nothing yet.
func newDynamic(s *Selection) *dynamic {
	d := &dynamic{
		policy: s, seed: maphash.MakeSeed(), list: newWatchList(), stop: make(chan struct{}),
		unchecked: &member{weight: 1},
		sightings: make(map[string]*sighting), sets: make(map[uint64]*addressSet),
	}
	d.pools.Store(new(map[uint64]*dynamicPool))
	return d
}

// resume watches what an earlier config with the same source did, and goes on with its
// times: neither a reload nor many of them put off that an address is forgotten.
func (d *dynamic) resume() {
	for _, other := range d.list.join(d) {
		other.flush()
	}
	known, used, swept := d.list.known()
	now := elapsed(time.Now())
	d.mu.Lock()
	d.lastUse, d.lastSweep = cmp.Or(used, now), cmp.Or(swept, now)
	for _, dial := range slices.Sorted(maps.Keys(known)) {
		d.sight(dial, known[dial].last)
		if s := d.sightings[dial]; s != nil {
			s.presence = known[dial]
		}
	}
	d.startSweeper()
	d.unlock()
}

// unlock unlocks d.mu, and then writes the log lines that had to wait for it.
func (d *dynamic) unlock() {
	untold := d.untold
	d.untold = nil
	d.mu.Unlock()
	for _, tell := range untold {
		tell()
	}
}

// snapshotOf returns which members of a pool may get requests at this moment.
func (d *dynamic) snapshotOf(pool reverseproxy.UpstreamPool) *snapshot {
	p := d.find(pool)
	p.keepUpstreams(pool)
	return d.snapshotNow(p, false)
}

// freshSnapshotOf is snapshotOf, but waits while another request makes the snapshot.
func (d *dynamic) freshSnapshotOf(pool reverseproxy.UpstreamPool) *snapshot {
	return d.snapshotNow(d.find(pool), true)
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

// snapshotNow returns which members of a known pool, which a request brings, may get
// requests at this moment. While another request makes the snapshot, the one before
// serves: it is older than a verdict at most by the time that it takes to make two. A
// request that is patient waits for the new one, and so does one that would get
// no upstream by the old one.
func (d *dynamic) snapshotNow(p *dynamicPool, patient bool) *snapshot {
	now := time.Now()
	d.brought(p, now)
	known := p.current.Load()
	if !d.holds(known, now) {
		if known == nil || patient || len(known.tiers) == 0 {
			p.making.Lock()
		} else if !p.making.TryLock() {
			return known.snapshot
		}
		known = d.renew(p, now)
		p.making.Unlock()
	}
	return known.snapshot
}

// renew makes a new snapshot of a pool, unless that was done meanwhile. p.making must
// be held.
func (d *dynamic) renew(p *dynamicPool, now time.Time) *datedSnapshot {
	known := p.current.Load()
	if d.holds(known, now) {
		return known
	}
	made := d.make(p, now)
	made.first = uint64(rand.Uint32()) // every pool begins somewhere else
	if known != nil {
		made.first = known.tickets.Load()
	}
	made.tickets.Store(made.first)
	if len(made.tiers) > 0 {
		// Each pick is counted by itself: a pool can be dropped at any moment, and
		// tickets that are drawn after that would be lost.
		made.tiers[0].counted = false
	}
	p.current.Store(made)
	return made
}

// make makes a snapshot of a pool as it is now. The generation is read first: a verdict
// that follows makes it a snapshot of the past.
func (d *dynamic) make(p *dynamicPool, now time.Time) *datedSnapshot {
	generation := d.policy.generation.Load()
	made := &datedSnapshot{snapshot: newSnapshot(p.members, d.policy.rules, now), generation: generation}
	made.said = &p.set.said
	if made.next > 0 {
		made.until = now.Add(made.next)
	}
	return made
}

// peek returns the snapshot of a pool as it is now, and changes nothing.
func (d *dynamic) peek(p *dynamicPool) *snapshot {
	now := time.Now()
	if known := p.current.Load(); d.holds(known, now) {
		return known.snapshot
	}
	return d.make(p, now).snapshot
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
	p := d.known(pool, hash)
	if p == nil {
		p = d.add(pool, hash)
	}
	d.unlock()
	return p
}

// add makes a pool known, and watches what is new in it. d.mu must be held.
func (d *dynamic) add(pool reverseproxy.UpstreamPool, hash uint64) *dynamicPool {
	if newest := d.newest.Load(); newest != nil {
		d.note(newest) // so that what it lacks is known to come back
	}
	at := elapsed(time.Now())
	d.batch = len(d.sightings)
	p := &dynamicPool{hash: hash}
	d.together = d.allNew(pool)
	kept := slices.Clone(pool)
	p.upstreams.Store(&kept)
	var unordered uint64
	for _, u := range pool {
		p.dials = append(p.dials, u.Dial)
		p.members = append(p.members, d.sight(u.Dial, at))
		unordered += maphash.String(d.seed, u.Dial)
	}
	if p.set = d.sets[unordered]; p.set == nil {
		if len(d.sets) >= maxDynamic { // rather say something twice than remember without end
			all := slices.Collect(maps.Values(d.sets))
			d.untold = append(d.untold, func() {
				for _, set := range all {
					d.policy.forgetMood(&set.said)
				}
			})
			clear(d.sets)
			d.pools.Store(new(map[uint64]*dynamicPool))
		}
		p.set = new(addressSet)
		p.set.last.Store(int64(at))
		d.sets[unordered] = p.set
	}
	p.last.Store(int64(at))
	d.keep(p)
	d.lastUse = at
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
	return !monitor.AnyProbed(dials)
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
		others := d.byLastUse()
		clear(pools)
		size = len(p.dials)
		for _, other := range others {
			if size += len(other.dials); len(pools) < maxPools*3/4 && size <= maxPooled {
				pools[other.hash] = other
			} else {
				d.note(other)
			}
		}
	}
	pools[p.hash] = p
	d.pools.Store(&pools)
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
func (d *dynamic) sight(dial string, at time.Duration) *member {
	if m := d.policy.byDial[dial]; m != nil {
		return m // in the proxy's own list, too
	}
	if s := d.sightings[dial]; s != nil {
		if s.last < d.lastUse { // it was not in the last one that a request brought
			s.cameBack(at)
		}
		s.last, s.missing = at, 0
		return s.member
	}
	if d.closed {
		return d.unchecked
	}
	logger := d.policy.logger
	if len(d.sightings) >= maxDynamic {
		if !d.warned {
			d.warned = true
			d.untold = append(d.untold, func() {
				logger.Warn("too many upstreams from a dynamic source: those past the limit are not checked and count as alive",
					zap.Int("limit", maxDynamic), zap.String("upstream", dial))
			})
		}
		return d.unchecked
	}
	delay := time.Duration(len(d.sightings)-d.batch) * monitor.FirstProbeSpacing
	watches, untold, err := d.policy.watch(dial, delay, d.together)
	d.untold = append(d.untold, untold...)
	if err != nil {
		// Caddy itself will say so when a request gets it
		d.untold = append(d.untold, func() {
			logger.Debug("upstream from a dynamic source cannot be checked", zap.String("upstream", dial), zap.Error(err))
		})
	}
	m := &member{address: monitor.DisplayAddress(dial), watches: watches, weight: 1}
	d.sightings[dial] = &sighting{member: m, presence: presence{last: at}}
	d.list.add(dial)
	if d.policy.running.Load() { // else another config's modes hold
		d.policy.pause(m) // it may have changed since it is watched
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

// memberShownAs returns the member that operators know by an address, nil if none is
// watched.
func (d *dynamic) memberShownAs(address string) *member {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.sightings[address]; s != nil && s.member.address == address {
		return s.member
	}
	if !strings.Contains(address, `\x`) {
		return nil
	}
	for _, s := range d.sightings { // its dial address is not valid UTF-8
		if s.member.address == address {
			return s.member
		}
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
