// SPDX-License-Identifier: Apache-2.0

package pool

import "sync"

// waiters are the requests that wait for a change of one pool. There is a channel only
// while a request waits. The zero value has none.
type waiters struct {
	mu       sync.Mutex // guards what follows
	requests int
	changed  chan struct{} // closed at the next change; nil while no request waits
}

// join adds a request.
func (w *waiters) join() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.requests++; w.changed == nil {
		w.changed = make(chan struct{})
	}
}

// leave takes back join.
func (w *waiters) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.requests--; w.requests == 0 {
		w.changed = nil
	}
}

// next returns a channel that is closed at the next change, for a request that has
// joined.
func (w *waiters) next() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// wake wakes all waiting requests.
func (w *waiters) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed != nil {
		close(w.changed)
		w.changed = make(chan struct{})
	}
}
