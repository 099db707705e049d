// SPDX-License-Identifier: Apache-2.0

// Package probe has the kinds of health check. Each is a Caddy module in the namespace
// alive.probes. A third-party module of that namespace that implements [Prober] can be
// named in a check block, too; the package exec below this one is an example.
//
// A kind that also implements caddyfile.Unmarshaler is given its arguments and its lines
// of the block. The options that all checks have (name, interval, fast_interval,
// down_interval, timeout, passes, fails, jitter, port, address, proxy_protocol,
// keep_connection) are removed before, so a kind cannot have options with these names.
// Two checks of a kind are the same if their JSON is.
//
// The package must not know how often upstreams are probed, what follows from the
// results, or how connections are made: an [Upstream] brings the functions to reach it.
// It has no locks. A Prober does not change after Provision, so it probes many upstreams
// at once.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"

	"github.com/caddyserver/caddy/v2"
)

// A Prober checks once whether an upstream is alive.
//
// Probe returns nil if the upstream is alive, [ErrDraining] if it is alive but wants no
// new requests, and otherwise an error whose text is the reason, written for people. It
// must return soon after ctx is done, keep memory bounded whatever the upstream
// answers, and may be called for many upstreams at once.
//
// A Prober may implement fmt.Stringer, so that it is shown with its arguments, as in
// "http /healthz": with all that tells two checks of one upstream apart, and without
// anything that may be secret. String is called before Provision, so placeholders are
// shown as they are written.
type Prober interface {
	Probe(ctx context.Context, up Upstream) error
}

// ErrDraining is what Probe returns, as it is or wrapped, for an upstream that is alive
// and asks for no new requests. It gets none from then on, as long as another upstream
// can serve.
var ErrDraining = errors.New("alive, but no new requests are wanted")

// UpstreamValidator may be implemented by a Prober that cannot probe every
// upstream. An error stops the config from loading.
type UpstreamValidator interface {
	ValidateUpstream(up Upstream) error
}

// NoRequests may be implemented by a Prober that does not use Transport. The option
// keep_connection is then an error. Only the type counts: the method is not called.
type NoRequests interface {
	// NoRequests is not called.
	NoRequests()
}

// DefaultHostUser may be implemented by a Prober whose requests should have the Host header
// of proxied requests.
type DefaultHostUser interface {
	// UsesDefaultHost reports whether the Prober uses DefaultHost of an [Upstream]. It is
	// called before Provision.
	UsesDefaultHost() bool
}

// Overrider may be implemented by a Prober that reaches upstreams in another way than
// the proxy does.
type Overrider interface {
	// Overrides is called once, after the Prober was provisioned.
	Overrides() Overrides
}

// Overrides are the differences between the connection of a probe and that of a proxied
// request. The zero value has none.
type Overrides struct {
	// Scheme is "http" or "https".
	Scheme string

	// ServerName is sent to the upstream (SNI), and its certificate has to be valid for
	// it.
	ServerName string

	// InsecureSkipVerify accepts any certificate.
	InsecureSkipVerify bool

	// HTTP1 speaks HTTP/1.1 only, and HTTP2 HTTP/2 only, with TLS or without. Not both.
	HTTP1, HTTP2 bool

	// FreshConnection makes every probe open a new connection. That is the default. With
	// keep_connection it is an error, and otherwise it logs a warning that it has no
	// effect.
	FreshConnection bool

	// NoConnection says that probes use none of Transport, Dial and DialTLS. The option
	// proxy_protocol is then an error.
	NoConnection bool
}

// Upstream is one backend, and how the probes of one check reach it: as the proxy does,
// except where the check has other options.
type Upstream struct {
	// Address is its address in the list of the proxy, such as "app1:8080" or
	// "unix//run/app.sock".
	Address string

	// At is the address that is probed, in the same form. It differs from Address if the
	// check has the option port or address.
	At string

	// Scheme is "http" or "https": how to send requests.
	Scheme string

	// Host is the host and port for request URLs and the Host header.
	Host string

	// DefaultHost is the Host header of proxied requests if the proxy sets a constant one,
	// and the kind is a [DefaultHostUser]. It is empty otherwise.
	DefaultHost string

	// Placeholders returns the value of a placeholder of the upstream, without its braces,
	// such as "http.reverse_proxy.upstream.hostport", and whether there is one. It can be
	// given to caddy.Replacer.Map.
	Placeholders caddy.ReplacerFunc

	// Transport sends requests as the proxy does: with its TLS trust, client certificate,
	// HTTP versions, PROXY protocol and dialer, whatever host the URL names. Each request
	// has a connection of its own, which ends when the body of the answer is closed; with
	// the option keep_connection, one is kept for further requests for a minute at most,
	// as long as their methods are safe. With HTTP/3 and third-party transports, probes
	// share the connections of the proxy. Over FastCGI, where each request has a
	// connection of its own anyway, it is nil if the kind asks for a version of HTTP.
	Transport http.RoundTripper

	// Dial connects as the proxy does, before any TLS handshake. It is nil if the proxy
	// reaches the upstream in another way, as with HTTP/3.
	Dial func(ctx context.Context) (net.Conn, error)

	// DialTLS connects and completes the TLS handshake, as the proxy does or would do. The
	// function configure, if not nil, may change the settings, which belong to this
	// connection alone. It is nil if Dial is nil.
	DialTLS func(ctx context.Context, configure func(*tls.Config)) (*tls.Conn, error)
}
