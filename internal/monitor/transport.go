// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi"

	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// dialer connects to an address.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// Transport is how the requests of one handler reach its upstreams, as far as that can be
// copied: probes do the same over connections of their own.
type Transport struct {
	// base has the TLS settings, HTTP versions and timeouts.
	base *http.Transport
	// dial connects as the handler does, but sends no PROXY protocol header.
	dial dialer
	// proxyProtocol is the version of that header, if the handler sends one.
	proxyProtocol string
	// override sets the scheme of u, http, to https where the handler uses TLS.
	override func(u *url.URL, port string)
	// handlers is the handler's own round tripper, where that cannot be copied.
	handlers http.RoundTripper
	// fastCGI has the settings of the handler's transport where that uses FastCGI, and
	// fastCGIConfig its JSON, for the keys of routes over it.
	fastCGI       fastcgi.Transport
	fastCGIConfig string
	// speaks is the protocol between the handler and its upstreams.
	speaks protocol
	// key tells whether two transports are the same, except for the forward proxy.
	key transportKey
}

// protocol is the protocol between a handler and its upstreams.
type protocol int

const (
	overTCP    protocol = iota // HTTP/1.1 or 2, over TCP or unix sockets
	overQUIC                   // HTTP/3
	thirdParty                 // HTTP over the transport of another plugin
	fastCGI
)

// transportKey says how upstreams are reached. It compares what was loaded and not
// pointers, so that several handlers and configs can share targets.
type transportKey struct {
	config      string         // its JSON
	roots       *x509.CertPool // the canonical one of all that are equal
	certificate string         // hash of the client certificates
	proxy       string         // URL of the forward proxy to the upstream
	owner       any            // the handler, if nothing else can be compared: it shares nothing
}

// NewTransport copies how h reaches its upstreams. It is called while h is being
// provisioned: its transport is set if the config names one.
func NewTransport(ctx caddy.Context, h *reverseproxy.Handler) (*Transport, error) {
	if t, ok := h.Transport.(*reverseproxy.HTTPTransport); ok {
		return httpTransport(ctx, t)
	}
	// h uses the same default, but sets it later
	standard := new(reverseproxy.HTTPTransport)
	if err := standard.Provision(ctx); err != nil {
		return nil, fmt.Errorf("provisioning default transport: %v", err)
	}
	t, err := httpTransport(ctx, standard)
	if err != nil || h.Transport == nil {
		return t, err
	}
	if over, ok := h.Transport.(*fastcgi.Transport); ok {
		return t, useFastCGI(t, over)
	}
	t.speaks, t.handlers, t.key = thirdParty, h.Transport, transportKey{owner: h}
	if o, ok := h.Transport.(reverseproxy.HealthCheckSchemeOverriderTransport); ok {
		t.override = o.OverrideHealthCheckScheme
	}
	return t, nil
}

// useFastCGI makes requests be sent as a transport over FastCGI does.
func useFastCGI(t *Transport, over *fastcgi.Transport) error {
	config, err := json.Marshal(over)
	if err != nil {
		return fmt.Errorf("encoding the transport: %v", err)
	}
	t.speaks, t.fastCGI, t.fastCGIConfig, t.key.config = fastCGI, *over, string(config), "fastcgi"
	return nil
}

func httpTransport(ctx caddy.Context, h *reverseproxy.HTTPTransport) (*Transport, error) {
	config, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encoding the transport: %v", err)
	}
	t := &Transport{
		base:          h.Transport,
		proxyProtocol: h.ProxyProtocol,
		override:      h.OverrideHealthCheckScheme,
		key:           transportKey{config: string(config)},
	}
	if len(h.Versions) == 1 && h.Versions[0] == "3" {
		t.speaks, t.handlers = overQUIC, h
	}
	if tls := h.Transport.TLSClientConfig; tls != nil {
		t.key.roots = canonicalRoots(tls.RootCAs)
		hash := sha256.New()
		for _, cert := range tls.Certificates {
			for _, der := range cert.Certificate {
				hash.Write(der)
			}
		}
		t.key.certificate = hex.EncodeToString(hash.Sum(nil))
	}
	if t.dial, err = plainDialer(ctx, h); err != nil {
		return nil, fmt.Errorf("provisioning the dialer of probes: %v", err)
	}
	return t, nil
}

// plainDialer returns the dialer of a transport without TLS and without its PROXY protocol
// header, which would name a client: a probe has none.
func plainDialer(ctx caddy.Context, h *reverseproxy.HTTPTransport) (dialer, error) {
	plain := &reverseproxy.HTTPTransport{
		KeepAlive:     h.KeepAlive,
		DialTimeout:   h.DialTimeout,
		FallbackDelay: h.FallbackDelay,
		ReadTimeout:   h.ReadTimeout,
		WriteTimeout:  h.WriteTimeout,
		LocalAddress:  h.LocalAddress,
	}
	if h.Resolver != nil {
		plain.Resolver = &reverseproxy.UpstreamResolver{Addresses: h.Resolver.Addresses}
	}
	t, err := plain.NewTransport(ctx)
	if err != nil {
		return nil, err
	}
	limit := time.Duration(plain.DialTimeout) // by now it has its default
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		began := time.Now()
		conn, err := t.DialContext(ctx, network, address)
		if err != nil && time.Since(began) >= limit {
			err = dialTimeoutError{err}
		}
		return conn, err
	}, nil
}

// dialTimeoutError is the error of a dial that took too long. Caddy's own type for it does
// not say that it is a timeout.
type dialTimeoutError struct{ error }

// Timeout reports that it is one.
func (dialTimeoutError) Timeout() bool { return true }

// Unwrap returns the error of the dial.
func (e dialTimeoutError) Unwrap() error { return e.error }

// canonicalRoots returns the pool of certificates that stands for all equal ones in the
// keys of targets: pools of certificates have an Equal method, but as part of a key they
// compare by pointer.
func canonicalRoots(roots *x509.CertPool) *x509.CertPool {
	if roots == nil {
		return nil
	}
	shared.Targets.Range(func(key, _ any) bool {
		if known := key.(targetKey).transport.roots; known != nil && known.Equal(roots) {
			roots = known
			return false
		}
		return true
	})
	return roots
}
