// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit/storages"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

const every = time.Second // as in startMember

// states returns the names of all members that a member knows, with their states.
func (c *process) states() (all []string) {
	for _, m := range c.View("").Members {
		all = append(all, m.Member+" "+m.State)
	}
	slices.Sort(all)
	return all
}

// wantStates checks which members each of some members knows.
func wantStates(t *testing.T, when string, members []*process, want string) {
	t.Helper()
	synctest.Wait()
	for _, c := range members {
		self := c.part.config.Member
		if got := fmt.Sprint(c.states()); got != want {
			t.Errorf("%s: %s knows %s, want %s", when, self, got, want)
		}
	}
}

// A fleet in which all is well logs nothing, on any storage. Each member reads the news once a
// look, and each member once a period, and stores only itself.
func TestFleet_IdleOnAnyStorage(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		const size, minutes = 4, 5
		var members []*process
		for i := range size {
			members = append(members, startMember(t, e, fmt.Sprint("m", i)))
		}
		time.Sleep(time.Minute + every/2) // not at the moment of a look
		for _, c := range members {
			c.storage.ResetCounts()
		}
		time.Sleep(minutes * time.Minute)
		synctest.Wait()
		periods := int(minutes * time.Minute / leastPeriod)
		for _, c := range members {
			if got := len(c.View("").Members); got != size || c.View("").Problem != "" {
				t.Errorf("%d members are known: %v; problem: %q", got, c.states(), c.View("").Problem)
			}
			if c.logs.Len() > 0 {
				t.Errorf("logged: %v", c.logs.All())
			}
			count := func(op storages.Op, prefix string) int { return c.storage.Count(op, prefix) }
			if n := count(storages.Load, "alive/news/"); n > 60*minutes {
				t.Errorf("%d reads of the news in %d minutes", n, minutes)
			}
			if n := count(storages.Load, membersPrefix); n < size*(periods-1) || n > (size+1)*periods {
				t.Errorf("%d reads of members in %d minutes", n, minutes)
			}
			own := count(storages.Store, membersPrefix+c.id)
			if own < periods-1 || own > periods || count(storages.Store, "") != own || count(storages.Delete, "") > 0 {
				t.Errorf("%d writes, of which %d of the own key, and %d deletions", count(storages.Store, ""), own, count(storages.Delete, ""))
			}
		}
	})
}

// When the storage fails or hangs, each member notices at its next look, or when that takes
// too long, and says so until the storage works again. It then knows the same members as
// before, and a wait goes on. The same holds if the storage lost everything. Each outage is
// one line.
func TestFleet_OutageOnAnyStorage(t *testing.T) {
	for name, fail := range map[string]func(e *storages.Engine){
		"errors":                func(e *storages.Engine) { e.Fail(errors.New("connection refused")) },
		"hangs":                 func(e *storages.Engine) { e.Hang() },
		"errors and is flushed": func(e *storages.Engine) { e.Fail(errors.New("connection refused")); e.Flush() },
	} {
		for _, minutes := range []int{1, 10} {
			t.Run(fmt.Sprintf("%s for %d minutes", name, minutes), func(t *testing.T) {
				storages.Each(t, func(t *testing.T, e *storages.Engine) {
					members := []*process{startMember(t, e, "a"), startMember(t, e, "b"), startMember(t, e, "c")}
					a, b := members[0], members[1]
					time.Sleep(30*time.Second + e.Lag())
					wantStates(t, "before", members, "[a live b live c live]")
					b.traffic.set(1, false)
					a.drainFor(t, 20*time.Minute)
					fail(e)
					defer e.Mend()
					time.Sleep(every + settings.Timeout)
					for range 60 * minutes {
						synctest.Wait()
						for _, c := range members {
							if c.View("").Problem == "" {
								t.Fatalf("%s does not notice", c.part.config.Member)
							}
						}
						if w := a.wait(); w.Done || w.Failed == "" {
							t.Fatalf("the wait is: %s", w)
						}
						time.Sleep(time.Second)
					}
					time.Sleep(300 * time.Millisecond) // not at the moment of a look
					e.Mend()
					time.Sleep(5*time.Second + 3*e.Lag())
					synctest.Wait()
					for _, c := range members {
						if problem := c.View("").Problem; problem != "" {
							t.Errorf("%s does not notice the end: %s", c.part.config.Member, problem)
						}
						if c.set.Of(waitedFor).ModeNow() != settings.Drain {
							t.Errorf("%s has lost the mode", c.part.config.Member)
						}
					}
					time.Sleep(leastPeriod)
					wantStates(t, "after", members, "[a live b live c live]")
					if w := a.wait(); w.Done || fmt.Sprint(w.Pending) != "[b: 1 in flight]" {
						t.Errorf("after the outage: %s %q", w, w.Pending)
					}
					b.traffic.set(0, false)
					a.awaitDone(t, 5*time.Second+3*e.Lag())
					for _, c := range members {
						if c.logs.Len() != 1 { // the end is no warning
							t.Errorf("logged: %v", c.logs.All())
						}
					}
				})
			})
		}
	}
}

// A storage that is flushed while it works loses no member, and no wait succeeds because of
// it.
func TestFleet_FlushOnAnyStorage(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		members := []*process{startMember(t, e, "a"), startMember(t, e, "b"), startMember(t, e, "c")}
		a, b := members[0], members[1]
		time.Sleep(30*time.Second + e.Lag())
		b.traffic.set(1, false)
		a.drainFor(t, 10*time.Minute)
		time.Sleep(5*time.Second + 3*e.Lag())
		// at moments all over the period in which a member stores itself; the last but one is soon
		// after the one before
		for i, pause := range []int{11, 12, 13, 14, 15, 16, 17, 18, 19, 5, 12} {
			e.Flush()
			for range 2 * pause {
				time.Sleep(500 * time.Millisecond)
				synctest.Wait()
				if w := a.wait(); w.Done || w.Quiet {
					t.Fatalf("flush %d: %s", i, w)
				}
			}
		}
		time.Sleep(15*time.Second + 3*e.Lag())
		wantStates(t, "after", members, "[a live b live c live]")
		if w := a.wait(); fmt.Sprint(w.Pending) != "[b: 1 in flight]" {
			t.Errorf("after: %s, %q", w, w.Pending)
		}
		b.traffic.set(0, false)
		a.awaitDone(t, 5*time.Second+3*e.Lag())
		for _, c := range members {
			if c.set.Of(waitedFor).ModeNow() != settings.Drain || len(e.Keys("alive/fleets/shop/")) != 1 {
				t.Errorf("%s has lost the mode, or the storage has: %q", c.part.config.Member, e.Keys(""))
			}
		}
	})
}

// A member that alone does not reach the storage says so, and the others say that it is lost.
// When it reaches it again, all is as before.
func TestFleet_OneMemberCutOff(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		members := []*process{startMember(t, e, "a"), startMember(t, e, "b"), startMember(t, e, "c")}
		c := members[2]
		time.Sleep(30*time.Second + e.Lag())
		c.storage.Fail(errors.New("no route to host"))
		time.Sleep(livePeriods*leastPeriod + 2*leastPeriod + liveGrace)
		wantStates(t, "cut off", members[:2], "[a "+view.MemberLive+" b "+view.MemberLive+" c "+view.MemberLost+"]")
		if c.View("").Problem == "" {
			t.Error("c does not notice")
		}
		c.storage.Mend()
		time.Sleep(2*leastPeriod + e.Lag())
		wantStates(t, "back", members, "[a live b live c live]")
	})
}
