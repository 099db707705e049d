// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// TestTried_TakesBackAfterStartingOver: a request that has tried all, and begins anew, still
// takes back what it counted elsewhere.
func TestTried_TakesBackAfterStartingOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccusable(t, "uu", retrying)
		for range 5 {
			r := testkit.Get()
			for range 3 {
				u := a.pickFirst(r)
				i := 0
				if u == a.list[1] {
					i = 1
				}
				var trip witness.Trip
				trip.Begin(a.members[i].Witness)
				trip.Wait()
				c := trip.Fail(witness.Failure{Cause: witness.Outcome, Answered: true})
				remember(r).Add(u, true, c)
				synctest.Wait()
				time.Sleep(40 * time.Second) // no common trouble
			}
		}
		for i, m := range a.members {
			if !m.Ejection().IsZero() {
				t.Errorf("%d is ejected", i)
			}
		}
	})
}
