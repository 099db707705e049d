// SPDX-License-Identifier: Apache-2.0

package storages

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var errDown = errors.New("connection refused")

// filled puts the keys that the tests of lists use.
func filled(e *Engine) *Client {
	for _, key := range []string{"f/shop/a", "f/shop/b", "f/shop/sub/c", "f/shops/x", "g/y"} {
		e.Put(key, "value of "+key)
	}
	return e.Client()
}

// A value that is stored is read back, and is gone when it is deleted, whatever the quirk.
// Readers see it after the lag.
func TestEngine_ValuesAreReadBack(t *testing.T) {
	Each(t, func(t *testing.T, e *Engine) {
		one, two := e.Client(), e.Client()
		if err := one.Store(t.Context(), "f/shop/a", []byte("1")); err != nil {
			t.Fatal(err)
		}
		if value, ok := e.Get("f/shop/a"); !ok || value != "1" {
			t.Errorf("the test sees %q, %v", value, ok)
		}
		if _, err := two.Load(t.Context(), "f/shop/a"); (err != nil) != e.Has(Lags) {
			t.Errorf("read at once: %v", err)
		}
		e.Settle()
		if value, err := two.Load(t.Context(), "f/shop/a"); err != nil || string(value) != "1" {
			t.Errorf("read: %q, %v", value, err)
		}
		if err := one.Store(t.Context(), "f/shop/a", []byte("2")); err != nil {
			t.Fatal(err)
		}
		if value, _ := two.Load(t.Context(), "f/shop/a"); (string(value) == "1") != e.Has(Lags) {
			t.Errorf("the next value, read at once: %q", value)
		}
		e.Settle()
		if err := two.Delete(t.Context(), "f/shop/a"); err != nil {
			t.Fatal(err)
		}
		e.Settle()
		if value, err := one.Load(t.Context(), "f/shop/a"); !errors.Is(err, fs.ErrNotExist) || value != nil {
			t.Errorf("after it was deleted: %q, %v", value, err)
		}
		if err := two.Delete(t.Context(), "f/shop/a"); errors.Is(err, fs.ErrNotExist) != e.Has(DeleteNotFound) {
			t.Errorf("deleted again: %v", err)
		}
		if len(e.keys) > 0 && !e.Has(Lags) {
			t.Errorf("kept: %v", e.keys)
		}
	})
}

// Each quirk of lists is what its comment says.
func TestEngine_ListsByQuirk(t *testing.T) {
	direct, below := []string{"f/shop/a", "f/shop/b", "f/shop/sub"}, []string{"f/shop/a", "f/shop/b", "f/shop/sub/c"}
	for name, tc := range map[string]struct {
		quirks          Quirks
		flat, recursive []string
	}{
		"none":                           {0, direct, below},
		"only folders":                   {OnlyFolders, []string{"f/shop/"}, below},
		"by prefix":                      {PrefixMatch, append(slices.Clone(direct), "f/shops"), append(slices.Clone(below), "f/shops/x")},
		"flat":                           {Flat, below, below},
		"no recursive ones":              {NoRecursive, direct, nil},
		"folders":                        {ListsFolders, direct, append(slices.Clone(direct), "f/shop/sub/c")},
		"phantoms":                       {ListsPhantoms, []string{"f/shop/a", "f/shop/b", "f/shop/phantom.json", "f/shop/sub"}, []string{"f/shop/a", "f/shop/b", "f/shop/phantom.json", "f/shop/sub/c"}},
		"a slash":                        {LeadingSlash, []string{"/f/shop/a", "/f/shop/b", "/f/shop/sub"}, []string{"/f/shop/a", "/f/shop/b", "/f/shop/sub/c"}},
		"nothing is not found":           {NothingNotFound, direct, below},
		"only folders, by prefix":        {OnlyFolders | PrefixMatch, []string{"f/shop/", "f/shops/"}, append(slices.Clone(below), "f/shops/x")},
		"flat, by prefix, not recursive": {PrefixMatch | Flat | NoRecursive, append(slices.Clone(below), "f/shops/x"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			c := filled(New(tc.quirks))
			keys, err := c.List(t.Context(), "f/shop", false)
			if err != nil || !slices.Equal(keys, tc.flat) {
				t.Errorf("%q, %v; want %q", keys, err, tc.flat)
			}
			keys, err = c.List(t.Context(), "f/shop", true)
			if (err != nil) != (tc.recursive == nil) || !slices.Equal(keys, tc.recursive) {
				t.Errorf("recursive: %q, %v; want %q", keys, err, tc.recursive)
			}
			keys, err = c.List(t.Context(), "nothing", false)
			if len(keys) > 0 || errors.Is(err, fs.ErrNotExist) != (tc.quirks&NothingNotFound != 0) {
				t.Errorf("of nothing: %q, %v", keys, err)
			}
		})
	}
	twice, err := filled(New(ListsTwice)).List(t.Context(), "g", true)
	if err != nil || !slices.Equal(twice, []string{"g/y", "g/y"}) {
		t.Errorf("twice: %q, %v", twice, err)
	}
	e := New(EmptyFails)
	if _, err := e.Client().List(t.Context(), "g", true); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of an empty engine: %v", err)
	}
	if keys, err := filled(e).List(t.Context(), "nothing", true); err != nil || keys != nil {
		t.Errorf("of nothing in an engine that is not empty: %q, %v", keys, err)
	}
}

