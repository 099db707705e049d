// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// eject has an upstream fail five requests in a row.
func (s *server) eject() {
	for range 5 {
		s.fail(status)
	}
}

// TestEjection_Counts: so many outcomes in a row eject an upstream whose checks pass. Some
// failures do not count, and a good answer begins anew.
func TestEjection_Counts(t *testing.T) {
	for _, tc := range []struct {
		rule  string
		steps string // o: status, r: reset, g: good, u: reset of a reused connection, c: refused, s: timeout, b: a first byte of a client that leaves, i: three that are in flight together
		pause time.Duration
		out   bool
	}{
		{"four", "oooo", 0, false},
		{"five", "ooooo", 0, true},
		{"five resets", "rrrrr", 0, true},
		{"of both sorts", "ororo", 0, true},
		{"a good answer between", "ooogooo", 0, false},
		{"five after a good answer", "ooogooooo", 0, true},
		{"reused connections do not count", "uuuuuuuuu", 0, false},
		{"and end no row", "oouooo", 0, true},
		{"refused ones do not count", "ooooccccc", 0, false},
		{"those in flight together are one", "iiii", 0, false},
		{"five such times", "iiiii", 0, true},
		{"slowly, over acquittals", "ooooo", 10 * time.Second, true},
		{"one less, slowly", "oooo", 10 * time.Second, false},
		{"stalls count after an acquittal by stall", "sssss", 10 * time.Second, false},
		{"so the first does not", "ssssss", 10 * time.Second, true},
		{"a first byte of a void request between", "sbsbsbsbsbsbsb", 10 * time.Second, false},
		{"a first byte between", "sgsgsgsgsgsgsgs", 10 * time.Second, false},
		{"stalls and outcomes", "ssssoo", 10 * time.Second, false}, // an acquittal by outcome is none by stall
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := observe(t, 4, 1)
				a := o.servers[0]
				for i, step := range tc.steps {
					if i > 0 {
						advance(tc.pause)
					}
					switch step {
					case 'o':
						a.fail(status)
					case 'r':
						a.fail(reset)
					case 'g':
						a.good()
					case 'u':
						a.fail(unsure)
					case 'c':
						a.fail(refused)
					case 's':
						a.fail(timedOut)
					case 'b':
						trip := a.send()
						trip.FirstByte()
						trip.Void()
					case 'i':
						trips := []*Trip{a.send(), a.send(), a.send()}
						for _, trip := range trips {
							trip.Fail(reset)
						}
						synctest.Wait()
					}
					if out := !a.Ejection().IsZero(); out && i < len(tc.steps)-1 {
						t.Fatalf("it was ejected after %q", tc.steps[:i+1])
					}
				}
				if tc.rule == "stalls and outcomes" {
					return // only that it does not happen too soon
				}
				if out := !a.Ejection().IsZero(); out != tc.out {
					t.Errorf("%s: ejected %v, want %v; told %q", tc.steps, out, tc.out, o.told())
				}
			})
		})
	}
}

// TestEjection_CountsOverShortDowns: a check that passes and fails by chance does not keep an
// upstream from being ejected. A long down begins anew, and so does a good answer.
func TestEjection_CountsOverShortDowns(t *testing.T) {
	const short, long = 10 * time.Second, 30 * time.Second
	for _, tc := range []struct {
		rule  string
		lasts time.Duration // of each down
		steps string        // r: reset, o: status, g: good, d: down, D: down, and all requests are reset, m: maintenance, n: down and then maintenance, t: taken back
		out   bool
	}{
		{"one down", short, "rrrdrr", true},
		{"one less", short, "rrrdr", false},
		{"a down after each failure", short, "rdrdrdrdr", true},
		{"a long one", long, "rrrdrr", false},
		{"five after a long one", long, "rrrdrrrrr", true},
		{"a long one after a short one", long, "rrrdrdrr", false},
		{"a good answer after it", short, "rrrdgrr", false},
		{"failures while it is down", short, "rrDr", false},
		{"and three after it", short, "rrDrrr", true},
		{"one answer after it", short, "oooodo", false},
		{"a second answer", short, "oooodoo", true},
		{"one answer after failures while it is down", short, "ooooDo", false},
		{"and a second answer", short, "ooooDoo", true},
		{"a down and maintenance", long, "rrrrnr", false},
		{"maintenance", long, "rrrrmr", false},
		{"short maintenance", short, "rrrrmr", true},
		{"what was taken back", short, "rrrtdrr", false},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := observe(t, 4, 1)
				a := o.servers[0]
				var last Counted
				for i, step := range tc.steps {
					switch step {
					case 'r':
						last = a.fail(reset)
					case 'o':
						last = a.fail(status)
					case 't':
						last.TakeBack()
					case 'g':
						a.good()
					case 'd':
						a.isDown(t, func() { advance(tc.lasts) })
					case 'D':
						a.isDown(t, a.eject)
					case 'm':
						a.isRepaired(t, tc.lasts)
					case 'n':
						a.isDown(t, func() {
							a.setSick(false)
							a.isRepaired(t, tc.lasts)
						})
					}
					if out := !a.Ejection().IsZero(); out && i < len(tc.steps)-1 {
						t.Fatalf("it was ejected after %q", tc.steps[:i+1])
					}
				}
				if out := !a.Ejection().IsZero(); out != tc.out {
					t.Errorf("%s: ejected %v, want %v; told %q", tc.steps, out, tc.out, o.told())
				}
			})
		})
	}
}

