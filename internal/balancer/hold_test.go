// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/probe"
)

// A request that is held over a dynamic pool sees a verdict also when it comes while
// another request makes a snapshot of that pool.
func TestHold_DynamicPoolLosesNoVerdict(t *testing.T) {
	for _, which := range []int{0, 1} {
		t.Run(fmt.Sprintf("verdict %d", which+1), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				n := newNetwork("a:80", "b:80") // verdicts after 100 and after 101 ms
				p := newDynamicPolicy(t, n, "x")
				defer p.end(t)
				began := time.Now()
				var waiting sync.WaitGroup
				for range 20 {
					waiting.Go(func() { p.Select(brought("a:80", "b:80"), get(), nil) })
				}
				time.Sleep(99500*time.Microsecond + time.Duration(which)*monitor.FirstProbeSpacing)
				synctest.Wait()
				pool := p.dynamic.find(brought("a:80", "b:80"))
				pool.making.Lock() // as a request does that makes a snapshot
				time.Sleep(500 * time.Microsecond)
				for pool.members[which].status() == health.Unknown {
					runtime.Gosched()
				}
				for range 1000 { // those that wait look meanwhile
					runtime.Gosched()
				}
				pool.making.Unlock()
				waiting.Wait()
				if took := time.Since(began); took > 110*time.Millisecond {
					t.Errorf("the last of them was answered after %s, want 101ms", took)
				}
			})
		})
	}
}

// However many requests are held at once, over how many answers of the source, all of
// them go on as soon as their upstreams have a verdict, while other upstreams of the
// source change all the time.
func TestHold_DynamicPoolsWakeAll(t *testing.T) {
	for _, pools := range []int{1, 3, 2 * maxPools} { // more than are kept ready
		t.Run(fmt.Sprint(pools), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				n := newNetwork("a:80", "b:80")
				p := newDynamicPolicy(t, n, "x")
				defer p.end(t)
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
					p.refresh()
				}
				waiting.Wait()
				if took := time.Duration(slowest.Load()); took > 200*time.Millisecond {
					t.Errorf("the last request was answered after %s, want 200ms at most", took)
				}
				if left := len(p.dynamic.waiters.pools()); left > 0 {
					t.Errorf("%d pools with requests that wait, want none", left)
				}
			})
		})
	}
}

// A request that is held over a dynamic pool ends its wait after the hold, when the
// client leaves, and when the config ends.
func TestHold_DynamicPoolEnds(t *testing.T) {
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
				n := newNetwork()
				p := newDynamicPolicy(t, n, "x", func(s *Selection) { s.hold = 2 * time.Second })
				defer p.end(t)
				p.Checks[0].prober, p.Checks[0].resolved.Settings.Timeout = silent{}, time.Minute
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

// silent is a kind of check that never has a result.
type silent struct{}

func (silent) Probe(ctx context.Context, _ probe.Upstream) error {
	<-ctx.Done()
	return ctx.Err()
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

// A pick that begins after a verdict was told goes by it, and not by a snapshot that
// another request began before; where that one has no upstream, it waits for the new one.
func TestDynamicPool_NoUpstreamIsNeverOld(t *testing.T) {
	p := newPolicy(t, "", func(s *Selection) { s.rules.failOpen.never, s.hold = true, 0 })
	target := handMade("d1")[0]
	p.dynamic.mu.Lock()
	p.dynamic.sightings["a:80"] = &sighting{member: target}
	p.dynamic.mu.Unlock()
	target.watches[0].Subscribe(p.refresh)
	if u := p.Select(brought("a:80"), get(), nil); u != nil {
		t.Fatalf("%s serves, want none", u.Dial)
	}
	pool := p.dynamic.find(brought("a:80"))
	pool.making.Lock() // as a request does that makes a snapshot
	decide(target.watches[0].Target, true)
	picked := make(chan *reverseproxy.Upstream)
	go func() { picked <- p.Select(brought("a:80"), get(), nil) }()
	select {
	case u := <-picked:
		t.Errorf("got %v before the new snapshot was made", u)
		pool.making.Unlock()
	case <-time.After(50 * time.Millisecond):
		pool.making.Unlock()
		if u := <-picked; u == nil {
			t.Error("nil while one serves")
		}
	}
}
