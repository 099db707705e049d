// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

const (
	// Timeout bounds how long a change or a start waits for the storage.
	Timeout = 2 * time.Second
	// backgroundTimeout bounds how long one use of the storage may take in the background.
	backgroundTimeout = time.Minute
	// retryInterval is how often a storage that failed is tried again.
	retryInterval = 2 * time.Second
	// After each read the store pauses for restFactor times the duration of that read. The
	// pause is limited to restPerKey for each stored key, so a slow storage is not read
	// less often.
	restFactor = 10
	restPerKey = time.Millisecond
	// aheadInterval is how often settings are read again that were too far ahead, in case
	// that this clock was wrong.
	aheadInterval = time.Minute
)

// Store keeps a Set in Caddy's storage, one key an address, and follows what the other
// members of its fleet do there. A storage may be slow, gone or full of garbage: no
// change and no start waits for it longer than Timeout.
type Store struct {
	set     *Set
	storage certmagic.Storage // nil if there is none that can be used
	prefix  string            // of the keys
	every   time.Duration     // between two reads of what others did, 0 if there are none
	logger  *zap.Logger

	busy   chan struct{} // has an element while the storage is used
	wake   chan struct{} // has an element when there is something to store
	loaded chan struct{} // closed when all that the storage had at the start is known

	mu          sync.Mutex      // guards what follows
	listed      bool            // the storage has told what is in it
	failing     bool            // the last use of the storage failed, and that was logged
	invalidKeys map[string]bool // that were logged
	ahead       bool            // the last read found times that are too far ahead
	next        time.Time       // when to read again, at the earliest
}

// NewStore returns a Store of a Set under the prefix of a scope. Every is how often to
// read what others have set, 0 if no others share the scope. Where storage is nil,
// nothing can be stored, and the log says so.
func NewStore(set *Set, storage certmagic.Storage, prefix string, every time.Duration, logger *zap.Logger) *Store {
	return &Store{
		set: set, storage: storage, prefix: prefix, every: every, logger: logger,
		busy: make(chan struct{}, 1), wake: make(chan struct{}, 1), loaded: make(chan struct{}),
		invalidKeys: make(map[string]bool),
	}
}

// IsFleet reports whether others share the scope.
func (s *Store) IsFleet() bool { return s.every > 0 }

// Loaded is closed when all that the storage had at the start is known.
func (s *Store) Loaded() <-chan struct{} { return s.loaded }

// IsLoaded reports whether Loaded is closed.
func (s *Store) IsLoaded() bool {
	select {
	case <-s.loaded:
		return true
	default:
		return false
	}
}

// Wake makes Run store soon what is yet to be stored.
func (s *Store) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run follows others, and stores what could not be stored, until the context ends.
func (s *Store) Run(ctx context.Context) {
	interval := retryInterval
	if s.IsFleet() {
		interval = s.every
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-s.wake:
		}
		if load := s.isDue(time.Now()); load || len(s.set.toStore()) > 0 {
			s.Sync(ctx, load)
		}
	}
}

// isDue reports whether to read the storage again: for what others do, or for what could
// not be read at the start.
func (s *Store) isDue(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return (s.IsFleet() || !s.IsLoaded() || s.ahead) && !now.Before(s.next)
}

// rest sets when the next read is due, after one of so many keys.
func (s *Store) rest(keys int, began time.Time) {
	now := time.Now()
	rest := min(restFactor*now.Sub(began), time.Duration(keys)*restPerKey)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ahead && !s.IsFleet() && s.IsLoaded() {
		rest = max(rest, aheadInterval)
	}
	s.next = now.Add(rest)
}

// Sync stores what is yet to be stored. With load it also reads all that is stored. It
// returns when that is done, after Timeout, or when the context ends: it then goes on in
// the background, and Wait waits for it.
func (s *Store) Sync(ctx context.Context, load bool) {
	patience := time.NewTimer(Timeout)
	defer patience.Stop()
	select {
	case s.busy <- struct{}{}:
	case <-patience.C:
		s.reportFailure(errNoAnswer)
		return
	case <-ctx.Done():
		return
	}
	done := make(chan struct{})
	go func() {
		defer func() { <-s.busy }()
		defer close(done)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), backgroundTimeout)
		defer cancel()
		s.reportFailure(s.syncOnce(ctx, load))
	}()
	select {
	case <-done:
	case <-patience.C:
		s.reportFailure(errNoAnswer)
	case <-ctx.Done():
	}
}

var (
	errNoAnswer  = fmt.Errorf("it does not answer within %s", Timeout)
	errNoStorage = errors.New("this instance has no ID, as Caddy's data folder cannot be written")
)

// Wait waits until the storage is not used any more, but not for one that hangs.
func (s *Store) Wait() {
	select {
	case s.busy <- struct{}{}:
		<-s.busy
	case <-time.After(Timeout):
		s.logger.Warn("the storage still does not answer; not waiting for it any longer")
	}
}

// reportFailure logs when the storage begins to fail, and when it works again, which is
// what no error means.
func (s *Store) reportFailure(err error) {
	s.mu.Lock()
	before, listed := s.failing, s.listed
	s.failing = err != nil
	s.mu.Unlock()
	if err != nil && !listed {
		s.set.storeAllExcept(nil) // what is in it is not known
	}
	switch {
	case err != nil && !before:
		s.logger.Warn("the storage fails: modes and weights apply here and are stored when it works again", zap.Error(err))
	case err == nil && before:
		s.logger.Info("the storage works again: modes and weights are stored")
	}
}

// syncOnce is Sync without bounds. One address that fails does not keep others from
// being stored.
func (s *Store) syncOnce(ctx context.Context, load bool) error {
	if s.storage == nil {
		return errNoStorage
	}
	var errs []error
	write := func() {
		for _, address := range s.set.toStore() {
			if err := s.write(ctx, address); err != nil {
				errs = append(errs, err)
			}
		}
	}
	write()
	if load {
		if err := s.load(ctx); err != nil {
			errs = append(errs, err)
		}
		write() // what load found to be missing there
	}
	return errors.Join(errs...)
}
