// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"text/tabwriter"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// The simulation runs a real balancer, with real checks and with the real transport around
// the handler's, in virtual time. Only servers, clients and the handler's loop are
// simulated. Requests are the same for equal seeds. What happens at the same moment has no
// order, so results differ a little, and tests hold them to bounds.

var wholeSimulation = flag.Bool("simulation", false, "simulate all cases, and for longer")

// dialInfo is the key of the context under which reverseproxy.GetDialInfo looks.
const dialInfo = caddy.CtxKey("reverse_proxy.dial_info")

// plan is what a simulation has.
type plan struct {
	seed    uint64
	servers int
	workers int // of a server, 64 if it is 0
	queue   int // see simServer; 0 for any number
	probed  bool

	unobserved    bool
	retries       int
	interval      time.Duration // of the check, 5s if it is 0
	connectOnly   bool          // the check only connects
	failOpen      pool.FailOpen
	headerTimeout time.Duration
	limit         int // of requests at a server at once, with a queue for more; 0 for none
}

// simulation is a plan that runs.
type simulation struct {
	plan
	tb        testing.TB
	policy    *policy
	network   *simNetwork
	servers   []*simServer
	transport http.RoundTripper
	caddy     *caddyhttp.Server
	requests  sync.WaitGroup
	sources   sync.WaitGroup
	tally     tally
	capacity  capacity
	streams   uint64 // of random numbers
}

// tally is what became of the requests.
type tally struct {
	mu       sync.Mutex
	sent     [kinds]int
	failures [kinds][]time.Duration // when the failed ones were sent
	lost     [kinds][]time.Duration // when they failed
}

// simulated counts the simulations. Each begins a day after the one before, because the
// limit of probes out of turn is that of the process, and no bubble may see the time of
// another ahead of its own.
var simulated int

// simulate runs a plan in a bubble of virtual time. The function f says what happens.
func simulate(t *testing.T, p plan, f func(s *simulation)) {
	t.Helper()
	simulated++
	testkit.Bubble(t, func(t *testing.T) {
		time.Sleep(time.Duration(simulated) * 24 * time.Hour)
		s := newSimulation(t, p)
		f(s)
		s.finish()
		if s.capacity.stop != nil {
			s.capacity.stop()
		}
		s.policy.end(t)
		synctest.Wait()
	})
}

func newSimulation(tb testing.TB, p plan) *simulation {
	s := &simulation{plan: p, tb: tb, caddy: new(caddyhttp.Server), network: &simNetwork{
		began: time.Now(), servers: make(map[string]*simServer), dialTimeout: 3 * time.Second, headerTimeout: p.headerTimeout,
	}}
	var dials []string
	for i := range p.servers {
		server := &simServer{
			network: s.network, address: address(i), queue: -1, probed: p.probed, free: make([]time.Time, 64),
			broken: make(chan struct{}), resumed: make(chan struct{}),
		}
		if p.workers > 0 {
			server.free = make([]time.Time, p.workers)
		}
		if p.queue > 0 {
			server.queue = p.queue
		}
		dials = append(dials, server.address)
		s.servers = append(s.servers, server)
		s.network.servers[server.address] = server
	}
	interval := 5 * time.Second
	if p.interval > 0 {
		interval = p.interval
	}
	check := checkBy("simulated", fmt.Sprintf("%p", s), health.Settings{
		Interval: interval, FastInterval: min(time.Second, interval), DownInterval: interval,
		Timeout: min(2*time.Second, interval), Passes: 2, Fails: 3, Jitter: 0.1,
	}, func(ctx context.Context, r *monitor.Route) error {
		return s.network.servers[r.Address].probe(ctx, p.connectOnly)
	})
	s.begin(tb, check, dials)
	time.Sleep(time.Second) // the first verdicts
	return s
}

// random returns random numbers that no other part of the simulation uses.
func (s *simulation) random() *rand.Rand {
	s.streams++
	return rand.New(rand.NewPCG(s.seed, s.streams))
}

// elapsed is the time since the simulation began.
func (s *simulation) elapsed() time.Duration { return time.Since(s.network.began) }

// jobs makes the requests of a load.
type jobs func(rng *rand.Rand) job

// work makes normal requests that keep a worker busy.
func work(mean time.Duration) jobs {
	return func(rng *rand.Rand) job { return job{kind: normal, work: exponential(rng, mean)} }
}

// all makes requests that are all the same.
func all(j job) jobs { return func(*rand.Rand) job { return j } }

// open sends requests at a rate, at random times, whatever becomes of those before.
func (s *simulation) open(rate float64, length time.Duration, make jobs) {
	rng := s.random()
	s.sources.Go(func() {
		next := time.Now()
		for end := next.Add(length); ; {
			next = next.Add(exponential(rng, time.Duration(float64(time.Second)/rate)))
			if !next.Before(end) {
				return
			}
			time.Sleep(time.Until(next))
			j := make(rng)
			s.requests.Go(func() { s.send(j) })
		}
	})
}

// closed has clients that each send a request when the one before is answered.
func (s *simulation) closed(clients int, length time.Duration, make jobs) {
	for range clients {
		rng := s.random()
		s.sources.Go(func() {
			for end := time.Now().Add(length); time.Now().Before(end); {
				s.send(make(rng))
			}
		})
	}
}

// send sends a request, and counts what becomes of it. A client that leaves does not count
// as failed unless it was patient for long enough.
func (s *simulation) send(j job) {
	at := s.elapsed()
	failed := s.serve(j)
	s.tally.mu.Lock()
	defer s.tally.mu.Unlock()
	s.tally.sent[j.kind]++
	if failed {
		s.tally.failures[j.kind] = append(s.tally.failures[j.kind], at)
		s.tally.lost[j.kind] = append(s.tally.lost[j.kind], s.elapsed())
	}
}

