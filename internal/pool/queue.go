// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"time"

	"github.com/caddy-alive/caddy-alive/internal/slots"
)

// lookEvery is how often a request that waits looks for what gives no signal: Caddy's own
// limits and health, and the verdicts after its config has ended.
const lookEvery = 50 * time.Millisecond

// queueing is what a decision knows of upstreams that are full, and of its wait.
type queueing struct {
	full        []int         // could take the request if they were not full
	fullByCaddy bool          // another one could, but is full by Caddy's own limit
	unsignaled  bool          // another one may become able to without a signal
	queues      bool          // the request is in the queue
	gaveUp      bool          // it has waited in vain
	waited      time.Duration // how long it has waited in all its selections
}

// anyFull reports whether an upstream that was not tried is full.
func (d *decision) anyFull() bool { return len(d.full) > 0 || d.fullByCaddy }

// noteFull notes that an upstream is full that could take the request otherwise.
func (d *decision) noteFull(i int) {
	if d.Upstreams[i].Full() {
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

// queue lets the request wait for a slot of one of the full upstreams, or for a change after
// which it may go to another. It returns none if it waits in vain.
func (d *decision) queue() int {
	h := d.pool.handler
	began := time.Now()
	if !h.enterQueue() {
		return d.giveUp(false)
	}
	i, gaveUp := d.wait()
	h.leaveQueue(time.Since(began))
	d.noteWait(time.Since(began))
	d.queues = false
	if gaveUp {
		return d.giveUp(true)
	}
	return i
}

// wait waits in the queue. It returns none if there is nothing to wait for any more, or if
// the request gives up, since it has waited for too long.
func (d *decision) wait() (i int, gaveUp bool) {
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
		var look <-chan time.Time
		if d.unsignaled || ended == nil {
			look = time.After(lookEvery)
		}
		place.Wait(d.set())
		select {
		case a := <-place.Given():
			if i := d.take(a); i != none {
				return i, false
			}
		case <-changed:
		case <-look:
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
		if i := d.take(a); i != none {
			return i, false
		}
	}
	return none, gaveUp
}

// leave gives up a place, and the slot that was given to it meanwhile.
func leave(place *slots.Waiter) {
	if a := place.Leave(); a != nil {
		a.Free()
	}
}

// set returns the slots that the request can use.
func (d *decision) set() *slots.Set {
	d.full = inOrder(d.full)
	return d.now.awaitedAt(d.full)
}

// take returns the upstream at whose address the request was given a slot. It frees the slot
// and returns none if the request must not go there any more: the snapshot has changed, or
// Caddy's own health or limit, of which the slot knows nothing.
func (d *decision) take(a *slots.Address) int {
	i := d.fullAt(a)
	if d.now != d.pool.snapshot(false) || i == none || !d.Upstreams[i].Available() {
		if chosen := d.choose(); chosen != none {
			a.Free()
			return chosen
		}
		i = d.fullAt(a)
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
func (d *decision) fullAt(a *slots.Address) int {
	for _, i := range d.full {
		if d.now.members[i].Slots == a {
			return i
		}
	}
	return none
}

// giveUp returns the upstream to take after a wait in vain, or without one because too many
// requests wait. That may be none.
func (d *decision) giveUp(timedOut bool) int {
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

// refuse makes the request get no upstream in its later selections, either.
func (d *decision) refuse() {
	if t := d.remember(); t != nil {
		t.refused = true
	}
}

// noteWait notes how long the request has waited, for its later selections.
func (d *decision) noteWait(waited time.Duration) {
	d.waited += waited
	if t := d.remember(); t != nil {
		t.waited = d.waited
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

// isExiting reports whether the process has begun to exit.
func (h *Handler) isExiting() bool {
	select {
	case <-h.Exiting:
		return true
	default:
		return false
	}
}

// enterQueue reports whether one more request may wait, and counts it. leaveQueue must
// follow if it may.
func (h *Handler) enterQueue() bool {
	if h.waiting.Add(1) <= int64(h.Rules.Queue.Length) {
		return true
	}
	h.waiting.Add(-1)
	return false
}

// leaveQueue undoes enterQueue.
func (h *Handler) leaveQueue(waited time.Duration) {
	h.waiting.Add(-1)
	if h.OnQueued != nil {
		h.OnQueued(waited)
	}
}

// Waiting returns how many requests wait in the queue.
func (h *Handler) Waiting() int { return int(h.waiting.Load()) }
