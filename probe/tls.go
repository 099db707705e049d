// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/redact"
)

func init() { caddy.RegisterModule(TLS{}) }

// certificateVerdict is how long a TLS check waits for an upstream to reject the client
// certificate that it asked for, but no longer than half of the remaining time.
const certificateVerdict = 500 * time.Millisecond

// TLS checks that an upstream completes a TLS handshake, with a certificate that
// the proxy trusts. The handshake is that of proxied requests: same trust, server
// name and client certificate.
type TLS struct {
	TLSOptions

	secrets redact.Values // what must not be in a reason
}

// CaddyModule returns the Caddy module information.
func (TLS) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "alive.probes.tls",
		New: func() caddy.Module { return new(TLS) },
	}
}

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	tls {
//		tls_server_name <name>
//		tls_insecure_skip_verify
//	}
func (t *TLS) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the kind
	if d.NextArg() {
		return d.Errf("a tls check takes no argument; got '%s'", d.Val())
	}
	return ReadBlock(d, func(option string) error {
		known, err := t.TLSOptions.unmarshalOption(d)
		if !known {
			return UnrecognizedOption(d, "a tls check", "tls_server_name", "tls_insecure_skip_verify")
		}
		return err
	}, nil)
}

// Provision resolves placeholders.
func (t *TLS) Provision(_ caddy.Context) error {
	t.secrets.Learn(t.TLSServerName)
	return t.TLSOptions.provision()
}

// Overrides returns how probes differ from proxied requests.
func (t *TLS) Overrides() Overrides {
	o := t.TLSOptions.overrides()
	o.Scheme = "https" // also if proxied requests do not use TLS
	return o
}

// ValidateUpstream rejects proxies that do not connect by TCP.
func (t *TLS) ValidateUpstream(up Upstream) error {
	if up.DialTLS == nil {
		return errConnect("tls", up)
	}
	return nil
}

// NoRequests says that probes send no HTTP requests.
func (*TLS) NoRequests() {}

// Probe connects, completes the handshake, and hangs up.
func (t *TLS) Probe(ctx context.Context, up Upstream) error {
	return t.secrets.Error(t.probe(ctx, up))
}

func (t *TLS) probe(ctx context.Context, up Upstream) error {
	asked := false
	conn, err := up.DialTLS(ctx, func(config *tls.Config) {
		own, get := config.Certificates, config.GetClientCertificate
		config.GetClientCertificate = func(request *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked = true
			if get != nil {
				return get(request)
			}
			for i := range own {
				if request.SupportsCertificate(&own[i]) == nil {
					return &own[i], nil
				}
			}
			return new(tls.Certificate), nil // no certificate, as crypto/tls documents
		}
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if !asked || conn.ConnectionState().Version < tls.VersionTLS13 {
		return nil
	}

	// With TLS 1.3 the handshake is complete for the client before the server has checked
	// its certificate (RFC 8446, section 4.4.2.4). A server that rejects it sends an
	// alert. A server that accepts it closes the half-closed connection, or sends nothing.
	wait := certificateVerdict
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(deadline)/2)
	}
	// timeouts of the transport could replace a deadline
	var content atomic.Bool
	defer time.AfterFunc(wait, func() {
		content.Store(true)
		_ = conn.NetConn().Close()
	}).Stop()
	defer context.AfterFunc(ctx, func() { _ = conn.NetConn().Close() })()
	if err = conn.CloseWrite(); err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	switch {
	case content.Load(), err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("after the upstream asked for a client certificate: %w", err)
}

// String returns the check as it is shown.
func (t *TLS) String() string { return "tls" + t.TLSOptions.label() }

// Interface guards
var (
	_ Prober                = (*TLS)(nil)
	_ UpstreamValidator     = (*TLS)(nil)
	_ Overrider             = (*TLS)(nil)
	_ caddy.Provisioner     = (*TLS)(nil)
	_ caddyfile.Unmarshaler = (*TLS)(nil)
)
