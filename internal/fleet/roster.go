// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/news"
)

const (
	// leastPeriod is the least time between two readings of all members. There are also
	// periodPerMember for each of them, so that a large fleet does not read more often than a
	// storage can bear.
	leastPeriod     = 10 * time.Second
	periodPerMember = 100 * time.Millisecond
	// A member is live until it has missed livePeriods of its periods, and liveGrace.
	livePeriods = 3
	liveGrace   = 2 * time.Second
	// hastenFactor is how many times as often a member stores what has changed.
	hastenFactor = 4
	// forgetAfter is how long a lost member is remembered.
	forgetAfter = 24 * time.Hour
	// maxMembers bounds how many are remembered.
	maxMembers = 1000
	// leaveTime is how long a member is not found before it is taken to have left: some
	// storages say of any error that nothing is there.
	leaveTime = 500 * time.Millisecond
	// rereads is how often all members are read at each look after the storage was gone: they
	// write as soon as it works, but not at the same moment.
	rereads = 3
)

// roster is what is known of the members. Fleet.mu guards it.
type roster struct {
	own     member             // this member, as it was last stored
	joined  bool               // it was stored once
	others  map[string]*member // by ID
	invalid map[string]bool    // IDs whose values make no sense, and were logged
	listed  time.Time          // when all were last listed
	write   time.Time          // when to store the own value, at the latest
	next    time.Time          // when to read all others
	again   int                // how often to read all others at each look
	missing bool               // the own value was not there when it was read
	marks   [2]mark            // the own value as it was leastPeriod ago, at least; and later
	refill  time.Time          // until then, others may be yet to store themselves again
	emptied time.Time          // until then, too: the storage seems to have been emptied
	born    string             // which document the news are
	crowded bool               // there are more than maxMembers
	told    map[uint64]told    // what was last told of targets, by ID
}

// member is what is known of one.
type member struct {
	value
	heard time.Time // when seq was last seen to change, by the clock of this process
	first time.Time // when it was first seen
	alive bool      // seq was seen to change
	gone  time.Time // since when it is not found
	// emptied is that it was not found when the storage seemed to have been emptied: it is not
	// known whether it has left.
	emptied bool
}

// mark is that the own value was written.
type mark struct {
	seq uint64
	at  time.Time
}

// told is what a member last told of a target by the news.
type told struct {
	from   string
	status string
	at     time.Time
}

func newRoster(id string) roster {
	return roster{own: member{value: value{ID: id}}, others: make(map[string]*member), invalid: make(map[string]bool), told: make(map[uint64]told)}
}

// period is the time between two readings of all members.
func (r *roster) period() time.Duration {
	return max(leastPeriod, time.Duration(len(r.others)+1)*periodPerMember)
}

// isLive reports whether something new of a member was heard lately. One that joined wrote
// last by the period of a fleet that it did not know yet, and all are read only by that of
// this member.
func (r *roster) isLive(m *member, now time.Time) bool {
	return now.Sub(m.heard) <= livePeriods*max(m.every(), r.period())+liveGrace
}

// size is how many members live, with this one.
func (r *roster) size(now time.Time) int {
	n := 1
	for _, m := range r.others {
		if !m.first.IsZero() && r.isLive(m, now) {
			n++
		}
	}
	return n
}

// isSuperseded reports whether a member that is lost has come back by another ID: a live one
// of its name began after the last time that it was heard of. It goes by the times that both
// wrote, since they have the same clock.
func (r *roster) isSuperseded(lost *member, now time.Time) bool {
	if r.own.Name == lost.Name && r.own.Since.After(lost.At) {
		return true
	}
	for _, m := range r.others {
		if m.Name == lost.Name && r.isLive(m, now) && m.Since.After(lost.At) {
			return true
		}
	}
	return false
}

// live returns the members that live, without this one and those that are yet to be read, by
// name.
func (r *roster) live(now time.Time) []*member {
	return r.sorted(func(m *member) bool { return r.isLive(m, now) })
}

// lost returns the members that are lost, and not superseded, by name.
func (r *roster) lost(now time.Time) []*member {
	return r.sorted(func(m *member) bool { return !r.isLive(m, now) && !r.isSuperseded(m, now) })
}