// TestEjection_IsNotCounted: failures of an ejected upstream, which gets requests as the last
// resort, say nothing about it after it is back.
func TestEjection_IsNotCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 4, 1)
		a := o.servers[0]
		a.eject()
		a.eject()
		a.isDown(t, func() {}) // which ends the ejection
		for i := range 5 {
			if !a.Ejection().IsZero() {
				t.Fatalf("ejected after %d failures", i)
			}
			a.fail(reset)
		}
		if a.Ejection().IsZero() {
			t.Error("not ejected after five failures")
		}
	})
}

// TestCommonTrouble_OverShortDowns: upstreams that fail alternately with their checks have
// common trouble, and none is ejected.
func TestCommonTrouble_OverShortDowns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 3, 1)
		for range 8 {
			for _, s := range o.servers {
				s.fail(reset)
			}
			for _, s := range o.servers {
				s.isDown(t, func() {})
			}
		}
		if told := o.told("ejected"); len(told) > 0 {
			t.Errorf("told %q, want no ejection", told)
		}
	})
}

// isDown has a burst turn the upstream down, and up again after something. The passes that
// this takes need a few seconds more.
func (s *server) isDown(t *testing.T, meanwhile func()) {
	t.Helper()
	s.setSick(true)
	s.fail(refused)
	s.await(t, health.Down)
	meanwhile()
	s.setSick(false)
	s.await(t, health.Up)
}

// isRepaired has the upstream in maintenance for so long, and up again.
func (s *server) isRepaired(t *testing.T, lasts time.Duration) {
	t.Helper()
	s.targets[0].Pause(true)
	advance(lasts)
	s.targets[0].Pause(false)
	s.await(t, health.Up)
}

// await waits until the first check of the upstream has a status.
func (s *server) await(t *testing.T, want health.Status) {
	t.Helper()
	target := s.targets[0]
	for deadline := time.Now().Add(time.Minute); target.Status() != want; advance(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it is %v, want %v", target.Status(), want)
		}
	}
}

// TestEjection_NeedsLeave: nothing is ejected where eject is off, where too little would be
// left, or while the checks fail.
func TestEjection_NeedsLeave(t *testing.T) {
	for _, tc := range []struct {
		rule    string
		after   int
		prepare func(o *observed, a *server)
		out     bool
	}{
		{"it may", 5, func(*observed, *server) {}, true},
		{"off", 0, func(*observed, *server) {}, false},
		{"after more", 21, func(*observed, *server) {}, false},
		{"too little is left", 5, func(o *observed, _ *server) { o.full = true }, false},
		{"down", 5, func(_ *observed, a *server) {
			a.setSick(true)
			a.fail(reset)
			advance(time.Second)
		}, false},
		{"in maintenance", 5, func(_ *observed, a *server) { a.targets[0].Pause(true) }, false},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := observe(t, 4, 1, func(s *Settings) { s.EjectAfter = tc.after })
				a := o.servers[0]
				tc.prepare(o, a)
				for range 20 {
					a.fail(status)
				}
				if out := !a.Ejection().IsZero(); out != tc.out {
					t.Errorf("ejected %v, want %v", out, tc.out)
				}
				advance(time.Second)
				if a.IsSuspect() {
					t.Error("a suspicion that does not end")
				}
			})
		})
	}
}

