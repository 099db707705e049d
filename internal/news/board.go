// SPDX-License-Identifier: Apache-2.0

package news

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// maxWrites is how often an entry is written that gets lost again and again. After that
	// the others find what it says of when they read all.
	maxWrites = 4
	// settleTime is how long an entry that is in the news can still get lost: another member
	// may have read them before, and writes them after. The entry is looked for until then.
	settleTime = 2 * time.Second
	// News that are missing or invalid are repaired, at most maxRepairs times in each
	// repairInterval, as they may be so again and again.
	maxRepairs     = 3
	repairInterval = 30 * time.Second
	// warnInterval is the time between two warnings of news that are invalid.
	warnInterval = time.Hour
	// doubtHolds is how long no member says the same of a target again.
	doubtHolds = 5 * time.Second
	// A doubt is taken out after doubtAge, when the news are written anyway, or if there are
	// manyDoubts, which each member would read at each look.
	doubtAge   = 30 * time.Second
	manyDoubts = 16
	// waitGrace is how much longer than it lasts a wait of another member is kept.
	waitGrace = 10 * time.Second
)

// Storage is where the news are stored.
type Storage interface {
	// Load returns the value of a key, nil if there is none.
	Load(ctx context.Context, key string, most int, stat bool) ([]byte, error)
	// IsTooLong reports whether an error of Load says that the value is longer than most.
	IsTooLong(err error) bool
	// Store stores the value of a key.
	Store(ctx context.Context, key string, value []byte) error
}

// Board is the news as one member knows them. Look is called by one goroutine at a time.
type Board struct {
	key    string
	logger *zap.Logger

	mu       sync.Mutex           // guards what follows
	text     []byte               // at the last look, or as written since
	born     string               // of the document then, empty before the first look
	known    map[string]time.Time // when each entry was first seen
	tidy     time.Time            // when to take out old doubts, zero if there are few
	waits    []Entry
	since    map[string]time.Time // when each of the waits was first seen
	pending  []pending
	own      map[string]Entry // waits of this member that run, by ID
	over     map[string]bool  // IDs of waits that have ended
	repairs  int              // in the repairInterval that began at repaired
	repaired time.Time        // when that interval began
	warned   time.Time        // when the last warning was logged
}

// pending is an entry of this member that was not seen in the news yet, or only just now.
type pending struct {
	entry  Entry
	writes int
	wrote  time.Time // the last time
}

// NewBoard returns the board of the news at a key.
func NewBoard(key string, logger *zap.Logger) *Board {
	return &Board{key: key, logger: logger, known: make(map[string]time.Time), since: make(map[string]time.Time), own: make(map[string]Entry), over: make(map[string]bool)}
}

// Add makes the next look write entries. Their IDs are new. It reports whether there was
// nothing to write before.
func (b *Board) Add(entries ...Entry) (isFirst bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	isFirst = len(b.pending) == 0
	for _, e := range entries {
		e.ID = NewID()
		b.pending = append(b.pending, pending{entry: e})
	}
	// what cannot be told while the storage fails must not pile up
	b.pending = b.pending[max(0, len(b.pending)-maxChanges-maxDoubts):]
	return isFirst
}

// Announce makes the news have a wait until it ends.
func (b *Board) Announce(wait Entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.own[wait.ID] = wait
}

// End takes a wait out of the news.
func (b *Board) End(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.own, id)
	b.over[id] = true
}

// Waits returns the waits of all members, as of the last look, without those that should
// have ended.
func (b *Board) Waits() []Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	return slices.DeleteFunc(slices.Clone(b.waits), func(e Entry) bool { return b.isOver(&e, now) })
}

// isOver reports whether a wait has ended. b.mu must be held.
func (b *Board) isOver(e *Entry, now time.Time) bool {
	if b.over[e.ID] {
		return true
	}
	since, seen := b.since[e.ID]
	return seen && now.Sub(since) > e.For+waitGrace
}

// Born returns what tells the document of the last look from one that was made anew since,
// empty before the first look.
func (b *Board) Born() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.born
}

// Look reads the news, and writes what this member adds. It returns the entries of others
// that were not there at the last look; at the first look, none. If missed is set, more may
// have happened than the news say.
func (b *Board) Look(ctx context.Context, engine Storage) (fresh []Entry, missed bool, err error) {
	text, err := engine.Load(ctx, b.key, maxSize, false)
	if err != nil && !engine.IsTooLong(err) {
		return nil, false, err
	}
	now := time.Now()
	b.mu.Lock()
	fresh, missed, write, problem := b.follow(text, err, now)
	b.mu.Unlock()
	b.report(problem)
	if write == nil {
		return fresh, missed, nil
	}
	repair := text == nil || problem != nil
	if err := engine.Store(ctx, b.key, write); err != nil {
		b.keep(now)
		return fresh, missed && !repair, err // where the news seem to be gone, the storage may be
	}
	b.mu.Lock()
	b.text = write
	if repair {
		b.repairs++
	}
	b.mu.Unlock()
	return fresh, missed, nil
}

