// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// TestAccusation_ProbesDecide: one failure of any cause but a status makes a suspect, whose checks run
// at once. When all of them pass it is acquitted, and one that fails turns it down.
func TestAccusation_ProbesDecide(t *testing.T) {
	for _, tc := range []struct {
		rule   string
		f      Failure
		checks int
		sick   int // so many of its checks fail
		told   []string
		probes int
	}{
		{"refused", refused, 1, 0, []string{"0s a suspect by connect", "100ms a acquitted"}, 1},
		{"reset", reset, 1, 0, []string{"0s a suspect by outcome", "100ms a acquitted"}, 1},
		{"closed while idle, maybe", unsure, 1, 0, []string{"0s a suspect by outcome", "100ms a acquitted"}, 1},
		{"one status makes none", status, 1, 0, []string{"0s a accused by outcome"}, 0},
		{"timeout", timedOut, 1, 0, []string{"0s a suspect by stall", "100ms a acquitted"}, 1},
		{"all checks have to pass", reset, 3, 0, []string{"0s a suspect by outcome", "100ms a acquitted"}, 3},
		{"and one turns it down", reset, 3, 1, []string{"0s a suspect by outcome"}, 5},
		{"its only one", refused, 1, 1, []string{"0s a suspect by connect"}, 3},
		{"without checks it is no suspect", reset, 0, 0, []string{"0s a accused by outcome"}, 0},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := observe(t, 2, tc.checks)
				a := o.servers[0]
				a.setTakes(100 * time.Millisecond)
				a.mu.Lock()
				for i := range tc.sick {
					a.sick[i] = true
				}
				a.mu.Unlock()
				a.fail(tc.f)
				suspect := strings.Contains(tc.told[0], "suspect")
				if got := a.IsSuspect(); got != suspect {
					t.Errorf("a suspect: %v, want %v", got, suspect)
				}
				if suspect && o.setCalls(0) == 0 {
					t.Error("the handler was not told")
				}
				o.setCalls(0)
				advance(700 * time.Millisecond)
				o.want(t, tc.told...)
				if a.IsSuspect() {
					t.Error("it is still a suspect")
				}
				if suspect && o.setCalls(0) == 0 {
					t.Error("the handler was not told of the end")
				}
				if got := a.probed(); got != tc.probes {
					t.Errorf("%d probes, want %d", got, tc.probes)
				}
				if down := slices.ContainsFunc(a.targets, func(t *health.Target) bool { return t.Status() == health.Down }); down != (tc.sick > 0) {
					t.Errorf("down: %v", down)
				}
				if b := o.servers[1]; b.probed() != 0 || b.IsSuspect() {
					t.Error("the other upstream was accused, too")
				}
			})
		})
	}
}

// TestAccusation_StatusesInARow: it takes two failures in a row for an answer to make a
// suspect by its status, or three that are under way together.
func TestAccusation_StatusesInARow(t *testing.T) {
	for _, tc := range []struct {
		steps   string // s: status, g: good, 2 and 3: so many statuses together
		suspect bool
	}{
		{"s", false}, {"ss", true}, {"sgs", false}, {"sgss", true}, {"2", false}, {"3", true}, {"g2g2", false}, {"s2", true},
	} {
		t.Run(tc.steps, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := observe(t, 1, 1)
				a := o.servers[0]
				for _, step := range tc.steps {
					switch step {
					case 's':
						a.fail(status)
					case 'g':
						a.good()
					case '2', '3':
						var trips []*Trip
						for range step - '0' {
							trips = append(trips, a.send())
						}
						for _, trip := range trips {
							trip.Fail(status)
						}
					}
					advance(100 * time.Millisecond)
				}
				if got := len(o.told("suspect")) > 0; got != tc.suspect {
					t.Errorf("a suspect: %v, want %v", got, tc.suspect)
				}
			})
		})
	}
}

// TestAccusation_ConnectIsSharedByTheTarget: a suspicion by connect is shown by the target,
// so that every handler that shares it follows. One by outcome or stall belongs to the pool.
func TestAccusation_ConnectIsSharedByTheTarget(t *testing.T) {
	for _, tc := range []struct {
		f      Failure
		shared bool
	}{{refused, true}, {reset, false}, {status, false}, {timedOut, false}} {
		bubble(t, func(t *testing.T) {
			o := observe(t, 1, 1)
			a := o.servers[0]
			a.setTakes(100 * time.Millisecond)
			a.fail(tc.f)
			if tc.f == status {
				a.fail(tc.f)
			}
			if !a.IsSuspect() {
				t.Errorf("%s: no suspect", tc.f.Reason)
			}
			if got := a.targets[0].IsSuspect(); got != tc.shared {
				t.Errorf("%s: the target is a suspect: %v, want %v", tc.f.Reason, got, tc.shared)
			}
		})
	}
}

