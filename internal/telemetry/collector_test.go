// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// scrape returns what Prometheus is shown, as lines without the common prefix.
func scrape(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, fmt.Sprintf("%s=%s", l.GetName(), l.GetValue()))
			}
			name := strings.TrimPrefix(f.GetName(), "caddy_alive_") + "{" + strings.Join(labels, ",") + "}"
			switch {
			case m.Counter != nil:
				all[name] = m.Counter.GetValue()
			case m.Gauge != nil:
				all[name] = m.Gauge.GetValue()
			}
		}
	}
	return all
}

// register returns the registry of a config that has these rows.
func register(t *testing.T, rows ...view.Upstream) *prometheus.Registry {
	t.Helper()
	registry := prometheus.NewRegistry()
	for range 2 { // the second time is no error
		if err := Register(registry, Collector{func() []view.Upstream { return rows }, func() map[string]bool { return nil }}); err != nil {
			t.Fatal(err)
		}
	}
	return registry
}

// wantSeries checks all that Prometheus is shown, apart from histograms.
func wantSeries(t *testing.T, got, want map[string]float64) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if value, there := want[name]; !there {
			t.Errorf("%s is %v, want none", name, got[name])
		} else if got[name] != value {
			t.Errorf("%s is %v, want %v", name, got[name], value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if _, there := got[name]; !there {
			t.Errorf("%s is missing, want %v", name, want[name])
		}
	}
}

// states are the gauges of a pool in which all are in the states given.
func states(pool string, failOpen float64, counts map[string]float64) map[string]float64 {
	all := map[string]float64{"pool_fail_open{pool=" + pool + "}": failOpen}
	for _, state := range []string{"up", "suspect", "ejected", "down", "unknown", "draining", "maintenance"} {
		all["pool_upstreams{pool="+pool+",state="+state+"}"] = counts[state]
	}
	return all
}

// Gauges are made of the rows: the worst of several checks with one label counts, and
// what is stale, in maintenance or in no pool has no status.
func TestCollector_GaugesFollowTheRows(t *testing.T) {
	check := func(status string) []view.Check { return []view.Check{{Check: "tcp", Status: status}} }
	registry := register(t,
		view.Upstream{Pool: "one", Upstream: "a", Status: "up", Mode: "ready", Checks: check("up")},
		view.Upstream{Pool: "one", Upstream: "b", Status: "down", Mode: "ready", Checks: check("down"), FailOpen: true},
		view.Upstream{Pool: "one", Upstream: "c", Status: "up", Mode: "maintenance", Checks: check("up")},
		view.Upstream{Pool: "one", Upstream: "d", Status: "up", Mode: "drain", Checks: check("up")},
		view.Upstream{Pool: "one", Upstream: "e", Status: "down", Mode: "ready", Checks: check("down"), Stale: true},
		view.Upstream{Pool: "one", Upstream: "h", Status: "up", Mode: "ready", Suspect: true},
		view.Upstream{Pool: "one", Upstream: "i", Status: "up", Mode: "ready", Suspect: true, EjectedUntil: new(time.Now())},
		view.Upstream{Pool: "one", Upstream: "j", Status: "up", Mode: "ready", EjectedUntil: new(time.Now()), Stale: true},
		view.Upstream{Pool: "two", Upstream: "a", Status: "down", Mode: "ready", Checks: check("down")},
		view.Upstream{Pool: "three", Upstream: "f", Status: "unknown", Mode: "ready", Checks: check("unknown"), Stale: true},
		view.Upstream{Pool: "four", Upstream: "g", Status: "unknown", Mode: "drain", Checks: check("unknown"), Gone: true},
	)
	want := states("one", 1, map[string]float64{"up": 1, "suspect": 1, "ejected": 1, "down": 1, "maintenance": 1, "draining": 1})
	maps.Copy(want, states("two", 0, map[string]float64{"down": 1}))
	maps.Copy(want, states("three", 0, nil))
	maps.Copy(want, map[string]float64{
		"upstream_up{check=tcp,upstream=a}": 0,
		"upstream_up{check=tcp,upstream=b}": 0,
		"upstream_up{check=tcp,upstream=d}": 1,
	})
	wantSeries(t, scrape(t, registry), want)
}

// Checks with one upstream and label count together, and their series go with the last.
func TestCollector_ChecksCountTogether(t *testing.T) {
	registry := register(t)
	var counters []*CheckCounters
	for range 2 {
		c, err := NewCheckCounters("a:80", "app", "http")
		if err != nil {
			t.Fatal(err)
		}
		counters = append(counters, c)
		c.Probed(health.Result{Took: time.Millisecond})
		c.Probed(health.Result{Took: time.Millisecond, Reason: "status 503"})
		c.Inconclusive()
		c.Changed(health.Transition{From: health.Unknown, To: health.Up})
		c.Changed(health.Transition{From: health.Up, To: health.Up, Draining: true})
		c.Changed(health.Transition{From: health.Up, To: health.Down})
	}
	counters[0].Changed(health.Transition{From: health.Down, To: health.Up})
	want := map[string]float64{
		"checks_total{check=app,result=pass,upstream=a:80}":  2,
		"checks_total{check=app,result=fail,upstream=a:80}":  2,
		"checks_total{check=app,result=void,upstream=a:80}":  2,
		"transitions_total{check=app,to=up,upstream=a:80}":   3,
		"transitions_total{check=app,to=down,upstream=a:80}": 2,
	}
	for _, c := range counters {
		wantSeries(t, scrape(t, registry), want)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	wantSeries(t, scrape(t, registry), nil)
}

// Labels are valid UTF-8, whatever addresses and names are, or a scrape would fail.
func TestCollector_LabelsAreValid(t *testing.T) {
	registry := register(t)
	c, err := NewCheckCounters("\xff:80", "app \xfe", "http")
	if err != nil {
		t.Fatal(err)
	}
	p, s := join(t, "shop \xff", map[string]uint64{"a": 3, `b\xff`: 1})
	p.CountAccusation("b\xff", "connect")
	p.CountEjection("b\xff")
	got := scrape(t, registry)
	for _, name := range []string{
		`checks_total{check=app \xfe,result=pass,upstream=\xff:80}`,
		`held_requests_total{pool=shop \xff}`,
		`selections_total{pool=shop \xff,upstream=a}`,
		`ejections_total{pool=shop \xff,upstream=b\xff}`,
		`accusations_total{cause=connect,pool=shop \xff,upstream=b\xff}`,
	} {
		if _, there := got[name]; !there {
			t.Errorf("%s is missing", name)
		}
	}
	leave(t, p, s)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	wantSeries(t, scrape(t, registry), nil)
}
