// SPDX-License-Identifier: Apache-2.0

package health

import (
	"testing"
	"time"
)

// TestCalm_SpacesTheProbesOfABurst: while no other target can take over, a burst probes as
// often as usual, so that a short failure does not turn the target down. It hurries again
// as soon as another can.
func TestCalm_SpacesTheProbesOfABurst(t *testing.T) {
	for _, tc := range []struct {
		name  string
		calm  func(target *Target) // called at 2 s, right after the accusation
		after func(target *Target) // called 400 ms later
		want  []time.Duration
	}{
		{"not calm", func(*Target) {}, func(*Target) {}, seconds(2, 2.25, 2.5)},
		{"calm", func(t *Target) { t.Calm(true) }, func(*Target) {}, seconds(2, 3, 4)},
		{"calm, and then not", func(t *Target) { t.Calm(true) }, func(t *Target) { t.Calm(false) }, seconds(2, 2.4, 2.65)},
		{"late", func(*Target) {}, func(t *Target) { t.Calm(true) }, seconds(2, 2.25, 3.25)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				set := settings()
				set.Interval, set.DownInterval = time.Hour, time.Hour
				target := NewTarget(set)
				s := newScript(pass)
				defer target.Attach(s.driver(), 0)()
				advance(2 * time.Second)
				s.probes()
				s.set(fail)
				accuse(target)
				advance(time.Millisecond)
				tc.calm(target)
				advance(399 * time.Millisecond)
				tc.after(target)
				advance(2200 * time.Millisecond)
				if got := s.probes(); len(got) < 3 || got[0] != tc.want[0] || got[1] != tc.want[1] || got[2] != tc.want[2] {
					t.Errorf("probes at %v, want %v first", got, tc.want)
				}
				if got := target.Status(); got != Down {
					t.Errorf("status %v, want down", got)
				}
			})
		})
	}
}

// TestCalm_IsOfOneBurst: the first probe of the next burst begins at once.
func TestCalm_IsOfOneBurst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		set := settings()
		set.Interval = time.Hour
		target := NewTarget(set)
		s := newScript(pass)
		defer target.Attach(s.driver(), 0)()
		advance(2 * time.Second)
		accuse(target)
		target.Calm(true)
		advance(500 * time.Millisecond)
		s.probes()
		accuse(target)
		advance(100 * time.Millisecond)
		wantProbes(t, s, seconds(2.5))
	})
}
