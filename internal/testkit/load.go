// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Sent is a request that has ended.
type Sent struct {
	Answer
	Began, Ended time.Time
}

// Failed reports whether it was not answered with 200.
func (s Sent) Failed() bool { return s.Err != nil || s.Status != http.StatusOK }

// String returns when it began, how long it took, and the answer.
func (s Sent) String() string {
	return fmt.Sprintf("%s +%s: %v", s.Began.Format("05.000"), s.Ended.Sub(s.Began).Round(time.Millisecond), s.Answer)
}

// Load is a number of requests, with when each began and ended.
type Load struct {
	stop   chan struct{}
	once   sync.Once
	wg     sync.WaitGroup
	flight atomic.Int64

	mu   sync.Mutex
	sent []Sent
}

const (
	// maxInFlight is how many requests of an open loop are under way at most. Else a machine
	// that is too slow for them would get slower and slower.
	maxInFlight = 100
	// raceGap is how many times longer gaps are with the race detector.
	raceGap = 3
)

// OpenLoop sends a request each gap, whether or not those before have ended, until it is
// stopped, at the end of the test at the latest. One that is late is not made up for.
func OpenLoop(tb testing.TB, gap time.Duration, ask func() Answer) *Load {
	tb.Helper()
	if RaceDetector {
		gap *= raceGap
	}
	l := &Load{stop: make(chan struct{})}
	l.wg.Go(func() {
		tick := time.NewTicker(gap)
		defer tick.Stop()
		for {
			select {
			case <-l.stop:
				return
			case <-tick.C:
				if l.InFlight() < maxInFlight {
					l.wg.Go(func() { l.ask(ask) })
				}
			}
		}
	})
	tb.Cleanup(func() { l.Stop() })
	return l
}

// ClosedLoop has clients that send a request when the one before has ended, until it is
// stopped, at the end of the test at the latest.
func ClosedLoop(tb testing.TB, clients int, ask func() Answer) *Load {
	tb.Helper()
	l := &Load{stop: make(chan struct{})}
	for range clients {
		l.wg.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				default:
					l.ask(ask)
				}
			}
		})
	}
	tb.Cleanup(func() { l.Stop() })
	return l
}

func (l *Load) ask(ask func() Answer) {
	l.flight.Add(1)
	defer l.flight.Add(-1)
	s := Sent{Began: time.Now()}
	s.Answer = ask()
	s.Ended = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent = append(l.sent, s)
}

// Stop ends it, waits for the requests in flight, and returns all of them by when they began.
func (l *Load) Stop() []Sent {
	l.once.Do(func() { close(l.stop) })
	l.wg.Wait()
	sent := l.Sent()
	slices.SortFunc(sent, func(a, b Sent) int { return a.Began.Compare(b.Began) })
	return sent
}

// Sent returns the requests that have ended so far.
func (l *Load) Sent() []Sent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.sent)
}

// InFlight returns how many requests are under way.
func (l *Load) InFlight() int { return int(l.flight.Load()) }

// Await returns when so many more requests have ended.
func (l *Load) Await(tb testing.TB, more int) {
	tb.Helper()
	until := len(l.Sent()) + more
	Eventually(tb, Patience, fmt.Sprintf("%d more requests end", more), func() bool { return len(l.Sent()) >= until })
}
