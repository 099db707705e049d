// SPDX-License-Identifier: Apache-2.0

// Package conn sends requests to one upstream over connections of its own: a new one
// for each request, or one that is kept for the next requests for a bounded time.
//
// It must not know Caddy, and not what the requests are for.
//
// Transport.mu guards which connection is kept. It is held for moments only, and no
// other lock is taken and no connection is opened, used or closed while it is held.
package conn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// A Conn is one connection, over which requests are sent one after the other.
type Conn interface {
	http.RoundTripper
	// Usable reports whether another request can be sent. It is called between
	// requests only.
	Usable() bool
	// Close ends the connection, and a request on it.
	Close() error
}

// Transport is an http.RoundTripper to one upstream, whatever host a request
// names. By default each request has a connection of its own, announces that
// ("Connection: close"), and the connection ends with it. With MaxAge, at most one
// connection is kept between requests. Requests that overlap have further ones, which
// end with them.
//
// A request that fails on a kept connection is sent again over a new one, whose answer
// decides: the other side may close an idle connection at any time, and a firewall may
// drop it silently, and neither is a failure of the upstream. So a request whose method
// is not safe (RFC 9110, section 9.2.1) always has a new connection.
type Transport struct {
	// Open connects.
	Open func(ctx context.Context) (Conn, error)
	// MaxAge is how long a connection is kept. 0 or less: each request has its own.
	MaxAge time.Duration
	// GaveUp, if not nil, is called once when no connection is kept from now on,
	// with the error of the last one that was. No lock is held during the call.
	GaveUp func(error)

	mu         sync.Mutex // guards all below, and the generation of each keptConn
	kept       *keptConn  // idle, nil if there is none
	generation int        // counts renewals, or expired if no connection is kept any more
	misses     int        // requests in a row that failed on a kept connection only
	closed     bool
}

// maxMisses is after how many misses no connection is kept any more.
const maxMisses = 2

// expired is the generation of a connection that is not kept after its request.
const expired = -1

// keptConn is a connection that may be kept.
type keptConn struct {
	Conn
	expire     *time.Timer // ends it at its MaxAge if it is idle; nil if it is not kept
	end        func()      // closes it
	generation int         // guarded by Transport.mu
}

func newKeptConn(c Conn, generation int) *keptConn {
	k := &keptConn{Conn: c, generation: generation}
	k.end = func() { _ = k.Close() }
	return k
}

// Close ends the connection.
func (k *keptConn) Close() error {
	if k.expire != nil {
		k.expire.Stop()
	}
	return k.Conn.Close()
}

// RoundTrip sends the request and returns the answer once its header is there.
// When the body is closed, the connection is ready for the next request or is closed.
// It is closed when the context of the request ends before that.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.MaxAge <= 0 || !repeatable(req) {
		return t.sendOnOwn(req)
	}
	kept, generation := t.take()
	if generation == expired {
		return t.sendOnOwn(req)
	}
	if kept == nil {
		return t.sendOnNew(req, generation)
	}
	resp, failed := t.sendOnKept(kept, req)
	if failed == nil || req.Context().Err() != nil {
		return resp, failed
	}
	again, err := rewind(req)
	if err != nil {
		return nil, failed
	}
	if resp, err = t.sendOnNew(again, generation); err == nil {
		t.miss(failed)
	}
	return resp, err
}

// sendOnOwn sends the request over a connection that ends with it.
func (t *Transport) sendOnOwn(req *http.Request) (*http.Response, error) {
	opened, err := t.open(req)
	if err != nil {
		return nil, err
	}
	last := *req
	last.Close = true // so that the other side closes the connection, too
	return t.roundTrip(newKeptConn(opened, expired), &last)
}

// sendOnNew sends the request over a new connection that may be kept. It is not kept if
// the answer took more than half of the time that the request had: the next request could
// not be sent a second time.
func (t *Transport) sendOnNew(req *http.Request, generation int) (*http.Response, error) {
	half, limited := halfOf(req.Context())
	opened, err := t.open(req)
	if err != nil {
		return nil, err
	}
	c := newKeptConn(opened, generation)
	c.expire = time.AfterFunc(t.MaxAge, func() { t.expire(c) })
	began := time.Now()
	resp, err := t.roundTrip(c, req)
	if err == nil && limited && time.Since(began) > half {
		t.expire(c)
	}
	return resp, err
}

// errSilent says that a kept connection did not answer.
var errSilent = errors.New("no answer within half of the time")

