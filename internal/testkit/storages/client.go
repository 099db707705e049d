// SPDX-License-Identifier: Apache-2.0

package storages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
)

// Client is a certmagic.Storage that keeps what an Engine has.
type Client struct {
	controls

	engine *Engine
	number int
}

var _ certmagic.Storage = (*Client)(nil)

// unreachableError says that the engine was not reached, in contrast to what it answers.
type unreachableError struct{ error }

// Unwrap returns the reason.
func (e unreachableError) Unwrap() error { return e.error }

// levels returns what can go wrong on the way to the engine, and there.
func (c *Client) levels() []*controls { return []*controls{&c.controls, &c.engine.controls} }

// use makes a call: do is what it does at the engine.
func (c *Client) use(ctx context.Context, call Call, do func() error) error {
	call.Client = c.number
	levels := c.levels()
	for _, level := range levels {
		if err := level.enter(ctx, call); err != nil {
			return err
		}
	}
	if c.engine.Has(IgnoresContext) {
		ctx = context.WithoutCancel(ctx)
	}
	if err := ctx.Err(); err != nil {
		return unreachableError{err}
	}
	for _, level := range levels {
		if err := level.wait(ctx); err != nil {
			return unreachableError{err}
		}
	}
	for _, level := range levels {
		if err := level.outage(); err != nil {
			return unreachableError{err}
		}
	}
	if err := do(); err != nil {
		return err
	}
	for _, level := range levels {
		if err := level.half(ctx); err != nil {
			return unreachableError{err}
		}
	}
	return nil
}

// hides reports whether the caller does not learn of an error, by one of some quirks.
func (c *Client) hides(err error, quirks Quirks) bool {
	var unreachable unreachableError
	return c.engine.Has(quirks) && errors.As(err, &unreachable)
}

// Store is that of certmagic.Storage.
func (c *Client) Store(ctx context.Context, key string, value []byte) error {
	text := string(value)
	return c.use(ctx, Call{Op: Store, Key: key, Value: value}, func() error {
		c.engine.write(key, &text)
		return nil
	})
}

// Load is that of certmagic.Storage.
func (c *Client) Load(ctx context.Context, key string) (value []byte, err error) {
	err = c.use(ctx, Call{Op: Load, Key: key}, func() error {
		text := c.engine.seen(key)
		if text == nil {
			return notFound(key)
		}
		value = []byte(*text)
		return nil
	})
	if c.hides(err, OutageLooksEmpty) {
		err = notFound(key)
	}
	if err != nil {
		return nil, err
	}
	return value, nil
}

// Delete is that of certmagic.Storage.
func (c *Client) Delete(ctx context.Context, key string) error {
	err := c.use(ctx, Call{Op: Delete, Key: key}, func() error {
		deleted := false
		for other := range c.engine.state(time.Now()) {
			if other == key || strings.HasPrefix(other, key+"/") {
				c.engine.write(other, nil)
				deleted = true
			}
		}
		if !deleted && c.engine.Has(DeleteNotFound) {
			return notFound(key)
		}
		return nil
	})
	if c.hides(err, OutageDeletes) {
		return notFound(key)
	}
	return err
}

// Exists is that of certmagic.Storage.
func (c *Client) Exists(ctx context.Context, key string) (exists bool) {
	err := c.use(ctx, Call{Op: Exists, Key: key}, func() error {
		exists = !c.engine.Has(ExistsNothing) && (c.engine.seen(key) != nil || c.engine.hasFolder(key))
		return nil
	})
	return exists && err == nil
}

// Stat is that of certmagic.Storage.
func (c *Client) Stat(ctx context.Context, key string) (info certmagic.KeyInfo, err error) {
	err = c.use(ctx, Call{Op: Stat, Key: key}, func() error {
		text := c.engine.seen(key)
		switch {
		case c.engine.Has(StatUnsupported):
			return errors.ErrUnsupported
		case c.engine.Has(StatNothing):
			return notFound(key)
		case text != nil:
			info = certmagic.KeyInfo{Key: key, Size: int64(len(*text)), IsTerminal: true}
			if c.engine.Has(StatZero) {
				info.Size = 0
			}
		case c.engine.hasFolder(key):
			info = certmagic.KeyInfo{Key: key}
		default:
			return notFound(key)
		}
		return nil
	})
	if c.hides(err, OutageLooksEmpty) {
		err = notFound(key)
	}
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	return info, nil
}

