// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// open opens an address that only this test has.
func open(t *testing.T, name string) *Address {
	t.Helper()
	a, err := Open(t.Name()+name, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(1); err != nil {
			t.Error(err)
		}
		if _, known := shared.Slots.References(a.dial); known {
			t.Errorf("%s is still shared", a.dial)
		}
	})
	return a
}

// got returns the address that a waiter was given, nil if none was.
func got(w *Waiter) *Address {
	select {
	case a := <-w.Given():
		return a
	default:
		return nil
	}
}

// Each compares with its own limit, and all count together.
func TestAddress_LimitsAreOfEach(t *testing.T) {
	a := open(t, "a")
	for _, step := range []struct {
		limit int
		want  bool
	}{{1, true}, {1, false}, {3, true}, {2, false}, {3, true}, {3, false}} {
		if got := a.Take(step.limit); got != step.want {
			t.Fatalf("a limit of %d with %d in use: got %v", step.limit, a.InUse(), got)
		}
	}
	for range 3 {
		a.Free()
	}
	if a.InUse() != 0 {
		t.Errorf("%d in use after all were freed", a.InUse())
	}
}

// Under any concurrency no more than the limit have a slot.
func TestAddress_LimitIsExact(t *testing.T) {
	a := open(t, "a")
	const limit = 4
	var most, now atomic.Int64
	var running sync.WaitGroup
	for range 64 {
		running.Go(func() {
			for range 2000 {
				w := NewWaiter()
				if !a.Take(limit) {
					w.Wait(NewSet(map[*Address]int{a: limit}))
					<-w.Given()
				}
				most.Store(max(most.Load(), now.Add(1)))
				now.Add(-1)
				a.Free()
			}
		})
	}
	running.Wait()
	if most.Load() > limit || a.InUse() != 0 {
		t.Errorf("%d had a slot at once, %d have one in the end", most.Load(), a.InUse())
	}
}

// Those that wait get slots in the order in which they came, whatever they wait for.
func TestWaiter_OrderIsThatOfArrival(t *testing.T) {
	a, b := open(t, "a"), open(t, "b")
	a.Take(1)
	b.Take(1)
	both, onlyA, onlyB := NewSet(map[*Address]int{a: 1, b: 1}), NewSet(map[*Address]int{a: 1}), NewSet(map[*Address]int{b: 1})
	var waiters []*Waiter
	for _, set := range []*Set{onlyB, both, onlyA, both} {
		w := NewWaiter()
		w.Wait(set)
		waiters = append(waiters, w)
	}
	for _, step := range []struct {
		freed *Address
		first int // the waiter that gets it
	}{{a, 1}, {a, 2}, {b, 0}, {b, 3}} {
		step.freed.Free()
		for i, w := range waiters {
			if given := got(w); (given != nil) != (i == step.first) {
				t.Fatalf("freed %s: waiter %d got %v", step.freed.dial, i, given)
			}
		}
	}
	a.Free()
	b.Free()
}

// A waiter with a larger limit does not wait for one whose limit is reached.
func TestWaiter_LimitsAreOfEach(t *testing.T) {
	a := open(t, "a")
	a.Take(1)
	small, large := NewWaiter(), NewWaiter()
	small.Wait(NewSet(map[*Address]int{a: 1}))
	large.Wait(NewSet(map[*Address]int{a: 2}))
	if got(small) != nil || got(large) != a {
		t.Error("the one with the larger limit got nothing")
	}
	a.Free()
	if got(small) != nil {
		t.Error("one is in use, and the smaller limit is 1")
	}
	a.Free()
	if got(small) != a {
		t.Error("the one with the smaller limit got nothing")
	}
	a.Free()
}

