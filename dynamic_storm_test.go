// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Every pick is counted once, also over pools that are dropped while requests use them,
// and that change meanwhile.
func TestSelections_DroppedPoolsCountOnce(t *testing.T) {
	p := newPolicy(t, "")
	members := handMade("u1 u1 u1")
	dials := []string{"a:80", "b:80", "c:80"}
	p.dynamic.mu.Lock()
	for i, dial := range dials {
		members[i].address = dial
		p.dynamic.sightings[dial] = &sighting{member: members[i]}
	}
	p.dynamic.mu.Unlock()
	var over atomic.Bool
	var changing, picking sync.WaitGroup
	changing.Go(func() {
		for !over.Load() {
			p.refresh()
		}
	})
	changing.Go(func() { // no pool stays for long
		for !over.Load() {
			p.dynamic.mu.Lock()
			p.dynamic.pools.Store(new(map[uint64]*dynamicPool))
			p.dynamic.mu.Unlock()
		}
	})
	changing.Go(func() { // what was counted is never taken back
		before := make(map[string]uint64)
		for !over.Load() {
			now := p.selections()
			for upstream, n := range before {
				if now[upstream] < n {
					t.Errorf("%s went from %d to %d", upstream, n, now[upstream])
				}
			}
			before = now
		}
	})
	var got [3]atomic.Uint64
	for range 4 {
		picking.Go(func() {
			for range 2000 {
				pool := brought(dials...)
				rand.Shuffle(len(pool), func(i, j int) { pool[i], pool[j] = pool[j], pool[i] })
				got[slices.Index(dials, p.Select(pool, get(), nil).Dial)].Add(1)
			}
		})
	}
	picking.Wait()
	over.Store(true)
	changing.Wait()
	want := make(map[string]uint64)
	for i, dial := range dials {
		want[dial] = got[i].Load()
	}
	if counted := p.selections(); !maps.Equal(counted, want) {
		t.Errorf("counted %v, picked %v", counted, want)
	}
}

// Every pool begins at a random offset: the first requests of many pools, as with a name
// for each client, do not all go to the first upstream, or all to the second.
func TestDynamicPool_BeginsAtRandom(t *testing.T) {
	p := newPolicy(t, "")
	first := make(map[int]int)
	const pools = 300
	for i := range pools {
		pool := brought(address(3*i), address(3*i+1), address(3*i+2))
		first[slices.Index(pool, p.Select(pool, get(), nil))]++
	}
	for i := range 3 {
		if first[i] < pools/10 {
			t.Errorf("the first picks of %d pools, by position: %v, want about the same for each", pools, first)
		}
	}
}

// Answers that change with each request, upstreams that come and go, scrapes, lists and
// reloads, all at once: no request fails, no pick is lost or counted twice, no counter
// goes back, and no request is left waiting.
func TestCaddyDynamic_Storm(t *testing.T) {
	backends := startBackends(t, "a", "b", "flaps")
	s := newSource(t)
	var brought atomic.Uint64
	s.by(func(*http.Request) ([]string, error) {
		brought.Add(1)
		dials := []string{backends[0].addr, backends[1].addr, backends[2].addr}
		rand.Shuffle(len(dials), func(i, j int) { dials[i], dials[j] = dials[j], dials[i] })
		for range rand.IntN(8) { // more answers than are kept
			dials = append(dials, dials[rand.IntN(3)])
		}
		return dials, nil
	})
	sites := func(version int) string {
		return fmt.Sprintf("http:// {\nheader Version %d\n", version) +
			strings.TrimPrefix(dynamically(s.name(), "check http /healthz {\ninterval 50ms\nfast_interval 20ms\ntimeout 5s\npasses 1\nfails 1\n}"), "http:// {\n")
	}
	c := startOperated(t, "", sites(0))
	client := c.plain()
	clients := startTraffic(t, 8, func() answer {
		a := ask(client, c.url())
		if a.status == 0 { // Caddy may drop a new connection at a reload
			a = ask(client, c.url())
		}
		return a
	})
	var over atomic.Bool
	var observing sync.WaitGroup
	observing.Go(func() {
		down := false
		for !over.Load() {
			if down = !down; down {
				backends[2].set(sick)
			} else {
				backends[2].set(well)
			}
			time.Sleep(70 * time.Millisecond)
		}
	})
	observing.Go(func() {
		before := make(map[string]float64)
		for !over.Load() {
			now, err := c.tryMetrics()
			if err != nil {
				continue // a reload has closed the admin endpoint
			}
			for name, n := range now {
				if strings.HasPrefix(name, "selections_total") && n < before[name] {
					t.Errorf("%s went from %v to %v", name, before[name], n)
				}
			}
			before = now
			_ = overview(filter{})
		}
	})
	probing := c.plain()
	for version := 1; version <= 5; version++ {
		c.reloadInTraffic(sites(version), version, probing, clients)
	}
	clients.stop()
	over.Store(true)
	observing.Wait()
	if err := clients.err(); err != nil {
		t.Errorf("of %d requests: %v", clients.answered(), err)
	}
	var counted uint64
	for name, n := range c.metrics() {
		if strings.HasPrefix(name, "selections_total") {
			counted += uint64(n)
		}
	}
	if want := brought.Load(); counted != want {
		t.Errorf("%d picks counted, want %d", counted, want)
	}
	if left := s.selection.Load().dynamic.waiters.pools(); len(left) > 0 {
		t.Errorf("%d pools with requests that wait, want none", len(left))
	}
}
