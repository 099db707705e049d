// SPDX-License-Identifier: Apache-2.0

// Package probe holds the kinds of health check that the selection policy
// alive knows. Each is a Caddy module in the namespace alive.probes; a module
// of anybody's that is registered there and implements [Prober] can be named
// in a check block like the ones here. A kind that also implements
// caddyfile.Unmarshaler has its arguments and its lines of the block handed to
// it, without the options that all checks have in common.
package probe

import (
	"context"
	"net"
	"net/http"
)

// A Prober asks an upstream once whether it is alive.
//
// Probe returns nil if it is, and otherwise an error whose text tells a person
// why not. It must return soon after ctx is done, keep memory bounded whatever
// the upstream answers, and may be called for many upstreams at once. ctx
// carries what Caddy's transports look for in a request: derive from it,
// rather than from another.
//
// A Prober may implement fmt.Stringer to be shown with its arguments, as
// "http /healthz".
type Prober interface {
	Probe(ctx context.Context, up Upstream) error
}

// UpstreamValidator may be implemented by a Prober that cannot probe every
// upstream. An error stops the config from loading.
type UpstreamValidator interface {
	ValidateUpstream(up Upstream) error
}

// Upstream is one backend, and how the proxy that it belongs to reaches it.
type Upstream struct {
	// Address is where it is, as in the proxy's list: "app1:8080",
	// "unix//run/app.sock".
	Address string

	// Scheme is "http" or "https", as requests would be sent.
	Scheme string

	// Host is the host and port for request URLs and the Host header.
	Host string

	// Transport sends requests as the proxy does: with its TLS trust, client
	// certificate, HTTP versions and dialer, whatever host the URL names, but
	// where possible over connections of its own, a new one for every probe.
	// It is nil where the proxy does not speak HTTP, as with FastCGI.
	Transport http.RoundTripper

	// Dial connects as the proxy does, before any TLS handshake. It is nil where
	// that is not how the proxy reaches it, as with HTTP/3.
	Dial func(ctx context.Context) (net.Conn, error)
}
