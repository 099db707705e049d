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
	// Serving says that it takes requests when it is its turn.
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

	position int  // below 0 if the config lists it, 0 if requests bring it
	past     bool // requests bring other upstreams now
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
	if e.Serving && !other.Serving {
		e.Serving, e.Why = false, other.Why
	}
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
		entries = append(entries, s.entriesOf(p.upstreams, p.members, s.dynamic.peek(p), only)...)
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
		for i, m := range p.members {
			also(p.upstreams[i:], m, isPast[m])
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
	serving := now.gets()
	for i, m := range members {
		if !only.wants(s.pool, m.address) || m.address == "" {
			continue
		}
		var effective float64
		if serving != nil && serving.weights[i] > 0 {
			effective = float64(serving.weights[i]) / float64(max(1, serving.scale))
		}
		if j, seen := at[m]; seen {
			entries[j].EffectiveWeight += effective // it is listed twice
			continue
		}
		at[m] = len(entries)
		entries = append(entries, s.entry(pool[i], m, now, effective, only.brief))
	}
	return entries
}

// gets returns the tier that gets requests as long as none of it is full, nil if
// there is none.
func (s *snapshot) gets() *tier {
	if s == nil {
		return nil
	}
	if len(s.tiers) > 0 {
		return s.tiers[0]
	}
	for _, t := range []*tier{s.unknown(), s.resort()} {
		if !t.empty() {
			return t
		}
	}
	return nil
}

// ignoresHealth reports whether requests go to upstreams whatever their health.
func (m mood) ignoresHealth() bool { return m == failedOpen || m == lastResort }

// entry returns what is to be said of one upstream.
func (s *Selection) entry(u *reverseproxy.Upstream, m *member, now *snapshot, effective float64, brief bool) entry {
	set := s.rules.operations.of(m.address)
	status := m.status()
	e := entry{
		Pool: s.pool, Upstream: m.address, Status: status.String(), Mode: set.mode(),
		Weight: set.weight(s.pool, m.weight), EffectiveWeight: math.Round(effective*1000) / 1000, Backup: m.backup,
		FailOpen: now != nil && now.mood.ignoresHealth(), Persisted: s.app.notPersisted(m.address),
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
	e.Serving = e.Mode == modeReady && e.Weight > 0 && status == health.Up && !m.draining() && healthy
	if !brief {
		e.Why = s.why(e, u, m, set, healthy)
	}
	return e
}

// why says in one sentence why an upstream gets requests, or none.
func (s *Selection) why(e entry, u *reverseproxy.Upstream, m *member, set *setting, healthy bool) string {
	gets := e.EffectiveWeight > 0
	when := func() string { return set.Changed.Format(time.RFC3339) }
	switch {
	case e.Mode == modeMaintenance:
		return "in maintenance since " + when() + ": no requests and no probes"
	case e.Weight == 0:
		return "its weight is 0: no requests"
	case e.Mode == modeDrain && gets:
		return "draining since " + when() + ", but gets requests, for nobody else serves"
	case e.Mode == modeDrain:
		return "draining since " + when() + ": no new requests while anybody else serves"
	case m.draining() && gets:
		return "asks for no new requests, but gets them, for nobody else serves"
	case m.draining():
		return "asks for no new requests while anybody else serves"
	case e.Status != "up":
		reason := ""
		for _, c := range e.Checks {
			switch {
			case c.Status != e.Status:
			case e.Status == "down" && c.LastFailed != nil:
				reason = fmt.Sprintf("check '%s' failed: %s", c.Check, c.LastFailed.Reason)
			case e.Status == "down":
				reason = fmt.Sprintf("check '%s' failed before its options changed", c.Check)
			default:
				reason = fmt.Sprintf("check '%s' has no verdict yet", c.Check)
			}
			if reason != "" {
				break
			}
		}
		if gets {
			reason += "; gets requests all the same, for too few or none serve"
		}
		return reason
	case !healthy:
		return "up, but Caddy's own health checks or circuit breaker hold it unhealthy: no requests"
	case !gets && e.Backup:
		return "up, and a backup: gets requests when no primary can serve"
	case !gets:
		return "up, but others come first"
	case u.Host != nil && u.Full():
		return fmt.Sprintf("up, but has as many requests as it may have at once: %d", u.MaxRequests)
	case e.EffectiveWeight < float64(e.Weight):
		return fmt.Sprintf("up, in its slow start: gets requests by %.0f %% of its weight", 100*e.EffectiveWeight/float64(e.Weight))
	case len(m.watches) == 0:
		return "not checked, for its address depends on the request: gets requests in turn"
	default:
		return "up: gets requests in turn"
	}
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
