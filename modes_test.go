// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// newTestApp returns an app as it is after Provision, with a storage of its own.
func newTestApp(t *testing.T) *App {
	t.Helper()
	o := newOperations()
	return &App{operations: o, keeper: newKeeper(o, &certmagic.FileStorage{Path: t.TempDir()}, "alive/test", 0, zap.NewNop())}
}

func drained(at int) *setting {
	return &setting{Address: "a:80", Mode: modeDrain, Changed: time.Unix(int64(at), 0)}
}

func weighed(weight *int, at int) *setting {
	return &setting{Address: "a:80", Weights: map[string]weightSet{"shop": {Weight: weight, Changed: time.Unix(int64(at), 0)}}}
}

// Of each part, the last change wins, whatever order they meet in.
func TestSettingsMerge(t *testing.T) {
	ready := &setting{Address: "a:80", Mode: modeReady, Changed: time.Unix(5, 0)}
	for _, tc := range []struct {
		a, b   *setting
		mode   mode
		weight int
	}{
		{drained(3), ready, modeReady, 1},
		{drained(7), ready, modeDrain, 1},
		{drained(3), weighed(new(4), 2), modeDrain, 4},
		{weighed(new(4), 2), weighed(new(6), 3), modeReady, 6},
		{weighed(new(4), 2), weighed(nil, 3), modeReady, 1},
		{weighed(nil, 2), weighed(new(4), 3), modeReady, 4},
		{nil, drained(3), modeDrain, 1},
		{drained(5), ready, modeReady, 1}, // at the same time: all take the same
		{weighed(new(4), 2), weighed(new(6), 2), modeReady, 6},
		{weighed(nil, 2), weighed(new(0), 2), modeReady, 0},
	} {
		one, other := merged(tc.a, tc.b), merged(tc.b, tc.a)
		if !one.equal(other) || !one.equal(merged(one, tc.b)) || !one.equal(merged(tc.b, other)) {
			t.Errorf("%+v and %+v: %+v one way, %+v the other", tc.a, tc.b, one, other)
		}
		if one.mode() != tc.mode || one.weight("shop", 1) != tc.weight || one.weight("other", 1) != 1 {
			t.Errorf("%+v and %+v: mode %s, weight %d, want %s and %d", tc.a, tc.b, one.mode(), one.weight("shop", 1), tc.mode, tc.weight)
		}
	}
}

// Others may be reading what is merged.
func TestSettingsAreNotChanged(t *testing.T) {
	known := weighed(new(4), 2)
	more := merged(known, &setting{Address: "a:80", Weights: map[string]weightSet{"market": {Weight: new(2), Changed: time.Unix(3, 0)}}})
	if len(known.Weights) != 1 || len(more.Weights) != 2 {
		t.Errorf("%+v became %+v", known, more)
	}
}

// A change here wins over what is known, though the clock of another be ahead.
func TestAChangeHereWins(t *testing.T) {
	o := newOperations()
	ahead := weighed(new(4), 0)
	ahead.Mode, ahead.Changed = modeDrain, time.Now().Add(time.Hour)
	ahead.Weights["shop"] = weightSet{Weight: new(4), Changed: time.Now().Add(2 * time.Hour)}
	o.learn(ahead)
	o.set("a:80", change{mode: new(modeReady)})
	o.set("a:80", change{pool: "shop", weight: new(new(6))})
	o.learn(ahead)
	if got := o.of("a:80"); got.mode() != modeReady || got.weight("shop", 1) != 6 {
		t.Errorf("mode %s and weight %d, want ready and 6", got.mode(), got.weight("shop", 1))
	}
	o.set("a:80", change{clear: true})
	o.learn(ahead)
	if got := o.of("a:80"); !got.idle() {
		t.Errorf("cleared, but it is %+v", got)
	}
}

// Requests go by what a storage tells, as by what is set here.
func TestPicksFollowTheStorage(t *testing.T) {
	p := newPolicy(t, "uu", following(t))
	p.app.operations.learn(&setting{Address: p.members[0].address, Mode: modeDrain, Changed: time.Now()})
	if got := counts(p.picks(get, 10), 2); !slices.Equal(got, []int{0, 10}) {
		t.Errorf("picks %v, want all of them for who does not drain", got)
	}
}

