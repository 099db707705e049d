// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// entry is one upstream of one pool, as the admin API, the commands and the page
// show it. Handlers whose pools have the same name are one pool.
type entry struct {
	Pool     string `json:"pool"`
	Upstream string `json:"upstream"`
	// Status is unknown, up or down: that of the worst check.
	Status string `json:"status"`
	// Mode is ready, drain or maintenance.
	Mode mode `json:"mode"`
	// Weight is that of the config, or the one set at run time.
	Weight int `json:"weight"`
	// EffectiveWeight is the weight with which it gets requests at this moment: less
	// during a slow start, 0 if it gets none.
	EffectiveWeight float64 `json:"effective_weight"`
	Backup          bool    `json:"backup"`
	// Serving says that it gets requests now, and not merely because health is ignored
	// or because it is better than an error that a draining one gets them.
	Serving bool `json:"serving"`
	// Why is one sentence: why this upstream gets requests, or none.
	Why string `json:"why"`
	// Requests are those in flight, and Fails those that passive health checks count.
	Requests int `json:"requests"`
	Fails    int `json:"fails"`
	// Since is when the status last changed, null if it never did.
	Since  *time.Time   `json:"since"`
	Checks []checkEntry `json:"checks"`
	// FailOpen says that the pool ignores health at this moment.
	FailOpen bool `json:"fail_open,omitempty"`
	// Persisted is false while a mode or weight set at run time could not be stored;
	// else it is left out.
	Persisted *bool `json:"persisted,omitempty"`
	// Gone says that the pool, or every pool if that is empty, has it no more: what is
	// shown was set at run time.
	Gone bool `json:"gone,omitempty"`
	// Idle says that requests do not bring it at present: it is in no pool that
	// balances now.
	Idle bool `json:"idle,omitempty"`

	whys     []string // of the handlers that are merged here, each once
	position int      // below 0 if the config lists it, 0 if requests bring it
	past     bool     // requests bring other upstreams now
}

// title is what stands above the entry and those that belong to it.
func (e *entry) title() string {
	if e.Gone {
		return "Set at run time, but in no pool"
	}
	return e.Pool
}

// checkEntry is what one check knows of an upstream.
type checkEntry struct {
	Check             string       `json:"check"`
	Status            string       `json:"status"`
	Draining          bool         `json:"draining,omitempty"` // the upstream asks for no new requests
	ConsecutivePasses int          `json:"consecutive_passes"`
	ConsecutiveFails  int          `json:"consecutive_fails"`
	Last              *resultEntry `json:"last"`        // null before the first result
	LastFailed        *resultEntry `json:"last_failed"` // null if none failed
	// Recent are the durations of the last 60 results in milliseconds, the oldest
	// first, below 0 for those that failed.
	Recent []float64 `json:"recent_ms"`
	// Next is when the next probe is due, null while none is.
	Next *time.Time `json:"next"`
}

// resultEntry is one result of a check.
type resultEntry struct {
	At         time.Time `json:"at"`
	DurationMS float64   `json:"duration_ms"`
	Passed     bool      `json:"passed"`
	Reason     string    `json:"reason"`
}

// filter says which entries are wanted; what is empty is any.
type filter struct {
	pool, upstream string
	// brief leaves out what metrics do not need: recent results, reasons, and what is
	// in no pool.
	brief bool
}

// wants reports whether an entry of that pool and upstream is wanted.
func (f filter) wants(pool, upstream string) bool {
	return (f.pool == "" || f.pool == pool) && (f.upstream == "" || f.upstream == upstream)
}

// overview returns what the newest started config balances over: pools by name, for
// Caddy provisions servers in any order, their upstreams as the config lists them, and
// after all the settings of addresses that no pool has.
func overview(only filter) []entry {
	entries := []entry{}
	app := newestApp()
	if app == nil {
		return entries
	}
	type place struct{ pool, upstream string }
	at := make(map[place]int)
	for _, s := range app.all() {
		if only.pool != "" && only.pool != s.pool || only.upstream != "" && s.byAddress(only.upstream) == nil {
			continue
		}
		for _, e := range s.entries(only) {
			key := place{e.Pool, e.Upstream}
			if i, seen := at[key]; seen {
				entries[i].merge(e)
				continue
			}
			at[key] = len(entries)
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(strings.Compare(a.Pool, b.Pool), cmp.Compare(a.position, b.position), strings.Compare(a.Upstream, b.Upstream))
	})
	if only.brief {
		return entries
	}
	return append(entries, app.leftOver(only)...)
}

