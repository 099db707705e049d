// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/caddy-alive/caddy-alive/internal/testkit/storages"
)

const membersPrefix = "alive/members/shop/"

// stored returns what a member with an ID would store, with a part replaced.
func stored(id, old, new string) string {
	now := time.Now().UTC().Format(time.RFC3339)
	text := fmt.Sprintf(`{"v":1,"fleet":"shop","id":%q,"name":"x","seq":1,"every":10,"since":%q,"at":%q,"not_up":[],"more":0,"padding":""}`, id, now, now)
	if old != "" && !strings.Contains(text, old) {
		panic("nothing is replaced: " + old)
	}
	return strings.Replace(text, old, new, 1)
}

// badMembers are what is stored of members and makes no sense, by ID.
func badMembers() map[string]string {
	bad := make(map[string]string)
	add := func(value func(id string) string) {
		id := fmt.Sprintf("%016x", len(bad)+1)
		bad[id] = value(id)
	}
	with := func(old, new string) { add(func(id string) string { return stored(id, old, new) }) }
	add(func(string) string { return "" })
	add(func(string) string { return "\x00\xff{" })
	add(func(string) string { return "null" })
	add(func(string) string { return "[]" })
	add(func(string) string { return "{}" })
	add(func(string) string { return stored("00000000000000ff", "", "") }) // of another ID
	add(func(string) string { return stored("../../../etc/passwd", "", "") })
	with(`"padding":""`, `"padding":"`+strings.Repeat("x", 1<<20)+`"`)
	with(`"v":1`, `"v":0`)
	with(`"fleet":"shop"`, `"fleet":"shops"`)
	with(`"fleet":"shop"`, `"fleet":""`)
	with(`"name":"x"`, `"name":""`)
	with(`"name":"x"`, `"name":"../x"`)
	with(`"name":"x"`, `"name":"a\u001b[2Jb"`)
	with(`"name":"x"`, `"name":"`+strings.Repeat("x", 1000)+`"`)
	with(`"seq":1`, `"seq":-1`)
	with(`"seq":1`, `"seq":1e300`)
	with(`"every":10`, `"every":0`)
	with(`"every":10`, `"every":-10`)
	with(`"every":10`, `"every":1e300`)
	year := time.Now().Add(365 * 24 * time.Hour).UTC().Format(time.RFC3339)
	with(`"at":"`+time.Now().UTC().Format(time.RFC3339), `"at":"`+year)
	with(`"since":"`+time.Now().UTC().Format(time.RFC3339), `"since":"9999-12-31T00:00:00Z`)
	with(`"padding":""`, `"has":"no base64!"`)
	return bad
}

// What is stored in place of a member and makes no sense is ignored, with one warning for each
// member that reads it. It is left as it is, and prevents neither a wait nor its success.
func TestFleet_BadMembersAreIgnored(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		bad := badMembers()
		for id, text := range bad {
			e.Put(membersPrefix+id+".json", text)
		}
		// what does not even have the name of a member
		for _, name := range []string{"x.json", "../shop2.json", "00000000000000AA.json", strings.Repeat("a", 1000) + ".json", ".json", "00000000000000aa", "sub/00000000000000aa.json"} {
			e.Put(membersPrefix+name, stored("00000000000000aa", "", ""))
		}
		a, b := startMember(t, e, "a"), startMember(t, e, "b")
		time.Sleep(2*time.Second + e.Lag())
		b.traffic.set(1, false)
		a.drain(t)
		time.Sleep(10*time.Second + 3*e.Lag())
		synctest.Wait()
		if w := a.wait(); w.Done || strings.Join(w.Pending, "; ") != "b: 1 in flight" {
			t.Errorf("b has a request: %s", w)
		}
		b.traffic.set(0, false)
		a.awaitDone(t, 5*time.Second+3*e.Lag())
		time.Sleep(5 * time.Minute)
		if members := a.View("").Members; len(members) != 2 || members[1].Member != "b" {
			t.Errorf("members: %+v", members)
		}
		for id, text := range bad {
			if value, _ := e.Get(membersPrefix + id + ".json"); value != text {
				t.Errorf("member %s was changed: %.100q", id, value)
			}
		}
		for id, text := range bad {
			huge, honest := len(text) > maxValue, !e.Has(storages.StatNothing|storages.StatZero|storages.StatUnsupported)
			if n := e.Count(storages.Load, membersPrefix+id); huge && honest && n > 2 {
				t.Errorf("two members have read the huge value %d times", n)
			}
		}
		for _, c := range []*process{a, b} {
			warned := make(map[string]int)
			for _, line := range c.logs.FilterLevelExact(zapcore.WarnLevel).All() {
				warned[fmt.Sprint(line.ContextMap()["key"])]++
			}
			for id, text := range bad {
				if n := warned[membersPrefix+id+".json"]; n != 1 {
					t.Errorf("%d warnings of %.100q", n, text)
				}
			}
			if len(warned) != len(bad) {
				t.Errorf("warnings of others: %v", warned)
			}
		}
	})
}

