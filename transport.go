// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi"

	"github.com/caddy-alive/caddy-alive/probe"
)

// maxProbeHeader bounds the header of an answer to a probe, in bytes. A health
// check needs few; without a bound, net/http reads 10 MiB.
const maxProbeHeader = 64 << 10

// transport is how probes reach the upstreams of one handler: as its requests
// do, but over connections of their own wherever its transport can be copied.
type transport struct {
	// roundTripper is nil where the handler does not speak HTTP.
	roundTripper http.RoundTripper
	// dialContext is nil where the handler does not use TCP.
	dialContext func(ctx context.Context, network, address string) (net.Conn, error)
	// override sets the scheme of u, http, to https where the handler uses TLS.
	override func(u *url.URL, port string)
	// serverName is the TLS server name, which may have placeholders; empty
	// means that of the upstream.
	serverName string
	// bound says that a probe cannot outlive the handler: its transport could
	// not be copied.
	bound bool
	// proxy finds the forward proxy of a request; nil means none.
	proxy func(*http.Request) (*url.URL, error)
	// key tells whether two transports are the same, but for the proxy.
	key transportKey
	// close ends idle connections.
	close func()
}

// transportKey says how upstreams are reached, by what was loaded and not by
// pointer, so that handlers and reloads can share targets.
type transportKey struct {
	config      string         // its JSON
	roots       *x509.CertPool // one that stands for all equal ones
	certificate string         // hash of the client certificates
	proxy       string         // URL of the forward proxy to the upstream
	owner       any            // set if it cannot be compared, and then shares with nobody
}

// newTransport copies the way in which h reaches its upstreams. It is called
// while h is being provisioned: its transport is set if the config names one.
func newTransport(ctx caddy.Context, h *reverseproxy.Handler) (*transport, error) {
	none := func() {}
	switch t := h.Transport.(type) {
	case nil:
		// h will use this very default, but only sets it later on
		standard := new(reverseproxy.HTTPTransport)
		if err := standard.Provision(ctx); err != nil {
			return nil, fmt.Errorf("provisioning default transport: %v", err)
		}
		return httpTransport(standard)
	case *reverseproxy.HTTPTransport:
		return httpTransport(t)
	case *fastcgi.Transport:
		return &transport{dialContext: new(net.Dialer).DialContext, close: none}, nil
	default:
		override := func(*url.URL, string) {}
		if o, ok := t.(reverseproxy.HealthCheckSchemeOverriderTransport); ok {
			override = o.OverrideHealthCheckScheme
		}
		return &transport{
			roundTripper: t,
			dialContext:  new(net.Dialer).DialContext,
			override:     override,
			key:          transportKey{owner: h},
			bound:        true,
			close:        none,
		}, nil
	}
}

func httpTransport(t *reverseproxy.HTTPTransport) (*transport, error) {
	config, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("encoding the transport: %v", err)
	}
	way := &transport{
		override: t.OverrideHealthCheckScheme,
		proxy:    t.Transport.Proxy,
		key:      transportKey{config: string(config)},
		close:    func() {},
	}
	if tls := t.Transport.TLSClientConfig; tls != nil {
		way.serverName = tls.ServerName
		way.key.roots = canonicalRoots(tls.RootCAs)
		hash := sha256.New()
		for _, cert := range tls.Certificates {
			for _, der := range cert.Certificate {
				hash.Write(der)
			}
		}
		way.key.certificate = hex.EncodeToString(hash.Sum(nil))
	}
	if len(t.Versions) == 1 && t.Versions[0] == "3" {
		// its HTTP/3 side cannot be copied, so connections are shared
		way.roundTripper, way.bound = t, true
		return way, nil
	}

	own := t.Transport.Clone()
	own.DisableKeepAlives = true // a dead listener cannot hide behind an old connection
	own.DisableCompression = true
	own.MaxConnsPerHost = 0
	if own.MaxResponseHeaderBytes == 0 || own.MaxResponseHeaderBytes > maxProbeHeader {
		own.MaxResponseHeaderBytes = maxProbeHeader
	}
	if own.TLSNextProto["h2"] != nil {
		// a clone would go on using the HTTP/2 connections of the original
		own.TLSNextProto = nil
		own.ForceAttemptHTTP2 = true
	}
	own.DialContext = withinProbe(own.DialContext)
	if own.DialTLSContext != nil {
		own.DialTLSContext = withinProbe(own.DialTLSContext)
	}
	way.roundTripper = own
	way.dialContext = own.DialContext
	way.close = own.CloseIdleConnections
	return way, nil
}

