// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
)

// However many requests are held at once, over how many answers of the source, all of
// them go on as soon as their upstreams have a verdict, while other upstreams of the
// source change all the time.
func TestHold_DynamicUpstreamsWakeAll(t *testing.T) {
	for _, pools := range []int{1, 3, 2 * maxAnswers} { // more than are kept ready
		t.Run(fmt.Sprint(pools), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
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
						p.Select(brought(dials...), get(), nil)
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
			bubble(t, func(t *testing.T) {
				p := newDynamicPolicy(t, newNetwork(), "x", func(s *setup) {
					s.Checks = []*monitor.Check{silent(health.Settings{Interval: time.Hour, Timeout: time.Minute})}
				})
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				began := time.Now()
				done := make(chan time.Duration)
				go func() {
					r := get()
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
