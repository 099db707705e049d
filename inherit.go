// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"slices"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// inheritance gives targets that are new what is known of their upstream from checks
// that leave with this config, so that a changed check does not begin as if nothing
// were known. The worst status counts. Those that leave are the targets that run
// although nothing in the config watches them. Its policies come one after the
// other, and each can turn out to watch what seemed to leave.
type inheritance struct {
	stays   map[*health.Target]bool
	estates map[string]*estate // by upstream
}

// estate is what there is to inherit at one upstream, and who does.
type estate struct {
	leaving map[*health.Target]bool // as far as is known
	legacy  legacy
	settled bool // legacy is that of leaving
	heirs   []*health.Target
	added   []*health.Target // further heirs
}

// add takes the watches of one more policy into account.
func (h *inheritance) add(watches []*watch) {
	if h.stays == nil {
		h.begin()
	}
	begin(watches, slices.ContainsFunc(watches, func(w *watch) bool { return h.estates[w.key.upstream] != nil }))
	touched := make(map[*estate]bool)
	for _, w := range watches {
		e := h.estates[w.key.upstream]
		if e == nil || h.stays[w.target] {
			continue // nothing to inherit, or known
		}
		h.stays[w.target] = true
		touched[e] = true
		if e.leaving[w.target] {
			delete(e.leaving, w.target)
			e.settled = false
		} else if w.target.New() {
			e.added = append(e.added, w.target)
		}
	}
	for e := range touched {
		e.pass()
	}
}

// begin takes stock of what runs before this config starts.
func (h *inheritance) begin() {
	h.stays = make(map[*health.Target]bool)
	h.estates = make(map[string]*estate)
	shared.Targets.Range(func(key, value any) bool {
		target := value.(sharedTarget).Target
		if !target.Running() {
			return true
		}
		upstream := key.(targetKey).upstream
		if h.estates[upstream] == nil {
			h.estates[upstream] = &estate{leaving: make(map[*health.Target]bool)}
		}
		h.estates[upstream].leaving[target] = true
		return true
	})
}

// pass has further heirs inherit, and those before them again if something that
// seemed to leave does not.
func (e *estate) pass() {
	heirs := e.added
	e.heirs = append(e.heirs, heirs...)
	e.added = nil
	if len(e.heirs) == 0 {
		return
	}
	if !e.settled {
		e.legacy, e.settled = legacy{}, true
		for target := range e.leaving {
			e.legacy = e.legacy.worse(target)
		}
		heirs = e.heirs
	}
	for _, target := range heirs {
		if e.legacy.status == health.Up {
			target.InheritOrigin(e.legacy.original)
		}
		target.Inherit(e.legacy.status, e.legacy.draining, e.legacy.since)
	}
}

// legacy is what is known of an upstream that loses a check.
type legacy struct {
	status   health.Status
	draining bool
	original bool // it began with all others of its pool, and was up ever since
	since    time.Time
}

// worse takes one more check into account. What has no verdict does not count.
func (l legacy) worse(target *health.Target) legacy {
	status, since := target.Status(), target.Since()
	switch {
	case status == health.Unknown || l.status == health.Down && status == health.Up:
		return l
	case status == health.Down && l.status != health.Down:
		return legacy{status: status, since: since}
	case since.Before(l.since):
		since = l.since // as long as all have been so
	}
	original := target.Original() && (l.original || l.status != status)
	return legacy{status: status, draining: l.draining || target.Draining(), original: original, since: since}
}

// begin marks the targets of a pool that are new: they begin together, or join others,
// if something is known of one of its upstreams.
func begin(watches []*watch, known bool) {
	withAll := !known && !slices.ContainsFunc(watches, func(w *watch) bool { return !w.target.New() })
	for _, w := range watches {
		w.target.Begin(withAll)
	}
}

// anyProbed reports whether any of these dial addresses is probed by any policy.
func anyProbed(dials []string) (probed bool) {
	upstreams := make(map[string]bool)
	for _, dial := range dials {
		if upstream, err := parseUpstream(dial); err == nil {
			upstreams[dialInfo(upstream).String()] = true
		}
	}
	shared.Targets.Range(func(key, value any) bool {
		probed = upstreams[key.(targetKey).upstream] && !value.(sharedTarget).New()
		return !probed
	})
	return probed
}
