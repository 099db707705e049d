// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
)

// With 1,000 targets whose first probes are spread over a second, a request that is held
// is answered as soon as those of its own pool were probed, which begin at once; also if
// it came before the probes were started. All others keep their turn.
func TestHold_FirstProbesOfThePoolRunAtOnce(t *testing.T) {
	for _, early := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const n = 1000
			elsewhere, here := newSaying('u'), newSaying('u')
			var others []*monitor.Monitor
			for i := range n - 3 {
				others = append(others, watchOf(t, fmt.Sprintf("other%d:80", i), elsewhere.checking()))
			}
			p := newPolicy(t, "???", func(s *Selection) {
				for _, m := range s.members {
					w := watchOf(t, m.address, here.checking())
					m.watches = []*monitor.Monitor{w}
					s.watches = append(s.watches, w)
					w.Subscribe(s.refresh)
				}
			})
			many := newPolicy(t, "", func(s *Selection) { s.watches = others })
			start := func() { drive([]*Selection{many.Selection, p.Selection}) }
			if early {
				time.AfterFunc(10*time.Millisecond, start)
			} else {
				start()
			}
			began := time.Now()
			if p.Select(p.upstreams, get(), nil) == nil {
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
			for i, w := range others {
				if got := elsewhere.probes(w.Upstream.Address); len(got) != 1 || got[0]-want != time.Duration(i)*time.Millisecond {
					t.Fatalf("the probes of target %d began at %v", i, got)
				}
			}
			for _, m := range p.members {
				if got := here.probes(m.address); len(got) != 1 {
					t.Errorf("%s was probed at %v, want once", m.address, got)
				}
			}
			time.Sleep(time.Second)
		})
	}
}
