// SPDX-License-Identifier: Apache-2.0

// Package observer sees how the round trips of a reverse_proxy handler end, and tells the
// witness of the upstream. A [Transport] is the transport of the handler with that around
// it: everything else is as without it. The package does not know which upstreams get
// requests.
//
// Its only lock, that of a body that is read ahead, is taken alone.
package observer

import (
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi"

	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// Transport is the transport of a handler, and sees how each round trip ends.
type Transport struct {
	inner    http.RoundTripper
	traces   bool // the inner one tells when it has a connection
	known    bool // the inner one tells nothing when a round trip is over
	settings *witness.Settings
	hooks    Hooks
}

// Hooks connect a transport to what runs beside it. They are called by round trips of
// requests, with no lock held.
type Hooks struct {
	// Upstream returns what the traffic says of an upstream, nil if it is not observed.
	Upstream func(*reverseproxy.Upstream) *witness.Upstream
	// Tried is called when a request may be sent to another upstream because of how its
	// round trip to this one ended: whether it has failed, and what that counted against
	// the upstream.
	Tried func(r *http.Request, u *reverseproxy.Upstream, failed bool, c witness.Counted)
	// RetriesAnswers says that this can follow from any answer.
	RetriesAnswers bool
	// Placed returns what goes along with a request, nil if nothing does. It is nil if nothing
	// ever does.
	Placed func(*http.Request) *Placement
	// Handles reports whether a route of the handler takes an answer over. It is not nil if
	// Placed is not.
	Handles func(*http.Response) bool
}

// New puts an observer around the transport of a handler.
func New(inner http.RoundTripper, s *witness.Settings, h Hooks) *Transport {
	t := &Transport{inner: inner, settings: s, hooks: h}
	switch inner := inner.(type) {
	case *http.Transport:
		t.known, t.traces = true, true
	case *reverseproxy.HTTPTransport:
		t.known, t.traces = true, !slices.Equal(inner.Versions, []string{"3"})
	case *fastcgi.Transport:
		t.known = true
	}
	return t
}

// RoundTrip sends a request. Probes of Caddy itself pass through unseen. They are known by
// the variables, which only requests of clients have: both know their server.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	info, ok := reverseproxy.GetDialInfo(ctx)
	if !ok || info.Upstream == nil || ctx.Value(caddyhttp.VarsCtxKey) == nil {
		return t.inner.RoundTrip(r)
	}
	var upstream *witness.Upstream
	if !t.settings.Off {
		upstream = t.hooks.Upstream(info.Upstream)
	}
	var counted witness.Counted
	roundTrip := func() (res *http.Response, err error) {
		if upstream == nil {
			return t.inner.RoundTrip(r)
		}
		res, counted, err = t.observe(r, upstream)
		return res, err
	}
	var placed *Placement
	if t.hooks.Placed != nil {
		placed = t.hooks.Placed(r)
	}
	var res *http.Response
	var err error
	if placed == nil {
		res, err = roundTrip()
	} else {
		res, err = t.send(placed, roundTrip)
	}
	if t.hooks.RetriesAnswers || err != nil && ctx.Err() == nil {
		failed := err != nil || t.settings.Accuses(res.StatusCode, res.Header)
		t.hooks.Tried(r, info.Upstream, failed, counted)
	}
	return res, err
}

// observe sends a request, and tells the witness how that ends.
func (t *Transport) observe(r *http.Request, u *witness.Upstream) (res *http.Response, counted witness.Counted, err error) {
	x := t.newExchange()
	trip, sent := &x.own, r
	var content *body
	if r.Body != nil && r.Body != http.NoBody {
		content = &body{request: *r, inner: r.Body}
		content.request.Body = content
		trip, sent = &content.trip, &content.request
	}
	trip.Begin(u)
	if content == nil {
		trip.Wait()
	}
	x.trip = trip
	x.follow(httptrace.ContextClientTrace(r.Context()))
	returned := false
	defer func() {
		if !returned { // the transport has panicked
			trip.Void()
		}
	}()
	res, err = t.inner.RoundTrip(sent)
	returned = true
	switch {
	case err != nil:
		if f, accuses := classify(r.Context(), err, content, t.connectionOf(x)); accuses {
			counted = trip.Fail(f)
		} else {
			trip.Void()
		}
		return res, counted, err // the transport may still call the trace, so x is not used again
	case t.settings.Accuses(res.StatusCode, res.Header):
		counted = trip.Fail(witness.Failure{Cause: witness.Outcome, Reason: fmt.Sprintf("status %d", res.StatusCode), Answered: true})
	default:
		trip.Good()
	}
	if t.known {
		*x = exchange{got1xx: x.got1xx, gotConn: x.gotConn}
		exchanges.Put(x)
	}
	return res, counted, nil
}