// TestEjection_TakenBack: a request that fails on a second upstream too takes back what it
// counted against the first, unless that is of an earlier row.
func TestEjection_TakenBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 4, 1)
		a := o.servers[0]
		a.fail(status).TakeBack()
		for range 4 {
			a.fail(status)
		}
		if !a.Ejection().IsZero() {
			t.Fatal("what was taken back has counted")
		}
		old := a.fail(unsure) // nothing
		old.TakeBack()
		a.good()
		earlier := a.fail(status)
		a.good()
		for range 4 {
			a.fail(status)
		}
		earlier.TakeBack()
		Counted{}.TakeBack()
		a.fail(status)
		if a.Ejection().IsZero() {
			t.Error("what was counted in an earlier row was taken back from this one")
		}
	})
}

// TestEjection_LastsLonger: an ejection lasts 30 s times the number of those in a row, 5 min
// at most. The number falls to 0 after as long without one.
func TestEjection_LastsLonger(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 4, 1)
		a := o.servers[0]
		a.eject()
		for i := range 12 {
			want := min(time.Duration(i+1)*30*time.Second, 5*time.Minute)
			if got := time.Until(a.Ejection()); got != want {
				t.Fatalf("ejection %d lasts %v, want %v", i+1, got, want)
			}
			if a.ClaimTrial(true) {
				t.Fatal("a trial begins too soon")
			}
			advance(want)
			if !a.ClaimTrial(true) {
				t.Fatal("no trial begins after the ejection")
			}
			a.fail(status)
		}
		o.told()
		returns := func() {
			advance(5 * time.Minute)
			if !a.ClaimTrial(true) {
				t.Fatal("no trial begins after the ejection")
			}
			a.good()
		}
		returns()
		advance(5*time.Minute - 2*time.Second)
		a.eject()
		if got := time.Until(a.Ejection()); got != 5*time.Minute {
			t.Errorf("soon after a return it lasts %v, want 5m as before", got)
		}
		returns()
		advance(5 * time.Minute)
		o.began = time.Now()
		o.told()
		a.eject()
		if got, want := o.told("ejected"), []string{"0s a ejected for 30s, 1 in a row"}; !slices.Equal(got, want) {
			t.Errorf("a long time after: told %q, want %q", got, want)
		}
	})
}

// TestTrial_IsOneRequest: after the ejection one request is the trial: a safe one, or after
// a second any. There is never another beside it, unless it got no first byte for as long as
// a stall.
func TestTrial_IsOneRequest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 4, 1)
		a := o.servers[0]
		a.eject()
		claims := func(safe, want bool, when string) {
			t.Helper()
			if got := a.ClaimTrial(safe); got != want {
				t.Fatalf("%s: a request (safe %v) is the trial: %v, want %v", when, safe, got, want)
			}
		}
		advance(30*time.Second - 1)
		claims(true, false, "before the end")
		advance(1)
		claims(false, false, "at the end")
		advance(time.Second - 1)
		claims(false, false, "after less than a second")
		advance(1)
		claims(false, true, "after a second")
		trip := a.send()
		claims(true, false, "while one is under way")
		claims(false, false, "while one is under way")
		trip.Void()
		claims(false, false, "after it was void")
		claims(true, true, "after it was void")
		late := a.send()
		advance(minStall - 1)
		claims(true, false, "before it is void")
		advance(1)
		claims(true, true, "when nothing has come")
		second := a.send()
		late.Fail(status) // says nothing any more
		if got := o.told("ejected"); len(got) != 1 {
			t.Errorf("told %q, want one ejection", got)
		}
		late = a.send() // came another way
		late.Good()
		if a.Ejection().IsZero() {
			t.Error("a request that was not the trial has ended the ejection")
		}
		second.Good()
		if !a.Ejection().IsZero() || a.Returned() != time.Now() {
			t.Errorf("ejected until %v and returned at %v, want back now", a.Ejection(), a.Returned())
		}
		if got := o.told("returned"); len(got) != 1 {
			t.Errorf("told %q, want one return", got)
		}
		claims(true, false, "when it is back")
	})
}

