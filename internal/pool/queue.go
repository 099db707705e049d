// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/slots"
)

const (
	// lookEvery is how often a request that waits looks for what gives no signal: Caddy's own
	// limits, which upstreams are healthy again, and the verdicts after its config has ended.
	lookEvery = 50 * time.Millisecond
	// healthEvery is how often it looks whether Caddy still considers healthy what it waits for.
	// That changes seldom, and many can wait.
	healthEvery = 5 * lookEvery
)

// queueing is what a decision knows of upstreams that are full, and of its wait.
type queueing struct {
	full        []int         // could take the request if they were not full
	fullByCaddy bool          // another one could, but is full by Caddy's own limit
	unsignaled  bool          // another one may become able to without a signal
	queues      bool          // the request is in the queue
	gaveUp      bool          // it has waited in vain
	waited      time.Duration // how long it has waited in all its selections
}

// queue lets the request wait for a slot of one of the full upstreams, or for a change after
// which it may go to another. It returns none if it waits in vain.
func queue(d *decision) int {
	h := d.pool.handler
	began := time.Now()
	if !h.enterQueue() {
		return giveUp(d, false)
	}
	i, gaveUp := wait(d)
	h.leaveQueue(time.Since(began))
	noteWait(d, time.Since(began))
	d.queues = false
	if gaveUp {
		return giveUp(d, true)
	}
	return i
}

// wait waits in the queue. It returns none if there is nothing to wait for any more, or if
// the request gives up, since it has waited for too long.
func wait(d *decision) (i int, gaveUp bool) {
	h := d.pool.handler
	d.queues = true
	place := slots.NewWaiter()
	limit := time.NewTimer(h.Rules.Queue.Timeout - d.waited)
	defer limit.Stop()
	defer h.await(d.pool)()
	ended := h.Ended
	for !d.gaveUp {
		changed := d.pool.waiters.next() // before the snapshot, so that no change is missed
		if i := d.choose(); i != none || !d.anyFull() {
			leave(place)
			return i, false
		}
		place.Wait(slotsOf(d))
		select {
		case a := <-place.Given():
			if i := take(d, a); i != none {
				return i, false
			}
		case <-changed:
		case <-d.nextLook(ended == nil):
			if ended == nil {
				d.pool.lookAgain()
			}
		case <-ended: // a config that follows may have the address
			ended = nil
		case <-limit.C:
			d.gaveUp, gaveUp = true, true
		case <-h.Exiting: // the http app waits for this request
			d.gaveUp = true
		case <-d.Request.Context().Done():
			d.gaveUp = true
		}
	}
	if a := place.Leave(); a != nil { // at the last moment
		if i := take(d, a); i != none {
			return i, false
		}
	}
	return none, gaveUp
}

// nextLook returns what fires when the request has to look again by itself, nil if all that can
// change gives a signal.
func (d *decision) nextLook(ended bool) <-chan time.Time {
	next := time.Duration(math.MaxInt64)
	if d.unsignaled || ended {
		next = lookEvery
	} else if d.pool.handler.judges() {
		next = healthEvery
	}
	if until := d.now.until; !d.pool.atOnce && !until.IsZero() { // else a timer of the pool
		next = min(next, time.Until(until))
	}
	if next == math.MaxInt64 {
		return nil
	}
	return time.After(next)
}

// leave gives up a place, and the slot that was given to it meanwhile.
func leave(place *slots.Waiter) {
	if a := place.Leave(); a != nil {
		a.Free()
	}
}

// slotsOf returns the slots that the request can use.
func slotsOf(d *decision) *slots.Set {
	d.full = inOrder(d.full)
	return awaitedAt(d.now, d.full)
}

// take returns the upstream at whose address the request was given a slot. It frees the slot
// and returns none if the request must not go there any more: the snapshot has changed, or
// Caddy's own health or limit, of which the slot knows nothing.
func take(d *decision, a *slots.Address) int {
	i := fullAt(d, a)
	if d.now != d.pool.snapshot(false) || i == none || !d.Upstreams[i].Available() {
		if chosen := d.choose(); chosen != none {
			a.Free()
			return chosen
		}
		i = fullAt(d, a)
	}
	if i == none {
		a.Free()
		return none
	}
	d.slot, d.binds = a, d.binds && i != d.bound
	if d.Tried.has(d.Upstreams[i]) {
		d.Tried.startOver()
	}
	return i
}

// fullAt returns the upstream at an address that could take the request, none if there is
// none.
func fullAt(d *decision, a *slots.Address) int {
	for _, i := range d.full {
		if d.now.members[i].Slots == a {
			return i
		}
	}
	return none
}

// giveUp returns the upstream to take after a wait in vain, or without one because too many
// requests wait. That may be none.
func giveUp(d *decision, timedOut bool) int {
	d.gaveUp = true
	if i := d.choose(); i != none {
		return i
	}
	if h := d.pool.handler; h.OnRefused != nil {
		h.OnRefused(timedOut)
	}
	d.refuse()
	return none
}

// noteWait notes how long the request has waited, for its later selections.
func noteWait(d *decision, waited time.Duration) {
	d.waited += waited
	if t := d.remember(); t != nil {
		t.waited = d.waited
	}
}
