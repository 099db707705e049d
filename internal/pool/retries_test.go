// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// TestRetries_SkipTheTried: a retry goes to upstreams that were not tried yet, and to
// those that are down in the end. When all were tried, it starts over.
func TestRetries_SkipTheTried(t *testing.T) {
	for _, verdicts := range []string{"u", "uu", "uuu", "uudu", "udddddddddddddddddddu", "ddd", "d"} {
		t.Run(verdicts, func(t *testing.T) {
			p := newPolicy(t, verdicts, retrying)
			serving := strings.Count(verdicts, "u")
			all := make([]int, len(verdicts))
			for i := range all {
				all[i] = i
			}
			for range 50 {
				got := p.picks(testkit.Same(), 4*len(all))
				for round := range slices.Chunk(got, len(all)) {
					if strings.Count(string(byPosition(verdicts, round[:serving])), "u") != serving {
						t.Fatalf("one request tried %v, want those of %s that serve first", round, verdicts)
					}
					slices.Sort(round)
				}
				if want := slices.Repeat(all, 4); !slices.Equal(got, want) {
					t.Fatalf("one request tried %v, want each of %v once before any again", got, all)
				}
			}
		})
	}
}

// byPosition returns the letters at some positions.
func byPosition(letters string, positions []int) (some []byte) {
	for _, i := range positions {
		some = append(some, letters[i])
	}
	return some
}

// TestRetries_UnknownBeforeStartingOver: an upstream without a verdict is better than one
// that has just failed.
func TestRetries_UnknownBeforeStartingOver(t *testing.T) {
	p := newPolicy(t, "u?du", retrying)
	for range 20 {
		got := p.picks(testkit.Same(), 3)
		slices.Sort(got[:2])
		if want := []int{0, 3, 1}; !slices.Equal(got, want) {
			t.Fatalf("one request tried %v, want %v, the first two in any order", got, want)
		}
	}
}

// TestRetries_StartingOverAvoidsTheLast: a request that starts over does not begin with
// the upstream that was tried last.
func TestRetries_StartingOverAvoidsTheLast(t *testing.T) {
	p := newPolicy(t, "uuu", retrying)
	for range 100 {
		got := p.picks(testkit.Same(), 12)
		for i := range got[1:] {
			if got[i] == got[i+1] {
				t.Fatalf("one request tried %v: the same twice in a row", got)
			}
		}
	}
}

// TestRetries_StartingOverSpreads: requests that start over do not all do so with the
// same upstream.
func TestRetries_StartingOverSpreads(t *testing.T) {
	p := newPolicy(t, "uuuuu", retrying)
	sixth := make([]int, 5)
	for range 500 {
		p.Current().tickets.Add(1) // another request in between, so that not all begin alike
		sixth[p.picks(testkit.Same(), 6)[5]]++
	}
	if slices.Min(sixth) < 50 {
		t.Errorf("sixth tries %v, want them spread", sixth)
	}
}

