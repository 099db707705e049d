// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/caddy-alive/caddy-alive/internal/testkit/storages"
)

// newsKey is where the fleet a has its news.
const newsKey = "alive/news/a.json"

// A change of a member that does not write news, which is an earlier version, is followed
// with the next read of all, and so is a change here by that version: it is stored where it
// always was.
func TestStore_EarlierVersionIsFollowedByAList(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		store, _ := runStore(t, e.Client(), "alive/fleets/a", time.Second)
		time.Sleep(10 * time.Second)
		e.Put(store.key("a:80"), fmt.Sprintf(`{"address":"a:80","mode":"drain","changed":%q}`, time.Now().UTC().Format(time.RFC3339Nano)))
		change(t, store, "b:80", Maintenance)
		if value, ok := e.Get(store.key("b:80")); !ok || !strings.Contains(value, `"mode":"maintenance"`) {
			t.Errorf("stored is %q", value)
		}
		time.Sleep(fullInterval + time.Second)
		synctest.Wait()
		if store.set.Of("a:80").ModeNow() != Drain {
			t.Errorf("half a minute later the settings are %v", store.set.All())
		}
		if _, ok := e.Get(store.key("a:80")); !ok || !store.set.IsStored("a:80") {
			t.Error("the setting of the earlier version is lost")
		}
	})
}

// entry returns an entry of news as JSON.
func entry(id, kind, key string) string {
	return fmt.Sprintf(`{"id":%q,"kind":%q,"key":%q,"at":"2000-01-01T00:00:00Z"}`, id, kind, key)
}

// document returns news as JSON.
func document(version int, entries ...string) string {
	return fmt.Sprintf(`{"v":%d,"born":"00000000000000aa","nonce":"00000000000000bb","changes":[%s],"waits":[],"doubts":[]}`, version, strings.Join(entries, ","))
}

// badNews are news that make no sense, in whole or in part. All are valid news otherwise.
func badNews() map[string]string {
	hash, id := Hash("x:80"), "00000000000000cc"
	return map[string]string{
		"empty":                   "",
		"no JSON":                 "\x00\xff{",
		"a list":                  "[]",
		"null":                    "null",
		"no document":             `{"mode":"drain"}`,
		"huge":                    document(1) + strings.Repeat(" ", 1<<20),
		"version 0":               document(0),
		"version -1":              document(-1),
		"a newer version":         document(2),
		"born is a path":          strings.Replace(document(1), "00000000000000aa", "../../../../x", 1),
		"a path as a key":         document(1, entry(id, "setting", "../../../certificates/example.com/example.com")),
		"a folder as a key":       document(1, entry(id, "setting", "../fleets/ab/"+hash)),
		"an absolute key":         document(1, entry(id, "setting", "/etc/passwd")),
		"no key":                  document(1, entry(id, "setting", "")),
		"a very long key":         document(1, entry(id, "setting", strings.Repeat("a", 20_000))),
		"a very long ID":          document(1, entry(strings.Repeat("a", 20_000), "setting", hash)),
		"a member that is a path": document(1, entry(id, "member", "../../x")),
		"an unknown kind":         document(1, entry(id, "command", hash)),
		"a key that is not there": document(1, entry(id, "setting", hash)),
		"a time far ahead":        document(1, strings.Replace(entry(id, "setting", hash), "2000-", "9999-", 1)),
		"a negative time to wait": document(1, strings.Replace(entry(id, "wait", hash), "}", `,"for":-1}`, 1)),
		"too many entries":        document(1, strings.Split(strings.Repeat(entry(id, "setting", hash)+"\n", 200), "\n")[:200]...),
	}
}