// List is that of certmagic.Storage.
func (c *Client) List(ctx context.Context, prefix string, recursive bool) (keys []string, err error) {
	err = c.use(ctx, Call{Op: List, Key: prefix, Recursive: recursive}, func() (err error) {
		keys, err = c.engine.list(prefix, recursive)
		if err != nil || len(keys) == 0 {
			return err
		}
		for _, level := range c.levels() {
			if breaks, err := level.breaksOff(); breaks {
				keys = keys[:len(keys)/2]
				return err
			}
		}
		return nil
	})
	switch {
	case c.hides(err, OutageListsEmptyKey):
		return []string{""}, nil
	case c.hides(err, OutageLooksEmpty) && c.engine.Has(NothingNotFound):
		return nil, notFound(prefix)
	case c.hides(err, OutageLooksEmpty):
		return nil, nil
	}
	return keys, err
}

// list returns the keys that readers see under a prefix.
func (e *Engine) list(prefix string, recursive bool) ([]string, error) {
	state := e.state(time.Now().Add(-e.Lag()))
	switch {
	case recursive && e.Has(NoRecursive):
		return nil, fmt.Errorf("a recursive list of %s is not supported", prefix)
	case len(state) == 0 && e.Has(EmptyFails):
		return nil, errors.New("there are no keys")
	}
	found := make(map[string]bool)
	for key := range state {
		rest, ok := strings.CutPrefix(key, prefix)
		if !ok || (!e.Has(PrefixMatch) && prefix != "" && !strings.HasPrefix(rest, "/")) {
			continue
		}
		for _, name := range e.names(rest, recursive) {
			found[prefix+name] = true
		}
	}
	if len(found) == 0 && e.Has(NothingNotFound) {
		return nil, notFound(prefix)
	}
	if len(found) > 0 && e.Has(ListsPhantoms) {
		found[prefix+"/phantom.json"] = true
	}
	keys := slices.Sorted(maps.Keys(found))
	if e.Has(ListsTwice) {
		// in the order of the map, which is another one each time
		keys = append(slices.Collect(maps.Keys(found)), slices.Collect(maps.Keys(found))...)
	}
	if e.Has(LeadingSlash) {
		for i, key := range keys {
			keys[i] = "/" + key
		}
	}
	return keys, nil
}

// names returns what a list has of a key, of which rest is what follows the prefix.
func (e *Engine) names(rest string, recursive bool) []string {
	var folders []string // the way to the key
	for i := range rest {
		if i > 0 && rest[i] == '/' {
			folders = append(folders, rest[:i])
		}
	}
	switch head, _, deeper := strings.Cut(rest, "/"); {
	case recursive && e.Has(ListsFolders):
		return append(folders, rest)
	case !recursive && e.Has(OnlyFolders) && deeper:
		return []string{head + "/"}
	case !recursive && !e.Has(OnlyFolders|Flat) && len(folders) > 0:
		return folders[:1]
	default:
		return []string{rest}
	}
}

// Lock is that of certmagic.Storage.
func (c *Client) Lock(ctx context.Context, name string) error {
	return c.use(ctx, Call{Op: Lock, Key: name}, func() error {
		switch e := c.engine; {
		case e.Has(LockFails):
			return errNoLocks
		case e.Has(LocksNothing):
			return nil
		default:
			return e.lock(ctx, name)
		}
	})
}

// Unlock is that of certmagic.Storage.
func (c *Client) Unlock(ctx context.Context, name string) error {
	return c.use(ctx, Call{Op: Unlock, Key: name}, func() error {
		switch e := c.engine; {
		case e.Has(LockFails):
			return errNoLocks
		case e.Has(LocksNothing):
			return nil
		default:
			return e.unlock(name)
		}
	})
}

var errNoLocks = errors.New("this storage has no locks")

// lock waits for a lock.
func (e *Engine) lock(ctx context.Context, name string) error {
	for {
		e.mu.Lock()
		held, ok := e.locks[name]
		if !ok {
			e.locks[name] = make(chan struct{})
		}
		e.mu.Unlock()
		if !ok {
			return nil
		}
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// unlock gives a lock back.
func (e *Engine) unlock(name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	held, ok := e.locks[name]
	if !ok {
		return fmt.Errorf("there is no lock %s", name)
	}
	delete(e.locks, name)
	close(held)
	return nil
}

// notFound is the error that nothing is at a key.
func notFound(key string) error { return fmt.Errorf("%s: %w", key, fs.ErrNotExist) }