// TestRetries_GoOnToBackups: a retry goes to each primary and each backup once before any
// is repeated: primaries that were tried do not keep backups out, and those that serve
// come before those that are down. Then it starts over.
func TestRetries_GoOnToBackups(t *testing.T) {
	for _, tc := range []struct {
		verdicts          string
		weights           []int
		open              FailOpen
		primaries, others []int
	}{
		{"uu", []int{1, -1}, FailOpen{}, []int{0}, []int{1}},
		{"uuuu", []int{5, 1, -2, -1}, FailOpen{}, []int{0, 1}, []int{2, 3}},
		{"uduudu", []int{5, 1, 2, -2, -1, -7}, FailOpen{}, []int{0, 2}, []int{3, 5, 1, 4}},
		{"uduudu", []int{5, 1, 2, -2, -1, -7}, FailOpen{Never: true}, []int{0, 2}, []int{3, 5}},
		{"uuudd", []int{256, 1, -1, 1, -1}, FailOpen{}, []int{0, 1}, []int{2, 3, 4}},
		{"uuudd", []int{256, 1, -1, 0, -1}, FailOpen{}, []int{0, 1}, []int{2, 4}},
		{"uuu", []int{0, 1, -1}, FailOpen{}, []int{1}, []int{2}},
		{"ddd", []int{9, 1, -1}, FailOpen{}, []int{0, 1}, []int{2}},
		{"uddd", []int{3, 1, 2, -1}, FailOpen{Percent: 50}, []int{0, 1, 2}, []int{3}},
	} {
		t.Run(tc.verdicts, func(t *testing.T) {
			p := newPolicy(t, tc.verdicts, withWeights(tc.weights...), retrying, func(p *policy) { p.handler.Rules.FailOpen = tc.open })
			for range 100 {
				round := len(tc.primaries) + len(tc.others)
				got := p.picks(testkit.Same(), 4*round)
				for i := range got[1:] {
					if got[i] == got[i+1] {
						t.Fatalf("one request tried %v: the same twice in a row", got)
					}
				}
				for r := range slices.Chunk(slices.Clone(got), round) {
					slices.Sort(r)
					if all := slices.Sorted(slices.Values(slices.Concat(tc.primaries, tc.others))); !slices.Equal(r, all) {
						t.Fatalf("one request tried %v, want each of %v once before any again", got, all)
					}
				}
				if first := slices.Sorted(slices.Values(got[:len(tc.primaries)])); !slices.Equal(first, tc.primaries) {
					t.Fatalf("one request tried %v, want the primaries %v before backups", got, tc.primaries)
				}
			}
		})
	}
}

// TestRetries_StartingOverAvoidsALastPrimary: a request does not start over with a
// primary that came back after the backup was tried, and was tried last.
func TestRetries_StartingOverAvoidsALastPrimary(t *testing.T) {
	p := newPolicy(t, "du", withWeights(1, -1), retrying)
	r := testkit.Same()
	got := p.picks(r, 1)
	p.decide("u?")
	if got = append(got, p.picks(r, 4)...); !slices.Equal(got, []int{1, 0, 1, 0, 1}) {
		t.Errorf("one request tried %v, want the backup, the primary that came back, and the backup again", got)
	}
}

// TestRetries_TheShareOfATriedOneIsLeftToAll: an upstream that fails, but is not known to
// be down, leaves its share to the others in proportion to their weights.
func TestRetries_TheShareOfATriedOneIsLeftToAll(t *testing.T) {
	for _, weights := range [][]int{
		{1, 1, 1, 1},
		{5, 1, 1},
		{5, 4, 3, 2, 1},
		{1, 10, 10, 1, 5},
		{10, 10, 1, 1, 1, 1, 1, 1},
		{100, 1, 1},
		{256, 1, 1, 1, 1},
		{256, 3, 2, 1},
	} {
		t.Run(fmt.Sprint(weights), func(t *testing.T) {
			p := newPolicy(t, strings.Repeat("u", len(weights)), withWeights(weights...), retrying)
			const requests = 20000
			served := make([]int, len(weights))
			for range requests {
				r := testkit.Get()
				for {
					if i := p.pickIndex(r); i != 0 { // the first is sick
						served[i]++
						break
					}
				}
			}
			wantProportional(t, served, append([]int{0}, weights[1:]...), 0.05)
		})
	}
}

// TestRetries_TheShareOfManyTriedIsLeftToAll: the same when many cannot take a request:
// the first one after them must not get all that was theirs.
func TestRetries_TheShareOfManyTriedIsLeftToAll(t *testing.T) {
	const n = 40
	for _, sick := range []int{1, 5, 20, 36} {
		t.Run(fmt.Sprint(sick), func(t *testing.T) {
			p := newPolicy(t, strings.Repeat("u", n), retrying)
			served, want := make([]int, n), make([]int, n)
			for range 300 * n {
				r := testkit.Get()
				for _, u := range p.list[:sick] {
					remember(r).Add(u, true, witness.Counted{})
				}
				served[p.pickIndex(r)]++
			}
			for i := sick; i < n; i++ {
				want[i] = 1
			}
			wantProportional(t, served, want, 0.15)
		})
	}
}

