// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

const (
	// holdGrace is how long held requests wait for further upstreams once one passed, so
	// that they do not all go to the quickest.
	holdGrace = 100 * time.Millisecond
	// maxDraws is how many tickets a request draws before it examines all upstreams.
	// Drawing another ticket leaves the share of one that is skipped to all others;
	// walking on would leave it to the next in line.
	maxDraws = 8
)

// Attempt is one selection of an upstream for a request.
type Attempt struct {
	Upstreams reverseproxy.UpstreamPool // as the request brings them
	Request   *http.Request
	Writer    http.ResponseWriter // may be nil
	Tried     *Tried              // nil if no try of the request has failed
}

// Pick returns the upstream for a request: the one whose turn it is in the best tier
// that has one. It is nil if none can take the request.
func (p *Pool) Pick(a Attempt) *reverseproxy.Upstream {
	if len(a.Upstreams) == 0 {
		return nil
	}
	d := decision{Attempt: a, pool: p}
	u := d.decide()
	d.report()
	switch {
	case u != nil:
		d.count(u)
	case a.Request.Context().Err() != nil:
		// The client has left. The answer that there is no upstream would be logged as an
		// error and retried; any upstream ends the request at once.
		u = a.Upstreams[0]
	}
	return u
}

// decision is one pick that the first ticket did not settle.
type decision struct {
	Attempt
	pool     *Pool
	now      *Snapshot // by which it is decided
	state    State     // of the pool, when it was decided
	drawn    bool      // a ticket that is counted decided
	anyFull  bool      // an upstream that was not tried is full
	allTried bool      // all that serve were tried, so those that drain have their turn
	accused  bool      // all that serve are suspects, or were tried
}

// decide goes through the tiers, from the best on.
func (d *decision) decide() *reverseproxy.Upstream {
	now := d.snapshot()
	if u := d.pickTrial(now); u != nil {
		return u
	}
	u, serves := d.pickServing(now)
	if u != nil || serves {
		return u // a full one serves too, so upstreams that do not serve get nothing
	}
	h := d.pool.handler
	if h.breakerOpen() {
		d.state = Unavailable
		return nil // nor is there anything to wait for
	}
	if now.undecided && d.mayHold() {
		if !d.holdRequest() {
			d.state = notSeen
			return nil
		}
		if d.pool.OnResume != nil {
			d.pool.OnResume()
		}
		now = d.snapshot()
		if u, serves = d.pickServing(now); u != nil || serves {
			return u
		}
		if h.breakerOpen() {
			d.state = Unavailable
			return nil
		}
	}
	return d.pickNotServing(now)
}

// snapshot returns the snapshot by which to decide.
func (d *decision) snapshot() *Snapshot {
	d.now = d.pool.snapshot(false)
	return d.now
}

// pickServing returns an upstream that serves. When the request has tried them all,
// those without a verdict are better than one that failed, then those that are down,
// and after them it starts over. It also reports whether any serves; a full one counts.
func (d *decision) pickServing(now *Snapshot) (u *reverseproxy.Upstream, serves bool) {
	tiers := now.serving
	d.state = Normal
	if now.isTooFewHealthy(&d.pool.handler.Rules, d.Upstreams) {
		tiers = append([]*tier{now.allPrimaries()}, tiers...)
		d.state = FailedOpen
	} else if now.state == FailedOpen {
		d.state = FailedOpen
	}
	u, retry, serves := d.pickUntried(tiers...)
	if d.accused && mayProbe(d.pool) || d.Tried.any() && (d.allTried || u == nil && retry != nil && !d.anyFull) {
		probeDown(now, d.Upstreams, d.Tried)
	}
	if u != nil || retry == nil {
		return u, serves
	}
	if d.anyFull { // it serves and was not tried
		return d.startOver(retry), true
	}
	if u, _, _ = d.pickUntried(now.unknown()); u != nil {
		return u, true
	}
	if u = d.leastRecentlyFailed(now); u != nil {
		return u, true
	}
	return d.startOver(retry), true
}

