// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// eventful is a running app whose events go to a list.
type eventful struct {
	*App
	got  *[]string
	end  func() // ends its context
	runs sync.WaitGroup
}

// startEventful runs an app; its queue starts if that is wanted.
func startEventful(t *testing.T, got *[]string, started bool, gate chan struct{}) *eventful {
	t.Helper()
	var mu sync.Mutex
	ctx, end := context.WithCancel(t.Context())
	a := &eventful{got: got, end: end, App: &App{events: &announcer{logger: zap.NewNop(), wake: make(chan struct{}, 1)}}}
	a.events.emit = func(name string, _ map[string]any) {
		if gate != nil {
			<-gate
		}
		mu.Lock()
		defer mu.Unlock()
		*got = append(*got, name)
	}
	context.AfterFunc(ctx, a.events.end)
	if started {
		a.runs.Go(func() { a.events.run(ctx) })
	}
	running.Lock()
	running.apps = append(running.apps, a.App)
	running.Unlock()
	t.Cleanup(func() {
		a.leave()
		a.end()
		a.runs.Wait()
	})
	return a
}

// leave takes the app out of those that run, as at its stop.
func (a *eventful) leave() {
	running.Lock()
	defer running.Unlock()
	running.apps = slices.DeleteFunc(running.apps, func(other *App) bool { return other == a.App })
}

// What was handed to a config that never starts goes back to the one that runs on.
func TestEvents_OfAConfigThatNeverStartsGoBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		old := startEventful(t, &got, true, nil)
		failing := startEventful(t, &got, false, nil)
		failing.events.push("1", nil)
		failing.events.push("2", nil)
		synctest.Wait()
		if len(got) > 0 {
			t.Errorf("before it starts: %v", got)
		}
		failing.leave()
		failing.end()
		synctest.Wait()
		failing.events.push("3", nil) // of a probe that was in flight
		old.events.push("4", nil)
		synctest.Wait()
		if want := []string{"1", "2", "3", "4"}; !slices.Equal(got, want) {
			t.Errorf("told %v, want %v", got, want)
		}
	})
}

// A config that has ended, but not left yet, is no heir; and without any heir a push
// returns.
func TestEvents_AreNotHandedToOneThatEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		old := startEventful(t, &got, true, nil)
		ended := startEventful(t, &got, false, nil)
		last := startEventful(t, &got, false, nil)
		last.events.push("1", nil)
		ended.end()
		synctest.Wait()
		last.end()
		synctest.Wait()
		last.events.push("2", nil)
		ended.events.push("3", nil)
		synctest.Wait()
		if want := []string{"1", "2", "3"}; !slices.Equal(got, want) {
			t.Errorf("told %v, want %v", got, want)
		}
		old.end()
		synctest.Wait()
		old.events.push("4", nil)
		ended.events.push("5", nil)
		synctest.Wait()
		if len(got) != 3 {
			t.Errorf("told %v after all ended", got)
		}
	})
}

// What is pushed while a config ends is told once and in order, however it meets the end.
func TestEvents_PushedAtTheEndAreToldOnceAndInOrder(t *testing.T) {
	for range 300 {
		synctest.Test(t, func(t *testing.T) {
			var got []string
			gate := make(chan struct{})
			old := startEventful(t, new([]string), true, gate)
			old.events.push("blocks", nil)
			synctest.Wait()
			startEventful(t, &got, true, nil)
			var want []string
			for i := range 50 {
				want = append(want, fmt.Sprint(i))
			}
			var pushing sync.WaitGroup
			pushing.Go(func() {
				for i, name := range want {
					if i == 25 {
						go old.end()
					}
					old.events.push(name, nil)
				}
			})
			pushing.Wait()
			synctest.Wait()
			if !slices.Equal(got, want) {
				t.Errorf("told %v", got)
			}
			close(gate)
		})
		if t.Failed() {
			return
		}
	}
}

// An event that is pushed while a long queue is handed on does not overtake what waits.
func TestEvents_PushedAtTheEndDoNotOvertake(t *testing.T) {
	const waiting = maxEvents - 10
	for range 200 {
		old := startEventful(t, new([]string), false, nil)
		heir := startEventful(t, new([]string), false, nil)
		var want []string
		for i := range waiting {
			want = append(want, fmt.Sprint(i))
			old.events.push(want[i], nil)
		}
		queued := func() int {
			heir.events.mu.Lock()
			defer heir.events.mu.Unlock()
			return len(heir.events.queue)
		}
		var ending sync.WaitGroup
		ending.Go(old.events.end)
		for queued() == 0 {
			runtime.Gosched()
		}
		for i := range 5 {
			want = append(want, fmt.Sprint("late ", i))
			old.events.push(want[len(want)-1], nil)
		}
		ending.Wait()
		var got []string
		for _, e := range heir.events.queue {
			got = append(got, e.name)
		}
		old.leave()
		heir.leave()
		if !slices.Equal(got, want) {
			t.Fatalf("%d events, want %d; the last are %v", len(got), len(want), got[max(0, len(got)-8):])
		}
	}
}

// The last config does not wait for a handler that blocks, and says what is dropped.
func TestEvents_TheLastConfigEndsWithoutWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		gate := make(chan struct{})
		a := startEventful(t, new([]string), true, gate)
		a.events.logger = zap.New(core)
		for range 3 {
			a.events.push("x", nil)
		}
		synctest.Wait()
		a.end()
		synctest.Wait()
		if got := logs.All(); len(got) != 1 || got[0].ContextMap()["waiting"] != int64(2) {
			t.Errorf("logged %v", got)
		}
		close(gate)
	})
}

// failingApp is an app of Caddy that does not start.
type failingApp struct{}

// provisioned are the apps of this project beside a failingApp.
var provisioned struct {
	sync.Mutex
	apps []*App
}

func init() {
	caddy.RegisterModule(failingApp{})
	httpcaddyfile.RegisterGlobalOption("alive_test_fails", func(d *caddyfile.Dispenser, _ any) (any, error) {
		d.Next()
		return httpcaddyfile.App{Name: "alive_test_fails", Value: []byte("{}")}, nil
	})
}

func (failingApp) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "alive_test_fails", New: func() caddy.Module { return new(failingApp) }}
}

func (failingApp) Provision(ctx caddy.Context) error {
	app, err := ctx.App("alive")
	if err != nil {
		return err
	}
	provisioned.Lock()
	defer provisioned.Unlock()
	provisioned.apps = append(provisioned.apps, app.(*App))
	return nil
}

func (failingApp) Start() error { return errors.New("it does not start") }
func (failingApp) Stop() error  { return nil }

// The queue of a config that never starts ends with it, so that what is in it goes back.
func TestCaddyEvents_QueueOfAConfigThatFailsEnds(t *testing.T) {
	b := testkit.StartBackend(t, "b", nil)
	sites := fmt.Sprintf(testkit.ShopSite, b.Addr)
	c := testkit.StartCaddyWith(t, "", sites)
	c.Global = "alive_test_fails"
	if err := c.TryLoad(sites); err == nil || !strings.Contains(err.Error(), "it does not start") {
		t.Fatalf("loaded: %v", err)
	}
	provisioned.Lock()
	defer provisioned.Unlock()
	if len(provisioned.apps) != 1 || provisioned.apps[0] == newestApp() {
		t.Fatalf("apps %v", provisioned.apps)
	}
	testkit.Eventually(t, testkit.Patience, "its queue has ended", provisioned.apps[0].events.hasEnded)
	if newestApp().events.hasEnded() {
		t.Error("that of the running config has ended")
	}
	provisioned.apps = nil
}
