// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// bubbles is how many tests ran in virtual time.
var bubbles atomic.Int64

// bubble runs a test in virtual time. Each one begins an hour later than the one before, so
// that the limit of probes before their turn, which is one for the process, has forgotten
// that of earlier tests.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Duration(bubbles.Add(1)) * time.Hour)
		f(t)
	})
	shared.Witnesses.Range(func(key, _ any) bool {
		t.Errorf("the pool %v is left", key)
		return true
	})
}

// advance lets virtual time pass, until everything that is due has happened.
func advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// server is an upstream with its checks.
type server struct {
	*Upstream
	targets []*health.Target

	mu     sync.Mutex
	sick   []bool // by check
	takes  time.Duration
	probes int
}

// setSick says whether all checks fail from now on.
func (s *server) setSick(sick bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.sick {
		s.sick[i] = sick
	}
}

// setTakes says how long probes take from now on.
func (s *server) setTakes(takes time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.takes = takes
}

// probe is a probe by one of the checks.
func (s *server) probe(check int) error {
	s.mu.Lock()
	s.probes++
	takes, sick := s.takes, s.sick[check]
	s.mu.Unlock()
	time.Sleep(takes)
	if sick {
		return errors.New("sick")
	}
	return nil
}

// probed returns how many probes were made since the last call.
func (s *server) probed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.probes
	s.probes = 0
	return n
}

// observed is a pool whose upstreams are up, with one handler that runs.
type observed struct {
	*Pool
	handler *Handler
	servers []*server

	mu    sync.Mutex
	began time.Time
	lines []string // what the hooks were told
	full  bool     // no upstream may be ejected
	calls int      // of Changed
}

// observe makes a pool of n upstreams with so many checks each, and ends it with the test.
// The upstreams are up and settled, and were probed a second ago.
func observe(t *testing.T, n, checks int, configure ...func(*Settings)) *observed {
	t.Helper()
	o := &observed{}
	o.handler = o.newHandler(configure...)
	var err error
	if o.Pool, err = Join(t.Name(), o.handler); err != nil {
		t.Fatal(err)
	}
	o.Follow(o.handler)
	o.handler.SetRunning(true)
	for i := range n {
		s := &server{sick: make([]bool, checks)}
		for c := range checks {
			target := health.NewTarget(health.Settings{
				Interval: 5 * time.Second, FastInterval: time.Second, DownInterval: 5 * time.Second,
				Timeout: 2 * time.Second, Passes: 2, Fails: 3,
			})
			s.targets = append(s.targets, target)
			t.Cleanup(target.Attach(health.Driver{
				Probe: func(context.Context, bool) (bool, error) { return false, s.probe(c) },
			}, 0))
		}
		s.Upstream = o.Add(o.handler, fmt.Sprint(string(rune('a'+i))), s.targets)
		for _, target := range s.targets {
			target.Subscribe(s.FollowChecks)
		}
		o.servers = append(o.servers, s)
	}
	t.Cleanup(func() { o.leave(t, o.handler) })
	advance(time.Second)
	for _, s := range o.servers {
		s.probed()
	}
	o.began = time.Now()
	o.setCalls(0)
	return o
}

// newHandler returns a handler whose hooks are noted.
func (o *observed) newHandler(configure ...func(*Settings)) *Handler {
	h := &Handler{Settings: DefaultSettings()}
	for _, f := range configure {
		f(&h.Settings)
	}
	h.Hooks = Hooks{
		Changed:  func() { o.mu.Lock(); defer o.mu.Unlock(); o.calls++ },
		MayEject: func(*Upstream) bool { return !o.full },
		Accused: func(address string, cause Cause, _ string, suspect bool) {
			if suspect {
				o.note("%s suspect by %v", address, cause)
			} else {
				o.note("%s accused by %v", address, cause)
			}
		},
		Acquitted: func(address string) { o.note("%s acquitted", address) },
		Ejected: func(address, _ string, until time.Time, inRow int) {
			o.note("%s ejected for %v, %d in a row", address, time.Until(until), inRow)
		},
		Returned: func(address string) { o.note("%s returned", address) },
	}
	return h
}

// leave undoes what a handler began.
func (o *observed) leave(t *testing.T, h *Handler) {
	t.Helper()
	for _, s := range o.servers {
		o.Remove(h, s.Upstream)
	}
	if err := o.Leave(h); err != nil {
		t.Error(err)
	}
}

// setCalls sets how often Changed was called, and returns how often it was.
func (o *observed) setCalls(n int) (before int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before, o.calls = o.calls, n
	return before
}

func (o *observed) note(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lines = append(o.lines, fmt.Sprintf("%v ", time.Since(o.began).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

// told returns what the hooks were told since the last call, one line each with the time;
// with parts, only lines that have one of them.
func (o *observed) told(parts ...string) (lines []string) {
	synctest.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, line := range o.lines {
		if len(parts) == 0 || slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(line, part) }) {
			lines = append(lines, line)
		}
	}
	o.lines = nil
	return lines
}

// want compares what the hooks were told.
func (o *observed) want(t *testing.T, want ...string) {
	t.Helper()
	if got := o.told(); !slices.Equal(got, want) {
		t.Errorf("told\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// Failures of round trips.
var (
	refused  = Failure{Cause: Connect, Reason: "refused"}
	reset    = Failure{Cause: Outcome, Reason: "reset"}
	unsure   = Failure{Cause: Outcome, Reason: "closed", Unsure: true}
	status   = Failure{Cause: Outcome, Reason: "status 502", Answered: true}
	timedOut = Failure{Cause: Stall, Reason: "no header"}
)

// send begins a round trip whose request has no body.
func (s *server) send() *Trip {
	t := new(Trip)
	t.Begin(s.Upstream)
	t.Wait()
	return t
}

// good is a round trip that ends well.
func (s *server) good() { s.send().Good() }

// fail is a round trip that fails.
func (s *server) fail(f Failure) Counted {
	c := s.send().Fail(f)
	synctest.Wait()
	return c
}
