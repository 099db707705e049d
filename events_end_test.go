// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"slices"
	"testing"

	"go.uber.org/zap"

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
