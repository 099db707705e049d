// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// TestPick_SharesAreExactUnderConcurrency: each upstream that is up has exactly its share
// and those that are down have none, however many goroutines pick.
func TestPick_SharesAreExactUnderConcurrency(t *testing.T) {
	p := newPolicy(t, "uududuuudu")
	var served [10]atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r := testkit.Get()
			for range 7000 {
				i := p.pickIndex(r)
				if i < 0 {
					t.Error("picked none while seven can serve")
					return
				}
				served[i].Add(1)
			}
		})
	}
	wg.Wait()
	for i, v := range "uududuuudu" {
		want := int64(0)
		if v == 'u' {
			want = 8000
		}
		if got := served[i].Load(); got != want {
			t.Errorf("upstream %d (%c) got %d requests, want %d", i, v, got, want)
		}
	}
}

// TestPick_OpenCircuitBreaker: with an open circuit breaker there is no last resort, and
// no request waits at a cold start. One that opens while a request is held counts, too.
func TestPick_OpenCircuitBreaker(t *testing.T) {
	for _, tc := range []struct {
		verdicts string
		open     time.Duration // when it opens; below 0 never
		none     bool
		waited   time.Duration
	}{
		{"dd", 0, true, 0},
		{"d?", 0, true, 0},
		{"d?", time.Second, true, 2 * time.Second},
		{"d?", -1, false, 2 * time.Second},
		{"dd", -1, false, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := new(testkit.Breaker)
			p := newPolicy(t, tc.verdicts, func(p *policy) { p.handler.Proxy.CB = b })
			b.Open.Store(tc.open == 0)
			if tc.open > 0 {
				time.AfterFunc(tc.open, func() { b.Open.Store(true) })
			}
			began := time.Now()
			u := p.pick(testkit.Get())
			if waited := time.Since(began); (u == nil) != tc.none || waited != tc.waited {
				t.Errorf("%+v: picked %v after %v", tc, u, waited)
			}
		})
	}
}

// TestPick_ClientThatLeftGetsAnyUpstream: a client that has left gets an upstream also
// where no upstream can serve: that ends the request at once.
func TestPick_ClientThatLeftGetsAnyUpstream(t *testing.T) {
	b := new(testkit.Breaker)
	b.Open.Store(true)
	p := newPolicy(t, "dd", func(p *policy) { p.handler.Proxy.CB = b })
	r := testkit.Get()
	ctx, leave := context.WithCancel(r.Context())
	if u := p.pick(r.WithContext(ctx)); u != nil {
		t.Fatalf("picked %v with the breaker open", u)
	}
	leave()
	if u := p.pick(r.WithContext(ctx)); u == nil {
		t.Error("picked none for a client that left")
	}
}

// TestPick_FullUpstreamsAreSkippedButServe: an upstream that is full cannot take the
// request, but is not down: others get it, then backups, and never one that is down. A
// request that ends frees its slot. The requests are held one after the other.
func TestPick_FullUpstreamsAreSkippedButServe(t *testing.T) {
	for _, tc := range []struct {
		rule     string
		verdicts string
		limits   []int // 0 for none
		backup   int   // position, -1 for none
		requests int
		want     []int // how many each holds
	}{
		{"one each, and two rejected", "uu", []int{1, 1}, -1, 4, []int{1, 1}},
		{"two, then the backup", "uu", []int{2, 0}, 1, 6, []int{2, 4}},
		{"two each, then the backup", "uuu", []int{2, 2, 0}, 2, 6, []int{2, 2, 2}},
		{"never the one that is down", "udu", []int{1, 0, 1}, -1, 4, []int{1, 0, 1}},
		{"nor a backup that is down", "ud", []int{1, 0}, 1, 3, []int{1, 0}},
		{"full as the last resort, too", "dd", []int{1, 2}, -1, 5, []int{1, 2}},
	} {
		for _, retries := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, retries %v", tc.rule, retries), func(t *testing.T) {
				p := newPolicy(t, tc.verdicts, func(p *policy) {
					p.handler.Rules.Retries = retries
					if tc.backup >= 0 {
						p.members[tc.backup].Group = 1
					}
				})
				held := make([]int, len(tc.limits))
				take := func() bool {
					i := p.pickIndex(testkit.Get())
					if i < 0 {
						return false
					}
					held[i]++
					testkit.SetRequests(p.list[i], held[i])
					return true
				}
				for i, limit := range tc.limits {
					p.list[i].MaxRequests = limit
				}
				for range tc.requests {
					take()
				}
				if !slices.Equal(held, tc.want) {
					t.Errorf("%d requests held: %v, want %v", tc.requests, held, tc.want)
				}
				if tc.limits[0] > 0 {
					held[0]--
					testkit.SetRequests(p.list[0], held[0])
					if !take() || held[0] != tc.want[0] && tc.backup < 0 {
						t.Errorf("after one ended: %v", held)
					}
				}
			})
		}
	}
}

