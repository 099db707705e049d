// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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

// What could not be read at the start is read once the storage works, also without a
// fleet.
func TestStore_LoadsOnceTheStorageWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newFaulty()
		before, _ := runStore(t, storage, "alive/instances/x", 0)
		before.set.Change("a:80", Change{Mode: new(Mode(Drain))})
		before.Sync(t.Context(), false)
		storage.set(errors.New("disk full"), nil)
		store, _ := runStore(t, storage, "alive/instances/x", 0)
		if store.IsLoaded() || store.set.Of("a:80") != nil {
			t.Fatalf("loaded from a storage that fails: %v", store.set.All())
		}
		storage.set(nil, nil)
		time.Sleep(retryInterval)
		synctest.Wait()
		if store.set.Of("a:80").ModeNow() != Drain {
			t.Errorf("settings when the storage works: %v", store.set.All())
		}
	})
}

// faulty is a storage that can fail and hang, in memory.
type faulty struct {
	certmagic.Locker
	mu     sync.Mutex
	values map[string]string
	err    error
	hang   chan struct{} // until it is closed
	gaps   int           // so many lists fail, because a file in a folder vanishes
}

func newFaulty() *faulty { return &faulty{values: make(map[string]string)} }

// use is called at the beginning of every use.
func (f *faulty) use() error {
	f.mu.Lock()
	hang := f.hang
	f.mu.Unlock()
	if hang != nil {
		<-hang
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *faulty) set(err error, hang chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.hang = err, hang
}

func (f *faulty) Store(_ context.Context, key string, value []byte) error {
	if err := f.use(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.values[key] = string(value)
	return nil
}

func (f *faulty) Load(_ context.Context, key string) ([]byte, error) {
	if err := f.use(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	value, there := f.values[key]
	if !there {
		return nil, fs.ErrNotExist
	}
	return []byte(value), nil
}

func (f *faulty) Delete(_ context.Context, key string) error {
	if err := f.use(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.values, key)
	return nil
}

func (f *faulty) Exists(_ context.Context, key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for there := range f.values {
		if there == key || strings.HasPrefix(there, key+"/") {
			return true // folders exist, too
		}
	}
	return false
}

func (f *faulty) List(_ context.Context, prefix string, _ bool) (keys []string, err error) {
	if err := f.use(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for key := range f.values {
		if f.gaps > 0 {
			f.gaps--
			return keys, fs.ErrNotExist
		}
		if strings.HasPrefix(key, prefix+"/") {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

func (f *faulty) Stat(context.Context, string) (certmagic.KeyInfo, error) {
	return certmagic.KeyInfo{}, errors.ErrUnsupported
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

// The members of a fleet take over changes within the interval, modes and weights.
// Members of another fleet, and instances without one, do not.
func TestStore_FleetMembersTakeOverChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newFaulty()
		one, _ := runStore(t, storage, "alive/fleets/a", 2*time.Second)
		two, _ := runStore(t, storage, "alive/fleets/a", 2*time.Second)
		other, _ := runStore(t, storage, "alive/fleets/b", 2*time.Second)
		none, _ := runStore(t, storage, "alive/instances/x", 0)
		one.set.Change("a:80", Change{Mode: new(Mode(Drain))})
		one.Sync(t.Context(), false)
		two.set.Change("a:80", Change{Pool: "shop", Weight: new(new(4))})
		two.Sync(t.Context(), false)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		for name, store := range map[string]*Store{"one": one, "two": two} {
			if s := store.set.Of("a:80"); s.ModeNow() != Drain || s.WeightIn("shop", 1) != 4 || !store.set.IsStored("a:80") {
				t.Errorf("%s: %+v", name, s)
			}
		}
		for name, store := range map[string]*Store{"another fleet": other, "no fleet": none} {
			if s := store.set.Of("a:80"); s != nil {
				t.Errorf("%s: %+v", name, s)
			}
		}

		two.set.Change("a:80", Change{Mode: new(Mode(Ready))})
		two.Sync(t.Context(), false)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := one.set.Of("a:80").ModeNow(); got != Ready {
			t.Errorf("taken back: mode %s", got)
		}
		two.set.Change("a:80", Change{Pool: "shop", Weight: new((*int)(nil))})
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		if len(storage.values) > 0 {
			t.Errorf("a day after all was taken back, there is %v", storage.values)
		}
	})
}

// A change waits for a storage that fails or hangs no longer than the timeout, and
// loses nothing: what was set takes effect, and is stored when the storage works again.
// Each outage is one line.
func TestStore_OutageLosesNothing(t *testing.T) {
	for name, fail := range map[string]func(f *faulty) (mend func()){
		"errors": func(f *faulty) func() {
			f.set(errors.New("disk full"), nil)
			return func() { f.set(nil, nil) }
		},
		"hangs": func(f *faulty) func() {
			hang := make(chan struct{})
			f.set(nil, hang)
			return func() { f.set(nil, nil); close(hang) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				storage := newFaulty()
				store, logs := runStore(t, storage, "alive/fleets/a", 2*time.Second)
				mend := fail(storage)
				for i := range 5 {
					began := time.Now()
					address := fmt.Sprintf("a:%d", i)
					store.set.Change(address, Change{Mode: new(Mode(Drain))})
					store.Sync(t.Context(), false)
					if waited := time.Since(began); waited > Timeout {
						t.Errorf("it took %v", waited)
					}
					if store.set.Of(address).ModeNow() != Drain || store.set.IsStored(address) {
						t.Errorf("%s: %+v, persisted %v", address, store.set.Of(address), store.set.IsStored(address))
					}
				}
				time.Sleep(time.Minute + retryInterval/4) // also while no change waits
				if got := logs.Len(); got != 1 || logs.All()[0].Level != zapcore.WarnLevel {
					t.Errorf("logged: %v", logs.All())
				}
				mend()
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if len(store.set.toStore()) > 0 || len(storage.values) != 5 {
					t.Errorf("when it returned: %v to store, stored %v", store.set.toStore(), storage.values)
				}
				if got := logs.Len(); got != 2 {
					t.Errorf("logged: %v", logs.All())
				}

				// a storage that lost everything is written again
				storage.mu.Lock()
				clear(storage.values)
				storage.mu.Unlock()
				time.Sleep(5 * time.Second)
				synctest.Wait()
				storage.mu.Lock()
				defer storage.mu.Unlock()
				if len(storage.values) != 5 {
					t.Errorf("after it was wiped: %v", storage.values)
				}
			})
		})
	}
}

// If another instance replaces a file while its folder is listed, the folder is listed
// again. If that never ends, the storage fails.
func TestStore_IncompleteListIsListedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newFaulty()
		before, _ := runStore(t, storage, "alive/instances/x", 0)
		before.set.Change("a:80", Change{Mode: new(Mode(Drain))})
		before.Sync(t.Context(), false)
		for gaps, loaded := range map[int]bool{19: true, 20: false} {
			storage.mu.Lock()
			storage.gaps = gaps
			storage.mu.Unlock()
			store, logs := runStore(t, storage, "alive/instances/x", 0)
			warned := logs.FilterLevelExact(zapcore.WarnLevel).Len() > 0
			if store.IsLoaded() != loaded || (store.set.Of("a:80") != nil) != loaded || warned == loaded {
				t.Errorf("%d lists break off: loaded %v, settings %v, warned %v", gaps, store.IsLoaded(), store.set.All(), warned)
			}
			time.Sleep(retryInterval)
			synctest.Wait()
			if store.set.Of("a:80").ModeNow() != Drain {
				t.Errorf("%d lists break off: settings at the next try: %v", gaps, store.set.All())
			}
		}
	})
}

