// SPDX-License-Identifier: Apache-2.0

// Package health decides whether something is alive from a series of probes. It is given
// a function that makes a probe, calls it at the right moments, counts the results, and
// reports every change.
//
// It must not know Caddy or HTTP, or how a probe is made.
//
// Target.mu guards the state of a target, its schedule and the probe in flight. The mutex
// of the slots, which all targets share, is the only lock that is taken while Target.mu is
// held; so is that of the limit of probes that begin before their turn. They are held for
// moments. No lock is held while a function of a driver, of a subscriber or of an
// accusation runs. Status, Draining, Since, Original and IsSuspect take no lock.
package health

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Target is one thing that is probed. Its state lives as long as the Target; its
// probes run while at least one driver is attached.
type Target struct {
	settings  Settings
	published published // for readers that must not wait

	mu          sync.Mutex // guards all below, and writing to published
	state       state
	burst       burst
	history     history
	late        lateTimeouts
	paused      bool            // no probe begins except for waiters
	waiters     []chan<- answer // are sent the result of the next probe to begin
	straggler   *attempt        // a probe that goes on after it was given up, nil if there is none
	drivers     []*Driver       // attached, oldest first; the newest is in use
	subscribers subscribers
	schedule    *schedule // nil while no driver is attached
	start       startState
	began       time.Time // when the last probe began, the zero time before the first
}

// ErrEnded says that no more probes are made.
var ErrEnded = errors.New("the probes have ended")

// maxDetach is how long detach waits for a probe that was canceled.
const maxDetach = time.Second

// NewTarget returns a target of unknown status without drivers.
func NewTarget(settings Settings) *Target {
	return &Target{settings: settings, subscribers: make(subscribers)}
}

// Status returns the status now. It never waits.
func (t *Target) Status() Status { return Status(t.published.status.Load()) }

// Draining reports whether it is up, but asked for no new requests. It never
// waits.
func (t *Target) Draining() bool { return t.published.draining.Load() }

// Since returns when the status last changed, the zero time if it never did. It
// never waits.
func (t *Target) Since() time.Time { return t.published.since() }

// Original reports whether the target began together with all others of its pool, and
// has been up since its first result. It never waits.
func (t *Target) Original() bool { return t.published.isOriginal() }

// MarkOrigin says whether the target begins with all others of its pool, or in a pool in
// which others have begun before. If it is in several pools that differ, the latter
// applies. It has no effect once probes began.
func (t *Target) MarkOrigin(withAll bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.start != started {
		t.published.begin(withAll)
	}
}

// InheritOrigin overrides MarkOrigin with the origin of the targets whose status is
// inherited. It has no effect once probes began.
func (t *Target) InheritOrigin(wasOriginal bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.start != started && !t.paused {
		t.published.inheritOrigin(wasOriginal)
	}
}

// Inherit gives the target a status to begin with, as a settled one, and since
// when it lasts. It has no effect once probes began.
func (t *Target) Inherit(status Status, draining bool, since time.Time) {
	t.mu.Lock()
	if t.start == started || t.paused || status == t.state.status && draining == t.state.draining && since.Equal(t.Since()) {
		t.mu.Unlock()
		return
	}
	t.state = state{status: status, draining: draining && status == Up, wasUp: status != Unknown}
	t.published.set(&t.state, since)
	subscribers := t.subscribers.list()
	t.mu.Unlock()
	for _, f := range subscribers {
		f()
	}
}

// Subscribe makes the target call f after every change of status, from one of its
// goroutines and with no lock held, until cancel is called. A call that is under way at
// that moment may still end later.
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
	return t.schedule != nil
}

// New reports whether no probes ever ran.
func (t *Target) New() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.start != started
}

// View returns what is known at this moment.
func (t *Target) View() View {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.brief()
	v.Recent = t.history.recent()
	return v
}

