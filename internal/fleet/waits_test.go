// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit/storages"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// traffic is the requests of a member to the one upstream.
type traffic struct {
	mu       sync.Mutex
	inFlight int
	gets     bool
}

func (t *traffic) set(inFlight int, gets bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.inFlight, t.gets = inFlight, gets
}

func (*traffic) NotUp() []view.NotUp { return nil }

func (*traffic) Targets() []Target { return nil }

func (t *traffic) Requests(string) Requests {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Requests{InFlight: t.inFlight, Gets: t.gets}
}

// process is one member in tests.
type process struct {
	*Fleet
	traffic
	set     *settings.Set
	store   *settings.Store
	part    *Part
	storage *storages.Client
	logs    *observer.ObservedLogs
	kill    context.CancelFunc // without a word
}

const waitedFor = "app:80"

// startMember starts a member, which runs until the test ends.
func startMember(t *testing.T, e *storages.Engine, name string) *process {
	c := &process{Fleet: New(), set: settings.NewSet(), storage: e.Client()}
	ctx, kill := context.WithCancel(context.Background())
	c.kill = kill
	c.begin(t, ctx, name)
	return c
}

// begin begins a config of the member.
func (c *process) begin(t *testing.T, ctx context.Context, name string) {
	core, logs := observer.New(zapcore.WarnLevel)
	c.logs = logs
	c.store = settings.NewStore(c.set, c.storage, "alive/fleets/shop", time.Second, zap.New(core))
	c.part = c.Join(c.store, Config{Fleet: "shop", Member: name, Every: time.Second, Local: c, Set: c.set, Logger: zap.New(core)})
	c.store.Sync(ctx, true)
	c.part.Start(ctx)
	var running sync.WaitGroup
	running.Go(func() { c.store.Run(ctx) })
	t.Cleanup(func() {
		c.kill()
		running.Wait()
		c.store.Wait()
	})
}

// drain makes the member drain the upstream, and wait.
func (c *process) drain(t *testing.T) {
	t.Helper()
	c.drainFor(t, 2*time.Minute)
}

// drainFor makes the member drain the upstream, and wait for so long at most.
func (c *process) drainFor(t *testing.T, longest time.Duration) {
	t.Helper()
	c.set.Change(waitedFor, settings.Change{Mode: new(settings.Mode(settings.Drain))})
	c.store.Sync(t.Context(), false)
	if err := c.Wait(t.Context(), waitedFor, longest); err != nil {
		t.Fatal(err)
	}
}

// startWaiting starts two members. The first waits for the upstream, to which the second has
// one request in flight.
func startWaiting(t *testing.T, e *storages.Engine) (waits, busy *process) {
	t.Helper()
	waits, busy = startMember(t, e, "a"), startMember(t, e, "b")
	time.Sleep(2 * time.Second)
	busy.traffic.set(1, false)
	waits.drain(t)
	return waits, busy
}

// wait returns how far the wait is.
func (c *process) wait() *view.Wait { return c.View(waitedFor).Wait }

// awaitDone waits until the wait has succeeded, and returns how long that took.
func (c *process) awaitDone(t *testing.T, longest time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	for !c.wait().Done {
		if time.Since(began) > longest {
			t.Fatalf("after %s: %s: %q", longest, c.wait(), c.wait().Pending)
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
	}
	return time.Since(began)
}

// A wait succeeds when no member has a request in flight any more, and not before. Members
// that do not have the upstream are waited for, too, until they follow.
func TestWait_EndsWhenAllAreQuiet(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		a, b, c := startMember(t, e, "a"), startMember(t, e, "b"), startMember(t, e, "c")
		e.Settle()
		time.Sleep(2 * time.Second)
		b.traffic.set(3, false)
		c.traffic.set(0, true)
		a.drain(t)
		time.Sleep(10*time.Second + 3*e.Lag())
		synctest.Wait()
		if w := a.wait(); w.Done || w.Quiet || strings.Join(w.Pending, "; ") != "b: 3 in flight; c: still sends new requests, since no other upstream serves there" {
			t.Errorf("b and c have requests: %s", w)
		}
		c.traffic.set(0, false)
		time.Sleep(5*time.Second + 3*e.Lag())
		synctest.Wait()
		if w := a.wait(); w.Done || strings.Join(w.Pending, "; ") != "b: 3 in flight" {
			t.Errorf("b has requests: %s", w)
		}
		b.traffic.set(0, false)
		if took := a.awaitDone(t, 4*time.Second+3*e.Lag()); took < time.Second/2 {
			t.Errorf("it succeeds after %s", took)
		}
		time.Sleep(3 * time.Minute) // the others are told no more
		if ack := a.View(waitedFor).Members[1].Ack; ack != nil {
			t.Errorf("b still says %+v", ack)
		}
	})
}