// Stored values that are no settings are ignored, with one warning each. The others are
// read.
func TestStore_InvalidValuesAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newFaulty()
		good, _ := runStore(t, storage, "alive/fleets/a", time.Second)
		good.set.Change("a:80", Change{Mode: new(Mode(Drain))})
		good.Sync(t.Context(), false)
		of := func(address string) string { return good.key(address) }
		storage.mu.Lock()
		maps.Copy(storage.values, map[string]string{
			of("b:80"):                "{",
			of("c:80"):                `{"address":"c:80","mode":"sleep"}`,
			of("d:80"):                `{"address":"elsewhere:80","mode":"drain"}`,
			of("e:80"):                `{"address":"e:80","weights":{"shop":{"weight":1000}}}`,
			of("f:80"):                `{"mode":"drain"}`,
			of("g:80"):                strings.Repeat(" ", maxStored) + `{"address":"g:80","mode":"drain"}`,
			"alive/fleets/a/else.txt": "x",
		})
		storage.mu.Unlock()
		store, logs := runStore(t, storage, "alive/fleets/a", time.Second)
		time.Sleep(10 * time.Second)
		if len(store.set.All()) != 1 || store.set.Of("a:80").ModeNow() != Drain {
			t.Errorf("settings: %v", store.set.All())
		}
		if got := logs.FilterLevelExact(zapcore.WarnLevel).Len(); got != 6 {
			t.Errorf("%d warnings, want one each: %v", got, logs.All())
		}
	})
}

