// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/limits"
)

const (
	// storageTimeout bounds how long a change or a start waits for the storage.
	storageTimeout = limits.StorageTimeout
	// exchangeTimeout bounds how long it may take in the background.
	exchangeTimeout = time.Minute
	// readers is how many settings are read at once.
	readers = 16
	// retryInterval is how often a storage that failed is tried again.
	retryInterval = 2 * time.Second
	// maxStored bounds what is read of one setting, in bytes.
	maxStored = 1 << 20
	// listTries is how often a list is asked for while it changes.
	listTries = 20
	// keepIdle is how long a setting that changes nothing any more is kept, so that
	// the whole fleet learns that it does not.
	keepIdle = 24 * time.Hour
	// maxAhead is how far ahead of this clock a stored time may be. One that is further
	// ahead would win over every change that is still to come.
	maxAhead = 24 * time.Hour
	// restFactor and restPerKey bound what it costs to follow others: after each look a
	// pause follows that is so many times as long as the look took, but no longer than
	// this for each stored setting, so that a slow storage is not followed more slowly.
	restFactor = 10
	restPerKey = time.Millisecond
	// aheadInterval is how often settings are looked at again that were too far ahead,
	// in case that this clock was wrong.
	aheadInterval = time.Minute
)

// keeper keeps the operations of an app in Caddy's storage, one key an address, and
// follows what others of its fleet do there. A storage may be slow, gone or full of
// garbage: no change and no start waits for it longer than storageTimeout.
type keeper struct {
	*operations
	storage certmagic.Storage
	prefix  string        // of the keys
	every   time.Duration // between two looks at what others did, 0 if there are none
	logger  *zap.Logger

	busy   chan struct{} // has an element while the storage is used
	wake   chan struct{} // has an element when there is something to store
	loaded chan struct{} // closed when all that the storage held at the start is known

	mu      sync.Mutex // guards what follows
	listed  bool       // the storage has told what is in it
	failing bool       // the last use of the storage failed, and that was logged
	strange map[string]bool
	ahead   bool      // the last look found times that are too far ahead
	next    time.Time // when to look again, at the earliest
}

func newKeeper(o *operations, storage certmagic.Storage, prefix string, every time.Duration, logger *zap.Logger) *keeper {
	return &keeper{
		operations: o, storage: storage, prefix: prefix, every: every, logger: logger,
		busy: make(chan struct{}, 1), wake: make(chan struct{}, 1), loaded: make(chan struct{}),
		strange: make(map[string]bool),
	}
}

// key returns where the setting of an address is stored. Addresses can be paths, and
// longer than the name of a file.
func (k *keeper) key(address string) string {
	sum := sha256.Sum256([]byte(address))
	return path.Join(k.prefix, hex.EncodeToString(sum[:])+".json")
}

// isLoaded reports whether what the storage held at the start is known.
func (k *keeper) isLoaded() bool {
	select {
	case <-k.loaded:
		return true
	default:
		return false
	}
}

// nudge has what is yet to be stored be stored soon.
func (k *keeper) nudge() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run follows others, and stores what could not be stored, until the context ends.
func (k *keeper) run(ctx context.Context) {
	interval := retryInterval
	if k.every > 0 {
		interval = k.every
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-k.wake:
		}
		if follow := k.isDue(time.Now()); follow || len(k.toStore()) > 0 {
			k.sync(ctx, follow)
		}
	}
}

// isDue reports whether to look at the storage again: for what others do, or for what
// could not be read at the start.
func (k *keeper) isDue(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return (k.every > 0 || !k.isLoaded() || k.ahead) && !now.Before(k.next)
}

// looked notes that a look at so many keys has ended, and how long to rest now.
func (k *keeper) looked(keys int, began time.Time) {
	now := time.Now()
	rest := min(restFactor*now.Sub(began), time.Duration(keys)*restPerKey)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ahead && k.every == 0 && k.isLoaded() {
		rest = max(rest, aheadInterval)
	}
	k.next = now.Add(rest)
}

