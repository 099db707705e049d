// SPDX-License-Identifier: Apache-2.0

package health

import (
	"sync/atomic"
	"time"
)

// published is what readers see without waiting. It is written only while Target.mu is
// held.
type published struct {
	status   atomic.Int32              // of state.status
	draining atomic.Bool               // of state.draining
	suspect  atomic.Bool               // it is up, but there is an accusation that all see
	changed  atomic.Pointer[time.Time] // when the status last changed, nil if it never did
	origin   atomic.Int32              // how the target began
}

// set shows a state, and since when it lasts.
func (p *published) set(s *state, since time.Time) {
	if since.IsZero() {
		p.changed.Store(nil)
	} else {
		p.changed.Store(&since)
	}
	if s.status != Up {
		p.origin.Store(int32(returned)) // once up again, it has returned
	}
	p.draining.Store(s.draining)
	p.status.Store(int32(s.status))
}

// since returns when the status last changed, the zero time if it never did.
func (p *published) since() time.Time {
	if changed := p.changed.Load(); changed != nil {
		return *changed
	}
	return time.Time{}
}

// origin is how a target began. Slow starts depend on it.
type origin int32

const (
	// unmarked: it is not known.
	unmarked origin = iota
	// original targets began together with all others of their pool.
	original
	// joined targets began in a pool in which others had begun before.
	joined
	// returned targets were down or paused since they began, or are.
	returned
)

// begin notes whether the target begins with all others of a pool. If it is in several
// pools that differ, it does not.
func (p *published) begin(withAll bool) {
	switch now := origin(p.origin.Load()); {
	case now == returned:
	case !withAll:
		p.origin.Store(int32(joined))
	case now == unmarked:
		p.origin.Store(int32(original))
	}
}

// inheritOrigin replaces what begin noted.
func (p *published) inheritOrigin(wasOriginal bool) {
	from := joined
	if wasOriginal {
		from = original
	}
	p.origin.Store(int32(from))
}

// isOriginal reports whether the target is up and has been since it began with all others.
func (p *published) isOriginal() bool {
	return Status(p.status.Load()) == Up && origin(p.origin.Load()) == original
}
