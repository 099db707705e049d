// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// readers is how many settings are read at once.
	readers = 16
	// batchShare is how large a part of all settings is taken over at a time at most.
	batchShare = 16
	// maxStored bounds what is read of one setting, in bytes.
	maxStored = 1 << 20
	// listTries is how often a list is asked for while it changes.
	listTries = 20
	// keepDefault is how long a setting that changes nothing any more is kept, so that
	// the whole fleet learns that it does not.
	keepDefault = 24 * time.Hour
	// maxAhead is how far ahead of this clock a stored time may be. One that is further
	// ahead would win over every change that is still to come.
	maxAhead = 24 * time.Hour
)

// key returns where the setting of an address is stored. Addresses can be paths, and
// longer than the name of a file.
func (s *Store) key(address string) string {
	sum := sha256.Sum256([]byte(address))
	return path.Join(s.prefix, hex.EncodeToString(sum[:])+".json")
}

// load reads all that is stored.
func (s *Store) load(ctx context.Context) error {
	began := time.Now()
	keys, err := s.list(ctx)
	if err != nil {
		return err
	}
	defer func() { s.rest(len(keys), began) }()
	s.mu.Lock()
	s.listed, s.ahead = true, false
	for key := range s.invalidKeys {
		if !slices.Contains(keys, key) {
			delete(s.invalidKeys, key)
		}
	}
	s.mu.Unlock()
	var mu sync.Mutex // guards what follows
	listed := make(map[string]bool)
	var batch []*Setting // read, and not yet taken over
	var errs []error

	var reading sync.WaitGroup
	next := make(chan string)
	for range min(readers, len(keys)) {
		reading.Go(func() {
			for key := range next {
				setting, err := s.readOrExpire(ctx, key)
				var due []*Setting
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				}
				if setting != nil {
					listed[setting.Address] = true
					batch = append(batch, setting)
				}
				// the first ones at once; then many together, as each batch copies all
				if len(batch) > len(s.set.All())/batchShare {
					due, batch = batch, nil
				}
				mu.Unlock()
				s.takeOver(due)
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
	s.takeOver(batch)
	if len(errs) == 0 && !s.IsLoaded() { // there is one read at a time
		close(s.loaded)
	}
	s.set.storeAllExcept(listed)
	return errors.Join(errs...)
}

// readOrExpire returns what is stored at a key: nil if it makes no sense, or changes
// nothing any more and is deleted.
func (s *Store) readOrExpire(ctx context.Context, key string) (*Setting, error) {
	setting, err := s.read(ctx, key)
	if err != nil || setting == nil {
		return nil, err
	}
	if s.isExpired(setting) {
		return nil, s.storage.Delete(ctx, key)
	}
	return setting, nil
}

// takeOver merges stored settings. Before all are known, the config that begins logs
// which of them apply to it.
func (s *Store) takeOver(stored []*Setting) {
	for _, setting := range s.set.MergeStored(stored...) {
		if s.IsLoaded() {
			s.logger.Info("set at another instance of the fleet, or at this one before the storage failed", setting.Fields()...)
		}
	}
}

// list returns the keys of all that is stored.
func (s *Store) list(ctx context.Context) (keys []string, err error) {
	for range listTries {
		keys, err = s.storage.List(ctx, s.prefix, false)
		if !errors.Is(err, fs.ErrNotExist) {
			return keys, err
		}
		if !s.storage.Exists(ctx, s.prefix) {
			return nil, nil // nothing was stored yet
		}
		// A folder is walked file by file: one that another instance was about to
		// replace is gone, and the rest of the folder is missing.
	}
	return nil, err
}

// isExpired reports whether a setting changes nothing, and all that share the storage
// know.
func (s *Store) isExpired(setting *Setting) bool {
	return setting.IsDefault() && (!s.IsFleet() || time.Since(setting.Newest()) > keepDefault)
}

// errTooLong is what is wrong with a stored setting that is too long to be one.
var errTooLong = fmt.Errorf("it is longer than %d bytes", maxStored)

// errAhead is what is wrong with a setting from the future.
var errAhead = errors.New("its time is more than a day ahead of the clock of this machine")

// read returns a stored setting, nil if there is none that makes sense.
func (s *Store) read(ctx context.Context, key string) (*Setting, error) {
	var text []byte
	// What is too long should not even be read. Stat is not to be relied on: some
	// storages cannot do it, and some say that what is there is not.
	info, err := s.storage.Stat(ctx, key)
	if err == nil && info.Size > maxStored {
		err = errTooLong
	} else {
		text, err = s.storage.Load(ctx, key)
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
	var setting *Setting
	if err == nil {
		setting, err = parse(text)
	}
	if err == nil && s.key(setting.Address) != key {
		err = fmt.Errorf("it is that of another address, %q", setting.Address)
	}
	if err == nil && setting.latest().After(time.Now().Add(maxAhead)) {
		err = errAhead
	}
	if err != nil {
		s.mu.Lock()
		logged := s.invalidKeys[key]
		s.invalidKeys[key] = true
		s.ahead = s.ahead || errors.Is(err, errAhead)
		s.mu.Unlock()
		if !logged {
			s.logger.Warn("ignoring a stored mode or weight that is not valid: the next change of it replaces it", zap.String("key", key), zap.Error(err))
		}
		return nil, nil
	}
	return setting, nil
}

// write stores the setting of an address, with what others changed of it meanwhile.
func (s *Store) write(ctx context.Context, address string) error {
	key := s.key(address)
	there, err := s.read(ctx, key)
	if err != nil {
		return err
	}
	if there != nil {
		s.set.MergeStored(there)
	}
	setting := s.set.Of(address)
	if setting == nil {
		return nil
	}
	if s.isExpired(setting) {
		if err := s.storage.Delete(ctx, key); err != nil {
			return err
		}
		s.set.forget(setting)
		return nil
	}
	text, err := json.Marshal(setting)
	if err != nil {
		return err
	}
	if err := s.storage.Store(ctx, key, text); err != nil {
		return err
	}
	s.set.markStored(setting)
	return nil
}