// A member that vanished keeps a wait from succeeding. One that comes back under its name
// takes its place, and one that left in order is not waited for.
func TestWait_NamesTheLostUntilTheyReturn(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		a, b, c := startMember(t, e, "a"), startMember(t, e, "b"), startMember(t, e, "c")
		time.Sleep(15*time.Second + e.Lag())
		b.kill()
		c.kill()
		time.Sleep(time.Second)
		c.part.Stop(context.Background())
		a.drain(t)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if w := a.wait(); w.Done || strings.Join(w.Pending, "; ") != "b: does not follow the mode yet" {
			t.Errorf("b vanished: %s", w)
		}
		time.Sleep(30*time.Second + e.Lag())
		synctest.Wait()
		if w := a.wait(); w.Done || !w.Quiet || len(w.Pending) > 0 || len(w.Lost) != 1 || !strings.HasPrefix(w.Lost[0], "b: not heard for ") || !strings.HasSuffix(w.Lost[0], "s, it may still send requests") {
			t.Errorf("b is lost: %s", w)
		}
		startMember(t, e, "b")
		a.awaitDone(t, 5*time.Second+3*e.Lag())
		if members := a.View("").Members; len(members) != 2 {
			t.Errorf("members: %+v", members)
		}
	})
}

// A lost member is not taken for one of the same name that was there before.
func TestWait_SameNameBesideIsNoReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := storages.New()
		a, b := startMember(t, e, "a"), startMember(t, e, "b")
		startMember(t, e, "b")
		time.Sleep(15 * time.Second)
		b.kill()
		a.drain(t)
		time.Sleep(time.Minute)
		if w := a.wait(); w.Done || len(w.Lost) != 1 {
			t.Errorf("%s", w)
		}
	})
}

// A wait takes a member into account that joins while it runs.
func TestWait_CoversMembersThatJoin(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		a, b := startMember(t, e, "a"), startMember(t, e, "b")
		time.Sleep(2*time.Second + e.Lag())
		b.traffic.set(1, false)
		a.drain(t)
		time.Sleep(5*time.Second + 2*e.Lag())
		c := startMember(t, e, "c")
		c.traffic.set(2, false)
		b.traffic.set(0, false)
		time.Sleep(5*time.Second + 3*e.Lag())
		synctest.Wait()
		if w := a.wait(); w.Done || strings.Join(w.Pending, "; ") != "c: 2 in flight" {
			t.Errorf("c has requests: %s", w)
		}
		c.traffic.set(0, false)
		a.awaitDone(t, 4*time.Second+3*e.Lag())
	})
}

// A wait says that it cannot succeed while the storage fails, or once the mode was changed.
func TestWait_SaysWhyItCannotSucceed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := storages.New()
		a, b := startWaiting(t, e)
		a.storage.Fail(errors.New("disk full"))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if w := a.wait(); w.Done || w.Failed != "only this Caddy is known: disk full" {
			t.Errorf("the storage fails: %s", w)
		}
		if err := a.Wait(t.Context(), waitedFor, time.Minute); err == nil || !strings.Contains(err.Error(), "only this Caddy is known") {
			t.Errorf("a wait while the storage fails: %v", err)
		}
		a.storage.Mend()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if w := a.wait(); w.Failed != "" || strings.Join(w.Pending, "; ") != "b: 1 in flight" {
			t.Errorf("the storage works again: %s", w)
		}
		b.set.Change(waitedFor, settings.Change{Mode: new(settings.Mode(settings.Ready))})
		b.store.Sync(t.Context(), false)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if w := a.wait(); w.Done || w.Failed != "its mode was changed meanwhile, to ready" {
			t.Errorf("ready again: %s", w)
		}
	})
}

