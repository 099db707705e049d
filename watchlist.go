// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// watchList is a set of addresses with when requests brought them. shared.WatchLists has
// them by the source that they come from: what one policy has seen, the same policy of
// the next config goes on watching. Checks are not part of the key, or a check that
// changes in a reload would begin without the addresses. So handlers with the same
// source share a list, whatever their checks are: an answer that one was given, the
// others can be given, too. Each of them forgets by itself what its own requests do not
// bring.
type watchList struct {
	mu       sync.Mutex // guards what follows
	records  map[string]*watchRecord
	policies map[*dynamic]struct{}
	used     time.Duration // when a request last brought any of them, 0 if none did
	swept    time.Duration // until when requests have been looked at, 0 if they were not
}

// watchRecord is one address.
type watchRecord struct {
	presence
	policies int // how many watch it
}

func newWatchList() *watchList {
	return &watchList{records: make(map[string]*watchRecord), policies: make(map[*dynamic]struct{})}
}

// Destruct has nothing to do.
func (*watchList) Destruct() error { return nil }

// join adds a policy, and returns those that are there.
func (l *watchList) join(d *dynamic) (others []*dynamic) {
	l.mu.Lock()
	defer l.mu.Unlock()
	others = slices.Collect(maps.Keys(l.policies))
	l.policies[d] = struct{}{}
	return others
}

// leave takes back join.
func (l *watchList) leave(d *dynamic) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.policies, d)
}

// add notes that one more policy watches an address.
func (l *watchList) add(dial string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.records[dial] == nil {
		l.records[dial] = new(watchRecord)
	}
	l.records[dial].policies++
}

// remove takes back add.
func (l *watchList) remove(dial string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.records[dial]
	if r == nil {
		return
	}
	if r.policies--; r.policies <= 0 {
		delete(l.records, dial)
	}
}

// update takes over what a policy knows of its addresses.
func (l *watchList) update(sightings map[string]*sighting, used, swept time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used, l.swept = max(l.used, used), max(l.swept, swept)
	for dial, s := range sightings {
		if r := l.records[dial]; r != nil {
			r.merge(s.presence)
		}
	}
}

// known returns what is known of all addresses.
func (l *watchList) known() (addresses map[string]presence, used, swept time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	addresses = make(map[string]presence, len(l.records))
	for dial, r := range l.records {
		addresses[dial] = r.presence
	}
	return addresses, l.used, l.swept
}
