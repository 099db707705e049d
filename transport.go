// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// dialer connects to an address.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// transport is how the requests of one handler reach its upstreams, as far as it
// can be copied, for probes to do the same over connections of their own.
type transport struct {
	// base has the TLS settings, HTTP versions and timeouts.
	base *http.Transport
	// dial connects as the handler does, but sends no PROXY protocol header.
	dial dialer
	// proxyProtocol is the version of that header, if the handler sends one.
	proxyProtocol string
	// override sets the scheme of u, http, to https where the handler uses TLS.
	override func(u *url.URL, port string)
	// shared is the handler's own round tripper, where that cannot be copied.
	shared http.RoundTripper
	// speaks says what shared is, or what the handler speaks if it is not HTTP.
	speaks protocol
	// key tells whether two transports are the same, but for the forward proxy.
	key transportKey
}

// protocol is what a handler speaks with its upstreams.
type protocol int

const (
	overTCP    protocol = iota // HTTP/1.1 or 2, over TCP or unix sockets
	overQUIC                   // HTTP/3
	thirdParty                 // HTTP in some way
	fastCGI
)

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
	if t, ok := h.Transport.(*reverseproxy.HTTPTransport); ok {
		return httpTransport(ctx, t)
	}
	// h will use this very default, but only sets it later on
	standard := new(reverseproxy.HTTPTransport)
	if err := standard.Provision(ctx); err != nil {
		return nil, fmt.Errorf("provisioning default transport: %v", err)
	}
	t, err := httpTransport(ctx, standard)
	if err != nil || h.Transport == nil {
		return t, err
	}
	if _, ok := h.Transport.(*fastcgi.Transport); ok {
		t.speaks = fastCGI
		t.key.config = "fastcgi"
		return t, nil
	}
	t.speaks, t.shared, t.key = thirdParty, h.Transport, transportKey{owner: h}
	if o, ok := h.Transport.(reverseproxy.HealthCheckSchemeOverriderTransport); ok {
		t.override = o.OverrideHealthCheckScheme
	}
	return t, nil
}

func httpTransport(ctx caddy.Context, h *reverseproxy.HTTPTransport) (*transport, error) {
	config, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encoding the transport: %v", err)
	}
	t := &transport{
		base:          h.Transport,
		proxyProtocol: h.ProxyProtocol,
		override:      h.OverrideHealthCheckScheme,
		key:           transportKey{config: string(config)},
	}
	if len(h.Versions) == 1 && h.Versions[0] == "3" {
		t.speaks, t.shared = overQUIC, h
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

// plainDialer returns the dialer of a transport without its PROXY protocol
// header, which would need a client to speak of, and without TLS.
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

// dialTimeoutError is an error of a dial that took too long. Caddy's own type for it does
// not tell.
type dialTimeoutError struct{ error }

// Timeout reports that it is one.
func (dialTimeoutError) Timeout() bool { return true }

// Unwrap returns the error of the dial.
func (e dialTimeoutError) Unwrap() error { return e.error }

// shortageError is an error by which a dial failed for want of something that this
// process lacks.
type shortageError struct {
	error
	shortage error
}

// Unwrap returns both.
func (e shortageError) Unwrap() []error { return []error{e.error, e.shortage} }

// withShortage adds what this process lacks to the error of a probe. Caddy's own type of
// error for a dial has only the text of it.
func withShortage(err error) error {
	if dial, ok := errors.AsType[reverseproxy.DialError](err); ok {
		if shortage := health.ShortageIn(dial.Error()); shortage != nil {
			return shortageError{err, shortage}
		}
	}
	return err
}

// canonicalRoots returns the one pool that stands for all that are equal to
// roots among the targets there are. Pools can be compared but not put into
// words, so the key has one of them by pointer.
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