// What could not be read at the start is, once the storage works; also without a
// fleet, whose settings are looked at again.
func TestAStorageThatFailsAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newFaulty()
		before, _ := keep(t, storage, "alive/instances/x", 0)
		before.set("a:80", change{mode: new(modeDrain)})
		before.sync(t.Context(), false)
		storage.set(errors.New("disk on fire"), nil)
		k, _ := keep(t, storage, "alive/instances/x", 0)
		if k.isLoaded() || k.of("a:80") != nil {
			t.Fatalf("loaded from a storage that fails: %v", k.settings())
		}
		storage.set(nil, nil)
		time.Sleep(retryInterval)
		synctest.Wait()
		if k.of("a:80").mode() != modeDrain {
			t.Errorf("settings when the storage works: %v", k.settings())
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
	gaps   int           // so many lists break off, for a file in a folder vanishes
}

func newFaulty() *faulty { return &faulty{values: make(map[string]string)} }

// use is how every use begins.
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

// keep returns a running keeper, and what it logs.
func keep(t *testing.T, storage certmagic.Storage, prefix string, every time.Duration) (*keeper, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	k := newKeeper(newOperations(), storage, prefix, every, zap.New(core))
	k.sync(t.Context(), true)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { k.run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
		k.wait()
	})
	return k, logs
}

// Those of one fleet follow each other within the interval, mode and weights alike;
// those of another, and those of none, do not.
func TestAFleetFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newFaulty()
		one, _ := keep(t, storage, "alive/fleets/a", 2*time.Second)
		two, _ := keep(t, storage, "alive/fleets/a", 2*time.Second)
		other, _ := keep(t, storage, "alive/fleets/b", 2*time.Second)
		none, _ := keep(t, storage, "alive/instances/x", 0)
		one.set("a:80", change{mode: new(modeDrain)})
		one.sync(t.Context(), false)
		two.set("a:80", change{pool: "shop", weight: new(new(4))})
		two.sync(t.Context(), false)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		for name, k := range map[string]*keeper{"one": one, "two": two} {
			if s := k.of("a:80"); s.mode() != modeDrain || s.weight("shop", 1) != 4 || !k.persisted("a:80") {
				t.Errorf("%s: %+v", name, s)
			}
		}
		for name, k := range map[string]*keeper{"another fleet": other, "no fleet": none} {
			if s := k.of("a:80"); s != nil {
				t.Errorf("%s: %+v", name, s)
			}
		}

		two.set("a:80", change{mode: new(modeReady)})
		two.sync(t.Context(), false)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := one.of("a:80").mode(); got != modeReady {
			t.Errorf("taken back: mode %s", got)
		}
		two.set("a:80", change{pool: "shop", weight: new((*int)(nil))})
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		if len(storage.values) > 0 {
			t.Errorf("a day after all was taken back, there is %v", storage.values)
		}
	})
}

