// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/caddy-alive/caddy-alive/internal/testkit/storages"
)

// A value that is too long for a setting is not read if the storage reports its size,
// and is ignored if it does not. A storage that reports the wrong thing is read.
func TestStore_TooLongValueIsNotRead(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		writer, _ := runStore(t, e.Client(), "f", 0)
		change(t, writer, "a:80", Drain)
		e.Settle()
		long := writer.key("b:80")
		e.Put(long, `{"address":"b:80","mode":"drain"}`+strings.Repeat(" ", maxStored))
		client := e.Client()
		store, logs := runStore(t, client, "f", 0)
		if store.set.Of("a:80").ModeNow() != Drain || store.set.Of("b:80") != nil || !store.IsLoaded() {
			t.Errorf("settings %v", store.set.All())
		}
		want := 0
		if e.Has(storages.StatNothing | storages.StatZero | storages.StatUnsupported) {
			want = 1
		}
		if n := client.Count(storages.Load, long); n != want {
			t.Errorf("it was read %d times, want %d", n, want)
		}
		if got := logs.FilterLevelExact(zapcore.WarnLevel).All(); len(got) != 1 || !strings.Contains(fmt.Sprint(got[0].ContextMap()["error"]), fmt.Sprint("more than ", maxStored)) {
			t.Errorf("warned: %v", got)
		}
		change(t, store, "b:80", Maintenance)
		value, _ := e.Get(long)
		if s, err := parse([]byte(value)); err != nil || s.ModeNow() != Maintenance {
			t.Errorf("the next change does not replace it: %v", err)
		}
	})
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
		for _, every := range []time.Duration{0, 10 * time.Second} {
			t.Run(fmt.Sprint(name, every), func(t *testing.T) {
				eachStorage(t, func(t *testing.T, e *storages.Engine) {
					stored := &Setting{Address: "a:80", Mode: Maintenance, Changed: time.Now(), Weights: make(map[string]Weight)}
					tc.part(stored, time.Now().Add(tc.ahead))
					text, err := json.Marshal(stored)
					if err != nil {
						t.Fatal(err)
					}
					e.Put((&Store{prefix: "f"}).key("a:80"), string(text))
					store, logs := runStore(t, e.Client(), "f", every)
					if got := store.set.Of("a:80").ModeNow() == Maintenance; got != tc.taken {
						t.Errorf("taken: %v, want %v", got, tc.taken)
					}
					time.Sleep(3 * time.Minute)
					if got := logs.FilterLevelExact(zapcore.WarnLevel).Len(); (got == 1) == tc.taken || got > 1 {
						t.Errorf("%d warnings", got)
					}
					for _, m := range []Mode{Drain, Ready} {
						change(t, store, "a:80", m)
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
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		e.Put((&Store{prefix: "f"}).key("a:80"), fmt.Sprintf(`{"address":"a:80","mode":"drain","changed":%q}`, time.Now().Add(30*time.Hour).Format(time.RFC3339)))
		store, _ := runStore(t, e.Client(), "f", 0)
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

// fill stores settings of so many addresses.
func fill(e *storages.Engine, prefix string, settings int) {
	namer := &Store{prefix: prefix}
	for i := range settings {
		address := fmt.Sprintf("x%d:80", i)
		e.Put(namer.key(address), fmt.Sprintf(`{"address":%q,"mode":"drain","changed":"2000-01-01T00:00:00Z"}`, address))
	}
}

// While nothing changes, a member of a fleet reads one key at each look, and all settings
// each half minute. It writes nothing.
func TestStore_IdleFleetReadsTheNews(t *testing.T) {
	const keys, minutes, every = 50, 5, time.Second
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		fill(e, "alive/fleets/a", keys)
		clients := []*storages.Client{e.Client(), e.Client(), e.Client()}
		for _, c := range clients {
			runStore(t, c, "alive/fleets/a", every)
		}
		time.Sleep(time.Minute + every/2) // not at the moment of a look
		e.ResetCounts()
		for _, c := range clients {
			c.ResetCounts()
		}
		time.Sleep(minutes * time.Minute)
		lists := minutes * 2
		for i, c := range clients {
			news, settings := c.Count(storages.Load, "alive/news/"), c.Count(storages.Load, "alive/fleets/")
			if news < 60*minutes-lists || news > 60*minutes || settings < (lists-1)*keys || settings > lists*(keys+1) {
				t.Errorf("member %d: in %d minutes it has read the news %d times and settings %d times", i, minutes, news, settings)
			}
			if n := c.Count(storages.List, ""); n > 2*lists {
				t.Errorf("member %d: in %d minutes it has listed %d times", i, minutes, n)
			}
		}
		if n := e.Count(storages.Store, "") + e.Count(storages.Delete, ""); n > 0 {
			t.Errorf("%d writes", n)
		}
	})
}

// Reading thousands of settings costs a bounded share of the time. A change here is stored
// at once nevertheless.
func TestStore_RestsAfterReading(t *testing.T) {
	for name, tc := range map[string]struct {
		keys           int
		takes          time.Duration // to read one
		atBest, atMost int           // reads of all in ten minutes
	}{
		"a few":                  {5, 50 * time.Millisecond, 19, 20},
		"many":                   {2000, 4 * time.Millisecond, 18, 20},
		"many on a slow storage": {1000, 160 * time.Millisecond, 4, 6}, // 10 s for one read of all
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := storages.New()
				fill(e, "f", tc.keys)
				client := e.Client()
				slowLoads(client, tc.takes)
				store, _ := runStore(t, client, "f", 500*time.Millisecond)
				time.Sleep(3 * time.Minute)
				client.ResetCounts()
				time.Sleep(10 * time.Minute)
				if n := float64(client.Count(storages.Load, "f/")) / float64(tc.keys); n > float64(tc.atMost) || n < float64(tc.atBest) {
					t.Errorf("%.1f reads in ten minutes, want %d to %d", n, tc.atBest, tc.atMost)
				}
				change(t, store, "mine:80", Drain)
				if !store.set.IsStored("mine:80") {
					time.Sleep(12 * time.Second) // it may wait for a read, but not for the rest
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
