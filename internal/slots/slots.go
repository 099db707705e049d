// SPDX-License-Identifier: Apache-2.0

// Package slots limits how many requests an address gets at once, and lets requests wait
// for a place. Requests of all handlers and configs that have a limit for an address count
// there, and each compares with its own limit. The package does not know which upstreams
// get requests.
//
// There is one lock, of everything that waits. While nothing in the process waits, no
// request takes it. It is held while no other lock is taken.
package slots

import (
	"container/heap"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// Address counts the requests at one address that have a slot there.
type Address struct {
	dial    string
	inUse   atomic.Int64
	leaving atomic.Int64 // how often Close is yet to be done, after the last request

	sets   []*Set // those that have it, and for which requests wait; guarded by waits.mu
	limits []int  // of those that have opened it and not closed it; guarded by waits.mu
}

// waits is what waits in the process.
var waits struct {
	count atomic.Int64 // how many requests; changed while mu is held
	last  atomic.Uint64

	mu sync.Mutex // guards the sets and limits of addresses, and the waiters of sets
}

// Open returns the counts of an address, which all share, for one that has a limit there.
// Close must follow, with the same limit.
func Open(dial string, limit int) (*Address, error) {
	found, _, err := shared.Slots.LoadOrNew(dial, func() (caddy.Destructor, error) { return &Address{dial: dial}, nil })
	if err != nil {
		return nil, err
	}
	a := found.(*Address)
	waits.mu.Lock()
	defer waits.mu.Unlock()
	a.limits = append(a.limits, limit)
	return a, nil
}

// Close undoes Open. As long as requests have a slot, a further config that opens the
// address shares it with them.
func (a *Address) Close(limit int) error {
	waits.mu.Lock()
	if i := slices.Index(a.limits, limit); i >= 0 {
		a.limits = slices.Delete(a.limits, i, i+1)
	}
	waits.mu.Unlock()
	a.leaving.Add(1)
	if a.inUse.Load() > 0 {
		return nil
	}
	return a.leave()
}

// leave does what Close has left to the last request.
func (a *Address) leave() (err error) {
	for range a.leaving.Swap(0) {
		_, err = shared.Slots.Delete(a.dial)
	}
	return err
}

// Destruct does nothing: requests in flight may still have slots.
func (*Address) Destruct() error { return nil }

// Largest returns the largest limit of those that have the address open, 0 if none has.
func (a *Address) Largest() (limit int) {
	waits.mu.Lock()
	defer waits.mu.Unlock()
	for _, open := range a.limits {
		limit = max(limit, open)
	}
	return limit
}

// InUse returns how many requests have a slot.
func (a *Address) InUse() int { return int(a.inUse.Load()) }

// Take takes a slot if fewer are in use than the limit, and no waiting request can use it.
// Free must follow if it returns true.
func (a *Address) Take(limit int) bool {
	if waits.count.Load() == 0 {
		return a.add(limit)
	}
	waits.mu.Lock()
	defer waits.mu.Unlock()
	a.handOver()
	return a.add(limit)
}

// Free gives a slot back: to the request that has waited longest of those that can use it.
func (a *Address) Free() {
	a.inUse.Add(-1)
	if waits.count.Load() > 0 { // read after the change: a request that begins to wait reads them in the other order
		waits.mu.Lock()
		a.handOver()
		waits.mu.Unlock()
	}
	if a.leaving.Load() > 0 && a.inUse.Load() == 0 {
		_ = a.leave() // that of an entry without a destructor that fails
	}
}

// add takes a slot if fewer are in use than the limit.
func (a *Address) add(limit int) bool {
	for {
		used := a.inUse.Load()
		if used >= int64(limit) {
			return false
		}
		if a.inUse.CompareAndSwap(used, used+1) {
			return true
		}
	}
}

// handOver gives free slots to waiting requests, in the order in which they came.
// waits.mu must be held.
func (a *Address) handOver() {
	for {
		var next *Waiter
		for _, s := range a.sets {
			if w := s.waiters[0]; a.inUse.Load() < int64(s.limits[a]) && (next == nil || w.number < next.number) {
				next = w
			}
		}
		if next == nil || !a.add(next.set.limits[a]) {
			return
		}
		next.leave()
		next.given <- a
	}
}

// Set is the addresses that a request can use, each with its limit. Requests that can use
// the same ones share one.
type Set struct {
	limits  map[*Address]int
	waiters waiters // guarded by waits.mu
}

// NewSet returns the set of addresses with their limits, for which no request waits yet.
func NewSet(limits map[*Address]int) *Set { return &Set{limits: limits} }

// Waiter is the place of a request among those that wait.
type Waiter struct {
	number uint64
	given  chan *Address
	set    *Set // for which it waits, nil if it does not; guarded by waits.mu
	at     int  // among the waiters of the set; guarded by waits.mu
}

// NewWaiter returns the last place of all.
func NewWaiter() *Waiter {
	return &Waiter{number: waits.last.Add(1), given: make(chan *Address, 1)}
}

// Wait waits for a slot at any address of a set, instead of another set if it waits already.
// [Waiter.Given] tells which it is. Leave ends the wait.
func (w *Waiter) Wait(s *Set) {
	waits.mu.Lock()
	defer waits.mu.Unlock()
	if w.set == s || len(w.given) > 0 {
		return
	}
	if w.set != nil {
		w.leave()
	}
	waits.count.Add(1)
	s.register()
	w.set = s
	heap.Push(&s.waiters, w)
	s.handOver()
}

// Move makes all that wait for a set wait for another one, in the same order.
func Move(from, to *Set) {
	waits.mu.Lock()
	defer waits.mu.Unlock()
	if len(from.waiters) == 0 || from == to {
		return
	}
	to.register()
	from.unregister()
	for _, w := range from.waiters {
		w.set = to
		heap.Push(&to.waiters, w)
	}
	from.waiters = nil
	to.handOver()
}

// register makes the addresses of s know it. waits.mu must be held.
func (s *Set) register() {
	if len(s.waiters) > 0 {
		return
	}
	for a := range s.limits {
		a.sets = append(a.sets, s)
	}
}

// unregister undoes register. waits.mu must be held.
func (s *Set) unregister() {
	for a := range s.limits {
		i := slices.Index(a.sets, s)
		last := len(a.sets) - 1
		a.sets[i], a.sets[last] = a.sets[last], nil
		a.sets = a.sets[:last]
	}
}

// handOver gives the free slots of s to waiting requests. waits.mu must be held.
func (s *Set) handOver() {
	for a, limit := range s.limits {
		if a.inUse.Load() < int64(limit) {
			a.handOver()
		}
	}
}

// Given is where the address comes at which the request has a slot now.
func (w *Waiter) Given() <-chan *Address { return w.given }

// Leave ends Wait. It returns an address that was given and not received, nil if none was.
// The slot there belongs to the caller.
func (w *Waiter) Leave() *Address {
	waits.mu.Lock()
	if w.set != nil {
		w.leave()
	}
	waits.mu.Unlock()
	select {
	case a := <-w.given:
		return a
	default:
		return nil
	}
}

// leave takes w out of its set. waits.mu must be held.
func (w *Waiter) leave() {
	s := w.set
	heap.Remove(&s.waiters, w.at)
	w.set = nil
	waits.count.Add(-1)
	if len(s.waiters) == 0 {
		s.unregister()
	}
}

// waiters are a heap: the one that has waited longest is the first.
type waiters []*Waiter

// Len returns how many there are.
func (w waiters) Len() int { return len(w) }

// Less reports whether one has waited longer than another.
func (w waiters) Less(i, j int) bool { return w[i].number < w[j].number }

// Swap swaps two, and their places.
func (w waiters) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].at, w[j].at = i, j
}

// Push adds a waiter at the end.
func (w *waiters) Push(x any) {
	added := x.(*Waiter)
	added.at = len(*w)
	*w = append(*w, added)
}

// Pop takes the last one out.
func (w *waiters) Pop() any {
	last := (*w)[len(*w)-1]
	(*w)[len(*w)-1] = nil
	*w = (*w)[:len(*w)-1]
	return last
}
