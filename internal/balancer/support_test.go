// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/view"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// defaultTransport is that of a handler which configures none. It can be used in several
// bubbles of virtual time.
var defaultTransport = func() *monitor.Transport {
	ctx, _ := caddy.NewContext(caddy.Context{Context: context.Background()})
	t, err := monitor.NewTransport(ctx, new(reverseproxy.Handler))
	if err != nil {
		panic(err)
	}
	return t
}()

// policy is a Balancer over upstreams whose verdicts a test decides.
type policy struct {
	*Balancer
	targets []*health.Target // one for each verdict
	logs    *observer.ObservedLogs
	events  []telemetry.Event // see emitted
	unload  context.CancelFunc
}

// setup is what a test can configure of a policy before it begins.
type setup struct {
	Config
	registry *Registry
	// members are made by hand, one for each verdict. If there are none, those of the
	// upstreams of the handler are made as for a config.
	members []*pool.Member
	// idle: probes do not run yet.
	idle bool
}

// newRegistry returns a registry that is not started, with a queue whose events wait. Its
// balancers follow its settings.
func newRegistry(tb testing.TB, set *settings.Set) *Registry {
	tb.Helper()
	r := NewRegistry()
	r.Settings, r.Logger = set, zap.NewNop()
	r.Store = settings.NewStore(set, &certmagic.FileStorage{Path: tb.TempDir()}, "alive/test", 0, r.Logger)
	r.Events = telemetry.NewQueue(r.Logger, nil, Queues)
	tb.Cleanup(set.Subscribe(r.ApplySetting))
	return r
}

// newPolicy makes a policy over as many upstreams as there are verdicts: u for up, d for
// down, ? for none yet. Its pool is "shop", and its probes run.
func newPolicy(tb testing.TB, verdicts string, configure ...func(*setup)) *policy {
	tb.Helper()
	core, logs := observer.New(zap.InfoLevel)
	ctx, unload := context.WithCancel(context.Background())
	p := &policy{Balancer: new(Balancer), logs: logs, unload: unload}
	s := &setup{
		Config: Config{
			Name: "shop", Rules: pool.Rules{Hold: 2 * time.Second, Witness: witness.DefaultSettings()}, Transport: defaultTransport,
			Proxy: new(reverseproxy.Handler), Logger: zap.New(core), Ended: ctx.Done(),
		},
		registry: newRegistry(tb, settings.NewSet()),
	}
	for i := range verdicts {
		u := &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: address(i)}
		target := testkit.NewTarget()
		target.MarkOrigin(verdicts[i] != '?')
		s.Proxy.Upstreams = append(s.Proxy.Upstreams, u)
		p.targets = append(p.targets, target)
		s.members = append(s.members, &pool.Member{Address: u.Dial, Checks: []pool.Check{{Label: "test", Target: target}}, Weight: 1})
	}
	for _, f := range configure {
		f(s)
	}
	p.configure(s.registry, s.Config)
	tb.Cleanup(func() { p.end(tb) })
	if err := p.begin(s.members); err != nil {
		tb.Fatal(err)
	}
	if !s.idle {
		startAll([]*Balancer{p.Balancer})
	}
	p.decide(verdicts)
	return p
}

// begin does what is left to do of Init.
func (p *policy) begin(members []*pool.Member) (err error) {
	if err := p.traffic.init(p.Balancer); err != nil {
		return err
	}
	if len(members) == 0 {
		if members, err = p.buildMembers(); err != nil {
			return err
		}
		return p.join(members)
	}
	p.members.byDial = make(map[string]*pool.Member)
	for i, m := range members {
		p.members.byDial[p.listed[i].Dial] = m
		p.traffic.add(m)
	}
	if err := p.join(members); err != nil {
		return err
	}
	for _, m := range members {
		for _, c := range m.Checks {
			c.Target.Subscribe(p.traffic.follow(m))
		}
	}
	return nil
}

// end ends the config of a policy. It can be called again.
func (p *policy) end(tb testing.TB) {
	tb.Helper()
	p.unload()
	if err := p.Close(); err != nil {
		tb.Error(err)
	}
}

