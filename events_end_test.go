// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/caddy-alive/caddy-alive/internal/telemetry"
)

// startEventful has an app run whose events wait in its queue.
func startEventful(t *testing.T) *App {
	t.Helper()
	a := newTestApp(t)
	a.events = telemetry.NewQueue(zap.NewNop(), nil, runningQueues)
	running.Lock()
	running.apps = append(running.apps, a)
	running.Unlock()
	t.Cleanup(func() {
		running.Lock()
		defer running.Unlock()
		running.apps = slices.DeleteFunc(running.apps, func(other *App) bool { return other == a })
	})
	return a
}

// takeFailOpen takes the events that wait, and returns what those of fail-open say.
func takeFailOpen(q *telemetry.Queue) (active []bool) {
	for e, ok := q.Next(); ok; e, ok = q.Next() {
		if e.Name == "fail_open" {
			active = append(active, e.Data["active"].(bool))
		}
	}
	return active
}

// A pool that ignores health leaves with its config: the one that runs on tells so. At
// the end of the last config nothing is told, since the pool did not recover, and a stop
// does not warn of an event that was dropped.
func TestEvents_FailOpenAtTheEndOfAConfig(t *testing.T) {
	for _, replaced := range []bool{false, true} {
		last := startEventful(t)
		s := &Selection{app: last, pool: t.Name()}
		if err := s.joinPool(); err != nil {
			t.Fatal(err)
		}
		s.tellFailOpen(fine, lastResort)
		if got := takeFailOpen(last.events); !slices.Equal(got, []bool{true}) {
			t.Errorf("replaced %t: told %v, want that it began", replaced, got)
		}
		newest, want := last, []bool(nil)
		if replaced {
			newest, want = startEventful(t), []bool{false}
		}
		if err := s.leavePool(); err != nil {
			t.Error(err)
		}
		if got := takeFailOpen(newest.events); !slices.Equal(got, want) {
			t.Errorf("replaced %t: told %v at the end, want %v", replaced, got, want)
		}
	}
}

// The handlers of one pool tell once that it ignores health, and once that it no longer
// does: when the last of them no longer does, or ends.
func TestFailOpenEvents_OfSeveralHandlers(t *testing.T) {
	app := startEventful(t)
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
		if got := takeFailOpen(app.events); !slices.Equal(got, step.want) {
			t.Errorf("%s: told %v, want %v", step.what, got, step.want)
		}
	}
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
	b := startBackend(t, "b", nil)
	sites := fmt.Sprintf(operated, b.addr)
	c := startOperated(t, "", sites)
	c.global = "alive_test_fails"
	if err := c.tryLoad(sites); err == nil || !strings.Contains(err.Error(), "it does not start") {
		t.Fatalf("loaded: %v", err)
	}
	provisioned.Lock()
	defer provisioned.Unlock()
	if len(provisioned.apps) != 1 || provisioned.apps[0] == newestApp() {
		t.Fatalf("apps %v", provisioned.apps)
	}
	eventually(t, patience, "its queue has ended", provisioned.apps[0].events.Ended)
	if newestApp().events.Ended() {
		t.Error("that of the running config has ended")
	}
	provisioned.apps = nil
}
