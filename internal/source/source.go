// SPDX-License-Identifier: Apache-2.0

// Package source keeps requests going while a dynamic source of upstreams fails: it has
// the last good answer, and asks the source again in the background. A [Source] stands
// between the handler and the module of the source; [Load] makes it.
//
// It must not know which upstreams of an answer get requests, and nothing of checks.
//
// Locks: memory.mu is taken alone. It is not held while the source is asked, a request
// waits or a log line is written.
package source

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

const (
	// firstWait and longestWait are how long a source that fails is not asked again: the
	// first time, and at most. It doubles each time, as long as there is an answer to go
	// on with.
	firstWait   = time.Second
	longestWait = 30 * time.Second
	// patience is how long a request waits for a new answer at most if there is an old one.
	patience = 250 * time.Millisecond
	// longestCall is how long a call takes at most. Then it is a failure.
	longestCall = 30 * time.Second
	// resetInterval is how often retries get a new answer at most.
	resetInterval = time.Second
	// missingInterval is how often a name that does not exist is looked up at most.
	missingInterval = time.Second
	// closeWait is how long Close waits for a source that does not heed its context.
	closeWait = time.Second
)

var errTooLong = fmt.Errorf("no answer within %s", longestCall)

// Source is a dynamic source whose last good answer is used while it fails. As long as a
// source is known to fail, no request waits for it.
//
// One that is in the background mode is asked only there, so that requests wait neither
// for a slow name server nor for the locks of Caddy's own sources, which are held during
// look-ups. Other sources are asked by each request until they fail.
type Source struct {
	inner      reverseproxy.UpstreamSource
	caching    reverseproxy.CachingUpstreamSource // the same, nil if it has no cache to reset
	background bool
	refresh    time.Duration // how long an answer is fresh, in the background mode
	stale      time.Duration // how old the answer may be that is used
	key        string        // of memory
	memory     *memory
	logger     *zap.Logger

	config context.Context // ends with the config, or when the source is closed
	cancel context.CancelFunc
	last   *call // the last one that this source began; memory.mu guards it
}

// newSource returns a source around the module of a source. The context is that of the
// config. Close takes it back.
func newSource(ctx context.Context, inner reverseproxy.UpstreamSource, key string, stale time.Duration, logger *zap.Logger) (*Source, error) {
	m, err := openMemory(key)
	if err != nil {
		return nil, err
	}
	s := &Source{inner: inner, key: key, memory: m, stale: stale, logger: logger}
	s.caching, _ = inner.(reverseproxy.CachingUpstreamSource)
	s.config, s.cancel = context.WithCancel(ctx)
	return s, nil
}

// GetUpstreams returns the upstreams for a request: those that the source has, or those of
// its last good answer. It is an error only if there is no name, or if the source fails
// and has no answer that may be used.
func (s *Source) GetUpstreams(r *http.Request) ([]*reverseproxy.Upstream, error) {
	now, f := time.Now(), s.memory.failure.Load()
	if f == nil && !s.background {
		return s.askFor(r)
	}
	// without the lock, if there is nothing else to do
	if a := s.memory.usable(now, s.stale); a != nil && (s.isFresh(a, now) || f != nil && now.Before(f.next)) {
		return a.result()
	}
	return s.await(r)
}

// isFresh reports whether no other answer is needed yet.
func (s *Source) isFresh(a *answer, now time.Time) bool {
	refresh := s.refresh
	if a.missing != nil {
		refresh = min(refresh, missingInterval)
	}
	return now.Sub(a.at) < refresh && !s.memory.due.Load()
}

// askFor asks the source in place of a request. It is not known to fail.
func (s *Source) askFor(r *http.Request) ([]*reverseproxy.Upstream, error) {
	upstreams, err := s.inner.GetUpstreams(r)
	now := time.Now()
	if err == nil {
		if newest := s.memory.newest.Load(); newest != nil && newest.isEqual(upstreams) {
			s.succeeded(&answer{at: now, upstreams: newest.upstreams}, now)
			return upstreams, nil
		}
	}
	a, failed := newAnswer(upstreams, err, now)
	if failed == nil {
		s.succeeded(a, now)
		return upstreams, err
	}
	if r.Context().Err() != nil {
		return upstreams, err // the client has left
	}
	s.failed(err, now, false)
	return s.await(r)
}

// await returns the upstreams for a request for which no answer is fresh.
func (s *Source) await(r *http.Request) ([]*reverseproxy.Upstream, error) {
	for {
		now := time.Now()
		a, f, c := s.look(now)
		switch {
		case a != nil && (f != nil || c == nil || !now.Before(c.patience)):
			return a.result()
		case f != nil:
			return nil, s.noAnswer(f, now)
		case c == nil: // for a request that outlives the config, or the source has recovered
			return s.askFor(r)
		}
		var impatient <-chan time.Time
		if a != nil {
			impatient = time.After(c.patience.Sub(now))
		}
		select {
		case <-c.done:
			if c.answer != nil {
				return c.answer.result()
			}
		case <-impatient:
		case <-r.Context().Done():
			if a == nil {
				return nil, r.Context().Err()
			}
			return a.result()
		}
	}
}

