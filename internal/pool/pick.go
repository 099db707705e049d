// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math/rand/v2"
	"time"
)

// maxDraws is how many tickets a pick draws before it examines all upstreams. A fresh
// ticket leaves the share of one that is skipped to all others; walking on would leave it
// to the next in line.
const maxDraws = 8

// pickServing returns an upstream that serves. When the request has tried them all,
// those without a verdict are better than one that failed, then those that are down,
// and after them it starts over. It also reports whether any serves; a full one counts.
func (d *decision) pickServing(now *Snapshot) (i int, serves bool) {
	tiers := now.serving
	d.state = Normal
	if now.isTooFewHealthy(&d.pool.handler.Rules, d.Upstreams) {
		tiers = append([]*tier{now.allPrimaries()}, tiers...)
		d.state = FailedOpen
	} else if now.state == FailedOpen {
		d.state = FailedOpen
	}
	i, retry, serves := d.pickUntried(tiers...)
	if d.accused && mayProbe(d.pool) || d.Tried.any() && (d.allTried || i == none && retry != none && !d.anyFull()) {
		probeDown(now, d.Upstreams, d.Tried)
	}
	if i != none || retry == none {
		return i, serves
	}
	if d.anyFull() { // it serves and was not tried
		return d.startOver(retry), true
	}
	if i, _, _ = d.pickUntried(now.unknown()); i != none {
		return i, true
	}
	if i = d.leastRecentlyFailed(now); i != none {
		return i, true
	}
	return d.startOver(retry), true
}

// pickNotServing returns an upstream when none serves: one without a verdict, or of the
// last resort. When the request has tried them all, others that are down have their
// turn before it starts over: these are backups.
func (d *decision) pickNotServing(now *Snapshot) int {
	hasten(d.pool, now)
	unknown, lastResort := now.unknown(), now.lastResort()
	i, retry, mayServe := d.pickUntried(unknown)
	switch {
	case mayServe:
		d.state = Normal
	case !lastResort.empty():
		d.state = LastResort
	default:
		d.state = Unavailable
	}
	if i != none {
		return i
	}
	if !lastResort.empty() {
		d.full, d.fullByCaddy = d.full[:0], false // they may also be in the last resort, and count there
	}
	i, other, _ := d.pickUntried(lastResort)
	if i != none {
		return i
	}
	if other != none && (retry == none || d.isLast(retry)) {
		retry = other
	}
	if retry == none {
		return none
	}
	probeDown(now, d.Upstreams, d.Tried)
	if !d.anyFull() {
		if i = d.leastRecentlyFailed(now); i != none {
			return i
		}
	}
	return d.startOver(retry)
}

// pickUntried returns an upstream of the first tier that has one which can take the
// request and was not tried by it. If none has, it returns one that was tried, the last
// one only if there is no other. It also reports whether any serves.
func (d *decision) pickUntried(tiers ...*tier) (i, retry int, serves bool) {
	retry = none
	for _, t := range tiers {
		if serves && d.anyFull() && (t.fallback || t.suspect && d.mayWait()) {
			break // busy is not down
		}
		d.allTried = d.allTried || t.fallback && !d.anyFull()
		d.accused = d.accused || t.suspect && !d.anyFull()
		i, tried, serving := d.pick(t)
		if i != none {
			return i, none, true
		}
		serves = serves || serving
		if retry == none || tried != none && d.isLast(retry) {
			retry = tried
		}
	}
	return none, retry, serves
}

// pickTrial returns an upstream whose ejection is over, if the request is to try it. Of
// clients that are bound to another upstream it takes a request only if it has to. No request
// waits for a slot there, so one that queues takes it at once.
func (d *decision) pickTrial(now *Snapshot) int {
	defer func(queues bool) { d.queues = queues }(d.queues)
	d.queues = false
	for _, i := range now.trials {
		u := d.Upstreams[i]
		if !u.Available() || d.Tried.has(u) || d.isFull(i) || !d.claim(i) {
			continue
		}
		if now.members[i].Witness.ClaimTrial(d.bound == none && isSafe(d.Request)) {
			d.state = now.state
			return i
		}
		d.unclaim()
	}
	return none
}

