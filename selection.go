// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/balancer"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/selector"
	"github.com/caddy-alive/caddy-alive/internal/source"
	"github.com/caddy-alive/caddy-alive/internal/upstreamname"
)

func init() { caddy.RegisterModule(new(Selection)) }

// Selection is a policy that selects upstreams in turn among those that are
// alive: round robin that is exact under any concurrency, skips upstreams
// that fail their health checks, and never answers that there is none while one can
// serve. It runs active health checks of its own; what Caddy itself knows of
// an upstream (passive health checks, its own active ones, a circuit breaker,
// a limit of requests) is respected at every request.
//
// While the first verdicts are still out, requests are held for a moment. If
// no upstream is alive, requests go to all of them, as the last resort.
// Retries (`retries`, `lb_retries`, `lb_try_duration`) go to upstreams that the request
// has not tried yet, at last to those that are down, unless `fail_open` is `off`.
//
// What happens to requests counts, too: an upstream that fails one gets no new requests
// until its checks have run again (`observe`), and one that fails several in a row is left
// out for a while although it passes them (`eject`).
//
// Upstreams from a dynamic source are checked from when a request first brings
// them along, until requests no longer do. While that source fails, its last answer is
// used for a while (`stale`). Upstreams with a placeholder in their
// address that depends on the request, or that can change while Caddy runs, such as
// `{file.*}`, are not checked: they count as alive.
type Selection struct {
	// The name of the pool of upstreams, as operators see it. Handlers whose pools
	// have the same name are one pool there. Default: the upstreams as they are
	// configured, with a number, such as ` #2`, for handlers of the same upstreams
	// that differ in their checks or in which upstreams get requests.
	Name string `json:"name,omitempty"`

	// How to find out which upstreams are alive. With several checks, an upstream is
	// alive while it passes all of them. Default: one check of the kind `tcp`.
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
	// while no other one can serve. In groups, such as `[["b1"], ["c1", "c2"]]`, each one
	// gets requests only while those before it cannot serve; `["b1", "b2"]` is one group.
	// Upstreams of a dynamic source are named as those of `weights`. Default: none.
	Backups Backups `json:"backups,omitempty"`

	// The share of the weight, above `0%`, below which the next group of backups helps those
	// before it, with the weights of its own upstreams. It is a share of the base: the sum of
	// the weights of all upstreams that are not backups, whether they serve or not. For a
	// dynamic source, the base is the largest such sum of the last 10 minutes. If the weight
	// that serves in the groups in use is less than this share of the base, the next group
	// joins. It leaves when the groups before it have had 10 percentage points more, or the
	// whole base, for 5 seconds. It needs `backups`. Default: none, a group gets requests
	// only while none before it serves.
	Spill string `json:"spill,omitempty"`

	// When the health of upstreams that are not backups is ignored: `none_up` as
	// the last resort, while no upstream serves; a percentage, such as `50%`, also
	// while a smaller share of those with a verdict serves, and no backup does; a number in
	// a text, such as `2`, also while fewer of them serve, and no backup does. All of them
	// are enough if they are fewer. `off` never, and requests are answered 503 then.
	// Default: `none_up`.
	FailOpen string `json:"fail_open,omitempty"`

	// Gives upstreams that come back, or that join others, their share of
	// requests little by little. Default: at once.
	SlowStart *SlowStart `json:"slow_start,omitempty"`

	// How often a request that failed goes to another upstream, from 1 to 100, where the
	// handler has neither `lb_retries` nor `lb_try_duration`: those decide where they are
	// set. `-1` is off, and leaves the handler as it is. Which requests are retried
	// follows from Caddy's own rules and `lb_retry_match`: connections that could not be
	// made, and GET requests that got no answer. Default: 2.
	Retries *int `json:"retries,omitempty"`

	// What of the traffic accuses an upstream, so that its checks run at once. Default:
	// connections that fail, requests that end without an answer or wait for too long,
	// and answers with the status 502, 504, or 503 without `Retry-After`.
	Observe *Observe `json:"observe,omitempty"`

	// When an upstream that fails requests, but passes its checks, gets no requests for a
	// while. It cannot be combined with `observe` that is off. Default: after 5 failures
	// in a row.
	Eject *Eject `json:"eject,omitempty"`

	// How many requests each upstream gets at once. While all that could take a request are
	// at their limits, it waits in the `queue`, or is answered 503 without one. Caddy's own
	// limits, `max_requests` of an upstream and `unhealthy_request_count`, count beside
	// these. Default: no limit.
	MaxRequests *MaxRequests `json:"max_requests,omitempty"`

	// Where requests wait while all upstreams that could take them are at their limits. It
	// needs a limit: `max_requests`, also that of an upstream, or `unhealthy_request_count`.
	// Default: none, such requests are answered 503.
	Queue *Queue `json:"queue,omitempty"`

	// Binds each client to one upstream, by a cookie. It cannot be combined with `select`.
	// Default: a client goes to any upstream.
	Sticky *Sticky `json:"sticky,omitempty"`

	// How long the last good answer of the dynamic source (`dynamic_upstreams`) is used
	// while that source fails, from `1s` to `24h`; 0 is off. When it is over, the upstreams in
	// the list of the handler are used, as Caddy does it by itself. A name that does not
	// exist is an answer and no failure. It is an error without a dynamic source, and a
	// duration is an error for a source with a placeholder that depends on the request.
	// Default: `1h` for the sources `a` and `srv`, also in a source `multi`, unless they have
	// such a placeholder; off for all other sources.
	Stale *caddy.Duration `json:"stale,omitempty"`

	// Another selection policy to pick among the upstreams that are alive. Not
	// `alive` or `weighted_round_robin`, also not as its fallback, and not together
	// with `slow_start`, `sticky` or weights other than 0. Default: none, they take turns by
	// their weights.
	SelectRaw json.RawMessage `json:"select,omitempty" caddy:"namespace=http.reverse_proxy.selection_policies inline_key=policy"`

	// what a Caddyfile has named by weight, backup and max_requests, by address
	weightNames, backupNames, limitNames upstreamname.Given

	app       *App
	proxy     *reverseproxy.Handler
	transport *reverseproxy.HTTPTransport // the default one, nil if the config names one
	source    source.Loaded               // the dynamic one, nil if the handler loads it
	balancer  balancer.Balancer
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
	if err := s.findProxy(ctx); err != nil {
		return err
	}
	app, err := ctx.App("alive")
	if err != nil {
		return err
	}
	s.app = app.(*App)
	config := balancer.Config{Named: s.Name != "", Proxy: s.proxy, Logger: ctx.Logger(), Ended: ctx.Done()}
	if err := limits.Name(s.Name); err != nil {
		return err
	}
	if config.Name = s.Name; !config.Named {
		config.Name = s.app.names.Of(ctx, identifyPool(s, s.proxy), readPool)
	}
	if config.Checks, err = s.provisionChecks(ctx); err != nil {
		return err
	}
	if config.Rules, err = s.provisionRules(ctx, config.Checks); err != nil {
		return err
	}
	if s.proxy.Transport == nil { // else the handler would set it after this
		s.transport = new(reverseproxy.HTTPTransport)
		if err := s.transport.Provision(ctx); err != nil {
			return fmt.Errorf("provisioning default transport: %v", err)
		}
		s.proxy.Transport = s.transport
	}
	if config.Transport, err = monitor.NewTransport(ctx, s.proxy); err != nil {
		return err
	}
	if err := provisionUpstreams(s, &config); err != nil {
		return err
	}
	warnSticky(s, ctx, config.Name)
	if err := s.balancer.Init(s.app.registry, config); err != nil {
		return err
	}
	s.proxy.Transport = s.balancer.Observe(s.proxy.Transport, retriesAnswers(s.proxy))
	return s.provisionSource(ctx)
}