// follow takes over what was read. It returns what is to be written, nil if there is
// nothing, and what is wrong with what was read. b.mu must be held.
func (b *Board) follow(text []byte, err error, now time.Time) (fresh []Entry, missed bool, write []byte, problem error) {
	isTidy := b.tidy.IsZero() || now.Before(b.tidy)
	if err == nil && text != nil && bytes.Equal(text, b.text) && isTidy && len(b.own) == 0 && len(b.pending) == 0 && len(b.over) == 0 {
		return nil, false, nil, nil
	}
	var d *document
	if err == nil && text != nil {
		d, err = parse(text)
	}
	problem = err
	if newer := new(newerError); errors.As(err, newer) {
		return nil, false, nil, err // it is not this member's to replace
	}
	repair := d == nil
	if repair {
		if now.Sub(b.repaired) >= repairInterval {
			b.repairs, b.repaired = 0, now
		}
		if b.repairs >= maxRepairs && len(b.pending) == 0 && len(b.own) == 0 {
			return nil, false, nil, err
		}
		d = newDocument()
	}
	fresh, missed = b.compare(d, now)
	changed := b.merge(d, now)
	b.waits = slices.Clone(d.Waits)
	b.know(d, now)
	b.text = text
	if !changed && !repair {
		return fresh, missed, nil, problem
	}
	d.Nonce = NewID()
	write, err = json.Marshal(d)
	if err != nil {
		return fresh, missed, nil, err
	}
	return fresh, missed, write, problem
}

// compare returns which entries are new, and whether some may have come and gone since the
// last look. b.mu must be held.
func (b *Board) compare(d *document, now time.Time) (fresh []Entry, missed bool) {
	first, known := b.born == "", 0
	missed = !first && b.born != d.Born
	b.born = d.Born
	for _, entries := range [][]Entry{d.Changes, d.Waits, d.Doubts} {
		for _, e := range entries {
			_, isKnown := b.known[e.ID]
			switch {
			case isKnown:
				if e.Kind == Setting || e.Kind == Member {
					known++
				}
			case !first && !b.isOwn(e.ID):
				fresh = append(fresh, e)
			}
		}
	}
	missed = missed || !first && known == 0 && len(d.Changes) == maxChanges
	since := make(map[string]time.Time, len(d.Waits))
	for _, e := range d.Waits {
		since[e.ID] = now
		if seen, ok := b.since[e.ID]; ok {
			since[e.ID] = seen
		}
	}
	b.since = since
	return fresh, missed
}

// isOwn reports whether this member has written an entry, and did not see it yet. b.mu must
// be held.
func (b *Board) isOwn(id string) bool {
	if _, own := b.own[id]; own {
		return true
	}
	return slices.ContainsFunc(b.pending, func(p pending) bool { return p.entry.ID == id })
}

// know notes which entries there are. b.mu must be held.
func (b *Board) know(d *document, now time.Time) {
	known := make(map[string]time.Time)
	for id := range d.ids() {
		known[id] = now
		if seen, ok := b.known[id]; ok {
			known[id] = seen
		}
	}
	b.known, b.tidy = known, time.Time{}
	if n := len(d.Doubts); n >= manyDoubts {
		b.tidy = known[d.Doubts[n-1].ID].Add(doubtAge)
	}
}

// isOld reports whether all have seen a doubt. b.mu must be held.
func (b *Board) isOld(e *Entry, now time.Time) bool {
	seen, ok := b.known[e.ID]
	return ok && now.Sub(seen) >= doubtAge
}

// isSaid reports whether the newest doubt of a target says what another is to say, and is not
// of long ago. b.mu must be held.
func (b *Board) isSaid(d *document, e *Entry, now time.Time) bool {
	for i := len(d.Doubts) - 1; i >= 0; i-- {
		if last := &d.Doubts[i]; last.Key == e.Key {
			seen, ok := b.known[last.ID]
			return last.Status == e.Status && (!ok || now.Sub(seen) < doubtHolds)
		}
	}
	return false
}

// merge adds what this member has to tell, and reports whether there was anything. b.mu
// must be held.
func (b *Board) merge(d *document, now time.Time) (changed bool) {
	there := d.ids()
	left := b.pending[:0]
	for _, p := range b.pending {
		if p.entry.Kind == Doubt && !there[p.entry.ID] && b.isSaid(d, &p.entry, now) {
			continue
		}
		if there[p.entry.ID] {
			if now.Sub(p.wrote) < settleTime {
				left = append(left, p)
			}
			continue
		}
		if p.writes >= maxWrites {
			continue
		}
		d.add(p.entry)
		p.writes, p.wrote = p.writes+1, now
		left = append(left, p)
		changed = true
	}
	b.pending = left
	before := len(d.Waits)
	d.Waits = slices.DeleteFunc(d.Waits, func(e Entry) bool { return b.isOver(&e, now) })
	changed = changed || len(d.Waits) != before
	clear(b.over)
	doubts := slices.DeleteFunc(slices.Clone(d.Doubts), func(e Entry) bool { return b.isOld(&e, now) })
	if old := len(d.Doubts) - len(doubts); changed || old >= manyDoubts {
		d.Doubts, changed = doubts, true
	}
	for id, e := range b.own {
		if !there[id] {
			d.add(e)
			changed = true
		}
	}
	return changed
}

// keep notes that the entries which were to be written at a time were not.
func (b *Board) keep(when time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.pending {
		if p := &b.pending[i]; p.wrote.Equal(when) {
			p.writes, p.wrote = p.writes-1, time.Time{}
		}
	}
}

// report logs what is wrong with the news, if it did not do so lately.
func (b *Board) report(problem error) {
	if problem == nil {
		return
	}
	b.mu.Lock()
	now := time.Now()
	due := b.warned.IsZero() || now.Sub(b.warned) >= warnInterval
	if due {
		b.warned = now
	}
	b.mu.Unlock()
	if due {
		b.logger.Warn("the news of the fleet are not valid: changes of other members are followed late", zap.String("key", b.key), zap.Error(problem))
	}
}