// pickNotServing returns an upstream when none serves: one without a verdict, or of the
// last resort. When the request has tried them all, others that are down have their
// turn before it starts over: these are backups.
func (d *decision) pickNotServing(now *Snapshot) *reverseproxy.Upstream {
	hasten(d.pool, now)
	unknown, lastResort := now.unknown(), now.lastResort()
	u, retry, mayServe := d.pickUntried(unknown)
	switch {
	case mayServe:
		d.state = Normal
	case !lastResort.empty():
		d.state = LastResort
	default:
		d.state = Unavailable
	}
	if u != nil {
		return u
	}
	d.anyFull = false // full ones may also be in the last resort, and count there
	u, other, _ := d.pickUntried(lastResort)
	if u != nil {
		return u
	}
	if other != nil && (retry == nil || d.Tried.isLast(retry)) {
		retry = other
	}
	if retry == nil {
		return nil
	}
	probeDown(now, d.Upstreams, d.Tried)
	if !d.anyFull {
		if u = d.leastRecentlyFailed(now); u != nil {
			return u
		}
	}
	return d.startOver(retry)
}

// pickUntried returns an upstream of the first tier that has one which can take the
// request and was not tried by it. If none has, it returns one that was tried, the last
// one only if there is no other. It also reports whether any serves.
func (d *decision) pickUntried(tiers ...*tier) (u, retry *reverseproxy.Upstream, serves bool) {
	for _, t := range tiers {
		if t.fallback && serves && d.anyFull {
			break // busy is not down
		}
		d.allTried = d.allTried || t.fallback && !d.anyFull
		d.accused = d.accused || t.suspect && !d.anyFull
		u, tried, serving := d.pick(t)
		if u != nil {
			return u, nil, true
		}
		serves = serves || serving
		if retry == nil || tried != nil && d.Tried.isLast(retry) {
			retry = tried
		}
	}
	return nil, retry, serves
}

// pickTrial returns an upstream whose ejection is over, if the request is to try it.
func (d *decision) pickTrial(now *Snapshot) *reverseproxy.Upstream {
	for _, i := range now.trials {
		u := d.Upstreams[i]
		if !u.Available() || d.Tried.has(u) {
			continue
		}
		r := d.Request
		safe := (r.Method == http.MethodGet || r.Method == http.MethodHead) && (r.Body == nil || r.Body == http.NoBody)
		if now.members[i].Witness.ClaimTrial(safe) {
			d.state = now.state
			return u
		}
	}
	return nil
}

// mayHold reports whether the request may be held, which it is only once.
func (d *decision) mayHold() bool {
	if d.Tried == nil && d.pool.handler.Remember != nil {
		d.Tried = d.pool.handler.Remember(d.Request)
	}
	return d.Tried.mayHold()
}

// startOver forgets what the request tried, which was all there is, and returns next.
func (d *decision) startOver(next *reverseproxy.Upstream) *reverseproxy.Upstream {
	d.Tried.startOver()
	return next
}