// TestPick_CaddysOwnHealthCountsAtOnce: Caddy's own health counts at the moment of the
// pick, without a new snapshot.
func TestPick_CaddysOwnHealthCountsAtOnce(t *testing.T) {
	p := newPolicy(t, "uuu", func(p *policy) { p.members[2].Group = 1 })
	for _, tc := range []struct {
		healthy [3]bool
		want    []int
	}{
		{[3]bool{true, true, true}, []int{50, 50, 0}},
		{[3]bool{false, true, true}, []int{0, 100, 0}},
		{[3]bool{false, false, true}, []int{0, 0, 100}},
		{[3]bool{false, false, false}, []int{50, 50, 0}}, // none serves: the last resort
		{[3]bool{true, false, true}, []int{100, 0, 0}},
	} {
		for i, healthy := range tc.healthy {
			testkit.SetHealthy(p.list[i], healthy)
		}
		if got := testkit.Counts(p.picks(testkit.Get, 100), 3); !slices.Equal(got, tc.want) {
			t.Errorf("healthy %v: picks %v, want %v", tc.healthy, got, tc.want)
		}
	}
}

// TestPick_FailOpenCountsCaddysOwnHealth: an upstream that Caddy itself considers
// unhealthy does not serve, and counts for a percentage of fail_open, too.
func TestPick_FailOpenCountsCaddysOwnHealth(t *testing.T) {
	for _, tc := range []struct {
		rule      string
		verdicts  string
		unhealthy []int
		percent   float64
		backup    bool // the last one is
		want      []int
	}{
		{"2 of 6 are healthy: all six", "uuuuuu", []int{0, 1, 2, 3}, 50, false, []int{1, 1, 1, 1, 1, 1}},
		{"3 of 6: only those", "uuuuuu", []int{0, 1, 2}, 50, false, []int{0, 0, 0, 1, 1, 1}},
		{"by checks and by Caddy together", "duuuuu", []int{1, 2, 3}, 50, false, []int{1, 1, 1, 1, 1, 1}},
		{"a backup serves: it does", "uuuuuu", []int{0, 1, 2, 3}, 50, true, []int{0, 0, 0, 0, 1, 0}},
		{"an unhealthy backup does not", "uuuuuu", []int{0, 1, 2, 3, 5}, 50, true, []int{1, 1, 1, 1, 1, 0}},
		{"without a percentage: only those", "uuuuuu", []int{0, 1, 2, 3}, 0, false, []int{0, 0, 0, 0, 1, 1}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			p := newPolicy(t, tc.verdicts, func(p *policy) {
				p.handler.Rules.FailOpen.Percent = tc.percent
				p.handler.Rules.CountsHealthy = tc.percent > 0
				if tc.backup {
					p.members[5].Group = 1
				}
			})
			for _, i := range tc.unhealthy {
				testkit.SetHealthy(p.list[i], false)
			}
			sharers := 0
			for _, share := range tc.want {
				sharers += share
			}
			got, want := testkit.Counts(p.picks(testkit.Get, 600), 6), make([]int, 6)
			for i, share := range tc.want {
				want[i] = 600 / sharers * share
			}
			if !slices.Equal(got, want) {
				t.Errorf("picks %v, want %v", got, want)
			}
		})
	}
}

// TestPick_AllocatesNothing on the fast path.
func TestPick_AllocatesNothing(t *testing.T) {
	p := newPolicy(t, "uduu")
	r := testkit.Get()
	if n := testing.AllocsPerRun(1000, func() { p.pick(r) }); n != 0 {
		t.Errorf("%v allocations a pick, want 0", n)
	}
}

// TestPick_AllocatesNothingAfterFailOpen: after a fail-open by Caddy's own health a pick
// is as fast as before.
func TestPick_AllocatesNothingAfterFailOpen(t *testing.T) {
	p := newPolicy(t, "uuu")
	for _, healthy := range []string{"000", "111"} {
		setAllHealthy(p.list, healthy)
		p.picks(testkit.Get, 10)
	}
	r := testkit.Get()
	if n := testing.AllocsPerRun(1000, func() { p.pick(r) }); n != 0 {
		t.Errorf("%v allocations a pick, want 0", n)
	}
}
