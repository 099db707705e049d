// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit/storages"
)

var errDown = errors.New("connection refused")

// A list has each key below its prefix once, and no others, whatever a list of the storage
// has.
func TestEngine_ListHasTheKeysBelowThePrefix(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		for _, key := range []string{"f/shop/b.json", "f/shop/a.json", "f/shop/c.txt", "f/shops/x.json", "f/shop.json", "g/y.json"} {
			e.Put(key, "{}")
		}
		engine := New(e.Client())
		want := []string{"f/shop/a.json", "f/shop/b.json"}
		if e.Has(storages.ListsPhantoms) {
			want = append(want, "f/shop/phantom.json")
		}
		if keys, err := engine.List(t.Context(), "f/shop", ".json"); err != nil || !slices.Equal(keys, want) {
			t.Errorf("%q, %v; want %q", keys, err, want)
		}
		if keys, err := engine.List(t.Context(), "f/sho", ".json"); err != nil || (len(keys) > 0 && !e.Has(storages.ListsPhantoms)) {
			t.Errorf("of nothing: %q, %v", keys, err)
		}
		e.Flush()
		if keys, err := engine.List(t.Context(), "f/shop", ".json"); (err != nil) != e.Has(storages.EmptyFails) || len(keys) > 0 {
			t.Errorf("of an empty storage: %q, %v", keys, err)
		}
	})
}

// A list that breaks off while a folder changes is asked for again. If that never ends, it
// is an error: a part of the keys is not taken for all.
func TestEngine_ListThatBreaksOffIsNotTakenForAll(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		for _, key := range []string{"f/shop/a.json", "f/shop/b.json", "f/shop/c.json"} {
			e.Put(key, "{}")
		}
		engine := New(e.Client())
		for _, breaks := range []int{1, listTries - 1, 10 * listTries} {
			e.BreakLists(breaks, fs.ErrNotExist)
			keys, err := engine.List(t.Context(), "f/shop", ".json")
			again := !e.Has(storages.ExistsNothing | storages.ExistsNoFolder) // otherwise it does not know that a folder changes
			if (err == nil && len(keys) < 3) || (err != nil && again && breaks < listTries) || (err == nil && breaks > 2*listTries) {
				t.Errorf("%d lists break off: %q, %v", breaks, keys, err)
			}
			e.BreakLists(0, nil)
		}
	})
}

// A recursive list that fails is no reason to take one with folders only for an empty one.
func TestEngine_FoldersAreNotTakenForNoKeys(t *testing.T) {
	for _, quirks := range []storages.Quirks{0, storages.PrefixMatch, storages.LeadingSlash} {
		synctest.Test(t, func(t *testing.T) {
			e := storages.New(storages.OnlyFolders, quirks)
			e.Put("f/shop/a.json", "{}")
			e.Before(func(_ context.Context, call storages.Call) error {
				if call.Recursive {
					return errDown
				}
				return nil
			})
			if keys, err := New(e.Client()).List(t.Context(), "f/shop", ".json"); !errors.Is(err, errDown) {
				t.Errorf("%q, %v", keys, err)
			}
		})
	}
}

// An outage is an error of all calls, except where the storage hides it. A deletion that
// an outage prevents is never taken for done, except where a storage hides both.
func TestEngine_OutageIsAnError(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		e.Put("f/a.json", "{}")
		engine := New(e.Client())
		e.Fail(errDown)
		if keys, err := engine.List(t.Context(), "f", ".json"); (err == nil) != (e.Has(storages.OutageLooksEmpty) && !e.Has(storages.OutageListsEmptyKey)) {
			t.Errorf("list: %q, %v", keys, err)
		}
		if text, err := engine.Load(t.Context(), "f/a.json", 10, true); (err == nil) != e.Has(storages.OutageLooksEmpty) || text != nil {
			t.Errorf("load: %q, %v", text, err)
		}
		if err := engine.Store(t.Context(), "f/a.json", []byte("{}")); !errors.Is(err, errDown) {
			t.Errorf("store: %v", err)
		}
		if err := engine.Delete(t.Context(), "f/a.json"); !errors.Is(err, errDown) {
			t.Errorf("delete: %v", err)
		}
	})
}

// A call that ends with its context has an error, also where the storage takes that for "not
// found".
func TestEngine_EndOfTheContextIsAnError(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		if e.Has(storages.IgnoresContext) {
			return // its calls do not end
		}
		e.Put("f/a.json", "{}")
		engine := New(e.Client())
		e.Hang()
		for name, call := range map[string]func(ctx context.Context) error{
			"list":   func(ctx context.Context) error { _, err := engine.List(ctx, "f", ".json"); return err },
			"load":   func(ctx context.Context) error { _, err := engine.Load(ctx, "f/a.json", 10, false); return err },
			"stat":   func(ctx context.Context) error { _, err := engine.Load(ctx, "f/a.json", 10, true); return err },
			"store":  func(ctx context.Context) error { return engine.Store(ctx, "f/a.json", nil) },
			"delete": func(ctx context.Context) error { return engine.Delete(ctx, "f/a.json") },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := call(ctx); err == nil {
				t.Errorf("%s: no error", name)
			}
			cancel()
		}
	})
}

// A value that is too long is an error, and is not even read if the storage says its length.
func TestEngine_TooLongValueIsAnError(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		e.Put("f/long", strings.Repeat("x", 11))
		e.Put("f/fits", strings.Repeat("x", 10))
		e.Put("f/empty", "")
		engine := New(e.Client())
		for _, stat := range []bool{false, true} {
			e.ResetCounts()
			if text, err := engine.Load(t.Context(), "f/long", 10, stat); !errors.Is(err, ErrTooLong) || text != nil {
				t.Errorf("too long: %q, %v", text, err)
			}
			want := 1
			if stat && !e.Has(storages.StatNothing|storages.StatZero|storages.StatUnsupported) {
				want = 0
			}
			if n := e.Count(storages.Load, ""); n != want {
				t.Errorf("%d were read, want %d", n, want)
			}
			if text, err := engine.Load(t.Context(), "f/fits", 10, stat); err != nil || len(text) != 10 {
				t.Errorf("it fits: %q, %v", text, err)
			}
			if text, err := engine.Load(t.Context(), "f/empty", 10, stat); err != nil || text == nil || len(text) > 0 {
				t.Errorf("an empty value: %q, %v", text, err)
			}
			if text, err := engine.Load(t.Context(), "f/none", 10, stat); err != nil || text != nil {
				t.Errorf("no value: %q, %v", text, err)
			}
		}
	})
}

// What is deleted is gone, and to delete what is not there is no error.
func TestEngine_DeleteOfNothingIsNoError(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		e.Put("f/a", "x")
		engine := New(e.Client())
		for range 2 {
			if err := engine.Delete(t.Context(), "f/a"); err != nil {
				t.Error(err)
			}
			e.Settle()
		}
		if text, err := engine.Load(t.Context(), "f/a", 10, false); err != nil || text != nil {
			t.Errorf("it is still there: %q, %v", text, err)
		}
	})
}
