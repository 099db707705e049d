// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"testing"
	"time"
)

// The next probe begins at once, and no sooner than a quarter of the fast interval
// after the last one. Afterwards the target returns to its old schedule.
func TestProbeNow_BeginsAtOnceButNotTooSoon(t *testing.T) {
	bubble(t, func(t *testing.T) {
		target := NewTarget(settings())
		s := newScript(pass)
		defer target.Attach(s.driver(), 30*time.Second)()
		advance(time.Second)
		for range 100 {
			target.ProbeNow() // before the first probe
		}
		advance(100 * time.Millisecond)
		for range 100 {
			target.ProbeNow() // too soon, so it is put off
		}
		advance(100 * time.Millisecond)
		target.ProbeNow()
		advance(1800 * time.Millisecond) // to 3 s
		target.ProbeNow()
		advance(6 * time.Second)
		wantProbes(t, s, seconds(1, 1.25, 3, 6))
	})
}

// A probe that is due sooner anyway is not put off.
func TestProbeNow_NeverDelaysAProbe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		set := settings()
		set.DownInterval = 100 * time.Millisecond
		target := NewTarget(set)
		target.Inherit(Down, false, time.Now())
		s := newScript(fail)
		defer target.Attach(s.driver(), 0)()
		advance(50 * time.Millisecond)
		target.ProbeNow()
		advance(200 * time.Millisecond)
		wantProbes(t, s, seconds(0, 0.1, 0.2))
	})
}

// While a probe is in flight, ProbeNow has no effect: none follows it at once.
func TestProbeNow_CountsAProbeInFlight(t *testing.T) {
	bubble(t, func(t *testing.T) {
		target := NewTarget(settings())
		s := newScript(func(context.Context) error {
			time.Sleep(time.Second)
			return nil
		})
		defer target.Attach(s.driver(), 0)()
		advance(500 * time.Millisecond)
		target.ProbeNow()
		advance(4 * time.Second)
		wantProbes(t, s, seconds(0))
	})
}

// ProbeNow starts no probes that are paused, have ended or never began, and does not end
// the pause.
func TestProbeNow_HasNoEffectWithoutProbes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		target := NewTarget(settings())
		target.ProbeNow()
		s := newScript(pass)
		detach := target.Attach(s.driver(), 0)
		advance(time.Second)
		target.Pause(true)
		target.ProbeNow()
		advance(time.Minute)
		wantProbes(t, s, seconds(0))
		target.Pause(false)
		advance(time.Second)
		wantProbes(t, s, seconds(61))
		detach()
		target.ProbeNow()
		advance(time.Minute)
		wantProbes(t, s, nil)
	})
}

// Before the probes begin, ProbeNow makes the first one begin without a delay. After they
// ended, it has no effect on those that begin again.
func TestProbeNow_BeforeTheStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		target := NewTarget(settings())
		target.ProbeNow()
		advance(time.Second)
		s := newScript(pass)
		detach := target.Attach(s.driver(), time.Minute)
		advance(time.Second)
		wantProbes(t, s, seconds(0))
		detach()
		target.ProbeNow()
		defer target.Attach(s.driver(), time.Minute)()
		advance(30 * time.Second)
		wantProbes(t, s, nil)
	})
}
