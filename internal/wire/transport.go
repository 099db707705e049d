// SPDX-License-Identifier: Apache-2.0

// Package wire sends requests to one upstream over a connection of its own: a new
// one for each request, or one that is kept for the next request for a bounded time.
// It knows neither Caddy nor what the requests are for.
package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// A Line is one connection that requests are sent over, one after the other.
type Line interface {
	http.RoundTripper
	// Usable reports whether another request can be sent. It is asked between
	// requests only.
	Usable() bool
	// Close ends the connection, and a request on it.
	Close() error
}

// Transport is an http.RoundTripper to one upstream, whatever host a request
// names. By default each request has a connection of its own, says so
// ("Connection: close"), and the connection ends with it. With MaxAge, at most one
// is kept between requests; requests that overlap have further ones, which end with
// them.
//
// A request that a kept connection fails is sent again over a new one, whose answer
// decides: the other side may close what is idle at any time, and a firewall may
// forget it without a word, and neither is a failure of the upstream. So a request
// whose method is not safe (RFC 9110, section 9.2.1) always has a new one.
type Transport struct {
	// Open connects.
	Open func(ctx context.Context) (Line, error)
	// MaxAge is how long a connection is kept. 0 or less: each request has its own.
	MaxAge time.Duration
	// GaveUp, if not nil, is called once when no connection is kept from now on,
	// with the error of the last one that was.
	GaveUp func(error)

	mu     sync.Mutex
	kept   *keptLine // idle, nil if there is none
	age    int       // counts renewals
	misses int       // requests in a row that a kept connection failed, and a new one did not
	closed bool
}

// maxMisses is after how many misses no connection is kept any more.
const maxMisses = 2

// spent is the age of a line that is not kept.
const spent = -1

// keptLine is a line that may be kept.
type keptLine struct {
	Line
	expire *time.Timer // ends it when it is idle then; nil if it is not kept
	end    func()      // closes it
	age    int         // when it was opened; guarded by Transport.mu
}

func newLine(line Line, age int) *keptLine {
	l := &keptLine{Line: line, age: age}
	l.end = func() { _ = l.Close() }
	return l
}

// Close ends the line.
func (l *keptLine) Close() error {
	if l.expire != nil {
		l.expire.Stop()
	}
	return l.Line.Close()
}

// RoundTrip sends the request and returns the answer once its header is there.
// The connection is ready for the next request, or closed, when the body was closed,
// and is closed when the context of the request ends before that.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.MaxAge <= 0 || !repeatable(req) {
		return t.askOnce(req)
	}
	line, age := t.take()
	if age == spent {
		return t.askOnce(req)
	}
	if line == nil {
		return t.askAnew(req, age)
	}
	resp, failed := t.askKept(line, req)
	if failed == nil || req.Context().Err() != nil {
		return resp, failed
	}
	again, err := rewind(req)
	if err != nil {
		return nil, failed
	}
	if resp, err = t.askAnew(again, age); err == nil {
		t.miss(failed)
	}
	return resp, err
}

// askOnce sends the request over a connection of its own.
func (t *Transport) askOnce(req *http.Request) (*http.Response, error) {
	opened, err := t.open(req)
	if err != nil {
		return nil, err
	}
	last := *req
	last.Close = true // so that the other side closes it, too
	return t.roundTrip(newLine(opened, spent), &last)
}

// askAnew sends the request over a new connection that may be kept. It is not when the
// answer took more than half of the time that there was: the next request could not be
// sent a second time.
func (t *Transport) askAnew(req *http.Request, age int) (*http.Response, error) {
	half, limited := halfOf(req.Context())
	opened, err := t.open(req)
	if err != nil {
		return nil, err
	}
	line := newLine(opened, age)
	line.expire = time.AfterFunc(t.MaxAge, func() { t.expire(line) })
	began := time.Now()
	resp, err := t.roundTrip(line, req)
	if err == nil && limited && time.Since(began) > half {
		t.expire(line)
	}
	return resp, err
}

// errSilent is that a kept connection is silent.
var errSilent = errors.New("no answer within half of the time")

// askKept sends the request over a kept connection, which has half of the time to
// answer.
func (t *Transport) askKept(line *keptLine, req *http.Request) (*http.Response, error) {
	stop := func() bool { return true }
	if half, limited := halfOf(req.Context()); limited {
		stop = time.AfterFunc(half, line.end).Stop
	}
	resp, err := t.roundTrip(line, req)
	switch {
	case !stop() && req.Context().Err() == nil:
		if err == nil { // at the very moment
			_ = resp.Body.Close()
		}
		return nil, errSilent
	case err == nil && resp.StatusCode == http.StatusRequestTimeout:
		// about the time in which it was idle
		t.expire(line)
		_ = resp.Body.Close()
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	case err == nil:
		t.mu.Lock()
		t.misses = 0
		t.mu.Unlock()
	}
	return resp, err
}

