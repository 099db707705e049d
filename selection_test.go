// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
)

// setHealthy and setRequests do what Caddy's own checks and its handler do. There
// is no way for others to, but to reach into its fields.

func setHealthy(u *reverseproxy.Upstream, healthy bool) {
	field := reflect.ValueOf(u).Elem().FieldByName("unhealthy")
	(*atomic.Int32)(unsafe.Pointer(field.UnsafeAddr())).Store(map[bool]int32{true: 0, false: 1}[healthy])
}

func setRequests(u *reverseproxy.Upstream, n int) {
	field := reflect.ValueOf(u.Host).Elem().FieldByName("numRequests")
	(*atomic.Int64)(unsafe.Pointer(field.UnsafeAddr())).Store(int64(n))
}

// policy is a Selection over upstreams whose verdicts a test decides.
type policy struct {
	*Selection
	targets []*health.Target
	logs    *observer.ObservedLogs
	events  []telemetry.Event // see emitted
	unload  context.CancelFunc
}

// newPolicy makes a policy over as many upstreams as there are verdicts: u for
// up, d for down, ? for none yet.
func newPolicy(tb testing.TB, verdicts string, configure ...func(*Selection)) *policy {
	tb.Helper()
	core, logs := observer.New(zap.InfoLevel)
	ctx, unload := context.WithCancel(context.Background())
	p := &policy{logs: logs, unload: unload, Selection: &Selection{
		logger:    zap.New(core),
		proxy:     new(reverseproxy.Handler),
		byDial:    make(map[string]*member),
		variable:  "attempts",
		unloaded:  ctx.Done(),
		transport: defaultTransport,
		hold:      2 * time.Second,
	}}
	for i := range verdicts {
		u := &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: address(i)}
		target := health.NewTarget(health.Settings{
			Interval: time.Hour, FastInterval: time.Hour, DownInterval: time.Hour,
			Timeout: time.Second, Passes: 1, Fails: 1,
		})
		target.Begin(verdicts[i] != '?')
		p.upstreams = append(p.upstreams, u)
		p.targets = append(p.targets, target)
		p.byDial[u.Dial] = &member{address: u.Dial, watches: []*monitor.Monitor{{Target: target, Check: &monitor.Check{Label: "test"}}}, weight: 1}
		p.members = append(p.members, p.byDial[u.Dial])
		target.Subscribe(p.refresh)
	}
	for _, f := range configure {
		f(p.Selection)
	}
	p.refresh()
	p.dynamic = newDynamic(p.Selection)
	tb.Cleanup(func() {
		unload()
		p.dynamic.close()
	})
	p.run(true)
	p.announceOwn()
	p.decide(verdicts)
	return p
}

func address(i int) string { return fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1) }

// decide gives each upstream the verdict of its letter; ? leaves it as it is.
func (p *policy) decide(verdicts string) {
	for i, v := range verdicts {
		if v == '?' {
			continue
		}
		decide(p.targets[i], v == 'u')
	}
}

// decide has a probe of the target pass or fail, and returns when all who
// follow it know.
func decide(target *health.Target, passes bool) {
	if want := map[bool]health.Status{true: health.Up, false: health.Down}[passes]; target.Status() == want {
		return
	}
	known := make(chan struct{})
	defer target.Attach(health.Driver{
		Probe: func(context.Context, bool) (bool, error) {
			if passes {
				return false, nil
			}
			return false, errors.New("sick")
		},
		Report: func(health.Transition) { close(known) },
	}, 0)()
	<-known
}

func get() *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	return r.WithContext(context.WithValue(r.Context(), caddyhttp.VarsCtxKey, make(map[string]any)))
}

// picks returns the indexes of the upstreams of n picks, -1 for nil.
func (p *policy) picks(r func() *http.Request, n int) []int {
	got := make([]int, 0, n)
	for range n {
		got = append(got, slices.Index(p.upstreams, p.Select(p.upstreams, r(), nil)))
	}
	return got
}

// counts returns how often each index is among picks.
func counts(picks []int, n int) []int {
	c := make([]int, n)
	for _, i := range picks {
		if i >= 0 {
			c[i]++
		}
	}
	return c
}

