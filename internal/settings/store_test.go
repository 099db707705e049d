// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-alive/caddy-alive/internal/testkit/storages"
)

func drained(at int) *Setting {
	return &Setting{Address: "a:80", Mode: Drain, Changed: time.Unix(int64(at), 0)}
}

func weighed(weight *int, at int) *Setting {
	return &Setting{Address: "a:80", Weights: map[string]Weight{"shop": {Weight: weight, Changed: time.Unix(int64(at), 0)}}}
}

// Of each part the last change wins, in whatever order two settings meet.
func TestMerge_LastChangeOfEachPartWins(t *testing.T) {
	ready := &Setting{Address: "a:80", Mode: Ready, Changed: time.Unix(5, 0)}
	for _, tc := range []struct {
		a, b   *Setting
		mode   Mode
		weight int
	}{
		{drained(3), ready, Ready, 1},
		{drained(7), ready, Drain, 1},
		{drained(3), weighed(new(4), 2), Drain, 4},
		{weighed(new(4), 2), weighed(new(6), 3), Ready, 6},
		{weighed(new(4), 2), weighed(nil, 3), Ready, 1},
		{weighed(nil, 2), weighed(new(4), 3), Ready, 4},
		{nil, drained(3), Drain, 1},
		{drained(5), ready, Ready, 1}, // at the same time: all take the same
		{weighed(new(4), 2), weighed(new(6), 2), Ready, 6},
		{weighed(nil, 2), weighed(new(0), 2), Ready, 0},
	} {
		one, other := Merge(tc.a, tc.b), Merge(tc.b, tc.a)
		if !one.equal(other) || !one.equal(Merge(one, tc.b)) || !one.equal(Merge(tc.b, other)) {
			t.Errorf("%+v and %+v: %+v one way, %+v the other", tc.a, tc.b, one, other)
		}
		if one.ModeNow() != tc.mode || one.WeightIn("shop", 1) != tc.weight || one.WeightIn("other", 1) != 1 {
			t.Errorf("%+v and %+v: mode %s, weight %d, want %s and %d", tc.a, tc.b, one.ModeNow(), one.WeightIn("shop", 1), tc.mode, tc.weight)
		}
	}
}

// A setting that others may be reading is not changed by a merge.
func TestMerge_ChangesNeitherSetting(t *testing.T) {
	known := weighed(new(4), 2)
	more := Merge(known, &Setting{Address: "a:80", Weights: map[string]Weight{"market": {Weight: new(2), Changed: time.Unix(3, 0)}}})
	if len(known.Weights) != 1 || len(more.Weights) != 2 {
		t.Errorf("%+v became %+v", known, more)
	}
}

// A change here wins over what is known, even if the clock of another instance is
// ahead.
func TestSet_ChangeWinsOverAClockThatIsAhead(t *testing.T) {
	o := NewSet()
	ahead := weighed(new(4), 0)
	ahead.Mode, ahead.Changed = Drain, time.Now().Add(time.Hour)
	ahead.Weights["shop"] = Weight{Weight: new(4), Changed: time.Now().Add(2 * time.Hour)}
	o.MergeStored(ahead)
	o.Change("a:80", Change{Mode: new(Mode(Ready))})
	o.Change("a:80", Change{Pool: "shop", Weight: new(new(6))})
	o.MergeStored(ahead)
	if got := o.Of("a:80"); got.ModeNow() != Ready || got.WeightIn("shop", 1) != 6 {
		t.Errorf("mode %s and weight %d, want ready and 6", got.ModeNow(), got.WeightIn("shop", 1))
	}
	o.Change("a:80", Change{Clear: true})
	o.MergeStored(ahead)
	if got := o.Of("a:80"); !got.IsDefault() {
		t.Errorf("cleared, but it is %+v", got)
	}
}

// eachStorage runs a test for each storage of the table, in virtual time. The storage has what
// Caddy keeps there, too.
func eachStorage(t *testing.T, f func(t *testing.T, e *storages.Engine)) {
	t.Helper()
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		e.Put("certificates/example.com/example.com.json", "{}")
		f(t, e)
	})
}

