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
	// Brief leaves out what metrics do not need: recent results, reasons, and upstreams
	// that are in no pool.
	Brief bool
}

// wants reports whether a row of that pool and upstream is wanted.
func (f Filter) wants(pool, upstream string) bool {
	return (f.Pool == "" || f.Pool == pool) && (f.Upstream == "" || f.Upstream == upstream)
}

// List returns what the newest started config balances over: pools by name, since Caddy
// provisions servers in any order, their upstreams as the config lists them, and in the
// end the settings of addresses that no pool has. It changes nothing.
func List(only Filter) []view.Upstream {
	rows := []view.Upstream{}
	r := Newest()
	if r == nil {
		return rows
	}
	type place struct{ pool, upstream string }
	at := make(map[place]int)
	for _, b := range r.All() {
		if only.Pool != "" && only.Pool != b.Name() || only.Upstream != "" && b.Member(only.Upstream) == nil {
			continue
		}
		for _, row := range b.rows(only) {
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
	return append(rows, r.leftOver(only)...)
}

// leftOver returns rows for the settings of addresses that no pool has, and for the
// weights of pools that do not have the address any more.
func (r *Registry) leftOver(only Filter) []view.Upstream {
	var rows []view.Upstream
	balancers := r.All()
	for address, set := range r.Settings.All() {
		if set.IsDefault() || only.Upstream != "" && only.Upstream != address {
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
				Persisted: r.notPersisted(address), Gone: true,
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

// notPersisted points to false if the setting of an address is not stored.
func (r *Registry) notPersisted(address string) *bool {
	stored := r.Settings.IsStored(address)
	if stored {
		return nil
	}
	return &stored
}

// rows returns one row for each upstream of the balancer that is wanted.
func (b *Balancer) rows(only Filter) []view.Upstream {
	rows := b.rowsOf(&b.pool, b.pool.Peek(), only)
	for i := range rows {
		rows[i].Position = i - len(rows)
	}
	present, stale := b.dynamic.split()
	for _, a := range present {
		rows = append(rows, b.rowsOf(a.Pool, a.Peek(), only)...)
	}
	shown := make(map[string]bool)
	for i := range rows {
		shown[rows[i].Upstream] = true
	}
	also := func(u *reverseproxy.Upstream, m *pool.Member, past bool) {
		if shown[m.Address] || m.Address == "" || !only.wants(b.Name(), m.Address) {
			return
		}
		shown[m.Address] = true
		row := b.row(u, m, b.registry.Settings.Of(m.Address), only.Brief)
		switch row.Idle, row.Past = true, past; {
		case past:
			row.Why = "requests bring other upstreams now, so it gets none: forgotten in a while"
		case b.dynamic.answers.newest.Load() == nil:
			row.Why = "no request has brought it since the config was loaded"
		default:
			row.Why = "requests bring several sets of upstreams in turn, the last of them without it"
		}
		rows = append(rows, row)
	}
	watched := b.dynamic.watched()
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

// rowsOf returns the rows of one pool by its snapshot.
func (b *Balancer) rowsOf(p *pool.Pool, now *pool.Snapshot, only Filter) []view.Upstream {
	var rows []view.Upstream
	at := make(map[*pool.Member]int)
	upstreams, here := p.Upstreams(), p.Situation(now)
	for i, m := range now.Members() {
		if !only.wants(b.Name(), m.Address) || m.Address == "" {
			continue
		}
		u := upstreams[i]
		weight := here.Weight(i, u)
		if j, seen := at[m]; seen {
			rows[j].EffectiveWeight += weight // it is listed twice
			continue
		}
		at[m] = len(rows)
		set := b.registry.Settings.Of(m.Address)
		row := b.row(u, m, set, only.Brief)
		row.EffectiveWeight = math.Round(weight*1000) / 1000
		row.FailOpen = here.State.IgnoresHealth()
		e := explanation{row: &row, set: set, balancer: b, member: m, upstream: u, situation: here, healthy: u.Host == nil || u.Healthy()}
		row.Serving = weight > 0 && row.Mode == settings.Ready && row.Status == "up" && !m.Draining() && e.healthy
		if !only.Brief {
			row.Why = e.sentence()
			row.Reasons = []string{row.Why}
		}
		rows = append(rows, row)
	}
	return rows
}

// row returns what does not depend on the situation. An upstream that is nil is not known.
func (b *Balancer) row(u *reverseproxy.Upstream, m *pool.Member, set *settings.Setting, brief bool) view.Upstream {
	status := m.Status()
	row := view.Upstream{
		Pool: b.Name(), Upstream: m.Address, Status: status.String(), Mode: string(set.ModeNow()),
		Weight: set.WeightIn(b.Name(), m.Weight), Backup: m.Backup, Persisted: b.registry.notPersisted(m.Address),
		Checks: []view.Check{},
	}
	if u != nil && u.Host != nil { // else the handler is yet to be provisioned
		row.Requests, row.Fails = u.Host.NumRequests(), u.Host.Fails()
	}
	var since time.Time
	for _, c := range m.Checks {
		known := c.Target.View
		if brief {
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
