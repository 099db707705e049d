// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
)

// Selection is a policy that selects upstreams in turn among those that are
// alive: round robin that is exact under any concurrency, skips upstreams
// whose health checks fail, and never answers that there is none while one can
// serve. It runs active health checks of its own; what Caddy itself knows of
// an upstream (passive health checks, its own active ones, a circuit breaker,
// a limit of requests) is respected at every request.
//
// While the first verdicts are still out, requests are held for a moment. If
// no upstream is alive, requests go to all of them, as the last resort.
// Retries (`lb_retries`, `lb_try_duration`) go to upstreams that the request
// has not tried yet, at last to those that are down, unless `fail_open` is `off`.
//
// Upstreams from a dynamic source are checked from when a request first brings
// them along, until requests no longer do. Those with a placeholder in their
// address that depends on the request, or that can change while Caddy runs, such as
// `{file.*}`, are not checked: they count as alive.
type Selection struct {
	// The name of the pool of upstreams, as operators see it. Handlers whose pools
	// have the same name are one pool there. Default: the upstreams as they are
	// configured, with a number, such as ` #2`, for handlers of the same upstreams
	// that differ in their checks or in which upstreams get requests.
	Name string `json:"name,omitempty"`

	// How to find out who is alive. With several checks, an upstream is alive
	// while it passes all of them. Default: one check of the kind `tcp`.
	Checks []*HealthCheck `json:"checks,omitempty"`

	// How long requests are held at most at a cold start, while no upstream is
	// known to be alive and the first verdict of some is still out. They go on
	// as soon as all have a verdict, or 100 ms after the first is alive. At least
	// `1ms`; 0 holds none. Default: the longest `timeout` of the checks, but 5s at
	// most.
	Hold *caddy.Duration `json:"hold,omitempty"`

	// How many requests upstreams get in proportion to each other, from 0 to
	// 256, by address as in the list of upstreams. Global placeholders can stand for
	// an address and for a number. With 0, one gets none at all, not even as the last
	// resort; at least one must have more. With weights of 5, 1 and 1 for a, b and c, they
	// serve in the order `aabacaa`, and each has its exact share, also among those
	// that are left when others are down. Default: 1.
	Weights map[string]Weight `json:"weights,omitempty"`

	// The addresses of upstreams, or placeholders for them, that get requests only
	// while no other one can serve. Default: none.
	Backups []string `json:"backups,omitempty"`

	// When the health of upstreams that are not backups is ignored: `none_up` as
	// the last resort, while nobody serves; a percentage, such as `50%`, also
	// while a smaller share of those with a verdict serves, and no backup does;
	// `off` never, and requests are answered 503 then. Default: `none_up`.
	FailOpen string `json:"fail_open,omitempty"`

	// Gives upstreams that come back, or that join others, their share of
	// requests little by little. Default: at once.
	SlowStart *SlowStart `json:"slow_start,omitempty"`

	// Another selection policy to pick among the upstreams that are alive. Not
	// `alive` or `weighted_round_robin`, also not as its fallback, and not together
	// with `slow_start` or weights other than 0. Default: none, they take turns by
	// their weights.
	SelectRaw json.RawMessage `json:"select,omitempty" caddy:"namespace=http.reverse_proxy.selection_policies inline_key=policy"`

	// what a Caddyfile has named by weight and by backup, by address
	weighed, backedUp map[string]string

	logger    *zap.Logger
	app       *App
	adopted   bool
	proxy     *reverseproxy.Handler
	upstreams reverseproxy.UpstreamPool // those in the proxy's own list
	members   []*member                 // the same, by position
	byDial    map[string]*member
	indexing  sync.Once
	byShown   map[string]*member // those whose dial address is not what operators name; after indexing
	dynamic   *dynamic
	transport *monitor.Transport
	rules     rules
	inner     reverseproxy.Selector // picks instead of round robin, if set
	selects   string                // the name of inner
	hold      time.Duration
	retries   bool // the proxy may ask again for the same request
	// countHealthy: fail_open has a percentage, and Caddy has health checks of its
	// own, so that every pick has to count who is healthy
	countHealthy bool
	warned       atomic.Bool     // that some upstream of a dynamic source cannot be checked
	pool         string          // its name
	variable     string          // where a request keeps its attempts
	unloaded     <-chan struct{} // closed when the config ends
	exiting      <-chan struct{} // closed when the process begins to exit; requests are not held then

	counters *telemetry.PoolCounters
	counting sync.Mutex // held while a snapshot succeeds another
	retired  []retired  // guarded by counting

	watchesMu sync.Mutex
	watches   []*monitor.Monitor // all there are; guarded by watchesMu
	running   atomic.Bool        // probes run, so that changes are news; changed under watchesMu
	said      atomic.Int32       // the mood that was last logged

	first   uint64 // the ticket with which the first snapshot begins
	current atomic.Pointer[snapshot]
	// generation counts refreshes, for snapshots that are made elsewhere
	generation atomic.Uint64
	mu         sync.Mutex  // one refresh at a time
	stale      atomic.Bool // a refresh is waiting for mu, and will see all that changed
	ramp       *time.Timer // refreshes while a slow start goes on; guarded by mu
	cleaned    bool        // nothing is started any more; guarded by mu
}

