// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// Filter says which rows are wanted. An empty field wants all.
type Filter struct {
	Pool, Upstream string
	// Serving wants only upstreams that serve, or only those that do not.
	Serving *bool
	// Brief leaves out what metrics do not need: recent results, reasons, and upstreams
	// that are in no pool.
	Brief bool
}

// wants reports whether a row of that pool and upstream is wanted.
func (f Filter) wants(pool, upstream string) bool {
	return (f.Pool == "" || f.Pool == pool) && (f.Upstream == "" || f.Upstream == upstream)
}

// wantsServing reports whether a row is wanted by whether it serves.
func (f Filter) wantsServing(row *view.Upstream) bool {
	return f.Serving == nil || *f.Serving == row.Serving
}

// List returns what the newest started config balances over: pools by name, since Caddy
// provisions servers in any order, their upstreams as the config lists them, and in the
// end the settings of addresses that no pool has. It changes nothing.
func List(only Filter) []view.Upstream { return list(Newest(), only) }

// list is List for a registry, which can be nil.
func list(r *Registry, only Filter) []view.Upstream {
	rows := []view.Upstream{}
	if r == nil {
		return rows
	}
	type place struct{ pool, upstream string }
	at := make(map[place]int)
	for _, b := range r.All() {
		if only.Pool != "" && only.Pool != b.Name() || only.Upstream != "" && b.Member(only.Upstream) == nil {
			continue
		}
		for _, row := range (lister{b, only}).rows() {
			key := place{row.Pool, row.Upstream}
			if i, seen := at[key]; seen {
				rows[i].Merge(row)
				continue
			}
			at[key] = len(rows)
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b view.Upstream) int {
		return cmp.Or(strings.Compare(a.Pool, b.Pool), cmp.Compare(a.Position, b.Position), strings.Compare(a.Upstream, b.Upstream))
	})
	if only.Brief {
		return rows
	}
	showTraffic(r, rows)
	rows = append(rows, leftOver(r, only)...)
	rows = slices.DeleteFunc(rows, func(row view.Upstream) bool { return !only.wantsServing(&row) })
	if r.Fleet != nil {
		for i := range rows {
			row := &rows[i]
			down, members := r.Fleet.DownAt(row.Upstream, row.Status == health.Down.String())
			row.DownAt, row.Members = &down, members
		}
	}
	return rows
}

// showTraffic adds to rows what requests did lately.
func showTraffic(r *Registry, rows []view.Upstream) {
	pools := make(map[string]map[string]view.Traffic) // by name, then by upstream
	for _, b := range r.All() {
		if pools[b.Name()] == nil && b.counters != nil {
			pools[b.Name()], _, _ = b.counters.Traffic()
		}
	}
	for i := range rows {
		rows[i].SetTraffic(pools[rows[i].Pool][view.ValidText(rows[i].Upstream)])
	}
}

// Has reports whether the list of a registry has a row that a filter wants, which names an
// upstream.
func Has(r *Registry, only Filter) bool {
	for name := range r.Having(only.Upstream) {
		if only.wants(name, only.Upstream) {
			return true
		}
	}
	return len(leftOver(r, only)) > 0
}

// leftOver returns rows for the settings of addresses that no pool has, and for the
// weights of pools that do not have the address any more.
func leftOver(r *Registry, only Filter) []view.Upstream {
	var rows []view.Upstream
	balancers := r.All()
	for address, set := range r.Settings.All() {
		if set.IsDefault() || only.Upstream != "" && only.Upstream != address {
			continue
		}
		left := func(pool string, weight int) view.Upstream {
			where := "not in any pool"
			if pool != "" {
				where = fmt.Sprintf("not in the pool '%s'", pool)
			}
			return view.Upstream{
				Pool: pool, Upstream: address, Status: health.Unknown.String(), Mode: string(set.ModeNow()), ModeSince: modeSince(set), Rebind: set.RebindNow(), Weight: weight, Checks: []view.Check{},
				Why:       fmt.Sprintf("%s; what was set at %s is kept in case it returns", where, set.Newest().Format(time.RFC3339)),
				Persisted: notPersisted(r.Settings, address), Gone: true,
			}
		}
		pools := make(map[string]bool)
		for _, b := range balancers {
			if b.Member(address) != nil {
				pools[b.Name()] = true
			}
		}
		for pool, w := range set.Weights {
			if w.Weight != nil && !pools[pool] && only.wants(pool, address) {
				pools[pool] = true
				rows = append(rows, left(pool, *w.Weight))
			}
		}
		if len(pools) == 0 && only.wants("", address) {
			rows = append(rows, left("", 0))
		}
	}
	slices.SortFunc(rows, func(a, b view.Upstream) int {
		return cmp.Or(strings.Compare(a.Upstream, b.Upstream), strings.Compare(a.Pool, b.Pool))
	})
	return rows
}

