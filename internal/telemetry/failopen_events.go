// SPDX-License-Identifier: Apache-2.0

package telemetry

import "sync"

// failOpenEvents counts the pools of one name that ignore health, in all handlers and
// configs of the process, and reports when there is a first one and when there is none
// any more.
type failOpenEvents struct {
	mu        sync.Mutex     // guards what follows
	pools     map[Source]int // how many of each source ignore health
	reported  bool           // at least one was
	reporting bool           // a goroutine is in report
}

// join makes the pools of a source count.
func (f *failOpenEvents) join(s Source) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pools == nil {
		f.pools = make(map[Source]int)
	}
	f.pools[s] = 0
}

// leave makes the pools of a source count no longer. What the source adds later is
// ignored.
func (f *failOpenEvents) leave(s Source) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pools, s)
}

// add changes how many pools of a source ignore health.
func (f *failOpenEvents) add(s Source, delta int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n, counts := f.pools[s]; counts {
		f.pools[s] = n + delta
	}
}

// count returns how many pools ignore health.
func (f *failOpenEvents) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sum()
}

// sum is count. f.mu must be held.
func (f *failOpenEvents) sum() (n int) {
	for _, pools := range f.pools {
		n += pools
	}
	return n
}

// report calls emit with what is not yet reported. No lock is held meanwhile. One
// goroutine at a time reports, and checks again after each call. Otherwise a later
// report could overtake an earlier one, and the last one would be wrong.
func (f *failOpenEvents) report(emit func(active bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reporting {
		return
	}
	f.reporting = true
	for active := f.sum() > 0; active != f.reported; active = f.sum() > 0 {
		f.reported = active
		f.mu.Unlock()
		emit(active)
		f.mu.Lock()
	}
	f.reporting = false
}
