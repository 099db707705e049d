// SPDX-License-Identifier: Apache-2.0

// Package alive is a Caddy module that balances load over the upstreams that are
// alive: the selection policy alive of reverse_proxy. It is round robin over those that
// pass their health checks, which it makes itself, and which a reload does not forget.
// While one upstream can serve, no request gets an error for want of one. This is the
// smallest Caddyfile:
//
//	example.com {
//		reverse_proxy app1:8080 app2:8080 {
//			lb_policy alive /healthz
//		}
//	}
//
// An upstream is up while it answers GET requests of /healthz with a 2xx status; without
// the URI, while it accepts connections. The options are those of [Selection], which the
// README shows as a Caddyfile has them, and [HealthCheck]; kinds of checks are modules of
// the package probe. Further modules are [Status], a page, [Admin], a part of Caddy's
// admin API, and the [App], with the global option alive. The command caddy alive, metrics
// and events come along.
//
// # The house
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
// (transport.go), over a connection of its own (internal/conn). The [App] starts and
// stops them, and hands on what is known when a check changes (inherit.go).
//
// The way of an operator is the admin API (admin.go), which the commands ask
// (internal/cli). What is set there (modes.go) is kept in Caddy's storage
// (stored.go), and followed by new snapshots. The API, the commands, the page
// (status.go) and the metrics (internal/telemetry) show one model (overview.go).
// Changes that others want to hear of are events (internal/telemetry).
package alive

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	_ "github.com/caddy-alive/caddy-alive/internal/cli" // the command caddy alive
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
	"github.com/caddy-alive/caddy-alive/internal/view"
	"github.com/caddy-alive/caddy-alive/probe"
)

