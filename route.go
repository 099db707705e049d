// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/conn"
	"github.com/caddy-alive/caddy-alive/probe"
)

const (
	// maxProbeHeader bounds the header of an answer to a probe, in bytes. A health
	// check needs few; without a bound, net/http reads 10 MiB.
	maxProbeHeader = 64 << 10
	// maxProbeBuffer bounds what an HTTP/2 upstream may send ahead, in bytes.
	maxProbeBuffer = 256 << 10
	// maxProbeConnection is how long a connection is kept for further probes, with
	// keep_connection.
	maxProbeConnection = time.Minute
)

// errPerRequest says that the way to an upstream depends on the request, or can change
// from one to the next, so that a probe cannot go it.
var errPerRequest = errors.New("the TLS server name depends on the request")

// route is how the probes of one check reach one upstream: as the requests of
// its handler do, but for what the check says otherwise.
type route struct {
	*transport
	up    probe.Upstream
	key   routeKey
	bound bool // a probe cannot outlive the handler: its own transport is used

	upstream, at  reverseproxy.DialInfo // the upstream, and where it is probed
	forwardProxy  *url.URL
	proxyProtocol []byte // the header to send first
	tls           *tls.Config
	http2         bool // nothing else

	connection *conn.Transport // nil if connections are the handler's
}

// routeKey tells whether two routes are the same, but for what the kind of probe
// says, which is part of its own identity.
type routeKey struct {
	upstream      string
	at            string
	proxyProtocol string
	keeps         bool // its connection
	transport     transportKey
}

// parseUpstream reads the address of an upstream, in which no placeholders are
// left.
func parseUpstream(address string) (caddy.NetworkAddress, error) {
	upstream, err := caddy.ParseNetworkAddress(address)
	if err != nil {
		return upstream, err
	}
	if n := upstream.PortRangeSize(); n != 1 {
		return upstream, fmt.Errorf("the address must be one socket, not %d", n)
	}
	return upstream, nil
}

// to returns the route of a check to an upstream, given with its address as it is
// in the proxy's list.
func (t *transport) to(upstream caddy.NetworkAddress, address string, check *HealthCheck) (*route, error) {
	at, err := check.where(upstream)
	if err != nil {
		return nil, err
	}
	r := &route{transport: t, upstream: dialInfo(upstream), at: dialInfo(at)}
	r.up = probe.Upstream{Address: address, At: address, Host: r.at.Address}
	if r.at != r.upstream {
		r.up.At = strings.TrimPrefix(r.at.String(), "tcp/")
	}
	if at.IsUnixNetwork() {
		r.up.Host = "localhost" // a path is no host
	}

	differs := check.overrides
	target := &url.URL{Scheme: "http", Host: r.up.Host}
	if differs.Scheme != "" {
		target.Scheme = differs.Scheme
	} else if t.speaks != fastCGI {
		t.override(target, r.at.Port)
	}
	r.up.Scheme = target.Scheme
	if target.Scheme != "https" && (differs.ServerName != "" || differs.InsecureSkipVerify) {
		return nil, errors.New("tls_server_name and tls_insecure_skip_verify need TLS, which probes do not use there; set scheme https if they should")
	}
	version := t.proxyProtocol
	if check.ProxyProtocol != "" {
		version = strings.TrimPrefix(check.ProxyProtocol, "off")
	}
	if r.proxyProtocol, err = proxyHeader(version); err != nil {
		return nil, err
	}

	// what goes over TCP can be had beside a handler that speaks HTTP/3
	own := t.speaks == overTCP || t.speaks == overQUIC && (target.Scheme == "http" || differs.HTTP2) ||
		t.speaks == fastCGI && differs.Scheme != ""
	if t.speaks == thirdParty || t.speaks == overQUIC && !own {
		if differs != (probe.Overrides{NoConnection: differs.NoConnection}) || version != t.proxyProtocol || check.KeepConnection {
			return nil, errors.New("over HTTP/3 and transports of other plugins, probes are sent by the handler's own transport: " +
				"scheme, tls_server_name, tls_insecure_skip_verify, keep_connection, fresh_connection and proxy_protocol cannot be set, and it takes another kind than tls or grpc")
		}
		r.bound = true
	}
	if err := r.findForwardProxy(target); err != nil {
		return nil, err
	}
	if target.Scheme == "https" && t.speaks != thirdParty {
		if err := r.configureTLS(differs); err != nil {
			return nil, err
		}
	}
	r.key = routeKey{upstream: r.upstream.String(), at: r.at.String(), proxyProtocol: version, keeps: check.KeepConnection, transport: t.key}
	if r.forwardProxy != nil {
		r.key.transport.proxy = r.forwardProxy.String()
	}

	// a forward proxy would have to be asked, and a datagram needs nobody who listens
	if r.forwardProxy == nil && !strings.HasPrefix(r.at.Network, "udp") && (t.speaks != overQUIC || own) {
		r.up.Dial = r.connect
		r.up.DialTLS = r.connectTLS
	}
	switch {
	case r.bound:
		r.up.Transport = r // the handler's own
	case own:
		r.http2 = differs.HTTP2
		r.connection = &conn.Transport{Open: r.opener()}
		if check.KeepConnection {
			r.connection.MaxAge = maxProbeConnection
		}
		r.up.Transport = r.connection
		if r.forwardProxy != nil && strings.HasPrefix(r.forwardProxy.Scheme, "http") && r.up.Scheme == "http" {
			r.up.Transport = toUpstream{r.connection, r.up.Host}
		}
	}
	return r, nil
}

