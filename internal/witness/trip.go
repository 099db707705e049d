// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Cause is why an upstream is accused.
type Cause int

const (
	// Connect: no connection could be made.
	Connect Cause = iota
	// Outcome: a connection ended without an answer, or the status of the answer accuses.
	Outcome
	// Stall: requests wait, and no first byte comes.
	Stall

	causes = 3
)

// String returns the cause as metrics show it.
func (c Cause) String() string {
	switch c {
	case Connect:
		return "connect"
	case Outcome:
		return "outcome"
	default:
		return "stall"
	}
}

// Failure is how a round trip failed.
type Failure struct {
	Cause Cause
	// Reason says so in a few words, without what may be secret.
	Reason string
	// Answered: there is an answer, whose status accuses.
	Answered bool
	// Unsure: the connection was used before, and ended before any byte of an answer. The
	// upstream may have closed it because it was idle.
	Unsure bool
}

// accusation is a failure as an upstream takes it.
type accusation struct {
	cause     Cause
	reason    string
	answered  bool
	unsure    bool
	byRequest bool   // else it is by what all requests experience
	stage     uint64 // in which the request began
}

// Trip is one round trip of a request. Its methods take no lock as long as all is well.
type Trip struct {
	upstream *Upstream
	stage    uint64
	firsts   atomic.Uint64 // first bytes when it began to wait
	trial    uint64        // which trial it is, 0 if it is none
	phase    atomic.Int32
}

const (
	sending int32 = iota // the request is being sent
	waiting              // for the first byte of the answer
	over
)

// Begin begins a round trip to an upstream. It does not wait for an answer yet.
func (t *Trip) Begin(u *Upstream) {
	t.upstream, t.stage, t.trial = u, u.stage.Load(), 0
	t.firsts.Store(u.flow.firsts())
	t.phase.Store(sending)
	if u.attentive.Load() {
		t.trial = u.ejection.beginTrial()
	}
}

// Wait says that the request was sent.
func (t *Trip) Wait() {
	if !t.phase.CompareAndSwap(sending, waiting) {
		return
	}
	t.firsts.Store(t.upstream.flow.wait())
	t.upstream.pool.watch()
}

// FirstByte says that the first byte of an answer has come.
func (t *Trip) FirstByte() {
	switch t.phase.Swap(over) {
	case waiting:
		t.upstream.flow.answered(true)
	case sending: // the answer did not wait for the end of the request
		t.upstream.flow.answered(false)
	}
}

// leave says that the round trip has ended without a first byte, if none has come.
func (t *Trip) leave() {
	if t.phase.Swap(over) == waiting {
		t.upstream.flow.leave()
	}
}

// Good says that the round trip has ended with an answer that does not accuse.
func (t *Trip) Good() {
	t.FirstByte()
	if t.upstream.attentive.Load() {
		t.upstream.good(t.trial)
	}
}

// Void says that the round trip has ended in a way that says nothing about the upstream.
func (t *Trip) Void() {
	t.leave()
	if t.trial != 0 {
		t.upstream.ejection.endTrial(t.trial)
	}
}

// Fail says that the round trip has failed. It returns what was counted. It takes locks.
func (t *Trip) Fail(f Failure) (c Counted) {
	u := t.upstream
	unsure := f.Unsure && t.phase.Load() != over // a 1xx answer is one
	slow := f.Cause == Stall && u.flow.firsts() != t.firsts.Load()
	if f.Answered {
		t.FirstByte()
	} else {
		t.leave()
	}
	switch {
	case t.trial != 0 && slow:
		u.ejection.endTrial(t.trial)
	case t.trial != 0:
		u.bad(t.trial, f.Reason)
	case slow: // other requests get answers, so this one is slow
	default:
		return u.accuse(accusation{cause: f.Cause, reason: f.Reason, answered: f.Answered, unsure: unsure, byRequest: true, stage: t.stage})
	}
	return c
}

