// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// However many requests are held at once, over how many answers of the source, all of
// them go on as soon as their upstreams have a verdict, while other upstreams of the
// source change all the time.
func TestHold_DynamicUpstreamsWakeAll(t *testing.T) {
	for _, pools := range []int{1, 3, 2 * maxAnswers} { // more than are kept ready
		t.Run(fmt.Sprint(pools), func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				n := newNetwork("a:80", "b:80")
				p := newDynamicPolicy(t, n, "x")
				began := time.Now()
				var waiting sync.WaitGroup
				var slowest atomic.Int64
				for i := range 400 {
					waiting.Go(func() {
						dials := []string{"a:80", "b:80"}
						for other := i % pools; other > 0; other /= 2 { // each its own order and number
							dials = append(dials, dials[other%2])
						}
						p.Select(brought(dials...), testkit.Get(), nil)
						for took := int64(time.Since(began)); ; {
							known := slowest.Load()
							if known >= took || slowest.CompareAndSwap(known, took) {
								break
							}
						}
					})
				}
				for range 50 { // changes of what they do not wait for
					time.Sleep(time.Millisecond)
					p.Refresh()
				}
				waiting.Wait()
				if took := time.Duration(slowest.Load()); took > 200*time.Millisecond {
					t.Errorf("the last request was answered after %s, want 200ms at most", took)
				}
				if left := len(p.handler.Awaited()); left > 0 {
					t.Errorf("%d pools with requests that wait, want none", left)
				}
			})
		})
	}
}

// A request that is held over a dynamic pool ends its wait after the hold, when the
// client leaves, and when the config ends.
func TestHold_OfDynamicUpstreamsEnds(t *testing.T) {
	for _, tc := range []struct {
		rule string
		end  func(p *policy, leave context.CancelFunc)
		want time.Duration
	}{
		{"the hold is over", func(*policy, context.CancelFunc) {}, 2 * time.Second},
		{"the client leaves", func(_ *policy, leave context.CancelFunc) { leave() }, 500 * time.Millisecond},
		{"the config ends", func(p *policy, _ context.CancelFunc) { p.unload() }, 500 * time.Millisecond},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				p := newDynamicPolicy(t, newNetwork(), "x", func(s *setup) {
					s.Checks = []*monitor.Check{silent(health.Settings{Interval: time.Hour, Timeout: time.Minute})}
				})
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				began := time.Now()
				done := make(chan time.Duration)
				go func() {
					r := testkit.Get()
					p.Select(brought("a:80"), r.WithContext(contextOf(r, ctx)), nil)
					done <- time.Since(began)
				}()
				time.Sleep(500 * time.Millisecond)
				tc.end(p, leave)
				if took := <-done; took != tc.want {
					t.Errorf("held for %s, want %s", took, tc.want)
				}
			})
		})
	}
}

// silent returns a check that never has a result.
func silent(settings health.Settings) *monitor.Check {
	return checkBy("silent", "silent", settings, func(ctx context.Context, _ *monitor.Route) error {
		<-ctx.Done()
		return ctx.Err()
	})
}

// contextOf is ctx with the values of a request.
func contextOf(r *http.Request, ctx context.Context) context.Context {
	return valuesOf{ctx, r.Context()}
}

type valuesOf struct {
	context.Context
	values context.Context
}

func (v valuesOf) Value(key any) any { return v.values.Value(key) }

// With 1,000 targets whose first probes are spread over a second, a request that is held
// is answered as soon as those of its own pool were probed, which begin at once, also if
// it came before the probes were started. All others keep their turn.
func TestHold_FirstProbesOfThePoolRunAtOnce(t *testing.T) {
	for _, early := range []bool{false, true} {
		testkit.Bubble(t, func(t *testing.T) {
			const n = 1000
			elsewhere, here := newProber(), newProber()
			var others []string
			for i := range n - 3 {
				others = append(others, fmt.Sprintf("other%d:80", i))
			}
			many := newPolicy(t, "", idle, checking(elsewhere.check(), others...))
			p := newPolicy(t, "", idle, checking(here.check(), "a:80", "b:80", "c:80"))
			start := func() { startAll([]*Balancer{many.Balancer, p.Balancer}) }
			if early {
				time.AfterFunc(10*time.Millisecond, start)
			} else {
				start()
			}
			began := time.Now()
			if p.Select(p.listed, testkit.Get(), nil) == nil {
				t.Error("nothing was picked")
			}
			want := time.Duration(0)
			if early {
				want = 10 * time.Millisecond
			}
			if took := time.Since(began); took != want {
				t.Errorf("requests before the start %v: answered after %v, want %v", early, took, want)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			for i, upstream := range others {
				if got := elsewhere.probes(upstream); len(got) != 1 || got[0]-want != time.Duration(i)*time.Millisecond {
					t.Fatalf("the probes of target %d began at %v", i, got)
				}
			}
			for _, u := range p.listed {
				if got := here.probes(u.Dial); len(got) != 1 {
					t.Errorf("%s was probed at %v, want once", u.Dial, got)
				}
			}
		})
	}
}
