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
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

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
func overview(only filter) []view.Upstream {
	entries := []view.Upstream{}
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
				entries[i].Merge(e)
				continue
			}
			at[key] = len(entries)
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b view.Upstream) int {
		return cmp.Or(strings.Compare(a.Pool, b.Pool), cmp.Compare(a.Position, b.Position), strings.Compare(a.Upstream, b.Upstream))
	})
	if only.brief {
		return entries
	}
	return append(entries, app.leftOver(only)...)
}

// leftOver returns entries for the settings of addresses that no pool has, and for the
// weights of pools that do not have the address any more.
func (a *App) leftOver(only filter) []view.Upstream {
	var entries []view.Upstream
	policies := a.all()
	for address, set := range a.operations.All() {
		if set.IsDefault() || only.upstream != "" && only.upstream != address {
			continue
		}
		left := func(pool string, weight int) view.Upstream {
			owner := "no pool"
			if pool != "" {
				owner += fmt.Sprintf(" '%s'", pool)
			}
			return view.Upstream{
				Pool: pool, Upstream: address, Status: health.Unknown.String(), Mode: string(set.ModeNow()), Weight: weight, Checks: []view.Check{},
				Why:       fmt.Sprintf("%s has it; what was set at %s is kept for when one does", owner, set.Newest().Format(time.RFC3339)),
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
	slices.SortFunc(entries, func(a, b view.Upstream) int {
		return cmp.Or(strings.Compare(a.Upstream, b.Upstream), strings.Compare(a.Pool, b.Pool))
	})
	return entries
}

// notPersisted points to false if the setting of an address is not stored.
func (a *App) notPersisted(address string) *bool {
	persisted := a.operations.IsStored(address)
	if persisted {
		return nil
	}
	return &persisted
}

// entries returns one entry for each upstream of the policy that is wanted.
func (s *Selection) entries(only filter) []view.Upstream {
	pool, members, now := s.upstreams, s.members, s.current.Load()
	entries := s.entriesOf(pool, members, now, only)
	for i := range entries {
		entries[i].Position = i - len(entries)
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
			switch e.Past = past; {
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
func (s *Selection) entriesOf(pool reverseproxy.UpstreamPool, members []*member, now *snapshot, only filter) []view.Upstream {
	var entries []view.Upstream
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
func (s *Selection) entry(u *reverseproxy.Upstream, m *member, now *snapshot, here situation, effective float64, brief bool) view.Upstream {
	set := s.rules.operations.Of(m.address)
	status := m.status()
	e := view.Upstream{
		Pool: s.pool, Upstream: m.address, Status: status.String(), Mode: string(set.ModeNow()),
		Weight: set.WeightIn(s.pool, m.weight), EffectiveWeight: math.Round(effective*1000) / 1000, Backup: m.backup,
		FailOpen: here.mood.ignoresHealth(), Persisted: s.app.notPersisted(m.address),
		Checks: []view.Check{},
	}
	healthy := true
	if u != nil && u.Host != nil { // else the handler is yet to be provisioned
		e.Requests, e.Fails = u.Host.NumRequests(), u.Host.Fails()
		healthy = u.Healthy()
	}
	var since time.Time
	for _, w := range m.watches {
		view := w.Target.View
		if brief {
			view = w.Target.Brief
		}
		v := view()
		if v.Status == status && v.Since.After(since) {
			since = v.Since
		}
		e.AddCheck(newCheckEntry(w.Check.Label, v))
	}
	if !since.IsZero() {
		e.Since = &since
	}
	if now == nil {
		e.Idle = true
		return e // the caller says why
	}
	e.Serving = effective > 0 && e.Mode == settings.Ready && status == health.Up && !m.draining() && healthy
	if !brief {
		e.Reasons = []string{s.why(e, u, m, set, here, healthy)}
		e.Why = e.Reasons[0]
	}
	return e
}

func newCheckEntry(label string, v health.View) view.Check {
	c := view.Check{
		Check: view.ValidText(label), Status: v.Status.String(), Draining: v.Draining,
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

func newResultEntry(r health.Result) *view.Result {
	if r.At.IsZero() {
		return nil
	}
	return &view.Result{At: r.At, DurationMS: milliseconds(r.Took), Passed: r.Passed(), Reason: r.Reason}
}

// milliseconds returns a duration to a hundredth of a millisecond.
func milliseconds(d time.Duration) float64 {
	return math.Round(float64(d)/float64(10*time.Microsecond)) / 100
}
