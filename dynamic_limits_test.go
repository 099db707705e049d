// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// watchedOnLists returns what is on all watch lists.
func watchedOnLists() (found []string) {
	shared.WatchLists.Range(func(_, value any) bool {
		found = append(found, value.(*watchList).addresses()...)
		return true
	})
	return found
}

// A policy watches at most 1,024 addresses of a source, says so once, and goes
// on with a pool of any size.
func TestCaddyDynamicHuge(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("127.0.0.2 and so on belong to the loopback interface on Linux only")
	}
	size := 100_000
	if testkit.RaceDetector {
		size /= 5
	}
	huge := testkit.ManyAddresses(testkit.FreePort(t), size)
	s := testkit.NewSource(t, huge...)
	c := testkit.StartCaddy(t, testkit.DynamicSite(s.Name(), "check tcp {\ninterval 10m\n}"))
	client := c.Client()
	for range 3 { // those that are not checked count as alive
		if got := testkit.Ask(client, c.URL()); got.Status != http.StatusBadGateway {
			t.Fatalf("an upstream that refuses: got %v, want 502", got)
		}
	}
	if got := len(watched()); got != maxDynamic {
		t.Errorf("targets: got %d, want %d", got, maxDynamic)
	}
	if got := len(watchedOnLists()); got != maxDynamic {
		t.Errorf("watched: got %d, want %d", got, maxDynamic)
	}
	testkit.Eventually(t, testkit.Patience, "all that are checked are down", func() bool {
		return statuses(huge[:maxDynamic]...)[health.Down] == maxDynamic
	})

	policy := s.Policy().(*Selection)
	hosted := brought(huge...)
	memory := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	r := get()
	var picks []time.Duration
	for range 9 {
		began := time.Now()
		u := policy.Select(hosted, r, nil)
		picks = append(picks, time.Since(began))
		if u == nil {
			t.Fatal("nil while many count as alive")
		}
		if i := slices.Index(hosted, u); i < maxDynamic {
			t.Errorf("picked %s, which is down", u.Dial)
		}
	}
	slices.Sort(picks)
	before := memory()
	began := time.Now()
	const others = maxPools + 4 // more than are kept ready
	for i := range others {
		hosted = append(hosted[i+1:], hosted[:i+1]...)
		if policy.Select(hosted, r, nil) == nil {
			t.Fatal("nil while many count as alive")
		}
	}
	each := time.Since(began) / others
	grown := int64(memory()) - int64(before)
	t.Logf("pool of %d: a pick takes %s (median), %s at most; another order of it takes %s; %d other orders take %d MiB",
		size, picks[len(picks)/2], picks[len(picks)-1], each, others, grown>>20)
	if most := 2 * time.Second; picks[len(picks)/2] > most || each > most {
		t.Errorf("a pick takes longer than %s", most)
	}
	if most := int64(512 << 20); grown > most {
		t.Errorf("memory for pools that are kept ready: got %d MiB, want %d MiB at most", grown>>20, most>>20)
	}
	if got := len(watched()); got != maxDynamic {
		t.Errorf("targets after all: got %d, want %d", got, maxDynamic)
	}
	if got := c.Logged("too many upstreams from a dynamic source"); got != 1 {
		t.Errorf("warnings of too many: got %d, want 1", got)
	}
}

