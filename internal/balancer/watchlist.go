// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// watchList is the addresses that requests brought, by the source that they come from,
// with when requests brought them: the value of shared.WatchLists. The next config with
// the same source goes on watching them. Checks are not part of the key, or a check that
// changes in a reload would begin without the addresses. So handlers with the same source
// share a list, whatever their checks are, because an answer given to one handler can be
// given to the others. Each of them forgets by itself what its own requests do not bring.
type watchList struct {
	returned  atomic.Int32 // what the source returned last, as returned
	foundNone atomic.Int64 // when a request last found no upstream, as elapsed

	mu        sync.Mutex // guards what follows
	addresses map[string]*watchedAddress
	users     map[*dynamic]struct{}
	used      time.Duration // when a request last brought any of them, 0 if none did
	swept     time.Duration // until when requests were considered, 0 if they were not
}

// watchedAddress is one address of a list.
type watchedAddress struct {
	times
	users int // how many watch it
}

func newWatchList() *watchList {
	return &watchList{addresses: make(map[string]*watchedAddress), users: make(map[*dynamic]struct{})}
}

// openWatchList returns the list of a source, which all of the process share until each
// has closed it.
func openWatchList(key string) (*watchList, error) {
	list, _, err := shared.WatchLists.LoadOrNew(key, func() (caddy.Destructor, error) { return newWatchList(), nil })
	if err != nil {
		return nil, err
	}
	return list.(*watchList), nil
}

// closeWatchList takes back openWatchList.
func closeWatchList(key string) error {
	_, err := shared.WatchLists.Delete(key)
	return err
}

// Destruct has nothing to do.
func (*watchList) Destruct() error { return nil }

// join adds a user, and returns those that are there.
func (l *watchList) join(d *dynamic) (others []*dynamic) {
	l.mu.Lock()
	defer l.mu.Unlock()
	others = slices.Collect(maps.Keys(l.users))
	l.users[d] = struct{}{}
	return others
}

// leave takes back join.
func (l *watchList) leave(d *dynamic) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.users, d)
}

// add notes that one more user watches an address.
func (l *watchList) add(dial string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.addresses[dial] == nil {
		l.addresses[dial] = new(watchedAddress)
	}
	l.addresses[dial].users++
}

// remove takes back add.
func (l *watchList) remove(dial string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.addresses[dial]
	if a == nil {
		return
	}
	if a.users--; a.users <= 0 {
		delete(l.addresses, dial)
	}
}

// update takes over what a user knows of its addresses.
func (l *watchList) update(known map[string]*observed, used, swept time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used, l.swept = max(l.used, used), max(l.swept, swept)
	for dial, o := range known {
		if a := l.addresses[dial]; a != nil {
			a.merge(o.times)
		}
	}
}

// times returns when requests brought each address, and any.
func (l *watchList) times() (addresses map[string]times, used, swept time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	addresses = make(map[string]times, len(l.addresses))
	for dial, a := range l.addresses {
		addresses[dial] = a.times
	}
	return addresses, l.used, l.swept
}