// startOver forgets what the request tried, which was all there is, and returns next.
// While another one is full that was not tried, the request waits for that if it can.
func (d *decision) startOver(next int) int {
	if d.anyFull() && d.mayWait() {
		return none
	}
	if !d.claim(next) {
		d.noteFull(next)
		return none
	}
	d.Tried.startOver()
	return next
}

// pick returns the member of t whose turn it is among those that can take the request
// and were not tried by it. If there is none, it returns one that was tried, the last
// one only if there is no other. It also reports whether any serves; a full one counts.
func (d *decision) pick(t *tier) (chosen, tried int, serves bool) {
	if t.empty() || t.anyHealth && d.pool.handler.breakerOpen() {
		return none, none, false
	}
	if d.bound != none && t.weights[d.bound] > 0 && d.takes(t, d.bound) && d.claim(d.bound) {
		d.binds = false
		return d.bound, none, true
	}
	if d.pool.handler.Rules.Select != nil {
		if i := pickBySelect(d, t); i != none {
			return i, none, true
		}
	}
	for range min(maxDraws, t.order.Len()) {
		i := t.order.At(t.tickets.Add(1))
		if d.takes(t, i) && d.claim(i) {
			d.drawn = t.counted
			return i, none, true
		}
		if t.counted {
			d.now.Skip(i)
		}
	}
	for {
		chosen, tried, serves = d.scan(t)
		if chosen == none || d.claim(chosen) {
			return chosen, tried, serves
		}
		// other requests have taken the last place there
	}
}

// scan examines all members of t for pick, and chooses one at random by weight: the next
// in the order would get the shares of all that cannot take the request.
func (d *decision) scan(t *tier) (chosen, tried int, serves bool) {
	chosen, tried = none, none
	last, sum, triedSum := none, 0, 0
	for i, weight := range t.weights {
		if weight == 0 {
			continue
		}
		u := d.Upstreams[i]
		if !t.serves(u) {
			d.unsignaled = true
			continue
		}
		serves = true
		switch {
		case d.isFull(i):
			if !d.Tried.has(u) {
				d.noteFull(i)
			}
		case !d.Tried.has(u):
			if sum += weight; rand.IntN(sum) < weight {
				chosen = i
			}
		case d.isLast(i):
			last = i
		default:
			if triedSum += weight; rand.IntN(triedSum) < weight {
				tried = i
			}
		}
	}
	if tried == none {
		tried = last
	}
	return chosen, tried, serves
}

// takes reports whether a member of t can take the request and was not tried by it.
func (d *decision) takes(t *tier, i int) bool {
	u := d.Upstreams[i]
	return t.serves(u) && !d.isFull(i) && !d.Tried.has(u)
}

// isLast reports whether the last try of the request was at the upstream at a position.
func (d *decision) isLast(i int) bool { return d.Tried.isLast(d.Upstreams[i]) }

// leastRecentlyFailed returns the upstream whose checks failed the longest ago, of those
// that the request did not try. It is for a request that has tried all that serve: that
// they failed is newer than the verdict of the others. It returns none where health is
// never ignored, or if all were tried or are full.
func (d *decision) leastRecentlyFailed(now *Snapshot) int {
	if d.pool.handler.Rules.FailOpen.Never || d.pool.handler.breakerOpen() {
		return none
	}
	for {
		least := none
		var when time.Time
		for i, weight := range now.ready {
			if weight == 0 || d.isFull(i) || d.Tried.has(d.Upstreams[i]) {
				continue
			}
			if failed := now.members[i].lastFailed(); least == none || failed.Before(when) {
				least, when = i, failed
			}
		}
		if least == none || d.claim(least) {
			return least
		}
	}
}