// patience is how long a client waits that does not leave on purpose.
const patience = 30 * time.Second

// serve does what the handler does with a request, and reports whether it failed.
func (s *simulation) serve(j job) (failed bool) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	leaves := j.patient
	if leaves == 0 {
		leaves = patience + j.work
	}
	defer time.AfterFunc(leaves, cancel).Stop()
	ctx = context.WithValue(ctx, jobKey{}, j)
	ctx = context.WithValue(ctx, caddyhttp.ServerCtxKey, s.caddy)
	ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, make(map[string]any))
	ctx = context.WithValue(ctx, caddy.ReplacerCtxKey, caddy.NewReplacer())
	method := http.MethodGet
	if j.post {
		method = http.MethodPost
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://simulated/", nil)
	if err != nil {
		s.tb.Error(err)
		return true
	}
	for try := 0; ; try++ {
		var dial reverseproxy.DialError
		switch status, err := s.roundTrip(r); {
		case err == nil:
			return status >= 500
		case ctx.Err() != nil:
			return j.patient == 0
		case try >= s.retries:
			return true
		case !errors.As(err, &dial) && !errors.Is(err, errNoneSelected) && method != http.MethodGet:
			return true
		}
	}
}

var errNoneSelected = errors.New("no upstreams available")

// roundTrip is one try of a request.
func (s *simulation) roundTrip(r *http.Request) (status int, err error) {
	u := s.pick(r)
	if u == nil {
		return http.StatusServiceUnavailable, errNoneSelected
	}
	info := reverseproxy.DialInfo{Upstream: u, Network: "tcp", Address: u.Dial}
	answer, err := s.transport.RoundTrip(r.WithContext(context.WithValue(r.Context(), dialInfo, info)))
	if err != nil {
		return 0, err
	}
	if err := answer.Body.Close(); err != nil {
		return 0, err
	}
	return answer.StatusCode, nil
}

// sent returns how many requests of a kind there were, and failed how many of them failed
// that were sent in a period.
func (s *simulation) sent(k kind) int {
	s.tally.mu.Lock()
	defer s.tally.mu.Unlock()
	return s.tally.sent[k]
}

func (s *simulation) failed(k kind, from, to time.Duration) (n int) {
	s.tally.mu.Lock()
	defer s.tally.mu.Unlock()
	for _, at := range s.tally.failures[k] {
		if at >= from && at < to {
			n++
		}
	}
	return n
}

// lastFailure returns when the last normal request failed that was sent in a period.
func (s *simulation) lastFailure(from, to time.Duration) time.Duration {
	s.tally.mu.Lock()
	defer s.tally.mu.Unlock()
	last := from
	for _, at := range s.tally.failures[normal] {
		if at >= from && at < to {
			last = max(last, at)
		}
	}
	return last
}

// forever is the end of a period that has none.
const forever = time.Duration(math.MaxInt64)

// heeds reports whether the policy sees how requests end.
func (s *simulation) heeds() bool { return !s.unobserved }

// backAfter returns how long after a time a server gets its second request: the first one
// can be on its way already.
func (s *simulation) backAfter(server int, at time.Duration) time.Duration {
	came := s.servers[server].requests(at, forever)
	if len(came) < 2 {
		return forever
	}
	return came[1] - at
}

// finish waits until all loads are over.
func (s *simulation) finish() {
	s.sources.Wait()
	s.requests.Wait()
}

// burstProbes returns how many probes of all servers began sooner after another than the
// schedule has them, in a period.
func (s *simulation) burstProbes(from, to time.Duration) (n int) {
	interval := 5 * time.Second
	if s.interval > 0 {
		interval = s.interval
	}
	for _, server := range s.servers {
		at := server.probedAt()
		slices.Sort(at)
		for i := 1; i < len(at); i++ {
			if at[i] >= from && at[i] < to && at[i]-at[i-1] < interval-10*time.Millisecond {
				n++
			}
		}
	}
	return n
}

// spread returns how far the server with the fewest and the one with the most requests of a
// period are from an even share, as shares of that.
func (s *simulation) spread(from, to time.Duration) (below, above float64) {
	var total int
	counts := make([]int, 0, len(s.servers))
	for _, server := range s.servers {
		n := len(server.requests(from, to))
		counts = append(counts, n)
		total += n
	}
	even := float64(total) / float64(len(counts))
	return 1 - float64(slices.Min(counts))/even, float64(slices.Max(counts))/even - 1
}

// events returns how often each event was emitted until now.
func (s *simulation) events() map[string]int {
	n := make(map[string]int)
	for _, e := range s.policy.emitted() {
		n[e.Name]++
	}
	return n
}

// results is a table that -v shows.
type results struct {
	text   strings.Builder
	writer *tabwriter.Writer
}

func newResults(t *testing.T, columns ...any) *results {
	r := new(results)
	r.writer = tabwriter.NewWriter(&r.text, 0, 0, 2, ' ', 0)
	r.add(columns...)
	t.Cleanup(func() {
		if err := r.writer.Flush(); err != nil {
			t.Error(err)
		}
		t.Logf("\n%s", r.text.String())
	})
	return r
}

// add adds a row.
func (r *results) add(columns ...any) {
	for _, c := range columns {
		switch c := c.(type) {
		case time.Duration:
			fmt.Fprintf(r.writer, "%.2fs\t", c.Seconds())
		case float64:
			fmt.Fprintf(r.writer, "%.3f\t", c)
		default:
			fmt.Fprintf(r.writer, "%v\t", c)
		}
	}
	fmt.Fprintln(r.writer)
}

// onOff names what is compared.
func onOff(unobserved bool) string {
	if unobserved {
		return "off"
	}
	return "on"
}