// idle makes a policy wait for its start.
func idle(s *setup) { s.idle = true }

// checking has the config list upstreams that a check probes.
func checking(check *monitor.Check, dials ...string) func(*setup) {
	return func(s *setup) { s.Checks, s.Proxy.Upstreams = []*monitor.Check{check}, brought(dials...) }
}

// in adds a policy to a registry that others have, too.
func in(r *Registry) func(*setup) { return func(s *setup) { s.registry = r } }

// withWeights sets the weights of a pool, backups with a negative one.
func withWeights(weights ...int) func(*setup) {
	return func(s *setup) {
		for i, w := range weights {
			s.members[i].Weight, s.members[i].Group = max(w, -w), 0
			if w < 0 {
				s.members[i].Group = 1
			}
		}
	}
}

func retrying(s *setup) { s.Rules.Retries = true }

func address(i int) string { return fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1) }

// decide gives each upstream the verdict of its letter; ? leaves it as it is.
func (p *policy) decide(verdicts string) { testkit.DecideAll(p.targets, verdicts) }

// set changes what is set at run time for an upstream, as an operator does.
func (p *policy) set(i int, c settings.Change) { p.registry.Settings.Change(p.listed[i].Dial, c) }

// Select does what the Select method of the policy module does.
func (p *policy) Select(upstreams reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	if p.Owns(upstreams) {
		p.BroughtList(r)
		if now := p.Current(); now.Fast() {
			i := now.Draw()
			if u := upstreams[i]; u.Available() {
				return u
			}
			now.Skip(i)
		}
	}
	return p.Decide(upstreams, r, w)
}

// roundTrip sends a request to an upstream, as the handler does, and ends it in a way.
func (p *policy) roundTrip(r *http.Request, u *reverseproxy.Upstream, end roundTrip) {
	p.roundTripBy(p.Observe(end, false), r, u)
}

// roundTripBy is roundTrip by a transport.
func (*policy) roundTripBy(transport http.RoundTripper, r *http.Request, u *reverseproxy.Upstream) {
	ctx := context.WithValue(r.Context(), caddyhttp.ServerCtxKey, new(caddyhttp.Server))
	ctx = context.WithValue(ctx, caddy.CtxKey("reverse_proxy.dial_info"), reverseproxy.DialInfo{Upstream: u, Address: u.Dial})
	res, err := transport.RoundTrip(r.WithContext(ctx))
	if err == nil {
		_ = res.Body.Close()
	}
}

// roundTrip is a transport of one round trip.
type roundTrip func(*http.Request) (*http.Response, error)

// RoundTrip calls it.
func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// refused is a round trip that fails before anything is sent.
func refused(*http.Request) (*http.Response, error) {
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
}

// answeringStatus is a round trip that ends with an answer.
func answeringStatus(status int) roundTrip {
	return func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Body: http.NoBody, Header: make(http.Header)}, nil
	}
}

// picks returns the positions of the upstreams of n picks, -1 for nil.
func (p *policy) picks(r func() *http.Request, n int) []int {
	got := make([]int, 0, n)
	for range n {
		got = append(got, slices.Index(p.listed, p.Select(p.listed, r(), nil)))
	}
	return got
}

// brought returns a pool as a source makes it: new values every time.
func brought(dials ...string) reverseproxy.UpstreamPool {
	var upstreams reverseproxy.UpstreamPool
	for _, dial := range dials {
		upstreams = append(upstreams, &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: dial})
	}
	return upstreams
}

// served returns how many of n requests over pools of these addresses each address got.
func (p *policy) served(n int, dials ...string) map[string]int {
	served := make(map[string]int)
	for range n {
		served[p.Select(brought(dials...), testkit.Get(), nil).Dial]++
	}
	return served
}

// emitted returns the events of the registry of the policy, those of other policies of it
// included.
func (p *policy) emitted() []telemetry.Event {
	for e, ok := p.registry.Events.Next(); ok; e, ok = p.registry.Events.Next() {
		p.events = append(p.events, e)
	}
	return p.events
}

