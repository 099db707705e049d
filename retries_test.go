// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
)

// TestRetries_LeastRecentlyFailedFirst: those that are down are tried after all that
// serve, the one whose checks failed the longest ago first, backups too; never one in
// maintenance, of weight 0, drained or full.
func TestRetries_LeastRecentlyFailedFirst(t *testing.T) {
	for _, tc := range []struct {
		rule      string
		configure func(*Selection)
		want      []int
	}{
		{"fail_open none_up", func(*Selection) {}, []int{0, 3, 1, 2, 0, 3, 1, 2}},
		{"fail_open off", func(s *Selection) { s.rules.failOpen.never = true }, []int{0, 0, 0, 0, 0, 0, 0, 0}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPolicy(t, "uuuuuuuu", following(t), retrying, tc.configure, withWeights(1, 1, -1, 1, 0, 1, 1, 1))
				for _, i := range []int{4, 5, 6, 7, 3, 1, 2} { // in this order
					p.decide("????????"[:i] + "d")
					time.Sleep(time.Second)
				}
				p.set(5, settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
				p.set(6, settings.Change{Mode: new(settings.Mode(settings.Drain))})
				p.upstreams[7].MaxRequests = 1
				setRequests(p.upstreams[7], 1)
				if got := p.picks(same(), 8); !slices.Equal(got, tc.want) {
					t.Errorf("one request tried %v, want %v", got, tc.want)
				}
			})
		})
	}
}

// TestRetries_HeldUnhealthyByCaddyIsTriedAtLast: what does not serve by Caddy's own
// health is like what is down; an open circuit breaker is never bypassed.
func TestRetries_HeldUnhealthyByCaddyIsTriedAtLast(t *testing.T) {
	b := new(breaker)
	p := newPolicy(t, "uuu", retrying, func(s *Selection) { s.proxy.CB = b })
	setHealthy(p.upstreams[1], false)
	got := p.picks(same(), 3)
	slices.Sort(got[:2])
	if want := []int{0, 2, 1}; !slices.Equal(got, want) {
		t.Errorf("one request tried %v, want %v", got, want)
	}
	b.open.Store(true) // of which these upstreams do not know
	if got := p.picks(same(), 6); slices.Contains(got, 1) {
		t.Errorf("one request tried %v with the breaker open, want those that serve", got)
	}
}

// TestRetries_AFullOneThatServesKeepsTheDownOnesOut: it was not tried, so not all that
// serve were.
func TestRetries_AFullOneThatServesKeepsTheDownOnesOut(t *testing.T) {
	p := newPolicy(t, "uud", retrying)
	p.upstreams[1].MaxRequests = 1
	setRequests(p.upstreams[1], 1)
	r := same()
	if got, want := p.picks(r, 3), []int{0, 0, 0}; !slices.Equal(got, want) {
		t.Errorf("one request tried %v, want %v", got, want)
	}
	setRequests(p.upstreams[1], 0)
	if got, want := p.picks(r, 2), []int{1, 2}; !slices.Equal(got, want) {
		t.Errorf("when a slot was free it tried %v, want %v", got, want)
	}
}

// TestRetries_TheDownOnesAreProbedAtOnce when the last one that serves has failed a
// request, and not before: also before draining ones have their turn, and where health
// is never ignored.
func TestRetries_TheDownOnesAreProbedAtOnce(t *testing.T) {
	for _, tc := range []struct {
		rule      string
		verdicts  string
		draining  int // position, -1 for none
		configure func(*Selection)
		probed    [4]int // by how many picks of one request
	}{
		{"two serve", "uudd", -1, func(*Selection) {}, [4]int{0, 0, 2, 2}},
		{"one serves", "uddd", -1, func(*Selection) {}, [4]int{0, 3, 3, 3}},
		{"one serves, and another drains", "uudd", 1, func(*Selection) {}, [4]int{0, 2, 2, 2}},
		{"fail_open off", "uudd", -1, func(s *Selection) { s.rules.failOpen.never = true }, [4]int{0, 0, 2, 2}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPolicy(t, tc.verdicts, retrying, tc.configure)
				if tc.draining >= 0 {
					refuse(p.targets[tc.draining], true)
				}
				probed := make([]int, len(p.targets))
				for i, target := range p.targets {
					draining := i == tc.draining
					defer target.Attach(health.Driver{Probe: func(context.Context, bool) (bool, error) {
						probed[i]++
						if tc.verdicts[i] == 'd' {
							return false, http.ErrServerClosed
						}
						return draining, nil
					}}, 0)()
				}
				time.Sleep(time.Hour / 2) // so that none is put off
				clear(probed)
				r := same()
				for n, want := range tc.probed {
					p.picks(r, 1)
					synctest.Wait()
					down := 0
					for i, count := range probed {
						if tc.verdicts[i] == 'd' {
							down += count
						}
					}
					if down != want {
						t.Errorf("after %d picks: %d probes of those that are down, want %d", n+1, down, want)
					}
				}
			})
		})
	}
}

// TestRetries_ProbesAtOnceAreBounded: of thousands that are down, a request has a few
// probed, another request others.
func TestRetries_ProbesAtOnceAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 100
		verdicts := make([]byte, n)
		for i := range verdicts {
			verdicts[i] = 'd'
		}
		verdicts[0] = 'u'
		p := newPolicy(t, string(verdicts), retrying)
		var mu sync.Mutex // guards probed
		probed := make(map[int]bool)
		for i, target := range p.targets[1:] {
			defer target.Attach(health.Driver{Probe: func(context.Context, bool) (bool, error) {
				mu.Lock()
				defer mu.Unlock()
				probed[i] = true
				return false, http.ErrServerClosed
			}}, time.Hour)()
		}
		time.Sleep(time.Hour / 2) // so that none is put off
		for request := range 3 {
			p.picks(same(), 2)
			time.Sleep(time.Second)
			mu.Lock()
			got := len(probed)
			mu.Unlock()
			if want := (request + 1) * maxProbedDown; got != want {
				t.Errorf("after %d requests %d are probed, want %d", request+1, got, want)
			}
		}
	})
}

// TestRetries_OverDynamicPoolsAskTheDown: the same where the values are new for every
// try.
func TestRetries_OverDynamicPoolsAskTheDown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80")
		p := newDynamicPolicy(t, n, "retries", following(t), retrying)
		defer p.end(t)
		p.served(1, "a:80", "b:80", "c:80")
		time.Sleep(time.Second)
		r := get()
		var got []string
		for range 3 {
			got = append(got, p.Select(brought("a:80", "b:80", "c:80"), r, nil).Dial)
		}
		slices.Sort(got[:2])
		if want := []string{"a:80", "b:80", "c:80"}; !slices.Equal(got, want) {
			t.Errorf("tried %v, want the one that is down at last", got)
		}
	})
}
