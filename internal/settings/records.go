// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/news"
)

const (
	// readers is how many settings are read at once.
	readers = 16
	// batchShare is how large a part of all settings is taken over at a time at most.
	batchShare = 16
	// maxStored bounds what is read of one setting, in bytes.
	maxStored = 1 << 20
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
	return s.keyOf(Hash(address))
}

// Hash returns by what an address is told from others in keys.
func Hash(address string) string {
	sum := sha256.Sum256([]byte(address))
	return hex.EncodeToString(sum[:])
}

// keyOf returns where the setting with the hash of an address is stored.
func (s *Store) keyOf(hash string) string { return path.Join(s.prefix, hash+".json") }

// load reads all that is stored.
func (s *Store) load(ctx context.Context) error {
	began := time.Now()
	keys, err := s.engine.List(ctx, s.prefix, ".json")
	if err != nil {
		return err
	}
	defer func() { s.rest(len(keys), began) }()
	s.mu.Lock()
	s.reads.list(keys)
	s.mu.Unlock()
	listed, err := s.readAll(ctx, keys)
	if err == nil && !s.IsLoaded() { // there is one read at a time
		close(s.loaded)
	}
	s.set.storeAllExcept(listed)
	return err
}

// rest sets when the next read of all is due, after one of so many keys.
func (s *Store) rest(keys int, began time.Time) {
	now := time.Now()
	rest := restFactor * now.Sub(began)
	hurry := max(rest, missedInterval)
	if s.IsFleet() {
		rest = max(rest, fullInterval)
		if s.fellows != nil {
			size := s.fellows.Size()
			rest, hurry = max(rest, time.Duration(size)*fullPerMember), max(hurry, time.Duration(size)*missedPerMember)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads.missed = now.Add(hurry)
	if !s.IsFleet() && s.IsLoaded() {
		if s.reads.ahead {
			rest = max(rest, aheadInterval)
		}
		if rest = max(rest, s.reads.empty); keys == 0 {
			s.reads.empty = min(max(2*s.reads.empty, emptyInterval), maxEmptyInterval)
			rest = max(rest, s.reads.empty)
		}
	}
	if keys > 0 {
		s.reads.empty = 0
	}
	s.reads.next = now.Add(rest)
}

// readOwed reads the settings of which the news say that they are newer than those here.
func (s *Store) readOwed(ctx context.Context) error {
	s.mu.Lock()
	keys := make([]string, 0, len(s.reads.owed))
	for hash := range s.reads.owed {
		keys = append(keys, s.keyOf(hash))
	}
	s.mu.Unlock()
	_, err := s.readAll(ctx, keys)
	return err
}

// readAll reads keys, and takes over what is newer there. It returns the addresses that
// were read.
func (s *Store) readAll(ctx context.Context, keys []string) (listed map[string]bool, err error) {
	var mu sync.Mutex // guards what follows
	listed = make(map[string]bool)
	var batch []*Setting // read, and not yet taken over
	var errs []error

	var reading sync.WaitGroup
	next := make(chan string)
	for range min(readers, len(keys)) {
		reading.Go(func() {
			for key := range next {
				setting, err := s.readOrExpire(ctx, key)
				s.mu.Lock()
				s.reads.settle(strings.TrimSuffix(path.Base(key), ".json"), setting, err)
				s.mu.Unlock()
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
				s.GoOn()
			}
		})
	}
	for _, key := range keys {
		next <- key
	}
	close(next)
	reading.Wait()
	s.takeOver(batch)
	return listed, errors.Join(errs...)
}

// readOrExpire returns what is stored at a key: nil if it makes no sense, or changes
// nothing any more and is deleted.
func (s *Store) readOrExpire(ctx context.Context, key string) (*Setting, error) {
	setting, err := s.read(ctx, key)
	if err != nil || setting == nil {
		return nil, err
	}
	if s.isExpired(setting) {
		return nil, s.engine.Delete(ctx, key)
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

// isExpired reports whether a setting changes nothing, and all that share the storage
// know.
func (s *Store) isExpired(setting *Setting) bool {
	return setting.IsDefault() && (!s.IsFleet() || time.Since(setting.Newest()) > keepDefault)
}

// errAhead is what is wrong with a setting from the future.
var errAhead = errors.New("its time is more than a day ahead of the clock of this machine")

// read returns a stored setting, nil if there is none that makes sense.
func (s *Store) read(ctx context.Context, key string) (*Setting, error) {
	text, err := s.engine.Load(ctx, key, maxStored, true)
	if err != nil && !s.engine.IsTooLong(err) || text == nil && err == nil {
		return nil, err
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
		logged := s.reads.invalid[key]
		s.reads.invalid[key] = true
		s.reads.ahead = s.reads.ahead || errors.Is(err, errAhead)
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
		if err := s.engine.Delete(ctx, key); err != nil {
			return err
		}
		s.set.forget(setting)
		return nil
	}
	if there == nil || !there.equal(setting) { // else another member was quicker
		text, err := json.Marshal(setting)
		if err != nil {
			return err
		}
		if err := s.engine.Store(ctx, key, text); err != nil {
			return err
		}
	}
	if s.set.markStored(setting) {
		s.tell(setting)
	}
	return nil
}

// tell adds to the news that a setting was stored.
func (s *Store) tell(setting *Setting) {
	if s.IsFleet() {
		s.board.Add(news.Entry{Kind: news.Setting, Key: Hash(setting.Address), At: setting.Newest()})
	}
}
