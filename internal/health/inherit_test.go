// SPDX-License-Identifier: Apache-2.0

package health

import (
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// known is the public state of a target.
type known struct {
	Status   Status
	Draining bool
	Since    time.Time
}

func knownOf(t *Target) known { return known{t.Status(), t.Draining(), t.Since()} }

// An inherited status is visible at once, and each change is reported once. Unknown
// takes it back.
func TestInherit_IsVisibleAndReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		early, late := time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
		target := NewTarget(settings())
		calls := 0
		defer target.Subscribe(func() { calls++ })()
		for _, tc := range []struct {
			rule     string
			status   Status
			draining bool
			since    time.Time
			want     known
			calls    int
		}{
			{"nothing is no news", Unknown, false, time.Time{}, known{}, 0},
			{"down", Down, false, early, known{Down, false, early}, 1},
			{"down again is no news", Down, false, early, known{Down, false, early}, 0},
			{"up", Up, false, late, known{Up, false, late}, 1},
			{"up and draining", Up, true, early, known{Up, true, early}, 1},
			{"and that again is no news", Up, true, early, known{Up, true, early}, 0},
			{"unknown takes it back", Unknown, false, time.Time{}, known{}, 1},
			{"down cannot be draining", Down, true, late, known{Down, false, late}, 1},
			{"nor can unknown", Unknown, true, time.Time{}, known{}, 1},
		} {
			calls = 0
			target.Inherit(tc.status, tc.draining, tc.since)
			if got := knownOf(target); got != tc.want {
				t.Errorf("%s: got %+v, want %+v", tc.rule, got, tc.want)
			}
			if calls != tc.calls {
				t.Errorf("%s: subscribers were called %d times, want %d", tc.rule, calls, tc.calls)
			}
		}
	})
}

// An inherited status is settled: it takes all the passes or fails in a row to
// change it, and the intervals are those of a settled status until a probe
// contradicts it. After it was taken back, the target begins as a new one.
func TestInherit_StatusIsSettled(t *testing.T) {
	type inherited struct {
		status   Status
		draining bool
	}
	for _, tc := range []struct {
		rule    string
		inherit []inherited
		results string // by the letters of TestDraining_FollowsTheLastPass
		probes  []time.Duration
		fresh   string
		want    []Transition
	}{
		{
			"up: not the first fail, but three in a row",
			[]inherited{{Up, false}},
			"FFF", seconds(0, 1, 2, 12), "ftt",
			[]Transition{{From: Up, To: Down, Reason: "sick", Lasted: time.Hour + 2*time.Second}},
		},
		{"up: single fails", []inherited{{Up, false}}, "FFPF", seconds(0, 1, 2, 7, 8), "fttf", nil},
		{"up: passes are no news", []inherited{{Up, false}}, "PPP", seconds(0, 5, 10, 15), "fff", nil},
		{
			"down: not the first pass, but two in a row",
			[]inherited{{Down, false}},
			"PP", seconds(0, 1, 6), "tt",
			[]Transition{{From: Down, To: Up, Lasted: time.Hour + time.Second}},
		},
		{"down: single passes", []inherited{{Down, false}}, "PFPF", seconds(0, 1, 11, 12, 22), "tttt", nil},
		{"down: fails are no news", []inherited{{Down, false}}, "FF", seconds(0, 10, 20), "tt", nil},
		{
			"draining: until the first plain pass",
			[]inherited{{Up, true}},
			"DFP", seconds(0, 5, 6, 11), "fft",
			[]Transition{{From: Up, To: Up, WasDraining: true}},
		},
		{
			"taken back: the first result decides",
			[]inherited{{Up, true}, {Unknown, false}},
			"FF", seconds(0, 1, 2), "tt",
			[]Transition{{From: Unknown, To: Down, Reason: "sick"}},
		},
		{
			"taken back: one pass is enough",
			[]inherited{{Down, false}, {Unknown, false}},
			"FP", seconds(0, 1, 6), "tt",
			[]Transition{{From: Unknown, To: Down, Reason: "sick"}, {From: Down, To: Up, Lasted: time.Second}},
		},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				target := NewTarget(settings())
				for _, i := range tc.inherit {
					since := time.Now().Add(-time.Hour)
					if i.status == Unknown {
						since = time.Time{}
					}
					target.Inherit(i.status, i.draining, since)
				}
				l := &letters{results: tc.results}
				probes := recordStarts(target, l.driver())
				end := tc.probes[len(tc.probes)-1]
				advance(end - time.Millisecond)
				if _, got := l.said(); !slices.Equal(got, tc.want) {
					t.Errorf("reported %+v, want %+v", got, tc.want)
				}
				advance(time.Millisecond)
				probes.detach()
				if !slices.Equal(probes.at, tc.probes) {
					t.Errorf("probes began at %v, want %v", probes.at, tc.probes)
				}
				if got, _ := l.said(); got != tc.fresh {
					t.Errorf("fresh %s, want %s", got, tc.fresh)
				}
			})
		})
	}
}

// Inherit has no effect once probes began: not before the first result, not after it,
// and not when no driver is attached any more.
func TestInherit_HasNoEffectOnceProbesBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		if !target.New() {
			t.Error("a target without probes is not new")
		}
		var calls atomic.Int32
		defer target.Subscribe(func() { calls.Add(1) })()
		s := newScript(pass)
		detach := target.Attach(s.driver(), time.Second)
		want := known{}
		for _, when := range []string{"before the first probe", "after it", "with nothing attached"} {
			calls.Store(0)
			target.Inherit(Down, false, time.Now())
			target.Inherit(Up, true, time.Now())
			target.Inherit(Unknown, false, time.Time{})
			if got := knownOf(target); got != want || calls.Load() != 0 {
				t.Errorf("%s: got %+v, called %d times; want %+v, no calls", when, got, calls.Load(), want)
			}
			if target.New() {
				t.Errorf("%s: it is new", when)
			}
			switch when {
			case "before the first probe":
				want = known{Status: Up, Since: time.Now().Add(time.Second)}
				advance(2 * time.Second)
			case "after it":
				detach()
			}
		}
	})
}

// The time of the last change is inherited even if the status stays the same.
func TestInherit_CorrectsSince(t *testing.T) {
	early, late := time.Now().Add(-time.Hour), time.Now()
	for _, status := range []Status{Up, Down} {
		target := NewTarget(settings())
		target.Inherit(status, false, late)
		target.Inherit(status, false, early)
		if got := target.Since(); !got.Equal(early) {
			t.Errorf("%v: since %v, want %v, the last that was said", status, got, early)
		}
	}
}
