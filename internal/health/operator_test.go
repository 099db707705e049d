// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A pause ends the probes, also one in flight, and the status becomes unknown.
// Afterwards the first result decides alone.
func TestPause_EndsProbesAndForgetsStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		sick, probes, calls := false, 0, 0
		target.Subscribe(func() { calls++ })
		detach := target.Attach(Driver{Probe: func(ctx context.Context, _ bool) (bool, error) {
			probes++
			if sick {
				return false, errSick
			}
			return false, nil
		}}, 0)
		defer detach()
		advance(11 * time.Second)
		if target.Status() != Up || probes == 0 {
			t.Fatalf("status %v after %d probes, want up", target.Status(), probes)
		}

		calls = 0
		target.Pause(true)
		target.Pause(true)
		before := probes
		advance(time.Minute)
		if probes != before {
			t.Errorf("%d probes in a pause", probes-before)
		}
		if got := target.View(); got.Status != Unknown || !got.Paused || !got.Next.IsZero() || calls != 1 {
			t.Errorf("in a pause: %+v, called %d times", got, calls)
		}

		sick = true
		target.Pause(false)
		advance(0)
		if target.Status() != Down || probes != before+1 {
			t.Errorf("after the pause: status %v after %d probes, want down after one", target.Status(), probes-before)
		}
	})
}

// A pause cancels a probe that hangs.
func TestPause_CancelsProbeInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		cut := false
		detach := target.Attach(Driver{Probe: func(ctx context.Context, _ bool) (bool, error) {
			<-ctx.Done()
			cut = errors.Is(ctx.Err(), context.Canceled)
			return false, ctx.Err()
		}}, 0)
		defer detach()
		advance(time.Millisecond)
		target.Pause(true)
		advance(time.Millisecond)
		if got := target.View(); !cut || got.Fails != 0 || !got.Last.At.IsZero() {
			t.Errorf("cut off: %v; known: %+v", cut, got)
		}
	})
}

// Check returns the result of a probe that began after the call, on a fresh
// connection, also in a pause, where it does not count.
func TestCheck_ReturnsResultOfALaterProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := NewTarget(settings())
		if _, err := target.Check(t.Context()); !errors.Is(err, ErrEnded) {
			t.Errorf("before anything is attached: %v", err)
		}
		var failing, fresh atomic.Bool
		var probes atomic.Int32
		detach := target.Attach(Driver{Probe: func(_ context.Context, f bool) (bool, error) {
			probes.Add(1)
			fresh.Store(f)
			time.Sleep(time.Second)
			if failing.Load() {
				return false, errSick
			}
			return false, nil
		}}, 0)
		advance(12 * time.Second)

		for range 3 { // between two probes, in the middle of one, and after it
			began := probes.Load()
			asked := time.Now()
			result, err := target.Check(t.Context())
			if err != nil || !result.Passed() || result.At.Before(asked) || result.Took != time.Second {
				t.Errorf("got %+v, %v", result, err)
			}
			if probes.Load() == began || !fresh.Load() {
				t.Errorf("the probe was not on a fresh connection")
			}
			advance(4500 * time.Millisecond)
		}

		target.Pause(true)
		failing.Store(true)
		result, err := target.Check(t.Context())
		if err != nil || result.Reason != errSick.Error() {
			t.Errorf("in a pause: %+v, %v", result, err)
		}
		if v := target.View(); v.Status != Unknown || v.Fails != 0 || v.Last.Reason != errSick.Error() {
			t.Errorf("in a pause it counted: %+v", v)
		}
		began := probes.Load()
		advance(time.Minute)
		if probes.Load() != began {
			t.Errorf("a check ended the pause")
		}

		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := target.Check(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with too little time: %v", err)
		}
		var leaving sync.WaitGroup
		defer leaving.Wait()
		leaving.Go(func() {
			time.Sleep(500 * time.Millisecond)
			detach()
		})
		if _, err := target.Check(t.Context()); !errors.Is(err, ErrEnded) {
			t.Errorf("when the probes end: %v", err)
		}
	})
}

// The last 60 results are remembered, the oldest first, and the last failure.
func TestHistory_KeepsTheLastResults(t *testing.T) {
	var h history
	for i := range 100 {
		r := Result{At: time.Unix(int64(i), 0), Took: time.Duration(i)}
		if i%10 == 3 {
			r.Reason = "sick"
		}
		h.add(r)
	}
	got := h.recent()
	if len(got) != Remembered || got[0].Took != 40 || got[59].Took != 99 || got[3].Passed || !got[4].Passed {
		t.Errorf("remembered: %+v", got)
	}
	if h.failed.Took != 93 || h.last.Took != 99 {
		t.Errorf("last failure %+v, last %+v", h.failed, h.last)
	}
}
