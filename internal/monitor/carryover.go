// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"slices"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// CarryOver gives new targets what is known of their upstream from checks that leave with
// a reload, so that a changed check does not begin without a verdict. The worst status
// counts. The targets that leave are those that run although nothing in the new config
// monitors them. The handlers of a config are added one after the other, so a target that
// seems to leave can turn out to stay. The zero value is for a config that is about to
// start. It is not safe for concurrent use.
type CarryOver struct {
	stays     map[*health.Target]bool
	upstreams map[string]*carried // by address
}

// carried is what one upstream carries over.
type carried struct {
	leaving  map[*health.Target]bool // as far as is known
	verdict  verdict                 // the worst of leaving, if it is up to date
	upToDate bool
	given    []*health.Target // targets that were given the verdict
	waiting  []*health.Target // targets that are to be given it
}

// Add adds the monitors of one more handler.
func (c *CarryOver) Add(monitors []*Monitor) {
	if c.stays == nil {
		c.init()
	}
	isKnown := func(m *Monitor) bool { return c.upstreams[m.key.upstream] != nil }
	MarkOrigins(monitors, slices.ContainsFunc(monitors, isKnown))
	changed := make(map[*carried]bool)
	for _, m := range monitors {
		upstream := c.upstreams[m.key.upstream]
		if upstream == nil || c.stays[m.Target] {
			continue // nothing is known of it, or it was added before
		}
		c.stays[m.Target] = true
		changed[upstream] = true
		if upstream.leaving[m.Target] {
			delete(upstream.leaving, m.Target)
			upstream.upToDate = false
		} else if m.Target.New() {
			upstream.waiting = append(upstream.waiting, m.Target)
		}
	}
	for upstream := range changed {
		upstream.give()
	}
}

// init finds the targets that run before the config starts.
func (c *CarryOver) init() {
	c.stays = make(map[*health.Target]bool)
	c.upstreams = make(map[string]*carried)
	for upstream, target := range Targets() {
		if !target.Running() {
			continue
		}
		if c.upstreams[upstream] == nil {
			c.upstreams[upstream] = &carried{leaving: make(map[*health.Target]bool)}
		}
		c.upstreams[upstream].leaving[target] = true
	}
}

// give gives the verdict to the targets that wait for it, and again to the others if a
// target that seemed to leave stays.
func (c *carried) give() {
	targets := c.waiting
	c.given = append(c.given, targets...)
	c.waiting = nil
	if len(c.given) == 0 {
		return
	}
	if !c.upToDate {
		c.verdict, c.upToDate = verdict{}, true
		for target := range c.leaving {
			c.verdict.mergeWorst(target)
		}
		targets = c.given
	}
	for _, target := range targets {
		if c.verdict.status == health.Up {
			target.InheritOrigin(c.verdict.original)
		}
		target.Inherit(c.verdict.status, c.verdict.draining, c.verdict.since)
	}
}

// verdict is what is known of an upstream from several checks.
type verdict struct {
	status   health.Status
	draining bool
	original bool // it began with all others of its pool, and was up ever since
	since    time.Time
}

// mergeWorst takes one more check into account. A check without a status does not count.
func (v *verdict) mergeWorst(target *health.Target) {
	status, since := target.Status(), target.Since()
	switch {
	case status == health.Unknown || v.status == health.Down && status == health.Up:
		return
	case status == health.Down && v.status != health.Down:
		*v = verdict{status: status, since: since}
		return
	case since.Before(v.since):
		since = v.since // the status lasts as long as all checks have it
	}
	original := target.Original() && (v.original || v.status != status)
	*v = verdict{status: status, draining: v.draining || target.Draining(), original: original, since: since}
}

// MarkOrigins marks the targets of a pool that are new. They begin together if all of them are
// new and nothing is known of any of their upstreams, else they join others.
func MarkOrigins(monitors []*Monitor, known bool) {
	together := !known && !slices.ContainsFunc(monitors, func(m *Monitor) bool { return !m.Target.New() })
	for _, m := range monitors {
		m.Target.MarkOrigin(together)
	}
}

// AnyProbed reports whether the upstream at any of these dial addresses is probed for any
// handler, or was before.
func AnyProbed(dials []string) bool {
	upstreams := make(map[string]bool)
	for _, dial := range dials {
		if upstream, err := ParseUpstream(dial); err == nil {
			upstreams[dialInfo(upstream.at).String()] = true
		}
	}
	for upstream, target := range Targets() {
		if upstreams[upstream] && !target.New() {
			return true
		}
	}
	return false
}
