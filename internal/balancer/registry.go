// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/fleet"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// Registry has the balancers of one config, and starts and stops their probes.
// docs/architecture.md lists where it interacts with the registry of the previous config.
// Its exported fields are set before the first balancer is added.
type Registry struct {
	Settings *settings.Set
	Store    *settings.Store
	Events   *telemetry.Queue
	Logger   *zap.Logger
	Exiting  <-chan struct{} // closed when the process begins to exit
	Fleet    Fleet           // what is known of other members, nil without a fleet
	Part     *fleet.Part     // how this config takes part in it, nil without

	beside        atomic.Bool // it has started beside another, and its config not yet as a whole
	configStarted signal      // given when the config has started as a whole
	background    background
	carried       carriedWeights
	// carryOver is used while the config is provisioned, one balancer after the other.
	carryOver monitor.CarryOver

	mu        sync.Mutex // guards what follows
	balancers []*Balancer
	started   bool
}

// background are the goroutines of a registry.
type background struct {
	sync.WaitGroup
	stop context.CancelFunc // ends them; nil before the start
	once sync.Once          // of stopProbes
}

// Fleet is what this Caddy knows of all members of its fleet, itself included. Its methods
// are safe for concurrent use, and only Wait waits for the storage.
type Fleet interface {
	// View returns what is known of all members. For an upstream, which can be empty, it also
	// has what each of them says of the newest wait.
	View(upstream string) view.Fleet
	// DownAt returns at how many live members an upstream is down, and how many there are. Of
	// this one, here says whether it is.
	DownAt(upstream string, here bool) (down, members int)
	// Wait announces to all members that this one waits for an upstream, for so long at most.
	// It returns when that is stored, or with an error that says that only this Caddy is
	// known.
	Wait(ctx context.Context, upstream string, longest time.Duration) error
}

// signal is given once.
type signal struct {
	once sync.Once
	done chan struct{} // closed by it
}

// NewRegistry returns an empty registry of a config that has not begun.
func NewRegistry() *Registry { return &Registry{configStarted: signal{done: make(chan struct{})}} }

// running are the registries that have started and not ended, the newest at the end: at a
// reload there are two for a moment.
var running struct {
	sync.Mutex // guards registries
	registries []*Registry
}

// Newest returns the registry that answers operators, nil if none is running.
func Newest() *Registry {
	running.Lock()
	defer running.Unlock()
	if len(running.registries) == 0 {
		return nil
	}
	return running.registries[len(running.registries)-1]
}

// registries returns those that run, the newest last.
func registries() []*Registry {
	running.Lock()
	defer running.Unlock()
	return slices.Clone(running.registries)
}

// Queues returns the event queues of the running registries, the newest last.
func Queues() (queues []*telemetry.Queue) {
	for _, r := range registries() {
		if r.Events != nil {
			queues = append(queues, r.Events)
		}
	}
	return queues
}

// All returns the balancers that there are now. It can be called on nil.
func (r *Registry) All() []*Balancer {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.balancers)
}

// Having returns the balancers that have an address, one for each name of a pool.
func (r *Registry) Having(address string) map[string]*Balancer {
	return having(r.All(), address)
}

func having(balancers []*Balancer, address string) map[string]*Balancer {
	pools := make(map[string]*Balancer)
	for _, b := range balancers {
		if b.Member(address) != nil {
			pools[b.Name()] = b
		}
	}
	return pools
}

// Monitors returns the monitors of the upstreams that a filter wants.
func (r *Registry) Monitors(only Filter) (monitors []*monitor.Monitor) {
	for _, b := range r.All() {
		if only.Pool != "" && only.Pool != b.Name() {
			continue
		}
		for _, m := range b.monitors.all() {
			if monitor.DisplayAddress(m.Upstream.Dial) == only.Upstream {
				monitors = append(monitors, m)
			}
		}
	}
	return monitors
}

// queue returns the events of the registry, nil if it is nil.
func (r *Registry) queue() *telemetry.Queue {
	if r == nil {
		return nil
	}
	return r.Events
}

