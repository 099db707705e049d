// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap/zapcore"
)

// sized is a storage that reports sizes, right or wrong, and counts what is read.
type sized struct {
	*faulty
	stat  func(key string, size int64) (certmagic.KeyInfo, error)
	takes time.Duration
	loads atomic.Int64
}

func (s *sized) Stat(_ context.Context, key string) (certmagic.KeyInfo, error) {
	s.mu.Lock()
	value, there := s.values[key]
	s.mu.Unlock()
	if !there {
		return certmagic.KeyInfo{}, fs.ErrNotExist
	}
	return s.stat(key, int64(len(value)))
}

func (s *sized) Load(ctx context.Context, key string) ([]byte, error) {
	s.loads.Add(1)
	time.Sleep(s.takes)
	return s.faulty.Load(ctx, key)
}

func trueSize(key string, size int64) (certmagic.KeyInfo, error) {
	return certmagic.KeyInfo{Key: key, Size: size, IsTerminal: true}, nil
}

// A value that is too long for a setting is not read if the storage reports its size,
// and is ignored if it does not. A storage that reports the wrong thing is read.
func TestStore_TooLongValueIsNotRead(t *testing.T) {
	for name, tc := range map[string]struct {
		stat  func(key string, size int64) (certmagic.KeyInfo, error)
		loads int64 // of the two keys
	}{
		"it reports the size": {trueSize, 1},
		"it cannot report":    {func(string, int64) (certmagic.KeyInfo, error) { return certmagic.KeyInfo{}, errors.ErrUnsupported }, 2},
		"it reports no value": {func(string, int64) (certmagic.KeyInfo, error) { return certmagic.KeyInfo{}, fs.ErrNotExist }, 2},
		"it reports size 0":   {func(key string, _ int64) (certmagic.KeyInfo, error) { return trueSize(key, 0) }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				storage := &sized{faulty: newFaulty(), stat: tc.stat}
				writer, _ := runStore(t, storage.faulty, "f", 0)
				writer.set.Change("a:80", Change{Mode: new(Mode(Drain))})
				writer.Sync(t.Context(), false)
				storage.values[writer.key("b:80")] = `{"address":"b:80","mode":"drain"}` + strings.Repeat(" ", maxStored)
				store, logs := runStore(t, storage, "f", 0)
				if store.set.Of("a:80").ModeNow() != Drain || store.set.Of("b:80") != nil || !store.IsLoaded() {
					t.Errorf("settings %v", store.set.All())
				}
				if n := storage.loads.Load(); n != tc.loads {
					t.Errorf("%d were read, want %d", n, tc.loads)
				}
				if got := logs.FilterLevelExact(zapcore.WarnLevel).All(); len(got) != 1 || !strings.Contains(fmt.Sprint(got[0].ContextMap()["error"]), "longer than") {
					t.Errorf("warned: %v", got)
				}
				store.set.Change("b:80", Change{Mode: new(Mode(Maintenance))})
				store.Sync(t.Context(), false)
				if s, err := parse([]byte(storage.values[store.key("b:80")])); err != nil || s.ModeNow() != Maintenance {
					t.Errorf("the next change does not replace it: %v", err)
				}
			})
		})
	}
}