// runStore returns a running Store, and what it logs.
func runStore(t *testing.T, storage certmagic.Storage, prefix string, every time.Duration) (*Store, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	store := NewStore(NewSet(), storage, prefix, every, zap.New(core))
	store.Sync(t.Context(), true)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { store.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
		store.Wait()
	})
	return store, logs
}

// change sets a mode, and stores it.
func change(t *testing.T, s *Store, address string, mode Mode) {
	t.Helper()
	s.set.Change(address, Change{Mode: &mode})
	s.Sync(t.Context(), false)
}

// follow waits as long as a member of a fleet may take to follow another one. With reads
// that lag, both may have to write again, and what that loses is found with the next read of
// all.
func follow(e *storages.Engine, every time.Duration) {
	if e.Has(storages.Lags) {
		every = fullInterval + 3*(every+e.Lag())
	}
	time.Sleep(every)
	synctest.Wait()
}

// hidesOutage reports whether all reads find nothing while the storage is down.
func hidesOutage(e *storages.Engine) bool {
	return e.Has(storages.OutageLooksEmpty) && !e.Has(storages.OutageListsEmptyKey)
}

var errDown = errors.New("connection refused")

// What could not be read at the start is read once the storage works, also without a
// fleet. Where an outage looks empty, an empty storage is read again.
func TestStore_LoadsOnceTheStorageWorks(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		before, _ := runStore(t, e.Client(), "alive/instances/x", 0)
		change(t, before, "a:80", Drain)
		e.Settle()
		e.Fail(errDown)
		store, _ := runStore(t, e.Client(), "alive/instances/x", 0)
		if store.IsLoaded() != hidesOutage(e) || store.set.Of("a:80") != nil {
			t.Fatalf("loaded %v from a storage that fails: %v", store.IsLoaded(), store.set.All())
		}
		e.Mend()
		if hidesOutage(e) {
			time.Sleep(emptyInterval)
		}
		time.Sleep(retryInterval)
		synctest.Wait()
		if store.set.Of("a:80").ModeNow() != Drain {
			t.Errorf("settings when the storage works: %v", store.set.All())
		}
	})
}

// The members of a fleet take over changes within the interval, modes and weights.
// Members of another fleet, also one of a longer name, and instances without one, do not.
func TestStore_FleetMembersTakeOverChanges(t *testing.T) {
	const every = 2 * time.Second
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		one, _ := runStore(t, e.Client(), "alive/fleets/a", every)
		two, _ := runStore(t, e.Client(), "alive/fleets/a", every)
		other, otherLogs := runStore(t, e.Client(), "alive/fleets/ab", every)
		none, noneLogs := runStore(t, e.Client(), "alive/instances/x", 0)
		change(t, one, "a:80", Drain)
		two.set.Change("a:80", Change{Pool: "shop", Weight: new(new(4))})
		two.Sync(t.Context(), false)
		follow(e, every)
		for name, store := range map[string]*Store{"one": one, "two": two} {
			if s := store.set.Of("a:80"); s.ModeNow() != Drain || s.WeightIn("shop", 1) != 4 || !store.set.IsStored("a:80") {
				t.Errorf("%s: %+v", name, s)
			}
		}
		change(t, other, "b:80", Maintenance)
		change(t, two, "a:80", Ready)
		follow(e, every)
		if got := one.set.Of("a:80").ModeNow(); got != Ready {
			t.Errorf("taken back: mode %s", got)
		}
		time.Sleep(2 * fullInterval)
		if one.set.Of("b:80") != nil || other.set.Of("a:80") != nil || len(none.set.All()) > 0 {
			t.Errorf("fleet a has %v, fleet ab %v, the instance %v", one.set.All(), other.set.All(), none.set.All())
		}
		for _, logs := range []*observer.ObservedLogs{otherLogs, noneLogs} {
			if logs.Len() > 0 {
				t.Errorf("logged: %v", logs.All())
			}
		}
	})
}

