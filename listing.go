// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/page"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

const (
	// listingLasts is how long one listing serves all viewers.
	listingLasts = time.Second
	// listingRest is how much longer than it took to build a listing it serves at
	// least, so that thousands of upstreams do not keep a processor busy; but no longer
	// than maxListing for that.
	listingRest = 5
	maxListing  = 3 * time.Second
)

// listing is the whole list at one moment, and what is rendered of it, for all that
// look within a second. Nothing in it changes once it was handed out.
type listing struct {
	app     *App
	changes uint64 // of operators, before it was begun
	at      time.Time
	took    time.Duration // to build and to render it
	entries []view.Upstream
	json    []byte   // of all entries
	rows    [][]byte // the same, by entry
	html    []byte
}

// listings has the newest listing. Its lock is taken before all others of this package.
var listings sharedListing

// sharedListing builds one listing for all that ask at the same time.
type sharedListing struct {
	changes atomic.Uint64 // of operators so far

	mu     sync.Mutex // guards what follows; held while a listing is built
	newest *listing
	builds int // how many were built
}

// changed has the next look show what an operator has just changed.
func (l *sharedListing) changed() { l.changes.Add(1) }

// drop frees the listing of an app that ends.
func (l *sharedListing) drop(a *App) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.newest != nil && l.newest.app == a {
		l.newest = nil
	}
}

// render returns what a function renders of the listing at this moment.
func (l *sharedListing) render(what func(*listing) ([]byte, error)) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	app, now := newestApp(), time.Now()
	changes := l.changes.Load()
	if app != nil {
		changes += app.operations.Revision()
	}
	known := l.newest
	if known == nil || known.app != app || known.changes != changes || now.Sub(known.at) >= known.lasts() {
		known = &listing{app: app, changes: changes, entries: overview(filter{}), at: now}
		l.newest = known
		l.builds++
	}
	defer func() { known.took += time.Since(now) }()
	return what(known)
}

// lasts returns how long the listing serves.
func (l *listing) lasts() time.Duration {
	return min(max(listingLasts, listingRest*l.took), maxListing)
}

// jsonList returns all entries as JSON.
func (l *listing) jsonList() ([]byte, error) {
	if l.json != nil {
		return l.json, nil
	}
	var list bytes.Buffer
	encoder := json.NewEncoder(&list)
	list.WriteByte('[')
	ends := make([]int, 0, len(l.entries))
	for i := range l.entries {
		if err := encoder.Encode(&l.entries[i]); err != nil {
			return nil, err
		}
		list.Truncate(list.Len() - 1) // the end of the line
		ends = append(ends, list.Len())
		list.WriteByte(',')
	}
	if len(ends) > 0 {
		list.Truncate(list.Len() - 1)
	}
	list.WriteString("]\n")
	l.json = list.Bytes()
	begin := 1
	for _, end := range ends {
		l.rows = append(l.rows, l.json[begin:end])
		begin = end + 1
	}
	return l.json, nil
}

// jsonPool returns the entries of one pool as JSON.
func (l *listing) jsonPool(pool string) ([]byte, error) {
	if _, err := l.jsonList(); err != nil {
		return nil, err
	}
	var rows [][]byte
	for i := range l.entries {
		if l.entries[i].Pool == pool {
			rows = append(rows, l.rows[i])
		}
	}
	return append(append([]byte{'['}, bytes.Join(rows, []byte{','})...), "]\n"...), nil
}

// htmlPage returns the page of all entries.
func (l *listing) htmlPage() ([]byte, error) {
	if l.html != nil {
		return l.html, nil
	}
	var err error
	l.html, err = page.Render(l.entries, l.at)
	return l.html, err
}