// A member whose value something replaces by garbage has not left: a wait goes on until it has
// stored itself again and is quiet, and does not succeed if it is lost.
func TestWait_GarbageInPlaceOfAMemberIsNoLeave(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		a, b, c := startMember(t, e, "a"), startMember(t, e, "b"), startMember(t, e, "c")
		time.Sleep(15*time.Second + e.Lag())
		b.traffic.set(1, false)
		c.traffic.set(1, false)
		a.drain(t)
		e.Put(membersPrefix+b.id+".json", "garbage")
		e.Put(membersPrefix+c.id+".json", stored(c.id, `"v":1`, `"v":0`))
		c.kill()
		b.traffic.set(0, false)
		for range 120 {
			time.Sleep(500 * time.Millisecond)
			synctest.Wait()
			if w := a.wait(); w.Done {
				t.Fatalf("the wait succeeds: %s", w)
			}
		}
		if w := a.wait(); len(w.Pending) > 0 || len(w.Lost) != 1 || !strings.HasPrefix(w.Lost[0], "c: not heard for") {
			t.Errorf("b is quiet, and c is lost: %s, %q", w, w.Pending)
		}
	})
}

// A member that is not found once has not left: some storages say so of any error.
func TestWait_NotFoundOnceIsNoLeave(t *testing.T) {
	for name, fails := range map[string]func(call storages.Call, key string) bool{
		"load": func(call storages.Call, key string) bool { return call.Op == storages.Load && call.Key == key },
		"list": func(call storages.Call, _ string) bool {
			return call.Op == storages.List && strings.HasPrefix(call.Key+"/", membersPrefix)
		},
		"load of all other members": func(call storages.Call, _ string) bool {
			return call.Op == storages.Load && strings.HasPrefix(call.Key, membersPrefix)
		},
	} {
		t.Run(name, func(t *testing.T) {
			storages.Each(t, func(t *testing.T, e *storages.Engine) {
				a, b := startMember(t, e, "a"), startMember(t, e, "b")
				time.Sleep(15*time.Second + e.Lag())
				b.traffic.set(1, false)
				a.drain(t)
				own := membersPrefix + a.id + ".json"
				var failing atomic.Bool // for one look
				a.storage.Before(func(_ context.Context, call storages.Call) error {
					if failing.Load() && call.Key != own && fails(call, membersPrefix+b.id+".json") {
						return fs.ErrNotExist
					}
					return nil
				})
				time.Sleep(every / 2) // looks are in the middle of each round
				for i := range 60 {
					failing.Store(i%3 == 0)
					time.Sleep(every)
					synctest.Wait()
					if w := a.wait(); w.Done {
						t.Fatalf("the wait succeeds after %d s: %s", i, w)
					}
				}
				a.storage.Before(nil)
				b.traffic.set(0, false)
				a.awaitDone(t, 5*time.Second+3*e.Lag())
			})
		})
	}
}

// A member of a newer version is there, so a wait does not succeed before it is lost, and says
// so. There is one warning.
func TestWait_NewerMemberIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := storages.New()
		a := startMember(t, e, "a")
		id := formatID(7)
		e.Put(membersPrefix+id+".json", stored(id, `"v":1`, `"v":2`))
		time.Sleep(time.Second)
		a.drain(t)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if w := a.wait(); w.Done || fmt.Sprint(w.Pending) != "[x: does not follow the mode yet]" {
			t.Errorf("%s, %q", w, w.Pending)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if w := a.wait(); w.Done || len(w.Pending) > 0 || len(w.Lost) != 1 {
			t.Errorf("lost: %s, %q", w, w.Lost)
		}
		if n := a.logs.Len(); n != 1 {
			t.Errorf("%d warnings: %v", n, a.logs.All())
		}
	})
}

// A member that cannot be read is the trouble of its key, not of the storage: there is one
// warning, and no wait succeeds.
func TestWait_UnreadableMemberIsNotTheStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := storages.New()
		a := startMember(t, e, "a")
		id := formatID(7)
		e.Put(membersPrefix+id+".json", stored(id, "", ""))
		a.storage.Before(func(_ context.Context, call storages.Call) error {
			if call.Op == storages.Load && call.Key == membersPrefix+id+".json" {
				return errors.New("permission denied")
			}
			return nil
		})
		time.Sleep(time.Minute)
		a.drain(t)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if problem := a.View("").Problem; problem != "" {
			t.Errorf("the storage is said to fail: %s", problem)
		}
		if w := a.wait(); w.Done || fmt.Sprint(w.Pending) != "[the member with the ID "+id+": what it has stored cannot be read]" {
			t.Errorf("%s, %q", w, w.Pending)
		}
		if n := a.logs.Len(); n != 1 {
			t.Errorf("%d warnings: %v", n, a.logs.All())
		}
		a.storage.Before(nil)
	})
}

// Two members can wait for one upstream: the second one sets the mode that it has.
func TestWait_TwoMembersWaitForOneUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := storages.New()
		a, b := startWaiting(t, e)
		time.Sleep(5 * time.Second)
		b.drain(t)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		for _, c := range []*process{a, b} {
			if w := c.wait(); w.Failed != "" || fmt.Sprint(w.Pending) != "[b: 1 in flight]" {
				t.Errorf("%s: %s, %q", c.part.config.Member, w, w.Pending)
			}
		}
		b.traffic.set(0, false)
		a.awaitDone(t, 5*time.Second)
		b.awaitDone(t, 5*time.Second)
	})
}