// TestAccusation_OffNeitherAccusesNorCounts: with observe off nothing counts.
func TestAccusation_OffNeitherAccusesNorCounts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 1, 1, func(s *Settings) { s.Off = true })
		for range 20 {
			for _, f := range []Failure{refused, reset, status, timedOut} {
				o.servers[0].fail(f)
			}
		}
		trip := o.servers[0].send()
		advance(time.Minute)
		trip.Void()
		o.want(t)
	})
}

// TestAccusation_EarlierRequestsSayNothing: a request that began before the upstream was
// last acquitted, or returned, does not accuse it, and does not count.
func TestAccusation_EarlierRequestsSayNothing(t *testing.T) {
	for _, tc := range []struct {
		rule  string
		event func(a *server)
	}{
		{"acquitted", func(a *server) { a.fail(reset) }},
		{"returned", func(a *server) {
			a.setSick(true)
			a.fail(refused)
			advance(time.Second)
			a.setSick(false)
			advance(3 * time.Second)
		}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := observe(t, 1, 1, func(s *Settings) { s.Stall = -1 })
				a := o.servers[0]
				var early []*Trip
				for range 20 {
					early = append(early, a.send())
				}
				tc.event(a)
				advance(40 * time.Second) // no back-off holds anything back
				o.told()
				for i, trip := range early {
					trip.Fail([]Failure{refused, reset, status, timedOut}[i%4])
				}
				o.want(t)
				a.fail(reset)
				if got := o.told("suspect"); len(got) != 1 {
					t.Errorf("a request of now: told %q, want a suspect", got)
				}
			})
		})
	}
}

// TestBackoff_OfEachCause: while acquittals repeat, a cause makes no suspect for 1 s, then
// 2 s, and so on up to 30 s. Connect has none, but one burst a second.
func TestBackoff_OfEachCause(t *testing.T) {
	for _, tc := range []struct {
		rule string
		f    Failure
		n    int // so many in a row, and then a good answer
		want []int
	}{
		{"single statuses", status, 1, nil},
		{"statuses", status, 2, []int{0, 1, 3, 7, 15, 31, 61, 91}},
		{"resets", reset, 1, []int{0, 1, 3, 7, 15, 31, 61, 91}},
		{"timeouts", timedOut, 1, []int{0, 1, 3, 7, 15, 31, 61, 91}},
		{"refused", refused, 1, func() (all []int) {
			for i := range 100 {
				all = append(all, i)
			}
			return all
		}()},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := observe(t, 1, 1)
				a := o.servers[0]
				for range 1000 {
					for range tc.n {
						a.fail(tc.f)
					}
					a.good()
					advance(100 * time.Millisecond)
				}
				var want []string
				for _, at := range tc.want {
					want = append(want, fmt.Sprintf("%v a suspect by %v", time.Duration(at)*time.Second, tc.f.Cause))
				}
				if got := o.told("suspect"); !slices.Equal(got, want) {
					t.Errorf("told %q, want %q", got, want)
				}
			})
		})
	}
}

// TestBackoff_HoldsBackItsOwnCause: the back-off of one cause does not hold back another.
func TestBackoff_HoldsBackItsOwnCause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 1, 1)
		a := o.servers[0]
		for range 6 { // to a back-off of 30 s
			a.fail(reset)
			a.good()
			advance(30 * time.Second)
		}
		a.fail(reset)
		a.good()
		o.told()
		advance(1100 * time.Millisecond)
		o.began = time.Now()
		a.fail(reset)
		a.good()
		a.fail(timedOut)
		a.good()
		advance(1100 * time.Millisecond)
		a.fail(refused)
		if got, want := o.told("suspect"), []string{"0s a suspect by stall", "1.1s a suspect by connect"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	})
}

// TestBackoff_BeginsAnew: after a conviction, or a long time without an acquittal, the
// back-off is short again.
func TestBackoff_BeginsAnew(t *testing.T) {
	for _, tc := range []struct {
		rule  string
		event func(a *server)
		short bool
	}{
		{"a long time", func(*server) { advance(62 * time.Second) }, true},
		{"not so long", func(*server) { advance(58 * time.Second) }, false},
		{"a conviction", func(a *server) {
			advance(2 * time.Second) // a burst a second
			a.setSick(true)
			a.fail(refused)
			advance(time.Second)
			a.setSick(false)
			advance(3 * time.Second)
		}, true},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := observe(t, 1, 1)
				a := o.servers[0]
				for range 7 { // the last one begins a back-off of 30 s
					advance(30 * time.Second)
					a.fail(reset)
					a.good()
				}
				tc.event(a)
				o.told()
				a.fail(reset)
				a.good()
				advance(1100 * time.Millisecond)
				a.fail(reset)
				want := 1
				if tc.short {
					want = 2
				}
				if got := o.told("suspect"); len(got) != want {
					t.Errorf("told %q, want %d suspects", got, want)
				}
			})
		})
	}
}