func init() {
	caddy.RegisterModule(new(App))
	caddy.RegisterModule(new(Selection))
	caddy.RegisterModule(Admin{})
	caddy.RegisterModule(telemetry.OriginModule(new(App).CaddyModule()))
	httpcaddyfile.RegisterGlobalOption("alive", parseGlobalOption)
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
//
// Modes and weights that are set at run time are kept in Caddy's storage, and
// outlive restarts.
type App struct {
	// The name of a group of Caddy instances that share their storage: up to 64
	// letters, digits, dots, dashes and underscores, the first a letter or digit.
	// Modes and weights that are set at one of them hold at all. Default: none, they
	// hold at this instance only.
	Fleet string `json:"fleet,omitempty"`

	// How often to look what others of the fleet have set, from `100ms` to `24h`. It
	// has no meaning without `fleet`, and is rejected there. Default: `2s`.
	SyncInterval caddy.Duration `json:"sync_interval,omitempty"`

	operations  *settings.Set
	keeper      *settings.Store
	events      *telemetry.Queue
	scope       string // of the operations
	unsubscribe func()
	logger      *zap.Logger
	cleaned     bool
	stop        context.CancelFunc
	keeping     sync.WaitGroup
	exiting     chan struct{} // closed when the process begins to exit
	ending      sync.Once     // for end

	before   []string           // the names of the pools of the config before, nil if there is none
	had      map[string]bool    // the addresses of the upstreams that it had
	carried  []settings.Carried // weights that follow their upstreams, until the config has begun
	starting atomic.Bool        // this app has started beside another, and its config not yet as a whole
	begun    chan struct{}      // closed when the config has started as a whole
	begin    sync.Once

	// inheritance is used while the config is provisioned, one policy after the
	// other, and has no effect after that.
	carryOver monitor.CarryOver
	names     poolNames // of the pools of this config

	mu       sync.Mutex
	policies []*Selection
	started  bool
}

// running are the apps that have started and not stopped, the newest at the end: at a
// reload there are two for a moment.
var running struct {
	sync.Mutex
	apps []*App
}

// newestApp returns the app that answers operators, nil if none is running.
func newestApp() *App {
	running.Lock()
	defer running.Unlock()
	if len(running.apps) == 0 {
		return nil
	}
	return running.apps[len(running.apps)-1]
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
	prefix, err := a.validate()
	if err != nil {
		return err
	}
	a.scope = prefix
	if a.operations, err = settings.Open(prefix); err != nil {
		return err
	}
	var every time.Duration
	if a.Fleet != "" {
		every = a.syncInterval()
	}
	storage := ctx.Storage()
	if prefix == noScope {
		storage = nil // nothing can be written
	}
	a.logger = ctx.Logger()
	a.keeper = settings.NewStore(a.operations, storage, prefix, every, a.logger)
	a.keeper.Sync(ctx, true)
	a.begun = make(chan struct{})
	if a.events, err = telemetry.Connect(ctx, a.hasBegun, runningQueues); err != nil {
		return err
	}
	if a.exiting, err = telemetry.NotifyExit(ctx); err != nil {
		return err
	}
	rows := func() []view.Upstream { return overview(filter{brief: true}) }
	if err := telemetry.Register(ctx.GetMetricsRegistry(), rows); err != nil {
		return err
	}
	a.unsubscribe = a.operations.Subscribe(a.applySetting)
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
	if a.Fleet == "" {
		if a.SyncInterval != 0 {
			return "", errNoFleet
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

var errNoFleet = errors.New("sync_interval has no meaning without fleet")

// syncInterval is how often the members of a fleet look at the storage.
func (a *App) syncInterval() time.Duration {
	return cmp.Or(time.Duration(a.SyncInterval), limits.DefaultSyncInterval)
}

// Start starts the probes.
func (a *App) Start() error {
	a.mu.Lock()
	a.started = true
	policies := slices.Clone(a.policies)
	a.mu.Unlock()
	a.carryOver = monitor.CarryOver{}
	met := a.meet(newestApp())
	drive(policies)
	running.Lock()
	running.apps = append(running.apps, a)
	running.Unlock()
	ctx, stop := context.WithCancel(context.Background())
	a.stop = stop
	a.keeping.Go(func() { a.keeper.Run(ctx) })
	a.keeping.Go(func() { a.attend(ctx, met) })
	return nil
}

// Stop ends the probes of a config that has failed to start. Otherwise it does nothing
// yet: Caddy stops its apps one after the other, and the http app serves requests for as
// long as its shutdown_delay lasts. They need the probes, and operators need their views.
// All of that ends in Cleanup, which follows every Stop.
func (a *App) Stop() error {
	select {
	case <-a.begun:
	default:
		a.end()
	}
	return nil
}

// Cleanup ends what Provision and Start began.
func (a *App) Cleanup() error {
	if a.operations == nil || a.cleaned {
		return nil
	}
	a.cleaned = true
	a.end()
	if a.stop != nil {
		a.stop()
		a.keeping.Wait()
		a.keepCarried()
		a.keeper.Wait()
	}
	a.unsubscribe()
	a.dropCarried()
	return settings.Close(a.scope)
}

// end ends the probes that no other config relies on, and waits for them. The first
// module of the config that is cleaned up calls it: to end them one policy after the
// other would add up what each has to wait for.
func (a *App) end() {
	a.ending.Do(func() {
		a.mu.Lock()
		a.started = false
		policies := slices.Clone(a.policies)
		a.mu.Unlock()
		running.Lock()
		running.apps = slices.DeleteFunc(running.apps, func(other *App) bool { return other == a })
		running.Unlock()
		listings.drop(a)
		release(policies)
		if other := newestApp(); other != nil {
			// they share targets, and this one may have paused what others do not, or the
			// reverse: another fleet has other modes
			other.starting.Store(false)
			for _, s := range other.all() {
				s.applyModes()
			}
		}
	})
}

// eventQueue returns where to tell of events, nil for nowhere.
func (a *App) eventQueue() *telemetry.Queue {
	if a == nil {
		return nil
	}
	return a.events
}

// all returns the policies that there are now.
func (a *App) all() []*Selection {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.policies)
}

// adopt has the probes of a policy run whenever the app does.
func (a *App) adopt(s *Selection) {
	a.mu.Lock()
	a.policies = append(a.policies, s)
	started := a.started
	a.mu.Unlock()
	if newestApp() != nil && !started {
		// and not at the start of this app: requests may come before that
		a.carryOver.Add(s.allWatches())
	} else {
		monitor.Begin(s.allWatches(), false)
	}
	if len(a.operations.All()) > 0 {
		s.refresh() // one may have changed while nobody told this policy of it
	}
	if started {
		drive([]*Selection{s})
		listings.changed()
	}
}

// disown ends what adopt began. The config of s ends.
func (a *App) disown(s *Selection) {
	a.end()
	a.mu.Lock()
	a.policies = slices.DeleteFunc(a.policies, func(p *Selection) bool { return p == s })
	a.mu.Unlock()
}

// drive starts the probes of the policies.
func drive(policies []*Selection) {
	var watches []*monitor.Monitor
	for _, s := range policies {
		s.applyModes()
		watches = append(watches, s.run(true)...)
	}
	monitor.StartAll(watches)
	for _, s := range policies {
		s.announceOwn() // what was known before, from an earlier config
	}
}

// release ends the probes of the policies that no other config relies on.
func release(policies []*Selection) {
	var watches []*monitor.Monitor
	for _, s := range policies {
		watches = append(watches, s.run(false)...)
	}
	monitor.StopAll(watches)
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
	_ caddy.Provisioner  = (*Selection)(nil)
	_ caddy.CleanerUpper = (*Selection)(nil)
)