// Counted is what one request has counted against an upstream. The zero value is nothing.
type Counted struct {
	upstream *Upstream
	row      uint64
}

// TakeBack takes it back: the request fails elsewhere, too.
func (c Counted) TakeBack() {
	if c.upstream == nil {
		return
	}
	c.upstream.mu.Lock()
	defer c.upstream.mu.Unlock()
	c.upstream.row.takeBack(c.row)
}

const (
	// minBackoff and maxBackoff bound the time after an acquittal in which the same cause
	// begins no burst. It doubles while acquittals repeat.
	minBackoff = time.Second
	maxBackoff = 30 * time.Second
	// urgentRequests accusations within urgentTime begin one all the same.
	urgentRequests = 3
	urgentTime     = time.Second
	// minAnswers is how many answers in a row make a suspect by their status: an upstream
	// that is just too busy gives good ones, too.
	minAnswers = 2
	// longDown is how long an upstream is down or in maintenance until what failed before is
	// forgotten: as long as a first ejection lasts by default.
	longDown = 30 * time.Second
)

// backoff is the time in which a cause begins no burst.
type backoff struct {
	length time.Duration
	until  time.Time
}

// lengthen begins it after an acquittal.
func (b *backoff) lengthen(now time.Time) {
	if now.Sub(b.until) > maxBackoff { // the last one is long ago
		b.length = 0
	}
	b.length = min(max(2*b.length, minBackoff), maxBackoff)
	b.until = now.Add(b.length)
}

// row is what has failed in a row, with no good answer between.
type row struct {
	id     uint64 // of the row, another after each good answer
	length int    // what counts towards an ejection
	streak int    // outcomes and stalls
	reason string // of the last one
	// recent are when the last requests failed, the newest last.
	recent [urgentRequests]time.Time
	// stalledAt is 1 more than the first bytes that had come when the upstream was
	// acquitted of a stall; 0 if it was not.
	stalledAt uint64
	acquitted bool   // no stall was counted since then
	begun     uint64 // how many requests had begun to wait when one was
}

// stalledRequests is how many further requests make a further stall count. So one that is
// slow does not count again and again.
const stalledRequests = 3

// acquitStall notes that the upstream was acquitted of a stall.
func (r *row) acquitStall(firsts uint64) { r.stalledAt, r.acquitted = firsts+1, true }

// stall notes a stall, and reports whether it counts: after an acquittal with no first byte
// since, and then once more for each few requests that come.
func (r *row) stall(firsts, begun uint64) bool {
	if r.stalledAt != firsts+1 || !r.acquitted && begun-r.begun < stalledRequests {
		return false
	}
	r.acquitted, r.begun = false, begun
	return true
}

func (r *row) reset() { *r = row{id: r.id + 1} }

// convict forgets all but what counts towards an ejection.
func (r *row) convict() { *r = row{id: r.id, length: r.length} }

// request notes that a request has failed.
func (r *row) request(now time.Time) {
	copy(r.recent[:], r.recent[1:])
	r.recent[urgentRequests-1] = now
}

// isUrgent reports whether so many requests fail that no back-off applies.
func (r *row) isUrgent(now time.Time) bool {
	first := r.recent[0]
	return !first.IsZero() && now.Sub(first) <= urgentTime
}

func (r *row) add(counts bool, reason string) {
	r.streak++
	r.reason = reason
	if counts {
		r.length++
	}
}

func (r *row) takeBack(id uint64) {
	if r.id == id && r.length > 0 {
		r.length--
	}
}

// describe says what has failed: requests, or a trial. Checked says that the upstream has
// checks.
func (r *row) describe(trial, checked bool) string {
	switch passing := " while its checks pass"; {
	case trial:
		return "its trial failed: " + r.reason
	case r.length == 1:
		return "a request failed: " + r.reason
	default:
		if !checked {
			passing = ""
		}
		return fmt.Sprintf("%d requests in a row failed%s, the last one: %s", r.length, passing, r.reason)
	}
}