// takeFailOpen takes the events that wait, and returns what those of fail-open say.
func takeFailOpen(q *telemetry.Queue) (active []bool) {
	for e, ok := q.Next(); ok; e, ok = q.Next() {
		if e.Name == "fail_open" {
			active = append(active, e.Data["active"].(bool))
		}
	}
	return active
}

// rows returns the rows of the policy alone.
func (p *policy) rows(only Filter) []view.Upstream { return lister{p.Balancer, only}.rows() }

// answering makes the registry of a policy answer operators until the test ends.
func answering(tb testing.TB, r *Registry) {
	tb.Helper()
	running.Lock()
	running.registries = append(running.registries, r)
	running.Unlock()
	tb.Cleanup(func() {
		running.Lock()
		running.registries = slices.DeleteFunc(running.registries, func(other *Registry) bool { return other == r })
		running.Unlock()
		listings.drop(r)
	})
}

// checkBy returns a check with a probe, and an identity of its own.
func checkBy(label, identity string, settings health.Settings, probe func(ctx context.Context, r *monitor.Route) error) *monitor.Check {
	return &monitor.Check{Label: label, Kind: label, Identity: identity, Settings: settings, Bind: func(r *monitor.Route) monitor.ProbeFunc {
		return func(ctx context.Context) (bool, error) { return false, probe(ctx, r) }
	}}
}

// prober passes every probe, and records when each began.
type prober struct {
	began time.Time
	mu    sync.Mutex
	at    map[string][]time.Duration // by upstream
}

func newProber() *prober { return &prober{began: time.Now(), at: make(map[string][]time.Duration)} }

// probes returns when the probes of an upstream began.
func (p *prober) probes(upstream string) []time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.at[upstream])
}

// check returns a check by the prober. All are the same check.
func (p *prober) check() *monitor.Check {
	return checkBy("prober", fmt.Sprintf("%p", p), health.Settings{
		Interval: 10 * time.Second, FastInterval: time.Second, DownInterval: 5 * time.Second,
		Timeout: time.Second, Passes: 2, Fails: 3,
	}, func(_ context.Context, r *monitor.Route) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.at[r.Address] = append(p.at[r.Address], time.Since(p.began))
		return nil
	})
}

// network has upstreams that are alive or not, as a test says. It counts every probe.
type network struct {
	mu     sync.Mutex
	alive  map[string]bool
	probes map[string]int
}

func newNetwork(alive ...string) *network {
	n := &network{alive: make(map[string]bool), probes: make(map[string]int)}
	for _, address := range alive {
		n.alive[address] = true
	}
	return n
}

// check returns a check of the network. All are the same check.
func (n *network) check() *monitor.Check {
	return checkBy("network", fmt.Sprintf("%p", n), health.Settings{
		Interval: 10 * time.Second, FastInterval: time.Second, DownInterval: 10 * time.Second,
		Timeout: time.Second, Passes: 2, Fails: 3,
	}, func(_ context.Context, r *monitor.Route) error {
		time.Sleep(100 * time.Millisecond) // of virtual time
		n.mu.Lock()
		defer n.mu.Unlock()
		n.probes[r.Address]++
		if !n.alive[r.Address] {
			return errors.New("not alive")
		}
		return nil
	})
}

// kill makes upstreams fail from now on.
func (n *network) kill(addresses ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, address := range addresses {
		delete(n.alive, address)
	}
}

// probed returns the addresses that were probed since the last call.
func (n *network) probed() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	addresses := slices.Sorted(maps.Keys(n.probes))
	clear(n.probes)
	return addresses
}

// newDynamicPolicy makes a policy that has only the upstreams that requests bring, from a
// source.
func newDynamicPolicy(tb testing.TB, n *network, source string, configure ...func(*setup)) *policy {
	tb.Helper()
	return newPolicy(tb, "", append([]func(*setup){func(s *setup) {
		s.Checks = []*monitor.Check{n.check()}
		s.Proxy.DynamicUpstreamsRaw = []byte(source)
	}}, configure...)...)
}
