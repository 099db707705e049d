// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// maxEvents is how many events wait at most while a handler is slow.
const maxEvents = 1024

// announcer hands events to Caddy's events app, one after the other. A push never
// waits: an event handler may take its time, or call the admin API.
type announcer struct {
	emit   func(name string, data map[string]any)
	logger *zap.Logger
	wake   chan struct{}

	mu    sync.Mutex // guards what follows
	queue []event
	lost  bool // an event was dropped, and that was logged
	ended bool // the config has ended, and the queue is handed on
}

type event struct {
	name string
	data map[string]any
}

// newAnnouncer returns one that emits with the app as the origin. The context of an
// app that a policy loads ends up with that of other modules in it, so it takes one
// of its own.
func newAnnouncer(ctx caddy.Context, begun func()) (*announcer, error) {
	app, err := ctx.App("events")
	if err != nil {
		return nil, err
	}
	events := app.(*caddyevents.App)
	// it ends with ctx; to cancel it would run what is left to do at the end of ctx
	own, _ := caddy.NewContext(ctx)
	loaded, err := own.LoadModuleByID(originModule{}.CaddyModule().ID.Name(), nil)
	if err != nil {
		return nil, err
	}
	origin := loaded.(*origin)
	a := &announcer{
		logger: ctx.Logger(),
		wake:   make(chan struct{}, 1),
		emit:   func(name string, data map[string]any) { events.Emit(origin.ctx, name, data) },
	}
	// also if the config never starts: what was pushed until then is handed back
	context.AfterFunc(ctx, a.end)
	return a, events.On("started", starter{ctx, a, begun})
}

// starter has the events go out once Caddy says that the config has started: until
// then the events app may have not.
type starter struct {
	ctx       context.Context
	announcer *announcer
	begun     func() // called first
}

// Handle is told that the config has started.
func (s starter) Handle(context.Context, caddy.Event) error {
	s.begun()
	// It ends with the config. Nothing waits for it: it may be in an event handler that
	// itself waits for the end of the config.
	go s.announcer.run(s.ctx)
	return nil
}

// notifyExit returns a channel that is closed when Caddy begins to stop because the
// process exits. A reload does not close it.
func notifyExit(ctx caddy.Context) (exiting chan struct{}, err error) {
	app, err := ctx.App("events")
	if err != nil {
		return nil, err
	}
	exiting = make(chan struct{})
	var once sync.Once
	return exiting, app.(*caddyevents.App).On("stopping", stopHandler(func() {
		if caddy.Exiting() {
			once.Do(func() { close(exiting) })
		}
	}))
}

// stopHandler is called when Caddy stops a config.
type stopHandler func()

// Handle calls the function.
func (h stopHandler) Handle(context.Context, caddy.Event) error {
	h()
	return nil
}

// push has an event go out in its turn.
func (a *announcer) push(name string, data map[string]any) {
	if a == nil {
		return
	}
	a.mu.Lock()
	if a.ended {
		a.mu.Unlock()
		if heir := a.heir(); heir != nil {
			heir.push(name, data)
		}
		return
	}
	full := len(a.queue) >= maxEvents
	tell := full && !a.lost
	a.lost = full
	if !full {
		a.queue = append(a.queue, event{name, data})
	}
	a.mu.Unlock()
	if tell {
		a.logger.Warn("event handlers are too slow: events are dropped", zap.Int("waiting", maxEvents))
	}
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// run emits events until the context ends.
func (a *announcer) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		}
		for e, ok := a.next(); ok; e, ok = a.next() {
			a.emit(e.name, e.data)
		}
	}
}

// next takes the first event that waits.
func (a *announcer) next() (e event, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 {
		return e, false
	}
	e, a.queue = a.queue[0], a.queue[1:]
	return e, true
}

// end hands on what still waits, and what is pushed meanwhile, in its order. Without
// another config there are no handlers any more.
func (a *announcer) end() {
	heir := a.heir()
	for {
		a.mu.Lock()
		if heir == nil || len(a.queue) == 0 {
			left := len(a.queue)
			a.queue, a.ended = nil, true
			a.mu.Unlock()
			if left > 0 {
				a.logger.Warn("the last config has ended: events are dropped", zap.Int("waiting", left))
			}
			return
		}
		e := a.queue[0]
		a.queue = a.queue[1:]
		a.mu.Unlock()
		heir.push(e.name, e.data)
	}
}

// heir returns the queue of the newest running config other than this one that has not
// ended, nil if there is none.
func (a *announcer) heir() *announcer {
	if a == nil {
		return nil
	}
	running.Lock()
	apps := slices.Clone(running.apps)
	running.Unlock()
	for _, app := range slices.Backward(apps) {
		if other := app.events; other != nil && other != a && !other.hasEnded() {
			return other
		}
	}
	return nil
}

func (a *announcer) hasEnded() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ended
}

// flipped tells of a change of status. What only changes whether an upstream is
// draining is no event.
func (a *announcer) flipped(upstream, check string, t health.Transition) {
	if t.From == t.To {
		return
	}
	name := "healthy"
	if t.To == health.Down {
		name = "unhealthy"
	}
	a.push(name, map[string]any{
		"host": upstream, "upstream": upstream, "check": check,
		"reason": t.Reason, "previous_duration": t.Lasted.String(),
	})
}

// failedOpen tells that a pool began to ignore health, or does no longer.
func (a *announcer) failedOpen(pool string, active bool) {
	a.push("fail_open", map[string]any{"pool": pool, "active": active})
}

// originModule is how the origin is registered: Caddy knows it by another name than
// it goes by as the origin of events.
type originModule struct{}

// CaddyModule returns the Caddy module information.
func (originModule) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "alive_origin",
		New: func() caddy.Module { return new(origin) },
	}
}

// origin stands for the app where events come from.
type origin struct{ ctx caddy.Context }

// CaddyModule returns the information of the app.
func (*origin) CaddyModule() caddy.ModuleInfo { return new(App).CaddyModule() }

// Provision keeps the context, of which this is the only module.
func (o *origin) Provision(ctx caddy.Context) error {
	if modules := ctx.Modules(); len(modules) != 1 {
		return fmt.Errorf("the origin of events is one of %d modules", len(modules))
	}
	o.ctx = ctx
	return nil
}

// Interface guards
var (
	_ caddyevents.Handler = starter{}
	_ caddyevents.Handler = stopHandler(nil)
	_ caddy.Provisioner   = (*origin)(nil)
)
