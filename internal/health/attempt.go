// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"fmt"
	"time"
)

// attempt is a probe in flight. All but ctx is guarded by Target.mu.
type attempt struct {
	ctx       context.Context // of the probe
	cancel    context.CancelFunc
	heartbeat heartbeat

	began     time.Time
	due       time.Time // when it was due, from which the next interval counts
	driver    *Driver
	waiters   []chan<- answer
	fresh     bool          // it must not rely on an earlier connection
	skipped   bool          // it is not made, because an earlier one is still running
	discarded bool          // its result counts for nothing
	givenUp   bool          // its result is no longer waited for
	over      chan struct{} // closed when it has returned after it was given up; nil unless detach waits
}

// newAttempt begins an attempt. Its context ends with the timeout, or when it is canceled.
func newAttempt(driver *Driver, now time.Time, timeout time.Duration) *attempt {
	a := &attempt{driver: driver, began: now, heartbeat: newHeartbeat(now, timeout)}
	a.ctx, a.cancel = context.WithDeadline(context.Background(), a.heartbeat.deadline)
	return a
}

// run makes the probe. A panic is a failed probe: a probe may be third-party code that
// reads what an upstream sends, and must not end the whole server.
func (a *attempt) run() (draining bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicError(p)
		}
	}()
	return a.driver.Probe(a.ctx, a.fresh)
}

func panicError(p any) error { return fmt.Errorf("the probe panicked: %v", p) }
