// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Driver connects a target to whoever runs it: how to probe it, and whom to
// tell of what came of it. Its functions are called without any lock held, from
// the target's own goroutine.
type Driver struct {
	// Probe asks once. An error is a failed probe, and its text the reason;
	// without one, draining says that the target is up, but asks for no new
	// requests. Fresh forbids it to rely on an earlier connection. It should return
	// soon after ctx is done; one that does not delays nothing, and no other probe of
	// the target begins while it runs.
	Probe func(ctx context.Context, fresh bool) (draining bool, err error)
	// Bound says that a probe cannot outlive its driver: what it travels on is
	// closed with it.
	Bound bool
	// Probed is told of every result that counts. It may be nil.
	Probed func(Result)
	// Inconclusive is told of every result that counts for nothing, and why. It may
	// be nil.
	Inconclusive func(*InconclusiveError)
	// Report is told of every change. It may be nil.
	Report func(Transition)
}

// Result is what came of one probe.
type Result struct {
	// At is when it began.
	At time.Time
	// Reason is why it failed, in one bounded line; empty when it passed.
	Reason string
	// Took is how long it took.
	Took time.Duration
}

// Passed reports whether the probe passed.
func (r Result) Passed() bool { return r.Reason == "" }

// Transition is one change of status, or of whether an up target is draining.
type Transition struct {
	From, To Status
	// WasDraining and Draining say the same of new requests.
	WasDraining, Draining bool
	// Reason is why the last probe failed; empty when it passed.
	Reason string
	// Lasted is how long the status before lasted, 0 if there was none, or if it
	// goes on.
	Lasted time.Duration
}

// Target is one thing that is probed. Its state lives as long as it does; its
// probes run while at least one driver is attached.
type Target struct {
	settings Settings
	// copies for readers that cannot wait
	status   atomic.Int32              // of state.status
	draining atomic.Bool               // of state.draining
	since    atomic.Pointer[time.Time] // of the last change of status, nil before the first
	origin   atomic.Int32              // how it began

	mu          sync.Mutex
	state       state
	suspicion   suspicion
	history     history
	paused      bool            // nothing is probed except what is asked for
	waiters     []chan<- answer // are sent what the next probe to begin finds
	lateInRow   int             // timeouts that counted for nothing as this process was late
	straggler   *attempt        // a probe that goes on after its time, nil if there is none
	drivers     []*Driver       // attached, oldest first; the newest is in use
	subscribers map[*func()]struct{}
	loop        *loop     // nil while nothing is attached
	ran         bool      // something was attached once
	wanted      bool      // the first probe is to begin without a delay
	began       time.Time // the last probe, the zero time before the first
}

// NewTarget returns a target of unknown status with nothing attached.
func NewTarget(settings Settings) *Target {
	return &Target{
		settings:    settings,
		subscribers: make(map[*func()]struct{}),
	}
}

// Status returns the status now. It never waits.
func (t *Target) Status() Status { return Status(t.status.Load()) }

// Draining reports whether it is up, but asked for no new requests. It never
// waits.
func (t *Target) Draining() bool { return t.draining.Load() }

// Since returns when the status last changed, the zero time if it never did. It
// never waits.
func (t *Target) Since() time.Time {
	if since := t.since.Load(); since != nil {
		return *since
	}
	return time.Time{}
}

// Subscribe has f called after every change of status, from the target's
// goroutine and with no lock held, until cancel is called. A call that is
// under way at that moment may still end later.
func (t *Target) Subscribe(f func()) (cancel func()) {
	key := &f
	t.mu.Lock()
	defer t.mu.Unlock()
	t.subscribers[key] = struct{}{}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.subscribers, key)
	}
}

// Running reports whether probes are under way, so that another driver would
// not start them.
func (t *Target) Running() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.loop != nil
}

// New reports whether no probes ever ran.
func (t *Target) New() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.ran
}

