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
	defer f.mu.Unlock()
	now := time.Now()
	p := f.acting()
	if p == nil {
		return view.Fleet{Members: []view.Member{}}
	}
	all := view.Fleet{Fleet: p.config.Fleet, Problem: f.problem, SyncInterval: p.config.Every.Seconds(), Probers: p.config.Probers, Members: []view.Member{}}
	if p.config.Probers > 0 {
		all.ProbesAlone = f.sharing.alone
	}
	var w *wait
	if upstream != "" {
		w = f.waits.of(upstream)
	}
	hash := settings.Hash(upstream)
	add := func(m *member, state string, self bool) {
		row := view.Member{ID: m.ID, Member: m.Name, Self: self, State: state, NotUp: make([]view.NotUp, 0, len(m.NotUp)), More: m.More}
		if !self {
			row.Heard = now.Sub(m.heard).Seconds()
		}
		for _, n := range m.NotUp {
			row.NotUp = append(row.NotUp, view.NotUp{Upstream: view.ValidText(n.Upstream), Check: view.ValidText(n.Check), Status: n.Status, Reason: view.ValidText(n.Why), Lasts: n.For})
		}
		if a, ok := m.Acks[hash]; ok && upstream != "" {
			row.Ack = &view.Ack{Follows: w == nil || a.Revision.Equal(w.entry.At), InFlight: a.InFlight, Bound: a.Bound, Gets: a.Gets, Quiet: a.Quiet}
		}
		all.Members = append(all.Members, row)
	}
	own := f.roster.own
	own.ID, own.Name = f.id, p.config.Member
	add(&own, view.MemberLive, true)
	for _, m := range f.roster.live(now) {
		if !m.first.IsZero() {
			add(m, view.MemberLive, false)
		}
	}
	for _, m := range f.roster.lost(now) {
		if !m.first.IsZero() {
			add(m, view.MemberLost, false)
		}
	}
	if w != nil {
		all.Wait = f.evaluate(p, w, all.Members, now)
	}
	return all
}

// evaluate returns how far a wait is. f.mu must be held.
func (f *Fleet) evaluate(p *Part, w *wait, members []view.Member, now time.Time) *view.Wait {
	row := &view.Wait{Pending: []string{}, Lost: []string{}}
	set := p.config.Set.Of(w.upstream)
	for _, m := range members {
		if m.Ack != nil && m.State == view.MemberLive {
			row.Bound += m.Ack.Bound
		}
		switch {
		case m.State == view.MemberLost:
			row.Lost = append(row.Lost, fmt.Sprintf("%s: not heard for %.0fs, it may still send requests", m.Member, m.Heard))
		case m.Ack == nil || !m.Ack.Follows:
			row.Pending = append(row.Pending, m.Member+": does not follow the mode yet")
		case m.Ack.InFlight > 0:
			row.Pending = append(row.Pending, fmt.Sprintf("%s: %d in flight", m.Member, m.Ack.InFlight))
		case m.Ack.Gets:
			row.Pending = append(row.Pending, m.Member+": still sends new requests, since no other upstream serves there")
		case !m.Ack.Quiet:
			row.Pending = append(row.Pending, m.Member+": nothing in flight, but the mode is new there")
		}
	}
	switch {
	case !w.done.IsZero():
		return &view.Wait{Done: true, Pending: []string{}, Lost: []string{}, Bound: row.Bound}
	case f.problem != "":
		row.Failed = "only this Caddy is known: " + f.problem
	case set == nil || !set.Changed.Equal(w.entry.At):
		row.Failed = fmt.Sprintf("its mode was changed meanwhile, to %s", set.ModeNow())
	case len(row.Pending) == 0 && w.lists < 2:
		row.Pending = append(row.Pending, "members that joined meanwhile are looked for")
	case len(row.Pending) == 0 && len(row.Lost) == 0:
		row.Done = true
		w.done = now
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
		if m.first.IsZero() || !m.isLive(now) {
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
	_, err := f.waits.add(upstream, f.id, set.Changed, d, time.Now())
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
