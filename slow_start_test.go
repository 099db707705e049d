// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
)

// wantOrigins compares which targets count as past their slow start from the beginning.
func wantOrigins(t *testing.T, when string, want []bool, watches ...*monitor.Monitor) {
	t.Helper()
	got := make([]bool, len(watches))
	for i, w := range watches {
		got[i] = w.Target.Original()
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: past it from the beginning: %v, want %v", when, got, want)
	}
}

// adoptWatches adds a policy to an app that has these watches and no upstreams.
func adoptWatches(a *App, watches ...*monitor.Monitor) {
	s := watching(watches...)
	s.refresh()
	a.adopt(s)
}

// startApp starts an app, and returns what ends it.
func startApp(t *testing.T, a *App) (end func()) {
	t.Helper()
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		a.end()
		a.stop()
		a.keeping.Wait()
		a.keeper.Wait()
	}
}

// TestSlowStart_ColdStartIsOfAPool: those that begin together are past it at once.
// What joins them in a later config is not, in whatever handler, nor what comes back.
func TestSlowStart_ColdStartIsOfAPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newSaying('u')
		check := up.checking()
		a, b := watchOf(t, "a", check), watchOf(t, "b", check)
		first := newTestApp(t)
		adoptWatches(first, a, b)
		defer startApp(t, first)()
		time.Sleep(100 * time.Millisecond)
		wantOrigins(t, "a cold start", []bool{true, true}, a, b)

		time.Sleep(time.Second)
		again := []*monitor.Monitor{watchOf(t, "a", check), watchOf(t, "b", check), watchOf(t, "c", check), watchOf(t, "d", check)}
		other := []*monitor.Monitor{watchOf(t, "d", check), watchOf(t, "e", check)} // d alone is new in both
		apart := []*monitor.Monitor{watchOf(t, "x", check), watchOf(t, "y", check)}
		next := newTestApp(t)
		adoptWatches(next, other...)
		adoptWatches(next, again...)
		adoptWatches(next, apart...)
		defer startApp(t, next)()
		time.Sleep(time.Second)
		wantOrigins(t, "a reload adds two", []bool{true, true, false, false}, again...)
		wantOrigins(t, "one of another new handler joins a running one", []bool{false, true}, other...)
		wantOrigins(t, "a handler of its own", []bool{true, true}, apart...)

		up.says('d')
		time.Sleep(time.Minute)
		up.says('u')
		time.Sleep(time.Minute)
		wantOrigins(t, "all were down", []bool{false, false}, a, b)
	})
}

// TestSlowStart_DynamicPools: what a dynamic source adds to a running pool ramps; an
// answer of which nothing is known does not, whatever other pools there are.
func TestSlowStart_DynamicPools(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80", "d:80", "e:80", "x:80", "y:80")
		p := newDynamicPolicy(t, n, "slow", following(t), slowly(0.1))
		defer p.end(t)
		other := newDynamicPolicy(t, n, "other", following(t), slowly(0.1))
		defer other.end(t)
		begin := func(p *policy, dials ...string) {
			t.Helper()
			p.Select(brought(dials...), get(), nil)
			time.Sleep(200 * time.Millisecond)
		}
		want := func(when string, p *policy, dials []string, weights ...int) {
			t.Helper()
			d := p.dynamic.snapshotOf(brought(dials...))
			if got := inLowestTerms(d.tiers[0].weights); !slices.Equal(got, weights) {
				t.Errorf("%s: weights %v, want %v", when, got, weights)
			}
		}
		pool := []string{"a:80", "b:80"}
		begin(p, pool...)
		want("a cold start", p, pool, 1, 1)
		pool = append(pool, "c:80")
		begin(p, pool...)
		want("one joins", p, pool, 10, 10, 1)
		begin(p, "x:80", "y:80")
		want("a deployment replaces all", p, []string{"x:80", "y:80"}, 1, 1)
		begin(p, "x:80", "d:80")
		want("answers change by one", p, []string{"x:80", "d:80"}, 10, 1)
		// the address that is new comes first, and the one that another policy knows last
		begin(other, "e:80", "a:80")
		want("it joins what another policy knows", other, []string{"e:80", "a:80"}, 1, 10)
	})
}

// TestSlowStart_FloorsKeepTheirShare: however many upstreams there are, and whatever
// their weights, rounding takes or gives no more than an eighth of the least share.
func TestSlowStart_FloorsKeepTheirShare(t *testing.T) {
	for _, tc := range []struct {
		n, weights int // weights from 1 up to that
		floor      float64
	}{
		{1000, 1, 0.05}, {3500, 1, 0.1}, {5000, 1, 0.1}, {10000, 1, 0.05}, {13000, 1, 0.05}, {1000, 10, 0.1}, {1000, 10, 0.05},
	} {
		t.Run(fmt.Sprintf("%d with weights to %d and %g", tc.n, tc.weights, tc.floor), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				old, young := handMade("u1")[0], handMade("u1")[0]
				time.Sleep(time.Minute)
				decide(young.watches[0].Target, false)
				decide(young.watches[0].Target, true)
				members := make([]*member, tc.n)
				var total float64
				for i := range members {
					members[i] = &member{watches: old.watches, weight: 1 + i%tc.weights}
					total += float64(members[i].weight)
				}
				ramping := []int{0, tc.n / 2 / tc.weights * tc.weights} // of weight 1
				for _, i := range ramping {
					members[i].watches = young.watches
					total -= 1 - tc.floor
				}
				began := time.Now()
				tier := new(snapshot).rampedTier(members, func(_ int, m *member) int { return m.weight }, rules{slowStart: 30 * time.Second, floor: tc.floor}, began)
				turns := tier.share(tc.n)
				for _, i := range ramping {
					want := tc.floor / total
					if got := float64(turns[i]) / float64(tier.order.Len()); math.Abs(got-want) > want/8+1e-12 {
						t.Errorf("%d has %d of %d turns, %.2f of its share", i, turns[i], tier.order.Len(), got/want)
					}
				}
				for i, n := range turns {
					if n == 0 {
						t.Fatalf("%d has no turn", i)
					}
				}
			})
		})
	}
}