// probeContext is the key under which a probe's context has itself.
type probeContext struct{}

// withinProbe has connections end with the probe that they are made for. The
// dials of net/http outlive the request that asked for them, and a handshake
// that the upstream never ends would keep its connection for good.
func withinProbe(dial func(ctx context.Context, network, address string) (net.Conn, error)) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		probe, ok := ctx.Value(probeContext{}).(context.Context)
		if !ok {
			return dial(ctx, network, address)
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(probe, cancel)()
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		context.AfterFunc(probe, func() { _ = conn.Close() })
		return conn, nil
	}
}

// canonicalRoots returns the one pool that stands for all that are equal to
// roots among the targets there are. Pools can be compared but not put into
// words, so the key has one of them by pointer.
func canonicalRoots(roots *x509.CertPool) *x509.CertPool {
	if roots == nil {
		return nil
	}
	targets.Range(func(key, _ any) bool {
		if known := key.(targetKey).transport.roots; known != nil && known.Equal(roots) {
			roots = known
			return false
		}
		return true
	})
	return roots
}

// route is the transport applied to one upstream.
type route struct {
	up    probe.Upstream
	key   transportKey
	info  reverseproxy.DialInfo
	repl  *caddy.Replacer
	bound bool
	// perRequest says that what the handler does depends on the request, so
	// that a probe cannot do the same.
	perRequest bool
}

// to returns the route to an address that no placeholder is left in.
func (t *transport) to(address string) (*route, error) {
	addr, err := caddy.ParseNetworkAddress(address)
	if err != nil {
		return nil, err
	}
	if n := addr.PortRangeSize(); n != 1 {
		return nil, fmt.Errorf("the address must be one socket, not %d", n)
	}
	r := &route{
		key:   t.key,
		bound: t.bound,
		repl:  caddy.NewReplacer(),
		info: reverseproxy.DialInfo{
			Network: addr.Network,
			Address: addr.JoinHostPort(0),
			Host:    addr.Host,
			Port:    strconv.FormatUint(uint64(addr.StartPort), 10),
		},
	}
	r.repl.Set("http.reverse_proxy.upstream.address", r.info.String())
	r.repl.Set("http.reverse_proxy.upstream.hostport", r.info.Address)
	r.repl.Set("http.reverse_proxy.upstream.host", r.info.Host)
	r.repl.Set("http.reverse_proxy.upstream.port", r.info.Port)
	r.perRequest = strings.Contains(r.repl.ReplaceKnown(t.serverName, ""), "{")

	u := &url.URL{Scheme: "http", Host: r.info.Address}
	if addr.IsUnixNetwork() {
		u.Host = "localhost" // the dialer goes by the context, and a path is no host
	}
	if t.override != nil {
		t.override(u, r.info.Port)
	}
	if t.proxy != nil {
		proxy, err := t.proxy(&http.Request{Method: http.MethodGet, URL: u})
		if err != nil {
			return nil, fmt.Errorf("finding its forward proxy: %v", err)
		}
		if proxy != nil {
			r.key.proxy = proxy.String()
		}
	}
	r.up = probe.Upstream{Address: address, Scheme: u.Scheme, Host: u.Host, Transport: t.roundTripper}
	// a forward proxy would have to be asked, and a datagram needs nobody who listens
	if t.dialContext != nil && r.key.proxy == "" && !strings.HasPrefix(addr.Network, "udp") {
		r.up.Dial = func(ctx context.Context) (net.Conn, error) {
			return t.dialContext(ctx, r.info.Network, r.info.Address)
		}
	}
	return r, nil
}

// context returns ctx with what Caddy's transports look for in a request. The
// variables are new for every probe, for a dial may outlive its probe.
func (r *route) context(ctx context.Context) context.Context {
	// a probe has no client, so a PROXY protocol header names this host
	client := reverseproxy.ProxyProtocolInfo{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)}
	ctx = context.WithValue(ctx, probeContext{}, ctx)
	ctx = context.WithValue(ctx, caddy.ReplacerCtxKey, r.repl)
	ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{"reverse_proxy.proxy_protocol_info": client})
	return context.WithValue(ctx, caddy.CtxKey("reverse_proxy.dial_info"), r.info)
}
