// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

const (
	// maxHold bounds the hold that follows from the timeouts of the checks.
	maxHold = 5 * time.Second
	// holdGrace is how long held requests wait for further upstreams once one
	// passed, so that they do not all go to the quickest.
	holdGrace = 100 * time.Millisecond
	// maxDraws is how many tickets a request draws before it looks at all
	// upstreams. Drawing another ticket leaves the share of one that is skipped
	// to all others; walking on would leave it to the next in line.
	maxDraws = 8
)

// decision is one pick that the first ticket did not settle.
type decision struct {
	*Selection
	pool    reverseproxy.UpstreamPool
	request *http.Request
	writer  http.ResponseWriter
	tried   *attempts
	now     *snapshot // by which it was decided
	drawn   bool      // a ticket of the snapshot's best order decided
	busy    bool      // one that was not tried is full
	beyond  bool      // all that serve were tried, so the draining ones have their turn
	saw     mood      // of the pool, when it was decided
}

// choose goes through the tiers, from the best on.
func (d *decision) choose() *reverseproxy.Upstream {
	now := d.look()
	u, served := d.serving(now)
	if u != nil || served {
		return u // one that is full serves, and so the rest must not be bothered
	}
	if d.circuitOpen() {
		d.saw = unavailable
		return nil // nor is there anything to wait for
	}
	if now.undecided && d.tried.mayHold() {
		if !d.wait() {
			d.saw = unseen
			return nil
		}
		now = d.look()
		if u, served = d.serving(now); u != nil || served {
			return u
		}
		if d.circuitOpen() {
			d.saw = unavailable
			return nil
		}
	}
	return d.notServing(now)
}

// look returns the snapshot by which to decide.
func (d *decision) look() *snapshot {
	d.now = d.snapshotOf(d.pool)
	return d.now
}

// serving returns an upstream of those that serve. When the request has tried
// them all, those without a verdict are better than one that failed, then those
// that are down, and after them it starts over. Also reports whether any serves, be
// it one that is full.
func (d *decision) serving(now *snapshot) (u *reverseproxy.Upstream, served bool) {
	tiers := now.tiers
	d.saw = fine
	if d.tooFewHealthy(now, d.pool) {
		tiers = append([]*tier{now.all()}, tiers...)
		d.saw = failedOpen
	} else if now.mood == failedOpen {
		d.saw = failedOpen
	}
	u, again, served := d.untried(tiers...)
	if d.tried.any() && (d.beyond || u == nil && again != nil && !d.busy) {
		d.probeDown(now)
	}
	if u != nil || again == nil {
		return u, served
	}
	busy := d.busy
	if u, _, _ = d.untried(now.unknown()); u != nil {
		return u, true
	}
	if !busy {
		if u = d.leastRecentlyFailed(now); u != nil {
			return u, true
		}
	}
	return d.startOver(again), true
}

// notServing returns an upstream when none serves: one without a verdict, or of the
// last resort. When the request has tried them all, others that are down have their
// turn before it starts over: these are backups.
func (d *decision) notServing(now *snapshot) *reverseproxy.Upstream {
	unknown, resort := now.unknown(), now.resort()
	u, again, hopeful := d.untried(unknown)
	switch {
	case hopeful:
		d.saw = fine
	case !resort.empty():
		d.saw = lastResort
	default:
		d.saw = unavailable
	}
	if u != nil {
		return u
	}
	d.busy = false // by those of unknown, which the last resort may have, too
	u, other, _ := d.untried(resort)
	if u != nil {
		return u
	}
	if other != nil && (again == nil || d.tried.isLast(again)) {
		again = other
	}
	if again == nil {
		return nil
	}
	d.probeDown(now)
	if !d.busy {
		if u = d.leastRecentlyFailed(now); u != nil {
			return u
		}
	}
	return d.startOver(again)
}

// untried returns an upstream of the first tier that has one which can take the
// request and was not tried by it. If none has, it returns one that was tried,
// the last one only if there is no other. Also reports whether any serves.
func (d *decision) untried(tiers ...*tier) (u, again *reverseproxy.Upstream, served bool) {
	for _, t := range tiers {
		d.beyond = d.beyond || t.draining && !d.busy
		u, tried, serves := d.pick(t)
		if u != nil {
			return u, nil, true
		}
		served = served || serves
		if again == nil || tried != nil && d.tried.isLast(again) {
			again = tried
		}
	}
	return nil, again, served
}