// wantProportional reports an upstream that is off its share of what was served by more
// than a part of that share.
func wantProportional(t *testing.T, served, weights []int, off float64) {
	t.Helper()
	var requests, total int
	for i, w := range weights {
		total += w
		requests += served[i]
	}
	for i, w := range weights {
		want := float64(requests) * float64(w) / float64(total)
		if got := float64(served[i]); got < want*(1-off) || got > want*(1+off) {
			t.Errorf("upstream %d served %v requests, want %.0f in proportion to its weight (%.1f times its share); all: %v", i, got, want, got/want, served)
			return
		}
	}
}

// TestRetries_GoOnToTheDraining: a retry goes to all that serve before those that drain,
// then to the one that is down, and to each of them once before any is repeated. Then it
// starts over with those that serve.
func TestRetries_GoOnToTheDraining(t *testing.T) {
	p := newPolicy(t, "uuuuuud", withWeights(1, 2, -1, 3, 5, -2, 1), retrying)
	for _, i := range []int{3, 4, 5} {
		testkit.SetDraining(p.targets[i], true)
	}
	for range 100 {
		got := p.picks(testkit.Same(), 14)
		for i := range 2 {
			round := got[7*i : 7*i+7]
			for _, part := range []struct {
				part string
				got  []int
				want []int
			}{
				{"primaries", round[:2], []int{0, 1}},
				{"the backup", round[2:3], []int{2}},
				{"draining primaries", round[3:5], []int{3, 4}},
				{"the draining backup", round[5:6], []int{5}},
				{"the one that is down", round[6:], []int{6}},
			} {
				if sorted := slices.Sorted(slices.Values(part.got)); !slices.Equal(sorted, part.want) {
					t.Fatalf("one request tried %v, want %s %v in their turn", got, part.part, part.want)
				}
			}
		}
	}
}

// TestRetries_LeastRecentlyFailedFirst: upstreams that are down are tried after all that
// serve, backups too, the one whose checks failed the longest ago first; never one in
// maintenance, of weight 0, drained or full.
func TestRetries_LeastRecentlyFailedFirst(t *testing.T) {
	for _, tc := range []struct {
		rule      string
		configure func(*policy)
		want      []int
	}{
		{"fail_open none_up", func(*policy) {}, []int{0, 3, 1, 2, 0, 3, 1, 2}},
		{"fail_open off", func(p *policy) { p.handler.Rules.FailOpen.Never = true }, []int{0, 0, 0, 0, 0, 0, 0, 0}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPolicy(t, "uuuuuuuu", retrying, tc.configure, withWeights(1, 1, -1, 1, 0, 1, 1, 1))
				for _, i := range []int{4, 5, 6, 7, 3, 1, 2} { // in this order
					p.decide("????????"[:i] + "d")
					time.Sleep(time.Second)
				}
				p.setMode(5, settings.Maintenance)
				p.setMode(6, settings.Drain)
				p.list[7].MaxRequests = 1
				testkit.SetRequests(p.list[7], 1)
				if got := p.picks(testkit.Same(), 8); !slices.Equal(got, tc.want) {
					t.Errorf("one request tried %v, want %v", got, tc.want)
				}
			})
		})
	}
}

// TestRetries_UnhealthyByCaddyAfterAllThatServe: an upstream that Caddy itself considers
// unhealthy is like one that is down. An open circuit breaker is never bypassed.
func TestRetries_UnhealthyByCaddyAfterAllThatServe(t *testing.T) {
	b := new(testkit.Breaker)
	p := newPolicy(t, "uuu", retrying, func(p *policy) { p.handler.Proxy.CB = b })
	testkit.SetHealthy(p.list[1], false)
	got := p.picks(testkit.Same(), 3)
	slices.Sort(got[:2])
	if want := []int{0, 2, 1}; !slices.Equal(got, want) {
		t.Errorf("one request tried %v, want %v", got, want)
	}
	b.Open.Store(true) // of which these upstreams do not know
	if got := p.picks(testkit.Same(), 6); slices.Contains(got, 1) {
		t.Errorf("one request tried %v with the breaker open, want those that serve", got)
	}
}