// Stat and Exists tell the truth, unless the quirk is that they lie.
func TestEngine_StatAndExistsByQuirk(t *testing.T) {
	Each(t, func(t *testing.T, e *Engine) {
		c := filled(e)
		for key, there := range map[string]bool{"f/shop/a": true, "f/shop": !e.Has(ExistsNoFolder), "f/sho": false, "f/shop/z": false} {
			if got := c.Exists(t.Context(), key); got != (there && !e.Has(ExistsNothing)) {
				t.Errorf("%s exists: %v", key, got)
			}
		}
		info, err := c.Stat(t.Context(), "f/shop/a")
		var size int64
		if !e.Has(StatZero) && !e.Has(StatNothing) && !e.Has(StatUnsupported) {
			size = int64(len("value of f/shop/a"))
		}
		if info.Size != size || errors.Is(err, fs.ErrNotExist) != e.Has(StatNothing) || errors.Is(err, errors.ErrUnsupported) != e.Has(StatUnsupported) {
			t.Errorf("stat: %+v, %v", info, err)
		}
	})
}

// While an engine is down, all that reads fails or finds nothing, by its quirk, and all that
// writes fails. When it returns, nothing is lost. A client can fail alone.
func TestEngine_OutageByQuirk(t *testing.T) {
	Each(t, func(t *testing.T, e *Engine) {
		one, two := filled(e), e.Client()
		for name, fail := range map[string]interface {
			Fail(err error)
			Mend()
		}{"engine": e, "client": one} {
			fail.Fail(errDown)
			want := errDown
			if e.Has(OutageLooksEmpty) {
				want = fs.ErrNotExist
			}
			if value, err := one.Load(t.Context(), "f/shop/a"); !errors.Is(err, want) || value != nil {
				t.Errorf("%s: load: %q, %v", name, value, err)
			}
			if _, err := one.Stat(t.Context(), "f/shop/a"); !errors.Is(err, want) {
				t.Errorf("%s: stat: %v", name, err)
			}
			keys, err := one.List(t.Context(), "f/shop", true)
			if (err == nil) != e.Has(OutageLooksEmpty|OutageListsEmptyKey) || slices.Equal(keys, []string{""}) != e.Has(OutageListsEmptyKey) || len(keys) > 1 {
				t.Errorf("%s: list: %q, %v", name, keys, err)
			}
			if err := one.Delete(t.Context(), "f/shop/a"); err == nil || errors.Is(err, fs.ErrNotExist) != e.Has(OutageDeletes) {
				t.Errorf("%s: delete: %v", name, err)
			}
			if one.Exists(t.Context(), "f/shop/a") {
				t.Errorf("%s: it exists", name)
			}
			if err := one.Store(t.Context(), "f/shop/a", nil); !errors.Is(err, errDown) {
				t.Errorf("%s: store: %v", name, err)
			}
			if _, err := two.Load(t.Context(), "f/shop/a"); (err != nil) != (name == "engine") {
				t.Errorf("%s: load of the other client: %v", name, err)
			}
			fail.Mend()
			if value, err := one.Load(t.Context(), "f/shop/a"); err != nil || string(value) != "value of f/shop/a" {
				t.Errorf("%s: when it returns: %q, %v", name, value, err)
			}
		}
		e.Flush()
		if _, err := one.Load(t.Context(), "f/shop/a"); !errors.Is(err, fs.ErrNotExist) || len(e.Keys("")) > 0 {
			t.Errorf("after a flush: %v, %q", err, e.Keys(""))
		}
	})
}