// A setting that changes nothing is kept for a day, so that all members learn of it, and is
// then deleted.
func TestStore_SettingThatChangesNothingIsDeletedAfterADay(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		one, logs := runStore(t, e.Client(), "alive/fleets/a", 5*time.Minute)
		two, _ := runStore(t, e.Client(), "alive/fleets/a", 5*time.Minute)
		change(t, one, "a:80", Drain)
		one.set.Change("a:80", Change{Pool: "shop", Weight: new(new(4))})
		one.Sync(t.Context(), false)
		time.Sleep(10 * time.Minute)
		two.set.Change("a:80", Change{Clear: true})
		two.Sync(t.Context(), false)
		time.Sleep(23 * time.Hour)
		if keys := e.Keys("alive/fleets/a/"); len(keys) != 1 || !one.set.Of("a:80").IsDefault() {
			t.Errorf("on the same day there is %q, and one has %+v", keys, one.set.Of("a:80"))
		}
		time.Sleep(2 * time.Hour)
		if keys := e.Keys("alive/fleets/"); len(keys) > 0 || len(one.set.All())+len(two.set.All()) > 0 {
			t.Errorf("a day later there is %q, one has %v, two %v", keys, one.set.All(), two.set.All())
		}
		if logs.FilterLevelExact(zapcore.WarnLevel).Len() > 0 {
			t.Errorf("logged: %v", logs.All())
		}
	})
}

// A change waits for a storage that fails or hangs no longer than the timeout, and
// loses nothing: what was set takes effect, and is stored when the storage works again.
// Each outage is one line, and its end is one, also if nothing changes meanwhile.
func TestStore_OutageLosesNothing(t *testing.T) {
	for name, fail := range map[string]func(e *storages.Engine){
		"errors": func(e *storages.Engine) { e.Fail(errDown) },
		"hangs":  func(e *storages.Engine) { e.Hang() },
	} {
		for changes := range 2 {
			t.Run(fmt.Sprintf("%s, %d changes", name, 5*changes), func(t *testing.T) {
				eachStorage(t, func(t *testing.T, e *storages.Engine) {
					store, logs := runStore(t, e.Client(), "alive/fleets/a", 2*time.Second)
					change(t, store, "before:80", Drain)
					e.Settle()
					fail(e)
					defer e.Mend()
					for i := range 5 * changes {
						began := time.Now()
						address := fmt.Sprintf("a:%d", i)
						change(t, store, address, Drain)
						if waited := time.Since(began); waited > Timeout {
							t.Errorf("it took %v", waited)
						}
						if store.set.Of(address).ModeNow() != Drain || store.set.IsStored(address) {
							t.Errorf("%s: %+v, persisted %v", address, store.set.Of(address), store.set.IsStored(address))
						}
					}
					time.Sleep(3*time.Minute + retryInterval/4) // also while no change waits
					if got := logs.Len(); got != 1 || logs.All()[0].Level != zapcore.WarnLevel {
						t.Errorf("logged: %v", logs.All())
					}
					e.Mend()
					follow(e, 5*time.Second)
					want := 1 + 5*changes
					if keys := e.Keys("alive/fleets/a/"); len(store.set.toStore()) > 0 || len(keys) != want {
						t.Errorf("when it returned: %v to store, stored %q", store.set.toStore(), keys)
					}
					if got := logs.Len(); got != 2 {
						t.Errorf("logged: %v", logs.All())
					}
					// a storage that lost everything is written again
					e.Flush()
					follow(e, missedInterval+2*time.Second)
					if keys := e.Keys("alive/fleets/a/"); len(keys) != want {
						t.Errorf("after it was flushed: %q", keys)
					}
				})
			})
		}
	}
}

