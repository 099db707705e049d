// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"sync"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// waiters are the requests that wait for the verdicts of a pool, by pool. A pool has a
// channel of its own, and it has one as long as a request waits, also when it is kept
// ready no more: what a request waits for must not depend on what others bring.
type waiters struct {
	mu sync.Mutex
	of map[*dynamicPool]*waiting // guarded by mu
}

type waiting struct {
	requests int
	changed  chan struct{} // closed at the next change
}

// join adds a request that waits.
func (w *waiters) join(p *dynamicPool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of == nil {
		w.of = make(map[*dynamicPool]*waiting)
	}
	if w.of[p] == nil {
		w.of[p] = &waiting{changed: make(chan struct{})}
	}
	w.of[p].requests++
}

// leave takes back join.
func (w *waiters) leave(p *dynamicPool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of[p].requests--; w.of[p].requests == 0 {
		delete(w.of, p)
	}
}

// changed returns a channel that is closed at the next change of a pool for which a
// request has joined.
func (w *waiters) changed(p *dynamicPool) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.of[p].changed
}

// wake has all that wait look again.
func (w *waiters) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, waiting := range w.of {
		close(waiting.changed)
		waiting.changed = make(chan struct{})
	}
}

// pools returns the pools for which requests wait.
func (w *waiters) pools() map[*dynamicPool]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	pools := make(map[*dynamicPool]bool, len(w.of))
	for p := range w.of {
		pools[p] = true
	}
	return pools
}

// observe returns how a request that waits looks at a pool: each look returns the
// snapshot, and a channel that is closed when another one may follow. The channel is
// taken before the look, so that no change is missed between them. The request calls
// done when it waits no more.
func (s *Selection) observe(pool reverseproxy.UpstreamPool) (look func() (*snapshot, <-chan struct{}), done func()) {
	if s.owns(pool) {
		return func() (*snapshot, <-chan struct{}) {
			now := s.current.Load()
			return now, now.superseded
		}, func() {}
	}
	d := s.dynamic
	p := d.find(pool)
	d.waiters.join(p)
	return func() (*snapshot, <-chan struct{}) {
		changed := d.waiters.changed(p)
		return d.snapshotNow(p, true), changed
	}, func() { d.waiters.leave(p) }
}
