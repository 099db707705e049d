// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// TestHold_EndsAsSoonAsItCan: at a cold start a request waits for the first verdicts, and
// no longer than it has to.
func TestHold_EndsAsSoonAsItCan(t *testing.T) {
	type step struct {
		at       time.Duration
		verdicts string
	}
	for _, tc := range []struct {
		rule     string
		verdicts string
		steps    []step
		want     time.Duration
		oneOf    []int
	}{
		{"all have a verdict", "???", []step{{time.Second, "udd"}}, time.Second, []int{0}},
		{"100 ms after the first pass", "???", []step{{time.Second, "??u"}}, 1100 * time.Millisecond, []int{2}},
		{"a second one in that time takes part", "???", []step{{time.Second, "u??"}, {1050 * time.Millisecond, "?u?"}}, 1100 * time.Millisecond, []int{0, 1}},
		{"until the limit, then those without a verdict", "d??", nil, 2 * time.Second, []int{1, 2}},
		{"all turn out to be down: the last resort", "???", []step{{time.Second, "ddd"}}, time.Second, []int{0, 1, 2}},
		{"one serves: no request waits", "?u?", nil, 0, []int{1}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPolicy(t, tc.verdicts)
				began := time.Now()
				result := p.held(testkit.Get())
				for _, s := range tc.steps {
					time.Sleep(s.at - time.Since(began))
					p.decide(s.verdicts)
				}
				got := slices.Index(p.list, <-result)
				if !slices.Contains(tc.oneOf, got) {
					t.Errorf("picked upstream %d, want one of %v", got, tc.oneOf)
				}
				if waited := time.Since(began).Truncate(time.Millisecond); waited != tc.want {
					t.Errorf("waited %v, want %v", waited, tc.want)
				}
			})
		})
	}
}

// TestHold_RequestsSpread: the requests that were held do not all go to the quickest
// upstream.
func TestHold_RequestsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "????")
		var results []<-chan *reverseproxy.Upstream
		for range 100 {
			results = append(results, p.held(testkit.Get()))
		}
		synctest.Wait()
		p.decide("u???")
		time.Sleep(50 * time.Millisecond)
		p.decide("?u??")
		var picks []int
		for _, r := range results {
			picks = append(picks, slices.Index(p.list, <-r))
		}
		if got, want := testkit.Counts(picks, 4), []int{50, 50, 0, 0}; !slices.Equal(got, want) {
			t.Errorf("held requests went to %v, want %v", got, want)
		}
	})
}

// TestHold_OnceForARequest: a request is held once, and not again at each retry.
func TestHold_OnceForARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "??", retrying)
		began := time.Now()
		p.picks(testkit.Same(), 3)
		if got := time.Since(began); got != 2*time.Second {
			t.Errorf("three tries waited %v, want the hold of 2s once", got)
		}
	})
}

// TestHold_OffMakesNoRequestWait: with a hold of 0 no request waits.
func TestHold_OffMakesNoRequestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "??", func(p *policy) { p.handler.Rules.Hold = 0 })
		began := time.Now()
		if u := p.pick(testkit.Get()); u == nil || time.Since(began) != 0 {
			t.Errorf("picked %v after %v, want any at once", u, time.Since(began))
		}
	})
}

// TestHold_ClientLeaves: a client that leaves while its request is held gets an upstream.
// No upstream would be logged as an error, and retried.
func TestHold_ClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "???")
		r := testkit.Get()
		ctx, leave := context.WithCancel(r.Context())
		began := time.Now()
		result := p.held(r.WithContext(ctx))
		time.Sleep(300 * time.Millisecond)
		leave()
		if u := <-result; u == nil || time.Since(began) != 300*time.Millisecond {
			t.Errorf("picked %v after %v, want any as soon as the client left", u, time.Since(began))
		}
	})
}

// TestHold_ReadsANewSnapshot: a request that has read the snapshot between a change and
// the snapshot that follows it reads that one, too.
func TestHold_ReadsANewSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unfollowed := testkit.NewTarget()
		p := newPolicy(t, "u", func(p *policy) { p.members[0].Checks = append(p.members[0].Checks, Check{Target: unfollowed}) })
		result := p.held(testkit.Get())
		synctest.Wait()
		testkit.Decide(unfollowed, true)
		began := time.Now()
		p.handler.Changed()
		synctest.Wait()
		p.Refresh()
		if u := <-result; u == nil || time.Since(began) != 0 {
			t.Errorf("picked %v after %v, want one at once", u, time.Since(began))
		}
	})
}

// TestHold_ConfigEnds: when the config ends, or the process begins to exit, no request
// waits for verdicts that will not come. Requests in flight still get an upstream that
// was up.
func TestHold_ConfigEnds(t *testing.T) {
	for _, what := range []string{"the config ended", "the process began to exit"} {
		synctest.Test(t, func(t *testing.T) {
			exiting := make(chan struct{})
			p := newPolicy(t, "???", func(p *policy) { p.handler.Exiting = exiting })
			began := time.Now()
			result := p.held(testkit.Get())
			time.Sleep(100 * time.Millisecond)
			if what == "the config ended" {
				p.end()
			} else {
				close(exiting)
			}
			if u := <-result; u == nil || time.Since(began) != 100*time.Millisecond {
				t.Errorf("picked %v after %v, want any as soon as %s", u, time.Since(began), what)
			}
		})
	}
	p := newPolicy(t, "udu")
	p.end()
	p.Close()
	if got, want := testkit.Counts(p.picks(testkit.Get, 100), 3), []int{50, 0, 50}; !slices.Equal(got, want) {
		t.Errorf("picks after Close %v, want %v", got, want)
	}
}

// TestHold_NotWhileADrainingOneServes: at a cold start an upstream that drains serves at
// once, which is better than to wait.
func TestHold_NotWhileADrainingOneServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "u??")
		testkit.SetDraining(p.targets[0], true)
		began := time.Now()
		got := p.picks(testkit.Get, 10)
		if want := slices.Repeat([]int{0}, 10); !slices.Equal(got, want) {
			t.Errorf("picks %v, want %v", got, want)
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("waited %v for those without a verdict", waited)
		}
		p.decide("?u?")
		if got, want := p.picks(testkit.Get, 3), []int{1, 1, 1}; !slices.Equal(got, want) {
			t.Errorf("picks %v after another passed, want %v", got, want)
		}
	})
}
