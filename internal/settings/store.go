// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/news"
	"github.com/caddy-alive/caddy-alive/internal/storage"
)

const (
	// Timeout bounds how long a change or a start waits for the storage.
	Timeout = 2 * time.Second
	// backgroundTimeout bounds how long one use of the storage may take in the background.
	backgroundTimeout = time.Minute
	// retryInterval is how often a storage that failed is tried again.
	retryInterval = 2 * time.Second
	// writers is how many settings are stored at once.
	writers = 16
	// fullInterval is the least time between two reads of all that a fleet has stored. What
	// others change meanwhile is in the news.
	fullInterval = 30 * time.Second
	// fullPerMember is how much of that time there is for each member, so that a large fleet
	// does not read more often than a storage can bear.
	fullPerMember = 500 * time.Millisecond
	// missedInterval and missedPerMember are the same where the news do not say all that has
	// changed: something may write them again and again.
	missedInterval  = 5 * time.Second
	missedPerMember = 100 * time.Millisecond
	// After a read of all the store also pauses for restFactor times its duration.
	restFactor = 10
	// aheadInterval is how often settings are read again that were too far ahead, in case
	// that this clock was wrong.
	aheadInterval = time.Minute
	// An empty storage is read again after emptyInterval, and then after twice that, up to
	// maxEmptyInterval: some engines say that nothing is there while they are gone.
	emptyInterval    = 30 * time.Second
	maxEmptyInterval = time.Hour
)

// Fellows are the other members of a fleet. They are told and heard of in the same uses of
// the storage in which a Store reads the news. An error is that of the storage.
type Fellows interface {
	// Announce adds to the board what is to be told, and stores what that is about.
	Announce(ctx context.Context, engine storage.Engine, board *news.Board) error
	// Follow is given what is new on the board. With all, members may have come of which the
	// news do not say.
	Follow(ctx context.Context, engine storage.Engine, board *news.Board, fresh []news.Entry, all bool) error
	// Ended is told how each use of the storage ended: with nil if it did what it had to.
	Ended(board *news.Board, err error)
	// Size is how many members there are.
	Size() int
}

// Store keeps a Set in Caddy's storage, one key an address, and follows what the other
// members of its fleet do there: at once by the news, and by reading all from time to time.
// A storage may be slow, gone or full of garbage: no change and no start waits for it longer
// than Timeout.
type Store struct {
	set     *Set
	engine  storage.Engine
	prefix  string        // of the keys
	every   time.Duration // between two looks at the news, 0 if no others share the scope
	board   *news.Board   // nil if no others do
	fellows Fellows       // nil without
	logger  *zap.Logger

	busy   chan struct{} // has an element while the storage is used
	going  chan struct{} // has an element when some of many uses has ended
	wake   chan struct{} // has an element when there is something to store
	loaded chan struct{} // closed when all that the storage had at the start is known

	mu      sync.Mutex // guards what follows
	failing bool       // the last use of the storage failed, and that was logged
	reads   reads
}

// NewStore returns a Store of a Set under the prefix of a scope. Every is how often to
// look for what others have set, 0 if no others share the scope. Where storage is nil,
// nothing can be stored, and the log says so.
func NewStore(set *Set, engine certmagic.Storage, prefix string, every time.Duration, logger *zap.Logger) *Store {
	s := &Store{
		set: set, engine: storage.New(engine), prefix: prefix, every: every, logger: logger,
		busy: make(chan struct{}, 1), going: make(chan struct{}, 1), wake: make(chan struct{}, 1), loaded: make(chan struct{}),
		reads: newReads(),
	}
	if s.IsFleet() {
		s.board = news.NewBoard(path.Join("alive/news", path.Base(prefix)+".json"), logger)
	}
	return s
}

// Join makes the store use the storage together with the other members of its fleet. It is
// called before the first use.
func (s *Store) Join(fellows Fellows) { s.fellows = fellows }