// Every upstream alive has exactly its share, the dead have none, whoever asks
// at the same time.
func TestExactSharesUnderConcurrency(t *testing.T) {
	p := newPolicy(t, "uududuuudu")
	var served [10]atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r := get()
			for range 7000 {
				i := slices.Index(p.upstreams, p.Select(p.upstreams, r, nil))
				if i < 0 {
					t.Error("nil while seven can serve")
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

// While verdicts flip under way, a request never gets nil, and once they
// settled only those alive are picked.
func TestFlipsWhilePicking(t *testing.T) {
	p := newPolicy(t, "uuuuu")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for r := get(); ; {
				select {
				case <-stop:
					return
				default:
				}
				if p.Select(p.upstreams, r, nil) == nil {
					t.Error("nil while the first can serve")
					return
				}
			}
		})
	}
	for range 200 {
		p.decide("?dddd")
		p.decide("?uudu")
	}
	close(stop)
	wg.Wait()
	if got, want := counts(p.picks(get, 400), 5), []int{100, 100, 100, 0, 100}; !slices.Equal(got, want) {
		t.Errorf("picks after the flips %v, want %v", got, want)
	}
}

// A change of the set does not restart the order at the first: else whoever is
// first would get more whenever others flap.
func TestAChangeDoesNotRestartTheOrder(t *testing.T) {
	p := newPolicy(t, "uuuu")
	first := make([]int, 4)
	for range 100 {
		p.decide("???d")
		first[p.picks(get, 1)[0]]++
		p.decide("???u")
		first[p.picks(get, 1)[0]]++
	}
	if slices.Max(first) > 100 {
		t.Errorf("picks right after a change %v, want them spread", first)
	}
}

// An upstream with several checks is alive while all of them pass.
func TestAllChecksMustPass(t *testing.T) {
	second := health.NewTarget(health.Settings{Interval: time.Hour, FastInterval: time.Hour, DownInterval: time.Hour, Timeout: time.Second, Passes: 1, Fails: 1})
	p := newPolicy(t, "uu", func(s *Selection) {
		s.members[0].watches = append(s.members[0].watches, &monitor.Monitor{Target: second})
		second.Subscribe(s.refresh)
	})
	for _, tc := range []struct {
		pass bool
		want []int
	}{{true, []int{50, 50}}, {false, []int{0, 100}}, {true, []int{50, 50}}} {
		decide(second, tc.pass)
		if got := counts(p.picks(get, 100), 2); !slices.Equal(got, tc.want) {
			t.Errorf("picks %v while the second check passes is %v, want %v", got, tc.pass, tc.want)
		}
	}
}

// When no upstream is alive requests go to all of them, which is said once
// when it begins and once when it ends.
func TestLastResort(t *testing.T) {
	p := newPolicy(t, "uud")
	p.decide("dd?")
	if got, want := counts(p.picks(get, 300), 3), []int{100, 100, 100}; !slices.Equal(got, want) {
		t.Errorf("picks with all down %v, want %v", got, want)
	}
	p.decide("?u?")
	if got, want := counts(p.picks(get, 300), 3), []int{0, 300, 0}; !slices.Equal(got, want) {
		t.Errorf("picks with one back %v, want %v", got, want)
	}
	var got []string
	for _, entry := range p.logs.All() {
		got = append(got, fmt.Sprintf("%s: %s", entry.Level, entry.Message))
	}
	want := []string{
		"warn: no upstream is alive: requests go to all of them, as the last resort",
		"info: enough upstreams are alive again: requests go to those alive only",
	}
	if !slices.Equal(got, want) {
		t.Errorf("logged %q, want %q", got, want)
	}
}

type breaker struct{ open atomic.Bool }

func (b *breaker) OK() bool                          { return !b.open.Load() }
func (*breaker) RecordMetric(_ int, _ time.Duration) {}