// sendOnKept sends the request over a kept connection, which has half of the time to
// answer.
func (t *Transport) sendOnKept(c *keptConn, req *http.Request) (*http.Response, error) {
	stop := func() bool { return true }
	if half, limited := halfOf(req.Context()); limited {
		stop = time.AfterFunc(half, c.end).Stop
	}
	resp, err := t.roundTrip(c, req)
	switch {
	case !stop() && req.Context().Err() == nil:
		if err == nil { // the answer came when the time was just over
			_ = resp.Body.Close()
		}
		return nil, errSilent
	case err == nil && resp.StatusCode == http.StatusRequestTimeout:
		// it refers to the time in which the connection was idle
		t.expire(c)
		_ = resp.Body.Close()
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	case err == nil:
		t.mu.Lock()
		t.misses = 0
		t.mu.Unlock()
	}
	return resp, err
}

// halfOf returns half of the time that a context has left, if it has a deadline.
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
		return nil, errors.New("the body of the request cannot be read again")
	}
	again := *req
	var err error
	again.Body, err = req.GetBody()
	return &again, err
}

// miss counts a request that failed on a kept connection and not on a new one.
func (t *Transport) miss(failed error) {
	t.mu.Lock()
	t.misses++
	last := t.misses == maxMisses
	var left *keptConn // of a request that overlapped
	if last {
		t.generation = expired
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
func (t *Transport) open(req *http.Request) (Conn, error) {
	opened, err := t.Open(req.Context())
	if err != nil && req.Body != nil {
		_ = req.Body.Close()
	}
	return opened, err
}

// roundTrip sends the request over the connection. If the context ends before the body
// of the answer is closed, the connection is closed; else it is put back then.
func (t *Transport) roundTrip(c *keptConn, req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	stop := context.AfterFunc(ctx, c.end)
	resp, err := c.RoundTrip(req)
	if err != nil {
		stop()
		c.end()
		if ctx.Err() != nil {
			err = ctx.Err() // and not that the connection is closed
		}
		return nil, err
	}
	resp.Body = &answer{ReadCloser: resp.Body, ctx: ctx, stop: stop, to: t, conn: c, last: req.Close}
	return resp, nil
}

// Standard is a connection of net/http: HTTP/1.1 or HTTP/2, over TLS or not,
// through a forward proxy or not.
type Standard struct{ *http.ClientConn }

// Usable reports whether another request can be sent.
func (s Standard) Usable() bool { return s.Err() == nil && s.Available() > 0 }

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
	stop func() bool // the end of ctx no longer closes the connection
	to   *Transport
	conn *keptConn // nil when it was given back
	last bool      // the connection ends with this answer
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
	if a.conn == nil {
		return a.ReadCloser.Close()
	}
	c := a.conn
	a.conn = nil
	if a.last {
		a.stop()
		c.end() // first, because closing the body may wait for what the other side still sends
		_ = a.ReadCloser.Close()
		return nil
	}
	err := a.ReadCloser.Close()
	if a.stop() { // else it is being closed
		a.to.put(c)
	}
	return err
}

// take returns the connection that is kept, for one request, or nil, and the generation
// of a connection that is opened now: expired if that would not be kept.
func (t *Transport) take() (kept *keptConn, generation int) {
	t.mu.Lock()
	kept, generation = t.kept, t.generation
	t.kept = nil
	t.mu.Unlock()
	if kept != nil && !kept.Usable() {
		_ = kept.Close()
		kept = nil
	}
	return kept, generation
}

// put keeps a connection, unless it has expired or another one is kept and usable.
func (t *Transport) put(c *keptConn) {
	t.mu.Lock()
	other := t.kept
	t.kept = nil
	t.mu.Unlock()
	if other != nil {
		if other.Usable() {
			c, other = other, c
		}
		_ = other.Close()
	}
	t.mu.Lock()
	keep := !t.closed && t.kept == nil && c.generation != expired && c.generation == t.generation
	if keep {
		t.kept = c
	}
	t.mu.Unlock()
	if !keep {
		_ = c.Close()
	}
}

// expire ends a connection that is too old: now, or after the request that it is in use
// for.
func (t *Transport) expire(c *keptConn) {
	t.mu.Lock()
	c.generation = expired
	idle := t.kept == c
	if idle {
		t.kept = nil
	}
	t.mu.Unlock()
	if idle {
		_ = c.Close()
	}
}

// Renew makes further requests use a new connection.
func (t *Transport) Renew() {
	t.mu.Lock()
	kept := t.kept
	t.kept = nil
	if t.generation != expired {
		t.generation++
	}
	t.mu.Unlock()
	if kept != nil {
		_ = kept.Close()
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
