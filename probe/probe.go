// SPDX-License-Identifier: Apache-2.0

// Package probe holds the kinds of health check that the selection policy
// alive knows. Each is a Caddy module in the namespace alive.probes. A module of
// anybody's that is registered there and implements [Prober] can be named in a
// check block like the ones here: the package exec below this one is an example.
//
// A kind that also implements caddyfile.Unmarshaler has its arguments and its
// lines of the block handed to it. The options that all checks have in common
// (name, interval, fast_interval, down_interval, timeout, passes, fails, jitter,
// port, address, proxy_protocol, keep_connection) are taken out before, so a kind
// cannot have options of these names. Its JSON fields are what tells two checks of
// the kind apart.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
)

// A Prober asks an upstream once whether it is alive.
//
// Probe returns nil if it is, [ErrDraining] if it is but wants no new requests,
// and otherwise an error whose text tells a person why not. It must return soon
// after ctx is done, keep memory bounded whatever the upstream answers, and may
// be called for many upstreams at once.
//
// A Prober may implement fmt.Stringer to be shown with its arguments, as
// "http /healthz": with what tells two checks of one upstream apart, and with
// nothing that may be secret. String is called before Provision, so placeholders
// are shown as they are written.
type Prober interface {
	Probe(ctx context.Context, up Upstream) error
}

// ErrDraining is what Probe returns, as it is or wrapped, for an upstream that
// is alive and asks for no new requests. Those are kept from it at once, while
// any other can serve.
var ErrDraining = errors.New("alive, but no new requests are wanted")

// UpstreamValidator may be implemented by a Prober that cannot probe every
// upstream. An error stops the config from loading.
type UpstreamValidator interface {
	ValidateUpstream(up Upstream) error
}

// NoRequests may be implemented by a Prober that does not use Transport, so that it is
// an error to ask for its connection to be kept. Whether it does goes by the type alone.
type NoRequests interface {
	// NoRequests is not called.
	NoRequests()
}

// Overrider may be implemented by a Prober that reaches upstreams in another way
// than the proxy does.
type Overrider interface {
	// Overrides is called once, after the Prober was provisioned.
	Overrides() Overrides
}

// Overrides says in what the way of a probe differs from that of a request. The
// zero value says in nothing.
type Overrides struct {
	// Scheme is "http" or "https".
	Scheme string

	// ServerName is the name that the certificate of the upstream has to be for,
	// and that it is asked for.
	ServerName string

	// InsecureSkipVerify accepts any certificate.
	InsecureSkipVerify bool

	// HTTP2 speaks HTTP/2 only, with TLS or without.
	HTTP2 bool

	// FreshConnection has every probe connect anew. That is the default; it is an error
	// beside keep_connection, and logs a warning that says so otherwise.
	FreshConnection bool

	// NoConnection says that probes use neither Transport nor Dial, nor DialTLS, so
	// that it is an error to ask for a PROXY protocol header.
	NoConnection bool
}

// Upstream is one backend, and how probes of one check reach it: as the proxy
// that it belongs to does, but for what the check says otherwise.
type Upstream struct {
	// Address is where it is, as in the proxy's list: "app1:8080",
	// "unix//run/app.sock".
	Address string

	// At is where it is probed, in the same form: its address, unless the options
	// port or address say otherwise.
	At string

	// Scheme is "http" or "https", as requests would be sent.
	Scheme string

	// Host is the host and port for request URLs and the Host header.
	Host string

	// Transport sends requests as the proxy does: with its TLS trust, client
	// certificate, HTTP versions, PROXY protocol and dialer, whatever host the URL
	// names. Each request has a connection of its own, which ends when the body of
	// the answer is closed; with the option keep_connection, one is kept for further
	// requests for a minute at most, as long as their methods are safe. Over HTTP/3
	// and third-party transports, connections are the proxy's. It is nil where the
	// proxy does not speak HTTP, as with FastCGI.
	Transport http.RoundTripper

	// Dial connects as the proxy does, before any TLS handshake. It is nil where
	// that is not how the proxy reaches it, as with HTTP/3.
	Dial func(ctx context.Context) (net.Conn, error)

	// DialTLS connects and completes the TLS handshake, as the proxy does or would.
	// Configure, if not nil, may change the settings, which are this connection's
	// own. It is nil where Dial is.
	DialTLS func(ctx context.Context, configure func(*tls.Config)) (*tls.Conn, error)
}