func (r *roster) sorted(isWanted func(*member) bool) []*member {
	members := make([]*member, 0, len(r.others))
	for _, m := range r.others {
		if !m.first.IsZero() && isWanted(m) {
			members = append(members, m)
		}
	}
	slices.SortFunc(members, func(a, b *member) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return members
}

// unread returns the IDs of the members of which nothing is known.
func (r *roster) unread() (ids []string) {
	for id, m := range r.others {
		if m.first.IsZero() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// isDue reports whether this member has to store its value: it is time, or what it says of
// upstreams that are waited for has changed.
func (r *roster) isDue(acks map[string]ack, now time.Time) bool {
	return !r.joined || r.missing || !now.Before(r.write) || !maps.EqualFunc(acks, r.own.Acks, ack.equal)
}

// wrote notes that this member has stored its value.
func (r *roster) wrote(own value, now time.Time) {
	r.own = member{value: own, heard: now}
	r.joined, r.missing = true, false
	if now.Sub(r.marks[1].at) >= leastPeriod {
		r.marks = [2]mark{r.marks[1], {own.Seq, now}}
	}
	r.write = now.Add(r.period())
	if slices.ContainsFunc(own.NotUp, func(n notUp) bool { return n.Status == statusUnknown }) {
		r.hasten() // it will soon be known
	}
}

// hasten makes this member store its value before its time, because it changed.
func (r *roster) hasten() {
	if soon := r.own.heard.Add(r.period() / hastenFactor); soon.Before(r.write) {
		r.write = soon
	}
}

// list notes which members are in the storage.
func (r *roster) list(ids []string, now time.Time) {
	r.listed, r.crowded = now, false
	maps.DeleteFunc(r.invalid, func(id string, _ bool) bool { return id != noMember && !slices.Contains(ids, id) })
	for _, id := range ids {
		r.add(id)
	}
}

// add makes a member known, to be read.
func (r *roster) add(id string) {
	if id == r.own.ID || r.others[id] != nil {
		return
	}
	if len(r.others) >= maxMembers {
		r.crowded = true
		return
	}
	r.others[id] = &member{}
}

// toRead returns the IDs of the members that are to be read now: all at their time or while
// this member waits for them, those of which the news say that they joined, and those that were
// not found. After a list those are read of which nothing is known yet.
func (r *roster) toRead(fresh []news.Entry, listed, waiting bool, now time.Time) (ids []string) {
	for _, e := range fresh {
		if e.Kind == news.Member {
			r.add(e.Key)
		}
	}
	if waiting || r.again > 0 || !now.Before(r.next) {
		r.again = max(0, r.again-1)
		r.next = now.Add(r.period())
		return append(slices.Sorted(maps.Keys(r.others)), r.own.ID)
	}
	for id, m := range r.others {
		gone := !m.gone.IsZero() && !now.Before(r.refill)
		if gone || m.first.IsZero() && (listed || isNamed(fresh, id)) {
			ids = append(ids, id)
		}
	}
	if len(ids) > 0 {
		ids = append(ids, r.own.ID) // whether it is found decides about the others
	}
	return ids
}

func isNamed(fresh []news.Entry, id string) bool {
	return slices.ContainsFunc(fresh, func(e news.Entry) bool { return e.Kind == news.Member && e.Key == id })
}

// restart makes the next looks read all members, because the storage works again. It may be
// empty now.
func (r *roster) restart(now time.Time) {
	r.again, r.write, r.next = rereads, now, now
	r.marks = [2]mark{}
	r.refill = now.Add(r.period())
}

// renew notes of which document the news are. A new one means that the storage may have been
// emptied.
func (r *roster) renew(born string, now time.Time) {
	before := r.born
	r.born = born
	if before == "" || before == born {
		return
	}
	if !now.Before(r.refill) { // else something may renew the news in a loop
		r.restart(now)
	}
	r.empty(now)
}

// empty notes that the storage seems to have been emptied, or replaced by another.
func (r *roster) empty(now time.Time) {
	r.refill = now.Add(r.period())
	r.emptied = r.refill
}

// take notes what members have stored, nil where there is nothing. Where this member does
// not find what it has stored itself, the others may be missing for the same reason, and not
// because they left. Nor is it certain if the storage did not work at the last look.
func (r *roster) take(found map[string]*value, works bool, now time.Time) {
	own, read := found[r.own.ID]
	if read {
		r.missing = r.isMissing(own)
		if own == nil || r.missing {
			r.empty(now)
		}
	}
	certain := read && works && !now.Before(r.refill)
	for id, v := range found {
		m := r.others[id]
		switch {
		case m == nil:
		case v == nil:
			m.emptied = m.emptied || now.Before(r.emptied) && !m.first.IsZero()
			if !certain {
				continue
			}
			m.gone = cmp.Or(m.gone, now)
			if known := !m.first.IsZero(); !m.emptied && (!known || now.Sub(m.gone) >= leaveTime) {
				delete(r.others, id) // it has left
			}
		case m.first.IsZero():
			*m = member{value: *v, heard: now, first: now}
		default:
			m.gone, m.emptied = time.Time{}, false
			if v.Seq > m.Seq || v.At.After(m.At) { // else an engine answers with an earlier one
				m.value, m.heard, m.alive = *v, now, true
			}
		}
	}
}

// ignore notes that what is stored of members makes no sense. Those that are known have not
// left: they store themselves again, or are lost. So does this one.
func (r *roster) ignore(ids []string, now time.Time) {
	for _, id := range ids {
		switch m := r.others[id]; {
		case id == r.own.ID:
			r.write = now
		case m != nil && m.first.IsZero():
			delete(r.others, id)
		}
	}
}

// isMissing reports whether the own value is not there. An engine may answer with an earlier
// one for a while.
func (r *roster) isMissing(own *value) bool {
	before := r.marks[0].seq
	return before > 0 && (own == nil || own.Seq < before)
}

// drop removes the lost members that are to be forgotten, and returns their IDs. The clock of
// a member counts only if this process never saw it alive.
func (r *roster) drop(now time.Time) (ids []string) {
	for id, m := range r.others {
		if m.first.IsZero() || r.isLive(m, now) {
			continue
		}
		old := now.Sub(m.heard) > forgetAfter || !m.alive && !m.At.IsZero() && now.Sub(m.At) > forgetAfter
		if old || r.isSuperseded(m, now) {
			delete(r.others, id)
			ids = append(ids, id)
		}
	}
	return ids
}