// Inherit gives the target a status to begin with, as a settled one, and since
// when it lasts. It has no effect once probes began.
func (t *Target) Inherit(status Status, draining bool, since time.Time) {
	t.mu.Lock()
	if t.ran || t.paused || status == t.state.status && draining == t.state.draining && since.Equal(t.Since()) {
		t.mu.Unlock()
		return
	}
	t.state = state{status: status, draining: draining && status == Up, wasUp: status != Unknown}
	t.publish(since)
	subscribers := t.listeners()
	t.mu.Unlock()
	for _, f := range subscribers {
		f()
	}
}

// publish shows readers that cannot wait what the state is. t.mu must be held.
func (t *Target) publish(since time.Time) {
	if since.IsZero() {
		t.since.Store(nil)
	} else {
		t.since.Store(&since)
	}
	if t.state.status != Up {
		t.origin.Store(int32(returned)) // or will
	}
	t.draining.Store(t.state.draining)
	t.status.Store(int32(t.state.status))
}

// listeners returns whom to tell of a change. t.mu must be held.
func (t *Target) listeners() []func() {
	subscribers := make([]func(), 0, len(t.subscribers))
	for f := range t.subscribers {
		subscribers = append(subscribers, *f)
	}
	return subscribers
}

// Suspect says that something else than a probe failed, such as a request. If
// the target is up, it is probed in a burst from now on, until one probe passes
// or as many failed as turn it down. It never waits for a probe.
func (t *Target) Suspect() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.loop == nil || t.state.status != Up || !t.suspicion.raise(time.Now()) {
		return
	}
	t.loop.probeNext()
}

// Attach puts d in use: from the next probe on, d probes and is told of
// changes. The first driver starts the probes, after the delay; a later one
// disturbs neither the schedule nor a probe in flight.
//
// The returned function, to be called once, takes d out again: the newest of
// those that remain takes over. A probe of d in flight is cut off and counts
// for nothing if d was the newest, or is bound; else it still counts, for then
// a successor relies on it. When none remain the probes end. Detach waits for that,
// but not for longer than [maxDetach] for a probe that goes on after it was cut off:
// such a probe ends by itself, and what comes of it is dropped.
func (t *Target) Attach(d Driver, delay time.Duration) (detach func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drivers = append(t.drivers, &d)
	if t.loop == nil {
		if t.wanted {
			t.wanted, delay = false, 0
		}
		l := &loop{due: time.Now().Add(delay)}
		l.timer = time.AfterFunc(delay, func() { t.tick(l) })
		t.loop, t.ran = l, true
		slots.run(t.settings.Interval, 1)
	}
	return func() { t.detach(&d) }
}

// maxDetach is how long detach waits for a probe that was cut off.
const maxDetach = time.Second

func (t *Target) detach(d *Driver) {
	t.mu.Lock()
	i := slices.Index(t.drivers, d)
	newest := i == len(t.drivers)-1
	t.drivers = slices.Delete(t.drivers, i, i+1)
	l := t.loop
	if len(t.drivers) > 0 {
		if a := l.attempt; a != nil && a.driver == d && (newest || d.Bound) {
			l.discard(time.Now())
		}
		t.mu.Unlock()
		return
	}
	t.loop = nil
	l.timer.Stop()
	slots.free(&l.slot)
	slots.run(t.settings.Interval, -1)
	var told chan struct{}
	if a := l.attempt; a != nil {
		a.cut(context.Canceled)
		l.attempt = nil
		t.giveUp(a)
		t.waiters = append(t.waiters, a.waiters...)
	} else if l.probing {
		told = make(chan struct{})
		l.idle = told
	}
	var over chan struct{}
	if s := t.straggler; s != nil {
		if s.over == nil {
			s.over = make(chan struct{})
		}
		over = s.over
	}
	t.askAgain(nil)
	t.mu.Unlock()
	if told != nil {
		<-told
	}
	if over == nil {
		return
	}
	limit := time.NewTimer(maxDetach)
	defer limit.Stop()
	select {
	case <-over:
	case <-limit.C:
	}
}