// A storage that fails or hangs keeps nobody waiting for longer than its timeout,
// nor does it lose anything: what was set holds, and is stored when it returns. Each
// outage is one line.
func TestAStorageThatFails(t *testing.T) {
	for name, fail := range map[string]func(f *faulty) (mend func()){
		"errors": func(f *faulty) func() {
			f.set(errors.New("disk on fire"), nil)
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
				k, logs := keep(t, storage, "alive/fleets/a", 2*time.Second)
				mend := fail(storage)
				for i := range 5 {
					began := time.Now()
					address := fmt.Sprintf("a:%d", i)
					k.set(address, change{mode: new(modeDrain)})
					k.sync(t.Context(), false)
					if waited := time.Since(began); waited > storageTimeout {
						t.Errorf("it took %v", waited)
					}
					if k.of(address).mode() != modeDrain || k.persisted(address) {
						t.Errorf("%s: %+v, persisted %v", address, k.of(address), k.persisted(address))
					}
				}
				time.Sleep(time.Minute + retryInterval/4) // not just when somebody ceases to wait
				if got := logs.Len(); got != 1 || logs.All()[0].Level != zapcore.WarnLevel {
					t.Errorf("logged: %v", logs.All())
				}
				mend()
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if len(k.toStore()) > 0 || len(storage.values) != 5 {
					t.Errorf("when it returned: %v to store, stored %v", k.toStore(), storage.values)
				}
				if got := logs.Len(); got != 2 {
					t.Errorf("logged: %v", logs.All())
				}

				// one that lost everything is given it again
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

// A folder in which another instance replaces a file while it is listed is listed
// again; if it never comes to an end, the storage fails.
func TestAListThatBreaksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newFaulty()
		before, _ := keep(t, storage, "alive/instances/x", 0)
		before.set("a:80", change{mode: new(modeDrain)})
		before.sync(t.Context(), false)
		for gaps, loaded := range map[int]bool{listTries - 1: true, listTries: false} {
			storage.mu.Lock()
			storage.gaps = gaps
			storage.mu.Unlock()
			k, logs := keep(t, storage, "alive/instances/x", 0)
			warned := logs.FilterLevelExact(zapcore.WarnLevel).Len() > 0
			if k.isLoaded() != loaded || (k.of("a:80") != nil) != loaded || warned == loaded {
				t.Errorf("%d lists break off: loaded %v, settings %v, warned %v", gaps, k.isLoaded(), k.settings(), warned)
			}
			time.Sleep(retryInterval)
			synctest.Wait()
			if k.of("a:80").mode() != modeDrain {
				t.Errorf("%d lists break off: settings at the next try: %v", gaps, k.settings())
			}
		}
	})
}

// What a storage holds that is no setting is ignored, with one warning each, and
// what is beside it counts.
func TestGarbageInTheStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newFaulty()
		good, _ := keep(t, storage, "alive/fleets/a", time.Second)
		good.set("a:80", change{mode: new(modeDrain)})
		good.sync(t.Context(), false)
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
		k, logs := keep(t, storage, "alive/fleets/a", time.Second)
		time.Sleep(10 * time.Second)
		if len(k.settings()) != 1 || k.of("a:80").mode() != modeDrain {
			t.Errorf("settings: %v", k.settings())
		}
		if got := logs.FilterLevelExact(zapcore.WarnLevel).Len(); got != 6 {
			t.Errorf("%d warnings, want one each: %v", got, logs.All())
		}
	})
}

// What was set for one address and said to be stored is not lost to what was set for
// others at the same time, by two members of a fleet.
func TestConcurrentChangesAreAllStored(t *testing.T) {
	storage := &certmagic.FileStorage{Path: t.TempDir()}
	one, _ := keep(t, storage, "alive/fleets/a", 10*time.Millisecond)
	two, _ := keep(t, storage, "alive/fleets/a", 10*time.Millisecond)
	var writers sync.WaitGroup
	for i := range 200 {
		k := one
		if i%2 == 1 {
			k = two
		}
		writers.Go(func() {
			address := fmt.Sprintf("10.0.0.%d:80", i)
			k.set(address, change{mode: new(modeDrain)})
			k.sync(t.Context(), false)
			if !k.persisted(address) { // on a busy machine it can take longer than anybody waits for it
				testkit.Eventually(t, testkit.Patience, address+" is stored", func() bool { return k.persisted(address) })
			}
		})
	}
	writers.Wait()
	later, logs := keep(t, storage, "alive/fleets/a", 0)
	for i := range 200 {
		if got := later.of(fmt.Sprintf("10.0.0.%d:80", i)).mode(); got != modeDrain {
			t.Errorf("%d: mode %s", i, got)
		}
	}
	for _, line := range logs.FilterLevelExact(zapcore.WarnLevel).All() {
		t.Errorf("logged: %s %v", line.Message, line.ContextMap())
	}
}

// Whoever waits for the storage at the end of a config does so beside others that
// begin to use it.
func TestAKeeperEndsBesideWriters(t *testing.T) {
	for range 50 {
		k := newKeeper(newOperations(), newFaulty(), "x", 0, zap.NewNop())
		var writers sync.WaitGroup
		for i := range 30 {
			writers.Go(func() {
				k.set(fmt.Sprint("a", i), change{mode: new(modeDrain)})
				k.sync(t.Context(), false)
			})
		}
		k.wait()
		writers.Wait()
	}
}

// slow is a storage that takes its time to read, and cannot read one key.
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