// A change that is reported as stored is not lost to changes of other addresses at the
// same time, by two members of a fleet.
func TestStore_ConcurrentChangesAreAllStored(t *testing.T) {
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
		store := NewStore(NewSet(), newFaulty(), "x", 0, zap.NewNop())
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

// slow is a storage that needs time to read, and cannot read one key.
type slow struct {
	*faulty
	takes time.Duration
	bad   string
}

func (s *slow) Load(ctx context.Context, key string) ([]byte, error) {
	select {
	case <-time.After(s.takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if key == s.bad {
		return nil, errors.New("is a directory")
	}
	return s.faulty.Load(ctx, key)
}

// A slow storage with many settings is read to the end, after the start has ceased to
// wait.
func TestStore_SlowStorageIsReadToTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newFaulty()
		one, _ := runStore(t, storage, "f", time.Hour)
		for i := range 1000 {
			one.set.Change(fmt.Sprintf("x%d:80", i), Change{Mode: new(Mode(Drain))})
		}
		one.Sync(t.Context(), false)
		began := time.Now()
		two, logs := runStore(t, &slow{storage, 50 * time.Millisecond, ""}, "f", time.Hour)
		if took := time.Since(began); took > Timeout {
			t.Errorf("it kept the start waiting for %v", took)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := len(two.set.All()); got != 1000 || !two.IsLoaded() || len(two.set.toStore()) > 0 {
			t.Errorf("%d settings, loaded %v, %d to store; %v", got, two.IsLoaded(), len(two.set.toStore()), logs.All())
		}
	})
}

// A key that cannot be read, or a setting that cannot be stored, does not affect the
// others.
func TestStore_BadKeyDoesNotAffectOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &slow{newFaulty(), 0, "f/a.json"}
		storage.values["f/a.json"] = "{}"
		before, _ := runStore(t, storage.faulty, "f", 0)
		before.set.Change("x:80", Change{Mode: new(Mode(Drain))})
		before.Sync(t.Context(), false)
		store, _ := runStore(t, storage, "f", time.Second)
		if store.set.Of("x:80").ModeNow() != Drain {
			t.Errorf("settings %v", store.set.All())
		}
		storage.bad = store.key("a:80")
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
	synctest.Test(t, func(t *testing.T) {
		one, _ := runStore(t, newFaulty(), "i", 0)
		one.set.Change("x:80", Change{Mode: new(Mode(Maintenance))})
		one.Sync(t.Context(), false)
		other := newFaulty()
		other.set(errors.New("down"), nil)
		two := NewStore(one.set, other, "i", 0, zap.NewNop())
		two.Sync(t.Context(), true)
		if two.set.IsStored("x:80") {
			t.Error("persisted, but the other storage is down")
		}
		other.set(nil, nil)
		two.Sync(t.Context(), !two.IsLoaded())
		if len(other.values) != 1 || !two.set.IsStored("x:80") || !two.IsLoaded() {
			t.Errorf("there: %v", other.values)
		}
	})
}

// A client that does not wait for the storage is not a failure of the storage.
func TestStore_CanceledSyncIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, logs := runStore(t, &slow{newFaulty(), 300 * time.Millisecond, ""}, "i", 0)
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