func dialInfo(addr caddy.NetworkAddress) reverseproxy.DialInfo {
	return reverseproxy.DialInfo{
		Network: addr.Network,
		Address: addr.JoinHostPort(0),
		Host:    addr.Host,
		Port:    strconv.FormatUint(uint64(addr.StartPort), 10),
	}
}

// proxyHeader returns the PROXY protocol header of a connection that speaks for
// no client: UNKNOWN in version 1, LOCAL in version 2 (sections 2.1 and 2.2 of
// its specification).
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

// findForwardProxy finds out whether requests would go through a forward proxy.
func (r *route) findForwardProxy(target *url.URL) (err error) {
	if r.speaks == overTCP && r.base.Proxy != nil {
		if r.forwardProxy, err = r.base.Proxy(&http.Request{Method: http.MethodGet, URL: target}); err != nil {
			return fmt.Errorf("finding its forward proxy: %v", err)
		}
	}
	return nil
}

// configureTLS makes the TLS settings: those of the handler, but for the
// overrides.
func (r *route) configureTLS(differs probe.Overrides) error {
	r.tls = new(tls.Config)
	if r.base.TLSClientConfig != nil {
		r.tls = r.base.TLSClientConfig.Clone()
	}
	if differs.ServerName != "" {
		r.tls.ServerName = differs.ServerName
	}
	r.tls.ServerName = r.describeTo(constants()).ReplaceKnown(r.tls.ServerName, "")
	if strings.Contains(r.tls.ServerName, "{") {
		return errPerRequest
	}
	if r.tls.ServerName == "" {
		r.tls.ServerName = (&url.URL{Host: r.up.Host}).Hostname()
	}
	if differs.InsecureSkipVerify {
		r.tls.InsecureSkipVerify = true
	}
	return nil
}

// describeTo lets a replacer know the placeholders of the upstream.
func (r *route) describeTo(repl *caddy.Replacer) *caddy.Replacer {
	repl.Set("http.reverse_proxy.upstream.address", r.upstream.String())
	repl.Set("http.reverse_proxy.upstream.hostport", r.upstream.Address)
	repl.Set("http.reverse_proxy.upstream.host", r.upstream.Host)
	repl.Set("http.reverse_proxy.upstream.port", r.upstream.Port)
	return repl
}

// connect connects and sends the PROXY protocol header.
func (r *route) connect(ctx context.Context) (net.Conn, error) {
	return r.dialTo(ctx, r.at.Network, r.at.Address)
}

