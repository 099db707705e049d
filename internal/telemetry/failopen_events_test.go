// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// Whatever happens at the same time, the reports begin with a beginning, alternate, and
// end with the present state. Sources that left do not count.
func TestFailOpen_TellsBeginningsAndEndsInTurn(t *testing.T) {
	for range 200 {
		var f failOpenEvents
		var reported []bool // one goroutine at a time reports, so it needs no lock
		report := func() {
			f.report(func(active bool) {
				time.Sleep(rand.N(20 * time.Microsecond)) // others may overtake
				reported = append(reported, active)
			})
		}
		sources := make([]*source, 4)
		for i := range sources {
			sources[i] = new(source)
			f.join(sources[i])
		}
		var wg sync.WaitGroup
		for i, s := range sources {
			wg.Go(func() {
				for range 5 {
					f.add(s, 1)
					report()
					f.add(s, -1)
					report()
				}
				f.add(s, 1)
				report()
				if i > 0 {
					f.leave(s)
					report()
					f.add(s, 1) // by a request that is late
					report()
				}
			})
		}
		wg.Wait()
		if f.count() != 1 {
			t.Fatalf("%d ignore health, want the one that did not leave", f.count())
		}
		f.leave(sources[0])
		report()
		for i, active := range reported {
			if active != (i%2 == 0) {
				t.Fatalf("reported %v, want beginnings and ends in turn", reported)
			}
		}
		if len(reported)%2 != 0 {
			t.Fatalf("reported %v, want an end as the last one", reported)
		}
	}
}
