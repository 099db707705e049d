// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/pires/go-proxyproto"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/conn"
	"github.com/caddy-alive/caddy-alive/internal/placeholder"
)

// Route is how the probes of one check reach one upstream: as the requests of its handler
// do, unless the check says otherwise.
type Route struct {
	// Address is where the upstream is, as in the handler's list.
	Address string
	// At is where it is probed, in the same form.
	At string
	// Scheme is "http" or "https", as requests would be sent.
	Scheme string
	// Host is the host and port for the URLs and Host headers of requests.
	Host string
	// DefaultHost is the Host header of requests that name none, empty for Host.
	DefaultHost string
	// RoundTripper sends requests. It is nil where the handler uses FastCGI and the check
	// needs a version of HTTP.
	RoundTripper http.RoundTripper

	transport *Transport
	key       routeKey
	bound     bool // a probe cannot outlive the handler, since it uses the handler's transport

	upstream, at  reverseproxy.DialInfo // the upstream, and where it is probed
	forwardProxy  *url.URL
	proxyProtocol []byte          // the header to send first
	tls           *tls.Config     // nil without TLS
	connection    *conn.Transport // nil if connections are the handler's
}

// routeKey tells whether two routes are the same, except for what the kind of probe says:
// that is part of the identity of the check.
type routeKey struct {
	upstream       string
	at             string
	proxyProtocol  string
	keepConnection bool
	defaultHost    string
	transport      transportKey
}

// Route returns the route of a check to an upstream, or why the check cannot work for it.
// The error is [ErrPerRequest] if the upstream is reached in a way that depends on the
// request.
func (t *Transport) Route(upstream Upstream, check *Check) (*Route, error) {
	r, err := t.route(upstream, check)
	if err == nil && check.Validate != nil {
		err = check.Validate(r)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (t *Transport) route(upstream Upstream, check *Check) (*Route, error) {
	at, err := check.where(upstream.at)
	if err != nil {
		return nil, err
	}
	r := &Route{transport: t, Address: upstream.Address, At: upstream.Address, DefaultHost: check.DefaultHost, upstream: dialInfo(upstream.at), at: dialInfo(at)}
	r.Host = r.at.Address
	if r.at != r.upstream {
		r.At = strings.TrimPrefix(r.at.String(), "tcp/")
	}
	if at.IsUnixNetwork() {
		r.Host = "localhost" // a path is no host
	}

	overrides := check.Overrides
	target := &url.URL{Scheme: "http", Host: r.Host}
	if overrides.Scheme != "" {
		target.Scheme = overrides.Scheme
	} else if t.speaks != fastCGI {
		t.override(target, r.at.Port)
	}
	r.Scheme = target.Scheme
	if r.Scheme != "https" && (overrides.ServerName != "" || overrides.InsecureSkipVerify) {
		return nil, errors.New("tls_server_name and tls_insecure_skip_verify need TLS, but probes do not use TLS here; set scheme https")
	}
	version := t.proxyProtocol
	if check.ProxyProtocol != "" {
		version = strings.TrimPrefix(check.ProxyProtocol, "off")
	}
	if r.proxyProtocol, err = proxyHeader(version); err != nil {
		return nil, err
	}

	// probes over TCP are possible although the handler uses HTTP/3 or FastCGI
	own := t.speaks == overTCP || t.speaks == overQUIC && (r.Scheme == "http" || overrides.HTTP1 || overrides.HTTP2) ||
		t.speaks == fastCGI && overrides.Scheme != ""
	if t.speaks == thirdParty || t.speaks == overQUIC && !own {
		if overrides != (Overrides{NoConnection: overrides.NoConnection}) || version != t.proxyProtocol || check.KeepConnection {
			return nil, errors.New("over HTTP/3 and transports of other plugins, probes are sent by the handler's own transport: " +
				"scheme, version, tls_server_name, tls_insecure_skip_verify, keep_connection, fresh_connection and proxy_protocol cannot be set, and the kind tls cannot be used, nor grpc over transports of other plugins")
		}
		r.bound = true
	}
	if err := r.findForwardProxy(target); err != nil {
		return nil, err
	}
	if r.Scheme == "https" && t.speaks != thirdParty {
		if err := r.configureTLS(overrides); err != nil {
			return nil, err
		}
	}
	r.key = routeKey{upstream: r.upstream.String(), at: r.at.String(), proxyProtocol: version, keepConnection: check.KeepConnection, defaultHost: check.DefaultHost, transport: t.key}
	if r.forwardProxy != nil {
		r.key.transport.proxy = r.forwardProxy.String()
	}
	switch {
	case r.bound:
		r.RoundTripper = handlersTransport{r}
	case own:
		r.useOwnConnections(overrides, check.KeepConnection)
	case !overrides.HTTP1 && !overrides.HTTP2 && !check.NoRequests:
		if err := checkFastCGI(check); err != nil {
			return nil, err
		}
		r.RoundTripper = &overFastCGI{Route: r}
		r.key.transport.config += " " + t.fastCGIConfig
	}
	return r, nil
}

// proxyHeader returns the PROXY protocol header of a connection that is made for no
// client: UNKNOWN in version 1, LOCAL in version 2 (sections 2.1 and 2.2 of its
// specification).
func proxyHeader(version string) ([]byte, error) {
	header := proxyproto.Header{Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	switch version {
	case "":
		return nil, nil
	case "v1":
		header.Version = 1
	case "v2":
		header.Version = 2
	default:
		return nil, fmt.Errorf("unknown version '%s' of the PROXY protocol", version)
	}
	return header.Format()
}

// findForwardProxy finds the forward proxy that requests would go through, if any.
func (r *Route) findForwardProxy(target *url.URL) (err error) {
	if r.transport.speaks == overTCP && r.transport.base.Proxy != nil {
		if r.forwardProxy, err = r.transport.base.Proxy(&http.Request{Method: http.MethodGet, URL: target}); err != nil {
			return fmt.Errorf("finding its forward proxy: %v", err)
		}
	}
	return nil
}

// configureTLS makes the TLS settings: those of the handler, except for the overrides.
func (r *Route) configureTLS(overrides Overrides) error {
	r.tls = new(tls.Config)
	if settings := r.transport.base.TLSClientConfig; settings != nil {
		r.tls = settings.Clone()
	}
	if overrides.ServerName != "" {
		r.tls.ServerName = overrides.ServerName
	}
	r.tls.ServerName = r.addPlaceholders(constants()).ReplaceKnown(r.tls.ServerName, "")
	if strings.Contains(r.tls.ServerName, "{") {
		return ErrPerRequest
	}
	if r.tls.ServerName == "" {
		r.tls.ServerName = (&url.URL{Host: r.Host}).Hostname()
	}
	if overrides.HTTP1 {
		r.tls.NextProtos = nil // they have HTTP/2, since the handler negotiates it
	}
	if overrides.InsecureSkipVerify {
		r.tls.InsecureSkipVerify = true
	}
	return nil
}

// Placeholder returns the value of a placeholder of the upstream, and whether it is one.
func (r *Route) Placeholder(name string) (any, bool) { return placeholder.Of(r.upstream, name) }

// addPlaceholders adds those of the upstream to a replacer.
func (r *Route) addPlaceholders(repl *caddy.Replacer) *caddy.Replacer {
	repl.Map(r.Placeholder)
	repl.Set("http.reverse_proxy.upstream.address", r.upstream.String())
	return repl
}
