// SPDX-License-Identifier: Apache-2.0

package telemetry

import "sync"

// failOpenPools counts the pools of one name that ignore health, in all handlers and
// configs of the process, and knows what was told of that.
type failOpenPools struct {
	mu      sync.Mutex     // guards what follows
	pools   map[Source]int // how many of each source ignore health
	told    bool           // that at least one does
	telling bool           // a goroutine is in tell
}

// join has a source count.
func (f *failOpenPools) join(s Source) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pools == nil {
		f.pools = make(map[Source]int)
	}
	f.pools[s] = 0
}

// leave has a source no longer count. What it adds later is ignored.
func (f *failOpenPools) leave(s Source) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pools, s)
}

// add changes how many pools of a source ignore health.
func (f *failOpenPools) add(s Source, delta int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n, counts := f.pools[s]; counts {
		f.pools[s] = n + delta
	}
}

// count returns how many pools ignore health.
func (f *failOpenPools) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sum()
}

// sum is count. f.mu must be held.
func (f *failOpenPools) sum() (n int) {
	for _, pools := range f.pools {
		n += pools
	}
	return n
}

// tell calls emit with what is not told yet. No lock is held meanwhile. One goroutine at
// a time tells, and looks again after each call: two that told at the same time could
// overtake each other, and the last word would not be what holds.
func (f *failOpenPools) tell(emit func(active bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.telling {
		return
	}
	f.telling = true
	for active := f.sum() > 0; active != f.told; active = f.sum() > 0 {
		f.told = active
		f.mu.Unlock()
		emit(active)
		f.mu.Lock()
	}
	f.telling = false
}