// A call hangs until its context ends, unless it ignores that, and then has no effect. One
// that still waits has its effect when the engine goes on.
func TestEngine_HangByQuirk(t *testing.T) {
	Each(t, func(t *testing.T, e *Engine) {
		c := e.Client()
		e.Hang()
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var calls sync.WaitGroup
		for key, ctx := range map[string]context.Context{"impatient": ctx, "patient": t.Context()} {
			calls.Go(func() {
				err := c.Store(ctx, key, nil)
				took, late := time.Since(began), key == "patient" || e.Has(IgnoresContext)
				if late != (took == time.Minute) || late != (err == nil) || (err != nil && !errors.Is(err, context.DeadlineExceeded)) {
					t.Errorf("%s: %v after %v", key, err, took)
				}
			})
		}
		time.Sleep(time.Minute)
		e.Mend()
		calls.Wait()
		want := []string{"patient"}
		if e.Has(IgnoresContext) {
			want = []string{"impatient", "patient"}
		}
		if got := e.Keys(""); !slices.Equal(got, want) {
			t.Errorf("stored: %q", got)
		}
	})
}

// Locks exclude each other, do nothing, or fail, by quirk. To wait for one ends with the
// context.
func TestEngine_LocksByQuirk(t *testing.T) {
	Each(t, func(t *testing.T, e *Engine) {
		one, two := e.Client(), e.Client()
		if err := one.Lock(t.Context(), "x"); (err != nil) != e.Has(LockFails) {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := two.Lock(ctx, "x"); (err == nil) != e.Has(LocksNothing) {
			t.Errorf("locked twice: %v", err)
		}
		var waiting sync.WaitGroup
		waiting.Go(func() {
			if err := two.Lock(t.Context(), "x"); (err != nil) != e.Has(LockFails) {
				t.Errorf("after a wait: %v", err)
			}
		})
		synctest.Wait()
		for range 2 {
			if err := one.Unlock(t.Context(), "x"); (err != nil) != e.Has(LockFails) {
				t.Errorf("unlock: %v", err)
			}
			waiting.Wait()
		}
	})
}

// Calls take the latency of the client and of the engine, and are counted by key. A hook
// runs before each and can fail it. Lists can break off.
func TestEngine_CountsAndHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New()
		c, other := filled(e), e.Client()
		e.SetLatency(time.Second)
		c.SetLatency(2 * time.Second)
		began := time.Now()
		for _, key := range []string{"f/shop/a", "f/shop/b", "g/y"} {
			if _, err := c.Load(t.Context(), key); err != nil {
				t.Error(err)
			}
		}
		if _, err := other.Load(t.Context(), "g/y"); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("it took %v", took)
		}
		if c.Count(Load, "f/shop/") != 2 || c.Count(Load, "") != 3 || e.Count(Load, "") != 4 || c.Count(Store, "") != 0 {
			t.Errorf("%d, %d, %d and %d were counted", c.Count(Load, "f/shop/"), c.Count(Load, ""), e.Count(Load, ""), c.Count(Store, ""))
		}
		e.ResetCounts()
		if e.Count(Load, "") != 0 {
			t.Errorf("counts are not reset: %d", e.Count(Load, ""))
		}
		e.SetLatency(0)
		c.SetLatency(0)

		e.Before(func(ctx context.Context, call Call) error {
			if call.Op == Load && call.Key == "g/y" && call.Client == 1 {
				return Pause(ctx, time.Minute)
			}
			if call.Op == Store && string(call.Value) == "bad" {
				return errDown
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Load(ctx, "g/y"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the hook did not pause the call: %v", err)
		}
		if _, err := other.Load(t.Context(), "g/y"); err != nil {
			t.Errorf("the other client: %v", err)
		}
		if err := c.Store(t.Context(), "g/y", []byte("bad")); !errors.Is(err, errDown) {
			t.Errorf("the hook did not fail the call: %v", err)
		}
		e.Before(nil)

		for _, want := range []error{fs.ErrNotExist, nil} {
			e.BreakLists(1, want)
			if keys, err := c.List(t.Context(), "f", true); !errors.Is(err, want) || len(keys) != 2 {
				t.Errorf("a list that breaks off: %q, %v", keys, err)
			}
		}
		if keys, err := c.List(t.Context(), "f", true); err != nil || len(keys) != 4 {
			t.Errorf("the next list: %q, %v", keys, err)
		}
		e.Remove("g/y")
		if c.Exists(t.Context(), "g/y") {
			t.Error("it is removed, and exists")
		}
	})
}