// A reload ends no wait, and is no new member.
func TestWait_OutlivesAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := storages.New()
		a, b := startWaiting(t, e)
		time.Sleep(3 * time.Second)
		for _, c := range []*process{a, b} {
			before, kill := c.part, c.kill
			ctx, killNew := context.WithCancel(context.Background())
			c.kill = killNew
			c.begin(t, ctx, "renamed-"+before.config.Member)
			kill()
			before.Stop(context.Background())
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if w := a.wait(); w == nil || strings.Join(w.Pending, "; ") != "renamed-b: 1 in flight" {
			t.Errorf("after the reload: %q", w.Pending)
		}
		if members := a.View("").Members; len(members) != 2 {
			t.Errorf("members: %+v", members)
		}
		b.traffic.set(0, false)
		a.awaitDone(t, 5*time.Second)
	})
}

// What waits stays within its bounds.
func TestWait_TooManyAreAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startMember(t, storages.New(), "a")
		for i := range maxWaits + 1 {
			upstream := waitedFor + string(rune('a'+i))
			a.set.Change(upstream, settings.Change{Mode: new(settings.Mode(settings.Drain))})
			if err := a.Wait(t.Context(), upstream, time.Minute); (err != nil) != (i == maxWaits) {
				t.Errorf("wait %d: %v", i, err)
			}
		}
		time.Sleep(2 * time.Minute)
		if err := a.Wait(t.Context(), waitedFor+"a", time.Minute); err != nil {
			t.Errorf("after the others have ended: %v", err)
		}
	})
}

// A member with a value that makes no sense has not left.
func TestWait_GarbageIsNoLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := storages.New()
		a, b := startMember(t, e, "a"), startMember(t, e, "b")
		b.traffic.set(1, false)
		time.Sleep(15 * time.Second)
		a.drain(t)
		time.Sleep(5 * time.Second)
		b.storage.Fail(errors.New("cut off"))
		e.Put(b.part.memberKey(b.id), "garbage")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if w := a.wait(); w.Done || strings.Join(w.Pending, "; ") != "b: 1 in flight" {
			t.Errorf("at first: %s: %q", w, w.Pending)
		}
		time.Sleep(40 * time.Second)
		synctest.Wait()
		if w := a.wait(); w.Done || len(w.Lost) != 1 {
			t.Errorf("later: %s", w)
		}
	})
}

// A storage that was emptied, or replaced by an empty one, does not say that the others have
// left. If one comes back, it may leave as before.
func TestWait_AnEmptiedStorageIsNoLeave(t *testing.T) {
	storages.Each(t, func(t *testing.T, e *storages.Engine) {
		a, b := startMember(t, e, "a"), startMember(t, e, "b")
		b.traffic.set(1, false)
		time.Sleep(25*time.Second + e.Lag())
		b.storage.Fail(errors.New("cut off"))
		e.Flush()
		time.Sleep(5*time.Second + 3*e.Lag())
		a.drain(t)
		time.Sleep(time.Minute)
		synctest.Wait()
		if w := a.wait(); w.Done || len(w.Lost) != 1 {
			t.Errorf("the other does not come back: %s", w)
		}
		b.storage.Mend()
		b.traffic.set(0, false)
		a.awaitDone(t, 40*time.Second+3*e.Lag())
		b.kill()
		b.part.Stop(context.Background())
		time.Sleep(30*time.Second + 2*e.Lag())
		synctest.Wait()
		if members := a.View("").Members; len(members) != 1 {
			t.Errorf("after the other has left: %+v", members)
		}
	})
}
