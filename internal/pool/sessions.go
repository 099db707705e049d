// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"sync/atomic"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// binding is what a client does that is bound to an upstream.
type binding int8

const (
	// moves: it goes to another one for good.
	moves binding = iota
	// stays: it goes there.
	stays
	// away: it goes to another one until the checks have decided.
	away
)

// bindingOf returns what the clients of a member do.
func bindingOf(r *Rules, m *Member, s *standing) binding {
	switch {
	case s.ready && s.status == health.Unknown: // at a cold start, or it has just joined
		return away
	case !s.keeps:
		return moves
	case !r.Witness.Off && m.isUnreachable():
		return away
	default:
		return stays
	}
}

// pickBound returns the upstream that the client is bound to, if it goes there. Settled says
// that no other is to be chosen: the request waits for its own if that is none.
func pickBound(d *decision, now *Snapshot) (i int, settled bool) {
	d.bound, d.binds = none, false
	cookie := d.pool.handler.Rules.Sticky
	if cookie == nil {
		return none, false
	}
	d.binds = true
	i, known := d.pool.sessions[cookie.Of(d.Request)]
	if !known {
		return none, false
	}
	d.bound = i
	u := d.Upstreams[i]
	switch {
	case now.bindings[i] == away:
		d.binds = false // it comes back there
		return none, false
	case now.bindings[i] == moves || !d.pool.handler.isHealthy(u):
		return none, false
	case d.Tried.has(u):
		d.binds = false
		return none, false
	}
	d.state = notSeen
	if !d.isFull(i) && d.claim(i) {
		d.binds = false
		return i, true
	}
	if d.noteFull(i); d.mayWait() {
		return none, true
	}
	d.full, d.fullByCaddy = d.full[:0], false
	return none, false
}

// countEvery is how long one part of the last minute is.
const countEvery = 10 * time.Second

// RecentCount counts what happened in the last minute. The zero value has counted nothing.
type RecentCount struct {
	parts [7]atomic.Uint64 // each has a number of countEvery in its upper half, and a count in its lower
}

// Add counts one.
func (r *RecentCount) Add() {
	number := uint64(time.Since(probingSince) / countEvery)
	part := &r.parts[number%uint64(len(r.parts))]
	for {
		before := part.Load()
		after := before + 1
		if before>>32 != number {
			after = number<<32 + 1
		}
		if part.CompareAndSwap(before, after) {
			return
		}
	}
}

// Sum returns how many there were, from one minute to ten seconds more.
func (r *RecentCount) Sum() (n int) {
	number := uint64(time.Since(probingSince) / countEvery)
	for i := range r.parts {
		if part := r.parts[i].Load(); number-part>>32 < uint64(len(r.parts)) {
			n += int(uint32(part))
		}
	}
	return n
}
