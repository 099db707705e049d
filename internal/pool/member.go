// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/slots"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// Member is what is configured and known of one upstream of a pool. Pools can share
// members.
type Member struct {
	Address string  // as operators name it, empty if it stands for several
	Checks  []Check // without any it counts as up
	Weight  int     // 0: no traffic at all
	Group   int     // 0 for a primary, 1 for a backup of the first group, and so on
	// Limit is how many requests it gets at once, 0 for any number, and Slots counts them.
	Limit       int
	Slots       *slots.Address
	closedSlots atomic.Bool
	// Bound counts the requests that it got because their clients are bound to it.
	Bound RecentCount
	// Witness is what the traffic says of it, nil if that is not known.
	Witness *witness.Upstream
	// Extra is how often it was picked without a ticket of a counted order, less the
	// tickets that were drawn for it and not followed. So it can be below 0.
	Extra atomic.Int64
}

// Check is one check of an upstream.
type Check struct {
	Label  string // as operators see it
	Target *health.Target
}

// CloseSlots ends the use of the slots, once.
func (m *Member) CloseSlots() error {
	if m.Slots == nil || m.closedSlots.Swap(true) {
		return nil
	}
	return m.Slots.Close(m.Limit)
}

// limitNow is its limit. Requests that outlive their config have the one that holds now,
// if there is one: those that wait would else get no slot while a larger limit keeps more
// in use, and too many after it was lowered.
func (m *Member) limitNow() int {
	if m.closedSlots.Load() {
		if limit := m.Slots.Largest(); limit > 0 {
			return limit
		}
	}
	return m.Limit
}

// Status is down if any check is, and up if all are.
func (m *Member) Status() health.Status {
	status := health.Up
	for _, c := range m.Checks {
		switch c.Target.Status() {
		case health.Down:
			return health.Down
		case health.Unknown:
			status = health.Unknown
		case health.Up:
		}
	}
	return status
}

// Draining reports whether the upstream told any check that it wants no new requests.
func (m *Member) Draining() bool {
	return slices.ContainsFunc(m.Checks, func(c Check) bool { return c.Target.Draining() })
}

// IsSuspect reports whether the traffic accuses the upstream, and its checks have yet to
// decide.
func (m *Member) IsSuspect() bool {
	return m.Witness != nil && m.Witness.IsSuspect() || m.isUnreachable()
}

// isUnreachable reports whether a request could not connect to the upstream, and its checks
// have yet to decide.
func (m *Member) isUnreachable() bool {
	return slices.ContainsFunc(m.Checks, func(c Check) bool { return c.Target.IsSuspect() })
}

// Ejection returns until when the upstream is ejected, and the zero time if it is not. If
// that time is over, the next request is a trial.
func (m *Member) Ejection() (until time.Time) {
	if m.Witness != nil {
		until = m.Witness.Ejection()
	}
	return until
}

// isConvicted reports whether the traffic has accused the upstream, and a check turned it
// down for that, a short while ago.
func (m *Member) isConvicted() bool {
	return slices.ContainsFunc(m.Checks, func(c Check) bool { return c.Target.IsConvicted() })
}

// calm says that no other upstream can take over from a suspect, or that one can.
func (m *Member) calm(alone bool) {
	for _, c := range m.Checks {
		c.Target.Calm(alone)
	}
}

// probe probes the targets with a status at once.
func (m *Member) probe(status health.Status) {
	for _, c := range m.Checks {
		if c.Target.Status() == status {
			c.Target.ProbeNow()
		}
	}
}

// upFor is how long all checks have been up, and since the end of an ejection: infinite for
// an upstream without checks, and for one that is up since the cold start of its pool.
// These have no slow start.
func (m *Member) upFor(now time.Time) time.Duration {
	up := time.Duration(math.MaxInt64)
	for _, c := range m.Checks {
		if !c.Target.Original() {
			up = min(up, now.Sub(c.Target.Since()))
		}
	}
	if m.Witness != nil {
		if returned := m.Witness.Returned(); !returned.IsZero() {
			up = min(up, now.Sub(returned))
		}
	}
	return up
}

// lastFailed is when the last probe that failed began, of all checks; the zero time if
// none did.
func (m *Member) lastFailed() (last time.Time) {
	for _, c := range m.Checks {
		if failed := c.Target.LastFailed(); failed.After(last) {
			last = failed
		}
	}
	return last
}
