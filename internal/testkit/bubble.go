// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"testing"
	"testing/synctest"

	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// Bubble runs a test in virtual time, and checks that it leaves nothing behind.
func Bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
	WantNothingShared(t)
}

// WantNothingShared checks that no config has left anything behind.
func WantNothingShared(t *testing.T) {
	t.Helper()
	for name, entries := range map[string]interface {
		Range(f func(key, value any) bool)
	}{
		"targets": shared.Targets, "watch lists": shared.WatchLists, "limits of warnings": shared.WarningLimits,
		"witnesses": shared.Witnesses, "slots": shared.Slots, "counters of checks": shared.CheckCounters, "counters of pools": shared.PoolCounters,
		"dynamic sources": shared.Sources,
	} {
		entries.Range(func(key, _ any) bool {
			t.Errorf("%s: %v is left", name, key)
			return true
		})
	}
}