// What is taken back while the storage is down is taken back for good, also where the
// storage has an error of a deletion that looks as if there were nothing to delete.
func TestStore_TakenBackInAnOutageStaysTakenBack(t *testing.T) {
	for _, every := range []time.Duration{0, time.Second} {
		t.Run(every.String(), func(t *testing.T) {
			eachStorage(t, func(t *testing.T, e *storages.Engine) {
				store, _ := runStore(t, e.Client(), "f", every)
				change(t, store, "a:80", Drain)
				e.Settle()
				e.Fail(errDown)
				change(t, store, "a:80", Ready)
				if store.set.IsStored("a:80") {
					t.Error("it is stored in a storage that is down")
				}
				time.Sleep(time.Minute)
				e.Mend()
				time.Sleep(fullInterval)
				e.Settle()
				later, _ := runStore(t, e.Client(), "f", every)
				if got := later.set.Of("a:80"); !later.IsLoaded() || got.ModeNow() != Ready {
					t.Errorf("after a restart it is %+v", got)
				}
			})
		})
	}
}

// If another instance replaces a file while its folder is listed, the folder is listed
// again. If that never ends, the storage fails: what is missing is not taken for gone.
func TestStore_IncompleteListIsListedAgain(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		before, _ := runStore(t, e.Client(), "alive/instances/x", 0)
		change(t, before, "a:80", Drain)
		change(t, before, "b:80", Drain)
		e.Settle()
		again := !e.Has(storages.ExistsNothing | storages.ExistsNoFolder) // otherwise it does not know that a folder changes
		for breaks, loaded := range map[int]bool{19: again, 20: false} {
			client := e.Client()
			client.BreakLists(breaks, fs.ErrNotExist)
			store, logs := runStore(t, client, "alive/instances/x", 0)
			warned := logs.FilterLevelExact(zapcore.WarnLevel).Len() > 0
			if store.IsLoaded() != loaded || (len(store.set.All()) == 2) != loaded || warned == loaded {
				t.Errorf("%d lists break off: loaded %v, settings %v, warned %v", breaks, store.IsLoaded(), store.set.All(), warned)
			}
			client.BreakLists(0, nil)
			time.Sleep(retryInterval)
			synctest.Wait()
			if len(store.set.All()) != 2 || !store.IsLoaded() {
				t.Errorf("%d lists break off: settings at the next try: %v", breaks, store.set.All())
			}
		}
	})
}

// A list that lacks settings, without an error, loses none of them.
func TestStore_SettingsMissingInAListAreKept(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		one, logs := runStore(t, e.Client(), "alive/fleets/a", time.Second)
		two, _ := runStore(t, e.Client(), "alive/fleets/a", time.Second)
		for i := range 20 {
			one.set.Change(fmt.Sprintf("x%d:80", i), Change{Mode: new(Mode(Drain))})
		}
		one.Sync(t.Context(), false)
		follow(e, time.Second)
		e.BreakLists(1000, nil)
		time.Sleep(3 * fullInterval)
		e.BreakLists(0, nil)
		time.Sleep(fullInterval)
		if keys := e.Keys("alive/fleets/a/"); len(keys) != 20 || len(one.set.All()) != 20 || len(two.set.All()) != 20 {
			t.Errorf("stored %d, one has %d, two %d", len(keys), len(one.set.All()), len(two.set.All()))
		}
		if len(one.set.toStore())+len(two.set.toStore()) > 0 || logs.FilterLevelExact(zapcore.WarnLevel).Len() > 0 {
			t.Errorf("to store: %v, %v; logged %v", one.set.toStore(), two.set.toStore(), logs.All())
		}
	})
}

