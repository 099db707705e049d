// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit/storages"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// sharer is a member that shares its probes.
type sharer struct {
	traffic
	fleet   *Fleet
	set     *settings.Set
	storage *storages.Client
	targets []Target
	probes  atomic.Int64
	notUp   []view.NotUp
}

func (s *sharer) Targets() []Target { return s.targets }

func (s *sharer) NotUp() []view.NotUp { return s.notUp }

const sharedInterval = 5 * time.Second

// newSharer returns a member with so many targets, which are probed until the test ends.
func newSharer(t *testing.T, e *storages.Engine, targets int) *sharer {
	s := &sharer{fleet: New(), set: settings.NewSet(), storage: e.Client()}
	for i := range targets {
		target := health.NewTarget(health.Settings{
			Interval: sharedInterval, FastInterval: time.Second, DownInterval: sharedInterval, Timeout: time.Second, Passes: 1, Fails: 2,
		})
		detach := target.Attach(health.Driver{Probe: func(context.Context, bool) (bool, error) {
			s.probes.Add(1)
			return false, nil
		}}, 0)
		t.Cleanup(func() { detach() })
		s.targets = append(s.targets, Target{Upstream: fmt.Sprintf("app%d:80", i), Check: "tcp", Target: target})
	}
	return s
}

// start starts a config of the member. To call end ends it.
func (s *sharer) start(t *testing.T, probers int) (end func()) {
	ctx, stop := context.WithCancel(t.Context())
	store := settings.NewStore(s.set, s.storage, "alive/fleets/shop", time.Second, zap.NewNop())
	part := s.fleet.Join(store, Config{Fleet: "shop", Member: s.fleet.id, Probers: probers, Every: time.Second, Local: s, Set: s.set, Logger: zap.NewNop()})
	store.Sync(ctx, true)
	part.Start(ctx)
	var running sync.WaitGroup
	running.Go(func() { store.Run(ctx) })
	return sync.OnceFunc(func() {
		stop()
		running.Wait()
		part.Stop(context.Background())
		store.Wait()
	})
}

// probesIn returns how many probes the member makes in some time.
func (s *sharer) probesIn(d time.Duration) int64 {
	before := s.probes.Load()
	time.Sleep(d)
	synctest.Wait()
	return s.probes.Load() - before
}

// A reload that switches probers off makes the member probe all at their intervals again, and
// so does the end of its part in the fleet.
func TestProbers_OffByAReload(t *testing.T) {
	const targets = 20
	for name, reload := range map[string]func(t *testing.T, s *sharer, end func()){
		"off": func(t *testing.T, s *sharer, end func()) {
			t.Cleanup(s.start(t, 0))
			end()
		},
		"the end": func(_ *testing.T, _ *sharer, end func()) { end() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := storages.New()
				a, b := newSharer(t, e, targets), newSharer(t, e, targets)
				end := a.start(t, 1)
				defer end()
				defer b.start(t, 1)()
				time.Sleep(time.Minute)
				if n, all := a.probesIn(time.Minute), int64(targets*time.Minute/sharedInterval); n >= all {
					t.Fatalf("%d probes of %d while probes are shared", n, all)
				}
				reload(t, a, end)
				time.Sleep(2 * sharedInterval)
				if n, all := a.probesIn(time.Minute), int64(targets*time.Minute/sharedInterval); n < all-targets {
					t.Errorf("%d probes of %d after the reload", n, all)
				}
			})
		})
	}
}

// A config with probers that starts and then fails leaves the one before as it was, and what
// that one has is told again.
func TestProbers_FailedReloadLeavesNothing(t *testing.T) {
	const targets = 20
	synctest.Test(t, func(t *testing.T) {
		e := storages.New()
		a, b := newSharer(t, e, targets), newSharer(t, e, targets)
		defer a.start(t, 0)()
		defer b.start(t, 1)()
		time.Sleep(time.Minute)
		fails := a.start(t, 1)
		time.Sleep(time.Minute)
		if n, all := a.probesIn(time.Minute), int64(targets*time.Minute/sharedInterval); n >= all {
			t.Fatalf("%d probes of %d while probes are shared", n, all)
		}
		fails()
		time.Sleep(2 * sharedInterval)
		if n, all := a.probesIn(time.Minute), int64(targets*time.Minute/sharedInterval); n < all-targets {
			t.Errorf("%d probes of %d after the reload failed", n, all)
		}
	})
}

// What a look decided is taken back if the member has stopped meanwhile.
func TestProbers_LateThinningIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSharer(t, storages.New(), 1)
		time.Sleep(sharedInterval)
		s.fleet.thin([]thinned{{s.targets[0], 10}}) // it is among no factors any more
		time.Sleep(time.Second)
		if n := s.probesIn(time.Minute); n < 11 {
			t.Errorf("%d probes in a minute", n)
		}
	})
}
