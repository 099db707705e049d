// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/observer"
	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// traffic connects a balancer to what happens to its requests: what that says of upstreams,
// and what each request has tried.
type traffic struct {
	// log is nil until the counters of the pool are there.
	log atomic.Pointer[telemetry.TrafficLog]

	balancer *Balancer
	handler  witness.Handler
	pool     *witness.Pool // nil if nothing is observed
	variable string        // the placeholder that has what a request tried
	// placement is the placeholder that has what goes along with a request.
	placement string
	brought   sync.Map // what requests brought from a dynamic source: *pool.Member by dial address
}

// init joins what is known of the pool. The balancer is told nothing before connect.
func (t *traffic) init(b *Balancer) (err error) {
	t.handler.Settings = b.config.Rules.Witness
	if t.handler.Settings.Off {
		return nil
	}
	t.handler.Hooks = witness.Hooks{
		Changed:  b.Refresh,
		MayEject: t.mayEject,
		Accused: func(address string, cause witness.Cause, reason string, suspect bool) {
			t.report(func(l *telemetry.TrafficLog) { l.Accused(address, cause.String(), reason, suspect) })
		},
		Acquitted: func(address string) {
			t.report(func(l *telemetry.TrafficLog) { l.Acquitted(address) })
		},
		Ejected: func(address, reason string, until time.Time, inRow int) {
			t.report(func(l *telemetry.TrafficLog) { l.Ejected(address, reason, until, inRow) })
		},
		Returned: func(address string) {
			t.report(func(l *telemetry.TrafficLog) { l.Returned(address) })
		},
	}
	t.pool, err = witness.Join(b.config.Name, &t.handler)
	return err
}

// connect has the balancer told what the traffic says. It is called when b.pool has a snapshot:
// requests of another balancer, also of another config, may accuse an upstream at any moment.
func (t *traffic) connect() {
	if t.pool != nil {
		t.pool.Follow(&t.handler)
	}
}

// reportTo makes the balancer report what the traffic says.
func (t *traffic) reportTo(l *telemetry.TrafficLog) { t.log.Store(l) }

// report calls a function with the log, once there is one.
func (t *traffic) report(f func(*telemetry.TrafficLog)) {
	if l := t.log.Load(); l != nil {
		f(l)
	}
}

// close undoes init.
func (t *traffic) close() error {
	defer t.report((*telemetry.TrafficLog).Close)
	if t.pool == nil {
		return nil
	}
	return t.pool.Leave(&t.handler)
}

// add begins to observe a member.
func (t *traffic) add(m *pool.Member) {
	if t.pool == nil {
		return
	}
	targets := make([]*health.Target, 0, len(m.Checks))
	for _, c := range m.Checks {
		targets = append(targets, c.Target)
	}
	m.Witness = t.pool.Add(&t.handler, m.Address, targets)
	m.Witness.FollowChecks()
}

// remove undoes add. The member stays as it is: requests in flight may have it.
func (t *traffic) remove(m *pool.Member) {
	if err := m.CloseSlots(); err != nil {
		t.balancer.config.Logger.Error("releasing the slots of an upstream", zap.String("upstream", m.Address), zap.Error(err))
	}
	if t.pool != nil && m.Witness != nil {
		t.pool.Remove(&t.handler, m.Witness)
		m.Witness.FollowChecks() // another handler may decide now
	}
}

// follow returns what is to be called after each change of the status of a member.
func (t *traffic) follow(m *pool.Member) func() {
	if m.Witness == nil {
		return t.balancer.Refresh
	}
	return func() {
		m.Witness.FollowChecks()
		t.balancer.Refresh()
	}
}

// setRunning says whether the probes run: with the checks of the newest handler whose probes
// do, upstreams are up or down.
func (t *traffic) setRunning(running bool) {
	t.handler.SetRunning(running)
	for _, m := range t.balancer.allMembers() {
		if m.Witness != nil {
			m.Witness.FollowChecks()
		}
	}
}

// observe puts an observer around the transport of the handler.
func (t *traffic) observe(inner http.RoundTripper, retriesAnswers bool) http.RoundTripper {
	hooks := observer.Hooks{Upstream: t.upstream, Tried: t.noteTried, RetriesAnswers: retriesAnswers}
	if t.places() {
		hooks.Placed = func(r *http.Request) *observer.Placement { return t.placed(r.Context(), r.URL) }
		hooks.Handles = t.handles
	}
	return observer.New(inner, &t.balancer.config.Rules.Witness, hooks)
}

// upstream returns what the traffic says of an upstream, nil if it is not observed. It
// takes no lock.
func (t *traffic) upstream(u *reverseproxy.Upstream) *witness.Upstream {
	if m := t.balancer.members.byDial[u.Dial]; m != nil {
		return m.Witness
	}
	if m, ok := t.brought.Load(u.Dial); ok {
		return m.(*pool.Member).Witness
	}
	return nil
}

// mayEject reports whether enough of the group of an upstream is left without it.
func (t *traffic) mayEject(u *witness.Upstream) bool {
	b, share := t.balancer, t.handler.Settings.EjectShare
	if m := b.members.at(u.Address); m != nil {
		return b.pool.Current().MayEject(m, share)
	}
	a := b.dynamic.answers.newest.Load()
	m := b.dynamic.memberNamed(u.Address)
	return a != nil && m != nil && a.Peek().MayEject(m, share)
}

// tried returns what a request has tried, nil if no try has failed.
func (t *traffic) tried(r *http.Request) *pool.Tried {
	if !t.balancer.handler.HasRetries() {
		return nil
	}
	return t.known(r.Context(), r.URL)
}

// known returns what is known of the tries of a request, nil if that is nothing.
func (t *traffic) known(ctx context.Context, tries *url.URL) *pool.Tried {
	if kept := placeholdersOf(ctx); kept != nil {
		value, _ := kept.Get(t.variable)
		if known, ok := value.(*pool.Tried); ok && known.URL == tries {
			return known
		}
	}
	return nil
}

// placeholdersOf returns what keeps the tries of a request, nil if it has none. These are not
// its variables, which have no lock: when a round trip has failed, the transport may still dial
// for it, and a dial reads the variables.
func placeholdersOf(ctx context.Context) *caddy.Replacer {
	kept, _ := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	return kept
}

// remember returns what is known of the tries of a request, from now on.
func (t *traffic) remember(r *http.Request) *pool.Tried {
	if !t.balancer.config.Rules.Retries {
		return nil
	}
	if known := t.known(r.Context(), r.URL); known != nil {
		return known
	}
	kept := placeholdersOf(r.Context())
	if kept == nil {
		return nil
	}
	fresh := &pool.Tried{URL: r.URL}
	kept.Set(t.variable, fresh)
	// servers cancel the context when the request has ended
	context.AfterFunc(r.Context(), t.balancer.pool.BeginRetry())
	return fresh
}

// noteTried notes that a request may go to another upstream after this one.
func (t *traffic) noteTried(r *http.Request, u *reverseproxy.Upstream, failed bool, c witness.Counted) {
	if tried := t.remember(r); tried != nil {
		tried.Add(u, failed, c)
	}
}