// An arrival takes a free slot only if no waiter can use it.
func TestAddress_ArrivalsDoNotOvertake(t *testing.T) {
	a := open(t, "a")
	a.Take(1)
	w := NewWaiter()
	w.Wait(NewSet(map[*Address]int{a: 1}))
	a.inUse.Add(-1) // as between the two steps of Free
	if a.Take(1) {
		t.Error("an arrival took the slot of a waiter")
	}
	if got(w) != a {
		t.Error("the waiter got nothing")
	}
	other := NewWaiter()
	other.Wait(NewSet(map[*Address]int{a: 1}))
	if !a.Take(2) {
		t.Error("an arrival with a larger limit has to wait for a waiter that cannot use the slot")
	}
	a.Free()
	if got(other) != nil || other.Leave() != nil {
		t.Error("the other waiter got a slot beyond its limit")
	}
	a.Free()
}

// A slot that was given to one that leaves goes on to the next.
func TestWaiter_LeaveReturnsWhatWasGiven(t *testing.T) {
	a := open(t, "a")
	a.Take(1)
	set := NewSet(map[*Address]int{a: 1})
	first, second := NewWaiter(), NewWaiter()
	first.Wait(set)
	second.Wait(set)
	a.Free()
	given := first.Leave()
	if given != a || got(second) != nil {
		t.Fatalf("the first was given %v", given)
	}
	given.Free()
	if got(second) != a {
		t.Error("the second got nothing")
	}
	a.Free()
	if first.Leave() != nil || waits.count.Load() != 0 || len(a.sets) != 0 {
		t.Error("something still waits")
	}
}

// Waiters of a set that moves keep their order, and get at once what is free in the new one.
func TestMove_KeepsTheOrder(t *testing.T) {
	a, b := open(t, "a"), open(t, "b")
	a.Take(1)
	from, to := NewSet(map[*Address]int{a: 1}), NewSet(map[*Address]int{a: 1, b: 2})
	var waiters []*Waiter
	for range 5 {
		w := NewWaiter()
		w.Wait(from)
		waiters = append(waiters, w)
	}
	Move(from, to)
	Move(from, to) // nothing waits there any more
	for i, w := range waiters {
		if given := got(w); (given == b) != (i < 2) {
			t.Errorf("waiter %d got %v", i, given)
		}
	}
	waiters[3].Wait(to) // it does already
	waiters[2].Wait(from)
	a.Free()
	if got(waiters[2]) != a {
		t.Error("the one that came first got nothing from the set to which it went")
	}
	for _, w := range waiters[3:] {
		w.Leave()
	}
	a.Free()
	b.Free()
	b.Free()
}

