// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/pool"
)

// What requests bring at present, and what is stale.
//
// An answer of a dynamic source is present while it is the last one that a request
// brought, or a request waits for its verdicts. Any other is stale at once, as after a
// deployment that replaces all upstreams: what happens to them is no reason for an alarm.
// The exception are sources whose answers alternate: a name server rotates them, or they
// depend on the request. They are known by what they do. An answer that came back stays
// present for twice its longest recent absence, at most staleAfter. If it has not come
// back within returnsFor, it no longer counts as alternating.
//
// An upstream is present while an answer that is present has it, or while the same rule
// says so of the upstream: answers that are never the same twice can have the same
// upstreams in turn.
//
// Time counts from request to request: without requests, nothing becomes stale.

const (
	// staleAfter is how long an answer that alternates is present at most, after a
	// request brought it.
	staleAfter = time.Minute
	// returnsFor is how long it counts that something came back after an absence.
	returnsFor = 5 * time.Minute
)

// clockStart is what the times of dynamic upstreams are measured from: a hundred years
// before the process starts, so that 0 is before all of them, on a virtual clock, too.
var clockStart = time.Now().Add(-100 * 365 * 24 * time.Hour)

// elapsed returns a time as a duration since clockStart. It goes by the monotonic clock:
// a wall clock that is set moves no time.
func elapsed(t time.Time) time.Duration { return t.Sub(clockStart) }

// times are when requests brought something. All are durations since clockStart.
type times struct {
	last    time.Duration // when a request last brought it
	missing time.Duration // since when requests bring others only, 0 if they do not
	back    time.Duration // when it last came back after an absence, 0 if it never did
	away    time.Duration // the longest of the recent absences
}

// cameBack notes that a request brings it again, after others.
func (t *times) cameBack(at time.Duration) {
	away := at - t.last
	if at-t.back <= returnsFor {
		away = max(away, t.away)
	}
	t.back, t.away = at, away
}

// window is how long it stays present when requests bring others.
func (t *times) window() time.Duration {
	if t.last-t.back > returnsFor {
		return 0
	}
	return min(2*t.away, staleAfter)
}

// merge adds what another observer of the same requests knows.
func (t *times) merge(other times) {
	switch {
	case other.last > t.last:
		t.last, t.missing = other.last, other.missing
	case other.last == t.last && other.missing != 0 && (t.missing == 0 || other.missing < t.missing):
		t.missing = other.missing
	}
	t.back, t.away = max(t.back, other.back), max(t.away, other.away)
}

// observed is one address that requests brought.
type observed struct {
	member   *pool.Member
	monitors []*monitor.Monitor
	times
}

// addressSet is the state that answers with the same addresses in different orders share.
// It outlives answers that are not cached.
type addressSet struct {
	logged pool.LoggedState
	last   atomic.Int64 // when a request last brought it, as elapsed

	mu         sync.Mutex    // guards what follows
	back, away time.Duration // as in times
}

// times returns when requests brought the addresses.
func (a *addressSet) times() times {
	a.mu.Lock()
	defer a.mu.Unlock()
	return times{last: time.Duration(a.last.Load()), back: a.back, away: a.away}
}

// broughtAgain notes that a request brings the addresses after others.
func (a *addressSet) broughtAgain(last, at time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := times{last: last, back: a.back, away: a.away}
	was.cameBack(at)
	a.back, a.away = was.back, was.away
}
