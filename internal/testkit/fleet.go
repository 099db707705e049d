// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"context"
	"sync"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// Fleet is a fleet whose members say what a test decides.
type Fleet struct {
	mu    sync.Mutex // guards what follows
	known view.Fleet
	down  map[string]int
	fails error
	waits []AnnouncedWait
}

// AnnouncedWait is a wait that was announced to a [Fleet].
type AnnouncedWait struct {
	Upstream string
	Longest  time.Duration
}

// Know sets what is known of the members, and at how many of them upstreams are down.
func (f *Fleet) Know(known view.Fleet, down map[string]int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known, f.down = known, down
}

// FailWith makes each wait end with an error from now on, nil with none.
func (f *Fleet) FailWith(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails = err
}

// Waits returns the waits that were announced.
func (f *Fleet) Waits() []AnnouncedWait {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.waits
}

// View returns what is known. Without an upstream, there is no wait.
func (f *Fleet) View(upstream string) view.Fleet {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.known
	if upstream == "" {
		known.Wait = nil
	}
	return known
}

// DownAt returns at how many members an upstream is down.
func (f *Fleet) DownAt(upstream string, _ bool) (down, members int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.down[upstream], len(f.known.Members)
}

// Wait notes a wait.
func (f *Fleet) Wait(_ context.Context, upstream string, longest time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails != nil {
		return f.fails
	}
	f.waits = append(f.waits, AnnouncedWait{upstream, longest})
	return nil
}