// modeSince returns when the mode was set, nil if it never was.
func modeSince(set *settings.Setting) *time.Time {
	if set == nil || set.Changed.IsZero() {
		return nil
	}
	return &set.Changed
}

// notPersisted points to false if the setting of an address is not stored.
func notPersisted(set *settings.Set, address string) *bool {
	stored := set.IsStored(address)
	if stored {
		return nil
	}
	return &stored
}

// lister makes the rows of one balancer.
type lister struct {
	*Balancer
	only Filter
}

// rows returns one row for each upstream that is wanted.
func (l lister) rows() []view.Upstream {
	rows := l.rowsOf(&l.pool, l.pool.Peek())
	for i := range rows {
		rows[i].Position = i - len(rows)
	}
	present, stale := l.dynamic.split()
	brought := make([]view.Upstream, 0, len(present))
	for _, a := range present {
		brought = append(brought, l.rowsOf(a.Pool, a.Peek())...)
	}
	switch l.source.get() {
	case unknown:
	case some:
		rows = markIdle(rows, brought, "the source returns upstreams: those in the list get no requests now")
	case nothing:
		for i := range rows {
			if row := &rows[i]; row.Why != "" {
				row.Why += "; the source returns no upstreams now"
				row.Reasons = []string{row.Why}
			}
		}
	case empty:
		rows = markIdle(rows, nil, "the source returns an empty answer now: requests are answered 503")
	}
	rows = append(rows, brought...)
	shown := make(map[string]bool)
	for i := range rows {
		shown[rows[i].Upstream] = true
	}
	also := func(u *reverseproxy.Upstream, m *pool.Member, stale bool) {
		if shown[m.Address] || m.Address == "" || !l.only.wants(l.Name(), m.Address) {
			return
		}
		shown[m.Address] = true
		row := l.row(u, m, l.registry.Settings.Of(m.Address))
		switch row.Idle, row.Stale = true, stale; {
		case stale && l.source.isNone():
			row.Why = "the source returns no upstreams now: no requests, and forgotten within an hour"
		case stale:
			row.Why = "the source returns other upstreams now: no requests, and soon forgotten"
		case l.dynamic.answers.newest.Load() == nil:
			row.Why = "no request has brought it since the config was loaded"
		default:
			row.Why = "the source returns different lists in turn, and the last one does not have it"
		}
		rows = append(rows, row)
	}
	watched := l.dynamic.watched()
	isStale := make(map[*pool.Member]bool, len(watched))
	for _, w := range watched {
		isStale[w.Member] = w.stale
	}
	for _, a := range stale {
		upstreams := a.Upstreams()
		for i, m := range a.Members() {
			also(upstreams[i], m, isStale[m])
		}
	}
	for _, w := range watched { // those of answers that are not kept, and of an earlier config
		also(nil, w.Member, w.stale)
	}
	return rows
}

// markIdle marks rows as those of upstreams that requests do not bring. It drops those that are in
// use in another way.
func markIdle(rows, inUse []view.Upstream, why string) []view.Upstream {
	rows = slices.DeleteFunc(rows, func(row view.Upstream) bool {
		return slices.ContainsFunc(inUse, func(other view.Upstream) bool { return other.Upstream == row.Upstream })
	})
	for i := range rows {
		row := &rows[i]
		row.Idle, row.Serving, row.FailOpen, row.EffectiveWeight = true, false, false, 0
		if row.Why != "" {
			row.Why, row.Reasons = why, []string{why}
		}
	}
	return rows
}

