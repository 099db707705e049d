// SPDX-License-Identifier: Apache-2.0

// Package alive is the selection policy alive of reverse_proxy: round robin over the
// upstreams that pass its health checks, whose results survive reloads. A request never
// fails for lack of an upstream while one can serve. This is the smallest Caddyfile:
//
//	example.com {
//		reverse_proxy app1:8080 app2:8080 {
//			lb_policy alive /healthz
//		}
//	}
//
// An upstream is up while it answers GET requests of /healthz with a 2xx status; without
// the URI, while it accepts connections. The options are those of [Selection] and
// [HealthCheck]; docs/options.md shows them as a Caddyfile has them. Kinds of checks are
// modules of the package probe. Further modules are the handler alive_status, a page,
// [Admin], a part of Caddy's admin API, and the [App], with the global option alive. The
// command caddy alive, metrics and events are registered, too.
//
// This package has the configuration. What runs is in internal/; docs/architecture.md
// shows how it works together.
package alive

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/balancer"
	_ "github.com/caddy-alive/caddy-alive/internal/cli" // the command caddy alive
	"github.com/caddy-alive/caddy-alive/internal/fleet"
	"github.com/caddy-alive/caddy-alive/internal/kinds"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/poolname"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	_ "github.com/caddy-alive/caddy-alive/internal/statuspage" // the handler alive_status
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
	"github.com/caddy-alive/caddy-alive/internal/upstreamname"
	"github.com/caddy-alive/caddy-alive/internal/view"
	"github.com/caddy-alive/caddy-alive/internal/witness"
	_ "github.com/caddy-alive/caddy-alive/probe" // the kinds of checks
)

func init() {
	caddy.RegisterModule(new(App))
	caddy.RegisterModule(telemetry.OriginModule(new(App).CaddyModule()))
	httpcaddyfile.RegisterGlobalOption("alive", parseGlobalOption)
}