// News that make no sense are ignored or replaced, with one warning at most, and nothing is
// read of what they name outside the fleet. Members follow changes nevertheless: with the
// next read of all at the latest, also if they must not replace the news.
func TestStore_BadNewsAreIgnored(t *testing.T) {
	const every = 5 * time.Second
	for name, text := range badNews() {
		t.Run(name, func(t *testing.T) {
			eachStorage(t, func(t *testing.T, e *storages.Engine) {
				one, logs := runStore(t, e.Client(), "alive/fleets/a", every)
				client := e.Client()
				two, _ := runStore(t, client, "alive/fleets/a", every)
				change(t, one, "a:80", Drain)
				follow(e, every)
				client.ResetCounts()
				e.Put(newsKey, text)
				time.Sleep(every + time.Second)
				change(t, one, "a:80", Maintenance)
				time.Sleep(fullInterval + every + e.Lag())
				synctest.Wait()
				if two.set.Of("a:80").ModeNow() != Maintenance {
					t.Errorf("the change is not followed: %+v", two.set.Of("a:80"))
				}
				if client.Count(storages.Load, "") != client.Count(storages.Load, newsKey)+client.Count(storages.Load, "alive/fleets/a/") {
					t.Error("a key is read that is neither news nor a setting of the fleet")
				}
				time.Sleep(time.Minute)
				if got := logs.FilterLevelExact(zapcore.WarnLevel); got.Len() > 1 {
					t.Errorf("%d warnings: %v", got.Len(), got.All())
				}
				if text, _ := e.Get(newsKey); (name == "a newer version") != (text == badNews()[name]) && name != "a key that is not there" {
					t.Errorf("in the end the news are %.200s", text)
				}
			})
		})
	}
}

// Something that writes the news in a loop prevents that members follow at once. It does not
// prevent that they follow with the next read of all, it costs a bounded number of reads and
// writes, and it is logged once.
func TestStore_NewsRewrittenInALoop(t *testing.T) {
	huge := strings.Repeat(" ", 257<<10)
	for name, text := range map[string]func(i int) string{
		"nothing":                 nil,
		"the same garbage":        func(int) string { return "garbage" },
		"other garbage each time": func(i int) string { return strings.Repeat("[", i%1000) + "x" },
		"huge":                    func(int) string { return huge },
		"an old copy":             func(int) string { return document(1) },
		"a new document each time": func(i int) string {
			return strings.Replace(document(1), "00000000000000aa", fmt.Sprintf("%016x", i), 1)
		},
		"entries of nothing": func(i int) string {
			entries := make([]string, 64)
			for j := range entries {
				entries[j] = entry(fmt.Sprintf("%08x%08x", i, j), "setting", Hash(fmt.Sprint(i, j)))
			}
			return document(1, entries...)
		},
		"a newer version": func(int) string { return document(2) },
	} {
		t.Run(name, func(t *testing.T) {
			eachStorage(t, func(t *testing.T, e *storages.Engine) {
				const keys = 20
				changes, every := 2, time.Second
				if name == "entries of nothing" {
					changes, every = 1, 5*time.Second // each look reads many
				}
				fill(e, "alive/fleets/a", keys)
				client := e.Client()
				one, logs := runStore(t, e.Client(), "alive/fleets/a", every)
				two, _ := runStore(t, client, "alive/fleets/a", every)
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				go func() {
					for i := 0; ctx.Err() == nil; i++ {
						if text == nil {
							e.Remove(newsKey)
						} else {
							e.Put(newsKey, text(i))
						}
						_ = storages.Pause(ctx, 300*time.Millisecond)
					}
				}()
				time.Sleep(20 * time.Second)
				client.ResetCounts()
				for i := range changes {
					mode := []Mode{Drain, Maintenance}[i%2]
					change(t, one, "a:80", mode)
					if !one.set.IsStored("a:80") {
						t.Error("a change is not stored")
					}
					time.Sleep(fullInterval + every + e.Lag())
					synctest.Wait()
					if got := two.set.Of("a:80").ModeNow(); got != mode {
						t.Errorf("change %d is not followed: %s", i, got)
					}
				}
				lasted := time.Duration(changes) * (fullInterval + every + e.Lag())
				if len(two.set.toStore())+len(one.set.toStore()) > 0 || len(e.Keys("alive/fleets/a/")) != keys+1 {
					t.Errorf("to store: %v, %v; stored are %d", one.set.toStore(), two.set.toStore(), len(e.Keys("alive/fleets/a/")))
				}
				// a list can take two calls
				if n, most := client.Count(storages.List, ""), 2*int(lasted/missedInterval+1); n > most {
					t.Errorf("%d lists in %v, want at most %d", n, lasted, most)
				}
				if n, most := client.Count(storages.Load, "alive/fleets/"), (keys+2)*int(lasted/missedInterval+1)+maxOwed*int(lasted/every+2); n > most {
					t.Errorf("%d settings were read in %v, want at most %d", n, lasted, most)
				}
				if n, most := client.Count(storages.Store, ""), 3*int(lasted/(30*time.Second)+1); n > most {
					t.Errorf("%d writes in %v, want at most %d", n, lasted, most)
				}
				if got := logs.FilterLevelExact(zapcore.WarnLevel); got.Len() > 1 {
					t.Errorf("%d warnings: %v", got.Len(), got.All()[:2])
				}
			})
		})
	}
}

