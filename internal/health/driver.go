// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"time"
)

// A Driver says how a target is probed, and is told of the results. Its functions are
// called from goroutines of the target, with no lock held.
type Driver struct {
	// Probe makes one probe. An error is a failed probe, and its text the reason.
	// Without one, draining says that the target is up, but asks for no new
	// requests. If fresh is set, the probe must not rely on an earlier connection. It
	// should return soon after ctx is done. One that does not delays nothing, and no
	// other probe of the target begins while it runs.
	Probe func(ctx context.Context, fresh bool) (draining bool, err error)
	// Bound says that a probe cannot outlive its driver, because the connection that
	// it uses is closed with the driver.
	Bound bool
	// Probed is called with every result that counts. It may be nil.
	Probed func(Result)
	// Inconclusive is called with every result that counts for nothing, and the cause.
	// It may be nil.
	Inconclusive func(*InconclusiveError)
	// Report is called with every change. It may be nil.
	Report func(Transition)
	// Pacer limits the probes that begin before their turn, together with all others that
	// have the same one. The first driver decides. Nil is that of the process.
	Pacer *Pacer
}

// Result is the result of one probe.
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

// Transition is one change of the status, or of whether an up target is draining.
type Transition struct {
	From, To Status
	// WasDraining and Draining say whether it was draining before, and is now.
	WasDraining, Draining bool
	// Reason is why the last probe failed; empty when it passed.
	Reason string
	// Lasted is how long the status before lasted, 0 if there was none, or if it
	// goes on.
	Lasted time.Duration
}

// answer is what a call of Check waits for.
type answer struct {
	Result
	inconclusive *InconclusiveError // why the result counts for nothing, nil if it counts
}

// report is what is told of one probe when its result has been counted.
type report struct {
	answer
	driver      *Driver
	ended       []func()    // called for the accusations that the result ends
	change      *Transition // nil if there is none
	subscribers []func()    // called after a change
	waiters     []chan<- answer
}

// deliver calls the functions of subscribers and of the driver, and answers the waiters.
// No lock must be held.
func (r *report) deliver() {
	for _, f := range r.ended {
		f()
	}
	for _, f := range r.subscribers {
		f()
	}
	switch {
	case r.inconclusive == nil && r.driver.Probed != nil:
		r.driver.Probed(r.Result)
	case r.inconclusive != nil && r.driver.Inconclusive != nil:
		r.driver.Inconclusive(r.inconclusive)
	}
	if r.change != nil && r.driver.Report != nil {
		r.driver.Report(*r.change)
	}
	for _, waiter := range r.waiters {
		waiter <- r.answer
	}
}

// subscribers are functions that are called after every change of the status.
type subscribers map[*func()]struct{}

// list returns the functions.
func (s subscribers) list() []func() {
	all := make([]func(), 0, len(s))
	for f := range s {
		all = append(all, *f)
	}
	return all
}