// Stored values that are no settings are ignored, with one warning each. The others are
// read.
func TestStore_InvalidValuesAreIgnored(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		good, _ := runStore(t, e.Client(), "alive/fleets/a", time.Second)
		change(t, good, "a:80", Drain)
		e.Settle()
		for address, value := range map[string]string{
			"b:80": "{",
			"c:80": `{"address":"c:80","mode":"sleep"}`,
			"d:80": `{"address":"elsewhere:80","mode":"drain"}`,
			"e:80": `{"address":"e:80","weights":{"shop":{"weight":1000}}}`,
			"f:80": `{"mode":"drain"}`,
			"g:80": strings.Repeat(" ", maxStored) + `{"address":"g:80","mode":"drain"}`,
			"h:80": "",
		} {
			e.Put(good.key(address), value)
		}
		e.Put("alive/fleets/a/else.txt", "x")
		store, logs := runStore(t, e.Client(), "alive/fleets/a", time.Second)
		time.Sleep(3 * fullInterval)
		if len(store.set.All()) != 1 || store.set.Of("a:80").ModeNow() != Drain {
			t.Errorf("settings: %v", store.set.All())
		}
		warnings := logs.FilterLevelExact(zapcore.WarnLevel)
		if got := warnings.FilterMessageSnippet("ignoring a stored mode or weight").Len(); got != 7 || warnings.Len() != 7 {
			t.Errorf("%d warnings, want one each: %v", got, logs.All())
		}
	})
}

// A change that is reported as stored is not lost to changes of other addresses at the
// same time, by two members of a fleet.
func TestStore_ConcurrentChangesAreAllStored(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		e.SetLatency(20 * time.Millisecond)
		one, _ := runStore(t, e.Client(), "alive/fleets/a", 100*time.Millisecond)
		two, _ := runStore(t, e.Client(), "alive/fleets/a", 100*time.Millisecond)
		var writers sync.WaitGroup
		for i := range 50 {
			store := []*Store{one, two}[i%2]
			writers.Go(func() {
				address := fmt.Sprintf("10.0.0.%d:80", i)
				change(t, store, address, Drain)
				for !store.set.IsStored(address) {
					time.Sleep(time.Millisecond)
				}
				if _, ok := e.Get(store.key(address)); !ok {
					t.Errorf("%s is not stored", address)
				}
			})
		}
		writers.Wait()
		follow(e, 2*fullInterval)
		for i := range 50 {
			for _, store := range []*Store{one, two} {
				if got := store.set.Of(fmt.Sprintf("10.0.0.%d:80", i)).ModeNow(); got != Drain {
					t.Errorf("%d: mode %s", i, got)
				}
			}
		}
	})
}