// startOver forgets what the request tried, which was all there is, and returns
// next.
func (d *decision) startOver(next *reverseproxy.Upstream) *reverseproxy.Upstream {
	d.tried.startOver()
	return next
}

// pick returns the member of t whose turn it is among those that can take the
// request and were not tried by it. If there is none, it returns one that was
// tried, the last one only if there is no other. Also reports whether any
// serves, be it full.
func (d *decision) pick(t *tier) (u, tried *reverseproxy.Upstream, serves bool) {
	if t.empty() || t.anyHealth && d.circuitOpen() {
		return nil, nil, false
	}
	if d.inner != nil {
		if u := d.pickInner(t); u != nil {
			return u, nil, true
		}
	}
	for range min(maxDraws, t.order.Len()) {
		i := t.order.At(t.tickets.Add(1))
		if u := d.pool[i]; d.takes(t, u) {
			d.drawn = t.counted
			return u, nil, true
		}
		if t.counted {
			d.now.members[i].picked.Add(-1)
		}
	}
	// Hardly any can, so all are looked at. One of them is drawn by lot, each
	// with as many lots as its weight: the next in line would have the share of
	// all who cannot.
	var last *reverseproxy.Upstream
	lots, triedLots := 0, 0
	for i, weight := range t.weights {
		if weight == 0 || !t.serves(d.pool[i]) {
			continue
		}
		serves = true
		switch member := d.pool[i]; {
		case member.Full():
			d.busy = d.busy || !d.tried.has(member)
		case !d.tried.has(member):
			if lots += weight; rand.IntN(lots) < weight {
				u = member
			}
		case d.tried.isLast(member):
			last = member
		default:
			if triedLots += weight; rand.IntN(triedLots) < weight {
				tried = member
			}
		}
	}
	if tried == nil {
		tried = last
	}
	return u, tried, serves
}

// pickInner has the policy of select pick among those of t that can take the
// request and were not tried by it. It may want none of them.
func (d *decision) pickInner(t *tier) *reverseproxy.Upstream {
	pool := make(reverseproxy.UpstreamPool, 0, len(t.weights))
	for i, weight := range t.weights {
		if u := d.pool[i]; weight > 0 && d.takes(t, u) {
			pool = append(pool, u)
		}
	}
	if len(pool) == 0 {
		return nil
	}
	writer := d.writer
	if writer == nil {
		writer = noWriter{} // as under header and query, and cookie would want one
	}
	return d.inner.Select(pool, d.request, writer)
}

// noWriter is a response that nobody gets.
type noWriter struct{}

// Header returns fields that are not kept.
func (noWriter) Header() http.Header { return make(http.Header) }

// Write takes p and drops it.
func (noWriter) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader does nothing.
func (noWriter) WriteHeader(int) {}

// takes reports whether u, of t, can take the request and was not tried by it.
func (d *decision) takes(t *tier, u *reverseproxy.Upstream) bool {
	return t.serves(u) && !u.Full() && !d.tried.has(u)
}

// serves reports whether Caddy itself holds u healthy, where that counts.
func (t *tier) serves(u *reverseproxy.Upstream) bool { return t.anyHealth || u.Healthy() }

// wait holds a request at a cold start, until the pool is settled as the
// documentation of Hold says. It returns false if the client left meanwhile.
func (d *decision) wait() bool {
	if d.hold == 0 {
		return true
	}
	if d.counters != nil {
		d.counters.CountHeld()
	}
	d.now.probeUnknown()
	limit := time.NewTimer(d.hold)
	defer limit.Stop()
	var grace <-chan time.Time
	look, done := d.observe(d.pool)
	defer done()
	for {
		now, changed := look()
		if !now.undecided {
			return true
		}
		if grace == nil && len(now.tiers) > 0 {
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
		case <-d.unloaded: // no verdict will come any more
			return true
		case <-d.exiting: // the http app waits for this request
			return true
		case <-d.request.Context().Done():
			return false
		}
	}
}
