// SPDX-License-Identifier: Apache-2.0

// Package pool decides which upstream gets a request. A Pool is one list of upstreams:
// that of the config, or one answer of a dynamic source. Its Snapshot says which of
// them may get requests and in which order. The package knows neither how upstreams are
// probed nor where lists come from.
//
// Locks, in the order in which they are taken: Pool.making, then counters.mu or those of
// targets; counters.mu, then spills.mu or that of slots. Handler.mu and waiters.mu are taken alone.
// None is held while a log line, a callback, another policy, a circuit breaker or Caddy's
// health checks run.
package pool

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/session"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// Rules are what is configured about which upstreams get requests.
type Rules struct {
	FailOpen  FailOpen
	Spill     float64       // the next group helps while less than this percentage of the weight serves, 0 for never
	SlowStart time.Duration // window of the slow start, 0 for none
	Floor     float64       // where a slow start begins, as a share of the weight
	Hold      time.Duration // how long a request waits at a cold start, 0 for not at all
	Retries   bool          // the handler may select again for the same request
	Queue     Queue         // for requests while all upstreams that could take them are full

	// Sticky binds clients to upstreams, nil if it does not.
	Sticky *session.Cookie

	// Select picks instead of round robin, nil if none does. SelectName is its name.
	Select     reverseproxy.Selector
	SelectName string

	// Witness is what is configured about what the traffic says of upstreams.
	Witness witness.Settings

	// CountsHealthy says that fail_open has a share or a number, and that Caddy has health checks of
	// its own. Then every pick counts which upstreams are healthy.
	CountsHealthy bool
}

// Queue says how requests wait for an upstream that is not full. The zero value is none.
type Queue struct {
	Timeout time.Duration // how long a request waits at most
	Length  int           // how many wait at most
}

// FailOpen says when health is ignored.
type FailOpen struct {
	Never   bool
	Percent float64 // also while less than this share of the primaries serves
	Number  int     // or fewer than so many, all of them if they are not so many
	Text    string  // as it is configured
}

// isTooFew reports whether so few of the upstreams with a verdict serve that health is
// ignored.
func (f FailOpen) isTooFew(serving, decided int) bool {
	return float64(100*serving) < f.Percent*float64(decided) || serving < min(f.Number, decided)
}

// Handler is what the pools of one reverse_proxy handler have in common. Its exported
// fields are set before the first pool is made.
type Handler struct {
	Rules    Rules
	Name     string        // of the pool, as operators see it
	Settings *settings.Set // modes and weights set at run time; nil for none
	Proxy    *reverseproxy.Handler
	Logger   *zap.Logger
	Ended    <-chan struct{} // closed when the config ends
	Exiting  <-chan struct{} // closed when the process begins to exit

	Hooks

	running atomic.Bool // probes run, so changes are logged
	// retrying is how many requests are under way of which a try has failed. While there are
	// any, every pick has to find out whether it is for one of them.
	retrying atomic.Int64
	waiting  atomic.Int64  // requests in the queue
	version  atomic.Uint64 // counts changes, for pools whose snapshots are made later
	spills   spills        // of answers of a dynamic source

	mu      sync.Mutex    // guards awaited
	awaited map[*Pool]int // pools for which requests wait, and how many
}

// Hooks are called by picks, with no lock held. Each may be nil.
type Hooks struct {
	// OnHold is called when a request is held. It may be nil.
	OnHold func()
	// OnWaiting is called when a request enters the queue. It may be nil.
	OnWaiting func()
	// OnQueued is called when a request leaves the queue, with how long it waited there. It may
	// be nil.
	OnQueued func(waited time.Duration)
	// OnRefused is called when a request gets no upstream although some serve: they are full,
	// and it has waited in vain, which is the argument, or too many others wait. It may be
	// nil.
	OnRefused func(timedOut bool)
	// Remember returns what is remembered of a request from one selection to the next. It
	// may be nil if the handler does not retry.
	Remember func(*http.Request) *Tried
	// OnFailOpen is called when a pool begins to ignore health, and when it no longer
	// does. It may be nil.
	OnFailOpen func(begins bool)
}

