// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// letters is a driver whose probes return what the letters of results say, one after
// the other: P passes, F fails, D passes and says that the target is draining.
// After the last letter probes pass. It records whether each
// probe had to be fresh.
type letters struct {
	results string

	mu      sync.Mutex
	fresh   []bool
	reports []Transition
}

func (l *letters) driver() Driver {
	return Driver{
		Probe: func(_ context.Context, fresh bool) (bool, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			if len(l.fresh) == len(l.results) {
				return false, nil
			}
			r := l.results[len(l.fresh)]
			l.fresh = append(l.fresh, fresh)
			if r == 'F' {
				return false, errSick
			}
			return r == 'D', nil
		},
		Report: func(change Transition) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.reports = append(l.reports, change)
		},
	}
}

// said returns for each probe whether it had to be fresh, t or f, and the
// reports.
func (l *letters) said() (fresh string, reports []Transition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var text []byte
	for _, f := range l.fresh {
		if f {
			text = append(text, 't')
		} else {
			text = append(text, 'f')
		}
	}
	return string(text), slices.Clone(l.reports)
}

// runAll lets time pass until all letters are used.
func (l *letters) runAll() {
	for {
		if fresh, _ := l.said(); len(fresh) == len(l.results) {
			return
		}
		advance(100 * time.Millisecond)
	}
}

// Each letter of results is P for a pass, F for a fail, D for a pass that says
// it is draining; want has the status after each: u for up, r for up but
// refusing new requests, d for down.
func TestDraining_FollowsTheLastPass(t *testing.T) {
	for _, tc := range []struct {
		rule          string
		results, want string
		passes, fails int
	}{
		{"at once", "PD", "ur", 2, 3},
		{"from the first result on", "D", "r", 2, 3},
		{"the next plain pass ends it at once", "PDP", "uru", 2, 3},
		{"from the first result on, and ended", "DP", "ru", 2, 3},
		{"it goes on for as long as it is said", "DDDDP", "rrrru", 2, 3},
		{"single fails do not end it", "PDFFP", "urrru", 2, 3},
		{"single fails do not begin it", "PFPFD", "uuuur", 2, 3},
		{"down is not draining", "PDFFF", "urrrd", 2, 3},
		{"nor draining once it is back", "PDFFFPP", "urrrddu", 2, 3},
		{"as a pass it ends a streak of fails", "PFFDFFP", "uuurrru", 2, 3},
		{"as a pass it counts towards up", "PFFFDD", "uuuddr", 2, 3},
		{"back by a plain pass, the last one counts", "PFFFDP", "uuuddu", 2, 3},
		{"back by a draining pass, the last one counts", "PFFFPD", "uuuddr", 2, 3},
		{"one is enough while it was never up", "FFDP", "ddru", 2, 3},
		{"with one of each", "DFDP", "rdru", 1, 1},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			set := settings()
			set.Passes, set.Fails = tc.passes, tc.fails
			var s state
			var got []byte
			for _, r := range tc.results {
				before := s
				changed := s.record(r != 'F', r == 'D', &set)
				if want := s.status != before.status || s.draining != before.draining; changed != want {
					t.Fatalf("after %q: record says changed %v, want %v: it went from %+v to %+v", got, changed, want, before, s)
				}
				after := s.status.String()[0]
				switch {
				case s.draining && s.status == Up:
					after = 'r'
				case s.draining:
					t.Fatalf("after %q: draining while %v", got, s.status)
				}
				got = append(got, after)
			}
			if string(got) != tc.want {
				t.Errorf("%s: got %s, want %s", tc.results, got, tc.want)
			}
		})
	}
}

