// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"fmt"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// BenchmarkDynamicPick puts the policy beside Caddy's round_robin over pools
// that are new values for every pick. Only their ratio means anything.
func BenchmarkDynamicPick(b *testing.B) {
	const values = 64 // of one answer
	for _, size := range []int{10, 100, 1000} {
		for _, answers := range []int{1, 8, 2 * maxAnswers} {
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
				{"alive", newPolicy(b, "")},
				{"round_robin", new(reverseproxy.RoundRobinSelection)},
			} {
				b.Run(fmt.Sprintf("%d/%d_pools/%s", size, answers, policy.name), func(b *testing.B) {
					r := testkit.Get()
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
