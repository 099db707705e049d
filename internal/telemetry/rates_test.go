// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// The rate is that of the last ten seconds, failures are those of the last minute, and the trend
// is five minutes long.
func TestRates_FollowTheCounts(t *testing.T) {
	var r rates
	now := time.Unix(1000, 0)
	count := growth{picks: 1e6, failures: 1e3} // from an earlier time
	sample := func(picks, failures uint64) {
		count.add(growth{picks, failures})
		r.sample(now, map[string]growth{"a:80": count, "b:80": {picks: 7}})
		now = now.Add(sampleInterval)
	}
	want := func(when string, a, all view.Traffic, points int) {
		t.Helper()
		upstreams, pool, trend := r.of()
		if upstreams["a:80"] != a || upstreams["b:80"] != (view.Traffic{}) || pool != all || len(trend) != points {
			t.Errorf("%s: %+v, %+v, %d points; want %+v, %+v, %d", when, upstreams, pool, len(trend), a, all, points)
		}
	}
	sample(0, 0)
	want("at the start", view.Traffic{}, view.Traffic{}, 0)
	sample(50, 5)
	want("after one interval", view.Traffic{PerSecond: 10, Picks: 50, Failures: 5}, view.Traffic{PerSecond: 10, Picks: 50, Failures: 5}, 1)
	sample(100, 0)
	want("after two", view.Traffic{PerSecond: 15, Picks: 150, Failures: 5}, view.Traffic{PerSecond: 15, Picks: 150, Failures: 5}, 2)
	for range minuteSamples {
		sample(5, 0)
	}
	want("a minute later", view.Traffic{PerSecond: 1, Picks: 60}, view.Traffic{PerSecond: 1, Picks: 60}, 2+minuteSamples)
	for range view.TrendLength {
		sample(10, 1)
	}
	want("five minutes later", view.Traffic{PerSecond: 2, Picks: 120, Failures: 12}, view.Traffic{PerSecond: 2, Picks: 120, Failures: 12}, view.TrendLength)
	if _, _, trend := r.of(); trend[0] != (view.TrendPoint{Requests: 2, Failures: .2}) {
		t.Errorf("the oldest point is %+v", trend[0])
	}
}

// A count that goes back, and an upstream that comes, leaves and comes back, are no traffic.
func TestRates_OnlyGrowthCounts(t *testing.T) {
	var r rates
	now := time.Unix(1000, 0)
	for i, step := range []struct {
		counts map[string]growth
		want   uint64
	}{
		{map[string]growth{"a:80": {picks: 10}}, 0},
		{map[string]growth{"a:80": {picks: 9}}, 0},
		{map[string]growth{"a:80": {picks: 12}, "b:80": {picks: 100}}, 3},
		{map[string]growth{"b:80": {picks: 101}}, 4}, // what a had counts until its minute is over
		{map[string]growth{"a:80": {picks: 50}, "b:80": {picks: 102}}, 5},
		{map[string]growth{"a:80": {picks: 51}, "b:80": {picks: 102}}, 6},
	} {
		now = now.Add(sampleInterval)
		r.sample(now, step.counts)
		if _, all, _ := r.of(); all.Picks != step.want {
			t.Errorf("step %d: %d requests, want %d", i, all.Picks, step.want)
		}
	}
}

// Two configs that sample at the same moment count once: an interval without a length would make
// rates without a limit.
func TestRates_TakeOneSampleOfAMoment(t *testing.T) {
	var r rates
	began := time.Unix(1000, 0)
	r.sample(began, map[string]growth{"a:80": {}})
	now := began.Add(sampleInterval)
	r.sample(now, map[string]growth{"a:80": {picks: 50}})
	for _, late := range []time.Duration{0, time.Microsecond, -time.Microsecond} {
		r.sample(now.Add(late), map[string]growth{"a:80": {picks: 51}})
	}
	_, all, trend := r.of()
	if want := (view.Traffic{PerSecond: 10, Picks: 50}); all != want || len(trend) != 1 || trend[0].Requests != 10 {
		t.Errorf("%+v, trend %+v, want %+v and one point of 10", all, trend, want)
	}
}

// A pool is sampled once in an interval, also while two configs do, by the length that the
// interval really had.
func TestPoolCounters_AreSampledOnce(t *testing.T) {
	p, s := join(t, "sampled", map[string]uint64{"a:80": 0})
	defer leave(t, p, s)
	began := time.Now()
	p.sample(began)
	s.counts["a:80"] = 40
	p.CountAccusation("a:80", "connect")
	p.CountAccusation("a:80", "stall")
	p.sample(began.Add(time.Second)) // of another config
	if _, all, _ := p.Traffic(); all.Picks != 0 {
		t.Errorf("after a second: %+v", all)
	}
	sampleAll(began.Add(8 * time.Second))
	upstreams, all, _ := p.Traffic()
	if want := (view.Traffic{PerSecond: 5, Picks: 40, Failures: 2}); all != want || upstreams["a:80"] != want {
		t.Errorf("%+v, %+v, want %+v", upstreams, all, want)
	}
	if share := all.Share(); share != .05 {
		t.Errorf("the share of failures is %v, want 0.05", share)
	}
}