// connection is what is known of the connection of a round trip.
type connection = int32

const (
	// none: the transport has not told of one.
	none connection = iota
	fresh
	reused
	// untold: the transport does not tell.
	untold
)

// connectionOf returns what is known of the connection of a round trip that has ended.
func (t *Transport) connectionOf(x *exchange) connection {
	if c := x.connection.Load(); c != none || t.traces {
		return c
	}
	return untold
}

// exchange follows the trace of one round trip. With the transports of Caddy it is used again
// for others, so that a request without a body costs no allocation.
type exchange struct {
	own  witness.Trip // of a request without a body
	trip *witness.Trip
	// connection is a connection, as an atomic word.
	connection atomic.Int32

	next1xx  func(int, textproto.MIMEHeader) error // of the handler
	nextConn func(httptrace.GotConnInfo)           // of the handler
	got1xx   func(int, textproto.MIMEHeader) error
	gotConn  func(httptrace.GotConnInfo)
}

var exchanges = sync.Pool{New: func() any { return makeExchange() }}

func makeExchange() *exchange {
	x := new(exchange)
	x.got1xx = func(status int, header textproto.MIMEHeader) error {
		x.trip.FirstByte()
		if x.next1xx == nil {
			return nil
		}
		return x.next1xx(status, header)
	}
	x.gotConn = func(info httptrace.GotConnInfo) {
		x.connection.Store(fresh)
		if info.Reused {
			x.connection.Store(reused)
		}
		if x.nextConn != nil {
			x.nextConn(info)
		}
	}
	return x
}

// newExchange returns one for a round trip that begins. A transport of another module may use
// the trace later, so there it is used once.
func (t *Transport) newExchange() *exchange {
	if !t.known {
		return makeExchange()
	}
	x := exchanges.Get().(*exchange)
	x.connection.Store(none)
	return x
}

// follow adds the exchange to the trace of a request, which is that of the handler for
// this one round trip.
func (x *exchange) follow(trace *httptrace.ClientTrace) {
	if trace == nil {
		return
	}
	x.next1xx, x.nextConn = trace.Got1xxResponse, trace.GotConn
	trace.Got1xxResponse, trace.GotConn = x.got1xx, x.gotConn
}

// RequestHeaderOps returns the header operations of the transport, nil if it has none.
func (t *Transport) RequestHeaderOps() *headers.HeaderOps {
	if inner, ok := t.inner.(reverseproxy.RequestHeaderOpsTransport); ok {
		return inner.RequestHeaderOps()
	}
	return nil
}

// ProxyProtocolEnabled reports whether the transport sends a PROXY protocol header.
func (t *Transport) ProxyProtocolEnabled() bool {
	inner, ok := t.inner.(reverseproxy.ProxyProtocolTransport)
	return ok && inner.ProxyProtocolEnabled()
}

// RequiresContentLength reports whether the transport needs to know the length of a body.
func (t *Transport) RequiresContentLength() bool {
	inner, ok := t.inner.(reverseproxy.ContentLengthRequiredTransport)
	return ok && inner.RequiresContentLength()
}

// OverrideHealthCheckScheme sets the scheme of a probe of Caddy itself.
func (t *Transport) OverrideHealthCheckScheme(base *url.URL, port string) {
	if inner, ok := t.inner.(reverseproxy.HealthCheckSchemeOverriderTransport); ok {
		inner.OverrideHealthCheckScheme(base, port)
	}
}

// Interface guards
var (
	_ http.RoundTripper                                = (*Transport)(nil)
	_ reverseproxy.RequestHeaderOpsTransport           = (*Transport)(nil)
	_ reverseproxy.ProxyProtocolTransport              = (*Transport)(nil)
	_ reverseproxy.ContentLengthRequiredTransport      = (*Transport)(nil)
	_ reverseproxy.HealthCheckSchemeOverriderTransport = (*Transport)(nil)
)
