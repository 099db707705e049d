// SPDX-License-Identifier: Apache-2.0

// Package monitor connects health checks to upstreams. A [Transport] knows how the
// requests of one handler reach its upstreams, a [Route] is how the probes of one check
// reach one upstream, and a [Monitor] probes the upstream. Monitors of several
// handlers and configs share a [health.Target] if their probes are the same. [CarryOver]
// gives new targets what is known from checks that leave with a reload.
//
// The package knows neither the configuration types nor the kinds of probe: a [Check] has
// what it needs of both. It does not know which upstreams get requests.
//
// Locks, in their order: the mutex of a Monitor, which guards its attachment to the
// target; the lock of shared.Targets; the mutex of a target. The limit of warnings has a
// mutex that is never held with another. No lock is held while a function of a check, a
// hook or a subscriber runs.
package monitor

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/placeholder"
	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// Check is one configured health check, with all defaults filled in.
type Check struct {
	// Kind is the kind of probe, and Label the name of the check as operators see it.
	Kind, Label string
	// Identity is the kind and its options, in a form that can be compared.
	Identity string
	// Settings are when to probe, and how many results change the status.
	Settings health.Settings
	// Port and Address say where to probe: the upstream itself, unless they are set.
	Port, Address placeholder.Text
	// DefaultHost is the Host header of requests that name none, empty for the address that
	// is probed.
	DefaultHost string
	// ProxyProtocol is the version of the PROXY protocol header to send, "off" for none,
	// empty for that of the handler.
	ProxyProtocol string
	// KeepConnection keeps the connection of a probe for the next one.
	KeepConnection bool
	// NoRequests says that probes send no requests.
	NoRequests bool
	// Overrides are the differences between a probe and a request that the kind asks for.
	Overrides Overrides
	// Validate returns an error if the check cannot work over a route. It may be nil.
	Validate func(*Route) error
	// Bind returns what probes over a route.
	Bind func(*Route) ProbeFunc
}

// Overrides are the differences between how a probe and a request reach an upstream. The
// zero value has none.
type Overrides struct {
	// Scheme is "http" or "https".
	Scheme string
	// ServerName is the name of the upstream in the TLS handshake.
	ServerName string
	// InsecureSkipVerify accepts any certificate.
	InsecureSkipVerify bool
	// HTTP1 uses HTTP/1.1 only, and HTTP2 HTTP/2 only, with TLS or without. Not both.
	HTTP1, HTTP2 bool
	// FreshConnection makes every probe connect anew, which is the default.
	FreshConnection bool
	// NoConnection says that probes do not use the connections of the route.
	NoConnection bool
}

// ProbeFunc probes once. An error is a failed probe, and its text the reason. Draining
// says that the upstream is up and asks for no new requests. It returns soon after ctx is
// done.
type ProbeFunc func(ctx context.Context) (draining bool, err error)

// Counters count what comes of the probes of one check of an upstream. Their methods are
// called with no lock held.
type Counters interface {
	// Probed is called with every result that counts.
	Probed(result health.Result)
	// Inconclusive is called for every result that does not count.
	Inconclusive()
	// Changed is called with every change.
	Changed(change health.Transition)
	// Close ends their use by one monitor.
	Close() error
}

// Hooks connect the monitors of one handler to what runs beside them. Counters is called
// by [Transport.Open], the others with no lock held.
type Hooks struct {
	// Logger gets what operators need to know.
	Logger *zap.Logger
	// Counters returns those of a check of an upstream.
	Counters func(upstream string, check *Check) (Counters, error)
	// Emit emits the event of a change. It may be nil.
	Emit func(upstream string, check *Check, change health.Transition)
	// Found is told that a target has failed twice in a row, or that its status changed. It
	// may be nil.
	Found func(upstream string, check *Check, status health.Status, changed bool)
	// Answers returns how many requests the upstream has answered so far. It may be nil.
	Answers func() uint64
	// Stale reports whether no handler has the upstream of a monitor at present. It may be
	// nil if there is always one that does.
	Stale func(*Monitor) bool
}

