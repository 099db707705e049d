// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// trafficTest is a pool with logs of its handlers, all of one config.
type trafficTest struct {
	*testing.T
	pool   *PoolCounters
	events *Queue
	lines  *observer.ObservedLogs
	logger *zap.Logger
}

func newTrafficTest(t *testing.T) *trafficTest {
	t.Helper()
	p, s := join(t, "shop", map[string]uint64{"a:80": 1})
	t.Cleanup(func() { leave(t, p, s) })
	core, lines := observer.New(zap.DebugLevel)
	return &trafficTest{T: t, pool: p, events: NewQueue(zap.NewNop(), nil, nil), lines: lines, logger: zap.New(core)}
}

// open returns the log of one more handler.
func (tt *trafficTest) open() *TrafficLog { return tt.pool.NewTrafficLog(tt.logger, tt.events) }

// told returns and forgets the lines of at least info so far, without their fields.
func (tt *trafficTest) told() (lines []string) {
	for _, line := range tt.lines.TakeAll() {
		if line.Level >= zapcore.InfoLevel {
			if line.ContextMap()["pool"] != "shop" {
				tt.Errorf("%q is of the pool %v", line.Message, line.ContextMap()["pool"])
			}
			lines = append(lines, line.Message)
		}
	}
	return lines
}

// emitted returns and forgets the events so far.
func (tt *trafficTest) emitted() (events []map[string]any) {
	for e, ok := tt.events.Next(); ok; e, ok = tt.events.Next() {
		if e.Name != "ejected" {
			tt.Errorf("the event is %s", e.Name)
		}
		events = append(events, e.Data)
	}
	return events
}

func (tt *trafficTest) want(what string, want ...string) {
	tt.Helper()
	if got := tt.told(); !slices.Equal(got, want) {
		tt.Errorf("%s: logged\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

const (
	lineEjected  = "upstream is ejected: it gets no requests while another one serves"
	lineReturned = "upstream is no longer ejected: it answers requests again"
)

// An ejection has one line and one event, which say why, for how long, and which one in a
// row it is.
func TestTrafficLog_OneLineAndEventPerEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tt := newTrafficTest(t)
		l := tt.open()
		defer l.Close()
		const reason = "5 requests in a row failed (status 502) while its checks pass"
		l.Ejected("a:80", reason, time.Now().Add(time.Minute), 2)
		entry := tt.lines.All()[0]
		fields := entry.ContextMap()
		if entry.Level != zapcore.WarnLevel || fields["upstream"] != "a:80" || fields["reason"] != reason || fields["duration"] != time.Minute || fields["in_a_row"] != int64(2) {
			t.Errorf("%s line %q with %v", entry.Level, entry.Message, fields)
		}
		tt.want("ejected", lineEjected)
		event := map[string]any{"pool": "shop", "upstream": "a:80", "reason": reason, "duration": "1m0s", "in_a_row": 2, "more": 0}
		if got := tt.emitted(); len(got) != 1 || !maps.Equal(got[0], event) {
			t.Errorf("emitted %v, want %v", got, event)
		}
		l.Returned("a:80")
		tt.want("returned", lineReturned)
		time.Sleep(time.Hour)
		synctest.Wait()
		tt.want("an hour later")
		if got := tt.emitted(); len(got) != 0 {
			t.Errorf("emitted %v", got)
		}
	})
}

// Ten ejections in a minute have a line and an event, of all handlers of a pool together.
// The others are in one sum, at the end of the minute.
func TestTrafficLog_ManyEjectionsAreSummed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tt := newTrafficTest(t)
		handlers := []*TrafficLog{tt.open(), tt.open()}
		for i := range 47 {
			handlers[i%2].Ejected(fmt.Sprintf("a%02d:80", i), "it fails", time.Now().Add(30*time.Second), 1)
			time.Sleep(time.Second)
		}
		tt.want("47 ejections", slices.Repeat([]string{lineEjected}, maxPerMinute)...)
		if n := len(tt.emitted()); n != maxPerMinute {
			t.Errorf("%d events, want %d", n, maxPerMinute)
		}
		time.Sleep(22 * time.Second) // the first sum began 37 seconds ago
		synctest.Wait()
		tt.want("before the minute is over")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if fields := tt.lines.All()[0].ContextMap(); fmt.Sprint(fields["upstreams"]) != "[a10:80 a11:80 a12:80 a13:80 a14:80 a15:80 a16:80 a17:80 a18:80 a19:80 and 27 more]" {
			t.Errorf("the sum is of %v", fields["upstreams"])
		}
		tt.want("a minute after the first that was held back", "upstreams are ejected: and 37 more in the last minute")
		event := map[string]any{"pool": "shop", "upstream": "", "reason": "and 37 more in the last minute", "duration": "", "in_a_row": 0, "more": 37}
		if got := tt.emitted(); len(got) != 1 || !maps.Equal(got[0], event) {
			t.Errorf("emitted %v, want %v", got, event)
		}
		for range maxPerMinute + 1 {
			handlers[0].Returned("a:80")
		}
		handlers[0].Ejected("a:80", "it fails", time.Now(), 1)
		tt.want("later", append(slices.Repeat([]string{lineReturned}, maxPerMinute), lineEjected)...)
		time.Sleep(time.Minute)
		synctest.Wait()
		tt.want("a minute later", "upstreams are no longer ejected: and 1 more in the last minute")
		for _, l := range handlers {
			l.Close()
		}
		if all := tt.pool.traffic.read(); all["a46:80"].ejections != 1 || all["a:80"].ejections != 1 || len(all) != 48 {
			t.Errorf("counted are %v, want one ejection of each", all)
		}
		tt.want("at the end")
	})
}