// SetRunning says whether the probes run. Before, nothing is logged, and Caddy's own
// health does not count: the handler may not be provisioned yet.
func (h *Handler) SetRunning(running bool) { h.running.Store(running) }

// IsRunning reports whether the probes run.
func (h *Handler) IsRunning() bool { return h.running.Load() }

// Changed says that a verdict or a setting has changed. Pools that [New] made get a new
// snapshot when it is next needed. Requests that wait decide again.
func (h *Handler) Changed() {
	h.version.Add(1)
	for p := range h.Awaited() {
		if !p.atOnce { // else Refresh wakes them, when the new snapshot is there
			p.waiters.wake()
		}
	}
}

// isHealthy reports whether Caddy itself considers an upstream healthy. When a config ends,
// Caddy cancels its active checks, and counts those under way as failed. So from then on these do
// not count: requests may still wait.
func (h *Handler) isHealthy(u *reverseproxy.Upstream) bool {
	if u.Healthy() {
		return true
	}
	select {
	case <-h.Ended:
	default:
		return false
	}
	if h.Proxy == nil || h.Proxy.HealthChecks == nil || h.Proxy.HealthChecks.Active == nil || h.breakerOpen() {
		return false
	}
	passive := h.Proxy.HealthChecks.Passive
	return passive == nil || u.Host.Fails() < passive.MaxFails
}

// judges reports whether Caddy has health checks or a circuit breaker of its own. What they
// change gives no signal.
func (h *Handler) judges() bool {
	return h.Proxy != nil && (h.Proxy.HealthChecks != nil || h.Proxy.CB != nil)
}

// countHealthy counts the upstreams with a weight that Caddy itself considers healthy.
func (h *Handler) countHealthy(weights []int, upstreams reverseproxy.UpstreamPool) (n int) {
	for i, weight := range weights {
		if weight > 0 && h.isHealthy(upstreams[i]) {
			n++
		}
	}
	return n
}

// HasRetries reports whether requests are under way of which a try has failed.
func (h *Handler) HasRetries() bool { return h.retrying.Load() > 0 }

// Awaited returns the pools for which requests wait.
func (h *Handler) Awaited() map[*Pool]bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	pools := make(map[*Pool]bool, len(h.awaited))
	for p := range h.awaited {
		pools[p] = true
	}
	return pools
}

// await notes that a request waits for a pool, until done is called.
func (h *Handler) await(p *Pool) (done func()) {
	p.waiters.join()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.awaited == nil {
		h.awaited = make(map[*Pool]int)
	}
	h.awaited[p]++
	return func() {
		p.waiters.leave()
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.awaited[p]--; h.awaited[p] == 0 {
			delete(h.awaited, p)
		}
	}
}

// breakerOpen reports whether the circuit breaker of the handler, which is one for all
// of its upstreams, wants no request at all.
func (h *Handler) breakerOpen() bool {
	return h.Proxy != nil && h.Proxy.CB != nil && !h.Proxy.CB.OK()
}

// isExiting reports whether the process has begun to exit.
func (h *Handler) isExiting() bool {
	select {
	case <-h.Exiting:
		return true
	default:
		return false
	}
}

// enterQueue reports whether one more request may wait, and counts it. leaveQueue must
// follow if it may.
func (h *Handler) enterQueue() bool {
	if h.waiting.Add(1) <= int64(h.Rules.Queue.Length) {
		if h.OnWaiting != nil {
			h.OnWaiting()
		}
		return true
	}
	h.waiting.Add(-1)
	return false
}

// leaveQueue undoes enterQueue.
func (h *Handler) leaveQueue(waited time.Duration) {
	h.waiting.Add(-1)
	if h.OnQueued != nil {
		h.OnQueued(waited)
	}
}

// Waiting returns how many requests wait in the queue.
func (h *Handler) Waiting() int { return int(h.waiting.Load()) }

// reportFailOpen reports when a pool begins to ignore health, and when it no longer does.
func (h *Handler) reportFailOpen(before, now State) {
	if h.OnFailOpen != nil && before.IgnoresHealth() != now.IgnoresHealth() {
		h.OnFailOpen(now.IgnoresHealth())
	}
}