// Brief is [Target.View] without the recent results, which are most of it.
func (t *Target) Brief() View {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.brief()
}

// brief is Brief; t.mu must be held.
func (t *Target) brief() View {
	v := View{
		Status: t.state.status, Draining: t.state.draining, Paused: t.paused,
		Passes: t.state.passes, Fails: t.state.fails,
		Since: t.Since(),
		Last:  t.history.last, LastFailed: t.history.failed,
	}
	if t.schedule != nil && !t.schedule.probing && !t.paused {
		v.Next = t.schedule.due
	}
	return v
}

// FailsInRow returns how many probes have failed since the last one that passed.
func (t *Target) FailsInRow() int { return t.Brief().Fails }

// LastFailed returns when the last probe that failed began, the zero time if none did.
func (t *Target) LastFailed() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.history.failed.At
}

// IsSuspect reports whether the target is up, but there is an accusation that all see. It
// never waits.
func (t *Target) IsSuspect() bool { return t.published.suspect.Load() }

// Accuse says that something other than a probe failed, such as a request. If the target
// is up, it is probed in a burst from now on, and the function is called with the verdict,
// once and with no lock held: after one probe passed that began after the accusation, or as
// many failed as turn it down, or too many count for nothing. If all are to see the
// accusation, the target is a suspect until then. It returns false, and does nothing, if
// the target is not up or not probed.
func (t *Target) Accuse(shared bool, done func(Verdict)) bool {
	t.mu.Lock()
	if t.schedule == nil || t.paused || t.state.status != Up {
		t.mu.Unlock()
		return false
	}
	now := time.Now()
	t.burst.add(accusation{now, shared, done})
	t.armEarly(accused, now)
	var subscribers []func()
	if t.showSuspect() {
		subscribers = t.subscribers.list()
	}
	t.mu.Unlock()
	for _, f := range subscribers {
		f()
	}
	return true
}

// Calm says whether the probes of a burst are as far apart as usual, because no other
// target can take over from this one: then it only matters that it is not turned down for
// a failure that is about to pass. The first probe of a burst still begins at once.
func (t *Target) Calm(calm bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.burst.calm == calm {
		return
	}
	t.burst.calm = calm
	if s := t.schedule; s != nil && !s.probing && t.burst.active() && !t.began.Before(t.burst.began) {
		s.arm(t.earliest(time.Now()))
		s.early = accused
	}
}

// showSuspect shows whether the target is a suspect, and reports whether that is new. t.mu
// must be held.
func (t *Target) showSuspect() (changed bool) {
	shared := t.burst.isShared()
	return t.published.suspect.Swap(shared) != shared
}

// IsConvicted reports whether a burst turned the target down, a short while ago: it may be
// back any moment.
func (t *Target) IsConvicted() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state.status == Down && t.burst.conviction.isRecent(time.Now(), &t.settings)
}

// Hasten is ProbeNow for a target that a burst has turned down a short while ago, and has
// no effect on others. If onePass is set, one pass brings it back.
func (t *Target) Hasten(onePass bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if t.state.status != Down || !t.burst.conviction.isRecent(now, &t.settings) || t.schedule == nil || t.paused {
		return
	}
	t.state.onePass = t.state.onePass || onePass
	t.armEarly(optional, now)
}

// ProbeNow makes the next probe begin at once, but no sooner than a quarter of the fast
// interval after the last one began, however often it is called, and only if not too many
// others begin before their turn. It never waits. It
// has no effect in a pause, when the probes have ended, or while a probe is in flight,
// because its result is about to come. Before the probes begin it makes the first one
// begin without a delay.
func (t *Target) ProbeNow() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.schedule == nil || t.paused {
		if t.start == notStarted {
			t.start = startAtOnce
		}
		return
	}
	t.armEarly(optional, time.Now())
}