// sync stores what is yet to be stored, and reads what others changed, if it is to
// follow them. It returns when that is done, after a while, or when the context ends:
// it then goes on by itself.
func (k *keeper) sync(ctx context.Context, follow bool) {
	patience := time.NewTimer(storageTimeout)
	defer patience.Stop()
	select {
	case k.busy <- struct{}{}:
	case <-patience.C:
		k.note(errNoAnswer)
		return
	case <-ctx.Done():
		return
	}
	done := make(chan struct{})
	go func() { // wait waits for it
		defer func() { <-k.busy }()
		defer close(done)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), exchangeTimeout)
		defer cancel()
		k.note(k.exchange(ctx, follow))
	}()
	select {
	case <-done:
	case <-patience.C:
		k.note(errNoAnswer)
	case <-ctx.Done():
	}
}

var errNoAnswer = fmt.Errorf("it does not answer within %s", storageTimeout)

// wait waits until the storage is not used any more, but not for one that hangs.
func (k *keeper) wait() {
	select {
	case k.busy <- struct{}{}:
		<-k.busy
	case <-time.After(storageTimeout):
		k.logger.Warn("the storage still does not answer; not waiting for it any longer")
	}
}

// note logs when the storage begins to fail, and when it works again.
func (k *keeper) note(err error) {
	k.mu.Lock()
	before, listed := k.failing, k.listed
	k.failing = err != nil
	k.mu.Unlock()
	if err != nil && !listed {
		k.storeAllBut(nil) // who knows what is in it
	}
	switch {
	case err != nil && !before:
		k.logger.Warn("the storage fails: modes and weights that are set hold here, and are stored when it returns", zap.Error(err))
	case err == nil && before:
		k.logger.Info("the storage works again: modes and weights are stored")
	}
}

// exchange is sync without bounds. What fails for one address is no reason to leave
// out the others.
func (k *keeper) exchange(ctx context.Context, follow bool) error {
	var errs []error
	store := func() {
		for _, address := range k.toStore() {
			if err := k.store(ctx, address); err != nil {
				errs = append(errs, err)
			}
		}
	}
	store()
	if follow {
		if err := k.load(ctx); err != nil {
			errs = append(errs, err)
		}
		store() // what load found to be missing there
	}
	return errors.Join(errs...)
}

// load reads all that is stored.
func (k *keeper) load(ctx context.Context) error {
	began := time.Now()
	keys, err := k.list(ctx)
	if err != nil {
		return err
	}
	defer func() { k.looked(len(keys), began) }()
	k.mu.Lock()
	k.listed, k.ahead = true, false
	k.mu.Unlock()
	var mu sync.Mutex // guards what follows
	listed := make(map[string]bool)
	var batch []*setting // read, and not yet taken over
	var errs []error

	var reading sync.WaitGroup
	next := make(chan string)
	for range min(readers, len(keys)) {
		reading.Go(func() {
			for key := range next {
				s, err := k.follow(ctx, key)
				var due []*setting
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				}
				if s != nil {
					listed[s.Address] = true
					batch = append(batch, s)
				}
				// the first ones at once; many together, as each batch copies all
				if len(batch) > len(k.settings())/batchShare {
					due, batch = batch, nil
				}
				mu.Unlock()
				k.takeOver(due)
			}
		})
	}
	for _, key := range keys {
		if strings.HasSuffix(key, ".json") {
			next <- key
		}
	}
	close(next)
	reading.Wait()
	k.takeOver(batch)
	if len(errs) == 0 && !k.isLoaded() { // there is one look at a time
		close(k.loaded)
	}
	k.storeAllBut(listed)
	return errors.Join(errs...)
}

// batchShare is how large a part of all settings is taken over at a time at most.
const batchShare = 16

// follow returns what is stored at a key: nil if it makes no sense or changes nothing any
// more.
func (k *keeper) follow(ctx context.Context, key string) (*setting, error) {
	s, err := k.read(ctx, key)
	if err != nil || s == nil {
		return nil, err
	}
	if k.outlived(s) {
		return nil, k.storage.Delete(ctx, key)
	}
	return s, nil
}