// Files are a storage like any other, in real time.
func TestStore_ConcurrentChangesAreAllStoredInFiles(t *testing.T) {
	storage := &certmagic.FileStorage{Path: t.TempDir()}
	one, _ := runStore(t, storage, "alive/fleets/a", 10*time.Millisecond)
	two, _ := runStore(t, storage, "alive/fleets/a", 10*time.Millisecond)
	var writers sync.WaitGroup
	for i := range 200 {
		store := one
		if i%2 == 1 {
			store = two
		}
		writers.Go(func() {
			address := fmt.Sprintf("10.0.0.%d:80", i)
			store.set.Change(address, Change{Mode: new(Mode(Drain))})
			store.Sync(t.Context(), false)
			if !store.set.IsStored(address) { // on a busy machine it can take longer than Sync waits
				for deadline := time.Now().Add(30 * time.Second); !store.set.IsStored(address) && time.Now().Before(deadline); {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	writers.Wait()
	later, logs := runStore(t, storage, "alive/fleets/a", 0)
	for i := range 200 {
		if got := later.set.Of(fmt.Sprintf("10.0.0.%d:80", i)).ModeNow(); got != Drain {
			t.Errorf("%d: mode %s", i, got)
		}
	}
	for _, line := range logs.FilterLevelExact(zapcore.WarnLevel).All() {
		t.Errorf("logged: %s %v", line.Message, line.ContextMap())
	}
}

// The end of a config may wait for the storage while other goroutines begin to use it.
func TestStore_WaitAllowsConcurrentUse(t *testing.T) {
	for range 50 {
		store := NewStore(NewSet(), storages.New().Client(), "x", 0, zap.NewNop())
		var writers sync.WaitGroup
		for i := range 30 {
			writers.Go(func() {
				store.set.Change(fmt.Sprint("a", i), Change{Mode: new(Mode(Drain))})
				store.Sync(t.Context(), false)
			})
		}
		store.Wait()
		writers.Wait()
	}
}

// slowLoads makes each Load of a client take a while.
func slowLoads(c *storages.Client, takes time.Duration) {
	c.Before(func(ctx context.Context, call storages.Call) error {
		if call.Op != storages.Load {
			return nil
		}
		return storages.Pause(ctx, takes)
	})
}

// A slow storage with many settings is read to the end, after the start has ceased to
// wait.
func TestStore_SlowStorageIsReadToTheEnd(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		one, _ := runStore(t, e.Client(), "f", time.Hour)
		for i := range 200 {
			one.set.Change(fmt.Sprintf("x%d:80", i), Change{Mode: new(Mode(Drain))})
		}
		one.Sync(t.Context(), false)
		e.Settle()
		client := e.Client()
		slowLoads(client, 250*time.Millisecond)
		began := time.Now()
		two, logs := runStore(t, client, "f", time.Hour)
		if took := time.Since(began); took > Timeout {
			t.Errorf("it kept the start waiting for %v", took)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := len(two.set.All()); got != 200 || !two.IsLoaded() || len(two.set.toStore()) > 0 {
			t.Errorf("%d settings, loaded %v, %d to store; %v", got, two.IsLoaded(), len(two.set.toStore()), logs.All())
		}
	})
}

// A key that cannot be read, or a setting that cannot be stored, does not affect the
// others.
func TestStore_BadKeyDoesNotAffectOthers(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		bad := "f/a.json"
		e.Put(bad, "{}")
		before, _ := runStore(t, e.Client(), "f", 0)
		change(t, before, "x:80", Drain)
		e.Settle()
		e.Before(func(_ context.Context, call storages.Call) error {
			if call.Op == storages.Load && call.Key == bad {
				return errors.New("is a directory")
			}
			return nil
		})
		store, _ := runStore(t, e.Client(), "f", time.Second)
		if store.set.Of("x:80").ModeNow() != Drain {
			t.Errorf("settings %v", store.set.All())
		}
		bad = store.key("a:80")
		store.set.Change("a:80", Change{Mode: new(Mode(Drain))})
		store.set.Change("z:80", Change{Mode: new(Mode(Drain))})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := store.set.toStore(); !slices.Equal(got, []string{"a:80"}) {
			t.Errorf("to store: %v", got)
		}
	})
}

// A config with another storage stores all settings there, even if it does not
// answer at first.
func TestStore_NewStorageGetsAllSettings(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		one, _ := runStore(t, e.Client(), "i", 0)
		change(t, one, "x:80", Maintenance)
		other := storages.New(e.Quirks())
		other.Fail(errDown)
		two := NewStore(one.set, other.Client(), "i", 0, zap.NewNop())
		two.Sync(t.Context(), true)
		if two.set.IsStored("x:80") {
			t.Error("persisted, but the other storage is down")
		}
		other.Mend()
		two.Sync(t.Context(), !two.IsLoaded())
		other.Settle()
		two.Sync(t.Context(), !two.IsLoaded())
		if len(other.Keys("")) != 1 || !two.set.IsStored("x:80") || !two.IsLoaded() {
			t.Errorf("there: %q, stored %v, loaded %v", other.Keys(""), two.set.IsStored("x:80"), two.IsLoaded())
		}
	})
}

// A client that does not wait for the storage is not a failure of the storage.
func TestStore_CanceledSyncIsNoFailure(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		client := e.Client()
		slowLoads(client, 300*time.Millisecond)
		store, logs := runStore(t, client, "i", 0)
		store.set.Change("x:80", Change{Mode: new(Mode(Drain))})
		ctx, leave := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer leave()
		store.Sync(ctx, false)
		time.Sleep(time.Second)
		if logs.Len() > 0 || !store.set.IsStored("x:80") {
			t.Errorf("logged %v, persisted %v", logs.All(), store.set.IsStored("x:80"))
		}
	})
}