// pick returns the member of t whose turn it is among those that can take the request
// and were not tried by it. If there is none, it returns one that was tried, the last
// one only if there is no other. It also reports whether any serves; a full one counts.
func (d *decision) pick(t *tier) (u, tried *reverseproxy.Upstream, serves bool) {
	if t.empty() || t.anyHealth && d.pool.handler.breakerOpen() {
		return nil, nil, false
	}
	if d.pool.handler.Rules.Select != nil {
		if u := d.pickBySelect(t); u != nil {
			return u, nil, true
		}
	}
	for range min(maxDraws, t.order.Len()) {
		i := t.order.At(t.tickets.Add(1))
		if u := d.Upstreams[i]; d.takes(t, u) {
			d.drawn = t.counted
			return u, nil, true
		}
		if t.counted {
			d.now.Skip(i)
		}
	}
	// Few can take the request, so all are examined, and one is chosen at random by weight:
	// the next in the order would get the shares of all that cannot.
	var last *reverseproxy.Upstream
	sum, triedSum := 0, 0
	for i, weight := range t.weights {
		if weight == 0 || !t.serves(d.Upstreams[i]) {
			continue
		}
		serves = true
		switch member := d.Upstreams[i]; {
		case member.Full():
			d.anyFull = d.anyFull || !d.Tried.has(member)
		case !d.Tried.has(member):
			if sum += weight; rand.IntN(sum) < weight {
				u = member
			}
		case d.Tried.isLast(member):
			last = member
		default:
			if triedSum += weight; rand.IntN(triedSum) < weight {
				tried = member
			}
		}
	}
	if tried == nil {
		tried = last
	}
	return u, tried, serves
}

// takes reports whether u, of t, can take the request and was not tried by it.
func (d *decision) takes(t *tier, u *reverseproxy.Upstream) bool {
	return t.serves(u) && !u.Full() && !d.Tried.has(u)
}

// leastRecentlyFailed returns the upstream whose checks failed the longest ago, of those
// that the request did not try. It is for a request that has tried all that serve: that
// they failed is newer than the verdict of the others. It returns nil where health is
// never ignored, or if all were tried or are full.
func (d *decision) leastRecentlyFailed(now *Snapshot) (least *reverseproxy.Upstream) {
	if d.pool.handler.Rules.FailOpen.Never || d.pool.handler.breakerOpen() {
		return nil
	}
	var when time.Time
	for i, weight := range now.ready {
		u := d.Upstreams[i]
		if weight == 0 || u.Full() || d.Tried.has(u) {
			continue
		}
		if failed := now.members[i].lastFailed(); least == nil || failed.Before(when) {
			least, when = u, failed
		}
	}
	return least
}

// holdRequest holds a request at a cold start: until every primary has a verdict, or a moment
// after the first passed, or the limit. It returns false if the client left meanwhile.
func (d *decision) holdRequest() bool {
	h := d.pool.handler
	if h.Rules.Hold == 0 {
		return true
	}
	if h.OnHold != nil {
		h.OnHold()
	}
	d.now.probeUnknown()
	limit := time.NewTimer(h.Rules.Hold)
	defer limit.Stop()
	var grace <-chan time.Time
	defer h.await(d.pool)()
	for {
		changed := d.pool.waiters.next() // before the snapshot, so that no change is missed
		now := d.pool.snapshot(true)
		if !now.undecided {
			return true
		}
		if grace == nil && len(now.serving) > 0 {
			timer := time.NewTimer(holdGrace)
			defer timer.Stop()
			grace = timer.C
		}
		select {
		case <-changed:
		case <-grace:
			return true
		case <-limit.C:
			return true
		case <-h.Ended: // no verdict will come any more
			return true
		case <-h.Exiting: // the http app waits for this request
			return true
		case <-d.Request.Context().Done():
			return false
		}
	}
}

// report logs the state that the decision saw, if it has changed. Requests are what
// notices a change of Caddy's own health: there is no signal of it. While it makes a
// difference, every pick is a decision, so that the first one afterwards notices the
// end.
func (d *decision) report() {
	if d.state == notSeen {
		return
	}
	if fast := d.now.canBeFast && d.state == d.now.state && !d.pool.handler.HasRetries(); d.now.fast.Load() != fast {
		d.pool.setFast(d.now, fast)
	}
	if d.pool.logged.load() != d.state {
		d.pool.logStateFor(d.Upstreams)
	}
}

// count counts a pick that no counted ticket decided.
func (d *decision) count(u *reverseproxy.Upstream) {
	if d.drawn {
		return
	}
	if i := slices.Index(d.Upstreams, u); i >= 0 && i < len(d.now.members) {
		d.now.members[i].Extra.Add(1)
	}
}
