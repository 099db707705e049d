// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"
)

// Accusations and ejections go on while a pool has a source, whichever it is. Upstreams that
// no source has are not shown, and are forgotten a while after a source left.
func TestTrafficCounts_GoOnAcrossReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := register(t)
		p, old := join(t, "shop", map[string]uint64{"a": 1, "b": 1})
		p.CountAccusation("a", "connect")
		p.CountAccusation("a", "connect")
		p.CountAccusation("b", "stall")
		p.CountEjection("b")
		want := map[string]float64{
			"selections_total{pool=shop,upstream=a}":                1,
			"selections_total{pool=shop,upstream=b}":                1,
			"accusations_total{cause=connect,pool=shop,upstream=a}": 2,
			"accusations_total{cause=stall,pool=shop,upstream=b}":   1,
			"ejections_total{pool=shop,upstream=a}":                 0,
			"ejections_total{pool=shop,upstream=b}":                 1,
			"held_requests_total{pool=shop}":                        0,
		}
		wantSeries(t, scrape(t, registry), want)

		q, next := join(t, "shop", map[string]uint64{"a": 0})
		leave(t, p, old)
		q.CountAccusation("a", "outcome")
		q.CountEjection("a")
		for _, name := range []string{"selections_total{pool=shop,upstream=b}", "accusations_total{cause=stall,pool=shop,upstream=b}", "ejections_total{pool=shop,upstream=b}"} {
			delete(want, name)
		}
		want["accusations_total{cause=outcome,pool=shop,upstream=a}"] = 1
		want["ejections_total{pool=shop,upstream=a}"] = 1
		wantSeries(t, scrape(t, registry), want)
		time.Sleep(recentFor + time.Second)
		synctest.Wait()
		wantSeries(t, scrape(t, registry), want)
		if all := q.traffic.upstreams(); len(all) != 1 {
			t.Errorf("kept are the counts of %v, want a", all)
		}
		leave(t, q, next)
		wantSeries(t, scrape(t, registry), nil)
	})
}

// While upstreams come and go, no more counts are kept than twice those of upstreams that
// are there, and theirs stay.
func TestTrafficCounts_AreBounded(t *testing.T) {
	const present = 100
	counts := make(map[string]uint64)
	for i := range present {
		counts[fmt.Sprint("stays", i)] = 0
	}
	p, s := join(t, t.Name(), maps.Clone(counts))
	defer leave(t, p, s)
	for upstream := range counts {
		p.CountEjection(upstream)
	}
	for i := range 5000 {
		p.CountAccusation(fmt.Sprint("left", i), "connect")
		if n := len(p.traffic.upstreams()); n > 2*present+1 {
			t.Fatalf("%d counts are kept, want %d at most", n, 2*present+1)
		}
	}
	all := p.traffic.read()
	for upstream := range counts {
		if all[upstream].ejections != 1 {
			t.Errorf("%s has %d ejections, want 1", upstream, all[upstream].ejections)
		}
	}
}
