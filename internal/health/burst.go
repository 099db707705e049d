// SPDX-License-Identifier: Apache-2.0

package health

import "time"

// burstFactor is how many probes of a burst fit into the fast interval.
const burstFactor = 4

// Verdict is how an accusation ends.
type Verdict int

const (
	// Undecided: the probes say nothing, or were paused or ended.
	Undecided Verdict = iota
	// Acquitted: a probe that began after the accusation passed.
	Acquitted
	// Convicted: so many probes failed that the target is down.
	Convicted
)

// accusation is a failure that no probe noticed. Probes in quick succession decide.
type accusation struct {
	at     time.Time
	shared bool // the target is shown as a suspect
	done   func(Verdict)
}

// burst is a series of probes in quick succession, while there are accusations, and what the
// last one led to.
type burst struct {
	accusations []accusation
	began       time.Time // when the first of them was made
	void        int       // results that count for nothing, in a row
	conviction  conviction
	calm        bool // its probes are as far apart as usual
}

// spacing is the time from probe to probe.
func (b *burst) spacing(set *Settings) time.Duration {
	if b.calm && b.active() {
		return set.FastInterval
	}
	return set.FastInterval / burstFactor
}

// active reports whether one is under way, or about to begin.
func (b *burst) active() bool { return len(b.accusations) > 0 }

// add adds an accusation.
func (b *burst) add(a accusation) {
	if !b.active() {
		b.began, b.void, b.calm = a.at, 0, false
	}
	b.accusations = append(b.accusations, a)
}

// isShared reports whether the target is shown as a suspect.
func (b *burst) isShared() bool {
	for _, a := range b.accusations {
		if a.shared {
			return true
		}
	}
	return false
}

// decide ends the accusations that a probe decides: a pass those that were made before it
// began, and a change to down all. It returns what is to be called for them with no lock
// held.
func (b *burst) decide(passed bool, began time.Time, status Status) (ended []func()) {
	b.void = 0
	if status == Down {
		return b.end(Convicted)
	}
	if !passed {
		return nil
	}
	var left []accusation
	for _, a := range b.accusations {
		if a.at.After(began) {
			left = append(left, a)
		} else {
			ended = append(ended, func() { a.done(Acquitted) })
		}
	}
	b.accusations = left
	return ended
}

// giveUp ends all accusations undecided after too many results that count for nothing.
func (b *burst) giveUp(fails int) []func() {
	if b.void++; b.void < fails {
		return nil
	}
	return b.end(Undecided)
}

// expire ends all accusations undecided if they take too long.
func (b *burst) expire(now time.Time, set *Settings) []func() {
	if !b.active() || now.Sub(b.began) < time.Duration(set.Fails)*(set.Timeout+b.spacing(set)) {
		return nil
	}
	return b.end(Undecided)
}

// end ends all accusations, and returns what is to be called with no lock held.
func (b *burst) end(v Verdict) (ended []func()) {
	for _, a := range b.accusations {
		ended = append(ended, func() { a.done(v) })
	}
	b.accusations = nil
	return ended
}

// conviction is that a burst turned a target down. The zero value is none.
type conviction struct {
	at time.Time // when the failure was noticed, which began the burst
}

// isRecent reports whether the target may be back any moment: one interval has not passed
// since the failure.
func (c conviction) isRecent(now time.Time, set *Settings) bool {
	return !c.at.IsZero() && now.Sub(c.at) < set.Interval
}
