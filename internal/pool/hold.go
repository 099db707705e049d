// SPDX-License-Identifier: Apache-2.0

package pool

import "time"

// holdGrace is how long held requests wait for further upstreams once one passed, so
// that they do not all go to the quickest.
const holdGrace = 100 * time.Millisecond

// hold holds a request at a cold start: until every primary has a verdict, or a moment
// after the first passed, or the limit. It returns false if the client left meanwhile.
func hold(d *decision) bool {
	h := d.pool.handler
	if h.Rules.Hold == 0 {
		return true
	}
	if h.OnHold != nil {
		h.OnHold()
	}
	d.now.probeUnknown()
	began := time.Now()
	defer func() { noteWait(d, time.Since(began)) }()
	limit := time.NewTimer(h.Rules.Hold)
	defer limit.Stop()
	var grace <-chan time.Time
	defer h.await(d.pool)()
	for {
		changed := d.pool.waiters.next() // before the snapshot, so that no change is missed
		now := d.pool.snapshot(true)
		if !now.undecided {
			return true
		}
		if grace == nil && len(now.serving) > 0 {
			timer := time.NewTimer(holdGrace)
			defer timer.Stop()
			grace = timer.C
		}
		select {
		case <-changed:
		case <-grace:
			return true
		case <-limit.C:
			return true
		case <-h.Ended: // no verdict will come any more
			return true
		case <-h.Exiting: // the http app waits for this request
			return true
		case <-d.Request.Context().Done():
			return false
		}
	}
}