// If the news cannot be read, and all else can, members follow with the next read of all.
// Changes are stored at once.
func TestStore_UnreadableNews(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		e.Before(func(_ context.Context, call storages.Call) error {
			if call.Op == storages.Load && call.Key == newsKey {
				return errors.New("cannot decrypt the value")
			}
			return nil
		})
		one, logs := runStore(t, e.Client(), "alive/fleets/a", time.Second)
		two, _ := runStore(t, e.Client(), "alive/fleets/a", time.Second)
		change(t, one, "a:80", Drain)
		if !one.set.IsStored("a:80") {
			t.Error("the change is not stored")
		}
		time.Sleep(fullInterval + time.Second + e.Lag())
		if two.set.Of("a:80").ModeNow() != Drain {
			t.Errorf("the change is not followed: %v", two.set.All())
		}
		if got := logs.FilterLevelExact(zapcore.WarnLevel); got.Len() != 1 {
			t.Errorf("%d warnings: %v", got.Len(), got.All())
		}
	})
}

// More changes than the news can hold are all followed soon, also if they are made by one
// member between two looks of another one.
func TestStore_MoreChangesThanNews(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		one, _ := runStore(t, e.Client(), "alive/fleets/a", time.Second)
		two, _ := runStore(t, e.Client(), "alive/fleets/a", time.Second)
		follow(e, missedInterval)
		for i := range 200 {
			one.set.Change(fmt.Sprintf("x%d:80", i), Change{Mode: new(Mode(Drain))})
		}
		one.Sync(t.Context(), false)
		follow(e, 2*time.Second)
		if n := len(two.set.All()); n != 200 {
			t.Errorf("%d of 200 are followed", n)
		}
	})
}

// What a member reads of a setting while it lags behind the news is not taken for the news.
func TestStore_NewsAheadOfASetting(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		one, _ := runStore(t, e.Client(), "alive/fleets/a", time.Second)
		two, _ := runStore(t, e.Client(), "alive/fleets/a", time.Second)
		change(t, one, "a:80", Drain)
		follow(e, time.Second)
		old, _ := e.Get(one.key("a:80"))
		change(t, one, "a:80", Maintenance)
		newer, _ := e.Get(one.key("a:80"))
		e.Put(one.key("a:80"), old)
		time.Sleep(2 * time.Second)
		e.Put(one.key("a:80"), newer)
		time.Sleep(1500*time.Millisecond + 2*e.Lag())
		if got := two.set.Of("a:80").ModeNow(); got != Maintenance {
			var s Setting
			if err := json.Unmarshal([]byte(newer), &s); err != nil {
				t.Fatal(err)
			}
			t.Errorf("the mode is %s, in the storage it is %s", got, s.Mode)
		}
	})
}
