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
)

const (
	// storageTimeout bounds how long anybody waits for the storage.
	storageTimeout = 2 * time.Second
	// retryInterval is how often a storage that failed is tried again.
	retryInterval = 2 * time.Second
	// maxStored bounds what is read of one setting, in bytes.
	maxStored = 64 << 10
	// listTries is how often a list is asked for while it changes.
	listTries = 20
	// keepIdle is how long a setting that changes nothing any more is kept, so that
	// everybody in the fleet learns that it does not.
	keepIdle = 24 * time.Hour
)

// keeper keeps the operations of an app in Caddy's storage, one key an address, and
// follows what others of its fleet do there. A storage may be slow, gone or full of
// garbage: nobody waits for it longer than storageTimeout.
type keeper struct {
	*operations
	storage certmagic.Storage
	prefix  string        // of the keys
	every   time.Duration // between two looks at what others did, 0 if there are none
	logger  *zap.Logger

	busy  chan struct{} // has an element while the storage is used
	using sync.WaitGroup

	mu      sync.Mutex // guards what follows
	failing bool       // the last use of the storage failed, and that was logged
	strange map[string]bool
}

func newKeeper(o *operations, storage certmagic.Storage, prefix string, every time.Duration, logger *zap.Logger) *keeper {
	return &keeper{
		operations: o, storage: storage, prefix: prefix, every: every, logger: logger,
		busy: make(chan struct{}, 1), strange: make(map[string]bool),
	}
}

// key returns where the setting of an address is stored. Addresses can be paths, and
// longer than the name of a file.
func (k *keeper) key(address string) string {
	sum := sha256.Sum256([]byte(address))
	return path.Join(k.prefix, hex.EncodeToString(sum[:])+".json")
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
			if follow := k.every > 0 || !k.isLoaded(); follow || len(k.toStore()) > 0 {
				k.sync(ctx, follow)
			}
		}
	}
}

// sync stores what is yet to be stored, after it has read what others changed, if it
// is to follow them.
func (k *keeper) sync(ctx context.Context, follow bool) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	select {
	case k.busy <- struct{}{}:
	case <-ctx.Done():
		k.note(errNoAnswer)
		return
	}
	done := make(chan error, 1)
	k.using.Go(func() {
		defer func() { <-k.busy }()
		done <- k.exchange(ctx, follow)
	})
	select {
	case err := <-done:
		k.note(err)
	case <-ctx.Done():
		k.note(errNoAnswer)
	}
}

var errNoAnswer = fmt.Errorf("it does not answer within %s", storageTimeout)

// wait waits until the storage is not used any more, but not for one that hangs.
func (k *keeper) wait() {
	idle := make(chan struct{})
	go func() {
		k.using.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-time.After(storageTimeout):
		k.logger.Warn("the storage still does not answer; not waiting for it any longer")
	}
}

// note logs when the storage begins to fail, and when it works again.
func (k *keeper) note(err error) {
	k.mu.Lock()
	before := k.failing
	k.failing = err != nil
	k.mu.Unlock()
	switch {
	case err != nil && !before:
		k.logger.Warn("the storage fails: modes and weights that are set hold here, and are stored when it returns", zap.Error(err))
	case err == nil && before:
		k.logger.Info("the storage works again: modes and weights are stored")
	}
}

// exchange is sync without bounds.
func (k *keeper) exchange(ctx context.Context, follow bool) error {
	if follow {
		if err := k.load(ctx); err != nil {
			return err
		}
	}
	for _, address := range k.toStore() {
		if err := k.store(ctx, address); err != nil {
			return err
		}
	}
	return nil
}

// load reads all that is stored.
func (k *keeper) load(ctx context.Context) error {
	keys, err := k.list(ctx)
	if err != nil {
		return err
	}
	listed := make(map[string]bool)
	for _, key := range keys {
		if !strings.HasSuffix(key, ".json") {
			continue
		}
		s, err := k.read(ctx, key)
		if err != nil {
			return err
		}
		if s == nil {
			continue
		}
		if k.outlived(s) {
			if err := k.storage.Delete(ctx, key); err != nil {
				return err
			}
			continue
		}
		listed[s.Address] = true
		if k.learn(s) {
			k.logger.Info("as it was set before, or at another instance of the fleet", s.fields()...)
		}
	}
	k.finishLoading(listed)
	return nil
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

// read returns a stored setting, nil if there is none that makes sense.
func (k *keeper) read(ctx context.Context, key string) (*setting, error) {
	text, err := k.storage.Load(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(text) > maxStored {
		err = fmt.Errorf("it is longer than %d bytes", maxStored)
	}
	var s *setting
	if err == nil {
		s, err = parseSetting(text)
	}
	if err == nil && k.key(s.Address) != key {
		err = fmt.Errorf("it is that of another address, %q", s.Address)
	}
	if err != nil {
		k.mu.Lock()
		told := k.strange[key]
		k.strange[key] = true
		k.mu.Unlock()
		if !told {
			k.logger.Warn("ignoring what is stored as a mode, for it is none", zap.String("key", key), zap.Error(err))
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