// rowsOf returns the rows of one pool by its snapshot.
func (l lister) rowsOf(p *pool.Pool, now *pool.Snapshot) []view.Upstream {
	var rows []view.Upstream
	at := make(map[*pool.Member]int)
	upstreams, here := p.Upstreams(), p.Situation(now)
	weights := make([]float64, len(upstreams))
	for i, u := range upstreams {
		weights[i] = here.Weight(i, u)
	}
	groups := groupsOf(now.Members(), weights)
	for i, m := range now.Members() {
		if !l.only.wants(l.Name(), m.Address) || m.Address == "" {
			continue
		}
		u, weight := upstreams[i], weights[i]
		if j, seen := at[m]; seen {
			rows[j].EffectiveWeight += weight // it is listed twice
			continue
		}
		at[m] = len(rows)
		set := l.registry.Settings.Of(m.Address)
		row := l.row(u, m, set)
		row.EffectiveWeight = math.Round(weight*1000) / 1000
		row.FailOpen = here.State.IgnoresHealth()
		row.Limit = now.LimitOf(i)
		e := explanation{row: &row, set: set, balancer: l.Balancer, member: m, upstream: u, situation: here, groups: groups, healthy: u.Host == nil || u.Healthy()}
		row.Serving = e.serves()
		if !l.only.Brief {
			row.Why = e.sentence()
			row.Reasons = []string{row.Why}
		}
		rows = append(rows, row)
	}
	return rows
}

// row returns what does not depend on the situation. An upstream that is nil is not known.
func (l lister) row(u *reverseproxy.Upstream, m *pool.Member, set *settings.Setting) view.Upstream {
	status := m.Status()
	row := view.Upstream{
		Pool: l.Name(), Upstream: m.Address, Status: status.String(), Mode: string(set.ModeNow()), ModeSince: modeSince(set), Rebind: set.RebindNow(),
		Weight: set.WeightIn(l.Name(), m.Weight), ConfiguredWeight: m.Weight, Group: m.Group, Backup: m.Group > 0, Persisted: notPersisted(l.registry.Settings, m.Address),
		Checks: []view.Check{},
	}
	if status == health.Up && !l.config.Rules.Witness.Off {
		row.Suspect = m.IsSuspect()
		if until := m.Ejection(); !until.IsZero() {
			row.EjectedUntil = &until
		}
	}
	if u != nil && u.Host != nil { // else the handler is yet to be provisioned
		row.Requests, row.Fails = u.Host.NumRequests(), u.Host.Fails()
	}
	row.Limit, row.Bound = m.Limit, m.Bound.Sum()
	var since time.Time
	for _, c := range m.Checks {
		known := c.Target.View
		if l.only.Brief {
			known = c.Target.Brief
		}
		v := known()
		if v.Status == status && v.Since.After(since) {
			since = v.Since
		}
		row.AddCheck(checkRow(c.Label, v))
	}
	if !since.IsZero() {
		row.Since = &since
	}
	return row
}

func checkRow(label string, v health.View) view.Check {
	c := view.Check{
		Check: view.ValidText(label), Status: v.Status.String(), Draining: v.Draining,
		ConsecutivePasses: v.Passes, ConsecutiveFails: v.Fails,
		Last: resultRow(v.Last), LastFailed: resultRow(v.LastFailed),
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

func resultRow(r health.Result) *view.Result {
	if r.At.IsZero() {
		return nil
	}
	return &view.Result{At: r.At, DurationMS: milliseconds(r.Took), Passed: r.Passed(), Reason: r.Reason}
}

// milliseconds returns a duration to a hundredth of a millisecond.
func milliseconds(d time.Duration) float64 {
	return math.Round(float64(d)/float64(10*time.Microsecond)) / 100
}