// Suspicions are for debugging. There is one line a minute for all of them, by cause.
func TestTrafficLog_SuspicionsAreSummed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tt := newTrafficTest(t)
		l := tt.open()
		l.Accused("a:80", "connect", "connection refused", true)
		l.Accused("a:80", "outcome", "status 502", false) // held back by its back-off
		l.Acquitted("a:80")
		if n := tt.pool.traffic.read()["a:80"].accusations; n["connect"] != 1 || n["outcome"] != 1 {
			t.Errorf("counted are %v, want one of each cause", n)
		}
		var debug []string
		for _, line := range tt.lines.All() {
			debug = append(debug, fmt.Sprint(line.Level, " ", line.Message))
		}
		if want := []string{"debug upstream is suspect", "debug a request speaks against an upstream", "debug upstream is no longer suspect"}; !slices.Equal(debug, want) {
			t.Errorf("logged %q, want %q", debug, want)
		}
		time.Sleep(10 * time.Second)
		l.Accused("b:80", "outcome", "status 502", true)
		l.Accused("a:80", "connect", "connection refused", true)
		time.Sleep(49 * time.Second)
		synctest.Wait()
		tt.want("before the minute is over")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if fields := tt.lines.All()[0].ContextMap(); fmt.Sprint(fields["upstreams"]) != "[a:80 b:80]" {
			t.Errorf("the sum is of %v", fields["upstreams"])
		}
		tt.want("a minute after the first", "upstreams were suspect: 3 suspicions in the last minute: 2 connect, 1 outcome")
		time.Sleep(time.Hour)
		l.Accused("a:80", "stall", "no answer for 500ms", true)
		time.Sleep(time.Minute)
		synctest.Wait()
		tt.want("an hour later", "upstreams were suspect: 1 suspicion in the last minute: 1 stall")
		l.Close()
		if got := tt.emitted(); len(got) != 0 {
			t.Errorf("emitted %v", got)
		}
	})
}

// What is held back when a config ends is reported by the next one, in time, and at once
// if there is none. Nothing is reported twice, and nothing runs on after the last Close.
func TestTrafficLog_SumOutlivesAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tt := newTrafficTest(t)
		old := tt.open()
		old.Accused("a:80", "connect", "connection refused", true)
		time.Sleep(20 * time.Second)
		next := tt.open()
		old.Close()
		old.Close()
		old.Accused("a:80", "connect", "connection refused", true) // by a request that is late
		old.Ejected("a:80", "it fails", time.Now(), 1)
		old.Returned("a:80")
		next.Accused("a:80", "connect", "connection refused", true)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		tt.want("before the minute is over")
		time.Sleep(11 * time.Second)
		synctest.Wait()
		tt.want("a minute after the first", "upstreams were suspect: 2 suspicions in the last minute: 2 connect")
		for range maxPerMinute + 3 {
			next.Ejected("a:80", "it fails", time.Now(), 1)
		}
		tt.told()
		tt.emitted()
		time.Sleep(12 * time.Second)
		next.Close()
		tt.want("at the end", "upstreams are ejected: and 3 more in the last 12s")
		if got := tt.emitted(); len(got) != 1 || got[0]["more"] != 3 {
			t.Errorf("emitted %v at the end", got)
		}
		if tt.pool.reports.timer.Stop() {
			t.Error("a timer is left")
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		tt.want("after the end")
	})
}

// No lock is held while a line is written: a logger may look at the pool. Close waits for
// the sum that is being written.
func TestTrafficLog_HoldsNoLockWhileItLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tt := newTrafficTest(t)
		var l *TrafficLog
		gate := make(chan struct{})
		var lines atomic.Int32
		tt.logger = tt.logger.WithOptions(zap.Hooks(func(e zapcore.Entry) error {
			if strings.HasPrefix(e.Message, "upstreams") {
				l.Accused("b:80", "stall", "no answer for 500ms", true)
				tt.pool.CountAccusation("b:80", "stall")
				if lines.Add(1) == 1 {
					<-gate
				}
			}
			return nil
		}))
		l = tt.open()
		l.Accused("a:80", "connect", "connection refused", true)
		time.Sleep(time.Minute)
		synctest.Wait()
		var closing sync.WaitGroup
		closed := false
		closing.Go(func() { l.Close(); closed = true })
		synctest.Wait()
		if closed {
			t.Error("Close did not wait for the line")
		}
		close(gate)
		closing.Wait()
		if n := lines.Load(); n != 2 { // that of the timer, and that of Close
			t.Errorf("%d lines, want 2", n)
		}
	})
}
