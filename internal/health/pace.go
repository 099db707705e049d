// SPDX-License-Identifier: Apache-2.0

package health

import (
	"sync"
	"time"
)

// early is whether a probe begins before its turn, and how that is limited.
type early int

const (
	// inTurn: it does not.
	inTurn early = iota
	// optional: only if not too many others do.
	optional
	// accused: as soon as not too many others do.
	accused
	// admitted: it has waited for its time.
	admitted
)

// turn is when the next probe is due by the interval, while probes begin before it. The
// zero value is none.
type turn struct {
	at       time.Time
	interval time.Duration
}

// begin returns from when the next interval counts, after a probe that began before its
// turn: as if all had begun in turn, unless the interval is another now.
func (w turn) begin(began, now time.Time, interval time.Duration) time.Time {
	switch {
	case w.interval != interval:
		return began
	case w.at.After(now):
		return w.at.Add(-interval)
	default:
		return w.at.Add(now.Sub(w.at).Truncate(interval))
	}
}

// next returns when a probe is due that begins after the last one as if that had begun in
// turn: at most an interval from now.
func (w turn) next(began, now time.Time, interval time.Duration) time.Time {
	at := began.Add(interval)
	if began.IsZero() {
		at = w.at
	}
	if at.After(now) {
		return at
	}
	return now.Add(interval)
}

// onTime is how late a probe may begin and still count as on time. The next interval then
// counts from when it was due, so that small delays do not move a target from slot to slot.
const onTime = 5 * time.Millisecond

// Probes that begin before their turn are limited for the whole process, to 200 in any
// second: so many accusations at once must not become a flood.
const (
	// paceStep is the time between two of them in the long run.
	paceStep = time.Second / 190
	// paceBurst is how many may begin at the same time.
	paceBurst = 10
	// maxPaceBack is by how much the clock may go back: after more the queue is not of this
	// time. That happens in tests only.
	maxPaceBack = time.Second
)

// Pacer limits how many probes begin before their turn, by the generic cell rate algorithm
// (ITU-T I.371). The zero value is ready.
type Pacer struct {
	mu   sync.Mutex // guards what follows
	next time.Time  // when the next probe would begin at a steady rate
	last time.Time  // when a probe last was to begin
}

// outOfTurn is that of the process.
var outOfTurn Pacer

// reserve returns when a probe that cannot be left out may begin. If it is its turn before
// that, it begins then, and does not count. A turn of zero is none.
func (p *Pacer) reserve(now, turn time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.earliest(now)
	if !turn.IsZero() && turn.Before(at) {
		return turn
	}
	p.next = p.next.Add(paceStep)
	return at
}

// try reports whether a probe may begin now, and if so, counts it.
func (p *Pacer) try(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.earliest(now).After(now) {
		return false
	}
	p.next = p.next.Add(paceStep)
	return true
}

// earliest returns when a probe may begin. p.mu must be held.
func (p *Pacer) earliest(now time.Time) time.Time {
	if p.next.Before(now) || p.last.Sub(now) > maxPaceBack {
		p.next = now
	}
	p.last = now
	if at := p.next.Add(-(paceBurst - 1) * paceStep); at.After(now) {
		return at
	}
	return now
}
