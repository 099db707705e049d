// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// While a handler blocks, so many events wait and no more, with one warning. When it
// goes on they go out in order, and so do later ones; a handler that blocks for good
// keeps nobody waiting, and the next outage is a warning again.
func TestEventsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		gate := make(chan struct{})
		var got []string
		a := &announcer{logger: zap.New(core), wake: make(chan struct{}, 1), emit: func(name string, _ map[string]any) {
			<-gate
			got = append(got, name)
		}}
		ctx, stop := context.WithCancel(t.Context())
		context.AfterFunc(ctx, a.end)
		var running sync.WaitGroup
		running.Go(func() { a.run(ctx) })

		var want []string
		push := func(names ...string) {
			for _, name := range names {
				a.push(name, nil)
			}
			synctest.Wait()
		}
		many := func(prefix string, n int) (names []string) {
			for i := range n {
				names = append(names, fmt.Sprintf("%s%d", prefix, i))
			}
			return names
		}
		for outage, prefix := range []string{"a", "b"} {
			push(prefix)
			push(many(prefix, 2*maxEvents)...)
			if n := logs.Len(); n != outage+1 {
				t.Errorf("outage %d: %d warnings", outage, n)
			}
			want = append(append(want, prefix), many(prefix, maxEvents)...)
			close(gate)
			synctest.Wait()
			gate = make(chan struct{})
			if !slices.Equal(got, want) {
				t.Fatalf("outage %d: %d events went out, want %d", outage, len(got), len(want))
			}
		}
		push("last")
		stop()
		push("too late")
		close(gate)
		running.Wait()
		if want = append(want, "last"); !slices.Equal(got, want) {
			t.Errorf("%d events went out, want %d", len(got), len(want))
		}
	})
}

// One that only begins to drain has not flipped.
func TestDrainingIsNoEvent(t *testing.T) {
	a := &announcer{logger: zap.NewNop(), wake: make(chan struct{}, 1)}
	a.flipped("a:80", "http /", health.Transition{From: health.Up, To: health.Up})
	if len(a.queue) > 0 {
		t.Errorf("events: %v", a.queue)
	}
}

// Handlers of one pool tell once that it ignores health, and once that it does no
// longer: when the last of them does, or ends.
func TestFailOpenOfSeveralHandlers(t *testing.T) {
	app := newTestApp(t)
	app.events = &announcer{logger: zap.NewNop(), wake: make(chan struct{}, 1)}
	running.Lock()
	running.apps = append(running.apps, app)
	running.Unlock()
	t.Cleanup(func() {
		running.Lock()
		defer running.Unlock()
		running.apps = slices.DeleteFunc(running.apps, func(a *App) bool { return a == app })
	})
	join := func(s *Selection) {
		s.app, s.pool = app, t.Name()
		if err := s.joinPool(); err != nil {
			t.Fatal(err)
		}
	}
	one, two := newPolicy(t, "uu", join), newPolicy(t, "uu", join)
	for _, step := range []struct {
		what string
		then func() error
		want []bool
	}{
		{"one begins", func() error { one.decide("dd"); return nil }, []bool{true}},
		{"the other, too", func() error { two.decide("dd"); return nil }, nil},
		{"one does no longer", func() error { one.decide("u?"); return nil }, nil},
		{"the other ends with the config before", func() error { two.app = new(App); return two.leavePool() }, []bool{false}},
		{"one begins again", func() error { one.decide("d?"); return nil }, []bool{true}},
		{"one does no longer again", func() error { one.decide("u?"); return nil }, []bool{false}},
		{"one ends", one.leavePool, nil},
	} {
		if err := step.then(); err != nil {
			t.Fatal(err)
		}
		var got []bool
		for _, e := range app.events.queue {
			got = append(got, e.data["active"].(bool))
		}
		app.events.queue = nil
		if !slices.Equal(got, step.want) {
			t.Errorf("%s: told %v, want %v", step.what, got, step.want)
		}
	}
}

// What a config could not tell before it ended, the next one does, in order.
func TestEventsAreHandedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		next := &App{events: &announcer{logger: zap.NewNop(), wake: make(chan struct{}, 1), emit: func(name string, _ map[string]any) { got = append(got, name) }}}
		gate := make(chan struct{})
		a := &announcer{logger: zap.NewNop(), wake: make(chan struct{}, 1), emit: func(name string, _ map[string]any) {
			<-gate
			got = append(got, name)
		}}
		ctx, stop := context.WithCancel(t.Context())
		var runs sync.WaitGroup
		context.AfterFunc(ctx, a.end)
		runs.Go(func() { a.run(ctx) })
		later, end := context.WithCancel(t.Context())
		runs.Go(func() { next.events.run(later) })
		for i := range 3 {
			a.push(fmt.Sprint(i), nil)
		}
		synctest.Wait()
		running.Lock()
		running.apps = append(running.apps, next)
		running.Unlock()
		stop()
		synctest.Wait()
		a.push("3", nil) // of a probe that was in flight
		synctest.Wait()
		running.Lock()
		running.apps = slices.DeleteFunc(running.apps, func(a *App) bool { return a == next })
		running.Unlock()
		if want := []string{"1", "2", "3"}; !slices.Equal(got, want) {
			t.Errorf("told %v while a handler blocks, want %v", got, want)
		}
		close(gate)
		end()
		runs.Wait()
	})
}
