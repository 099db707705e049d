// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// TestModes_ProbesFollowTheLastChange: however many goroutines change a mode at the same
// time, the probes pause or not by the last change.
func TestModes_ProbesFollowTheLastChange(t *testing.T) {
	p := newPolicy(t, "uu")
	for i := range 2000 {
		var writers sync.WaitGroup
		for _, m := range []settings.Mode{settings.Maintenance, settings.Ready, settings.Drain} {
			writers.Go(func() { p.set(0, settings.Change{Mode: new(m)}) })
		}
		writers.Wait()
		now := p.registry.Settings.Of(address(0)).ModeNow()
		if paused := p.targets[0].View().Paused; paused != (now == settings.Maintenance) {
			t.Fatalf("round %d: the mode is %s, paused %v", i, now, paused)
		}
	}
}

// TestModes_PicksFollowTheStorage: requests go by what a storage tells, as by what is set
// here.
func TestModes_PicksFollowTheStorage(t *testing.T) {
	p := newPolicy(t, "uu")
	p.registry.Settings.MergeStored(&settings.Setting{Address: address(0), Mode: settings.Drain, Changed: time.Now()})
	if got := testkit.Counts(p.picks(testkit.Get, 10), 2); !slices.Equal(got, []int{0, 10}) {
		t.Errorf("picks %v, want all of them for the one that does not drain", got)
	}
}

// TestForget_NotInAFleet: what one instance of a fleet has not seen for long, another one
// may have.
func TestForget_NotInAFleet(t *testing.T) {
	for every, want := range map[time.Duration]settings.Mode{0: settings.Ready, time.Second: settings.Maintenance} {
		set := settings.NewSet()
		r := newRegistry(t, set)
		r.Store = settings.NewStore(set, &certmagic.FileStorage{Path: t.TempDir()}, "f", every, zap.NewNop())
		set.Change("x:80", settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
		r.forgetSettings("x:80")
		if got := set.Of("x:80").ModeNow(); got != want {
			t.Errorf("sync_interval %v: mode %s, want %s", every, got, want)
		}
	}
}
