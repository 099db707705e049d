// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// virtually waits on the clock of a synctest bubble.
func virtually(d time.Duration) { <-time.After(d) }

// What an earlier config watched is forgotten, too, when the pool has been idle
// for an hour, if no request came at all since the reload.
func TestCaddyDynamicForgetsWhatItResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "")
		d := p.dynamic
		d.list.add("10.9.9.9:80") // by the earlier config
		d.resume()
		d.list.remove("10.9.9.9:80")
		virtually(2 * idleFor)
		if got := d.list.addresses(); len(got) > 0 {
			t.Errorf("watched after %s without a request: got %v, want nothing", 2*idleFor, got)
		}
		p.unload()
		d.close()
	})
}

// What an earlier config watched is forgotten only when requests have seen the
// pool without it for five minutes, be the first of them late.
func TestCaddyDynamicKeepsWhatItResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "")
		d := p.dynamic
		d.list.add("10.9.9.9:80") // by the earlier config
		d.resume()
		d.list.remove("10.9.9.9:80")
		virtually(40 * time.Minute) // less than an hour
		p.Select(brought("10.0.0.1:80"), get(), nil)
		virtually(2 * sweepInterval)
		if got, want := d.list.addresses(), []string{"10.0.0.1:80", "10.9.9.9:80"}; !slices.Equal(got, want) {
			t.Errorf("watched a minute after the first request without one: got %v, want %v", got, want)
		}
		p.unload()
		d.close()
	})
}

// BenchmarkDynamicPick puts the policy beside Caddy's round_robin over pools
// that are new values for every pick. Only their ratio means anything.
func BenchmarkDynamicPick(b *testing.B) {
	const values = 64 // of one answer
	for _, size := range []int{10, 100, 1000} {
		for _, answers := range []int{1, 8, 2 * maxPools} {
			var pools []reverseproxy.UpstreamPool
			for i := range values {
				var dials []string
				for j := range size {
					dials = append(dials, address(i%answers*7+j))
				}
				pools = append(pools, brought(dials...))
			}
			for _, policy := range []struct {
				name string
				reverseproxy.Selector
			}{
				{"alive", newPolicy(b, "").Selection},
				{"round_robin", new(reverseproxy.RoundRobinSelection)},
			} {
				b.Run(fmt.Sprintf("%d/%d_pools/%s", size, answers, policy.name), func(b *testing.B) {
					r := get()
					for _, pool := range pools { // as they are after the first requests
						policy.Select(pool, r, nil)
					}
					b.ReportAllocs()
					i := 0
					for b.Loop() {
						i++
						if policy.Select(pools[i%values], r, nil) == nil {
							b.Fatal("nil")
						}
					}
				})
			}
		}
	}
}
