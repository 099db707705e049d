// SPDX-License-Identifier: Apache-2.0

package health

import (
	"sync"
	"time"
)

const (
	// beats is how often, within a timeout, this process looks whether it is late.
	beats = 8
	// minBeat is the shortest time between two looks. Timers are a little late
	// always, and that must not add up to something.
	minBeat = 10 * time.Millisecond
)

// lateness measures by how much this process is late while a probe is under
// way, be it stopped, starved or throttled: then a timeout says nothing of the
// other side. A timer fires again and again, and how late it is adds up. Probes
// that are answered soon end before it fires at all.
type lateness struct {
	mu    sync.Mutex
	timer *time.Timer
	step  time.Duration
	due   time.Time // of the next beat
	late  time.Duration
	on    bool
}

// start begins to measure, for a probe with a timeout.
func (l *lateness) start(timeout time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.step = max(timeout/beats, minBeat)
	l.due = time.Now().Add(l.step)
	l.late = 0
	l.on = true
	if l.timer == nil {
		l.timer = time.AfterFunc(l.step, l.beat)
	} else {
		l.timer.Reset(l.step)
	}
}

// beat adds by how much it is late, and has the next one follow.
func (l *lateness) beat() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.on {
		l.add(time.Now())
		l.timer.Reset(l.step)
	}
}

// add adds the time by which the next beat is overdue.
func (l *lateness) add(now time.Time) {
	if over := now.Sub(l.due); over > 0 {
		l.late += over
	}
	l.due = now.Add(l.step)
}

// stop ends it and returns by how much this process was late in all.
func (l *lateness) stop() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.on = false
	l.timer.Stop()
	l.add(time.Now()) // the last beat, too, can be overdue
	return l.late
}