// add adds a balancer, whose probes run while the registry does.
func (r *Registry) add(b *Balancer) {
	r.mu.Lock()
	r.balancers = append(r.balancers, b)
	started := r.started
	r.mu.Unlock()
	if Newest() != nil && !started {
		// and not at the start of the registry: requests may come before that
		r.carryOver.Add(b.monitors.all())
	} else {
		monitor.MarkOrigins(b.monitors.all(), false)
	}
	if len(r.Settings.All()) > 0 {
		b.Refresh() // one may have changed before the balancer was in the list
	}
	if started {
		startAll([]*Balancer{b})
		InvalidateListing()
	}
}

// remove takes back add. The config of b ends.
func (r *Registry) remove(b *Balancer) {
	r.stopProbes()
	r.mu.Lock()
	r.balancers = slices.DeleteFunc(r.balancers, func(other *Balancer) bool { return other == b })
	r.mu.Unlock()
}

// Start starts the probes of all balancers, and keeps the settings.
func (r *Registry) Start() {
	r.mu.Lock()
	r.started = true
	balancers := slices.Clone(r.balancers)
	r.mu.Unlock()
	r.carryOver = monitor.CarryOver{}
	r.startBeside(Newest())
	startAll(balancers)
	running.Lock()
	running.registries = append(running.registries, r)
	running.Unlock()
	ctx, stop := context.WithCancel(context.Background())
	r.background.stop = stop
	if r.Part != nil {
		r.Part.Start(ctx)
	}
	r.background.Go(func() { r.Store.Run(ctx) })
	r.background.Go(func() { r.keepSettings(ctx) })
	r.background.Go(func() { telemetry.Sample(ctx) })
}

// ConfigStarted says that the config has started as a whole.
func (r *Registry) ConfigStarted() {
	r.configStarted.once.Do(func() {
		r.beside.Store(false)
		for _, b := range r.All() {
			b.applyModes()
		}
		close(r.configStarted.done)
	})
}

// hasConfigStarted reports whether ConfigStarted was called.
func (r *Registry) hasConfigStarted() bool {
	select {
	case <-r.configStarted.done:
		return true
	default:
		return false
	}
}

// mayStillFail reports whether the registry has started beside another one, and its config
// not yet as a whole: it may still fail to.
func (r *Registry) mayStillFail() bool { return r.beside.Load() }

// Stop ends the probes of a config that has failed to start. Otherwise it does nothing:
// Caddy stops its apps one after the other, and the http app serves requests for as long
// as its shutdown_delay lasts. They need the probes, and operators need their views. All
// of that ends with Close.
func (r *Registry) Stop() {
	if !r.hasConfigStarted() {
		r.stopProbes()
	}
}

// Close ends what Start began. It may follow without a start.
func (r *Registry) Close() {
	r.stopProbes()
	if r.background.stop != nil {
		r.background.stop()
		r.background.Wait()
		r.carried.storeCarried(r)
		if r.Part != nil {
			r.Part.Stop(context.Background())
		}
		r.Store.Wait()
	}
	r.carried.drop(r.Settings)
}

// ApplySetting makes all balancers follow a change of the setting of an address.
func (r *Registry) ApplySetting(address string) {
	for _, b := range r.All() {
		b.applySetting(address)
	}
}

// stopProbes ends the probes that no other config relies on, and waits for them. The
// first module of the config that is cleaned up calls it for all balancers: ending them
// one by one would add up the waits.
func (r *Registry) stopProbes() {
	r.background.once.Do(func() {
		r.mu.Lock()
		r.started = false
		balancers := slices.Clone(r.balancers)
		r.mu.Unlock()
		depart(balancers)
		running.Lock()
		running.registries = slices.DeleteFunc(running.registries, func(other *Registry) bool { return other == r })
		running.Unlock()
		listings.drop(r)
		var monitors []*monitor.Monitor
		for _, b := range balancers {
			monitors = append(monitors, b.stop()...)
		}
		monitor.StopAll(monitors)
		if other := Newest(); other != nil {
			// they share targets, and this one may have paused what the other does not, or the
			// reverse: another fleet has other modes
			other.beside.Store(false)
			for _, b := range other.All() {
				b.applyModes()
			}
		}
	})
}

// startAll starts the probes of balancers.
func startAll(balancers []*Balancer) {
	var monitors []*monitor.Monitor
	for _, b := range balancers {
		b.applyModes()
		monitors = append(monitors, b.start()...)
	}
	monitor.StartAll(monitors)
	for _, b := range balancers {
		b.pool.LogState() // what was known before, from an earlier config
	}
}
