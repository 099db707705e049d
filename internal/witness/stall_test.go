// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// stallOf returns a change of settings.
func stallOf(d time.Duration) func(*Settings) { return func(s *Settings) { s.Stall = d } }

// wantStall checks that a stall is noticed when it is due, or within a quarter of it after
// that, counted from now.
func (o *observed) wantStall(t *testing.T, address string, stall time.Duration) {
	t.Helper()
	o.told()
	began := time.Now()
	for time.Since(began) < stall+stall/samples {
		if got := o.told(" " + address + " suspect by stall"); len(got) > 0 {
			t.Fatalf("a stall of %v was noticed after %v", stall, time.Since(began))
		}
		advance(min(time.Millisecond, stall+stall/samples-time.Since(began)))
		if time.Since(began) >= stall {
			if len(o.told(" "+address+" suspect by stall")) > 0 {
				return
			}
		}
	}
	t.Fatalf("a stall of %v was not noticed within a quarter of it", stall)
}

// TestStall_IsNoticedWithOneRequest: a single request that waits shows a stall within a
// quarter of it, and no further request has to come.
func TestStall_IsNoticedWithOneRequest(t *testing.T) {
	for _, tc := range []struct{ set, stall time.Duration }{
		{0, minStall},
		{40 * time.Millisecond, 40 * time.Millisecond},
		{time.Second, time.Second},
		{8 * time.Second, 8 * time.Second},
	} {
		for _, delay := range []time.Duration{0, 17 * time.Millisecond, 123 * time.Millisecond} {
			t.Run(fmt.Sprint(tc.stall, " after ", delay), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					o := observe(t, 3, 1, stallOf(tc.set))
					advance(delay)
					trip := o.servers[0].send()
					o.wantStall(t, "a", tc.stall)
					if got := o.told("b ", "c "); len(got) != 0 {
						t.Errorf("told %q", got)
					}
					trip.Void()
				})
			})
		}
	}
}

// TestStall_IsNoticedBesideASlowUpstream: that requests to another upstream may wait for
// longer delays nothing.
func TestStall_IsNoticedBesideASlowUpstream(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 2, 1)
		a, b := o.servers[0], o.servers[1]
		b.flow.pace.gap.Store(int64(5 * time.Second)) // a stall after 10 s
		slow := b.send()
		advance(100 * time.Millisecond)
		trip := a.send()
		o.wantStall(t, "a", minStall)
		trip.Void()
		slow.Void()
	})
}

// TestStall_AfterAnAcquittal: a stall counts from the first request after the acquittal, and
// a single one shows it. Those from before show none.
func TestStall_AfterAnAcquittal(t *testing.T) {
	for _, delay := range []time.Duration{0, 10 * time.Millisecond, time.Second} {
		bubble(t, func(t *testing.T) {
			o := observe(t, 1, 1)
			a := o.servers[0]
			early := a.send()
			advance(400 * time.Millisecond)
			a.fail(reset) // is acquitted at once
			if got := o.told("acquitted"); len(got) != 1 {
				t.Fatal("it was not acquitted")
			}
			advance(delay)
			trip := a.send()
			o.wantStall(t, "a", minStall)
			trip.Void()
			early.Void()
		})
	}
	bubble(t, func(t *testing.T) {
		o := observe(t, 1, 1)
		a := o.servers[0]
		early := a.send()
		advance(400 * time.Millisecond)
		a.fail(reset)
		o.told()
		advance(time.Minute)
		o.want(t)
		early.Void()
	})
}

// TestStall_IsNone: requests that get first bytes, or do not wait, are no stall.
func TestStall_IsNone(t *testing.T) {
	every := func(d time.Duration, f func(i int)) {
		for i := range int(20 * time.Second / d) {
			f(i)
			advance(d)
		}
	}
	for _, tc := range []struct {
		rule      string
		configure func(*Settings)
		traffic   func(a *server) (open []*Trip)
	}{
		{"quick answers", stallOf(0), func(a *server) []*Trip {
			every(10*time.Millisecond, func(int) { a.good() })
			return nil
		}},
		{"long polls beside them", stallOf(0), func(a *server) (open []*Trip) {
			every(100*time.Millisecond, func(int) {
				open = append(open, a.send())
				a.good()
			})
			return open
		}},
		{"a slow endpoint beside them", stallOf(0), func(a *server) (open []*Trip) {
			every(100*time.Millisecond, func(i int) {
				open = append(open, a.send())
				if i >= 30 {
					open[i-30].Good() // after 3 s
				}
				a.good()
			})
			return open
		}},
		{"1xx", stallOf(0), func(a *server) (open []*Trip) {
			every(400*time.Millisecond, func(int) {
				trip := a.send()
				trip.FirstByte()
				open = append(open, trip)
			})
			return open
		}},
		{"requests that are being sent", stallOf(0), func(a *server) (open []*Trip) {
			every(400*time.Millisecond, func(int) {
				trip := new(Trip)
				trip.Begin(a.Upstream)
				open = append(open, trip)
			})
			return open
		}},
		{"clients that leave", stallOf(0), func(a *server) (open []*Trip) {
			every(400*time.Millisecond, func(int) {
				trip := a.send()
				advance(300 * time.Millisecond)
				trip.Void()
			})
			return nil
		}},
		{"off", stallOf(-1), func(a *server) (open []*Trip) {
			every(time.Second, func(int) { open = append(open, a.send()) })
			return open
		}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := observe(t, 2, 1, tc.configure)
				for _, trip := range tc.traffic(o.servers[0]) {
					trip.Void()
				}
				o.want(t)
			})
		})
	}
}

