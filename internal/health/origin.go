// SPDX-License-Identifier: Apache-2.0

package health

// origin is how a target began, which slow starts depend on.
type origin int32

const (
	// unmarked: nothing is said of it.
	unmarked origin = iota
	// original targets began together with all others of their pool.
	original
	// joined targets began in a pool in which others had begun before.
	joined
	// returned targets were down or paused since they began, or are.
	returned
)

// Begin says with what the target begins: with all others of its pool, or in a pool in
// which others have begun before. If it is in several pools that differ, the latter
// holds. It has no effect once probes began.
func (t *Target) Begin(withAll bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch now := origin(t.origin.Load()); {
	case t.ran || now == returned:
	case !withAll:
		t.origin.Store(int32(joined))
	case now == unmarked:
		t.origin.Store(int32(original))
	}
}

// InheritOrigin has the target begin as those did whose status it inherits, whatever
// Begin said. It has no effect once probes began.
func (t *Target) InheritOrigin(wasOriginal bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ran || t.paused {
		return
	}
	from := joined
	if wasOriginal {
		from = original
	}
	t.origin.Store(int32(from))
}

// Original reports whether the target began together with all others of its pool, and
// has been up since its first result. It never waits.
func (t *Target) Original() bool {
	return t.Status() == Up && origin(t.origin.Load()) == original
}