// A slow storage with many settings is read in the end, though nobody waits that long.
func TestASlowStorageWithManySettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newFaulty()
		one, _ := keep(t, storage, "f", time.Hour)
		for i := range 1000 {
			one.set(fmt.Sprintf("x%d:80", i), change{mode: new(modeDrain)})
		}
		one.sync(t.Context(), false)
		began := time.Now()
		two, logs := keep(t, &slow{storage, 50 * time.Millisecond, ""}, "f", time.Hour)
		if took := time.Since(began); took > storageTimeout {
			t.Errorf("it kept the start waiting for %v", took)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := len(two.settings()); got != 1000 || !two.isLoaded() || len(two.toStore()) > 0 {
			t.Errorf("%d settings, loaded %v, %d to store; %v", got, two.isLoaded(), len(two.toStore()), logs.All())
		}
	})
}

// One key that cannot be read, or one setting that cannot be stored, is no reason to
// leave out the others.
func TestOneBadKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &slow{newFaulty(), 0, "f/a.json"}
		storage.values["f/a.json"] = "{}"
		before, _ := keep(t, storage.faulty, "f", 0)
		before.set("x:80", change{mode: new(modeDrain)})
		before.sync(t.Context(), false)
		k, _ := keep(t, storage, "f", time.Second)
		if k.of("x:80").mode() != modeDrain {
			t.Errorf("settings %v", k.settings())
		}
		storage.bad = k.key("a:80")
		k.set("a:80", change{mode: new(modeDrain)})
		k.set("z:80", change{mode: new(modeDrain)})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := k.toStore(); !slices.Equal(got, []string{"a:80"}) {
			t.Errorf("to store: %v", got)
		}
	})
}

// A config with another storage has all settings stored there, also if it does not
// answer at first.
func TestAnotherStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, _ := keep(t, newFaulty(), "i", 0)
		one.set("x:80", change{mode: new(modeMaintenance)})
		one.sync(t.Context(), false)
		other := newFaulty()
		other.set(errors.New("down"), nil)
		two := newKeeper(one.operations, other, "i", 0, zap.NewNop())
		two.sync(t.Context(), true)
		if two.persisted("x:80") {
			t.Error("persisted, but the other storage is down")
		}
		other.set(nil, nil)
		two.sync(t.Context(), !two.isLoaded())
		if len(other.values) != 1 || !two.persisted("x:80") || !two.isLoaded() {
			t.Errorf("there: %v", other.values)
		}
	})
}

// A client that does not wait for the storage is no failure of it.
func TestAClientThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, logs := keep(t, &slow{newFaulty(), 300 * time.Millisecond, ""}, "i", 0)
		k.set("x:80", change{mode: new(modeDrain)})
		ctx, leave := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer leave()
		k.sync(ctx, false)
		time.Sleep(time.Second)
		if logs.Len() > 0 || !k.persisted("x:80") {
			t.Errorf("logged %v, persisted %v", logs.All(), k.persisted("x:80"))
		}
	})
}

// What one instance of a fleet has not seen for long, another may have.
func TestAFleetDoesNotForget(t *testing.T) {
	for every, want := range map[time.Duration]mode{0: modeReady, time.Second: modeMaintenance} {
		o := newOperations()
		a := &App{operations: o, keeper: newKeeper(o, newFaulty(), "f", every, zap.NewNop())}
		o.set("x:80", change{mode: new(modeMaintenance)})
		a.forget("x:80")
		if got := o.of("x:80").mode(); got != want {
			t.Errorf("sync_interval %v: mode %s, want %s", every, got, want)
		}
	}
}

// When a change returns, picks follow it, however many verdicts change meanwhile.
func TestAChangeIsFollowedWhenItReturns(t *testing.T) {
	p := newPolicy(t, strings.Repeat("u", 200), following(t))
	var over atomic.Bool
	var verdicts sync.WaitGroup
	for range 3 {
		verdicts.Go(func() {
			for !over.Load() {
				p.refresh()
			}
		})
	}
	for i := range 199 {
		p.set(i, change{mode: new(modeDrain)})
		if p.current.Load().tiers[0].weights[i] > 0 {
			t.Errorf("upstream %d still gets requests", i)
		}
	}
	over.Store(true)
	verdicts.Wait()
}
