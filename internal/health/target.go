// SPDX-License-Identifier: Apache-2.0

package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
	// Probe asks once. An error is a failed probe, and its text the reason;
	// without one, draining says that the target is up, but asks for no new
	// requests. Fresh forbids it to rely on an earlier connection. It must return
	// soon after ctx is done.
	Probe func(ctx context.Context, fresh bool) (draining bool, err error)
	// Bound says that a probe cannot outlive its driver: what it travels on is
	// closed with it.
	Bound bool
	// Probed is told of every result that counts. It may be nil.
	Probed func(Result)
	// Late is told of every timeout that counts for nothing, and by how much this
	// process was late meanwhile. It may be nil.
	Late func(by time.Duration)
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
	paused      bool            // nothing is probed but what is asked for
	asked       []chan<- Result // who wants to know what the next probe to begin finds
	drivers     []*Driver       // attached, oldest first; the newest is in use
	subscribers map[*func()]struct{}
	loop        *loop     // nil while nothing is attached
	ran         bool      // something was attached once
	began       time.Time // the last probe, the zero time before the first
}

// loop is the probes from the first driver's coming to the last one's leaving.
// Between two of them there is but a timer, which begins the next one in a
// goroutine of its own. All is guarded by the target's mutex.
type loop struct {
	timer   *time.Timer   // of the next probe, or of the one in flight
	due     time.Time     // the next probe is
	again   bool          // after the probe in flight, the next follows at once
	probing bool          // a probe is in flight, or what came of it is being told
	idle    chan struct{} // closed when that is over, if somebody waits for it
	attempt *attempt      // the probe in flight, nil if there is none
}

// NewTarget returns a target of unknown status with nothing attached.
func NewTarget(settings Settings) *Target {
	return &Target{
		settings:    settings,
		state:       state{drift: rand.Float64()},
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

// Drift sets the part of the jitter that is the target's own, from 0 to 1; by
// default it is random. Targets that start in a row drift apart soonest if they
// have it in a row, too.
func (t *Target) Drift(share float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state.drift = share
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
	t.state = state{status: status, draining: draining && status == Up, wasUp: status != Unknown, drift: t.state.drift}
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
	t.loop.hurry()
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
		l := &loop{due: time.Now().Add(delay)}
		l.timer = time.AfterFunc(delay, func() { t.tick(l) })
		t.loop, t.ran = l, true
	}
	return func() { t.detach(&d) }
}

func (t *Target) detach(d *Driver) {
	t.mu.Lock()
	i := slices.Index(t.drivers, d)
	newest := i == len(t.drivers)-1
	t.drivers = slices.Delete(t.drivers, i, i+1)
	l := t.loop
	if a := l.attempt; a != nil && a.driver == d && (newest || d.Bound) {
		a.discard = true
		a.cut(context.Canceled)
	}
	if len(t.drivers) > 0 {
		t.mu.Unlock()
		return
	}
	t.loop = nil
	l.timer.Stop()
	if l.attempt != nil { // an earlier driver's, which nobody would end any more
		l.attempt.cut(context.Canceled)
	}
	t.askAgain(nil)
	var idle chan struct{}
	if l.probing {
		idle = make(chan struct{})
		l.idle = idle
	}
	t.mu.Unlock()
	if idle != nil {
		<-idle
	}
}

// arm has the next probe begin at a time.
func (l *loop) arm(at time.Time) {
	l.due = at
	l.timer.Reset(time.Until(at))
}

// hurry has the next probe begin at once, or right after the one in flight.
func (l *loop) hurry() {
	if l.probing {
		l.again = true
	} else {
		l.arm(time.Now())
	}
}

// tick is called when the timer fires: for the probe in flight, or to begin the
// next one.
func (t *Target) tick(l *loop) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	switch {
	case t.loop != l: // the last driver left in this very moment
	case l.attempt != nil:
		l.timer.Reset(l.attempt.beat(now))
	case l.probing || now.Before(l.due): // it fired for a probe that was over by then
	default:
		l.probing = true
		due := l.due
		if now.Sub(due) > min(punctual, t.settings.FastInterval/marks) {
			due = now
		}
		t.mu.Unlock()
		growStack()
		t.probe(l, now, due)
		t.mu.Lock()
	}
}

