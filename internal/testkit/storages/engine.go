// SPDX-License-Identifier: Apache-2.0

// Package storages has storages in memory for tests, which misbehave in the ways of real
// ones: by quirk, which is how a storage always is, and by fault, which a test begins and
// ends.
//
// All is safe for concurrent use. Time is that of the package time, so it is virtual in a
// bubble of testing/synctest: the engine must be made in the bubble. It starts no
// goroutines.
package storages

import (
	"maps"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// Engine is what stores: all its clients see the same keys. Its faults are those of all
// clients. What a test reads and writes by the Engine itself is subject to no quirk, no
// fault and no count.
type Engine struct {
	controls

	quirks Quirks

	mu      sync.Mutex               // guards what follows
	keys    map[string][]version     // the versions of each, the oldest first
	locks   map[string]chan struct{} // by name, closed when the lock is free
	clients int
}

// version is what is stored at a key from a time on.
type version struct {
	since time.Time
	value *string // nil: nothing
}

// New returns an empty engine: without an argument, one without quirks.
func New(quirks ...Quirks) *Engine {
	e := &Engine{keys: make(map[string][]version), locks: make(map[string]chan struct{})}
	for _, q := range quirks {
		e.quirks |= q
	}
	return e
}

// Each runs a test for each storage of All, in virtual time. The engine is empty. With the
// race detector, those with one quirk are left out: everything takes several times as long,
// and a quirk makes no race.
func Each(t *testing.T, f func(t *testing.T, e *Engine)) {
	t.Helper()
	for _, kind := range All() {
		if testkit.RaceDetector && bits.OnesCount(uint(kind.Quirks)) == 1 {
			continue
		}
		t.Run(kind.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, New(kind.Quirks)) })
		})
	}
}

// Quirks returns how the engine is.
func (e *Engine) Quirks() Quirks { return e.quirks }

// Has reports whether the engine has one of some quirks.
func (e *Engine) Has(quirks Quirks) bool { return e.quirks&quirks != 0 }

// Lag returns how old the state is that clients see.
func (e *Engine) Lag() time.Duration {
	if e.Has(Lags) {
		return Lag
	}
	return 0
}

// Client returns a storage of the engine. Its faults are its own: with several clients, a
// test can cut one off.
func (e *Engine) Client() *Client {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.clients++
	return &Client{engine: e, number: e.clients}
}

// Settle waits until what is stored now is what clients read.
func (e *Engine) Settle() { time.Sleep(e.Lag()) }

// Put stores a value as if it had been there for long: it is seen without a lag.
func (e *Engine) Put(key, value string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.keys[key] = []version{{value: &value}}
}

// Get returns what is stored at a key, without a lag.
func (e *Engine) Get(key string) (value string, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if v := e.at(key, time.Now()); v != nil {
		return *v, true
	}
	return "", false
}

// Keys returns all keys that begin with a prefix, sorted, without a lag.
func (e *Engine) Keys(prefix string) []string {
	keys := slices.Sorted(maps.Keys(e.state(time.Now())))
	return slices.DeleteFunc(keys, func(key string) bool { return !strings.HasPrefix(key, prefix) })
}

// Remove removes a key. It is gone at once, without a lag.
func (e *Engine) Remove(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.keys, key)
}

// Flush loses all keys, without a lag.
func (e *Engine) Flush() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.keys)
}

// write stores a value at a key, or removes it if it is nil.
func (e *Engine) write(key string, value *string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	versions := append(e.keys[key], version{now, value})
	// what no reader can see any more
	seen := now.Add(-e.Lag())
	for len(versions) > 1 && !versions[1].since.After(seen) {
		versions = versions[1:]
	}
	if len(versions) == 1 && value == nil {
		delete(e.keys, key)
		return
	}
	e.keys[key] = slices.Clone(versions)
}

// at returns what was stored at a key at a time, nil if nothing. e.mu must be held.
func (e *Engine) at(key string, when time.Time) (value *string) {
	for _, v := range e.keys[key] {
		if !v.since.After(when) {
			value = v.value
		}
	}
	return value
}

// state returns all that was stored at a time.
func (e *Engine) state(when time.Time) map[string]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	state := make(map[string]string, len(e.keys))
	for key := range e.keys {
		if value := e.at(key, when); value != nil {
			state[key] = *value
		}
	}
	return state
}

// seen returns the value at a key that readers see.
func (e *Engine) seen(key string) *string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.at(key, time.Now().Add(-e.Lag()))
}

// hasFolder reports whether readers see keys below a key, and that there are folders.
func (e *Engine) hasFolder(key string) bool {
	if e.Has(ExistsNoFolder) {
		return false
	}
	for other := range e.state(time.Now().Add(-e.Lag())) {
		if strings.HasPrefix(other, key+"/") {
			return true
		}
	}
	return false
}
