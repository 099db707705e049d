// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// configs are the queues of the running configs of a test, the newest last.
type configs struct {
	mu     sync.Mutex // guards what follows
	queues []*Queue
}

func (c *configs) running() []*Queue {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.queues)
}

// config is a running config whose events go to a list.
type config struct {
	*Queue
	all    *configs
	cancel func() // ends its context
	runs   sync.WaitGroup
}

// start runs a config, and its queue if started is set. Its handler waits for the gate.
func (c *configs) start(t *testing.T, got *[]string, started bool, gate chan struct{}) *config {
	t.Helper()
	var mu sync.Mutex
	ctx, cancel := context.WithCancel(t.Context())
	q := NewQueue(zap.NewNop(), func(name string, _ map[string]any) {
		if gate != nil {
			<-gate
		}
		mu.Lock()
		defer mu.Unlock()
		*got = append(*got, name)
	}, c.running)
	one := &config{Queue: q, all: c, cancel: cancel}
	context.AfterFunc(ctx, q.End)
	if started {
		one.runs.Go(func() { q.Run(ctx) })
	}
	c.mu.Lock()
	c.queues = append(c.queues, q)
	c.mu.Unlock()
	t.Cleanup(func() {
		one.leave()
		one.cancel()
		one.runs.Wait()
	})
	return one
}

// leave removes the config from the running ones, as its stop does.
func (c *config) leave() {
	c.all.mu.Lock()
	defer c.all.mu.Unlock()
	c.all.queues = slices.DeleteFunc(c.all.queues, func(other *Queue) bool { return other == c.Queue })
}

// Events that were handed to a config that never starts go back to the one that still
// runs.
func TestEvents_OfAConfigThatNeverStartsGoBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all configs
		var got []string
		old := all.start(t, &got, true, nil)
		failing := all.start(t, &got, false, nil)
		failing.Emit("1", nil)
		failing.Emit("2", nil)
		synctest.Wait()
		if len(got) > 0 {
			t.Errorf("before it starts: %v", got)
		}
		failing.leave()
		failing.cancel()
		synctest.Wait()
		failing.Emit("3", nil) // of a probe that was in flight
		old.Emit("4", nil)
		synctest.Wait()
		if want := []string{"1", "2", "3", "4"}; !slices.Equal(got, want) {
			t.Errorf("emitted %v, want %v", got, want)
		}
	})
}

// A config that has ended, but has not left yet, is no successor. Without a successor,
// events are dropped.
func TestEvents_NotHandedToOneThatEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all configs
		var got []string
		old := all.start(t, &got, true, nil)
		ended := all.start(t, &got, false, nil)
		last := all.start(t, &got, false, nil)
		last.Emit("1", nil)
		ended.cancel()
		synctest.Wait()
		last.cancel()
		synctest.Wait()
		last.Emit("2", nil)
		ended.Emit("3", nil)
		synctest.Wait()
		if want := []string{"1", "2", "3"}; !slices.Equal(got, want) {
			t.Errorf("emitted %v, want %v", got, want)
		}
		old.cancel()
		synctest.Wait()
		old.Emit("4", nil)
		ended.Emit("5", nil)
		synctest.Wait()
		if len(got) != 3 {
			t.Errorf("emitted %v after all ended", got)
		}
	})
}

// Events that are emitted while a config ends are passed on once and in order, whatever
// the timing.
func TestEvents_EmittedAtTheEndAreToldOnceAndInOrder(t *testing.T) {
	for range 300 {
		synctest.Test(t, func(t *testing.T) {
			var all configs
			var got []string
			gate := make(chan struct{})
			old := all.start(t, new([]string), true, gate)
			old.Emit("blocks", nil)
			synctest.Wait()
			all.start(t, &got, true, nil)
			var want []string
			for i := range 50 {
				want = append(want, fmt.Sprint(i))
			}
			var emitting sync.WaitGroup
			emitting.Go(func() {
				for i, name := range want {
					if i == 25 {
						go old.cancel()
					}
					old.Emit(name, nil)
				}
			})
			emitting.Wait()
			synctest.Wait()
			if !slices.Equal(got, want) {
				t.Errorf("emitted %v", got)
			}
			close(gate)
		})
		if t.Failed() {
			return
		}
	}
}

// An event that is emitted while a long queue is handed on does not overtake the
// waiting ones.
func TestEvents_EmittedAtTheEndDoNotOvertake(t *testing.T) {
	const waiting = maxEvents - 10
	for range 200 {
		var all configs
		old := all.start(t, new([]string), false, nil)
		successor := all.start(t, new([]string), false, nil)
		var want []string
		for i := range waiting {
			want = append(want, fmt.Sprint(i))
			old.Emit(want[i], nil)
		}
		queued := func() int {
			successor.mu.Lock()
			defer successor.mu.Unlock()
			return len(successor.queue)
		}
		var ending sync.WaitGroup
		ending.Go(old.End)
		for queued() == 0 {
			runtime.Gosched()
		}
		for i := range 5 {
			want = append(want, fmt.Sprint("late ", i))
			old.Emit(want[len(want)-1], nil)
		}
		ending.Wait()
		var got []string
		for _, e := range successor.queue {
			got = append(got, e.Name)
		}
		old.leave()
		successor.leave()
		if !slices.Equal(got, want) {
			t.Fatalf("%d events, want %d; the last are %v", len(got), len(want), got[max(0, len(got)-8):])
		}
	}
}

// The last config does not wait for a handler that blocks, and logs that events are
// dropped.
func TestEvents_TheLastConfigEndsWithoutWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all configs
		core, logs := observer.New(zap.WarnLevel)
		gate := make(chan struct{})
		a := all.start(t, new([]string), true, gate)
		a.logger = zap.New(core)
		for range 3 {
			a.Emit("x", nil)
		}
		synctest.Wait()
		a.cancel()
		synctest.Wait()
		if got := logs.All(); len(got) != 1 || got[0].ContextMap()["waiting"] != int64(2) {
			t.Errorf("logged %v", got)
		}
		close(gate)
	})
}