// A setting with a time in the far future is ignored with one warning, and the next
// change replaces it. Clocks that differ a little do not matter.
func TestStore_TimesFarAheadAreIgnored(t *testing.T) {
	day := 24 * time.Hour
	for name, tc := range map[string]struct {
		ahead time.Duration
		part  func(s *Setting, at time.Time)
		taken bool
	}{
		"a little":             {time.Hour, func(s *Setting, at time.Time) { s.Changed = at }, true},
		"a year, the mode":     {365 * day, func(s *Setting, at time.Time) { s.Changed = at }, false},
		"a year, a weight":     {365 * day, func(s *Setting, at time.Time) { s.Weights["shop"] = Weight{new(3), at} }, false},
		"a year, when it left": {365 * day, func(s *Setting, at time.Time) { s.Left = at }, false},
		"8,000 years":          {0, func(s *Setting, _ time.Time) { s.Changed = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) }, false},
	} {
		for _, every := range []time.Duration{0, time.Second} {
			t.Run(fmt.Sprint(name, every), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					storage := newFaulty()
					stored := &Setting{Address: "a:80", Mode: Maintenance, Changed: time.Now(), Weights: make(map[string]Weight)}
					tc.part(stored, time.Now().Add(tc.ahead))
					text, err := json.Marshal(stored)
					if err != nil {
						t.Fatal(err)
					}
					key := (&Store{prefix: "f"}).key("a:80")
					storage.values[key] = string(text)
					store, logs := runStore(t, storage, "f", every)
					if got := store.set.Of("a:80").ModeNow() == Maintenance; got != tc.taken {
						t.Errorf("taken: %v, want %v", got, tc.taken)
					}
					time.Sleep(3 * time.Minute)
					if got := logs.FilterLevelExact(zapcore.WarnLevel).Len(); (got == 1) == tc.taken || got > 1 {
						t.Errorf("%d warnings", got)
					}
					for _, m := range []Mode{Drain, Ready} {
						store.set.Change("a:80", Change{Mode: &m})
						store.Sync(t.Context(), false)
						time.Sleep(3 * time.Minute)
						synctest.Wait()
						if got := store.set.Of("a:80"); got.ModeNow() != m || !store.set.IsStored("a:80") {
							t.Errorf("%s is not stored: %+v", m, got)
						}
					}
				})
			})
		}
	}
}

// If the clock was wrong when Caddy started, settings that were ahead of it are taken
// over once it is right, without a fleet, too.
func TestStore_TimesAheadAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newFaulty()
		key := (&Store{prefix: "f"}).key("a:80")
		storage.values[key] = fmt.Sprintf(`{"address":"a:80","mode":"drain","changed":%q}`, time.Now().Add(30*time.Hour).Format(time.RFC3339))
		store, _ := runStore(t, storage, "f", 0)
		time.Sleep(5 * time.Hour)
		if store.set.Of("a:80") != nil {
			t.Error("taken while it is far ahead")
		}
		time.Sleep(2 * time.Hour)
		if store.set.Of("a:80").ModeNow() != Drain {
			t.Error("not taken when it is no longer far ahead")
		}
	})
}

// Following thousands of settings costs a bounded share of the time, however short the
// interval. A few on a slow storage are followed at the interval.
func TestStore_RestsAfterReading(t *testing.T) {
	for name, tc := range map[string]struct {
		keys   int
		takes  time.Duration // to read one
		atMost int           // reads in a minute
		atBest int
	}{
		// 16 are read at a time: a read takes 1.25 s, a rest 5 s
		"many":                   {5000, 4 * time.Millisecond, 11, 8},
		"a few, a slow storage":  {5, 50 * time.Millisecond, 601, 300},
		"a few, a quick storage": {100, 10 * time.Microsecond, 601, 500},
		"many on a slow storage": {1000, 50 * time.Millisecond, 20, 13},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				storage := &sized{faulty: newFaulty(), stat: trueSize, takes: tc.takes}
				namer := &Store{prefix: "f"}
				for i := range tc.keys {
					address := fmt.Sprintf("x%d:80", i)
					storage.values[namer.key(address)] = fmt.Sprintf(`{"address":%q,"mode":"drain","changed":"2000-01-01T00:00:00Z"}`, address)
				}
				store, _ := runStore(t, storage, "f", 100*time.Millisecond)
				time.Sleep(10 * time.Second)
				before := storage.loads.Load()
				time.Sleep(time.Minute)
				if n := float64(storage.loads.Load()-before) / float64(tc.keys); n > float64(tc.atMost) || n < float64(tc.atBest) {
					t.Errorf("%.1f reads in a minute, want %d to %d", n, tc.atBest, tc.atMost)
				}
				// a change here is stored at once
				store.set.Change("mine:80", Change{Mode: new(Mode(Drain))})
				store.Sync(t.Context(), false)
				if !store.set.IsStored("mine:80") {
					time.Sleep(2 * time.Second)
					synctest.Wait()
					if !store.set.IsStored("mine:80") {
						t.Error("a change waits for the rest")
					}
				}
			})
		})
	}
}

// The file of an earlier version lacks the newer fields, and is read.
func TestSetting_OfAnEarlierVersionIsRead(t *testing.T) {
	s, err := parse([]byte(`{"address":"a:80","mode":"drain","changed":"2026-01-02T03:04:05Z"}`))
	if err != nil || s.ModeNow() != Drain || !s.AbsentSince().IsZero() {
		t.Errorf("%+v, %v", s, err)
	}
}