// leftOver returns entries for the settings of addresses that no pool has, and for the
// weights of pools that do not have the address any more.
func (a *App) leftOver(only filter) []entry {
	var entries []entry
	policies := a.all()
	for address, set := range a.operations.settings() {
		if set.idle() || only.upstream != "" && only.upstream != address {
			continue
		}
		left := func(pool string, weight int) entry {
			owner := "no pool"
			if pool != "" {
				owner += fmt.Sprintf(" '%s'", pool)
			}
			return entry{
				Pool: pool, Upstream: address, Status: health.Unknown.String(), Mode: set.mode(), Weight: weight, Checks: []checkEntry{},
				Why:       fmt.Sprintf("%s has it; what was set at %s is kept for when one does", owner, set.newest().Format(time.RFC3339)),
				Persisted: a.notPersisted(address), Gone: true,
			}
		}
		pools := make(map[string]bool)
		for _, s := range policies {
			if s.byAddress(address) != nil {
				pools[s.pool] = true
			}
		}
		for pool, w := range set.Weights {
			if w.Weight != nil && !pools[pool] && only.wants(pool, address) {
				pools[pool] = true
				entries = append(entries, left(pool, *w.Weight))
			}
		}
		if len(pools) == 0 && only.wants("", address) {
			entries = append(entries, left("", 0))
		}
	}
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(strings.Compare(a.Upstream, b.Upstream), strings.Compare(a.Pool, b.Pool))
	})
	return entries
}

// notPersisted points to false if the setting of an address is not stored.
func (a *App) notPersisted(address string) *bool {
	persisted := a.operations.persisted(address)
	if persisted {
		return nil
	}
	return &persisted
}

// merge adds what another handler knows of the same upstream in the pool of the same
// name.
func (e *entry) merge(other entry) {
	e.Weight = max(e.Weight, other.Weight)
	e.EffectiveWeight = max(e.EffectiveWeight, other.EffectiveWeight)
	e.Requests = max(e.Requests, other.Requests) // Caddy counts by address
	e.Fails = max(e.Fails, other.Fails)
	e.Backup = e.Backup && other.Backup
	e.FailOpen = e.FailOpen || other.FailOpen
	e.position = min(e.position, other.position)
	e.past = e.past && other.past
	e.Idle = e.Idle && other.Idle
	if worse(other.Status, e.Status) {
		e.Status, e.Since = other.Status, other.Since
	}
	e.mergeWhy(other)
	for _, c := range other.Checks {
		e.addCheck(c)
	}
	slices.SortFunc(e.Checks, func(a, b checkEntry) int { return strings.Compare(a.Check, b.Check) })
}

// addCheck adds a check, or has the worst of those with one label stand for them.
func (e *entry) addCheck(c checkEntry) {
	i := slices.IndexFunc(e.Checks, func(known checkEntry) bool { return known.Check == c.Check })
	if i < 0 {
		e.Checks = append(e.Checks, c)
	} else if worse(c.Status, e.Checks[i].Status) {
		e.Checks[i] = c
	}
}

// worse reports whether a status is worse than another.
func worse(status, than string) bool {
	rank := func(status string) int { return slices.Index([]string{"up", "unknown", "down"}, status) }
	return rank(status) > rank(than)
}

// entries returns one entry for each upstream of the policy that is wanted.
func (s *Selection) entries(only filter) []entry {
	pool, members, now := s.upstreams, s.members, s.current.Load()
	entries := s.entriesOf(pool, members, now, only)
	for i := range entries {
		entries[i].position = i - len(entries)
	}
	if s.dynamic == nil {
		return entries
	}
	present, past := s.dynamic.split()
	for _, p := range present {
		entries = append(entries, s.entriesOf(*p.upstreams.Load(), p.members, s.dynamic.peek(p), only)...)
	}
	shown := make(map[string]bool)
	for _, e := range entries {
		shown[e.Upstream] = true
	}
	also := func(pool reverseproxy.UpstreamPool, m *member, past bool) {
		for _, e := range s.entriesOf(pool, []*member{m}, nil, only) {
			if shown[e.Upstream] {
				continue
			}
			shown[e.Upstream] = true
			switch e.past = past; {
			case past:
				e.Why = "requests bring other upstreams now, so it gets none: forgotten in a while"
			case s.dynamic.newest.Load() == nil:
				e.Why = "no request has brought it since the config was loaded"
			default:
				e.Why = "requests bring several sets of upstreams in turn, the last of them without it"
			}
			entries = append(entries, e)
		}
	}
	watched := s.dynamic.watchedNow()
	isPast := make(map[*member]bool, len(watched))
	for _, w := range watched {
		isPast[w.member] = w.past
	}
	for _, p := range past {
		upstreams := *p.upstreams.Load()
		for i, m := range p.members {
			also(upstreams[i:], m, isPast[m])
		}
	}
	for _, w := range watched { // those of pools that are not kept, and of an earlier config
		also(make(reverseproxy.UpstreamPool, 1), w.member, w.past)
	}
	return entries
}

