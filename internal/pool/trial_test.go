// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// TestTrial_OfABackupWaits: an ejected backup gets no trial while a primary serves, and does
// not keep requests from the fast path.
func TestTrial_OfABackupWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccusable(t, "uuuu", withWeights(1, 1, -1, -1))
		a.eject(t, 2)
		time.Sleep(time.Until(a.members[2].Ejection()) + time.Second)
		synctest.Wait()
		if got := testkit.Counts(a.picks(testkit.Get, 20), 4); got[2] != 0 {
			t.Errorf("picks %v while primaries serve", got)
		}
		if !a.Current().Fast() {
			t.Error("the fast path is off")
		}
		a.accuse(0, witness.Failure{Cause: witness.Connect})
		a.accuse(1, witness.Failure{Cause: witness.Connect})
		if got := testkit.Counts(a.picks(testkit.Get, 20), 4); got[2] != 1 || got[3] != 19 {
			t.Errorf("picks %v while backups serve, want one trial", got)
		}
	})
}

// TestEjected_ComeAfterThoseThatDrain: also if they drain, too.
func TestEjected_ComeAfterThoseThatDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccusable(t, "uuu")
		a.eject(t, 0)
		a.setMode(0, settings.Drain)
		a.setMode(1, settings.Drain)
		a.setMode(2, settings.Maintenance)
		if got := testkit.Counts(a.picks(testkit.Get, 20), 3); got[1] != 20 {
			t.Errorf("picks %v, want only the one that would serve otherwise", got)
		}
		a.setMode(1, settings.Maintenance)
		if got := testkit.Counts(a.picks(testkit.Get, 20), 3); got[0] != 20 {
			t.Errorf("picks %v, want the ejected one", got)
		}
	})
}

// TestMayEject_TheShareItself: as much as the share may go, whatever the share.
func TestMayEject_TheShareItself(t *testing.T) {
	s := &Snapshot{tiers: tiers{up: make([][]int, 1)}}
	for range 10 {
		s.members = append(s.members, &Member{})
		s.up[0] = append(s.up[0], 1)
	}
	for n := 1; n < 10; n++ {
		s.up[0][0] = 1
		if !s.MayEject(s.members[0], float64(n)/10) {
			t.Errorf("one of ten may not go with a share of %d0%%", n)
		}
		s.members[0].Weight = n
		s.up[0] = append([]int{n}, s.up[0][1:11-n]...)
		if !s.MayEject(s.members[0], float64(n)/10) {
			t.Errorf("a weight of %d of 10 may not go with a share of %d0%%", n, n)
		}
		for len(s.up[0]) < 10 {
			s.up[0] = append(s.up[0], 1)
		}
	}
}