// TestStall_OfAnEjectedOneAccusesNone: an ejected upstream is not accused of stalls.
func TestStall_OfAnEjectedOneAccusesNone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 4, 1)
		a := o.servers[0]
		a.eject()
		advance(time.Second)
		o.told()
		trip := a.send()
		advance(5 * time.Second)
		o.want(t)
		trip.Void()
	})
}

// TestStall_ATimeoutIsOneOnlyWithoutFirstBytes: a round trip that times out is a stall only
// if no first byte came from the upstream while it waited.
func TestStall_ATimeoutIsOneOnlyWithoutFirstBytes(t *testing.T) {
	for _, tc := range []struct {
		rule   string
		during func(a *server)
		stalls bool
	}{
		{"nothing", func(*server) {}, true},
		{"an answer to another request", func(a *server) { a.good() }, false},
		{"a 1xx of another request", func(a *server) {
			trip := a.send()
			trip.FirstByte()
			trip.Void()
		}, false},
		{"a failed answer to another request", func(a *server) { a.send().Fail(status) }, false},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := observe(t, 1, 1, stallOf(time.Hour))
				a := o.servers[0]
				trip := a.send()
				tc.during(a)
				trip.Fail(timedOut)
				if got := len(o.told("by stall")) > 0; got != tc.stalls {
					t.Errorf("a stall: %v, want %v", got, tc.stalls)
				}
			})
		})
	}
}

// TestStall_OffIsForTimeoutsToo: with stall off, a timeout of the answer accuses none.
func TestStall_OffIsForTimeoutsToo(t *testing.T) {
	for _, off := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			stall := time.Hour
			if off {
				stall = -1
			}
			o := observe(t, 2, 1, stallOf(stall))
			a := o.servers[0]
			a.send().Fail(Failure{Cause: Stall, Reason: "a timeout"})
			advance(time.Second)
			if told := o.told("suspect by stall"); len(told) > 0 == off {
				t.Errorf("off %v: told %q", off, told)
			}
		})
	}
}

// TestStall_FollowsThePace: auto is 8 times the usual gap between first bytes while requests
// wait, from 500 ms to 10 s. It grows at once and shrinks little by little.
func TestStall_FollowsThePace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 1, 1)
		a := o.servers[0]
		set := &o.handler.Settings
		at := func(want time.Duration, when string) {
			t.Helper()
			if got := a.flow.stall(set); got < want*8/10 || got > want*12/10 {
				t.Fatalf("%s: a stall is %v, want about %v", when, got, want)
			}
		}
		answers := func(gap time.Duration, n int) {
			trip := a.send()
			for range n {
				advance(gap)
				next := a.send() // one waits all the time
				trip.Good()
				trip = next
			}
			trip.Void()
			advance(10 * time.Second) // until the sampler has ended
		}
		at(minStall, "at first")
		answers(20*time.Millisecond, 100)
		at(minStall, "with quick answers")
		answers(400*time.Millisecond, 2)
		at(3200*time.Millisecond, "with slow answers")
		o.told()
		answers(20*time.Millisecond, 5)
		if got := a.flow.stall(set); got < time.Second {
			t.Errorf("after a few quick answers a stall is %v", got)
		}
		answers(20*time.Millisecond, 300)
		at(minStall, "after many quick answers")
		answers(3*time.Second, 8)
		at(maxStall, "with very slow ones")
	})
}