// TestBackoff_ThreeRequestsWithinASecondAreUrgent: accusations by three requests within a
// second, with no first byte between, begin a burst whatever the back-off.
func TestBackoff_ThreeRequestsWithinASecondAreUrgent(t *testing.T) {
	for _, tc := range []struct {
		rule    string
		steps   string // f fails, g is good, . is 400 ms
		suspect bool
	}{
		{"three at once", "fff", true},
		{"within a second", "f.f.f", true},
		{"over more than a second", "f.f..f", false},
		{"the last three", "f...f.f.f", true},
		{"two", "f.f", false},
		{"a good answer between", "ffgf", false},
		{"a good answer before", "fgfff", true},
	} {
		for _, f := range []Failure{reset, status, timedOut} {
			t.Run(tc.rule+", "+f.Reason, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					o := observe(t, 1, 1)
					a := o.servers[0]
					before := reset // of the same cause
					if f.Cause == Stall {
						before = timedOut
					}
					for range 7 { // the last one begins a back-off of 30 s
						advance(30 * time.Second)
						a.fail(before)
						a.good()
					}
					advance(2 * time.Second)
					o.told()
					for _, step := range tc.steps {
						switch step {
						case 'f':
							a.fail(f)
						case 'g':
							a.good()
						case '.':
							advance(400 * time.Millisecond)
						}
					}
					if got := len(o.told("suspect")) > 0; got != tc.suspect {
						t.Errorf("a suspect: %v, want %v", got, tc.suspect)
					}
				})
			})
		}
	}
}

// TestSuspicion_IsOneAtATime: while probes decide, further accusations begin no other
// burst, of any cause.
func TestSuspicion_IsOneAtATime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 1, 1)
		a := o.servers[0]
		a.setTakes(time.Second)
		for _, f := range []Failure{reset, refused, timedOut, status, reset} {
			a.fail(f)
			advance(100 * time.Millisecond)
		}
		if got, want := o.told("suspect"), []string{"0s a suspect by outcome"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
		advance(time.Second)
		o.want(t, "1s a acquitted")
		if got := a.probed(); got != 1 {
			t.Errorf("%d probes, want 1", got)
		}
	})
}

// TestSuspicion_EndsUndecidedInAPause: maintenance ends a suspicion, and that is no
// acquittal.
func TestSuspicion_EndsUndecidedInAPause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := observe(t, 1, 2)
		a := o.servers[0]
		a.setTakes(time.Second)
		a.fail(reset)
		for _, target := range a.targets {
			target.Pause(true)
		}
		synctest.Wait()
		if a.IsSuspect() {
			t.Error("it is still a suspect")
		}
		o.want(t, "0s a suspect by outcome")
		a.fail(reset) // it is not probed
		if a.IsSuspect() {
			t.Error("a suspect without probes")
		}
	})
}

// TestSettings_StatusesThatAccuse: by default 502 and 504, and 503 without Retry-After; else
// those that are configured, and no others.
func TestSettings_StatusesThatAccuse(t *testing.T) {
	later := http.Header{"Retry-After": {"5"}}
	for _, tc := range []struct {
		rule    string
		status  []StatusRange
		header  http.Header
		accused []int // of those from 100 to 599
	}{
		{"default", nil, nil, []int{502, 503, 504}},
		{"default, with Retry-After", nil, later, []int{502, 504}},
		{"configured", []StatusRange{{500, 502}, {429, 429}}, nil, []int{429, 500, 501, 502}},
		{"configured, with Retry-After", []StatusRange{{503, 503}}, later, []int{503}},
		{"off", []StatusRange{}, nil, nil},
	} {
		s := Settings{Status: tc.status}
		var got []int
		for status := 100; status < 600; status++ {
			if s.Accuses(status, tc.header) {
				got = append(got, status)
			}
		}
		if !slices.Equal(got, tc.accused) {
			t.Errorf("%s: %v accuse, want %v", tc.rule, got, tc.accused)
		}
	}
}

// TestSettings_Accuses: 502, 504, and 503 without Retry-After by default; a list replaces
// them. What is no status accuses always.
func TestSettings_Accuses(t *testing.T) {
	busy := http.Header{"Retry-After": {"3"}}
	for _, tc := range []struct {
		status  []StatusRange
		accuse  []int
		spare   []int
		withTag bool // 503 with Retry-After accuses
	}{
		{nil, []int{0, 99, 502, 503, 504}, []int{101, 200, 404, 429, 500, 501, 505}, false},
		{[]StatusRange{}, []int{0}, []int{200, 500, 502, 503, 504}, false},
		{[]StatusRange{{500, 599}}, []int{0, 500, 503, 599}, []int{200, 404, 499}, true},
		{[]StatusRange{{404, 404}, {503, 503}}, []int{404, 503}, []int{403, 405, 502, 504}, true},
	} {
		s := Settings{Status: tc.status}
		for _, status := range tc.accuse {
			if !s.Accuses(status, nil) {
				t.Errorf("%v: %d does not accuse", tc.status, status)
			}
		}
		for _, status := range tc.spare {
			if s.Accuses(status, nil) {
				t.Errorf("%v: %d accuses", tc.status, status)
			}
		}
		if got := s.Accuses(503, busy); got != tc.withTag {
			t.Errorf("%v: 503 with Retry-After accuses: %v", tc.status, got)
		}
	}
}