// provisionSource loads the dynamic source in place of the handler if its last answer is
// used while it fails. This is the last step: what came before reads how it is configured,
// which the handler forgets.
func (s *Selection) provisionSource(ctx caddy.Context) (err error) {
	s.source, err = source.Load(ctx, s.proxy.DynamicUpstreamsRaw, (*time.Duration)(s.Stale), ctx.Logger())
	if s.source != nil {
		s.proxy.DynamicUpstreams, s.proxy.DynamicUpstreamsRaw = s.source, nil
	}
	return err
}

// findProxy finds the handler that is being provisioned, and warns of what goes badly
// with the policy.
func (s *Selection) findProxy(ctx caddy.Context) error {
	modules := ctx.Modules()
	for i := len(modules) - 1; i >= 0 && s.proxy == nil; i-- {
		s.proxy, _ = modules[i].(*reverseproxy.Handler)
	}
	if s.proxy == nil {
		return errors.New("the selection policy alive works in a reverse_proxy handler only")
	}
	if slices.ContainsFunc(modules[:len(modules)-1], func(m caddy.Module) bool { _, ok := m.(*Selection); return ok }) {
		return errors.New("alive cannot be used by a policy that alive itself selects with")
	}
	if parent, ok := modules[max(0, len(modules)-2)].(reverseproxy.Selector); ok && parent != s {
		ctx.Logger().Warn("alive is the fallback of another policy and sees only the requests that policy passes on; " +
			"all others can reach dead upstreams. Use that policy as the option select of lb_policy alive")
	}
	if checks := s.proxy.HealthChecks; checks != nil && checks.Active != nil && checks.Active.IsEnabled() {
		ctx.Logger().Warn("lb_policy alive has health checks of its own, and the handler has Caddy's (health_uri): both probe the upstreams, " +
			"and an upstream is alive only while it passes both; remove health_uri and its options unless you want both")
	}
	return nil
}