// Thin makes the probes factor times as far apart while the status is certain, 5 minutes at
// most: others probe the same, and accuse the target if it fails there. 1 takes it back. It
// has no effect while no probes run.
func (t *Target) Thin(factor int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.schedule; s != nil && max(s.thin, 1) != factor {
		s.thinOut(t, factor, time.Now())
	}
}

// Check probes at once, or as soon as the probe in flight is over, on a fresh
// connection and even in a pause, and returns the result. It counts as any other does,
// except in a pause. The error is [ErrEnded], that of the context, or
// an [InconclusiveError] beside a result that says nothing about the target.
func (t *Target) Check(ctx context.Context) (Result, error) {
	waiter := make(chan answer, 1)
	t.mu.Lock()
	if t.schedule == nil {
		t.mu.Unlock()
		return Result{}, ErrEnded
	}
	t.waiters = append(t.waiters, waiter)
	t.schedule.probeNow()
	t.mu.Unlock()
	select {
	case found, ok := <-waiter:
		switch {
		case !ok:
			return Result{}, ErrEnded
		case found.inconclusive != nil:
			return found.Result, found.inconclusive
		}
		return found.Result, nil
	case <-ctx.Done():
		return Result{}, context.Cause(ctx)
	}
}

// Pause ends the probes until they are resumed, and waits for none: one in flight is
// canceled and counts for nothing. The status becomes unknown, so that the first
// result after a pause decides alone.
func (t *Target) Pause(paused bool) {
	t.mu.Lock()
	if t.paused == paused {
		t.mu.Unlock()
		return
	}
	t.paused = paused
	var subscribers []func()
	if t.state.status != Unknown {
		subscribers = t.subscribers.list()
	}
	t.state, t.burst.conviction, t.late = state{}, conviction{}, 0
	ended := t.burst.end(Undecided)
	t.published.set(&t.state, time.Time{})
	t.showSuspect()
	if s := t.schedule; s != nil {
		if s.attempt != nil {
			s.discard(time.Now())
		}
		switch {
		case !paused || len(t.waiters) > 0:
			s.probeNow()
		case !s.probing:
			s.timer.Stop()
		}
	}
	t.mu.Unlock()
	for _, f := range append(ended, subscribers...) {
		f()
	}
}

// Attach puts d in use: from the next probe on, d makes the probes and changes are
// reported to it. The first driver starts the probes, after the delay; a later one
// disturbs neither the schedule nor a probe in flight.
//
// The returned function, to be called once, removes d again: the newest of
// those that remain is used then. A probe of d in flight is canceled and counts
// for nothing if d was the newest, or is bound. Else it still counts, because
// a successor relies on it. When none remain the probes end. Detach waits for that,
// but not for longer than [maxDetach] for a probe that goes on after it was canceled:
// such a probe ends by itself, and its result is dropped.
func (t *Target) Attach(d Driver, delay time.Duration) (detach func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drivers = append(t.drivers, &d)
	if t.schedule == nil {
		if t.start == startAtOnce {
			delay = 0
		}
		t.start = started
		t.startSchedule(delay)
	}
	return func() { t.detach(&d) }
}

func (t *Target) detach(d *Driver) {
	t.mu.Lock()
	i := slices.Index(t.drivers, d)
	newest := i == len(t.drivers)-1
	t.drivers = slices.Delete(t.drivers, i, i+1)
	if len(t.drivers) > 0 {
		if a := t.schedule.attempt; a != nil && a.driver == d && (newest || d.Bound) {
			t.schedule.discard(time.Now())
		}
		t.mu.Unlock()
		return
	}
	delivered, ended := t.stopSchedule()
	undecided := t.burst.end(Undecided)
	t.showSuspect()
	t.mu.Unlock()
	for _, f := range undecided {
		f()
	}
	if delivered != nil {
		<-delivered
	}
	if ended == nil {
		return
	}
	limit := time.NewTimer(maxDetach)
	defer limit.Stop()
	select {
	case <-ended:
	case <-limit.C:
	}
}