// The last resort does not go past an open circuit breaker, nor does a cold
// start wait behind one, nor does it help to open while a request is held.
func TestOpenCircuitBreaker(t *testing.T) {
	for _, tc := range []struct {
		verdicts string
		open     time.Duration // when it opens; below 0 never
		nil      bool
		waited   time.Duration
	}{
		{"dd", 0, true, 0},
		{"d?", 0, true, 0},
		{"d?", time.Second, true, 2 * time.Second},
		{"d?", -1, false, 2 * time.Second},
		{"dd", -1, false, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := new(breaker)
			p := newPolicy(t, tc.verdicts, func(s *Selection) { s.proxy.CB = b })
			b.open.Store(tc.open == 0)
			if tc.open > 0 {
				time.AfterFunc(tc.open, func() { b.open.Store(true) })
			}
			began := time.Now()
			u := p.Select(p.upstreams, get(), nil)
			if waited := time.Since(began); (u == nil) != tc.nil || waited != tc.waited {
				t.Errorf("%+v: picked %v after %v", tc, u, waited)
			}
		})
	}
}

// A retry goes to upstreams that were not tried yet, to those that are down at last.
// When all were tried, it starts over, not with the last one, unless that is alone.
func TestRetriesSkipTheTried(t *testing.T) {
	for _, verdicts := range []string{"u", "uu", "uuu", "uudu", "udddddddddddddddddddu", "ddd", "d"} {
		t.Run(verdicts, func(t *testing.T) {
			p := newPolicy(t, verdicts, func(s *Selection) { s.retries = true })
			serving := strings.Count(verdicts, "u")
			all := make([]int, len(verdicts))
			for i := range all {
				all[i] = i
			}
			for range 50 {
				got := p.picks(same(), 4*len(all))
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

// One without a verdict is better than one that has just failed.
func TestRetriesAskTheUnknownBeforeStartingOver(t *testing.T) {
	p := newPolicy(t, "u?du", func(s *Selection) { s.retries = true })
	for range 20 {
		r := get()
		got := p.picks(func() *http.Request { return r }, 3)
		slices.Sort(got[:2])
		if want := []int{0, 3, 1}; !slices.Equal(got, want) {
			t.Fatalf("one request tried %v, want %v, the first two in any order", got, want)
		}
	}
}

func TestStartingOverAvoidsTheLast(t *testing.T) {
	p := newPolicy(t, "uuu", func(s *Selection) { s.retries = true })
	for range 100 {
		r := get()
		got := p.picks(func() *http.Request { return r }, 12)
		for i := range got[1:] {
			if got[i] == got[i+1] {
				t.Fatalf("one request tried %v: the same twice in a row", got)
			}
		}
	}
}

// A request that tried everybody does not start over with the same upstream as
// all others do.
func TestStartingOverSpreads(t *testing.T) {
	p := newPolicy(t, "uuuuu", func(s *Selection) { s.retries = true })
	sixth := make([]int, 5)
	for range 500 {
		p.current.Load().tickets.Add(1) // another request in between, so that not all begin alike
		r := get()
		sixth[p.picks(func() *http.Request { return r }, 6)[5]]++
	}
	if slices.Min(sixth) < 50 {
		t.Errorf("sixth tries %v, want them spread", sixth)
	}
}

// The policy of select may want to write to a response that header and query do
// not hand on.
func TestSelectWithoutAWriter(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	inner := &reverseproxy.CookieHashSelection{Name: "lb"}
	if err := inner.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	p := newPolicy(t, "udu", func(s *Selection) { s.inner = inner })
	for range 10 {
		if i := p.picks(get, 1)[0]; i != 0 && i != 2 {
			t.Fatalf("picked %d, want one that is alive", i)
		}
	}
}

// With retries configured, first tries are as exact as without.
func TestFirstTriesAreExactWithRetries(t *testing.T) {
	p := newPolicy(t, "uduu", func(s *Selection) { s.retries = true })
	if got, want := counts(p.picks(get, 300), 4), []int{100, 0, 100, 100}; !slices.Equal(got, want) {
		t.Errorf("picks %v, want %v", got, want)
	}
}

// The variables of a request outlive the handler. Another request on the same
// ones, as in handle_errors, has tried nothing yet.
func TestAttemptsBelongToARequest(t *testing.T) {
	p := newPolicy(t, "uu", func(s *Selection) { s.retries = true })
	failed := get()
	tried := p.Select(p.upstreams, failed, nil)
	if !p.attempts(failed).has(tried) {
		t.Error("the request forgot what it tried")
	}
	if p.attempts(failed.Clone(failed.Context())).has(tried) {
		t.Error("another request was handed the attempts of the first")
	}
}

// To be asked again for a request means that the last pick failed: that upstream
// is probed at once, and no other. A single pick costs nobody a probe.
func TestARetrySuspectsTheLastPick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "uu", func(s *Selection) { s.retries = true })
		var probes [2]int
		for i, target := range p.targets {
			defer target.Attach(health.Driver{Probe: func(context.Context, bool) (bool, error) { probes[i]++; return false, nil }}, 0)()
		}
		synctest.Wait()
		probes = [2]int{}
		for range 10 {
			p.Select(p.upstreams, get(), nil)
		}
		synctest.Wait()
		if probes != [2]int{} {
			t.Errorf("%v probes after first tries, want none", probes)
		}
		r := get()
		first := slices.Index(p.upstreams, p.Select(p.upstreams, r, nil))
		p.Select(p.upstreams, r, nil)
		synctest.Wait()
		want := [2]int{}
		want[first] = 1
		if probes != want {
			t.Errorf("%v probes after a retry, want %v", probes, want)
		}
	})
}

// held starts a pick in a goroutine and returns where its result will be.
func (p *policy) held(r *http.Request) <-chan *reverseproxy.Upstream {
	result := make(chan *reverseproxy.Upstream, 1)
	go func() { result <- p.Select(p.upstreams, r, nil) }()
	return result
}

// At a cold start a request waits for the first verdicts, and no longer than
// it has to.
func TestHold(t *testing.T) {
	type step struct {
		at       time.Duration
		verdicts string
	}
	for _, tc := range []struct {
		rule     string
		verdicts string
		steps    []step
		want     time.Duration
		oneOf    []int
	}{
		{"all have a verdict", "???", []step{{time.Second, "udd"}}, time.Second, []int{0}},
		{"100 ms after the first pass", "???", []step{{time.Second, "??u"}}, 1100 * time.Millisecond, []int{2}},
		{"a second one in that time takes part", "???", []step{{time.Second, "u??"}, {1050 * time.Millisecond, "?u?"}}, 1100 * time.Millisecond, []int{0, 1}},
		{"until the limit, then those without a verdict", "d??", nil, 2 * time.Second, []int{1, 2}},
		{"all turn out dead: the last resort", "???", []step{{time.Second, "ddd"}}, time.Second, []int{0, 1, 2}},
		{"somebody serves: nobody waits", "?u?", nil, 0, []int{1}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPolicy(t, tc.verdicts)
				began := time.Now()
				result := p.held(get())
				for _, s := range tc.steps {
					time.Sleep(s.at - time.Since(began))
					p.decide(s.verdicts)
				}
				got := slices.Index(p.upstreams, <-result)
				if !slices.Contains(tc.oneOf, got) {
					t.Errorf("picked upstream %d, want one of %v", got, tc.oneOf)
				}
				if waited := time.Since(began).Truncate(time.Millisecond); waited != tc.want {
					t.Errorf("waited %v, want %v", waited, tc.want)
				}
			})
		})
	}
}