// entriesOf returns the entries of one pool by its snapshot, nil if requests do not
// bring it at present. Then upstreams can be nil, too.
func (s *Selection) entriesOf(pool reverseproxy.UpstreamPool, members []*member, now *snapshot, only filter) []entry {
	var entries []entry
	at := make(map[*member]int)
	var here situation
	if now != nil {
		here = s.situation(now, pool)
	}
	for i, m := range members {
		if !only.wants(s.pool, m.address) || m.address == "" {
			continue
		}
		effective := here.weight(i, pool[i])
		if j, seen := at[m]; seen {
			entries[j].EffectiveWeight += effective // it is listed twice
			continue
		}
		at[m] = len(entries)
		entries = append(entries, s.entry(pool[i], m, now, here, effective, only.brief))
	}
	return entries
}

// entry returns what is to be said of one upstream.
func (s *Selection) entry(u *reverseproxy.Upstream, m *member, now *snapshot, here situation, effective float64, brief bool) entry {
	set := s.rules.operations.of(m.address)
	status := m.status()
	e := entry{
		Pool: s.pool, Upstream: m.address, Status: status.String(), Mode: set.mode(),
		Weight: set.weight(s.pool, m.weight), EffectiveWeight: math.Round(effective*1000) / 1000, Backup: m.backup,
		FailOpen: here.mood.ignoresHealth(), Persisted: s.app.notPersisted(m.address),
		Checks: []checkEntry{},
	}
	healthy := true
	if u != nil && u.Host != nil { // else the handler is yet to be provisioned
		e.Requests, e.Fails = u.Host.NumRequests(), u.Host.Fails()
		healthy = u.Healthy()
	}
	var since time.Time
	for _, w := range m.watches {
		view := w.target.View
		if brief {
			view = w.target.Brief
		}
		v := view()
		if v.Status == status && v.Since.After(since) {
			since = v.Since
		}
		e.addCheck(newCheckEntry(w.check.label, v))
	}
	if !since.IsZero() {
		e.Since = &since
	}
	if now == nil {
		e.Idle = true
		return e // the caller says why
	}
	e.Serving = effective > 0 && e.Mode == modeReady && status == health.Up && !m.draining() && healthy
	if !brief {
		e.whys = []string{s.why(e, u, m, set, here, healthy)}
		e.Why = e.whys[0]
	}
	return e
}

func newCheckEntry(label string, v health.View) checkEntry {
	c := checkEntry{
		Check: validText(label), Status: v.Status.String(), Draining: v.Draining,
		ConsecutivePasses: v.Passes, ConsecutiveFails: v.Fails,
		Last: newResultEntry(v.Last), LastFailed: newResultEntry(v.LastFailed),
		Recent: make([]float64, 0, len(v.Recent)),
	}
	for _, r := range v.Recent {
		took := max(0.01, milliseconds(r.Took)) // so that it has a sign
		if !r.Passed {
			took = -took
		}
		c.Recent = append(c.Recent, took)
	}
	if !v.Next.IsZero() {
		c.Next = &v.Next
	}
	return c
}

func newResultEntry(r health.Result) *resultEntry {
	if r.At.IsZero() {
		return nil
	}
	return &resultEntry{At: r.At, DurationMS: milliseconds(r.Took), Passed: r.Passed(), Reason: r.Reason}
}

// milliseconds returns a duration to a hundredth of a millisecond.
func milliseconds(d time.Duration) float64 {
	return math.Round(float64(d)/float64(10*time.Microsecond)) / 100
}
