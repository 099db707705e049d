// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// scrapeQueue returns the series of queues, of the histogram those of its count and its sum.
func scrapeQueue(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	all := scrape(t, registry)
	maps.DeleteFunc(all, func(name string, _ float64) bool { return !strings.HasPrefix(name, "queue_") })
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "caddy_alive_queue_seconds" {
			for _, m := range f.Metric {
				pool := "{pool=" + m.Label[0].GetValue() + "}"
				all["queue_seconds_count"+pool] = float64(m.Histogram.GetSampleCount())
				all["queue_seconds_sum"+pool] = m.Histogram.GetSampleSum()
			}
		}
	}
	return all
}

// queueOf are the series of one pool.
func queueOf(pool string, length, waits, sum, full, timeout float64) map[string]float64 {
	return map[string]float64{
		"queue_length{pool=" + pool + "}":                       length,
		"queue_seconds_count{pool=" + pool + "}":                waits,
		"queue_seconds_sum{pool=" + pool + "}":                  sum,
		"queue_refused_total{pool=" + pool + ",reason=full}":    full,
		"queue_refused_total{pool=" + pool + ",reason=timeout}": timeout,
	}
}

// A pool has series of its queue while one of its handlers has one: the requests that wait
// in all of them, those of earlier configs included, and counts that go on across reloads.
func TestCollector_QueueGoesOnAcrossReloads(t *testing.T) {
	registry := register(t)
	p, old := join(t, "shop", nil)
	plain, other := join(t, "plain", nil)
	t.Cleanup(func() { leave(t, plain, other) })
	wantSeries(t, scrapeQueue(t, registry), nil)

	old.queue(1000)
	for range 5 {
		p.CountWaiting()
	}
	wantSeries(t, scrapeQueue(t, registry), queueOf("shop", 5, 0, 0, 0, 0))
	p.ObserveWait(250 * time.Millisecond)
	p.ObserveWait(2 * time.Second)
	p.CountRefused(RefusedTimeout)
	for range 3 {
		p.CountRefused(RefusedFull)
	}
	next, newer := join(t, "shop", nil)
	newer.queue(10)
	next.CountWaiting()
	wantSeries(t, scrapeQueue(t, registry), queueOf("shop", 4, 2, 2.25, 3, 1))
	leave(t, p, old) // its requests wait on
	next.ObserveWait(time.Second)
	wantSeries(t, scrapeQueue(t, registry), queueOf("shop", 3, 3, 3.25, 3, 1))
	p.ObserveWait(time.Second)
	wantSeries(t, scrapeQueue(t, registry), queueOf("shop", 2, 4, 4.25, 3, 1))

	newer.queue(0) // a config without the queue
	wantSeries(t, scrapeQueue(t, registry), nil)
	newer.queue(10)
	p.ObserveWait(time.Second)
	p.ObserveWait(time.Second)
	wantSeries(t, scrapeQueue(t, registry), queueOf("shop", 0, 6, 6.25, 3, 1))
	leave(t, next, newer)
	wantSeries(t, scrapeQueue(t, registry), nil)

	again, last := join(t, "shop", nil)
	last.queue(10)
	wantSeries(t, scrapeQueue(t, registry), queueOf("shop", 0, 0, 0, 0, 0))
	leave(t, again, last)
}

// Pools with queues beside each other are valid for Prometheus, as is a registry that checks
// every series against its description.
func TestCollector_QueuesOfSeveralPools(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	if err := Register(registry, Collector{func() []view.Upstream { return nil }, func() map[string]bool { return map[string]bool{"c": true, "d": false} }}); err != nil {
		t.Fatal(err)
	}
	want := make(map[string]float64)
	for i, name := range []string{"a", "b", "c \xff"} {
		p, s := join(t, name, nil)
		t.Cleanup(func() { leave(t, p, s) })
		s.queue(10)
		for range i + 1 {
			p.CountWaiting()
		}
		p.ObserveWait(time.Second)
		maps.Copy(want, queueOf(p.name, float64(i), 1, 1, 0, 0))
	}
	wantSeries(t, scrapeQueue(t, registry), want)
}

// However many requests the queues of a pool refuse, there is one line a minute, with the
// counts of all handlers. They are counted at once.
func TestTrafficLog_OneLineAMinuteForRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tt := newTrafficTest(t)
		one, two := tt.open(), tt.open()
		for i := range 100 {
			one.Refused(RefusedFull)
			if i%4 == 0 {
				two.Refused(RefusedTimeout)
			}
		}
		if got := tt.pool.queue.refusals(); got[RefusedFull] != 100 || got[RefusedTimeout] != 25 {
			t.Errorf("counted: %v", got)
		}
		tt.want("at once")
		time.Sleep(time.Minute)
		synctest.Wait()
		tt.want("a minute later", "the queue refused requests: 125 in the last minute: 100 full, 25 timeout")
		time.Sleep(time.Hour)
		tt.want("without any")
		two.Refused(RefusedTimeout)
		time.Sleep(10 * time.Second)
		one.Close()
		two.Refused(RefusedTimeout)
		one.Refused(RefusedFull) // counted, but of a handler that has ended
		two.Close()
		tt.want("at the end", "the queue refused requests: 2 in the last 10s: 2 timeout")
		if got := tt.pool.queue.refusals(); got[RefusedFull] != 101 || got[RefusedTimeout] != 27 {
			t.Errorf("counted: %v", got)
		}
	})
}
