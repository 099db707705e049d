// SPDX-License-Identifier: Apache-2.0

// Package storage uses Caddy's storage in the ways in which the engines behind it behave
// alike: to load, store and delete known keys, and to list what is below a prefix. It has
// no state and no locks. It does not know what is stored, and it bounds no time: some
// engines ignore the deadline of a context, so the caller must.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/caddyserver/certmagic"
)

// listTries is how often a list is asked for while it changes.
const listTries = 20

// ErrTooLong says that a value is longer than anything that is stored here.
var ErrTooLong = errors.New("it is too long")

// Engine is the storage of a config. The zero value has none.
type Engine struct{ storage certmagic.Storage }

// New returns an Engine, which has none if storage is nil.
func New(storage certmagic.Storage) Engine { return Engine{storage} }

// IsMissing reports whether there is none.
func (e Engine) IsMissing() bool { return e.storage == nil }

// List returns the keys below a prefix in their order, none if there are none. Each ends with
// the suffix. What is listed need not be there.
//
// Engines differ in what a list has. That of S3 has what is further below only if the list
// is recursive; that of Postgres has keys of other prefixes that begin with the same letters;
// that of Consul fails with fs.ErrNotExist if it is empty; that of Redis can have a key twice.
// A recursive list, which is filtered here, works with all of them.
func (e Engine) List(ctx context.Context, prefix, suffix string) ([]string, error) {
	found, err := e.list(ctx, prefix, true)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // one that breaks off does so again
		if flat, again := e.list(ctx, prefix, false); again == nil && !hasFolder(flat, prefix) {
			found, err = flat, nil
		}
	}
	if err != nil {
		return nil, err
	}
	keys := make([]string, 0, len(found))
	for _, key := range found {
		key = strings.TrimPrefix(key, "/")
		if strings.HasPrefix(key, prefix+"/") && strings.HasSuffix(key, suffix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

// hasFolder reports whether a list has the folder of the prefix in place of what is in it.
func hasFolder(keys []string, prefix string) bool {
	return slices.ContainsFunc(keys, func(key string) bool { return strings.TrimPrefix(key, "/") == prefix+"/" })
}

// errEmptyKey is what is wrong with a list of a storage that takes the error in place of a
// key for a key.
var errEmptyKey = errors.New("the list has an empty key, as that of an S3 storage has after an error")

// list returns what the engine lists, nothing if it says that there is nothing.
func (e Engine) list(ctx context.Context, prefix string, recursive bool) (keys []string, err error) {
	some := false
	for range listTries {
		keys, err = e.storage.List(ctx, prefix, recursive)
		if ctx.Err() != nil {
			return nil, ctx.Err() // which some report as if there were nothing
		}
		if err == nil && slices.Contains(keys, "") {
			return nil, errEmptyKey
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return keys, err
		}
		some = some || len(keys) > 0
		if !e.storage.Exists(ctx, prefix) {
			break
		}
		// A folder is walked file by file: one that another member was about to replace is
		// gone, and the rest of the folder is missing. But what exists can be a lie, too.
	}
	if some {
		return nil, err
	}
	return nil, nil
}

// Load returns the value of a key, nil if there is none. The error is [ErrTooLong] if it is
// longer than most bytes. With stat, such a value is not even read where the engine says its
// length: not all can, and some say that what is there is not.
func (e Engine) Load(ctx context.Context, key string, most int, stat bool) ([]byte, error) {
	if stat {
		if info, err := e.storage.Stat(ctx, key); err == nil && info.Size > int64(most) {
			return nil, tooLong(most)
		}
	}
	text, err := e.storage.Load(ctx, key)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err() // which some report as if there were nothing
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case len(text) > most:
		return nil, tooLong(most)
	case text == nil:
		text = []byte{} // it is there
	}
	return text, nil
}

// IsTooLong reports whether an error says that a value is too long.
func (Engine) IsTooLong(err error) bool { return errors.Is(err, ErrTooLong) }

func tooLong(most int) error { return fmt.Errorf("%w: more than %d bytes", ErrTooLong, most) }

// Store stores the value of a key.
func (e Engine) Store(ctx context.Context, key string, value []byte) error {
	return e.storage.Store(ctx, key, value)
}

// Delete deletes a key. That it is not there is no error.
func (e Engine) Delete(ctx context.Context, key string) error {
	err := e.storage.Delete(ctx, key)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// That of Consul says so of each error, but only if it deletes.
	_, there := e.storage.Load(ctx, key)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(there, fs.ErrNotExist):
		return nil
	case there != nil:
		return there
	default:
		return err // it is there
	}
}
