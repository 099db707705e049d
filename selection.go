// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

const (
	// maxHold bounds the hold that follows from the timeouts of the checks.
	maxHold = 5 * time.Second
	// holdGrace is how long held requests wait for further upstreams once one
	// passed, so that they do not all go to the quickest.
	holdGrace = 100 * time.Millisecond
	// maxDraws is how many tickets a request draws before it looks at all
	// upstreams in turn. Drawing another ticket leaves the share of one that is
	// skipped to all others; walking on would leave it to the next in line.
	maxDraws = 8
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
// has not tried yet.
//
// Upstreams from a dynamic source, and those with a placeholder of the request
// in their address, are not checked: they count as alive.
type Selection struct {
	// How to find out who is alive. With several checks, an upstream is alive
	// while it passes all of them. Default: one check of the kind `tcp`.
	Checks []*HealthCheck `json:"checks,omitempty"`

	// How long requests are held at most at a cold start, while no upstream is
	// known to be alive and the first verdict of some is still out. They go on
	// as soon as all have a verdict, or 100 ms after the first is alive. 0 holds
	// none. Default: the longest `timeout` of the checks, but 5s at most.
	Hold *caddy.Duration `json:"hold,omitempty"`

	logger    *zap.Logger
	app       *App
	proxy     *reverseproxy.Handler
	upstreams reverseproxy.UpstreamPool // those in the proxy's own list
	transport *transport
	watches   []*watch            // all there are
	watched   map[string][]*watch // by dial address
	members   [][]*watch          // by position in upstreams
	hold      time.Duration
	retries   bool            // the proxy may ask again for the same request
	variable  string          // where a request keeps its attempts
	unloaded  <-chan struct{} // closed when the config ends
	driven    atomic.Bool     // probes run, so that changes are news
	announced atomic.Bool     // the last resort was last said to have begun

	ticket  atomic.Uint64 // counts picks; a change of the set does not restart it
	current atomic.Pointer[snapshot]
	mu      sync.Mutex  // one refresh at a time
	stale   atomic.Bool // a refresh is waiting for mu, and will see all that changed
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
	s.ticket.Store(uint64(rand.Uint32()))

	modules := ctx.Modules()
	for i := len(modules) - 1; i >= 0 && s.proxy == nil; i-- {
		s.proxy, _ = modules[i].(*reverseproxy.Handler)
	}
	if s.proxy == nil {
		return errNoProxy
	}
	s.upstreams = s.proxy.Upstreams
	if lb := s.proxy.LoadBalancing; lb != nil {
		s.retries = lb.Retries != 0 || lb.TryDuration != 0
	}
	if s.proxy.DynamicUpstreamsRaw != nil {
		s.logger.Warn("dynamic upstreams are not checked: each counts as alive while Caddy itself holds it healthy",
			zap.ByteString("dynamic_upstreams", s.proxy.DynamicUpstreamsRaw))
	}

	if len(s.Checks) == 0 {
		s.Checks = []*HealthCheck{{ProbeRaw: json.RawMessage(`{"kind":"tcp"}`)}}
	}
	for i, check := range s.Checks {
		if err := check.provision(ctx); err != nil {
			return fmt.Errorf("checks: position %d: %v", i, err)
		}
		s.hold = min(max(s.hold, check.settings.Timeout), maxHold)
	}
	if s.Hold != nil {
		if *s.Hold < 0 {
			return fmt.Errorf("hold must not be negative; 0 holds no request")
		}
		s.hold = time.Duration(*s.Hold)
	}

	if err := s.watch(ctx); err != nil {
		return err
	}
	for _, w := range s.watches {
		w.follow(s.refresh)
	}
	s.refresh()

	app, err := ctx.App("alive")
	if err != nil {
		return err
	}
	s.app = app.(*App)
	s.app.adopt(s)
	return nil
}

// watch sets up the watches of all upstreams.
func (s *Selection) watch(ctx caddy.Context) error {
	var err error
	if s.transport, err = newTransport(ctx, s.proxy); err != nil {
		return err
	}
	s.watched = make(map[string][]*watch)
	repl := caddy.NewReplacer()
	for _, u := range s.upstreams {
		// one that is listed twice counts twice, but is probed once
		if _, seen := s.watched[u.Dial]; !seen {
			if s.watched[u.Dial], err = s.watchOne(u.Dial, repl); err != nil {
				return fmt.Errorf("upstream %s: %v", u.Dial, err)
			}
		}
		s.members = append(s.members, s.watched[u.Dial])
	}
	return nil
}

// watchOne sets up the watches of the upstream at a dial address, none if what
// it is depends on the request.
func (s *Selection) watchOne(dial string, repl *caddy.Replacer) ([]*watch, error) {
	address := repl.ReplaceKnown(dial, "")
	if address == "" {
		return nil, errors.New("its placeholders are empty")
	}
	var to *route
	perRequest := strings.Contains(address, "{")
	if !perRequest {
		var err error
		if to, err = s.transport.to(address); err != nil {
			return nil, err
		}
		perRequest = to.perRequest
	}
	if perRequest {
		s.logger.Warn("upstream cannot be checked: its address or TLS server name depends on the request; it counts as alive",
			zap.String("upstream", dial))
		return nil, nil
	}
	var watches []*watch
	for _, check := range s.Checks {
		w, err := newWatch(check, to, s.logger)
		if err != nil {
			return nil, fmt.Errorf("check '%s': %v", check.label, err)
		}
		s.watches = append(s.watches, w) // at once, so that Cleanup finds it
		watches = append(watches, w)
	}
	return watches, nil
}

// Cleanup ends what Provision began. Select still works afterwards, on what
// was known last, for requests that are in flight.
func (s *Selection) Cleanup() error {
	if s.app != nil {
		s.app.disown(s)
	}
	var err error
	for _, w := range s.watches {
		if e := w.forget(); e != nil {
			err = e
		}
	}
	s.watches = nil // to forget them twice would forget those of others
	if s.transport != nil {
		s.transport.close()
	}
	return err
}

// drive tells s whether its probes run.
func (s *Selection) drive(running bool) {
	s.driven.Store(running)
	s.announce()
}

// refresh makes a new snapshot of what is known and swaps it in. Requests go
// on with the old one meanwhile. Of those who call it while one is under way,
// one waits and looks for all.
func (s *Selection) refresh() {
	if s.stale.Swap(true) {
		return
	}
	s.mu.Lock()
	s.stale.Store(false)
	before := s.current.Swap(s.view(s.upstreams))
	s.mu.Unlock()
	if before != nil {
		close(before.superseded)
	}
	s.announce()
}

// announce logs that the last resort begins or ends, if that is news.
func (s *Selection) announce() {
	if !s.driven.Load() {
		return
	}
	lastResort := s.current.Load().lastResort()
	if s.announced.Swap(lastResort) == lastResort {
		return
	}
	pool := zap.Strings("pool", s.names())
	if lastResort {
		s.logger.Warn("no upstream is alive: requests go to all of them, as the last resort", pool)
	} else {
		s.logger.Info("an upstream is alive again: requests go to those alive only", pool)
	}
}

// names returns the addresses of the upstreams, a few of them if they are many.
func (s *Selection) names() []string {
	const most = 10
	var names []string
	for i, u := range s.upstreams {
		if i == most {
			return append(names, fmt.Sprintf("and %d more", len(s.upstreams)-most))
		}
		names = append(names, u.Dial)
	}
	return names
}

// Select returns the upstream whose turn it is among those alive. It is nil
// only if none can take the request: all that serve are full, the circuit
// breaker is open, or there is no upstream at all.
func (s *Selection) Select(pool reverseproxy.UpstreamPool, r *http.Request, _ http.ResponseWriter) *reverseproxy.Upstream {
	if !s.retries && s.owns(pool) {
		if now := s.current.Load(); !now.serving.empty() {
			if u := now.serving.at(s.ticket.Add(1)); u.Available() {
				return u
			}
		}
	}
	return s.deliberate(pool, r)
}

// owns reports whether pool is the proxy's own list, for which the current
// snapshot is made, rather than one from a dynamic source or another policy.
func (s *Selection) owns(pool reverseproxy.UpstreamPool) bool {
	return len(pool) == len(s.upstreams) && (len(pool) == 0 || pool[0] == s.upstreams[0])
}

// now returns the snapshot of a pool at this moment.
func (s *Selection) now(pool reverseproxy.UpstreamPool) *snapshot {
	if s.owns(pool) {
		return s.current.Load()
	}
	return s.view(pool)
}

// deliberate is Select for whatever the first ticket did not settle.
func (s *Selection) deliberate(pool reverseproxy.UpstreamPool, r *http.Request) *reverseproxy.Upstream {
	if len(pool) == 0 {
		return nil
	}
	tried := s.attempts(r)
	u := s.choose(pool, r, tried)
	switch {
	case u != nil:
		tried.add(u)
	case r.Context().Err() != nil:
		// The client has left. To answer that there is nobody would be logged
		// as an error and retried; any upstream ends the request at once.
		u = pool[0]
	}
	return u
}

// choose goes through the tiers, from the best on.
func (s *Selection) choose(pool reverseproxy.UpstreamPool, r *http.Request, tried *attempts) *reverseproxy.Upstream {
	now := s.now(pool)
	u, serves := s.pick(&now.serving, (*reverseproxy.Upstream).Healthy, tried)
	if u != nil || serves {
		return u // a full one serves, so the rest must not be bothered
	}
	if s.circuitOpen() {
		return nil // nor is there anything to wait for
	}
	if !now.unknown.empty() && tried.mayHold() {
		if !s.wait(pool, r) {
			return nil
		}
		now = s.now(pool)
		if u, serves = s.pick(&now.serving, (*reverseproxy.Upstream).Healthy, tried); u != nil || serves || s.circuitOpen() {
			return u
		}
	}
	if u, _ = s.pick(&now.unknown, (*reverseproxy.Upstream).Healthy, tried); u != nil {
		return u
	}
	u, _ = s.pick(&now.all, func(*reverseproxy.Upstream) bool { return true }, tried)
	return u
}

// circuitOpen reports whether the circuit breaker of the proxy, which is one for
// all of its upstreams, wants no request at all.
func (s *Selection) circuitOpen() bool { return s.proxy.CB != nil && !s.proxy.CB.OK() }

// pick returns the member of t whose turn it is among those that serve, are
// not full and were not tried by this request. When all of them were tried, it
// starts over, with the last one only if there is no other. Also reports
// whether any member serves, be it full; if u is not nil, one does.
func (s *Selection) pick(t *tier, serves func(*reverseproxy.Upstream) bool, tried *attempts) (u *reverseproxy.Upstream, any bool) {
	if t.empty() {
		return nil, false
	}
	for range min(maxDraws, t.order.Len()) {
		if u := t.at(s.ticket.Add(1)); serves(u) && !u.Full() && !tried.has(u) {
			return u, true
		}
	}
	var again *reverseproxy.Upstream
	from := s.ticket.Add(1)
	for i := range uint64(t.order.Len()) {
		u := t.at(from + i)
		if !serves(u) {
			continue
		}
		any = true
		switch {
		case u.Full():
		case !tried.has(u):
			return u, true
		case again == nil || tried.isLast(again):
			again = u
		}
	}
	if again != nil {
		tried.startOver()
	}
	return again, any
}

// wait holds a request at a cold start, until the pool is settled as the
// documentation of Hold says. It returns false if the client left meanwhile.
func (s *Selection) wait(pool reverseproxy.UpstreamPool, r *http.Request) bool {
	if s.hold == 0 {
		return true
	}
	limit := time.NewTimer(s.hold)
	defer limit.Stop()
	var grace <-chan time.Time
	for {
		superseded := s.current.Load().superseded
		now := s.now(pool)
		if now.unknown.empty() {
			return true
		}
		if grace == nil && !now.serving.empty() {
			timer := time.NewTimer(holdGrace)
			defer timer.Stop()
			grace = timer.C
		}
		select {
		case <-superseded:
		case <-grace:
			return true
		case <-limit.C:
			return true
		case <-s.unloaded: // no verdict will come any more
			return true
		case <-r.Context().Done():
			return false
		}
	}
}

// Interface guard
var _ reverseproxy.Selector = (*Selection)(nil)
