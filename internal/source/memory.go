// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// answer is what a source has answered. It does not change.
type answer struct {
	at        time.Time
	upstreams []upstream
	missing   error // says that there is no such name, nil if there is one
}

// upstream is what a source says of an upstream.
type upstream struct {
	dial        string
	maxRequests int
}

// newAnswer returns the answer that a source gave, or its error if that is a failure.
func newAnswer(upstreams []*reverseproxy.Upstream, err error, now time.Time) (*answer, error) {
	a := &answer{at: now}
	if isMissing(err) {
		a.missing = err
		return a, nil
	}
	if err != nil {
		return nil, err
	}
	a.upstreams = make([]upstream, 0, len(upstreams))
	for _, u := range upstreams {
		a.upstreams = append(a.upstreams, upstream{u.Dial, u.MaxRequests})
	}
	return a, nil
}

// isMissing reports whether an error says that the name does not exist or has no records.
// A source that cannot reach a server of its own because that has no address fails.
func isMissing(err error) bool {
	notFound, isDNS := errors.AsType[*net.DNSError](err)
	_, unreachable := errors.AsType[*net.OpError](err)
	return isDNS && notFound.IsNotFound && !unreachable
}

// result returns new upstreams, since Caddy changes those that it gets.
func (a *answer) result() ([]*reverseproxy.Upstream, error) {
	if a.missing != nil {
		return nil, a.missing
	}
	values := make([]reverseproxy.Upstream, len(a.upstreams))
	pointers := make([]*reverseproxy.Upstream, len(a.upstreams))
	for i, u := range a.upstreams {
		values[i].Dial, values[i].MaxRequests = u.dial, u.maxRequests
		pointers[i] = &values[i]
	}
	return pointers, nil
}

// isEqual reports whether an answer has these upstreams, in the same order.
func (a *answer) isEqual(upstreams []*reverseproxy.Upstream) bool {
	return a.missing == nil && slices.EqualFunc(a.upstreams, upstreams, func(known upstream, u *reverseproxy.Upstream) bool {
		return known == upstream{u.Dial, u.MaxRequests}
	})
}

// failure is why a source gives no answers, and when to ask it again. It does not change.
type failure struct {
	err   error
	since time.Time
	wait  time.Duration // between two attempts
	next  time.Time     // when to ask again at the earliest
}

// call is one look-up that no request makes itself.
type call struct {
	patience time.Time     // until when requests wait for it although there is an answer
	reset    bool          // the source is to empty its cache first
	done     chan struct{} // closed when it is known how it ended
	answer   *answer       // set before done is closed, nil without an answer
	ended    chan struct{} // closed when nothing of it runs any more
}

// memory is what is known of a source: the value of shared.Sources. It outlives the
// configs that have the source, and handlers with the same source share it.
type memory struct {
	newest  atomic.Pointer[answer]  // the last good answer, nil before the first
	failure atomic.Pointer[failure] // nil unless the source fails
	due     atomic.Bool             // the newest answer is to be replaced before its time

	mu      sync.Mutex // guards what follows, and changes of failure
	running *call
	reset   bool                   // the next call resets the cache
	warned  map[time.Duration]bool // that there is nothing to go on with, by how long answers are used
}

// openMemory returns what is known of a source, which all of the process share until each
// has closed it.
func openMemory(key string) (*memory, error) {
	m, _, err := shared.Sources.LoadOrNew(key, func() (caddy.Destructor, error) {
		return &memory{warned: make(map[time.Duration]bool)}, nil
	})
	if err != nil {
		return nil, err
	}
	return m.(*memory), nil
}

// closeMemory takes back openMemory.
func closeMemory(key string) error {
	_, err := shared.Sources.Delete(key)
	return err
}

// Destruct has nothing to do.
func (*memory) Destruct() error { return nil }

// usable returns the newest answer if it is not too old, else nil.
func (m *memory) usable(now time.Time, stale time.Duration) *answer {
	if a := m.newest.Load(); a != nil && now.Sub(a.at) < stale {
		return a
	}
	return nil
}

// succeeded takes over an answer. It returns the failure that ended, nil if the source did
// not fail.
func (m *memory) succeeded(a *answer) (ended *failure) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.newest.Store(a)
	m.due.Store(m.reset)
	clear(m.warned)
	return m.failure.Swap(nil)
}

// failed takes over an error, of a call or of a request that has asked by itself. It
// reports whether the source answered before.
func (m *memory) failed(err error, now time.Time, ofCall, isUsable bool) (first bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := failure{err: err, since: now, wait: firstWait}
	before := m.failure.Load()
	if before != nil {
		if !ofCall { // requests that fail at the same time are one failure
			return false
		}
		next.since = before.since
		if isUsable { // else requests fail until the source answers
			next.wait = min(2*before.wait, longestWait)
		}
	}
	next.next = now.Add(next.wait)
	m.failure.Store(&next)
	m.due.Store(true)
	return before == nil
}

// expire makes the newest answer one that is to be replaced, unless it is very new, or is
// being replaced.
func (m *memory) expire(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.newest.Load(); a == nil || now.Sub(a.at) < resetInterval || m.running != nil {
		return
	}
	m.reset = true
	m.due.Store(true)
}

// warnOnce reports whether it is the first to do so since the last good answer.
func (m *memory) warnOnce(stale time.Duration) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	first := !m.warned[stale]
	m.warned[stale] = true
	return first
}