// SlowStart is how upstreams that come back, or that join others, get requests little
// by little. Their weight grows evenly from the floor to its full size, while at least
// one of those that serve beside them (primaries, or backups) is past its own slow
// start. So none has one when a whole pool starts.
type SlowStart struct {
	// How long it takes to the full weight, from `10ms` to `24h`. Required.
	Window caddy.Duration `json:"window,omitempty"`

	// The share of the weight that it begins with, rounded up to a multiple of
	// 5 %, and 5 % at least. Default: `10%`.
	Floor string `json:"floor,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*Selection) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.selection_policies.alive",
		New: func() caddy.Module { return new(Selection) },
	}
}

// Provision finds the proxy that s belongs to and sets up the health checks of
// its upstreams. Nothing is probed before the app starts.
func (s *Selection) Provision(ctx caddy.Context) error {
	s.logger = ctx.Logger()
	s.unloaded = ctx.Done()
	s.variable = fmt.Sprintf("alive.attempts.%p", s)
	s.first = uint64(rand.Uint32())

	modules := ctx.Modules()
	for i := len(modules) - 1; i >= 0 && s.proxy == nil; i-- {
		s.proxy, _ = modules[i].(*reverseproxy.Handler)
	}
	if s.proxy == nil {
		return errNoProxy
	}
	if slices.ContainsFunc(modules[:len(modules)-1], func(m caddy.Module) bool { _, ok := m.(*Selection); return ok }) {
		return errors.New("alive cannot be used by a policy that alive itself selects with")
	}
	s.upstreams = s.proxy.Upstreams
	if parent, ok := modules[max(0, len(modules)-2)].(reverseproxy.Selector); ok && parent != s {
		s.logger.Warn("as the fallback of another policy, alive sees only the requests that policy leaves to it; " +
			"the others can reach upstreams known to be dead: use the option select of lb_policy alive instead")
	}
	if checks := s.proxy.HealthChecks; checks != nil && checks.Active != nil && checks.Active.IsEnabled() {
		s.logger.Warn("lb_policy alive has health checks of its own, and the handler has Caddy's (health_uri): both probe the upstreams, " +
			"and one is only alive while it passes both; remove health_uri and its options, unless that is meant")
	}
	if lb := s.proxy.LoadBalancing; lb != nil {
		s.retries = lb.Retries != 0 || lb.TryDuration != 0
	}

	app, err := ctx.App("alive")
	if err != nil {
		return err
	}
	s.app = app.(*App)
	s.exiting = s.app.exiting
	if err := s.provisionName(ctx); err != nil {
		return err
	}

	if len(s.Checks) == 0 {
		s.Checks = []*HealthCheck{defaultCheck()}
	}
	for i, check := range s.Checks {
		if err := check.provision(ctx); err != nil {
			return fmt.Errorf("checks: position %d: %v", i, err)
		}
		if same := slices.IndexFunc(s.Checks[:i], check.equal); same >= 0 {
			return fmt.Errorf("checks: position %d is the same as position %d", i, same)
		}
		s.hold = min(max(s.hold, check.resolved.Settings.Timeout), maxHold)
	}
	if err := labelChecks(s.Checks); err != nil {
		return err
	}
	if s.Hold != nil {
		if s.hold, err = resolveHold(time.Duration(*s.Hold)); err != nil {
			return err
		}
	}
	if err := s.provisionRules(ctx); err != nil {
		return err
	}

	if s.transport, err = monitor.NewTransport(ctx, s.proxy); err != nil {
		return err
	}
	if err := s.gather(); err != nil {
		return err
	}
	s.dynamic = newDynamic(s) // before the first change of a status can be told
	for _, w := range s.watches {
		w.Subscribe(s.refresh)
	}
	s.refresh()
	if err := s.resumeDynamic(); err != nil {
		return err
	}
	if err := s.joinPool(); err != nil { // not before: from now on scrapes read s
		return err
	}

	s.app.adopt(s)
	s.adopted = true
	return nil
}

// provisionRules checks and resolves what is configured about who gets requests.
func (s *Selection) provisionRules(ctx caddy.Context) error {
	var err error
	if s.rules.failOpen, err = parseFailOpen(s.FailOpen); err != nil {
		return err
	}
	s.countHealthy = s.rules.failOpen.percent > 0 && s.proxy.HealthChecks != nil
	if s.SlowStart != nil {
		if s.rules.slowStart, s.rules.floor, err = s.SlowStart.resolve(); err != nil {
			return err
		}
	}
	if s.SelectRaw == nil {
		return nil
	}
	if s.SlowStart != nil {
		return errors.New("slow_start cannot be combined with select, which decides by itself how often an upstream is picked")
	}
	for name, weight := range s.Weights {
		if number, err := weight.resolve(); err == nil && number != 0 {
			return fmt.Errorf("weights: %s: only a weight of 0 can be combined with select, which decides by itself how often an upstream is picked", name)
		}
	}
	var name struct {
		Policy string `json:"policy"`
	}
	if err := json.Unmarshal(s.SelectRaw, &name); err != nil {
		return fmt.Errorf("select: %v", err)
	}
	if !canSelect(name.Policy) {
		return errCannotSelect(name.Policy)
	}
	if selectsByPosition(s.SelectRaw) {
		return fmt.Errorf("select: %w", errPositional)
	}
	mod, err := ctx.LoadModule(s, "SelectRaw")
	if err != nil {
		return fmt.Errorf("select: %v", err)
	}
	s.inner, s.selects = mod.(reverseproxy.Selector), name.Policy
	return nil
}

// resolveHold checks how long requests are held; 0 is not at all.
func resolveHold(hold time.Duration) (time.Duration, error) {
	if hold < 0 {
		return 0, errors.New("hold must not be negative; 0 holds no request")
	}
	if hold == 0 {
		return 0, nil
	}
	return hold, limits.Duration("hold", hold, limits.MinHold, math.MaxInt64)
}

// canSelect reports whether a policy can pick among the upstreams alive.
func canSelect(policy string) bool { return slices.Contains(selectable(), policy) }

func errCannotSelect(policy string) error {
	return fmt.Errorf("select takes one of the selection policies %s; got '%s'%s", strings.Join(selectable(), ", "), policy, didYouMean(policy, selectable()))
}

// selectsByPosition reports whether any policy in the JSON of another one, such as its
// fallback, counts the positions of a pool. Those would be other upstreams whenever one
// goes down.
func selectsByPosition(policy json.RawMessage) bool {
	var value any
	if err := json.Unmarshal(policy, &value); err != nil {
		return false // which never loads
	}
	return nests(value)
}

func nests(value any) bool {
	switch value := value.(type) {
	case map[string]any:
		if value["policy"] == positional {
			return true
		}
		for _, v := range value {
			if nests(v) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(value, nests)
	}
	return false
}

// positional is the policy that counts the positions of a pool.
const positional = "weighted_round_robin"

var errPositional = errors.New(positional + " cannot be a fallback either: it counts the positions of the whole pool, and gets those alive only; weights are an option of lb_policy alive, without select")

// selectable lists the policies that can pick among the upstreams alive: all
// but this one, and weighted_round_robin, which counts the positions of a pool.
func selectable() []string {
	var names []string
	for _, info := range caddy.GetModules("http.reverse_proxy.selection_policies") {
		if name := info.ID.Name(); name != "alive" && name != positional {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// resolve returns the window and the floor, or what is wrong with them.
func (c *SlowStart) resolve() (window time.Duration, floor float64, err error) {
	window, floor = time.Duration(c.Window), defaultFloor
	if window <= 0 || window > limits.MaxDuration {
		return 0, 0, fmt.Errorf("slow_start needs a window above 0 and not longer than %s", limits.MaxDuration)
	}
	if err := limits.Duration("slow_start: window", window, limits.MinRampWindow, limits.MaxDuration); err != nil {
		return 0, 0, err
	}
	if c.Floor != "" {
		percent, err := limits.Percent(c.Floor)
		if err != nil {
			return 0, 0, fmt.Errorf("slow_start: floor %v", err)
		}
		floor = percent / 100
	}
	return window, floor, nil
}

// parseFailOpen reads none_up, off or a percentage; nothing is none_up.
func parseFailOpen(text string) (failOpen, error) {
	switch text {
	case "", "none_up":
		return failOpen{}, nil
	case "off":
		return failOpen{never: true}, nil
	}
	percent, err := limits.Percent(text)
	if err != nil {
		return failOpen{}, fmt.Errorf("fail_open must be none_up, off or a percentage from 0%% to 100%%, like 50%%; got '%s'", text)
	}
	return failOpen{percent: percent}, nil
}

// Cleanup ends what Provision began. Select still works afterwards, on what
// was known last, for requests that are in flight.
func (s *Selection) Cleanup() error {
	s.mu.Lock()
	cleaned := s.cleaned
	s.cleaned = true
	if s.ramp != nil {
		s.ramp.Stop()
	}
	s.mu.Unlock()
	if cleaned {
		return nil // to forget twice would forget what others still watch
	}

	var errs []error
	errs = append(errs, s.leavePool())
	if s.dynamic != nil {
		s.dynamic.close()
		if s.dynamic.key != "" {
			_, err := shared.WatchLists.Delete(s.dynamic.key)
			errs = append(errs, err)
		}
	}
	if s.adopted {
		s.app.disown(s)
	}
	for _, w := range s.run(false) {
		errs = append(errs, w.Release())
	}
	return errors.Join(errs...)
}

// run tells s whether its probes run, those of watches to come included, and
// returns all there are now.
func (s *Selection) run(running bool) []*monitor.Monitor {
	s.watchesMu.Lock()
	defer s.watchesMu.Unlock()
	s.running.Store(running)
	return slices.Clone(s.watches)
}

// allWatches returns the watches that there are now.
func (s *Selection) allWatches() []*monitor.Monitor {
	s.watchesMu.Lock()
	defer s.watchesMu.Unlock()
	return slices.Clone(s.watches)
}

// refresh makes a new snapshot of what is known and swaps it in. Requests go
// on with the old one meanwhile. Of those who call it while one is under way,
// one waits and looks for all.
func (s *Selection) refresh() {
	if !s.stale.Swap(true) {
		s.renew()
	}
}

// renew is refresh, but returns when there is a snapshot that was begun later.
func (s *Selection) renew() {
	s.mu.Lock()
	s.stale.Store(false)
	s.generation.Add(1)
	now := newSnapshot(s.members, s.rules, time.Now())
	now.said = &s.said
	now.quick = now.best.Len() > 0 && !s.retries && !s.countHealthy && s.inner == nil
	now.direct.Store(now.quick && s.situation(now, s.upstreams).mood == now.mood)
	before := s.current.Load()
	s.succeed(now, before, func() { s.current.Store(now) })
	if s.ramp != nil {
		s.ramp.Stop()
	}
	if now.next > 0 && !s.cleaned {
		s.ramp = time.AfterFunc(now.next, s.refresh)
	}
	s.mu.Unlock()
	if before != nil {
		close(before.superseded)
	}
	if s.dynamic != nil {
		s.dynamic.waiters.wake() // after the generation has changed
	}
	s.announceOwn()
}

// Select returns the upstream whose turn it is among those alive. It is nil
// only if none can take the request: all that serve are full, the circuit
// breaker is open, nobody is alive and that must not be ignored, or there is no
// upstream at all.
func (s *Selection) Select(pool reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	if s.owns(pool) {
		if now := s.current.Load(); now.direct.Load() {
			i := now.best.At(now.tickets.Add(1))
			if u := pool[i]; u.Available() {
				return u
			}
			now.members[i].picked.Add(-1)
		}
	}
	return s.decide(pool, r, w)
}

// decide is Select where the first ticket does not settle it. It stands apart because
// what it needs on the stack would cost those whom it does.
func (s *Selection) decide(pool reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	if len(pool) == 0 {
		return nil
	}
	d := decision{Selection: s, pool: pool, request: r, writer: w, tried: s.attempts(r)}
	u := d.choose()
	d.report()
	switch {
	case u != nil:
		d.tried.add(u)
		d.count(u)
	case r.Context().Err() != nil:
		// The client has left. To answer that there is nobody would be logged
		// as an error and retried; any upstream ends the request at once.
		u = pool[0]
	}
	return u
}

// owns reports whether pool is the proxy's own list, for which the current
// snapshot is made, rather than one from a dynamic source or another policy.
func (s *Selection) owns(pool reverseproxy.UpstreamPool) bool {
	return len(pool) == len(s.upstreams) && (len(pool) == 0 || pool[0] == s.upstreams[0])
}

// snapshotOf returns the snapshot of a pool at this moment.
func (s *Selection) snapshotOf(pool reverseproxy.UpstreamPool) *snapshot {
	if s.owns(pool) {
		return s.current.Load()
	}
	return s.dynamic.snapshotOf(pool)
}

// freshSnapshotOf is snapshotOf, but never returns one that another goroutine replaces
// at this moment.
func (s *Selection) freshSnapshotOf(pool reverseproxy.UpstreamPool) *snapshot {
	if s.owns(pool) {
		return s.current.Load()
	}
	return s.dynamic.freshSnapshotOf(pool)
}

// circuitOpen reports whether the circuit breaker of the proxy, which is one for
// all of its upstreams, wants no request at all.
func (s *Selection) circuitOpen() bool { return s.proxy.CB != nil && !s.proxy.CB.OK() }

// Interface guard
var _ reverseproxy.Selector = (*Selection)(nil)