// TestStall_NoPaceWhileNoneWaits: the time in which no request waits is no gap.
func TestStall_NoPaceWhileNoneWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 1, 1)
		a := o.servers[0]
		for range 100 {
			trip := a.send()
			advance(5 * time.Millisecond)
			trip.Good()
			advance(3 * time.Second)
		}
		if got := a.flow.stall(&o.handler.Settings); got != minStall {
			t.Errorf("a stall is %v, want %v", got, minStall)
		}
	})
}

// TestSampler_RunsOnlyWhileRequestsWait: it begins with the first request and ends when
// none waits, within one sample.
func TestSampler_RunsOnlyWhileRequestsWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 2, 1)
		a := o.servers[0]
		runs := func(want bool, when string) {
			t.Helper()
			synctest.Wait()
			if got := o.sampling.Load(); got != want {
				t.Errorf("%s: the sampler runs: %v, want %v", when, got, want)
			}
		}
		runs(false, "at first")
		for range 3 {
			trip := a.send()
			runs(true, "while one waits")
			advance(300 * time.Millisecond)
			runs(true, "while one waits")
			trip.Good()
			advance(2 * minStall / samples)
			runs(false, "after the answer")
			due := o.due
			advance(time.Minute)
			if o.due != due {
				t.Error("samples go on")
			}
		}
	})
}

// TestSampler_NoneWithoutAHandlerThatWantsStalls: and not at all with observe off.
func TestSampler_NoneWithoutAHandlerThatWantsStalls(t *testing.T) {
	for _, configure := range []func(*Settings){stallOf(-1), func(s *Settings) { s.Off = true }} {
		bubble(t, func(t *testing.T) {
			o := observe(t, 1, 1, configure)
			trip := o.servers[0].send()
			if o.sampling.Load() {
				t.Error("the sampler runs")
			}
			trip.Void()
		})
	}
}

// TestSample_LatenessIsVoid: the time of a sample that came late says nothing: it is no
// stall, and no pace.
func TestSample_LatenessIsVoid(t *testing.T) {
	set := DefaultSettings()
	now := time.Now()
	step := func(f *flow, after, late time.Duration) bool {
		now = now.Add(after)
		return f.sample(now, 0, late, &set)
	}
	var f flow
	f.wait()
	step(&f, 0, 0)
	if step(&f, 10*time.Second, 10*time.Second-minStall/2) {
		t.Error("a stall was noticed by a late sample")
	}
	if step(&f, minStall/2-1, 0) {
		t.Error("the time by which a sample was late counts")
	}
	if !step(&f, 1, 0) {
		t.Error("the time beside a late sample does not count")
	}
	for range 2 * samples { // a process that is always late notices a stall all the same
		if step(&f, minStall, minStall/2) {
			now = time.Time{}
			break
		}
	}
	if !now.IsZero() {
		t.Error("no stall was noticed by samples that are always late")
	}
	now = time.Now()
	f = flow{}
	f.wait()
	step(&f, 0, 0)
	f.answered(true)
	f.wait()
	step(&f, 10*time.Second, 10*time.Second)
	if got := f.stall(&set); got != minStall {
		t.Errorf("a late sample made a stall of %v", got)
	}
}

// TestStall_Repeats: while requests go on to wait, each further stall is one more
// accusation. With an acquittal by stall before it and no first byte between, it counts.
func TestStall_Repeats(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 4, 1)
		a := o.servers[0]
		var open []*Trip
		for range 60 { // one request each second, and no answer, while the checks pass
			open = append(open, a.send())
			advance(time.Second)
		}
		told := o.told("suspect by stall", "ejected")
		if n := len(told); n < 4 || !strings.Contains(strings.Join(told, "\n"), "ejected for 30s") {
			t.Errorf("told %q, want suspicions and then an ejection", told)
		}
		if slices.ContainsFunc(told, func(line string) bool { return strings.Contains(line, "b ") }) {
			t.Errorf("told %q of another one", told)
		}
		for _, trip := range open {
			trip.Void()
		}
	})
}

// TestRow_StallsCount: a stall counts after an acquittal with no first byte since, and once
// more for each few requests that come.
func TestRow_StallsCount(t *testing.T) {
	var r row
	stall := func(firsts, begun uint64, want bool) {
		t.Helper()
		if got := r.stall(firsts, begun); got != want {
			t.Errorf("%d first bytes, %d requests: it counts: %v, want %v", firsts, begun, got, want)
		}
	}
	stall(7, 10, false) // it was not acquitted
	r.acquitStall(7)
	stall(8, 10, false) // an answer came
	stall(7, 10, true)
	stall(7, 12, false) // one that is slow, and few others
	stall(7, 13, true)
	stall(7, 15, false)
	r.acquitStall(7)
	stall(7, 15, true)
	stall(7, 18, true)
	r.reset()
	stall(7, 30, false)
}