// targetKey tells which probes are the same and therefore made once: it is the key of
// shared.Targets.
type targetKey struct {
	routeKey
	probe    string
	settings health.Settings
}

// sharedTarget is a target as the value of a usage pool.
type sharedTarget struct{ *health.Target }

// Destruct does nothing: the probes ended when the last driver was detached.
func (sharedTarget) Destruct() error { return nil }

// Targets returns all targets of the process, with the upstreams that they belong to as
// network/address. The loop must not open or release monitors.
func Targets() iter.Seq2[string, *health.Target] {
	return func(yield func(string, *health.Target) bool) {
		shared.Targets.Range(func(key, value any) bool {
			return yield(key.(targetKey).upstream, value.(sharedTarget).Target)
		})
	}
}

// Monitor is one upstream under one check, for one handler.
type Monitor struct {
	// Target has what is known. Other monitors may share it.
	Target *health.Target
	// Check is the check.
	Check *Check
	// Upstream is what is checked.
	Upstream Upstream

	key         targetKey
	route       *Route
	driver      health.Driver
	counters    Counters
	unsubscribe func() // nil without a subscription

	mu     sync.Mutex // guards detach
	detach func()     // nil while not started
}

// Open returns a new monitor of an upstream under a check, to be released. Nothing is
// probed before it is started. The error is [ErrPerRequest] if the upstream is reached in
// a way that depends on the request.
func (t *Transport) Open(upstream Upstream, check *Check, hooks Hooks) (*Monitor, error) {
	route, err := t.Route(upstream, check)
	if err != nil {
		return nil, err
	}
	m := &Monitor{
		Check: check, Upstream: upstream, route: route,
		key: targetKey{routeKey: route.key, probe: check.Identity, settings: check.Settings},
	}
	found, _, err := shared.Targets.LoadOrNew(m.key, func() (caddy.Destructor, error) {
		return sharedTarget{health.NewTarget(check.Settings)}, nil
	})
	if err != nil {
		return nil, err
	}
	m.Target = found.(sharedTarget).Target
	if m.counters, err = hooks.Counters(upstream.Address, check); err != nil {
		_, errTarget := shared.Targets.Delete(m.key)
		return nil, errors.Join(err, errTarget)
	}
	limit, _ := shared.WarningLimits.LoadOrStore(warningLimitKey{}, new(warningLimit))
	m.driver = m.newDriver(hooks, limit.(*warningLimit))
	return m, nil
}

// answers returns how many requests the upstream has answered, 0 if that is not known.
func (h *Hooks) answers() uint64 {
	if h.Answers == nil {
		return 0
	}
	return h.Answers()
}

// answeredError is that of a probe which timed out while requests were answered.
type answeredError struct{ error }

// Error returns the error, and what operators should think of.
func (e answeredError) Error() string {
	return e.error.Error() + "; meanwhile requests were answered, so the probe may have waited for a busy worker"
}

// Unwrap returns the error of the probe.
func (e answeredError) Unwrap() error { return e.error }