// TestTrial_OfOneThatHangs: trials that get no first byte become rarer: each lasts twice as
// long as the one before until another may follow, 30 s at most. A trial that ends begins
// anew.
func TestTrial_OfOneThatHangs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 4, 1)
		a := o.servers[0]
		a.eject()
		advance(30 * time.Second)
		var open []*Trip
		for i := range 10 {
			if !a.ClaimTrial(true) {
				t.Fatalf("trial %d does not begin", i+1)
			}
			open = append(open, a.send())
			lasts := min(minStall<<i, 30*time.Second)
			advance(lasts - 1)
			if a.ClaimTrial(true) {
				t.Fatalf("another trial begins beside trial %d", i+1)
			}
			advance(1)
		}
		for _, trip := range open {
			trip.Void()
		}
		if got := o.told("ejected", "returned"); len(got) != 1 {
			t.Errorf("told %q, want the ejection alone", got)
		}
	})
}

// TestTrial_Ends: a good answer brings it back and begins anew, a bad one ejects it again,
// and others are void.
func TestTrial_Ends(t *testing.T) {
	for _, tc := range []struct {
		rule string
		end  func(a *server, trip *Trip)
		told []string
		void bool
	}{
		{"good", func(_ *server, trip *Trip) { trip.Good() }, []string{"0s a returned"}, false},
		{"status", func(_ *server, trip *Trip) { trip.Fail(status) }, []string{"0s a ejected for 1m0s, 2 in a row"}, false},
		{"reset", func(_ *server, trip *Trip) { trip.Fail(reset) }, []string{"0s a ejected for 1m0s, 2 in a row"}, false},
		{"refused", func(_ *server, trip *Trip) { trip.Fail(refused) }, []string{"0s a ejected for 1m0s, 2 in a row"}, false},
		{"timeout", func(_ *server, trip *Trip) { trip.Fail(timedOut) }, []string{"0s a ejected for 1m0s, 2 in a row"}, false},
		{"timeout while others got answers", func(a *server, trip *Trip) {
			a.good()
			trip.Fail(timedOut)
		}, nil, true},
		{"the client leaves", func(_ *server, trip *Trip) { trip.Void() }, nil, true},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := observe(t, 4, 1)
				a := o.servers[0]
				a.eject()
				advance(30 * time.Second)
				if !a.ClaimTrial(true) {
					t.Fatal("no trial")
				}
				o.told()
				o.began = time.Now()
				trip := a.send()
				tc.end(a, trip)
				o.want(t, tc.told...)
				if got := a.ClaimTrial(true); got != tc.void {
					t.Errorf("another trial begins: %v, want %v", got, tc.void)
				}
			})
		})
	}
}

// TestEjection_EndsWhenDown: checks that fail end an ejection, and the next one counts it.
// Checks that pass do not end it.
func TestEjection_EndsWhenDown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 4, 1, func(s *Settings) { s.EjectFor = 2 * time.Minute })
		a := o.servers[0]
		a.eject()
		advance(20 * time.Second) // several probes pass
		if a.Ejection().IsZero() {
			t.Fatal("probes that pass have ended it")
		}
		a.setSick(true)
		advance(10 * time.Second)
		if !a.Ejection().IsZero() {
			t.Fatal("it is out and down at once")
		}
		a.setSick(false)
		advance(12 * time.Second)
		o.began = time.Now()
		o.told()
		a.eject()
		if got, want := o.told("ejected"), []string{"0s a ejected for 4m0s, 2 in a row"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	})
}

// trouble gives upstreams two outcomes in a row.
func (o *observed) trouble(servers ...*server) {
	for _, s := range servers {
		s.fail(status)
		s.fail(status)
	}
}

