// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/conn"
)

const (
	// maxProbeHeader bounds the header of an answer to a probe, in bytes. A health
	// check needs few; without a bound, net/http reads 10 MiB.
	maxProbeHeader = 64 << 10
	// maxProbeBuffer bounds what an HTTP/2 upstream may send ahead, in bytes.
	maxProbeBuffer = 256 << 10
	// maxConnectionAge is how long a connection is kept for further probes, with
	// keep_connection.
	maxConnectionAge = time.Minute
)

// CanDial reports whether Dial and DialTLS reach the upstream as requests do. They do not
// through a forward proxy, which would have to be asked, over UDP, where a datagram can be
// sent although nothing listens, and over HTTP/3.
func (r *Route) CanDial() bool {
	overQUIC := r.transport.speaks == overQUIC && r.bound
	return r.forwardProxy == nil && !strings.HasPrefix(r.at.Network, "udp") && !overQUIC
}

// Dial connects and sends the PROXY protocol header.
func (r *Route) Dial(ctx context.Context) (net.Conn, error) {
	return r.dialTo(ctx, r.at.Network, r.at.Address)
}

func (r *Route) dialTo(ctx context.Context, network, address string) (net.Conn, error) {
	opened, err := r.transport.dial(ctx, network, address)
	if err != nil || r.proxyProtocol == nil {
		return opened, err
	}
	if _, err := opened.Write(r.proxyProtocol); err != nil {
		_ = opened.Close()
		return nil, err
	}
	return opened, nil
}

// DialTLS connects and completes the TLS handshake. Configure, if not nil, may change the
// settings of this connection.
func (r *Route) DialTLS(ctx context.Context, configure func(*tls.Config)) (*tls.Conn, error) {
	if r.tls == nil {
		return nil, errors.New("the probe does not use TLS")
	}
	plain, err := r.Dial(ctx)
	if err != nil {
		return nil, err
	}
	config := r.tls.Clone()
	if configure != nil {
		configure(config)
	}
	if limit := r.transport.base.TLSHandshakeTimeout; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	secure := tls.Client(plain, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = plain.Close()
		return nil, err
	}
	return secure, nil
}

// useOwnConnections makes requests use connections that are not the handler's.
func (r *Route) useOwnConnections(overrides Overrides, keep bool) {
	r.connection = &conn.Transport{Open: r.opener(overrides.HTTP1, overrides.HTTP2)}
	if keep {
		r.connection.MaxAge = maxConnectionAge
	}
	r.RoundTripper = r.connection
	if r.forwardProxy != nil && strings.HasPrefix(r.forwardProxy.Scheme, "http") && r.Scheme == "http" {
		r.RoundTripper = toUpstream{r.connection, r.Host}
	}
}

// opener returns what opens connections for requests; http1 and http2 say that they use
// nothing else.
func (r *Route) opener(http1, http2 bool) func(ctx context.Context) (conn.Conn, error) {
	base := r.transport.base
	h2c := base.Protocols != nil && base.Protocols.UnencryptedHTTP2() && !http1
	limit := base.MaxResponseHeaderBytes
	if limit <= 0 || limit > maxProbeHeader {
		limit = maxProbeHeader
	}
	if r.Scheme == "http" && !h2c && !http2 && r.forwardProxy == nil {
		return func(ctx context.Context) (conn.Conn, error) {
			opened, err := r.Dial(ctx)
			if err != nil {
				return nil, err
			}
			return &conn.HTTP1{Conn: opened, MaxHeader: limit, HeaderTimeout: base.ResponseHeaderTimeout}, nil
		}
	}

	own := base.Clone()
	own.DisableCompression = true
	own.DisableKeepAlives = false // r.connection decides whether they are kept
	own.IdleConnTimeout = 0       // else the rest of an HTTP/2 connection stays for so long after its end
	own.MaxResponseHeaderBytes = limit
	own.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerConnection: maxProbeBuffer, MaxReceiveBufferPerStream: maxProbeBuffer}
	own.DialTLSContext = nil
	own.TLSClientConfig = r.tls
	own.Protocols = new(http.Protocols)
	if r.Scheme == "https" {
		own.Protocols.SetHTTP1(!http2)
		own.Protocols.SetHTTP2(http2 || !http1 && own.TLSNextProto["h2"] != nil)
	} else {
		own.Protocols.SetUnencryptedHTTP2(http2 || h2c)
		own.Protocols.SetHTTP1(!http2 && !h2c)
	}
	own.TLSNextProto = nil // the clone has the HTTP/2 connections of the original there
	own.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if r.forwardProxy != nil {
			return r.dialTo(ctx, network, address)
		}
		return r.Dial(ctx)
	}
	host := r.Host
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(host, "0") // of a unix socket: it is not used
	}
	return func(ctx context.Context) (conn.Conn, error) {
		opened, err := own.NewClientConn(ctx, r.Scheme, host)
		if err != nil {
			return nil, err
		}
		return conn.Standard{ClientConn: opened}, nil
	}
}

// logGivingUp logs when kept connections turn out to be of no use.
func (r *Route) logGivingUp(log upstreamLog) {
	if r.connection == nil {
		return
	}
	r.connection.GaveUp = func(err error) {
		log.with().Warn("two probes in a row failed on a kept connection and passed on a new one: every probe opens its own connection until the next reload; a firewall may drop idle connections, or the upstream closes them",
			zap.Error(err))
	}
}

// renew makes the next probe open a new connection, unless it uses the handler's.
func (r *Route) renew() {
	if r.connection != nil {
		r.connection.Renew()
	}
}

// close ends the connection that is kept, and waits a moment for one that FastCGI uses.
func (r *Route) close() {
	if r.connection != nil {
		r.connection.Close()
	}
	if over, ok := r.RoundTripper.(*overFastCGI); ok {
		over.wait()
	}
}

// handlersTransport sends requests over the handler's own transport.
type handlersTransport struct{ *Route }

// RoundTrip sends a request with what Caddy's transports look for in it. Its variables are
// new for every probe, since a dial may outlive its probe.
func (t handlersTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	// a probe has no client, so a PROXY protocol header names this host
	client := reverseproxy.ProxyProtocolInfo{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)}
	ctx := context.WithValue(req.Context(), caddy.ReplacerCtxKey, t.addPlaceholders(caddy.NewReplacer()))
	ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{"reverse_proxy.proxy_protocol_info": client})
	ctx = context.WithValue(ctx, caddy.CtxKey("reverse_proxy.dial_info"), t.at)
	there := req.Clone(ctx) // the transport may add to the header
	there.Host = cmp.Or(there.Host, there.URL.Host)
	there.URL.Scheme, there.URL.Host = t.Scheme, t.Host // whatever a redirect named
	return t.transport.handlers.RoundTrip(there)
}

// toUpstream sends requests through a forward proxy, which connects to the host that a
// request names. A request of a redirect to another host names the upstream instead.
type toUpstream struct {
	http.RoundTripper
	host string // of the upstream
}

// RoundTrip sends the request.
func (t toUpstream) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != t.host {
		there, target := *req, *req.URL
		target.Host = t.host
		there.URL, there.Host = &target, t.host
		req = &there
	}
	return t.RoundTripper.RoundTrip(req)
}
