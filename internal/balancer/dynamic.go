// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/pool"
)

// maxObserved is how many addresses of dynamic sources one balancer watches.
const maxObserved = 1024

// dynamic has the upstreams that are not in the list of the config: requests bring them
// along, from a dynamic source. Each is watched from when a request first brings it.
type dynamic struct {
	balancer *Balancer
	answers  answers
	key      string // of list
	list     *watchList
	// unchecked stands for all addresses past the limit.
	unchecked *pool.Member
	sweeper   sweeper

	mu        sync.Mutex // guards what follows, and replacements in answers
	observed  map[string]*observed
	opening   map[string]*opening
	sets      map[uint64]*addressSet // by the addresses in any order
	lastUse   time.Duration          // when a request last brought an answer, as far as noted
	lastSweep time.Duration
	warned    bool // that there are too many
	closed    bool
	deferred  []func() // run after mu is unlocked
}

// newDynamic returns one that watches nothing yet.
func newDynamic(b *Balancer) *dynamic {
	d := &dynamic{
		balancer: b, list: newWatchList(), unchecked: &pool.Member{Weight: 1},
		observed: make(map[string]*observed), opening: make(map[string]*opening), sets: make(map[uint64]*addressSet),
	}
	d.answers.init()
	d.sweeper.stop = make(chan struct{})
	return d
}

// init checks whether the checks can work over the source, and goes on watching what an
// earlier config with the same source did.
func (d *dynamic) init() error {
	b := d.balancer
	// without a source, it can only be another policy that brings upstreams
	key := "policy over " + strings.Join(slices.Sorted(maps.Keys(b.members.byDial)), " ")
	if given := b.config.Proxy.DynamicUpstreamsRaw; given != nil {
		key = "source " + string(given)
		if err := d.validate(); err != nil {
			return fmt.Errorf("dynamic upstreams: %v", err)
		}
	}
	list, err := openWatchList(key)
	if err != nil {
		return err
	}
	d.key, d.list = key, list
	b.source = newLastReturn(b, list)
	d.resume()
	return nil
}

// validate finds out whether the checks can work over the transport of the handler,
// before the first upstream is known: any address stands for all.
func (d *dynamic) validate() error {
	upstream, err := monitor.ParseUpstream("localhost:80")
	if err != nil {
		return err
	}
	for _, check := range d.balancer.config.Checks {
		if _, err := d.balancer.config.Transport.Route(upstream, check); err != nil && !errors.Is(err, monitor.ErrPerRequest) {
			return fmt.Errorf("check '%s': %v", check.Label, err)
		}
	}
	return nil
}

// resume watches what is in the list, and continues its times: reloads do not delay when
// an address is forgotten.
func (d *dynamic) resume() {
	for _, other := range d.list.join(d) {
		other.flush()
	}
	known, used, swept := d.list.times()
	now := elapsed(time.Now())
	d.mu.Lock()
	d.lastUse, d.lastSweep = cmp.Or(used, now), cmp.Or(swept, now)
	dials := slices.Sorted(maps.Keys(known))
	openNew(d, dials)
	for _, dial := range dials {
		d.observe(dial, known[dial].last, arrival{})
		if o := d.observed[dial]; o != nil {
			o.times = known[dial]
		}
	}
	d.startSweeper()
	d.unlock()
}

// unlock unlocks d.mu, and then runs what was deferred.
func (d *dynamic) unlock() {
	deferred := d.deferred
	d.deferred = nil
	d.mu.Unlock()
	for _, do := range deferred {
		do()
	}
}

// poolOf returns the pool of the upstreams that a request brings.
func (d *dynamic) poolOf(upstreams reverseproxy.UpstreamPool) *pool.Pool {
	a := d.find(upstreams)
	a.KeepUpstreams(upstreams)
	d.answers.brought(a, time.Now())
	return a.Pool
}

// find returns the answer, after watching what is new in it.
func (d *dynamic) find(upstreams reverseproxy.UpstreamPool) *answer {
	hash := d.answers.hash(upstreams)
	if a := d.answers.find(upstreams, hash); a != nil {
		return a
	}
	dials := make([]string, 0, len(upstreams))
	for _, u := range upstreams {
		dials = append(dials, u.Dial)
	}
	d.mu.Lock()
	a := d.answers.find(upstreams, hash)
	for a == nil && openNew(d, dials) {
		a = d.answers.find(upstreams, hash) // another request may have been quicker
	}
	if a == nil {
		a = d.add(upstreams, dials, hash)
	}
	d.unlock()
	return a
}

// arrival is how the addresses of one answer begin to be watched.
type arrival struct {
	before  int  // how many addresses were watched before
	withAll bool // nothing was known of any address of the answer
}

// add records an answer and its new addresses, which are open. d.mu must be held.
func (d *dynamic) add(upstreams reverseproxy.UpstreamPool, dials []string, hash uint64) *answer {
	if newest := d.answers.newest.Load(); newest != nil {
		d.note(newest) // so that what it lacks is known to come back
	}
	at := elapsed(time.Now())
	as := arrival{before: len(d.observed), withAll: d.isAllNew(dials)}
	a := &answer{hash: hash, dials: dials}
	members := make([]*pool.Member, 0, len(upstreams))
	var unordered uint64
	for _, dial := range dials {
		members = append(members, d.observe(dial, at, as))
		unordered += maphash.String(d.answers.seed, dial)
	}
	a.set = d.setOf(unordered, at)
	a.Pool = pool.New(&d.balancer.handler, members, upstreams, &a.set.logged)
	a.last.Store(int64(at))
	a.OnResume = func() { d.answers.brought(a, time.Now()) }
	for _, dropped := range d.answers.cache(a, d.balancer.handler.Awaited()) {
		d.note(dropped)
	}
	d.lastUse = at
	d.startSweeper()
	return a
}