// punctual is how late a probe may begin and still count as on time: intervals count
// from when it was due, or small delays would take it from mark to mark.
const punctual = 5 * time.Millisecond

// probe runs one probe and has the next one follow. Probes of one target never
// overlap: one that takes longer than the interval delays the next.
func (t *Target) probe(l *loop, now, due time.Time) {
	next := t.probeOnce(l, now, due)

	t.mu.Lock()
	defer t.mu.Unlock()
	l.probing = false
	if t.loop != l {
		if l.idle != nil {
			close(l.idle)
		}
		return
	}
	if l.again || len(t.asked) > 0 {
		l.again, next = false, now
	} else if t.paused {
		return
	}
	l.arm(next)
}

// probeOnce runs one probe, counts its result and tells of it. It returns when the
// next is to begin.
func (t *Target) probeOnce(l *loop, started, due time.Time) (next time.Time) {
	t.mu.Lock()
	if t.loop != l { // the last driver left in this very moment
		t.mu.Unlock()
		return started
	}
	if t.paused && len(t.asked) == 0 { // paused in this very moment
		t.mu.Unlock()
		return started
	}
	t.suspicion.probing()
	t.began = started
	asked := t.asked
	t.asked = nil
	fresh := !t.state.settled() || t.suspicion.burst || len(asked) > 0
	a := newAttempt(t.drivers[len(t.drivers)-1], started, t.settings.Timeout)
	l.attempt = a
	l.timer.Reset(a.due.Sub(started))
	t.mu.Unlock()

	draining, err := safely(a, a.driver.Probe, fresh)
	ended := time.Now()
	result := Result{At: started, Reason: t.reason(a, err), Took: ended.Sub(started)}
	slow := timedOut(a, err) || err != nil && !ended.Before(a.deadline)
	a.cut(context.Canceled)

	t.mu.Lock()
	l.attempt = nil
	if t.loop != l || a.discard { // it counts for nothing, and a successor's is due at once
		t.askAgain(asked)
		t.mu.Unlock()
		return started
	}
	late := a.lateness(ended)
	void := slow && late > max(t.settings.Timeout/4, minBeat)
	var change *Transition
	var subscribers []func()
	goesOn := t.suspicion.burst
	if !void {
		t.history.add(result)
	}
	if !void && !t.paused {
		if change = t.record(err == nil, draining, result.Reason, ended); change != nil {
			subscribers = t.listeners()
		}
		goesOn = t.suspicion.record(err == nil, t.state.status, ended)
	}
	newest := t.drivers[len(t.drivers)-1]
	next = due.Add(t.state.delay(&t.settings, due))
	if goesOn {
		next = started.Add(t.settings.FastInterval / burstFactor)
	}
	t.mu.Unlock()

	for _, f := range subscribers {
		f()
	}
	switch {
	case void && newest.Late != nil:
		newest.Late(late)
	case !void && newest.Probed != nil:
		newest.Probed(result)
	}
	if change != nil && newest.Report != nil {
		newest.Report(*change)
	}
	for _, answer := range asked {
		answer <- result
	}
	return next
}

// record counts a result and returns the change, if it made one. t.mu must be
// held.
func (t *Target) record(passed, draining bool, reason string, now time.Time) *Transition {
	before := t.state
	if !t.state.record(passed, draining, &t.settings) {
		return nil
	}
	change := &Transition{
		From: before.status, To: t.state.status,
		WasDraining: before.draining, Draining: t.state.draining,
		Reason: reason,
	}
	if since := t.since.Load(); since != nil {
		if change.From == change.To {
			now = *since
		} else {
			change.Lasted = now.Sub(*since)
		}
	}
	t.publish(now)
	return change
}

// timedOut reports whether a probe failed because something took too long.
func timedOut(ctx context.Context, err error) bool {
	if err == nil {
		return false
	}
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && timeout.Timeout() || errors.Is(ctx.Err(), context.DeadlineExceeded)
}

// reason puts a failed probe into words that a person can act on, in one
// bounded line of valid text.
func (t *Target) reason(ctx context.Context, err error) string {
	if err == nil {
		return ""
	}
	text := cmp.Or(err.Error(), "an error without a text")
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
func safely(ctx context.Context, probe func(context.Context, bool) (bool, error), fresh bool) (draining bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the probe panicked: %v", p)
		}
	}()
	return probe(ctx, fresh)
}
