// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/probe"
)

// endless is a kind of check that does not notice the end of its context.
type endless time.Duration

func (e endless) Probe(context.Context, probe.Upstream) error {
	time.Sleep(time.Duration(e))
	return nil
}

// However many probes go on after they were cut off, the end of a config and the removal
// of upstreams from it wait a second for all of them together.
func TestStraggler_DelaysTheEndOfAConfigByASecond(t *testing.T) {
	for name, end := range map[string]func(s *Selection, watches []*monitor.Monitor){
		"the end of a config":  func(s *Selection, _ []*monitor.Monitor) { release([]*Selection{s}) },
		"addresses that leave": func(s *Selection, watches []*monitor.Monitor) { s.unwatch(watches) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n = 50
				p := newPolicy(t, "")
				var watches []*monitor.Monitor
				for i := range n {
					w := openWatch(t, fmt.Sprintf("app%d:80", i), checkBy(endless(time.Minute), "endless", newSaying('u').checking().resolved.Settings))
					w.Start(0)
					watches = append(watches, w)
				}
				p.watches = slices.Clone(watches)
				time.Sleep(10 * time.Second)
				synctest.Wait()
				for _, w := range watches {
					if w.Target.Status() != health.Down {
						t.Fatalf("%s is not down although its probe did not end", w.Upstream.Address)
					}
				}
				began := time.Now()
				end(p.Selection, watches)
				if took := time.Since(began); took != time.Second {
					t.Errorf("it took %v, want a second", took)
				}
				if name == "the end of a config" {
					for _, w := range watches {
						if err := w.Release(); err != nil {
							t.Error(err)
						}
					}
				}
				time.Sleep(time.Minute)
			})
		})
	}
}
