// SPDX-License-Identifier: Apache-2.0

// Package view has the rows that the admin API, the commands, the page and the metrics
// show. It is plain data: it imports nothing of this module, has no locks, and does not
// know where rows come from.
package view

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Remembered is how many results of a check are shown.
const Remembered = 60

// Upstream is one upstream of one pool. Handlers whose pools have the same name are one
// pool.
type Upstream struct {
	Pool     string `json:"pool"`
	Upstream string `json:"upstream"`
	// Status is unknown, up or down: that of the worst check.
	Status string `json:"status"`
	// Mode is ready, drain or maintenance.
	Mode string `json:"mode"`
	// ModeSince is when an operator set the mode, null if none did.
	ModeSince *time.Time `json:"mode_since"`
	// Rebind says that it drains, and that clients that are bound to it move, too.
	Rebind bool `json:"rebind,omitempty"`
	// Weight is the one in force: that of the config, or the one set at run time.
	Weight int `json:"weight"`
	// ConfiguredWeight is that of the config, 0 if the pool does not have the upstream.
	ConfiguredWeight int `json:"configured_weight"`
	// EffectiveWeight is the weight with which it gets requests at this moment: less
	// during a slow start, 0 if it gets none.
	EffectiveWeight float64 `json:"effective_weight"`
	// Group is 0 for a primary, 1 for a backup of the first group, and so on. Backup says
	// that it is not 0.
	Group  int  `json:"group"`
	Backup bool `json:"backup"`
	// Serving says that it gets requests now because it is alive, or would get them if it
	// were not suspect. It is false if it gets them only because health is ignored, or
	// because only draining or ejected upstreams are left.
	Serving bool `json:"serving"`
	// Suspect says that it is up, but that a request to it failed: it gets no new requests
	// while another upstream serves.
	Suspect bool `json:"suspect"`
	// EjectedUntil is when its ejection is over, null if it is not ejected. It is in the
	// past while the trial that follows has not ended.
	EjectedUntil *time.Time `json:"ejected_until"`
	// Why is one sentence: why this upstream gets requests, or none.
	Why string `json:"why"`
	// Requests are those in flight, and Fails those that passive health checks count.
	Requests int `json:"requests"`
	// Limit is how many requests it gets at once, 0 for any number. It grows during a slow
	// start.
	Limit int `json:"limit"`
	// Bound is how many requests it got in the last minute because their clients are bound to
	// it.
	Bound int `json:"bound"`
	Fails int `json:"fails"`
	// RequestsPerSecond is how many requests it got in each of the last ten seconds, retries
	// included. RecentFailures is how many in the last minute failed in a way that accuses it.
	RequestsPerSecond float64 `json:"requests_per_second"`
	RecentFailures    uint64  `json:"recent_failures"`
	// Since is when the status last changed, null if it never did.
	Since  *time.Time `json:"since"`
	Checks []Check    `json:"checks"`
	// FailOpen says that the pool ignores health at this moment.
	FailOpen bool `json:"fail_open,omitempty"`
	// Persisted is false while a mode or weight set at run time could not be stored;
	// else it is left out.
	Persisted *bool `json:"persisted,omitempty"`
	// Gone says that the pool does not have the upstream any more, or no pool has it if
	// Pool is empty: what is shown was set at run time.
	Gone bool `json:"gone,omitempty"`
	// Idle says that requests do not bring it at present: it is in no pool that
	// balances now.
	Idle bool `json:"idle,omitempty"`
	// DownAt is at how many live members of the fleet it is down, this one included, and
	// Members how many there are. Both are left out without a fleet.
	DownAt  *int `json:"down_at,omitempty"`
	Members int  `json:"members,omitempty"`

	// Reasons are what Why says of each of the handlers that are merged here, each once.
	Reasons []string `json:"-"`
	// Position orders the rows of a pool: below 0 if the config lists the upstream, 0 if
	// requests bring it.
	Position int `json:"-"`
	// Stale says that requests bring other upstreams now.
	Stale bool `json:"-"`
}

// Check is what one check knows of an upstream.
type Check struct {
	Check             string  `json:"check"`
	Status            string  `json:"status"`
	Draining          bool    `json:"draining,omitempty"` // the upstream asks for no new requests
	ConsecutivePasses int     `json:"consecutive_passes"`
	ConsecutiveFails  int     `json:"consecutive_fails"`
	Last              *Result `json:"last"`        // null before the first result
	LastFailed        *Result `json:"last_failed"` // null if none failed
	// Recent are the durations of the last results in milliseconds, [Remembered]
	// at most, the oldest first, below 0 for those that failed.
	Recent []float64 `json:"recent_ms"`
	// Next is when the next probe is due, null while none is.
	Next *time.Time `json:"next"`
}

// Result is one result of a check.
type Result struct {
	At         time.Time `json:"at"`
	DurationMS float64   `json:"duration_ms"`
	Passed     bool      `json:"passed"`
	Reason     string    `json:"reason"`
}

// Title is the heading above the row and those that belong to it.
func (u *Upstream) Title() string {
	if u.Gone {
		return "Set at run time, but in no pool"
	}
	return u.Pool
}

// State is the one word for an upstream: maintenance, draining, down, unknown, ejected,
// suspect or up.
func (u *Upstream) State() string {
	switch {
	case u.Mode == "maintenance":
		return "maintenance"
	case u.Mode == "drain" || u.Draining():
		return "draining"
	case u.Status != "up":
		return u.Status
	case u.EjectedUntil != nil:
		return "ejected"
	case u.Suspect:
		return "suspect"
	default:
		return u.Status
	}
}