// An address that requests no longer bring is forgotten, with its mode: its probes
// end.
func TestCaddyDynamicForgets(t *testing.T) {
	backends := testkit.StartBackends(t, "stays", "leaves")
	s := testkit.NewSource(t, backends[0].Addr, backends[1].Addr)
	c := testkit.StartCaddy(t, testkit.DynamicSite(s.Name(), testkit.QuickCheck))
	client := c.Client()
	testkit.Eventually(t, testkit.Patience, "both take turns", func() bool {
		return maps.Equal(testkit.Tally(client, c.URL(), 4), map[string]int{"stays": 2, "leaves": 2})
	})
	s.Set(backends[0].Addr)
	testkit.Ask(client, c.URL())
	d := s.Policy().(*Selection).dynamic
	operations := s.Policy().(*Selection).app.operations
	drain := settings.Mode(settings.Drain)
	for _, b := range backends {
		operations.Change(b.Addr, settings.Change{Mode: &drain})
	}
	ago := func(by time.Duration) { // as if all were that much longer ago
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, p := range *d.pools.Load() {
			p.last.Add(-int64(by))
			p.set.last.Add(-int64(by))
		}
		for _, s := range d.sightings {
			s.last -= by
			if s.missing != 0 {
				s.missing -= by
			}
		}
		d.lastUse, d.lastSweep = d.lastUse-by, d.lastSweep-by
	}
	for minute := range 7 {
		if got := len(watchedOnLists()); minute < 5 && got != 2 {
			t.Fatalf("watched after %d minutes: got %d, want 2", minute, got)
		}
		ago(time.Minute)
		testkit.Ask(client, c.URL())
		d.sweep(elapsed(time.Now()))
	}
	if got, want := watchedOnLists(), []string{backends[0].Addr}; !slices.Equal(got, want) {
		t.Errorf("watched after 7 minutes: got %v, want %v", got, want)
	}
	if got := len(watched()); got != 1 {
		t.Errorf("targets after 7 minutes: got %d, want 1", got)
	}
	if stays, leaves := operations.Of(backends[0].Addr).ModeNow(), operations.Of(backends[1].Addr).ModeNow(); stays != settings.Drain || leaves != settings.Ready {
		t.Errorf("modes after 7 minutes: %s and %s, want drain and ready", stays, leaves)
	}
	_, ended := backends[1].Seen()
	_, probed := backends[0].Seen()
	testkit.Eventually(t, testkit.Patience, "the one that stays is still probed", func() bool {
		_, probes := backends[0].Seen()
		return probes > probed+2
	})
	if _, probes := backends[1].Seen(); probes != ended {
		t.Errorf("probes of one that was forgotten: got %d, want 0", probes-ended)
	}
}

// virtually waits on the clock of a synctest bubble.
func virtually(d time.Duration) { <-time.After(d) }

// What an earlier config watched is forgotten, too, when the pool has been idle
// for an hour, if no request came at all since the reload.
func TestCaddyDynamicForgetsWhatItResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "")
		d := p.dynamic
		d.list.add("10.9.9.9:80") // by the earlier config
		d.resume()
		d.list.remove("10.9.9.9:80")
		virtually(2 * idleFor)
		if got := d.list.addresses(); len(got) > 0 {
			t.Errorf("watched after %s without a request: got %v, want nothing", 2*idleFor, got)
		}
		p.unload()
		d.close()
	})
}

// What an earlier config watched is forgotten only when requests have seen the
// pool without it for five minutes, be the first of them late.
func TestCaddyDynamicKeepsWhatItResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "")
		d := p.dynamic
		d.list.add("10.9.9.9:80") // by the earlier config
		d.resume()
		d.list.remove("10.9.9.9:80")
		virtually(40 * time.Minute) // less than an hour
		p.Select(brought("10.0.0.1:80"), get(), nil)
		virtually(2 * sweepInterval)
		if got, want := d.list.addresses(), []string{"10.0.0.1:80", "10.9.9.9:80"}; !slices.Equal(got, want) {
			t.Errorf("watched a minute after the first request without one: got %v, want %v", got, want)
		}
		p.unload()
		d.close()
	})
}

// BenchmarkDynamicPick puts the policy beside Caddy's round_robin over pools
// that are new values for every pick. Only their ratio means anything.
func BenchmarkDynamicPick(b *testing.B) {
	const values = 64 // of one answer
	for _, size := range []int{10, 100, 1000} {
		for _, answers := range []int{1, 8, 2 * maxPools} {
			var pools []reverseproxy.UpstreamPool
			for i := range values {
				var dials []string
				for j := range size {
					dials = append(dials, address(i%answers*7+j))
				}
				pools = append(pools, brought(dials...))
			}
			for _, policy := range []struct {
				name string
				reverseproxy.Selector
			}{
				{"alive", newPolicy(b, "").Selection},
				{"round_robin", new(reverseproxy.RoundRobinSelection)},
			} {
				b.Run(fmt.Sprintf("%d/%d_pools/%s", size, answers, policy.name), func(b *testing.B) {
					r := get()
					for _, pool := range pools { // as they are after the first requests
						policy.Select(pool, r, nil)
					}
					b.ReportAllocs()
					i := 0
					for b.Loop() {
						i++
						if policy.Select(pools[i%values], r, nil) == nil {
							b.Fatal("nil")
						}
					}
				})
			}
		}
	}
}