// TestRetries_AFullOneKeepsOutTheDown: an upstream that serves and is full was not tried,
// so upstreams that are down get nothing.
func TestRetries_AFullOneKeepsOutTheDown(t *testing.T) {
	p := newPolicy(t, "uud", retrying)
	p.list[1].MaxRequests = 1
	testkit.SetRequests(p.list[1], 1)
	r := testkit.Same()
	if got, want := p.picks(r, 3), []int{0, 0, 0}; !slices.Equal(got, want) {
		t.Errorf("one request tried %v, want %v", got, want)
	}
	testkit.SetRequests(p.list[1], 0)
	if got, want := p.picks(r, 2), []int{1, 2}; !slices.Equal(got, want) {
		t.Errorf("when a slot was free it tried %v, want %v", got, want)
	}
}

// TestRetries_AFullUnknownBackupKeepsOutNone: a full backup without a verdict does not
// serve, so a request that has tried the last resort goes on to backups that are down.
func TestRetries_AFullUnknownBackupKeepsOutNone(t *testing.T) {
	p := newPolicy(t, "d?d", withWeights(1, -1, -1), retrying)
	p.list[1].MaxRequests = 1
	testkit.SetRequests(p.list[1], 1)
	if got, want := p.picks(testkit.Same(), 4), []int{0, 2, 0, 2}; !slices.Equal(got, want) {
		t.Errorf("one request tried %v, want %v", got, want)
	}
}

// TestRetries_TheDownAreProbedAtOnce: upstreams that are down are probed when the last
// one that serves has failed a request, and not before: also before draining ones have
// their turn, and where health is never ignored.
func TestRetries_TheDownAreProbedAtOnce(t *testing.T) {
	for _, tc := range []struct {
		rule      string
		verdicts  string
		draining  int // position, -1 for none
		configure func(*policy)
		probed    [4]int // by how many picks of one request
	}{
		{"two serve", "uudd", -1, func(*policy) {}, [4]int{0, 0, 2, 2}},
		{"one serves", "uddd", -1, func(*policy) {}, [4]int{0, 3, 3, 3}},
		{"one serves, and another drains", "uudd", 1, func(*policy) {}, [4]int{0, 2, 2, 2}},
		{"fail_open off", "uudd", -1, func(p *policy) { p.handler.Rules.FailOpen.Never = true }, [4]int{0, 0, 2, 2}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPolicy(t, tc.verdicts, retrying, tc.configure)
				if tc.draining >= 0 {
					testkit.SetDraining(p.targets[tc.draining], true)
				}
				probed := make([]int, len(p.targets))
				for i, target := range p.targets {
					draining := i == tc.draining
					defer target.Attach(health.Driver{Probe: func(context.Context, bool) (bool, error) {
						probed[i]++
						if tc.verdicts[i] == 'd' {
							return false, http.ErrServerClosed
						}
						return draining, nil
					}}, 0)()
				}
				time.Sleep(time.Hour / 2) // so that none is put off
				clear(probed)
				r := testkit.Same()
				for n, want := range tc.probed {
					p.picks(r, 1)
					synctest.Wait()
					down := 0
					for i, count := range probed {
						if tc.verdicts[i] == 'd' {
							down += count
						}
					}
					if down != want {
						t.Errorf("after %d picks: %d probes of those that are down, want %d", n+1, down, want)
					}
				}
			})
		})
	}
}

// TestRetries_ProbesAtOnceAreBounded: of many that are down, a request probes as many as
// may begin before their turn at one time, and another request others.
func TestRetries_ProbesAtOnceAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 100
		verdicts := make([]byte, n)
		for i := range verdicts {
			verdicts[i] = 'd'
		}
		verdicts[0] = 'u'
		p := newPolicy(t, string(verdicts), retrying)
		var mu sync.Mutex // guards probed
		probed := make(map[int]bool)
		for i, target := range p.targets[1:] {
			defer target.Attach(health.Driver{Probe: func(context.Context, bool) (bool, error) {
				mu.Lock()
				defer mu.Unlock()
				probed[i] = true
				return false, http.ErrServerClosed
			}}, time.Hour)()
		}
		time.Sleep(40 * time.Minute) // so that none is put off, nor refused because of another test
		const atOnce = 10            // in the whole process
		for request := range 3 {
			p.picks(testkit.Same(), 2)
			time.Sleep(time.Second)
			mu.Lock()
			got := len(probed)
			mu.Unlock()
			if want := (request + 1) * atOnce; got != want {
				t.Errorf("after %d requests %d are probed, want %d", request+1, got, want)
			}
		}
	})
}
