// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// maxPerMinute is how many ejections of a pool have a log line and an event of their own
// in any minute, and how many returns have a line.
const maxPerMinute = 10

// TrafficLog counts and reports what the requests of one handler say of the upstreams of its
// pool: suspicions, ejections and their ends; and those that its queue refuses. All handlers
// of a pool share the limits of how much is reported, and a new config takes them over from
// the one before. No method waits for an event handler.
type TrafficLog struct {
	pool    *PoolCounters
	logger  *zap.Logger
	events  *Queue
	writing sync.WaitGroup // sums that are being reported by this one
}

// trafficReports are the limits of a pool, and the one timer for what they hold back.
type trafficReports struct {
	mu     sync.Mutex    // guards what follows
	open   []*TrafficLog // the oldest first
	limits [reportKinds]minuteLimit
	timer  *time.Timer // nil until something is held back
}

// What the limits are for.
const (
	suspicions = iota // all are held back: there is one line a minute
	ejections
	returns
	refusals // all are held back, too

	reportKinds
)

// newTrafficReports returns the limits of a pool.
func newTrafficReports() *trafficReports {
	return &trafficReports{limits: [reportKinds]minuteLimit{ejections: {most: maxPerMinute}, returns: {most: maxPerMinute}}}
}

// NewTrafficLog returns the log of a handler of this pool. [TrafficLog.Close] must follow.
func (p *PoolCounters) NewTrafficLog(logger *zap.Logger, events *Queue) *TrafficLog {
	l := &TrafficLog{pool: p, logger: logger.With(zap.String("pool", p.name)), events: events}
	l.pool.reports.mu.Lock()
	defer l.pool.reports.mu.Unlock()
	l.pool.reports.open = append(l.pool.reports.open, l)
	return l
}

// Accused counts and reports that a request speaks against an upstream: for debugging, and
// in one line a minute if this makes the upstream suspect. The cause is one word: connect,
// outcome or stall.
func (l *TrafficLog) Accused(upstream, cause, reason string, suspect bool) {
	l.pool.CountAccusation(upstream, cause)
	text := "a request speaks against an upstream"
	if suspect {
		text = "upstream is suspect"
	}
	if line := l.logger.Check(zap.DebugLevel, text); line != nil {
		line.Write(zap.String("upstream", upstream), zap.String("cause", cause), zap.String("reason", reason))
	}
	if suspect {
		l.passes(suspicions, upstream, cause)
	}
}

// Acquitted reports that an upstream is no longer suspect, for debugging.
func (l *TrafficLog) Acquitted(upstream string) {
	if line := l.logger.Check(zap.DebugLevel, "upstream is no longer suspect"); line != nil {
		line.Write(zap.String("upstream", upstream))
	}
}

// Ejected counts and reports an ejection, which is one of several in a row: by a line and an
// event, or as one of many.
func (l *TrafficLog) Ejected(upstream, reason string, until time.Time, inRow int) {
	l.pool.CountEjection(upstream)
	if !l.passes(ejections, upstream, "") {
		return
	}
	lasts := time.Until(until).Round(10 * time.Millisecond)
	l.logger.Warn("upstream is ejected: it gets no requests while another one serves",
		zap.String("upstream", upstream), zap.String("reason", reason), zap.Duration("duration", lasts), zap.Time("until", until), zap.Int("in_a_row", inRow))
	l.events.Ejected(l.pool.name, upstream, reason, lasts, inRow)
}

// Returned reports that an ejection has ended because a trial went well.
func (l *TrafficLog) Returned(upstream string) {
	if l.passes(returns, upstream, "") {
		l.logger.Info("upstream is no longer ejected: it answers requests again", zap.String("upstream", upstream))
	}
}

// Refused counts a request that the queue of the pool refused, and reports it in one line a
// minute. The reason is [RefusedFull] or [RefusedTimeout].
func (l *TrafficLog) Refused(reason string) {
	l.pool.CountRefused(reason)
	l.passes(refusals, "", reason)
}

// Close ends the log. What it is told afterwards is counted, but not reported, except for
// debugging. If it is the last one of the pool, it reports what is held back.
func (l *TrafficLog) Close() {
	r := l.pool.reports
	r.mu.Lock()
	i := slices.Index(r.open, l)
	if i < 0 {
		r.mu.Unlock()
		return
	}
	r.open = slices.Delete(r.open, i, i+1)
	var all [reportKinds]heldBack
	if len(r.open) == 0 {
		for kind := range r.limits {
			all[kind] = r.limits[kind].take()
		}
		if r.timer != nil {
			r.timer.Stop()
		}
	}
	r.mu.Unlock()
	l.writeAll(all, time.Now())
	l.writing.Wait()
}

// passes reports whether something is to be reported on its own. If not, it is held back.
func (l *TrafficLog) passes(kind int, upstream, cause string) bool {
	r, now := l.pool.reports, time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.open, l) {
		return false
	}
	passes := r.limits[kind].add(upstream, cause, now)
	if !passes && r.limits[kind].held.total == 1 {
		r.setTimer(now)
	}
	return passes
}

// setTimer sets the timer for what is due next. r.mu must be held.
func (r *trafficReports) setTimer(now time.Time) {
	var next time.Time
	for kind := range r.limits {
		if at, some := r.limits[kind].due(); some && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	switch {
	case next.IsZero():
	case r.timer == nil:
		r.timer = time.AfterFunc(next.Sub(now), r.reportDue)
	default:
		r.timer.Reset(next.Sub(now))
	}
}

// reportDue reports what is due, in the newest config.
func (r *trafficReports) reportDue() {
	now := time.Now()
	r.mu.Lock()
	if len(r.open) == 0 {
		r.mu.Unlock()
		return
	}
	l := r.open[len(r.open)-1]
	l.writing.Add(1)
	defer l.writing.Done()
	var due [reportKinds]heldBack
	for kind := range r.limits {
		if at, some := r.limits[kind].due(); some && !at.After(now) {
			due[kind] = r.limits[kind].take()
		}
	}
	r.setTimer(now)
	r.mu.Unlock()
	l.writeAll(due, now)
}

// writeAll reports what was held back, if there is something.
func (l *TrafficLog) writeAll(all [reportKinds]heldBack, now time.Time) {
	for kind, held := range all {
		if held.total == 0 {
			continue
		}
		span := held.span(now)
		upstreams := zap.Strings("upstreams", view.Few(slices.Sorted(maps.Keys(held.upstreams))))
		switch kind {
		case suspicions:
			l.logger.Info(fmt.Sprintf("upstreams were suspect: %s in the last %s: %s", plural(held.total, "suspicion"), span, held.byCause()), upstreams)
		case ejections:
			reason := fmt.Sprintf("and %d more in the last %s", held.total, span)
			l.logger.Warn("upstreams are ejected: "+reason, upstreams)
			l.events.MoreEjected(l.pool.name, reason, held.total)
		case returns:
			l.logger.Info(fmt.Sprintf("upstreams are no longer ejected: and %d more in the last %s", held.total, span), upstreams)
		case refusals:
			l.logger.Warn(fmt.Sprintf("the queue refused requests: %d in the last %s: %s", held.total, span, held.byCause()))
		}
	}
}

// plural returns a number and the word for so many.
func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