// Each change is reported once, to subscribers and to the driver, and nothing else is.
// The status does not change when draining begins or ends.
func TestDraining_IsReported(t *testing.T) {
	const (
		s = time.Second
		// the first results come at 0, 5, 10, 15, 20, 25, 26 and 27 seconds
		untilDown = 27 * s
	)
	for _, tc := range []struct {
		results string
		want    []Transition
		since   time.Duration // of the last change of status
	}{
		{"PDDPP", []Transition{
			{From: Unknown, To: Up},
			{From: Up, To: Up, Draining: true},
			{From: Up, To: Up, WasDraining: true},
		}, 0},
		{"DDP", []Transition{
			{From: Unknown, To: Up, Draining: true},
			{From: Up, To: Up, WasDraining: true},
		}, 0},
		{"PDDPDFFF", []Transition{
			{From: Unknown, To: Up},
			{From: Up, To: Up, Draining: true},
			{From: Up, To: Up, WasDraining: true},
			{From: Up, To: Up, Draining: true},
			{From: Up, To: Down, WasDraining: true, Reason: "sick", Lasted: untilDown},
		}, untilDown},
		{"PDDPPFFFDD", []Transition{ // 10 seconds down, then fast
			{From: Unknown, To: Up},
			{From: Up, To: Up, Draining: true},
			{From: Up, To: Up, WasDraining: true},
			{From: Up, To: Down, Reason: "sick", Lasted: untilDown},
			{From: Down, To: Up, Draining: true, Lasted: 11 * s},
			{From: Up, To: Up, WasDraining: true}, // by the pass that follows
		}, untilDown + 11*s},
	} {
		t.Run(tc.results, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				type seen struct {
					status   Status
					draining bool
				}
				began := time.Now()
				target := NewTarget(settings())
				l := &letters{results: tc.results}
				var observed, want []seen
				defer target.Subscribe(func() { observed = append(observed, seen{target.Status(), target.Draining()}) })()
				detach := target.Attach(l.driver(), 0)
				l.runAll()
				advance(10 * s) // the pass that follows changes nothing, or ends draining
				detach()
				if _, got := l.said(); !slices.Equal(got, tc.want) {
					t.Errorf("reported %+v, want %+v", got, tc.want)
				}
				for _, change := range tc.want {
					want = append(want, seen{change.To, change.Draining})
				}
				if !slices.Equal(observed, want) {
					t.Errorf("subscribers saw %v, want %v", observed, want)
				}
				if got := target.Since().Sub(began); got != tc.since {
					t.Errorf("since %v, want %v", got, tc.since)
				}
			})
		})
	}
}

// A probe must not rely on an earlier connection, which may outlive the listener that
// accepted it, unless the target is up and settled.
// Want has t for each probe that must be fresh.
func TestProbes_AreFreshUnlessSettled(t *testing.T) {
	for _, tc := range []struct {
		rule          string
		results, want string
	}{
		{"the first one is", "PPP", "tff"},
		{"and all until it is up", "FFFPP", "ttttf"},
		{"a streak against up", "PFPPFFPP", "tftffttf"},
		{"down, until it is up again", "PFFFFPPP", "tftttttf"},
		{"a streak against down that ends", "PFFFPFPPP", "tfttttttf"},
		{"draining is up and settled", "DDPD", "tfff"},
		{"a streak while draining", "DFDP", "tftf"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &letters{results: tc.results}
				defer NewTarget(settings()).Attach(l.driver(), 0)()
				l.runAll()
				if got, _ := l.said(); got != tc.want {
					t.Errorf("%s: fresh %s, want %s", tc.results, got, tc.want)
				}
			})
		})
	}
}

// All probes of a burst are fresh, also the first: a probe over an earlier connection
// says nothing about what failed. After the burst they are not.
func TestProbes_OfABurstAreFresh(t *testing.T) {
	for _, tc := range []struct {
		rule          string
		results, want string // the first two come before the burst
		within        time.Duration
	}{
		{"cleared at once", "PPPP", "tftf", 6 * time.Second},
		{"cleared later", "PPFFPP", "tftttf", 6 * time.Second},
		{"it was right", "PPFFFF", "tftttt", 11 * time.Second},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l := &letters{results: tc.results}
				target := NewTarget(settings())
				defer target.Attach(l.driver(), 0)()
				advance(6 * time.Second)
				accuse(target)
				advance(tc.within)
				if got, _ := l.said(); got != tc.want {
					t.Errorf("%s: fresh %s, want %s", tc.results, got, tc.want)
				}
			})
		})
	}
}