// setOf returns the set of addresses by their hash in any order. d.mu must be held.
func (d *dynamic) setOf(unordered uint64, at time.Duration) *addressSet {
	if set := d.sets[unordered]; set != nil {
		return set
	}
	if len(d.sets) >= maxObserved { // rather log something twice than remember without end
		awaited := d.balancer.handler.Awaited()
		d.answers.retain(func(a *answer) bool { return awaited[a.Pool] })
		kept := make(map[*addressSet]bool)
		for _, a := range d.answers.all() {
			kept[a.set] = true
		}
		var gone []*addressSet
		maps.DeleteFunc(d.sets, func(_ uint64, set *addressSet) bool {
			if kept[set] {
				return false
			}
			gone = append(gone, set)
			return true
		})
		d.deferred = append(d.deferred, func() {
			for _, set := range gone {
				set.logged.Forget(&d.balancer.handler)
			}
		})
	}
	set := new(addressSet)
	set.last.Store(int64(at))
	d.sets[unordered] = set
	return set
}

// isAllNew reports whether nothing is known of any address. d.mu must be held.
func (d *dynamic) isAllNew(dials []string) bool {
	for _, dial := range dials {
		if d.balancer.members.byDial[dial] != nil || d.observed[dial] != nil {
			return false
		}
	}
	return !monitor.AnyProbed(dials)
}

// observe returns the member at an address, which is watched from now on if it is new and
// could be opened. d.mu must be held.
func (d *dynamic) observe(dial string, at time.Duration, as arrival) *pool.Member {
	b := d.balancer
	if m := b.members.byDial[dial]; m != nil {
		return m // the config lists it, too
	}
	if o := d.observed[dial]; o != nil {
		if o.last < d.lastUse { // it was not in the last one that a request brought
			o.cameBack(at)
		}
		o.last, o.missing = at, 0
		return o.member
	}
	if d.closed {
		return d.unchecked
	}
	o := d.opening[dial]
	if o == nil || o.member == nil { // the limit, or a check that panicked
		if !d.warned && len(d.observed) >= maxObserved {
			d.warned = true
			d.deferred = append(d.deferred, func() {
				b.config.Logger.Warn("too many upstreams from a dynamic source: those past the limit are not checked, count as alive, and have no limit, weight or group of their own",
					zap.Int("limit", maxObserved), zap.String("upstream", dial))
			})
		}
		return d.unchecked
	}
	delete(d.opening, dial)
	delay := time.Duration(len(d.observed)-as.before) * monitor.FirstProbeSpacing
	d.deferred = append(d.deferred, o.unlogged...)
	if o.err != nil {
		// Caddy itself will say so when a request gets it
		d.deferred = append(d.deferred, func() {
			b.config.Logger.Debug("upstream from a dynamic source cannot be checked", zap.String("upstream", dial), zap.Error(o.err))
		})
	}
	for _, m := range o.monitors { // before a request can find it: no verdict must be missed
		m.Subscribe(b.traffic.follow(o.member))
	}
	d.observed[dial] = &observed{member: o.member, monitors: o.monitors, times: times{last: at}}
	d.list.add(dial)
	b.traffic.brought.Store(dial, o.member)
	d.deferred = append(d.deferred, func() { b.run(o.opened, delay, as.withAll) })
	return o.member
}

// mayOpen reports whether an address is new, and not past the limit. d.mu must be held.
func (d *dynamic) mayOpen(dial string) bool {
	return d.balancer.members.byDial[dial] == nil && d.observed[dial] == nil &&
		!d.closed && len(d.observed)+len(d.opening) < maxObserved
}

// drop releases what was opened and no answer has. d.mu must be held.
func (d *dynamic) drop(o *opening) {
	delete(d.opening, o.dial)
	d.deferred = append(d.deferred, func() {
		d.balancer.release(o.monitors)
		if o.member != nil {
			d.balancer.traffic.remove(o.member)
		}
	})
}

// memberNamed returns the member that operators know by an address, nil if none is
// watched.
func (d *dynamic) memberNamed(address string) *pool.Member {
	d.mu.Lock()
	defer d.mu.Unlock()
	if o := d.observed[address]; o != nil && o.member.Address == address {
		return o.member
	}
	if !strings.Contains(address, `\x`) {
		return nil
	}
	for _, o := range d.observed { // its dial address is not valid UTF-8
		if o.member.Address == address {
			return o.member
		}
	}
	return nil
}

// members returns those that are watched.
func (d *dynamic) members() []*pool.Member {
	d.mu.Lock()
	defer d.mu.Unlock()
	members := make([]*pool.Member, 0, len(d.observed))
	for _, dial := range slices.Sorted(maps.Keys(d.observed)) {
		members = append(members, d.observed[dial].member)
	}
	return members
}

// close ends it: nothing is watched any more that was not before.
func (d *dynamic) close() error {
	d.mu.Lock()
	if !d.closed {
		d.list.leave(d)
		d.closed = true
		close(d.sweeper.stop)
		for dial := range d.observed {
			d.list.remove(dial)
		}
		for _, o := range d.opening {
			if o.ready { // else the request that opens it drops it
				d.drop(o)
			}
		}
	}
	d.unlock()
	d.sweeper.running.Wait()
	if d.key == "" {
		return nil
	}
	return closeWatchList(d.key)
}