// The requests that were held do not all go to the quickest upstream.
func TestHeldRequestsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "????")
		var results []<-chan *reverseproxy.Upstream
		for range 100 {
			results = append(results, p.held(get()))
		}
		synctest.Wait()
		p.decide("u???")
		time.Sleep(50 * time.Millisecond)
		p.decide("?u??")
		var picks []int
		for _, r := range results {
			picks = append(picks, slices.Index(p.upstreams, <-r))
		}
		if got, want := counts(picks, 4), []int{50, 50, 0, 0}; !slices.Equal(got, want) {
			t.Errorf("held requests went to %v, want %v", got, want)
		}
	})
}

// A request is held once, not again at every retry.
func TestHeldOnceARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "??", func(s *Selection) { s.retries = true })
		began := time.Now()
		r := get()
		p.picks(func() *http.Request { return r }, 3)
		if got := time.Since(began); got != 2*time.Second {
			t.Errorf("three tries waited %v, want the hold of 2s once", got)
		}
	})
}

func TestHoldOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "??", func(s *Selection) { s.hold = 0 })
		began := time.Now()
		if u := p.Select(p.upstreams, get(), nil); u == nil || time.Since(began) != 0 {
			t.Errorf("picked %v after %v, want any at once", u, time.Since(began))
		}
	})
}

