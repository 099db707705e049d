// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// upstreamLog logs what operators need to know of one upstream under one check.
type upstreamLog struct {
	logger *zap.Logger
	limit  *warningLimit // of warnings of inconclusive results
	fields [2]zap.Field
}

func (l *upstreamLog) with() *zap.Logger { return l.logger.With(l.fields[:]...) }

// probed logs a result, for debugging.
func (l *upstreamLog) probed(result health.Result) {
	if line := l.logger.Check(zap.DebugLevel, "probed"); line != nil {
		line.Write(l.fields[0], l.fields[1], zap.Bool("passed", result.Passed()), zap.Duration("duration", result.Took), zap.String("reason", result.Reason))
	}
}

// changed writes the one line of a change. It is for debugging only if the upstream is
// stale.
func (l *upstreamLog) changed(change health.Transition, stale bool) {
	logger := l.with()
	before := []zap.Field{zap.Stringer("previous", change.From), zap.Duration("previous_duration", change.Lasted)}
	switch {
	case stale:
		logger.Debug("upstream changed, but requests no longer bring it",
			append(before, zap.Stringer("status", change.To), zap.Bool("draining", change.Draining), zap.String("reason", change.Reason))...)
	case change.To == health.Down:
		logger.Warn("upstream is down", append(before, zap.String("reason", change.Reason))...)
	case change.From != health.Up:
		if change.Draining {
			before = append(before, zap.Bool("draining", true))
		}
		logger.Info("upstream is up", before...)
	case change.Draining:
		logger.Info("upstream is draining: it asks for no new requests")
	default:
		logger.Info("upstream is no longer draining: it takes new requests")
	}
}

// inconclusive warns of results that do not count.
func (l *upstreamLog) inconclusive(why *health.InconclusiveError) {
	if !l.limit.isDue(why.Shortage, time.Now()) {
		return
	}
	if why.Shortage != "" {
		l.with().Warn("this process lacks a resource: probes that fail because of this do not count",
			zap.String("shortage", why.Shortage), zap.String("reason", why.Reason))
		return
	}
	l.with().Warn("this process is late (stopped, or short of CPU time): probes that time out meanwhile do not count, up to `fails` in a row",
		zap.Duration("late_by", why.Late))
}

// warningLimit lets one warning a minute pass for each cause: many probes find the same
// cause at the same time. There are no more causes than errors of the operating system.
// All monitors of the process have one in common, in shared.WarningLimits.
type warningLimit struct {
	mu     sync.Mutex
	warned map[string]time.Time // when last, by cause; guarded by mu
}

// warningLimitKey is the only key of shared.WarningLimits.
type warningLimitKey struct{}

// Destruct does nothing.
func (*warningLimit) Destruct() error { return nil }

// isDue reports whether to warn of a cause now.
func (l *warningLimit) isDue(cause string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, warned := l.warned[cause]; warned && now.Sub(last) < time.Minute {
		return false
	}
	if l.warned == nil {
		l.warned = make(map[string]time.Time)
	}
	l.warned[cause] = now
	return true
}
