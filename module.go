// SPDX-License-Identifier: Apache-2.0

// Package alive is a Caddy module: the selection policy alive of
// reverse_proxy, round robin over the upstreams that are alive, with an active
// health checker of its own.
//
// The way of a request is [Selection.Select], which draws a ticket for the order
// at hand (internal/rotation), and, where that does not settle it, the decision
// in pick.go. What both see is a snapshot, made anew in pool.go whenever a verdict
// changes.
//
// The way of a verdict begins at a target (internal/health), which a [HealthCheck]
// sets up for each of the upstreams of upstreams.go and dynamic.go, and which all
// configs and handlers of the process share. Its probes are made by a module of the
// package probe, over the route of route.go: as the requests of the handler travel
// (transport.go), over a connection of its own (internal/wire). The [App] starts and
// stops them, and hands on what is known when a check changes (inherit.go).
package alive

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/probe"
)

func init() {
	caddy.RegisterModule(new(App))
	caddy.RegisterModule(new(Selection))
	caddy.RegisterModule(probe.HTTP{})
	caddy.RegisterModule(probe.TCP{})
	caddy.RegisterModule(probe.TLS{})
	caddy.RegisterModule(probe.GRPC{})
}

// App runs the health checks of all `alive` selection policies of a config. It
// needs no configuration: it is loaded wherever the policy is used.
//
// Probes start when the config starts, and not when it is merely validated or
// adapted. What is known of an upstream outlives a reload that keeps its check.
type App struct {
	// inheritance is used while the config is provisioned, one policy after the
	// other, and has no effect after that.
	inheritance inheritance

	mu       sync.Mutex
	policies []*Selection
	started  bool
}

// startedApps is how many apps have started and not stopped: at a reload there are two
// for a moment.
var startedApps atomic.Int32

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "alive",
		New: func() caddy.Module { return new(App) },
	}
}

// Start starts the probes.
func (a *App) Start() error {
	a.mu.Lock()
	a.started = true
	policies := slices.Clone(a.policies)
	a.mu.Unlock()
	a.inheritance = inheritance{}
	startedApps.Add(1)
	drive(policies)
	return nil
}

// Stop ends the probes that no other config relies on, and waits for them.
func (a *App) Stop() error {
	a.mu.Lock()
	if a.started {
		startedApps.Add(-1)
	}
	a.started = false
	policies := slices.Clone(a.policies)
	a.mu.Unlock()
	release(policies)
	return nil
}

// adopt has the probes of a policy run whenever the app does.
func (a *App) adopt(s *Selection) {
	a.mu.Lock()
	a.policies = append(a.policies, s)
	started := a.started
	a.mu.Unlock()
	if startedApps.Load() > 0 && !started {
		// and not at the start of this app: requests may come before that
		a.inheritance.add(s.allWatches())
	}
	if started {
		drive([]*Selection{s})
	}
}

// disown ends what adopt began.
func (a *App) disown(s *Selection) {
	a.mu.Lock()
	a.policies = slices.DeleteFunc(a.policies, func(p *Selection) bool { return p == s })
	a.mu.Unlock()
	release([]*Selection{s})
}

// firstProbeSpacing is the time between the first probes of two targets, so
// that a start with many of them is no burst.
const firstProbeSpacing = time.Millisecond

// drive attaches all watches of the policies to their targets. The first
// probes of targets that are not running yet are spread over a millisecond a
// target, or over their interval if that is shorter.
func drive(policies []*Selection) {
	var watches []*watch
	fresh := make(map[*health.Target]int)
	for _, s := range policies {
		for _, w := range s.run(true) {
			watches = append(watches, w)
			if _, seen := fresh[w.target]; !seen && !w.target.Running() {
				fresh[w.target] = len(fresh)
			}
		}
	}
	for _, w := range watches {
		var delay time.Duration
		if i, ok := fresh[w.target]; ok {
			share := float64(i) / float64(len(fresh))
			w.target.Drift(share)
			delay = time.Duration(share * float64(min(w.key.settings.Interval, time.Duration(len(fresh))*firstProbeSpacing)))
		}
		w.attach(delay)
	}
	for _, s := range policies {
		s.announceOwn() // what was known before, from an earlier config
	}
}

// release detaches all watches of the policies, at once rather than one after
// the other: each may have to wait for a probe to notice.
func release(policies []*Selection) {
	var wg sync.WaitGroup
	for _, s := range policies {
		for _, w := range s.run(false) {
			wg.Go(w.release)
		}
	}
	wg.Wait()
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*Selection)(nil)
	_ caddy.CleanerUpper = (*Selection)(nil)
)