// App runs the health checks of all `alive` selection policies of a config. It
// needs no configuration: it is loaded wherever the policy is used.
//
// Probes start when the config starts, and not when it is merely validated or
// adapted. What is known of an upstream outlives a reload that keeps its check.
//
// Modes and weights that are set at run time are kept in Caddy's storage, and
// outlive restarts.
type App struct {
	// The name of a group of Caddy instances that share their storage: up to 64
	// letters, digits, dots, dashes and underscores, the first a letter or digit.
	// Modes and weights that are set at one of them apply to all, and each shows what
	// the others see. Default: none, they apply to this instance only.
	Fleet string `json:"fleet,omitempty"`

	// The name under which the others of the fleet show this instance, made of the
	// same characters as `fleet`. No two instances of a fleet should have the same
	// one: one that stopped without saying so counts as back when another of its name
	// starts, and a wait for the fleet no longer names it. It has no meaning without `fleet`, and is rejected
	// there. Default: the name of the host.
	Member string `json:"member,omitempty"`

	// How often to look for what others of the fleet have set, from `100ms` to `24h`.
	// It has no meaning without `fleet`, and is rejected there. Default: `1s`.
	SyncInterval caddy.Duration `json:"sync_interval,omitempty"`

	// How many instances of the fleet, from `1` to `1000`, probe each upstream at the
	// `interval` of its check, or `-1` for off. All others probe it less often, and at
	// once when one of these finds fault with it. Whether an upstream is up is always
	// decided by an instance's own probes. An instance that cannot reach the others
	// probes everything itself. This is a new option. It has no meaning without
	// `fleet`, and is rejected there. Default: off, every instance probes every
	// upstream at its `interval`.
	Probers *int `json:"probers,omitempty"`

	registry    *balancer.Registry
	names       poolname.Names // of the pools of this config
	scope       string         // of the settings
	unsubscribe func()
	cleaned     bool
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "alive",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision loads what operators have set at run time.
func (a *App) Provision(ctx caddy.Context) error {
	scope, err := a.validate()
	if err != nil {
		return err
	}
	set, err := settings.Open(scope)
	if err != nil {
		return err
	}
	a.scope = scope
	var every time.Duration
	if a.Fleet != "" {
		every = a.syncInterval()
	}
	storage := ctx.Storage()
	if scope == noScope {
		storage = nil // nothing can be written
	}
	r := balancer.NewRegistry()
	a.registry = r
	r.Settings, r.Logger = set, ctx.Logger()
	r.Store = settings.NewStore(set, storage, scope, every, r.Logger)
	if a.Fleet != "" {
		if err := a.join(r, every); err != nil {
			return err
		}
	}
	r.Store.Sync(ctx, true)
	if r.Events, err = telemetry.Connect(ctx, r.ConfigStarted, balancer.Queues); err != nil {
		return err
	}
	if r.Exiting, err = telemetry.NotifyExit(ctx); err != nil {
		return err
	}
	rows := func() []view.Upstream { return balancer.List(balancer.Filter{Brief: true}) }
	if err := telemetry.Register(ctx.GetMetricsRegistry(), telemetry.Collector{Rows: rows, Empty: balancer.EmptyPools}); err != nil {
		return err
	}
	a.unsubscribe = set.Subscribe(r.ApplySetting)
	return nil
}

// join makes the config a part of its fleet.
func (a *App) join(r *balancer.Registry, every time.Duration) error {
	f, err := fleet.Open(a.scope)
	if err != nil {
		return err
	}
	probers := 0
	if a.Probers != nil {
		probers = max(0, *a.Probers)
	}
	r.Fleet = f
	r.Part = f.Join(r.Store, fleet.Config{
		Fleet: a.Fleet, Member: cmp.Or(a.Member, fleet.HostName()), Probers: probers, Every: every,
		Local: balancer.InFleet{Registry: r}, Set: r.Settings, Logger: r.Logger,
	})
	return nil
}

// noScope is where settings would be stored of an instance that has no ID.
const noScope = "alive/instances/none"

// validate checks the options, and returns where settings are stored.
func (a *App) validate() (prefix string, err error) {
	if a.SyncInterval != 0 {
		if err := limits.SyncInterval(time.Duration(a.SyncInterval)); err != nil {
			return "", err
		}
	}
	if a.Member != "" {
		if err := limits.Member(a.Member); err != nil {
			return "", err
		}
	}
	if a.Probers != nil {
		if err := limits.Probers(*a.Probers); err != nil {
			return "", err
		}
	}
	if a.Fleet == "" {
		if err := a.needsFleet(); err != nil {
			return "", err
		}
		id, err := caddy.InstanceID()
		if err != nil { // nowhere to write to: no reason not to balance
			return noScope, nil
		}
		return "alive/instances/" + id.String(), nil
	}
	if err := limits.Fleet(a.Fleet); err != nil {
		return "", err
	}
	return "alive/fleets/" + a.Fleet, nil
}

// needsFleet returns an error if an option is given that has no meaning without a fleet.
func (a *App) needsFleet() error {
	for _, option := range []struct {
		name    string
		isGiven bool
	}{{"sync_interval", a.SyncInterval != 0}, {"member", a.Member != ""}, {"probers", a.Probers != nil}} {
		if option.isGiven {
			return fmt.Errorf("%s has no meaning without fleet", option.name)
		}
	}
	return nil
}

// syncInterval is how often the members of a fleet look for news.
func (a *App) syncInterval() time.Duration {
	return cmp.Or(time.Duration(a.SyncInterval), limits.DefaultSyncInterval)
}

// Start starts the probes.
func (a *App) Start() error {
	a.registry.Start()
	return nil
}

// Stop ends the probes of a config that has failed to start. All others go on until
// Cleanup, as [balancer.Registry.Stop] says.
func (a *App) Stop() error {
	a.registry.Stop()
	return nil
}

// Cleanup ends what Provision and Start began.
func (a *App) Cleanup() error {
	if a.registry == nil || a.cleaned {
		return nil
	}
	a.cleaned = true
	a.registry.Close()
	if a.unsubscribe != nil {
		a.unsubscribe()
	}
	if a.registry.Fleet != nil {
		if err := fleet.Close(a.scope); err != nil {
			return err
		}
	}
	return settings.Close(a.scope)
}

// readPool reads what decides about the name of a pool from a config.
func readPool(policy, handler []byte) (poolname.Pool, error) {
	s, h := new(Selection), new(reverseproxy.Handler)
	if err := errors.Join(json.Unmarshal(policy, s), json.Unmarshal(handler, h)); err != nil {
		return poolname.Pool{}, err
	}
	return identifyPool(s, h), nil
}

// identifyPool returns what decides about the name of the pool of a policy. Its key has
// all that is configured about which upstreams get requests. Nothing must be provisioned
// yet.
func identifyPool(s *Selection, h *reverseproxy.Handler) poolname.Pool {
	type check struct {
		Probe    string
		Settings any
		Where    []any
	}
	different := struct {
		Checks   []string
		Weights  map[string]string
		Backups  [][]string
		Spill    float64
		FailOpen string
		Select   any
		Source   any
		Stale    *caddy.Duration
		Limits   []int
		Limit    int
		Own      map[string]int
		Queue    pool.Queue
		Sticky   *Sticky
		Witness  witness.Settings
		Health   *reverseproxy.HealthChecks
		Breaker  any
	}{
		FailOpen: cmp.Or(s.FailOpen, "none_up"),
		Select:   poolname.Decode(s.SelectRaw),
		Source:   poolname.Decode(h.DynamicUpstreamsRaw),
		Stale:    s.Stale,
		Health:   h.HealthChecks,
		Breaker:  poolname.Decode(h.CBRaw),
		Weights:  make(map[string]string),
		Own:      make(map[string]int),
	}
	checks := s.Checks
	if len(checks) == 0 {
		checks = []*HealthCheck{defaultCheck()}
	}
	for _, c := range checks {
		if c == nil {
			continue // an error, as soon as it is provisioned
		}
		_, probe, _ := kinds.Identify(c.ProbeRaw)
		settings, _ := c.resolve()
		encoded, _ := json.Marshal(check{probe, settings, []any{c.Port, c.Address, c.ProxyProtocol, c.KeepConnection, c.defaultHost(h)}})
		different.Checks = append(different.Checks, string(encoded))
	}
	slices.Sort(different.Checks)
	for name, weight := range s.Weights {
		share := string(weight)
		if number, err := weight.resolve(); err == nil {
			share = fmt.Sprint(number)
		}
		for _, address := range upstreamname.Addresses(name) {
			if share != "1" {
				different.Weights[address] = share
			}
		}
	}
	for _, names := range s.Backups {
		group := make([]string, 0, len(names))
		for _, name := range names {
			group = append(group, upstreamname.Addresses(name)...)
		}
		slices.Sort(group)
		different.Backups = append(different.Backups, group)
	}
	different.Spill, _ = limits.Spill(s.Spill)
	limit, requests, _ := s.MaxRequests.resolve()
	for name, own := range requests {
		for _, address := range upstreamname.Addresses(name) {
			if own != limit {
				different.Own[address] = own
			}
		}
	}
	different.Limit = limit
	var cookie poolname.Cookie
	if s.Sticky != nil {
		sticky := *s.Sticky
		sticky.Cookie = sticky.name()
		different.Sticky = &sticky
		cookie = poolname.Cookie{Name: sticky.Cookie, Secret: sha256.Sum256([]byte(sticky.Secret))}
	}
	different.Queue, _ = s.Queue.resolve()
	dials := make([]string, 0, len(h.Upstreams))
	for _, u := range h.Upstreams {
		dials = append(dials, u.Dial)
		different.Limits = append(different.Limits, u.MaxRequests)
	}
	different.Witness, _ = resolveWitness(s.Observe, s.Eject)
	encoded, _ := json.Marshal(different) // what cannot be encoded was never decoded
	return poolname.Pool{Given: s.Name, Default: poolname.Default(dials, h.DynamicUpstreamsRaw), Key: sha256.Sum256(encoded), Cookie: cookie}
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
