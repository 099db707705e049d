// SPDX-License-Identifier: Apache-2.0

// Package wire sends requests to one upstream over a connection of its own,
// kept for the next request for a bounded time. It knows neither Caddy nor what
// the requests are for.
package wire

import (
	"context"
	"errors"
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
// names, over at most one connection that is kept between requests. Requests
// that overlap have further ones, which end with them.
//
// A request that a kept connection fails is sent again over a new one: the
// other side may close what is idle at any time, and that is no failure. So a
// request whose method is not safe (RFC 9110, section 9.2.1) has always a new one.
type Transport struct {
	// Open connects.
	Open func(ctx context.Context) (Line, error)
	// MaxAge is how long a connection is kept. 0 or less: each request has its own.
	MaxAge time.Duration

	mu     sync.Mutex
	kept   *keptLine // idle, nil if there is none
	age    int       // counts renewals
	closed bool
}

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
// The connection is ready for the next request when the body was closed, and
// is closed when the context of the request ends before that.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	if t.MaxAge <= 0 || !repeatable(req) {
		line, err := t.open(req)
		if err != nil {
			return nil, err
		}
		last := *req
		last.Close = true // so that the other side closes it, too
		return t.roundTrip(newLine(line, spent), &last)
	}
	line, age := t.take()
	if line != nil {
		resp, err := t.roundTrip(line, req)
		if err == nil || ctx.Err() != nil {
			return resp, err
		}
		if req.Body != nil && req.Body != http.NoBody {
			if req.GetBody == nil {
				return nil, err
			}
			again := *req
			if again.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
			req = &again
		}
	}
	opened, err := t.open(req)
	if err != nil {
		return nil, err
	}
	line = newLine(opened, age)
	line.expire = time.AfterFunc(t.MaxAge, func() { t.expire(line) })
	return t.roundTrip(line, req)
}

// open connects for a request, and closes its body if that fails, as everybody
// does who takes requests.
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
	resp.Body = &answer{ReadCloser: resp.Body, ctx: ctx, stop: stop, to: t, line: line}
	return resp, nil
}

// afterFunc is [context.AfterFunc], but for what that adds around a context which can
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
	err := a.ReadCloser.Close()
	if a.line != nil {
		if a.stop() { // else it is being closed
			a.to.put(a.line)
		}
		a.line = nil
	}
	return err
}

// take returns the connection that is kept, for one request, or nil, and how old
// one would be that is opened now.
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
	if !t.closed && line.age == t.age && (t.kept == nil || !t.kept.Usable()) {
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
	t.age++
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
