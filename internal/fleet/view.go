// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// View returns what is known of all members. With an upstream, it has what each member says
// of it, and the wait for it.
func (f *Fleet) View(upstream string) view.Fleet {
	f.mu.Lock()
	p := f.acting()
	f.mu.Unlock()
	if p == nil {
		return view.Fleet{Members: []view.Member{}}
	}
	here := p.config.Local.NotUp() // what was stored of it may be old
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	all := view.Fleet{Fleet: p.config.Fleet, Problem: f.problem, SyncInterval: p.config.Every.Seconds(), Probers: p.config.Probers, Members: []view.Member{}}
	if p.config.Probers > 0 {
		all.ProbesAlone = f.sharing.alone
	}
	var w *wait
	if upstream != "" {
		if w = f.waits.of(upstream); w != nil && now.Sub(w.began) >= w.entry.For {
			w = nil // its members say no more of it
		}
	}
	all.Members = f.members(p, upstream, w, now)
	if here != nil {
		all.Members[0].NotUp = here
	} else {
		all.Members[0].NotUp = []view.NotUp{}
	}
	all.Members[0].More = 0
	if w != nil {
		all.Wait = f.evaluate(p, w, all.Members)
	}
	return all
}

// members returns the rows of all members. With an upstream, they have what each says of it;
// w is the wait for it, nil if there is none. f.mu must be held.
func (f *Fleet) members(p *Part, upstream string, w *wait, now time.Time) []view.Member {
	hash := settings.Hash(upstream)
	var revision time.Time
	if set := p.config.Set.Of(upstream); set != nil {
		revision = set.Changed
	}
	row := func(m *member, state string) view.Member {
		r := view.Member{ID: m.ID, Member: m.Name, State: state, Heard: now.Sub(m.heard).Seconds(), NotUp: make([]view.NotUp, 0, len(m.NotUp)), More: m.More}
		for _, n := range m.NotUp {
			r.NotUp = append(r.NotUp, view.NotUp{Upstream: view.ValidText(n.Upstream), Check: view.ValidText(n.Check), Status: n.Status, Reason: view.ValidText(n.Why), Lasts: n.For})
		}
		if a, ok := m.Acks[hash]; ok && upstream != "" {
			r.Ack = &view.Ack{Follows: w == nil || a.Revision.Equal(revision), InFlight: a.InFlight, Bound: a.Bound, Gets: a.Gets, Quiet: a.Quiet}
		}
		return r
	}
	own := f.roster.own
	own.ID, own.Name, own.heard = f.id, p.config.Member, now
	rows := make([]view.Member, 0, len(f.roster.others)+1)
	rows = append(rows, row(&own, view.MemberLive))
	rows[0].Self = true
	for _, m := range f.roster.live(now) {
		rows = append(rows, row(m, view.MemberLive))
	}
	for _, m := range f.roster.lost(now) {
		rows = append(rows, row(m, view.MemberLost))
	}
	return rows
}

// settle notes which waits of this member are quiet, or have succeeded. Before a wait is
// quiet, all members must have been listed at the same look. It reports whether that is
// wanted.
func (f *Fleet) settle(listed bool) (wantsList bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, now := f.acting(), time.Now()
	if p == nil {
		return false
	}
	for _, w := range f.waits.own {
		if !w.runs(now) {
			continue
		}
		row := f.evaluate(p, w, f.members(p, w.upstream, w, now))
		before := w.quiet
		w.quiet = false
		switch {
		case row.Failed != "" || len(row.Pending) > 0 || now.Sub(w.began) < settleLooks*p.config.Every:
		case listed:
			w.quiet = true
			if len(row.Lost) == 0 {
				w.done = now
			}
		case before && len(row.Lost) > 0 && now.Sub(w.listed) < leastPeriod:
			w.quiet = true // it may take long, and some engines read all that they have for a list
		default:
			wantsList = true
		}
	}
	return wantsList
}

// evaluate returns how far a wait is. f.mu must be held.
func (f *Fleet) evaluate(p *Part, w *wait, members []view.Member) *view.Wait {
	row := &view.Wait{Pending: []string{}, Lost: []string{}}
	set := p.config.Set.Of(w.upstream)
	for _, m := range members {
		if m.Ack != nil && m.State == view.MemberLive {
			row.Bound += m.Ack.Bound
		}
		switch {
		case m.State == view.MemberLost:
			row.Lost = append(row.Lost, fmt.Sprintf("%s: not heard for %.0fs, it may still send requests", m.Member, m.Heard))
		case m.Ack.Left() != "":
			row.Pending = append(row.Pending, m.Member+": "+m.Ack.Left())
		}
	}
	for _, id := range f.roster.unread() {
		row.Pending = append(row.Pending, "the member with the ID "+id+": what it has stored cannot be read")
	}
	switch {
	case !w.done.IsZero():
		return &view.Wait{Done: true, Quiet: true, Pending: []string{}, Lost: []string{}, Bound: row.Bound}
	case f.problem != "":
		row.Failed = "only this Caddy is known: " + f.problem
	case f.roster.crowded:
		row.Failed = fmt.Sprintf("more than %d other members are stored, and the rest is not known", maxMembers)
	case set.ModeNow() != w.mode:
		row.Failed = fmt.Sprintf("its mode was changed meanwhile, to %s", set.ModeNow())
	case len(row.Pending) == 0:
		row.Quiet = w.quiet
	}
	return row
}

// DownAt returns at how many live members an upstream is down, and how many there are. Of
// this one, here says whether it is.
func (f *Fleet) DownAt(upstream string, here bool) (down, members int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	members = 1
	if here {
		down = 1
	}
	for _, m := range f.roster.others {
		if m.first.IsZero() || !f.roster.isLive(m, now) {
			continue
		}
		members++
		if m.down[upstream] {
			down++
		}
	}
	return down, members
}

var errNotActing = errors.New("this Caddy does not take part in the fleet yet, or no longer")

// Wait tells all members that this one waits for an upstream, from its mode now on. It
// returns once that is stored.
func (f *Fleet) Wait(ctx context.Context, upstream string, d time.Duration) error {
	f.mu.Lock()
	p := f.acting()
	f.mu.Unlock()
	if p == nil {
		return errNotActing
	}
	set := p.config.Set.Of(upstream)
	if set == nil {
		return fmt.Errorf("the mode of '%s' was never set", upstream)
	}
	f.mu.Lock()
	before := f.waits.of(upstream)
	_, err := f.waits.add(set, f.id, d, time.Now())
	f.mu.Unlock()
	if err != nil {
		return err
	}
	if before != nil {
		p.store.Board().End(before.entry.ID)
	}
	p.store.Sync(ctx, false)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.problem != "" {
		return errors.New("only this Caddy is known: " + f.problem)
	}
	return nil
}

// firstLine returns the first line of an error, bounded.
func firstLine(err error) string {
	text, _, _ := strings.Cut(err.Error(), "\n")
	return view.Cut(view.ValidText(text), maxReason)
}

func sortedKeys(acks map[string]ack) []string { return slices.Sorted(maps.Keys(acks)) }

// without returns a copy without a key.
func without(acks map[string]ack, key string) map[string]ack {
	acks = maps.Clone(acks)
	delete(acks, key)
	return acks
}
