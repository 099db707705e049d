// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// source is a source whose counts a test sets.
type source struct {
	mu     sync.Mutex // guards what follows
	counts map[string]uint64

	length int
}

func (s *source) QueueLength() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.length
}

// queue sets how many requests may wait.
func (s *source) queue(length int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.length = length
}

func (s *source) Selections() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.counts)
}

// set sets the count of an upstream.
func (s *source) set(upstream string, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts == nil {
		s.counts = make(map[string]uint64)
	}
	s.counts[upstream] = n
}

// join returns a source that joins a pool.
func join(t *testing.T, pool string, counts map[string]uint64) (*PoolCounters, *source) {
	t.Helper()
	s := &source{counts: maps.Clone(counts)}
	p, err := JoinPool(pool, s)
	if err != nil {
		t.Fatal(err)
	}
	return p, s
}

// leave makes a source leave a pool.
func leave(t *testing.T, p *PoolCounters, s *source) {
	t.Helper()
	if err := p.Leave(s, func(active bool) { t.Errorf("reported fail-open %v", active) }); err != nil {
		t.Error(err)
	}
}

// wantSelections checks what is shown.
func wantSelections(t *testing.T, what string, p *PoolCounters, want map[string]uint64) {
	t.Helper()
	if got := p.Selections(); !maps.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// A source that left is read for 10 seconds, because requests in flight still pick by
// it. Its counts stay after that, with and without a read in between.
func TestPoolCounters_SourcesThatLeftStillCount(t *testing.T) {
	for _, reads := range []bool{false, true} {
		t.Run(fmt.Sprint("reads ", reads), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, old := join(t, "shop", map[string]uint64{"a": 5, "gone": 7})
				_, next := join(t, "shop", map[string]uint64{"a": 1, "b": 2})
				if reads {
					wantSelections(t, "both", p, map[string]uint64{"a": 6, "b": 2, "gone": 7})
				}
				leave(t, p, old)
				if reads {
					wantSelections(t, "the first one left", p, map[string]uint64{"a": 6, "b": 2})
				}
				time.Sleep(recentFor - time.Second)
				old.set("a", 8)
				if reads {
					wantSelections(t, "requests were in flight", p, map[string]uint64{"a": 9, "b": 2})
				}
				time.Sleep(2 * time.Second)
				synctest.Wait()
				old.set("a", 100)
				if n := len(p.recent); n != 0 {
					t.Errorf("%d sources that left are kept, want none", n)
				}
				wantSelections(t, "long after", p, map[string]uint64{"a": 9, "b": 2})
				leave(t, p, next)
			})
		})
	}
}

// Of sources that leave in a short time, 64 are kept. The counts of all stay.
func TestPoolCounters_KeepsFewSourcesThatLeft(t *testing.T) {
	p, stays := join(t, t.Name(), map[string]uint64{"a": 0})
	defer leave(t, p, stays)
	for range 3 * maxRecent {
		_, s := join(t, t.Name(), map[string]uint64{"a": 1})
		leave(t, p, s)
	}
	if n := len(p.recent); n != maxRecent {
		t.Errorf("%d sources that left are kept, want %d", n, maxRecent)
	}
	wantSelections(t, "all", p, map[string]uint64{"a": 3 * maxRecent})
}

// The counts of an upstream that no source has are dropped some time after a source
// left. If the upstream comes back, it begins at 0.
func TestPoolCounters_ForgetUpstreamsThatAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, old := join(t, "shop", map[string]uint64{"a": 5, "gone": 7})
		_, next := join(t, "shop", map[string]uint64{"a": 1})
		wantSelections(t, "both", p, map[string]uint64{"a": 6, "gone": 7})
		leave(t, p, old)
		time.Sleep(recentFor + time.Second)
		synctest.Wait()
		if want := map[string]uint64{"a": 5}; !maps.Equal(p.settled, want) {
			t.Errorf("kept %v, want %v", p.settled, want)
		}
		next.set("gone", 2)
		wantSelections(t, "it is back", p, map[string]uint64{"a": 6, "gone": 2})
		leave(t, p, next)
	})
}

// A counter does not go back, even if a source takes a count back, and a read changes
// nothing else: reads in between make no difference to what is shown.
func TestPoolCounters_NeverGoBack(t *testing.T) {
	p, s := join(t, t.Name(), map[string]uint64{"a": 3})
	defer leave(t, p, s)
	wantSelections(t, "at first", p, map[string]uint64{"a": 3})
	s.set("a", 2)
	for range 3 {
		wantSelections(t, "one was taken back", p, map[string]uint64{"a": 3})
	}
	s.set("a", 4)
	wantSelections(t, "two more", p, map[string]uint64{"a": 4})
}

// Reads at once, while sources join and leave, count each pick once.
func TestPoolCounters_ReadsAtOnce(t *testing.T) {
	p, stays := join(t, t.Name(), map[string]uint64{"a": 0})
	defer leave(t, p, stays)
	const rounds = 500
	var over sync.WaitGroup
	for range 4 {
		over.Go(func() {
			var last uint64
			for last < rounds {
				now := p.Selections()["a"]
				if now < last || now > rounds {
					t.Errorf("%d after %d, of %d", now, last, rounds)
					return
				}
				last = now
			}
		})
	}
	for range rounds {
		_, s := join(t, t.Name(), map[string]uint64{"a": 1})
		if rand.IntN(2) == 0 {
			time.Sleep(time.Microsecond)
		}
		leave(t, p, s)
	}
	over.Wait()
}

// When the last source leaves a pool, its counters are gone, and its name begins at 0.
func TestPoolCounters_GoWithTheLastSource(t *testing.T) {
	one, a := join(t, t.Name(), map[string]uint64{"a": 5})
	one.CountHeld()
	two, b := join(t, t.Name(), nil)
	if one != two || !slices.Contains(one.Sources(), Source(b)) {
		t.Error("sources of one pool do not count together")
	}
	leave(t, one, a)
	leave(t, two, b)
	shared.PoolCounters.Range(func(name, _ any) bool {
		t.Errorf("%v is left", name)
		return true
	})
	anew, c := join(t, t.Name(), map[string]uint64{"a": 0})
	defer leave(t, anew, c)
	if n := anew.Held(); n != 0 {
		t.Errorf("%d held requests, want 0", n)
	}
	wantSelections(t, "anew", anew, map[string]uint64{"a": 0})
}

// If the last part of a pool that fails open leaves, the pool no longer ignores health.
// That is reported.
func TestPoolCounters_FailOpenEndsWithItsSource(t *testing.T) {
	p, s := join(t, t.Name(), nil)
	q, stays := join(t, t.Name(), nil)
	defer leave(t, q, stays)
	var reported []bool
	report := func(active bool) { reported = append(reported, active) }
	p.ReportFailOpen(s, 1, report)
	p.ReportFailOpen(s, 1, report)
	if n := p.FailOpen(); n != 2 {
		t.Errorf("%d pools ignore health, want 2", n)
	}
	if err := p.Leave(s, report); err != nil {
		t.Error(err)
	}
	p.ReportFailOpen(s, 1, report) // by a request that is late
	if want := []bool{true, false}; !slices.Equal(reported, want) || p.FailOpen() != 0 {
		t.Errorf("reported %v, want %v; %d pools ignore health, want none", reported, want, p.FailOpen())
	}
}