// A client that leaves while it is held gets an upstream, which ends its
// request quietly: nil would be logged as an error, and retried.
func TestClientLeavesWhileHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "???")
		r := get()
		ctx, leave := context.WithCancel(r.Context())
		began := time.Now()
		result := p.held(r.WithContext(ctx))
		time.Sleep(300 * time.Millisecond)
		leave()
		if u := <-result; u == nil || time.Since(began) != 300*time.Millisecond {
			t.Errorf("picked %v after %v, want any as soon as the client left", u, time.Since(began))
		}
	})
}

// The same where nobody could serve it anyway.
func TestClientLeft(t *testing.T) {
	b := new(breaker)
	b.open.Store(true)
	p := newPolicy(t, "dd", func(s *Selection) { s.proxy.CB = b })
	r := get()
	ctx, leave := context.WithCancel(r.Context())
	if u := p.Select(p.upstreams, r.WithContext(ctx), nil); u != nil {
		t.Fatalf("picked %v with the breaker open", u)
	}
	leave()
	if u := p.Select(p.upstreams, r.WithContext(ctx), nil); u == nil {
		t.Error("nil for a client that left")
	}
}

// When the config ends, nobody waits for verdicts that will not come, and
// requests in flight still get an upstream that was alive.
func TestSelectAfterUnload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "???")
		began := time.Now()
		result := p.held(get())
		time.Sleep(100 * time.Millisecond)
		p.unload()
		if u := <-result; u == nil || time.Since(began) != 100*time.Millisecond {
			t.Errorf("picked %v after %v, want any as soon as the config ended", u, time.Since(began))
		}
	})
	p := newPolicy(t, "udu")
	p.unload()
	if err := p.Cleanup(); err != nil {
		t.Fatal(err)
	}
	if got, want := counts(p.picks(get, 100), 3), []int{50, 0, 50}; !slices.Equal(got, want) {
		t.Errorf("picks after Cleanup %v, want %v", got, want)
	}
}

// A pool that is not the proxy's own list comes from a dynamic source, with
// new values for every request, or from another policy that passes on a part:
// verdicts go by address, and an address without one counts as alive.
func TestForeignPools(t *testing.T) {
	p := newPolicy(t, "ud")
	fresh := func(dials ...string) reverseproxy.UpstreamPool {
		var pool reverseproxy.UpstreamPool
		for _, dial := range dials {
			pool = append(pool, &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: dial})
		}
		return pool
	}
	served := make(map[string]int)
	for range 100 {
		served[p.Select(fresh("10.9.9.9:80", address(0), address(1)), get(), nil).Dial]++
	}
	if served["10.9.9.9:80"] != 50 || served[address(0)] != 50 {
		t.Errorf("served %v, want 50 each of those not known to be dead", served)
	}
	if u := p.Select(fresh(), get(), nil); u != nil {
		t.Errorf("picked %v from an empty pool", u)
	}
	if u := p.Select(p.upstreams[1:], get(), nil); u != p.upstreams[1] {
		t.Errorf("picked %v, want the dead one if it is all there is", u)
	}
}

// A retry of a request over a dynamic source skips by address, for the values
// are new.
func TestForeignPoolsAndRetries(t *testing.T) {
	p := newPolicy(t, "", func(s *Selection) { s.retries = true })
	r := get()
	var got []string
	for range 3 {
		var pool reverseproxy.UpstreamPool
		for i := range 3 {
			pool = append(pool, &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: address(i)})
		}
		got = append(got, p.Select(pool, r, nil).Dial)
	}
	slices.Sort(got)
	if want := []string{address(0), address(1), address(2)}; !slices.Equal(got, want) {
		t.Errorf("tried %v, want each once", got)
	}
}

