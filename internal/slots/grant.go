// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// Grant is the slot that a request has at an address. It is given back once, as soon as
// Caddy has nothing outstanding there: the round trip has failed, the body of the answer has
// been read or is closed, or the request has ended without a round trip. The zero value has
// none.
type Grant struct {
	mu      sync.Mutex // guards what follows
	address *Address   // nil if it has none
	running bool       // a round trip is under way
	ended   bool       // the context of the request has ended
	ending  *ending
	stop    func() bool   // keeps ending from being called
	inner   io.ReadCloser // the body of the answer
}

// ending tells a grant that its request has ended. One that was never called is used again
// for another grant, so it costs no allocation.
type ending struct {
	grant *Grant
	call  func()
}

// endings are those that can be used again.
var endings sync.Pool

// newEnding returns one for a grant.
func newEnding(g *Grant) *ending {
	e, ok := endings.Get().(*ending)
	if !ok {
		e = new(ending)
		e.call = func() { e.grant.end() }
	}
	e.grant = g
	return e
}

// Hold makes g the slot at an address that was taken for a request.
func (g *Grant) Hold(ctx context.Context, a *Address) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.address = a
	g.ending = newEnding(g)
	g.stop = context.AfterFunc(ctx, g.ending.call) // end waits until this returns
}

// Held reports whether g is a slot that is yet to be given back.
func (g *Grant) Held() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.address != nil
}

// Free gives the slot back, unless that was done.
func (g *Grant) Free() {
	g.mu.Lock()
	a, stop, ending := g.address, g.stop, g.ending
	g.address, g.stop, g.ending = nil, nil, nil
	g.mu.Unlock()
	if a == nil {
		return
	}
	if stop() {
		ending.grant = nil
		endings.Put(ending)
	}
	a.Free()
}

// end follows the end of the request.
func (g *Grant) end() {
	g.mu.Lock()
	g.ended = true
	running := g.running
	g.mu.Unlock()
	if !running {
		g.Free()
	}
}

// Begin says that a round trip begins.
func (g *Grant) Begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running = true
}

// End says that the round trip has ended, and that nothing of it is outstanding.
func (g *Grant) End() {
	g.mu.Lock()
	g.running = false
	g.mu.Unlock()
	g.Free()
}

// Answered says that the round trip has ended, and makes the body of the answer give the
// slot back when it has been read or is closed.
func (g *Grant) Answered(res *http.Response) {
	g.mu.Lock()
	g.running = false
	held, ended := g.address != nil, g.ended
	g.inner = res.Body
	g.mu.Unlock()
	switch {
	case !held:
	case ended, res.Body == nil, res.Body == http.NoBody:
		g.Free()
	case res.StatusCode == http.StatusSwitchingProtocols:
		res.Body = upgraded(g, res.Body)
	default:
		res.Body = (*answer)(g)
	}
}

// answer is the body of an answer.
type answer Grant

// Read reads from the body.
func (b *answer) Read(p []byte) (int, error) {
	n, err := b.inner.Read(p)
	if err != nil {
		(*Grant)(b).Free()
	}
	return n, err
}

// Close closes the body.
func (b *answer) Close() error {
	defer (*Grant)(b).Free()
	return b.inner.Close()
}

// upgraded returns the connection after an answer that switches protocols. It ends when it
// is closed: either side can have ended what it sends long before.
func upgraded(g *Grant, body io.ReadCloser) io.ReadCloser {
	writable, ok := body.(io.ReadWriteCloser)
	if !ok {
		return (*answer)(g) // which the handler refuses
	}
	t := &tunnel{ReadWriteCloser: writable, grant: g}
	if half, ok := body.(interface{ CloseWrite() error }); ok {
		return &halfTunnel{tunnel: t, half: half}
	}
	return t
}

// tunnel is a connection that gives the slot back when it is closed.
type tunnel struct {
	io.ReadWriteCloser
	grant  *Grant
	closed atomic.Bool
}

// Close closes the connection. Further calls do nothing.
func (t *tunnel) Close() error {
	if t.closed.Swap(true) {
		return nil
	}
	defer t.grant.Free()
	return t.ReadWriteCloser.Close()
}

// halfTunnel is one of which the sending half can be closed.
type halfTunnel struct {
	*tunnel
	half interface{ CloseWrite() error }
}

// CloseWrite closes the sending half of the connection.
func (t *halfTunnel) CloseWrite() error { return t.half.CloseWrite() }
