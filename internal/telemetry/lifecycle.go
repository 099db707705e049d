// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"fmt"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
)

// Connect returns a queue whose events go to the events app of a config. The events
// begin when Caddy reports that the config has started, because the events app may not
// have started before. The function began is called then, first. The queue ends with
// the context. See [NewQueue] for running, and [OriginModule], which must be
// registered.
func Connect(ctx caddy.Context, begun func(), running func() []*Queue) (*Queue, error) {
	app, err := ctx.App("events")
	if err != nil {
		return nil, err
	}
	events := app.(*caddyevents.App)
	// The context of an app that another module loads ends up with the modules of that
	// other one in it, so the origin of events has a context of its own. It ends with ctx;
	// a cancel here would run the functions for the end of ctx.
	own, _ := caddy.NewContext(ctx)
	loaded, err := own.LoadModuleByID(originID, nil)
	if err != nil {
		return nil, err
	}
	origin := loaded.(*origin)
	q := NewQueue(ctx.Logger(), func(name string, data map[string]any) { events.Emit(origin.ctx, name, data) }, running)
	// also if the config never starts: its events go back
	context.AfterFunc(ctx, q.End)
	return q, events.On("started", handlerFunc(func() {
		begun()
		// It ends with the config. Nothing waits for it, because it may be in an event
		// handler that itself waits for the end of the config.
		go q.Run(ctx)
	}))
}

// NotifyExit returns a channel that is closed when Caddy begins to stop because the
// process exits. A reload does not close it.
func NotifyExit(ctx caddy.Context) (exiting chan struct{}, err error) {
	app, err := ctx.App("events")
	if err != nil {
		return nil, err
	}
	exiting = make(chan struct{})
	var once sync.Once
	return exiting, app.(*caddyevents.App).On("stopping", handlerFunc(func() {
		if caddy.Exiting() {
			once.Do(func() { close(exiting) })
		}
	}))
}

// handlerFunc is an event handler that ignores the event.
type handlerFunc func()

// Handle calls the function.
func (f handlerFunc) Handle(context.Context, caddy.Event) error {
	f()
	return nil
}

// originID is the name under which the origin of events is registered.
const originID = "alive_origin"

// OriginModule is the module that stands for an app as the origin of events. Its value is
// the information of the app: events show the name of the app, but Caddy needs another
// name to load the origin by.
type OriginModule caddy.ModuleInfo

// CaddyModule returns the Caddy module information.
func (m OriginModule) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  originID,
		New: func() caddy.Module { return &origin{app: caddy.ModuleInfo(m)} },
	}
}

// origin is where events come from.
type origin struct {
	app caddy.ModuleInfo
	ctx caddy.Context
}

// CaddyModule returns the information of the app.
func (o *origin) CaddyModule() caddy.ModuleInfo { return o.app }

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
	_ caddyevents.Handler = handlerFunc(nil)
	_ caddy.Provisioner   = (*origin)(nil)
)
