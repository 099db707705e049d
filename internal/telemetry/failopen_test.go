// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// Whatever happens at once, what is told begins with a beginning, alternates, and ends
// with what holds. What left does not count.
func TestFailOpen_TellsBeginningsAndEndsInTurn(t *testing.T) {
	for range 200 {
		var f failOpenPools
		var told []bool // one goroutine at a time tells, so it needs no lock
		tell := func() {
			f.tell(func(active bool) {
				time.Sleep(rand.N(20 * time.Microsecond)) // others may overtake
				told = append(told, active)
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
					tell()
					f.add(s, -1)
					tell()
				}
				f.add(s, 1)
				tell()
				if i > 0 {
					f.leave(s)
					tell()
					f.add(s, 1) // by a request that is late
					tell()
				}
			})
		}
		wg.Wait()
		if f.count() != 1 {
			t.Fatalf("%d ignore health, want the one that did not leave", f.count())
		}
		f.leave(sources[0])
		tell()
		for i, active := range told {
			if active != (i%2 == 0) {
				t.Fatalf("told %v, want beginnings and ends in turn", told)
			}
		}
		if len(told)%2 != 0 {
			t.Fatalf("told %v, want an end at last", told)
		}
	}
}