// The counts of an address outlive its last user while requests have slots there.
func TestClose_LeavesTheCountsToRequests(t *testing.T) {
	before := open(t, "a")
	before.Take(1)
	dial := before.dial
	again := func() *Address {
		a, err := Open(dial, 1)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	second := again()
	if err := second.Close(1); err != nil {
		t.Fatal(err)
	}
	if third := again(); third != before {
		t.Error("a further user got counts of its own")
	}
	if err := before.Close(1); err != nil {
		t.Fatal(err)
	}
	if n, _ := shared.Slots.References(dial); n != 3 {
		t.Errorf("%d references while a request has a slot, want 3", n)
	}
	before.Free()
	if n, _ := shared.Slots.References(dial); n != 1 {
		t.Errorf("%d references after the last request, want 1", n)
	}
}

// Whatever requests wait for, however they leave and whatever moves: none waits for ever, which
// would be a deadlock of the bubble, and none gets a slot beyond its limit.
func TestWaiter_NoneIsForgotten(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		addresses := []*Address{open(t, "a"), open(t, "b"), open(t, "c")}
		a, b, c := addresses[0], addresses[1], addresses[2]
		kinds := []map[*Address]int{{a: 1}, {a: 3}, {b: 2, c: 2}, {a: 2, b: 1, c: 2}}
		var sets [4]atomic.Pointer[Set]
		for i, limits := range kinds {
			sets[i].Store(NewSet(limits))
		}
		var served, left atomic.Int64
		ask := func(random *rand.Rand) {
			kind := random.IntN(len(kinds))
			got := takeAny(kinds[kind])
			if got == nil {
				w := NewWaiter()
				w.Wait(sets[kind].Load())
				var leaves <-chan time.Time // nil: it stays until it has its turn
				if random.IntN(2) > 0 {
					leaves = time.After(time.Duration(random.IntN(20)) * time.Millisecond)
				}
				select {
				case got = <-w.Given():
				case <-leaves:
					got = w.Leave()
				}
			}
			if got == nil {
				left.Add(1)
				return
			}
			if n := got.InUse(); n > 3 || got != a && n > 2 {
				t.Errorf("%s has %d in use", got.dial, n)
			}
			time.Sleep(time.Duration(random.IntN(3)) * time.Millisecond)
			served.Add(1)
			got.Free()
		}
		for round := range 50 {
			var asking sync.WaitGroup
			for i := range 50 {
				asking.Go(func() { ask(rand.New(rand.NewPCG(uint64(round), uint64(i)))) })
			}
			for i := range kinds {
				to := NewSet(kinds[i])
				Move(sets[i].Swap(to), to)
				time.Sleep(time.Millisecond)
			}
			asking.Wait() // nothing arrives that could wake those that are left
		}
		t.Logf("%d were served, %d left", served.Load(), left.Load())
		if served.Load() == 0 || left.Load() == 0 {
			t.Error("nothing was tested")
		}
		for _, a := range addresses {
			if a.InUse() != 0 || len(a.sets) != 0 {
				t.Errorf("%s: %d in use, %d sets in the end", a.dial, a.InUse(), len(a.sets))
			}
		}
		if n := waits.count.Load(); n != 0 {
			t.Errorf("%d wait in the end", n)
		}
	})
}

// takeAny takes a free slot, and returns nil if there is none.
func takeAny(limits map[*Address]int) *Address {
	for a, limit := range limits {
		if a.Take(limit) {
			return a
		}
	}
	return nil
}

// BenchmarkAddress_TakeAndFree is what a limit costs a request while nothing waits.
func BenchmarkAddress_TakeAndFree(b *testing.B) {
	a, err := Open(b.Name(), 1)
	if err != nil {
		b.Fatal(err)
	}
	defer a.Close(1)
	b.ReportAllocs()
	for b.Loop() {
		if !a.Take(4) {
			b.Fatal("full")
		}
		a.Free()
	}
}

// BenchmarkWaiter_HandOver is what a slot costs while some wait.
func BenchmarkWaiter_HandOver(b *testing.B) {
	for _, waiting := range []int{1, 1000, 100000} {
		b.Run(fmt.Sprint(waiting), func(b *testing.B) {
			a, err := Open(b.Name(), 1)
			if err != nil {
				b.Fatal(err)
			}
			defer a.Close(1)
			a.Take(1)
			set := NewSet(map[*Address]int{a: 1})
			var waiters []*Waiter
			for range waiting {
				w := NewWaiter()
				w.Wait(set)
				waiters = append(waiters, w)
			}
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				a.Free()
				w := waiters[n%waiting]
				<-w.Given()
				next := NewWaiter()
				next.Wait(set)
				waiters[n%waiting] = next
			}
			for _, w := range waiters {
				w.Leave()
			}
			a.Free()
		})
	}
}

// The largest limit is that of those that have the address open, each as often as it was
// opened.
func TestLargest_IsOfThoseThatAreOpen(t *testing.T) {
	a := open(t, "a") // with 1
	for _, limit := range []int{3, 5, 3} {
		if _, err := Open(a.dial, limit); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct{ closed, want int }{{5, 3}, {3, 3}, {3, 1}} {
		if err := a.Close(step.closed); err != nil {
			t.Fatal(err)
		}
		if got := a.Largest(); got != step.want {
			t.Errorf("after %d was closed: got %d, want %d", step.closed, got, step.want)
		}
	}
}
