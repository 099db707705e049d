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
	for name, end := range map[string]func(s *Selection, watches []*watch){
		"the end of a config":  func(s *Selection, _ []*watch) { release([]*Selection{s}) },
		"addresses that leave": func(s *Selection, watches []*watch) { s.unwatch(watches) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n = 50
				p := newPolicy(t, "")
				var watches []*watch
				for i := range n {
					check := newSaying('u').checking()
					check.prober = endless(time.Minute)
					w, err := newWatch(check, routeFor(fmt.Sprintf("app%d:80", i)), p.logger, nil)
					if err != nil {
						t.Fatal(err)
					}
					w.attach(0)
					watches = append(watches, w)
				}
				p.watches = slices.Clone(watches)
				time.Sleep(10 * time.Second)
				synctest.Wait()
				for _, w := range watches {
					if w.target.Status() != health.Down {
						t.Fatalf("%s is not down although its probe did not end", w.to.up.Address)
					}
				}
				began := time.Now()
				end(p.Selection, watches)
				if took := time.Since(began); took != time.Second {
					t.Errorf("it took %v, want a second", took)
				}
				if name == "the end of a config" {
					for _, w := range watches {
						if err := w.forget(); err != nil {
							t.Error(err)
						}
					}
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

// routeFor is a route that is only an address.
func routeFor(upstream string) *route {
	to := &route{key: routeKey{upstream: upstream}}
	to.up.Address = upstream
	return to
}