// provisionChecks loads the checks, and gives each its label.
func (s *Selection) provisionChecks(ctx caddy.Context) ([]*monitor.Check, error) {
	if len(s.Checks) == 0 {
		s.Checks = []*HealthCheck{defaultCheck()}
	}
	for i, check := range s.Checks {
		if err := check.provision(ctx, s.proxy); err != nil {
			return nil, fmt.Errorf("checks: position %d: %v", i, err)
		}
		at := func(i int) string { return fmt.Sprintf("position %d", i) }
		if err := check.differs(s.Checks[:i], at(i), at); err != nil {
			return nil, fmt.Errorf("checks: %v", err)
		}
	}
	labelChecks(s.Checks)
	checks := make([]*monitor.Check, 0, len(s.Checks))
	for _, check := range s.Checks {
		checks = append(checks, &check.resolved)
	}
	return checks, nil
}

// maxHold bounds the hold that follows from the timeouts of the checks.
const maxHold = 5 * time.Second

// provisionRules checks and resolves what is configured about which upstreams get
// requests.
func (s *Selection) provisionRules(ctx caddy.Context, checks []*monitor.Check) (r pool.Rules, err error) {
	for _, check := range checks {
		r.Hold = min(max(r.Hold, check.Settings.Timeout), maxHold)
	}
	if s.Hold != nil {
		r.Hold = time.Duration(*s.Hold)
		if err = limits.Hold(r.Hold); err != nil {
			return r, err
		}
	}
	if r.Retries, err = provisionRetries(s, ctx); err != nil {
		return r, err
	}
	if r.Witness, err = resolveWitness(s.Observe, s.Eject); err != nil {
		return r, err
	}
	if r.FailOpen, err = resolveFailOpen(s.FailOpen); err != nil {
		return r, err
	}
	r.CountsHealthy = (r.FailOpen.Percent > 0 || r.FailOpen.Number > 0) && s.proxy.HealthChecks != nil
	if r.Spill, err = resolveSpill(s); err != nil {
		return r, err
	}
	if r.Queue, err = s.Queue.resolve(); err != nil {
		return r, err
	}
	if s.Queue != nil && !hasLimit(s) {
		return r, errQueueNoLimit
	}
	if r.Sticky, err = s.Sticky.resolve(); err != nil {
		return r, err
	}
	if s.SlowStart != nil {
		if r.SlowStart, r.Floor, err = s.SlowStart.resolve(); err != nil {
			return r, err
		}
	}
	if s.SelectRaw != nil {
		r.Select, r.SelectName, err = s.provisionSelect(ctx)
	}
	return r, err
}

// provisionSelect loads the policy that picks instead of round robin.
func (s *Selection) provisionSelect(ctx caddy.Context) (reverseproxy.Selector, string, error) {
	if s.Sticky != nil {
		return nil, "", errStickySelect
	}
	if s.SlowStart != nil {
		return nil, "", errors.New("slow_start cannot be combined with select, which decides by itself how often an upstream is picked")
	}
	for name, weight := range s.Weights {
		if number, err := weight.resolve(); err == nil && number != 0 {
			return nil, "", fmt.Errorf("weights: %s: only a weight of 0 can be combined with select, which decides by itself how often an upstream is picked", name)
		}
	}
	var name struct {
		Policy string `json:"policy"`
	}
	if err := json.Unmarshal(s.SelectRaw, &name); err != nil {
		return nil, "", fmt.Errorf("select: %v", err)
	}
	if !selector.Can(name.Policy) {
		return nil, "", selector.ErrCannot(name.Policy)
	}
	if selector.CountsPositions(s.SelectRaw) {
		return nil, "", fmt.Errorf("select: %w", selector.ErrPositional)
	}
	mod, err := ctx.LoadModule(s, "SelectRaw")
	if err != nil {
		return nil, "", fmt.Errorf("select: %v", err)
	}
	return mod.(reverseproxy.Selector), name.Policy, nil
}

// retriesAnswers reports whether retries of the handler can follow from an answer: only an
// expression of lb_retry_match can look at one.
func retriesAnswers(h *reverseproxy.Handler) bool {
	return slices.ContainsFunc(h.LoadBalancing.RetryMatchRaw, func(set caddy.ModuleMap) bool { return set["expression"] != nil })
}

// Select returns the upstream whose turn it is among those alive. It is nil
// only if none can take the request: all that serve are full, the circuit
// breaker is open, none is alive and that must not be ignored, or there is no
// upstream at all.
func (s *Selection) Select(upstreams reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	if s.balancer.Owns(upstreams) {
		s.balancer.BroughtList(r)
		if now := s.balancer.Current(); now.Fast() {
			i := now.Draw()
			if u := upstreams[i]; u.Available() {
				return u
			}
			now.Skip(i)
		}
	}
	return s.balancer.Decide(upstreams, r, w)
}

// Cleanup ends what Provision began. Select still works afterwards, on what
// was known last, for requests that are in flight.
func (s *Selection) Cleanup() error {
	err := s.balancer.Close()
	if s.source != nil {
		err = errors.Join(err, s.source.Close())
	}
	if s.transport != nil {
		err = errors.Join(err, s.transport.Cleanup())
	}
	return err
}

// Interface guards
var (
	_ reverseproxy.Selector = (*Selection)(nil)
	_ caddy.Provisioner     = (*Selection)(nil)
	_ caddy.CleanerUpper    = (*Selection)(nil)
)
