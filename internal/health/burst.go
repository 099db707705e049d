// SPDX-License-Identifier: Apache-2.0

package health

import "time"

const (
	// burstFactor is how many probes of a burst fit into the fast interval.
	burstFactor = 4
	// minCooldown and maxCooldown bound the time after a burst that found nothing in
	// which no other begins. It doubles while bursts go on finding nothing.
	minCooldown = time.Second
	maxCooldown = 30 * time.Second
)

// burst is a series of probes in quick succession, after a failure that no probe
// noticed.
type burst struct {
	wanted   bool // the next probe begins a burst
	active   bool // one is under way
	cooldown time.Duration
	until    time.Time // no new burst before
}

// request reports whether a burst is to begin. It is not while one is wanted or under
// way, or in a cooldown.
func (b *burst) request(now time.Time) bool {
	if b.wanted || b.active || now.Before(b.until) {
		return false
	}
	b.wanted = true
	return true
}

// begin is called when a probe begins. A burst begins with a probe, because one that was
// already in flight says nothing about the failure.
func (b *burst) begin() {
	if b.wanted {
		b.wanted, b.active = false, true
	}
}

// record takes the result of a probe. A pass ends the burst and starts a cooldown. A
// change to down ends it without one.
func (b *burst) record(passed bool, status Status, now time.Time) {
	switch {
	case !b.active:
	case passed:
		b.active = false
		if now.Sub(b.until) > maxCooldown { // the last burst is long ago
			b.cooldown = 0
		}
		b.cooldown = min(max(2*b.cooldown, minCooldown), maxCooldown)
		b.until = now.Add(b.cooldown)
	case status == Down:
		*b = burst{}
	}
}
