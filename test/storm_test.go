// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// Answers that change with each request, upstreams that come and go, scrapes, lists and
// reloads, all at once: no request fails, no pick is lost or counted twice, no counter
// goes back, and no request is left waiting.
func TestCaddyDynamic_Storm(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "flaps")
	s := testkit.NewSource(t)
	var brought atomic.Uint64
	s.Answer(func(*http.Request) ([]string, error) {
		brought.Add(1)
		dials := []string{backends[0].Addr, backends[1].Addr, backends[2].Addr}
		rand.Shuffle(len(dials), func(i, j int) { dials[i], dials[j] = dials[j], dials[i] })
		for range rand.IntN(8) { // more answers than are kept
			dials = append(dials, dials[rand.IntN(3)])
		}
		return dials, nil
	})
	sites := func(version int) string {
		return fmt.Sprintf("http:// {\nheader Version %d\n", version) +
			strings.TrimPrefix(testkit.DynamicSite(s.Name(), "check http /healthz {\ninterval 50ms\nfast_interval 20ms\ntimeout 5s\npasses 1\nfails 1\n}"), "http:// {\n")
	}
	c := testkit.StartCaddyWith(t, "", sites(0))
	client := c.Client()
	clients := testkit.StartTraffic(t, 8, func() testkit.Answer {
		a := testkit.Ask(client, c.URL())
		if a.Status == 0 { // Caddy may drop a new connection at a reload
			a = testkit.Ask(client, c.URL())
		}
		return a
	})
	var over atomic.Bool
	var observing sync.WaitGroup
	observing.Go(func() {
		down := false
		for !over.Load() {
			if down = !down; down {
				backends[2].Set(testkit.Sick)
			} else {
				backends[2].Set(testkit.Well)
			}
			time.Sleep(70 * time.Millisecond)
		}
	})
	observing.Go(func() {
		before := make(map[string]float64)
		for !over.Load() {
			now, err := c.TryMetrics()
			if err != nil {
				continue // a reload has closed the admin endpoint
			}
			for name, n := range now {
				if strings.HasPrefix(name, "selections_total") && n < before[name] {
					t.Errorf("%s went from %v to %v", name, before[name], n)
				}
			}
			before = now
			_, _ = c.TryList(nil)
		}
	})
	probing := c.Client()
	for version := 1; version <= 5; version++ {
		c.ReloadInTraffic(sites(version), version, probing, clients)
	}
	clients.Stop()
	over.Store(true)
	observing.Wait()
	if err := clients.Err(); err != nil {
		t.Errorf("of %d requests: %v", clients.Answered(), err)
	}
	var counted uint64
	for name, n := range c.Metrics() {
		if strings.HasPrefix(name, "selections_total") {
			counted += uint64(n)
		}
	}
	if want := brought.Load(); counted != want {
		t.Errorf("%d picks counted, want %d", counted, want)
	}
}