// takeOver learns stored settings. Before all are known, the config that begins logs
// which of them apply to it.
func (k *keeper) takeOver(stored []*setting) {
	for _, s := range k.learn(stored...) {
		if k.isLoaded() {
			k.logger.Info("set at another instance of the fleet, or at this one before the storage failed", s.fields()...)
		}
	}
}

// list returns the keys of all that is stored.
func (k *keeper) list(ctx context.Context) (keys []string, err error) {
	for range listTries {
		keys, err = k.storage.List(ctx, k.prefix, false)
		if !errors.Is(err, fs.ErrNotExist) {
			return keys, err
		}
		if !k.storage.Exists(ctx, k.prefix) {
			return nil, nil // nothing was stored yet
		}
		// A folder is walked file by file: one that another instance was about to
		// replace is gone, and the rest of the folder is missing.
	}
	return nil, err
}

// outlived reports whether a setting changes nothing and everybody knows.
func (k *keeper) outlived(s *setting) bool {
	return s.idle() && (k.every == 0 || time.Since(s.newest()) > keepIdle)
}

// errTooLong is what is wrong with a stored setting that is too long to be one.
var errTooLong = fmt.Errorf("it is longer than %d bytes", maxStored)

// errAhead is what is wrong with a setting from the future.
var errAhead = errors.New("its time is more than a day ahead of the clock of this machine")

// read returns a stored setting, nil if there is none that makes sense.
func (k *keeper) read(ctx context.Context, key string) (*setting, error) {
	var text []byte
	// What is too long should not even be read. Stat is not to be relied on: some
	// storages cannot do it, and some say that what is there is not.
	info, err := k.storage.Stat(ctx, key)
	if err == nil && info.Size > maxStored {
		err = errTooLong
	} else {
		text, err = k.storage.Load(ctx, key)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if len(text) > maxStored {
			err = errTooLong
		}
	}
	var s *setting
	if err == nil {
		s, err = parseSetting(text)
	}
	if err == nil && k.key(s.Address) != key {
		err = fmt.Errorf("it is that of another address, %q", s.Address)
	}
	if err == nil && s.latest().After(time.Now().Add(maxAhead)) {
		err = errAhead
	}
	if err != nil {
		k.mu.Lock()
		told := k.strange[key]
		k.strange[key] = true
		k.ahead = k.ahead || errors.Is(err, errAhead)
		k.mu.Unlock()
		if !told {
			k.logger.Warn("ignoring a stored mode or weight that is not valid: the next change of it replaces it", zap.String("key", key), zap.Error(err))
		}
		return nil, nil
	}
	return s, nil
}

// store stores the setting of an address, with what others changed of it meanwhile.
func (k *keeper) store(ctx context.Context, address string) error {
	key := k.key(address)
	there, err := k.read(ctx, key)
	if err != nil {
		return err
	}
	if there != nil {
		k.learn(there)
	}
	s := k.of(address)
	if s == nil {
		return nil
	}
	if k.outlived(s) {
		if err := k.storage.Delete(ctx, key); err != nil {
			return err
		}
		k.forget(s)
		return nil
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := k.storage.Store(ctx, key, text); err != nil {
		return err
	}
	k.stored(s)
	return nil
}

// noScope is where settings would be stored of an instance that has no ID.
const noScope = "alive/instances/none"

var errNoID = errors.New("this instance has no ID, for Caddy's data folder cannot be written")

// noStorage stands for a storage that cannot be used: all that it is asked for fails.
type noStorage struct{ err error }

func (n noStorage) Lock(context.Context, string) error                   { return n.err }
func (n noStorage) Unlock(context.Context, string) error                 { return n.err }
func (n noStorage) Store(context.Context, string, []byte) error          { return n.err }
func (n noStorage) Load(context.Context, string) ([]byte, error)         { return nil, n.err }
func (n noStorage) Delete(context.Context, string) error                 { return n.err }
func (n noStorage) Exists(context.Context, string) bool                  { return false }
func (n noStorage) List(context.Context, string, bool) ([]string, error) { return nil, n.err }
func (n noStorage) Stat(context.Context, string) (certmagic.KeyInfo, error) {
	return certmagic.KeyInfo{}, n.err
}