// look returns the answer that may be used, nil if there is none, why the source fails,
// nil if it does not, and the call that may bring another answer. It begins one if it is
// time for that.
func (s *Source) look(now time.Time) (*answer, *failure, *call) {
	m := s.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	a, f := m.usable(now, s.stale), m.failure.Load()
	isTime := s.background
	if f != nil {
		isTime = !now.Before(f.next)
	} else if !s.background || a != nil && s.isFresh(a, now) {
		return a, nil, nil
	}
	if isTime && m.running == nil && s.config.Err() == nil {
		c := &call{patience: now.Add(patience), reset: m.reset, done: make(chan struct{}), ended: make(chan struct{})}
		m.running, m.reset, s.last = c, false, c
		go s.run(c)
	}
	return a, f, m.running
}

// result is how a call ended.
type result struct {
	answer *answer
	err    error
}

// run makes a call.
func (s *Source) run(c *call) {
	defer close(c.ended)
	ctx, cancel := context.WithTimeoutCause(s.config, longestCall, errTooLong)
	defer cancel()
	results := make(chan result, 1)
	go func() { results <- s.ask(ctx, c.reset) }()
	var r result
	isOut := false // the source does not heed its context, or does so in a moment
	select {
	case r = <-results:
	case <-ctx.Done():
		r.err, isOut = context.Cause(ctx), true
	}
	isCancelled := r.err != nil && s.config.Err() != nil
	if isCancelled { // requests of another config begin a call of their own
		s.release(c)
	}
	s.end(c, r, isCancelled)
	if isOut {
		select {
		case r := <-results:
			if r.err == nil {
				s.succeeded(r.answer, time.Now())
			}
		case <-s.config.Done():
			select {
			case <-results:
			case <-time.After(closeWait):
			}
		}
	}
	s.release(c)
}

// ask asks the source in place of no request.
func (s *Source) ask(ctx context.Context, reset bool) (r result) {
	defer func() {
		if reason := recover(); reason != nil { // in a request, the server does it
			r = result{err: fmt.Errorf("the source panicked: %v", reason)}
		}
	}()
	ctx = context.WithValue(ctx, caddy.ReplacerCtxKey, caddy.NewReplacer())
	ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, make(map[string]any))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	if err != nil {
		return result{err: err}
	}
	if reset && s.caching != nil {
		if err := s.caching.ResetCache(req); err != nil {
			return result{err: err}
		}
	}
	upstreams, err := s.inner.GetUpstreams(req)
	r.answer, r.err = newAnswer(upstreams, err, time.Now())
	return r
}

// end takes over how a call ended. One that was cancelled says nothing of the source.
func (s *Source) end(c *call, r result, isCancelled bool) {
	switch {
	case r.err == nil:
		c.answer = r.answer
		s.succeeded(r.answer, time.Now())
	case !isCancelled:
		s.failed(r.err, time.Now(), true)
	}
	close(c.done)
}

// release lets another call begin.
func (s *Source) release(c *call) {
	m := s.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running == c {
		m.running = nil
	}
}

// succeeded takes over a good answer.
func (s *Source) succeeded(a *answer, now time.Time) {
	if !s.background && s.memory.failure.Load() == nil { // for each request
		s.memory.newest.Store(a)
		return
	}
	if f := s.memory.succeeded(a); f != nil {
		s.logger.Info("the dynamic source answers again", zap.Duration("failed_for", now.Sub(f.since)), zap.Int("upstreams", len(a.upstreams)))
	}
}

// failed takes over a failure of a call, or of a request.
func (s *Source) failed(err error, now time.Time, ofCall bool) {
	a := s.memory.usable(now, s.stale)
	if s.memory.failed(err, now, ofCall, a != nil) && a != nil { // without an answer, requests say so
		s.logger.Warn("the dynamic source fails; its last answer is used",
			zap.Error(err), zap.Duration("age", now.Sub(a.at)), zap.Int("upstreams", len(a.upstreams)), zap.Duration("stale", s.stale))
	}
}

// noAnswer returns the error for a request for which there is nothing.
func (s *Source) noAnswer(f *failure, now time.Time) error {
	if !s.memory.warnOnce(s.stale) {
		return f.err
	}
	if newest := s.memory.newest.Load(); newest != nil {
		s.logger.Warn("the dynamic source fails; its last answer is too old, so the upstreams in the list of the handler are used",
			zap.Error(f.err), zap.Duration("age", now.Sub(newest.at)), zap.Duration("stale", s.stale))
	} else {
		s.logger.Warn("the dynamic source fails; it has not answered before, so the upstreams in the list of the handler are used", zap.Error(f.err))
	}
	return f.err
}

// ResetCache is called before each retry. A source with a cache is asked again then, but
// not if it fails.
func (s *Source) ResetCache(r *http.Request) error {
	switch {
	case s.caching == nil || s.memory.failure.Load() != nil:
		return nil
	case s.background:
		s.memory.expire(time.Now())
		return nil
	}
	return s.caching.ResetCache(r)
}

// Close ends what the source does in the background. Requests that are still in flight
// get the last answer.
func (s *Source) Close() error {
	s.cancel()
	s.memory.mu.Lock()
	last := s.last
	s.memory.mu.Unlock()
	if last != nil {
		<-last.ended
	}
	return closeMemory(s.key)
}

// Interface guard
var _ reverseproxy.CachingUpstreamSource = (*Source)(nil)
