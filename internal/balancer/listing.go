// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"bytes"
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

const (
	// listingLasts is how long one listing serves all viewers.
	listingLasts = time.Second
	// A listing serves at least listingRest times as long as it took to build, up to
	// maxListing, so that thousands of upstreams do not keep a processor busy.
	listingRest = 5
	maxListing  = 3 * time.Second
)

// Listing is the whole list at one moment, and what is rendered of it, for all that read
// it within a second.
type Listing struct {
	registry *Registry
	changes  uint64 // of operators, before it was begun
	at       time.Time
	rows     []view.Upstream
	pools    []view.Pool
	took     atomic.Int64 // to build and to render it, in nanoseconds

	mu       sync.Mutex // guards what follows; held while one form is rendered
	rowJSON  array
	poolJSON array
	pages    map[string]*Page // by the key of the filter
}

// array is a list as JSON: the whole, and by element.
type array struct {
	text     []byte // nil before it is rendered
	elements [][]byte
}

// listings has the newest listing of the process.
var listings sharedListing

// sharedListing builds one listing for all that ask at the same time.
type sharedListing struct {
	changes atomic.Uint64 // beside those of settings

	mu       sync.Mutex // guards what follows
	newest   *Listing
	building chan struct{} // closed when the one that is built is there; nil while none is
}

// InvalidateListing makes the next reader get a new listing.
func InvalidateListing() { listings.changes.Add(1) }

// CurrentListing returns the listing at this moment, which all viewers share: it is a second old
// at most, or a few where it takes long to build. It shows all that was set before.
func CurrentListing() *Listing {
	for {
		l, built := listings.get()
		if l != nil {
			return l
		}
		<-built
	}
}

// get returns the listing at this moment, or a channel that is closed when another
// goroutine has built one.
func (s *sharedListing) get() (l *Listing, built chan struct{}) {
	now := &Listing{registry: Newest(), changes: s.changes.Load(), at: time.Now()}
	if now.registry != nil {
		now.changes += now.registry.Settings.Revision()
	}
	s.mu.Lock()
	if s.newest.servesFor(now) {
		defer s.mu.Unlock()
		return s.newest, nil
	}
	if s.building != nil {
		defer s.mu.Unlock()
		return nil, s.building
	}
	done := make(chan struct{})
	s.building = done
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.building = nil
		if now.registry == Newest() { // else it has ended, and nothing frees the listing again
			s.newest = now
		}
		close(done)
	}()
	r := Newest()
	now.rows = list(r, Filter{})
	now.pools = listPools(r, now.rows)
	now.took.Store(int64(time.Since(now.at)))
	return now, nil
}

// drop frees the listing of a registry that ends.
func (s *sharedListing) drop(r *Registry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.newest != nil && s.newest.registry == r {
		s.newest = nil
	}
}

// servesFor reports whether a listing, which can be nil, is as good as one that is begun
// now.
func (l *Listing) servesFor(now *Listing) bool {
	if l == nil || l.registry != now.registry || l.changes != now.changes {
		return false
	}
	took := time.Duration(l.took.Load())
	return now.at.Sub(l.at) < min(max(listingLasts, listingRest*took), maxListing)
}

// JSON returns all rows as JSON.
func (l *Listing) JSON() ([]byte, error) { return renderAll(l, &l.rowJSON, l.rows) }

// JSONOf returns the rows that a filter wants as JSON.
func (l *Listing) JSONOf(only Filter) ([]byte, error) {
	return renderSome(l, &l.rowJSON, l.rows, func(row *view.Upstream) bool {
		return only.wants(row.Pool, row.Upstream) && only.wantsServing(row)
	})
}

// Pools returns the names of all pools of the config, sorted.
func (l *Listing) Pools() []string {
	names := make([]string, 0, len(l.pools))
	for i := range l.pools {
		names = append(names, l.pools[i].Pool)
	}
	return names
}

// PoolsJSON returns all pools as JSON.
func (l *Listing) PoolsJSON() ([]byte, error) { return renderAll(l, &l.poolJSON, l.pools) }

// PoolJSON returns a list of the one pool of that name as JSON.
func (l *Listing) PoolJSON(name string) ([]byte, error) {
	return renderSome(l, &l.poolJSON, l.pools, func(p *view.Pool) bool { return p.Pool == name })
}

// renderAll returns a list as JSON, which is rendered once.
func renderAll[T any](l *Listing, to *array, list []T) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := render(l, to, list)
	return to.text, err
}

// renderSome returns the elements of a list that are wanted.
func renderSome[T any](l *Listing, to *array, list []T, isWanted func(*T) bool) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := render(l, to, list); err != nil {
		return nil, err
	}
	var some [][]byte
	for i := range list {
		if isWanted(&list[i]) {
			some = append(some, to.elements[i])
		}
	}
	return append(append([]byte{'['}, bytes.Join(some, []byte{','})...), "]\n"...), nil
}

// render renders a list as JSON, unless that is done already. l.mu must be held.
func render[T any](l *Listing, to *array, list []T) error {
	if to.text != nil {
		return nil
	}
	began := time.Now()
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	text.WriteByte('[')
	ends := make([]int, 0, len(list))
	for i := range list {
		if err := encoder.Encode(&list[i]); err != nil {
			return err
		}
		text.Truncate(text.Len() - 1) // the end of the line
		ends = append(ends, text.Len())
		text.WriteByte(',')
	}
	if len(ends) > 0 {
		text.Truncate(text.Len() - 1)
	}
	text.WriteString("]\n")
	to.text = text.Bytes()
	begin := 1
	for _, end := range ends {
		to.elements = append(to.elements, to.text[begin:end])
		begin = end + 1
	}
	l.took.Add(int64(time.Since(began)))
	return nil
}