// halfOf returns half of the time that a context has left, if it has an end.
func halfOf(ctx context.Context) (half time.Duration, limited bool) {
	limit, limited := ctx.Deadline()
	if !limited {
		return 0, false
	}
	return time.Until(limit) / 2, true
}

// rewind returns a request that was sent, to be sent again.
func rewind(req *http.Request) (*http.Request, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return req, nil
	}
	if req.GetBody == nil {
		return nil, errors.New("the body of the request is gone")
	}
	again := *req
	var err error
	again.Body, err = req.GetBody()
	return &again, err
}

// miss counts a request that a kept connection failed and a new one did not.
func (t *Transport) miss(failed error) {
	t.mu.Lock()
	t.misses++
	last := t.misses == maxMisses
	var left *keptLine // of a request that overlapped
	if last {
		t.age = spent
		left, t.kept = t.kept, nil
	}
	t.mu.Unlock()
	if left != nil {
		_ = left.Close()
	}
	if last && t.GaveUp != nil {
		t.GaveUp(failed)
	}
}

// open connects for a request, and closes its body if that fails, as every
// http.RoundTripper does.
func (t *Transport) open(req *http.Request) (Line, error) {
	line, err := t.Open(req.Context())
	if err != nil && req.Body != nil {
		_ = req.Body.Close()
	}
	return line, err
}

// roundTrip sends the request over the line, which is closed if the context ends
// before the body of the answer was closed; else it is put back then.
func (t *Transport) roundTrip(line *keptLine, req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	stop := afterFunc(ctx, line.end)
	resp, err := line.RoundTrip(req)
	if err != nil {
		stop()
		line.end()
		if ctx.Err() != nil {
			err = ctx.Err() // and not that the connection is closed
		}
		return nil, err
	}
	resp.Body = &answer{ReadCloser: resp.Body, ctx: ctx, stop: stop, to: t, line: line, last: req.Close}
	return resp, nil
}

// afterFunc is [context.AfterFunc] without what that adds around a context which can
// do it by itself.
func afterFunc(ctx context.Context, f func()) (stop func() bool) {
	if own, ok := ctx.(interface{ AfterFunc(f func()) func() bool }); ok {
		return own.AfterFunc(f)
	}
	return context.AfterFunc(ctx, f)
}

// Standard is a connection of net/http: HTTP/1.1 or HTTP/2, over TLS or not,
// through a forward proxy or not.
type Standard struct{ *http.ClientConn }

// Usable reports whether another request can be sent.
func (l Standard) Usable() bool { return l.Err() == nil && l.Available() > 0 }

// repeatable reports whether a request can be sent twice without harm.
func repeatable(req *http.Request) bool {
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	_, ok := req.Header["Idempotency-Key"]
	return ok
}

// answer is the body of an answer.
type answer struct {
	io.ReadCloser
	ctx  context.Context
	stop func() bool // has the end of ctx not close the line
	to   *Transport
	line *keptLine // nil when it was given back
	last bool      // it ends its connection
}

// Read reads from the body.
func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && a.ctx.Err() != nil {
		err = a.ctx.Err()
	}
	return n, err
}

// Close ends the request.
func (a *answer) Close() error {
	if a.line == nil {
		return a.ReadCloser.Close()
	}
	line := a.line
	a.line = nil
	if a.last { // at first, since the body may wait for what the other side still sends
		a.stop()
		line.end()
		_ = a.ReadCloser.Close() // which may complain about that
		return nil
	}
	err := a.ReadCloser.Close()
	if a.stop() { // else it is being closed
		a.to.put(line)
	}
	return err
}

// take returns the connection that is kept, for one request, or nil, and how old
// one would be that is opened now: spent if it would not be kept.
func (t *Transport) take() (line *keptLine, age int) {
	t.mu.Lock()
	line, age = t.kept, t.age
	t.kept = nil
	t.mu.Unlock()
	if line != nil && !line.Usable() {
		_ = line.Close()
		line = nil
	}
	return line, age
}

// put keeps a connection, unless it has come of age or there is another.
func (t *Transport) put(line *keptLine) {
	t.mu.Lock()
	left := line
	if !t.closed && line.age != spent && line.age == t.age && (t.kept == nil || !t.kept.Usable()) {
		left, t.kept = t.kept, line
	}
	t.mu.Unlock()
	if left != nil {
		_ = left.Close()
	}
}

// expire ends a connection that is too old, or after the request that it is used
// for.
func (t *Transport) expire(line *keptLine) {
	t.mu.Lock()
	line.age = spent
	idle := t.kept == line
	if idle {
		t.kept = nil
	}
	t.mu.Unlock()
	if idle {
		_ = line.Close()
	}
}

// Renew has further requests sent over a new connection.
func (t *Transport) Renew() {
	t.mu.Lock()
	line := t.kept
	t.kept = nil
	if t.age != spent {
		t.age++
	}
	t.mu.Unlock()
	if line != nil {
		_ = line.Close()
	}
}

// Close ends the connection that is kept, and keeps none from now on. Requests
// under way are not disturbed, and further ones have connections of their own.
func (t *Transport) Close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.Renew()
}
