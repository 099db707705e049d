// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"
)

// maxReason bounds the reason of a failed probe, in bytes: it may hold what a
// hostile upstream answered, and it is logged and kept.
const maxReason = 256

// A Driver connects a target to whoever runs it: how to probe it, and whom to
// tell of what came of it. Its functions are called without any lock held, from
// the target's own goroutine.
type Driver struct {
	// Probe asks once. An error is a failed probe, and its text the reason. It
	// must return soon after ctx is done.
	Probe func(ctx context.Context) error
	// Bound says that a probe cannot outlive its driver: what it travels on is
	// closed with it.
	Bound bool
	// Probed is told of every result that counts. It may be nil.
	Probed func(Result)
	// Report is told of every change of status. It may be nil.
	Report func(Transition)
}

// Result is what came of one probe.
type Result struct {
	// Reason is why it failed, in one bounded line; empty when it passed.
	Reason string
	// Took is how long it took.
	Took time.Duration
}

// Transition is one change of status.
type Transition struct {
	From, To Status
	// Reason is why the last probe failed; empty when it passed.
	Reason string
	// Lasted is the time since the change before, 0 if there was none.
	Lasted time.Duration
}

// Target is one thing that is probed. Its state lives as long as it does; its
// probes run while at least one driver is attached.
type Target struct {
	settings Settings
	// copies for readers that cannot wait
	status atomic.Int32              // of state.status
	since  atomic.Pointer[time.Time] // of the last change of status, nil before the first

	mu          sync.Mutex
	state       state
	suspicion   suspicion
	drivers     []*Driver // attached, oldest first; the newest is in use
	subscribers map[*func()]struct{}
	loop        *loop // nil while nothing is attached
}

// loop is one run of a target's goroutine. Its fields but the channels are
// guarded by the target's mutex.
type loop struct {
	stop    context.CancelFunc
	done    chan struct{}
	wake    chan struct{}      // has the next probe begin at once
	driver  *Driver            // of the probe in flight, nil between probes
	cut     context.CancelFunc // cancels the probe in flight
	discard bool               // the probe in flight counts for nothing
}

// NewTarget returns a target of unknown status with nothing attached.
func NewTarget(settings Settings) *Target {
	return &Target{settings: settings, subscribers: make(map[*func()]struct{})}
}

// Status returns the status now. It never waits.
func (t *Target) Status() Status { return Status(t.status.Load()) }

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

// Suspect says that something else than a probe failed, such as a request. If
// the target is up, it is probed in a burst from now on, until one probe passes
// or as many failed as turn it down. It never waits for a probe.
func (t *Target) Suspect() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.loop == nil || t.state.status != Up || !t.suspicion.raise(time.Now()) {
		return
	}
	select {
	case t.loop.wake <- struct{}{}:
	default: // it is awake already
	}
}

// Attach puts d in use: from the next probe on, d probes and is told of
// changes. The first driver starts the probes, after the delay; a later one
// disturbs neither the schedule nor a probe in flight.
//
// The returned function, to be called once, takes d out again: the newest of
// those that remain takes over. A probe of d in flight is cut off and counts
// for nothing if d was the newest, or is bound; else it still counts, for then
// a successor relies on it. When none remain the probes end, and detach waits
// for that.
func (t *Target) Attach(d Driver, delay time.Duration) (detach func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drivers = append(t.drivers, &d)
	if t.loop == nil {
		ctx, stop := context.WithCancel(context.Background())
		t.loop = &loop{stop: stop, done: make(chan struct{}), wake: make(chan struct{}, 1)}
		go t.run(ctx, t.loop, delay)
	}
	return func() { t.detach(&d) }
}

func (t *Target) detach(d *Driver) {
	t.mu.Lock()
	i := slices.Index(t.drivers, d)
	newest := i == len(t.drivers)-1
	t.drivers = slices.Delete(t.drivers, i, i+1)
	l := t.loop
	if l.driver == d && (newest || d.Bound) {
		l.discard = true
		l.cut()
	}
	last := len(t.drivers) == 0
	if last {
		t.loop = nil
	}
	t.mu.Unlock()

	if last {
		l.stop()
		<-l.done
	}
}

// run probes until l is stopped. Probes of one target never overlap: one that
// takes longer than the interval delays the next.
func (t *Target) run(ctx context.Context, l *loop, delay time.Duration) {
	defer close(l.done)
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-l.wake:
		}
		started := time.Now()
		next, ok := t.probeOnce(ctx, l)
		if !ok {
			return
		}
		timer.Reset(time.Until(started.Add(next)))
	}
}

// probeOnce runs one probe and counts its result. It returns the time from its
// start to the start of the next, and false when there is none.
func (t *Target) probeOnce(ctx context.Context, l *loop) (next time.Duration, ok bool) {
	t.mu.Lock()
	if t.loop != l { // the last driver left in this very moment
		t.mu.Unlock()
		return 0, false
	}
	driver := t.drivers[len(t.drivers)-1]
	probeCtx, cancel := context.WithTimeout(ctx, t.settings.Timeout)
	l.driver, l.cut, l.discard = driver, cancel, false
	t.suspicion.probing()
	t.mu.Unlock()

	started := time.Now()
	err := safely(probeCtx, driver.Probe)
	result := Result{Reason: t.reason(probeCtx, err), Took: time.Since(started)}
	cancel()

	t.mu.Lock()
	l.driver = nil
	if t.loop != l { // the last driver left: this result counts for nothing
		t.mu.Unlock()
		return 0, false
	}
	var change *Transition
	var subscribers []func()
	if l.discard {
		t.mu.Unlock()
		return 0, true // the successor's own probe is due at once
	}
	if change = t.record(err == nil, result.Reason); change != nil {
		for f := range t.subscribers {
			subscribers = append(subscribers, *f)
		}
	}
	newest := t.drivers[len(t.drivers)-1]
	next = t.state.delay(&t.settings)
	if t.suspicion.record(err == nil, t.state.status, time.Now()) {
		next = t.settings.FastInterval / burstFactor
	}
	t.mu.Unlock()

	for _, f := range subscribers {
		f()
	}
	if newest.Probed != nil {
		newest.Probed(result)
	}
	if change != nil && newest.Report != nil {
		newest.Report(*change)
	}
	return next, true
}

// record counts a result and returns the change of status, if it made one.
// t.mu must be held.
func (t *Target) record(passed bool, reason string) *Transition {
	from := t.state.status
	if !t.state.record(passed, &t.settings) {
		return nil
	}
	now := time.Now()
	change := &Transition{From: from, To: t.state.status, Reason: reason}
	if since := t.since.Load(); since != nil {
		change.Lasted = now.Sub(*since)
	}
	t.since.Store(&now)
	t.status.Store(int32(t.state.status))
	return change
}

// reason puts a failed probe into words that a person can act on, in one
// bounded line of valid text.
func (t *Target) reason(ctx context.Context, err error) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		text = fmt.Sprintf("no verdict within %s: %s", t.settings.Timeout, text)
	}
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, text)
}

// safely turns a panic into a failed probe: a probe may be anybody's code, fed
// with anybody's bytes, and must not take the whole server down.
func safely(ctx context.Context, probe func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the probe panicked: %v", p)
		}
	}()
	return probe(ctx)
}
