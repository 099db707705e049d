// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/slots"
)

// none is the position of no upstream.
const none = -1

// Attempt is one selection of an upstream for a request.
type Attempt struct {
	Upstreams reverseproxy.UpstreamPool // as the request brings them
	Request   *http.Request
	Writer    http.ResponseWriter // may be nil
	Tried     *Tried              // nil if no try of the request has failed
}

// Choice is what an attempt has come to.
type Choice struct {
	// Upstream is nil if none can take the request.
	Upstream *reverseproxy.Upstream
	// Slot is where the request has taken a slot, which is to be freed; nil if it needs
	// none.
	Slot *slots.Address
	// Binds says that the answer is to bind the client to the upstream.
	Binds bool
}

// Pick chooses the upstream for a request: the one whose turn it is in the best tier
// that has one. It waits where that is configured.
func (p *Pool) Pick(a Attempt) Choice {
	if len(a.Upstreams) == 0 {
		return Choice{}
	}
	d := decision{Attempt: a, pool: p}
	i := d.decide()
	d.report()
	switch {
	case i != none:
		d.count(i)
		return Choice{Upstream: d.Upstreams[i], Slot: d.slot, Binds: d.binds && a.Writer != nil}
	case a.Request.Context().Err() != nil:
		// The client has left. The answer that there is no upstream would be logged as an
		// error and retried; any upstream ends the request at once.
		return Choice{Upstream: a.Upstreams[0]}
	default:
		return Choice{}
	}
}

// decision is one pick that the first ticket did not settle. Upstreams are named by their
// positions.
type decision struct {
	Attempt
	pool     *Pool
	now      *Snapshot // by which it is decided
	state    State     // of the pool, when it was decided
	drawn    bool      // a ticket that is counted decided
	allTried bool      // all that serve were tried, so those that drain have their turn
	accused  bool      // all that serve are suspects, or were tried

	bound int            // the upstream that the client is bound to, none if it is to none
	binds bool           // the answer is to bind the client
	slot  *slots.Address // that was taken for the request
	queueing
}

// decide chooses an upstream, and waits for one where it can.
func (d *decision) decide() int {
	if d.Tried.isRefused() {
		d.now, d.state = d.pool.snapshot(false), notSeen
		return none
	}
	d.waited = d.Tried.hasWaited()
	i := d.choose()
	switch {
	case i != none || !d.anyFull() || d.pool.handler.Rules.Queue.Timeout == 0:
		return i
	case !d.mayWait(): // it has waited before, or must not any more
		d.refuse()
		return none
	default:
		return queue(d)
	}
}

// choose goes through the tiers, from the best on.
func (d *decision) choose() int {
	now := d.snapshot()
	d.drawn, d.allTried, d.accused = false, false, false
	d.full, d.fullByCaddy, d.unsignaled = d.full[:0], false, false
	if i, settled := pickBound(d, now); settled {
		return i
	}
	if i := d.pickTrial(now); i != none {
		return i
	}
	i, serves := d.pickServing(now)
	if i != none || serves {
		return i // a full one serves too, so upstreams that do not serve get nothing
	}
	h := d.pool.handler
	if h.breakerOpen() {
		d.state = Unavailable
		return none // nor is there anything to wait for
	}
	if now.undecided && !d.queues && d.remember().mayHold() {
		if !hold(d) {
			d.state = notSeen
			return none
		}
		if d.pool.OnResume != nil {
			d.pool.OnResume()
		}
		now = d.snapshot()
		if i, settled := pickBound(d, now); settled {
			return i
		}
		if i, serves = d.pickServing(now); i != none || serves {
			return i
		}
		if h.breakerOpen() {
			d.state = Unavailable
			return none
		}
	}
	return d.pickNotServing(now)
}

// snapshot returns the snapshot by which to decide.
func (d *decision) snapshot() *Snapshot {
	d.now = d.pool.snapshot(false)
	return d.now
}

// isFull reports whether the upstream at a position has as many requests as it may have. To
// a request that queues, all that have a limit are full: it gets their slots in its turn.
func (d *decision) isFull(i int) bool {
	if d.Upstreams[i].Full() {
		return true
	}
	limit := d.now.LimitOf(i)
	return limit > 0 && (d.queues || d.now.members[i].Slots.InUse() >= limit)
}

// claim takes a slot for the request at an upstream that is to get it. It reports whether
// there was one.
func (d *decision) claim(i int) bool {
	limit := d.now.LimitOf(i)
	if limit == 0 {
		return true
	}
	a := d.now.members[i].Slots
	if d.queues || !a.Take(limit) {
		return false
	}
	d.slot = a
	return true
}

// unclaim undoes claim.
func (d *decision) unclaim() {
	if d.slot != nil {
		d.slot.Free()
		d.slot = nil
	}
}

// anyFull reports whether an upstream that was not tried is full.
func (d *decision) anyFull() bool { return len(d.full) > 0 || d.fullByCaddy }

// noteFull notes that an upstream is full that could take the request otherwise. One without
// a limit of its own was full by Caddy's, even if it is not any more.
func (d *decision) noteFull(i int) {
	if d.now.LimitOf(i) == 0 || d.Upstreams[i].Full() {
		d.fullByCaddy, d.unsignaled = true, true
	} else {
		d.full = append(d.full, i)
	}
}

// mayWait reports whether the request may wait for an upstream that is full.
func (d *decision) mayWait() bool {
	h := d.pool.handler
	return h.Rules.Queue.Timeout > d.waited && !d.gaveUp && d.Request.Context().Err() == nil && !h.isExiting()
}

// refuse makes the request get no upstream in its later selections, either.
func (d *decision) refuse() {
	if t := d.remember(); t != nil {
		t.refused = true
	}
}

// remember returns what is remembered of the request from one selection to the next, nil if
// there is only one.
func (d *decision) remember() *Tried {
	if d.Tried == nil && d.pool.handler.Remember != nil {
		d.Tried = d.pool.handler.Remember(d.Request)
	}
	return d.Tried
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
func (d *decision) count(i int) {
	m := d.now.members[i]
	if !d.drawn {
		m.Extra.Add(1)
	}
	if i == d.bound {
		m.Bound.Add()
	}
}

// isSafe reports whether a request can be made without harm wherever it goes.
func isSafe(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && (r.Body == nil || r.Body == http.NoBody)
}
