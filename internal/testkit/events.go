// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func init() { caddy.RegisterModule(new(eventRecorder)) }

// eventRecorder is an event handler of tests.
type eventRecorder struct{}

var recorded struct {
	sync.Mutex
	events []caddy.Event
	block  func() // called by the handler
}

// CaddyModule returns the Caddy module information.
func (*eventRecorder) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.alive_test", New: func() caddy.Module { return new(eventRecorder) }}
}

// UnmarshalCaddyfile accepts the name of the handler, without options.
func (*eventRecorder) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	return nil
}

// Handle records the event.
func (*eventRecorder) Handle(_ context.Context, e caddy.Event) error {
	recorded.Lock()
	recorded.events = append(recorded.events, e)
	block := recorded.block
	recorded.Unlock()
	if block != nil {
		block()
	}
	return nil
}

// RecordEvents forgets events of earlier tests, and sets what the handler does.
func RecordEvents(tb testing.TB, block func()) {
	recorded.Lock()
	defer recorded.Unlock()
	recorded.events, recorded.block = nil, block
	tb.Cleanup(func() {
		recorded.Lock()
		defer recorded.Unlock()
		recorded.block = nil
	})
}

// Events returns what was recorded: name, upstream or pool, and what else is of
// interest.
func Events() (all []string) {
	for _, e := range RecordedEvents() {
		if e.Name() == "fail_open" {
			all = append(all, fmt.Sprintf("fail_open %v %v", e.Data["pool"], e.Data["active"]))
			continue
		}
		all = append(all, fmt.Sprintf("%s %v %v %v", e.Name(), e.Data["upstream"], e.Data["check"], e.Data["reason"]))
	}
	return all
}

// RecordedEvents returns the events so far, the oldest first.
func RecordedEvents() []caddy.Event {
	recorded.Lock()
	defer recorded.Unlock()
	return slices.Clone(recorded.events)
}

// EventsOption is the global option that has the events of this project recorded.
const EventsOption = `events {
		on healthy alive_test
		on unhealthy alive_test
		on fail_open alive_test
		on ejected alive_test
	}`