func (r *route) dialTo(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := r.dial(ctx, network, address)
	if err != nil || r.proxyProtocol == nil {
		return conn, err
	}
	if _, err := conn.Write(r.proxyProtocol); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// connectTLS connects and completes the TLS handshake.
func (r *route) connectTLS(ctx context.Context, configure func(*tls.Config)) (*tls.Conn, error) {
	if r.tls == nil {
		return nil, errors.New("the probe does not use TLS")
	}
	conn, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	config := r.tls.Clone()
	if configure != nil {
		configure(config)
	}
	if limit := r.base.TLSHandshakeTimeout; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secure, nil
}

// opener returns what opens connections for requests.
func (r *route) opener() func(ctx context.Context) (conn.Conn, error) {
	h2c := r.base.Protocols != nil && r.base.Protocols.UnencryptedHTTP2()
	limit := r.base.MaxResponseHeaderBytes
	if limit <= 0 || limit > maxProbeHeader {
		limit = maxProbeHeader
	}
	if r.up.Scheme == "http" && !h2c && !r.http2 && r.forwardProxy == nil {
		return func(ctx context.Context) (conn.Conn, error) {
			opened, err := r.connect(ctx)
			if err != nil {
				return nil, err
			}
			return &conn.HTTP1{Conn: opened, MaxHeader: limit, HeaderTimeout: r.base.ResponseHeaderTimeout}, nil
		}
	}

	own := r.base.Clone()
	own.DisableCompression = true
	own.DisableKeepAlives = false // whether they are kept is up to conn.Transport
	own.IdleConnTimeout = 0       // or what is left of an HTTP/2 connection stays for so long after its end
	own.MaxResponseHeaderBytes = limit
	own.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerConnection: maxProbeBuffer, MaxReceiveBufferPerStream: maxProbeBuffer}
	own.DialTLSContext = nil
	own.TLSClientConfig = r.tls
	own.Protocols = new(http.Protocols)
	if r.up.Scheme == "https" {
		own.Protocols.SetHTTP1(!r.http2)
		own.Protocols.SetHTTP2(r.http2 || own.TLSNextProto["h2"] != nil)
	} else {
		own.Protocols.SetUnencryptedHTTP2(r.http2 || h2c)
		own.Protocols.SetHTTP1(!r.http2 && !h2c)
	}
	own.TLSNextProto = nil // the clone has the HTTP/2 connections of the original there
	own.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if r.forwardProxy != nil {
			return r.dialTo(ctx, network, address)
		}
		return r.connect(ctx)
	}
	host := r.up.Host
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(host, "0") // of a unix socket, where nobody looks at it
	}
	return func(ctx context.Context) (conn.Conn, error) {
		opened, err := own.NewClientConn(ctx, r.up.Scheme, host)
		if err != nil {
			return nil, err
		}
		return conn.Standard{ClientConn: opened}, nil
	}
}

// RoundTrip sends a request over the handler's own transport, with what Caddy's
// transports look for in a request. Its variables are new for every probe, for a
// dial may outlive its probe.
func (r *route) RoundTrip(req *http.Request) (*http.Response, error) {
	// a probe has no client, so a PROXY protocol header names this host
	client := reverseproxy.ProxyProtocolInfo{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)}
	ctx := context.WithValue(req.Context(), caddy.ReplacerCtxKey, r.describeTo(caddy.NewReplacer()))
	ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{"reverse_proxy.proxy_protocol_info": client})
	ctx = context.WithValue(ctx, caddy.CtxKey("reverse_proxy.dial_info"), r.at)
	there := req.Clone(ctx) // it may add to the header
	there.Host = cmp.Or(there.Host, there.URL.Host)
	there.URL.Scheme, there.URL.Host = r.up.Scheme, r.up.Host // whatever a redirect named
	return r.shared.RoundTrip(there)
}

// renew has the next probe connect anew, where connections are its own.
func (r *route) renew() {
	if r.connection != nil {
		r.connection.Renew()
	}
}

// close ends the connection that is kept.
func (r *route) close() {
	if r.connection != nil {
		r.connection.Close()
	}
}