// Board returns the news of the fleet, nil if the store is of none.
func (s *Store) Board() *news.Board { return s.board }

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
		if s.IsFleet() || s.isDue(time.Now()) || len(s.set.toStore()) > 0 {
			// it may be due no longer when the storage is free
			s.use(ctx, true, func(ctx context.Context) error { return s.syncOnce(ctx, s.isDue(time.Now())) })
		}
	}
}

// isDue reports whether to read all again: for what others do, or for what could not be read
// at the start.
func (s *Store) isDue(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return (s.IsFleet() || !s.IsLoaded() || s.reads.ahead || s.reads.empty > 0) && !now.Before(s.reads.next)
}

// Sync stores what is yet to be stored, and looks at the news. With load it also reads all
// that is stored. It returns when that is done, after Timeout, or when the context ends: it
// then goes on in the background, and Wait waits for it.
func (s *Store) Sync(ctx context.Context, load bool) {
	s.use(ctx, false, func(ctx context.Context) error { return s.syncOnce(ctx, load) })
}

// Use calls a function with the storage, in the way of Sync.
func (s *Store) Use(ctx context.Context, f func(context.Context, storage.Engine) error) {
	s.use(ctx, false, func(ctx context.Context) error {
		if s.engine.IsMissing() {
			return errNoStorage
		}
		return f(ctx, s.engine)
	})
}

// use lets a function use the storage, one at a time. With patient set it waits for longer
// than Timeout while the storage answers.
func (s *Store) use(ctx context.Context, patient bool, f func(context.Context) error) {
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
		s.reportFailure(f(ctx))
	}()
	for {
		select {
		case <-done:
			return
		case <-s.going:
			if patient {
				patience.Reset(Timeout)
			}
			continue
		case <-patience.C:
			s.reportFailure(errNoAnswer)
		case <-ctx.Done():
		}
		return
	}
}

// GoOn says that the storage has answered one of many uses.
func (s *Store) GoOn() {
	select {
	case s.going <- struct{}{}:
	default:
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
	before, listed := s.failing, s.reads.listed
	s.failing = err != nil
	s.mu.Unlock()
	if s.fellows != nil {
		s.fellows.Ended(s.board, err)
	}
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
	if s.engine.IsMissing() {
		return errNoStorage
	}
	errs := s.writeAll(ctx)
	if s.IsFleet() {
		var err error
		load, err = s.look(ctx, load)
		errs = append(errs, err)
	}
	if load {
		if err := s.load(ctx); err != nil {
			errs = append(errs, err)
		}
		errs = append(errs, s.writeAll(ctx)...) // what load found to be missing there
	} else if err := s.readOwed(ctx); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// writeAll stores what is yet to be stored.
func (s *Store) writeAll(ctx context.Context) (errs []error) {
	addresses := s.set.toStore()
	var mu sync.Mutex // guards errs
	var writing sync.WaitGroup
	next := make(chan string)
	for range min(writers, len(addresses)) {
		writing.Go(func() {
			for address := range next {
				err := s.write(ctx, address)
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
				s.GoOn()
			}
		})
	}
	for _, address := range addresses {
		next <- address
	}
	close(next)
	writing.Wait()
	return errs
}

// look exchanges news with the other members. It reports whether all is to be read now,
// because that is due or because the news do not say all.
func (s *Store) look(ctx context.Context, due bool) (all bool, err error) {
	var errs []error
	if s.fellows != nil {
		errs = append(errs, s.fellows.Announce(ctx, s.engine, s.board))
	}
	fresh, missed, err := s.board.Look(ctx, s.engine)
	errs = append(errs, err)
	s.mu.Lock()
	s.reads.owe(fresh)
	all = due || missed && s.reads.hurry(time.Now())
	s.mu.Unlock()
	if s.fellows != nil {
		errs = append(errs, s.fellows.Follow(ctx, s.engine, s.board, fresh, all))
	}
	return all, errors.Join(errs...)
}