// StateSince returns since when the upstream is in its state: since its mode was set while that is
// not ready, otherwise since its status changed. It is nil if that is not known.
func (u *Upstream) StateSince() *time.Time {
	if u.Mode != "ready" && u.ModeSince != nil {
		return u.ModeSince
	}
	return u.Since
}

// InTrouble reports whether an upstream needs a look: it does not serve, or is suspect or
// ejected for a handler of its pool.
func (u *Upstream) InTrouble() bool { return !u.Serving || u.Suspect || u.EjectedUntil != nil }

// Ejection says until when an upstream whose state is ejected stays so, as the time that a
// function writes. It is empty in other states.
func (u *Upstream) Ejection(now time.Time, write func(until time.Time) string) string {
	switch {
	case u.State() != "ejected":
		return ""
	case u.EjectedUntil.After(now):
		return write(*u.EjectedUntil)
	default:
		return "on trial"
	}
}

// Draining reports whether the upstream told any check that it wants no new requests.
func (u *Upstream) Draining() bool {
	return slices.ContainsFunc(u.Checks, func(c Check) bool { return c.Draining })
}

// Merge adds what another handler knows of the same upstream in the pool of the same
// name.
func (u *Upstream) Merge(other Upstream) {
	u.Weight = max(u.Weight, other.Weight)
	u.ConfiguredWeight = max(u.ConfiguredWeight, other.ConfiguredWeight)
	u.EffectiveWeight = max(u.EffectiveWeight, other.EffectiveWeight)
	u.Requests = max(u.Requests, other.Requests) // Caddy counts by address
	u.mergeLimit(other)
	u.Bound += other.Bound
	u.Fails = max(u.Fails, other.Fails)
	u.Group = min(u.Group, other.Group)
	u.Backup = u.Group > 0
	u.FailOpen = u.FailOpen || other.FailOpen
	u.Suspect = u.Suspect || other.Suspect
	if until := other.EjectedUntil; until != nil && (u.EjectedUntil == nil || until.After(*u.EjectedUntil)) {
		u.EjectedUntil = until
	}
	u.Position = min(u.Position, other.Position)
	u.Stale = u.Stale && other.Stale
	u.Idle = u.Idle && other.Idle
	u.Members = max(u.Members, other.Members)
	if other.DownAt != nil && (u.DownAt == nil || *other.DownAt > *u.DownAt) {
		u.DownAt = other.DownAt // it counts by address
	}
	if isWorse(other.Status, u.Status) {
		u.Status, u.Since = other.Status, other.Since
	}
	u.mergeReasons(other)
	for _, c := range other.Checks {
		u.AddCheck(c)
	}
	slices.SortFunc(u.Checks, func(a, b Check) int { return strings.Compare(a.Check, b.Check) })
}

// mergeLimit lets the row have the largest limit: up to that, some handler sends requests to
// the upstream. One handler without a limit sends any number.
func (u *Upstream) mergeLimit(other Upstream) {
	if u.Limit > 0 && other.Limit > 0 {
		u.Limit = max(u.Limit, other.Limit)
	} else {
		u.Limit = 0
	}
}

// InFlight says how many requests are in flight, and of how many at most if there is a limit.
func (u *Upstream) InFlight() string {
	if u.Limit > 0 {
		return fmt.Sprintf("%d of %d", u.Requests, u.Limit)
	}
	return strconv.Itoa(u.Requests)
}

// BoundTraffic says how many requests came from clients that are bound to the upstream,
// empty if there were none.
func (u *Upstream) BoundTraffic() string {
	switch u.Bound {
	case 0:
		return ""
	case 1:
		return "1 request in the last minute of a client bound to it"
	default:
		return fmt.Sprintf("%d requests in the last minute of clients bound to it", u.Bound)
	}
}

// InFleet says at how many members of the fleet the upstream is down, empty if it is down at
// none.
func (u *Upstream) InFleet() string {
	if u.DownAt == nil || *u.DownAt == 0 {
		return ""
	}
	return fmt.Sprintf("down at %d of %s", *u.DownAt, count(u.Members, "member"))
}

// AddCheck adds a check. Of several checks with one label the worst is shown.
func (u *Upstream) AddCheck(c Check) {
	i := slices.IndexFunc(u.Checks, func(known Check) bool { return known.Check == c.Check })
	if i < 0 {
		u.Checks = append(u.Checks, c)
	} else if isWorse(c.Status, u.Checks[i].Status) {
		u.Checks[i] = c
	}
}

// mergeReasons lets the row say what applies to each of the handlers that it stands for.
// It serves if it does for one of them.
func (u *Upstream) mergeReasons(other Upstream) {
	for _, row := range []*Upstream{u, &other} {
		if row.Reasons == nil && row.Why != "" {
			row.Reasons = []string{row.Why}
		}
	}
	first, second := u.Reasons, other.Reasons
	if other.Serving && !u.Serving {
		first, second = second, first
	}
	u.Reasons = slices.Clone(first)
	for _, reason := range second {
		if !slices.Contains(u.Reasons, reason) {
			u.Reasons = append(u.Reasons, reason)
		}
	}
	u.Serving = u.Serving || other.Serving
	u.Why = strings.Join(u.Reasons, "; elsewhere in this pool: ")
}

// isWorse reports whether a status is worse than another.
func isWorse(status, than string) bool {
	rank := func(status string) int { return slices.Index([]string{"up", "unknown", "down"}, status) }
	return rank(status) > rank(than)
}