// newDriver connects the target to the route, the counters, the log and the events.
func (m *Monitor) newDriver(hooks Hooks, limit *warningLimit) health.Driver {
	// A logger with these fields would take more memory than the rest of a target.
	log := upstreamLog{hooks.Logger, limit, [2]zap.Field{zap.String("upstream", m.Upstream.Address), zap.String("check", m.Check.Label)}}
	route, counters := m.route, m.counters
	route.logGivingUp(log)
	probe := m.Check.Bind(route)
	return health.Driver{
		Probe: func(ctx context.Context, fresh bool) (draining bool, err error) {
			if fresh {
				route.renew()
			}
			answers := hooks.answers()
			if draining, err = probe(ctx); err != nil && ctx.Err() != nil && hooks.answers() > answers {
				err = answeredError{err}
			}
			return draining, withShortage(err)
		},
		Bound: route.bound,
		Probed: func(result health.Result) {
			counters.Probed(result)
			log.probed(result)
			if !result.Passed() && hooks.Found != nil && m.Target.FailsInRow() == 2 {
				hooks.Found(m.Upstream.Address, m.Check, m.Target.Status(), false)
			}
		},
		Inconclusive: func(why *health.InconclusiveError) {
			counters.Inconclusive()
			log.inconclusive(why)
		},
		Report: func(change health.Transition) {
			counters.Changed(change)
			if hooks.Found != nil && change.From != change.To {
				hooks.Found(m.Upstream.Address, m.Check, change.To, true)
			}
			stale := hooks.Stale != nil && hooks.Stale(m)
			log.changed(change, stale)
			// That a stale upstream is down is no alarm. That it is up is an event, since an
			// earlier alarm may go on.
			if hooks.Emit != nil && (!stale || change.To != health.Down) {
				hooks.Emit(m.Upstream.Address, m.Check, change)
			}
		},
	}
}

// Subscribe calls a function after each change of the status, with no lock held, until
// the monitor is released. Subscribe is called once at most.
func (m *Monitor) Subscribe(changed func()) { m.unsubscribe = m.Target.Subscribe(changed) }

// Start starts the probes, the first of them after the delay. If they run already, it
// takes them over.
func (m *Monitor) Start(delay time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.detach == nil {
		m.detach = m.Target.Attach(m.driver, delay)
	}
}

// Stop undoes Start. It may wait for a probe to be cut off.
func (m *Monitor) Stop() {
	m.mu.Lock()
	detach := m.detach
	m.detach = nil
	m.mu.Unlock()
	if detach != nil {
		detach()
		m.route.close()
	}
}

// Release undoes Open and Subscribe. It is called once, after Stop.
func (m *Monitor) Release() error {
	if m.unsubscribe != nil {
		m.unsubscribe()
	}
	_, errTarget := shared.Targets.Delete(m.key)
	_, errLimit := shared.WarningLimits.Delete(warningLimitKey{})
	return errors.Join(errTarget, errLimit, m.counters.Close())
}

// FirstProbeSpacing is the time between the first probes of two targets, so that a start
// with many of them is no burst.
const FirstProbeSpacing = time.Millisecond

// StartAll starts monitors. The first probes of targets that do not run yet are spread
// over [FirstProbeSpacing] a target, or over their interval if that is shorter.
func StartAll(monitors []*Monitor) {
	position := make(map[*health.Target]int) // of those that do not run yet
	for _, m := range monitors {
		if _, seen := position[m.Target]; !seen && !m.Target.Running() {
			position[m.Target] = len(position)
		}
	}
	for _, m := range monitors {
		var delay time.Duration
		if i, ok := position[m.Target]; ok {
			share := float64(i) / float64(len(position))
			delay = time.Duration(share * float64(min(m.Check.Settings.Interval, time.Duration(len(position))*FirstProbeSpacing)))
		}
		m.Start(delay)
	}
}

// StopAll stops monitors, all at the same time: each may have to wait for a probe.
func StopAll(monitors []*Monitor) {
	var stopping sync.WaitGroup
	for _, m := range monitors {
		stopping.Go(m.Stop)
	}
	stopping.Wait()
}

// checkPatience is how much longer than its timeouts a check at once may take: a probe in
// flight may have to end first.
const checkPatience = time.Second

// CheckAll probes the targets of monitors at once, and waits for the results. The error
// says which could not be probed.
func CheckAll(ctx context.Context, monitors []*Monitor) error {
	targets := make(map[*health.Target]time.Duration) // with their timeouts
	for _, m := range monitors {
		targets[m.Target] = m.Check.Settings.Timeout
	}
	errs := make(chan error, len(targets))
	var checking sync.WaitGroup
	for target, timeout := range targets {
		checking.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 2*timeout+checkPatience)
			defer cancel()
			_, err := target.Check(ctx)
			errs <- err
		})
	}
	checking.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}