// TestCommonTrouble_IsMoreThanOneAndAThird: trouble of more than one upstream, and of more
// than a third, is not theirs: nothing is ejected for the next 30 s.
func TestCommonTrouble_IsMoreThanOneAndAThird(t *testing.T) {
	for _, tc := range []struct {
		n, troubled int // beside the one that fails
		common      bool
	}{
		{1, 0, false},
		{2, 0, false},
		{2, 1, true},
		{3, 1, true},
		{5, 1, true},
		{6, 1, false},
		{8, 1, false},
		{8, 2, true},
		{9, 2, false},
		{10, 3, true},
	} {
		t.Run(fmt.Sprintf("%d of %d", tc.troubled+1, tc.n), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := observe(t, tc.n, 1)
				a := o.servers[0]
				o.trouble(o.servers[1 : tc.troubled+1]...)
				for range 10 {
					a.fail(status)
				}
				if out := !a.Ejection().IsZero(); out == tc.common {
					t.Errorf("ejected %v, want %v", out, !tc.common)
				}
				if !tc.common {
					return
				}
				advance(30 * time.Second)
				a.fail(status)
				if tc.troubled == 1 && a.Ejection().IsZero() {
					t.Error("after 30 s it is still common trouble")
				}
			})
		})
	}
}

// TestCommonTrouble_AGoodAnswerBetweenIsNoTrouble: single failures among good answers are
// no trouble of an upstream.
func TestCommonTrouble_AGoodAnswerBetweenIsNoTrouble(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 3, 1)
		for range 5 {
			for _, s := range o.servers[1:] {
				s.fail(status)
				s.good()
			}
		}
		o.servers[0].eject()
		if o.servers[0].Ejection().IsZero() {
			t.Error("it was not ejected")
		}
	})
}

// TestCommonTrouble_MakesFewerSuspects: meanwhile statuses and stalls make no suspects.
// Resets and connections that fail do.
func TestCommonTrouble_MakesFewerSuspects(t *testing.T) {
	for _, tc := range []struct {
		f       Failure
		suspect bool
	}{{status, false}, {timedOut, false}, {reset, true}, {refused, true}} {
		t.Run(tc.f.Reason, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := observe(t, 4, 1)
				o.trouble(o.servers[1:3]...)
				advance(5 * time.Second)
				o.told()
				o.servers[0].fail(tc.f)
				if got := len(o.told("suspect")) > 0; got != tc.suspect {
					t.Errorf("a suspect: %v, want %v", got, tc.suspect)
				}
				trip := o.servers[3].send()
				advance(5 * time.Second)
				if got := o.told("d suspect"); len(got) != 0 {
					t.Errorf("told %q of a stall", got)
				}
				trip.Void()
			})
		})
	}
}

// TestCommonTrouble_TriesTheEjected: those that are ejected come to trial at once, and a
// bad answer ejects them no more.
func TestCommonTrouble_TriesTheEjected(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 4, 1)
		a := o.servers[0]
		a.eject()
		if a.ClaimTrial(true) {
			t.Fatal("a trial begins too soon")
		}
		o.setCalls(0)
		o.trouble(o.servers[1])
		if !a.ClaimTrial(true) || o.setCalls(0) == 0 {
			t.Fatal("no trial although the trouble is common, or the handler was not told")
		}
		o.told()
		a.fail(status)
		if got := o.told("a "); !a.Ejection().IsZero() || len(got) != 1 || !strings.HasSuffix(got[0], "returned") {
			t.Errorf("ejected until %v, told %q; want a return", a.Ejection(), got)
		}
	})
}

// TestEjection_TwoAtOnce: two upstreams whose failures are counted at the same moment are not
// both ejected, if only one may be.
func TestEjection_TwoAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 10, 1)
		a, b := o.servers[0], o.servers[1]
		asked := 0
		o.handler.Hooks.MayEject = func(u *Upstream) bool {
			may := u == b.Upstream && a.Ejection().IsZero() || u == a.Upstream && b.Ejection().IsZero()
			if asked++; asked == 1 {
				b.eject()
			}
			return may
		}
		a.eject()
		if !a.Ejection().IsZero() || b.Ejection().IsZero() {
			t.Errorf("a is ejected until %v, b until %v, want only b", a.Ejection(), b.Ejection())
		}
		if got, want := o.told("ejected"), []string{"0s b ejected for 30s, 1 in a row"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
		advance(time.Minute)
		b.ClaimTrial(true)
		b.good()
		o.told()
		a.fail(status)
		if got, want := o.told("ejected"), []string{"1m0s a ejected for 30s, 1 in a row"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q: the count goes on", got, want)
		}
	})
}