// The pick allocates nothing.
func TestPickAllocatesNothing(t *testing.T) {
	p := newPolicy(t, "uduu")
	r := get()
	if n := testing.AllocsPerRun(1000, func() { p.Select(p.upstreams, r, nil) }); n != 0 {
		t.Errorf("%v allocations a pick, want 0", n)
	}
}

// One that is full cannot take the request, but is not dead: others take it, then
// backups, and never one that is known to be down. A request that ends frees its
// slot. (The requests are held one after the other.)
func TestLimits(t *testing.T) {
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
		{"never the dead one", "udu", []int{1, 0, 1}, -1, 4, []int{1, 0, 1}},
		{"a dead backup neither", "ud", []int{1, 0}, 1, 3, []int{1, 0}},
		{"full as the last resort, too", "dd", []int{1, 2}, -1, 5, []int{1, 2}},
	} {
		for _, retries := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, retries %v", tc.rule, retries), func(t *testing.T) {
				p := newPolicy(t, tc.verdicts, func(s *Selection) {
					s.retries = retries
					if tc.backup >= 0 {
						s.members[tc.backup].backup = true
					}
				})
				held := make([]int, len(tc.limits))
				take := func() bool {
					i := slices.Index(p.upstreams, p.Select(p.upstreams, get(), nil))
					if i < 0 {
						return false
					}
					held[i]++
					setRequests(p.upstreams[i], held[i])
					return true
				}
				for i, limit := range tc.limits {
					p.upstreams[i].MaxRequests = limit
				}
				for range tc.requests {
					take()
				}
				if !slices.Equal(held, tc.want) {
					t.Errorf("%d requests held: %v, want %v", tc.requests, held, tc.want)
				}
				if tc.limits[0] > 0 {
					held[0]--
					setRequests(p.upstreams[0], held[0])
					if !take() || held[0] != tc.want[0] && tc.backup < 0 {
						t.Errorf("after one ended: %v", held)
					}
				}
			})
		}
	}
}

// Caddy's own health counts at the moment of the pick, without any new snapshot.
func TestCaddysOwnHealth(t *testing.T) {
	p := newPolicy(t, "uuu", func(s *Selection) { s.members[2].backup = true })
	for _, tc := range []struct {
		healthy [3]bool
		want    []int
	}{
		{[3]bool{true, true, true}, []int{50, 50, 0}},
		{[3]bool{false, true, true}, []int{0, 100, 0}},
		{[3]bool{false, false, true}, []int{0, 0, 100}},
		{[3]bool{false, false, false}, []int{50, 50, 0}}, // nobody serves: the last resort
		{[3]bool{true, false, true}, []int{100, 0, 0}},
	} {
		for i, healthy := range tc.healthy {
			setHealthy(p.upstreams[i], healthy)
		}
		if got := counts(p.picks(get, 100), 3); !slices.Equal(got, tc.want) {
			t.Errorf("healthy %v: picks %v, want %v", tc.healthy, got, tc.want)
		}
	}
}

// What Caddy itself holds unhealthy does not serve, and counts for a percentage of
// fail_open, too.
func TestFailOpenCountsCaddysOwnHealth(t *testing.T) {
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
			p := newPolicy(t, tc.verdicts, func(s *Selection) {
				s.rules.failOpen.percent = tc.percent
				s.countHealthy = tc.percent > 0
				s.members[5].backup = tc.backup
			})
			for _, i := range tc.unhealthy {
				setHealthy(p.upstreams[i], false)
			}
			sharers := 0
			for _, share := range tc.want {
				sharers += share
			}
			got, want := counts(p.picks(get, 600), 6), make([]int, 6)
			for i, share := range tc.want {
				want[i] = 600 / sharers * share
			}
			if !slices.Equal(got, want) {
				t.Errorf("picks %v, want %v", got, want)
			}
		})
	}
}
