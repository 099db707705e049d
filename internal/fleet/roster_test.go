// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"testing"
	"time"
)

// A member that is not in the storage for a moment has left. It has not if the storage was
// emptied, or may have been while it was gone: members then store themselves again, one after
// the other. One that does not when the storage was emptied is lost.
func TestRoster_MissingMemberHasLeft(t *testing.T) {
	const own, other = "0000000000000001", "0000000000000002"
	for name, tc := range map[string]struct {
		before         func(r *roster, now time.Time)
		stays, unknown bool // for a period, and until it is lost
	}{
		"all is well": {func(*roster, time.Time) {}, false, false},
		"the storage worked again": {func(r *roster, now time.Time) {
			r.restart(now)
		}, true, false},
		"the storage was emptied": {func(r *roster, now time.Time) {
			r.take(map[string]*value{own: nil, other: nil}, true, now)
		}, true, true},
	} {
		now := time.Now()
		r := newRoster(own)
		r.wrote(value{ID: own, Seq: 1, Seconds: 10}, now)
		r.add(other)
		r.take(map[string]*value{own: &r.own.value, other: {ID: other, Seq: 1, Seconds: 10}}, true, now)
		tc.before(&r, now)
		r.wrote(value{ID: own, Seq: 2, Seconds: 10}, now)
		read := map[string]*value{own: &r.own.value, other: nil}
		r.take(read, true, now.Add(time.Second))
		r.take(read, true, now.Add(time.Second)) // at the same look
		if len(r.others) == 0 {
			t.Errorf("%s: the member is gone when it is not found once", name)
		}
		r.take(read, true, now.Add(time.Second+leaveTime))
		if stays := len(r.others) == 1; stays != tc.stays {
			t.Errorf("%s: the member stays: %v, want %v", name, stays, tc.stays)
		}
		r.take(read, true, now.Add(r.period()))
		r.take(read, true, now.Add(r.period()+leaveTime))
		if stays := len(r.others) == 1; stays != tc.unknown {
			t.Errorf("%s: the member stays until it is lost: %v, want %v", name, stays, tc.unknown)
		}
	}
}
