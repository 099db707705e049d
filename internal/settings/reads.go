// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"slices"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/news"
)

// maxOwedReads is how often a setting is read that is not yet what the news say: an engine
// may answer with an earlier value for a while.
const maxOwedReads = 10

// maxOwed bounds the settings that are read because of the news. Of more, the next read of all
// takes care.
const maxOwed = 128

// reads is what a Store has read, and has yet to read. Store.mu guards it.
type reads struct {
	listed  bool            // the storage has told what is in it
	invalid map[string]bool // keys that make no sense, and were logged
	ahead   bool            // the last read of all found times that are too far ahead
	empty   time.Duration   // the last read of all found nothing: how long until the next
	next    time.Time       // when to read all again, at the earliest
	missed  time.Time       // when to do that where the news do not say all, at the earliest
	owed    map[string]owed // by the hash of the address
}

// owed is a setting of which the news say that it changed.
type owed struct {
	at    time.Time // when it did
	reads int
}

func newReads() reads { return reads{invalid: make(map[string]bool), owed: make(map[string]owed)} }

// list notes that the storage has these keys.
func (r *reads) list(keys []string) {
	r.listed, r.ahead = true, false
	for key := range r.invalid {
		if !slices.Contains(keys, key) {
			delete(r.invalid, key)
		}
	}
}

// owe notes what the news say of settings.
func (r *reads) owe(fresh []news.Entry) {
	for _, e := range fresh {
		known, ok := r.owed[e.Key]
		if e.Kind == news.Setting && !e.At.Before(known.at) && (ok || len(r.owed) < maxOwed) {
			r.owed[e.Key] = owed{at: e.At}
		}
	}
}

// hurry reports whether to read all now, since the news do not say all. If that was done
// a moment ago, it is done again as soon as it may.
func (r *reads) hurry(now time.Time) bool {
	if now.Before(r.missed) {
		r.next = r.missed
		return false
	}
	return true
}

// settle notes that a setting was read: nil if there is none that makes sense.
func (r *reads) settle(hash string, setting *Setting, err error) {
	o, ok := r.owed[hash]
	if !ok || err != nil {
		return
	}
	if o.reads++; o.reads >= maxOwedReads || setting != nil && !setting.Newest().Before(o.at) {
		delete(r.owed, hash)
		return
	}
	r.owed[hash] = o
}
