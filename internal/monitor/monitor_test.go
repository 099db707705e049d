// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A start with many targets is no burst: their first probes are a millisecond apart, or
// spread over the interval if that is shorter. A target that two handlers share counts
// once, and one that runs already is not probed again.
func TestStartAll_SpreadsFirstProbes(t *testing.T) {
	for _, tc := range []struct {
		rule     string
		n        int
		interval time.Duration
		apart    time.Duration
	}{
		{"one", 1, 5 * time.Second, time.Millisecond},
		{"a thousand", 1000, 5 * time.Second, time.Millisecond},
		{"a thousand in a short interval", 1000, 500 * time.Millisecond, 500 * time.Microsecond},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				address := func(i int) string { return fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1) }
				p := newProber('u')
				check := p.check()
				check.Settings.Interval, check.Settings.FastInterval = tc.interval, min(time.Second, tc.interval)
				var handlers [2][]*Monitor
				for i := range tc.n {
					for h := range handlers {
						handlers[h] = append(handlers[h], open(t, address(i), check))
					}
				}
				runs := open(t, address(tc.n), check)
				runs.Start(0)
				synctest.Wait()

				all := slices.Concat(handlers[0], []*Monitor{runs}, handlers[1])
				StartAll(all)
				time.Sleep(tc.interval - time.Nanosecond)
				synctest.Wait()
				StopAll(all)
				for i := range tc.n + 1 {
					want := []time.Duration{time.Duration(i) * tc.apart}
					if i == tc.n {
						want[0] = 0
					}
					if got := p.probes(address(i)); !slices.Equal(got, want) {
						t.Fatalf("target %d: first probes at %v, want %v", i, got, want)
					}
				}
			})
		})
	}
}
