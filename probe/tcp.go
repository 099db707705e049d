// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// TCP checks that an upstream accepts connections. It is what the policy does
// when no check is configured.
type TCP struct{}

// CaddyModule returns the Caddy module information.
func (TCP) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "alive.probes.tcp",
		New: func() caddy.Module { return new(TCP) },
	}
}

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	tcp
func (*TCP) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the kind
	if d.NextArg() {
		return d.Errf("a tcp check takes no argument; got '%s'", d.Val())
	}
	if d.NextBlock(0) {
		return d.Errf("unrecognized option '%s': a tcp check has the options of every check only", d.Val())
	}
	return nil
}

// ValidateUpstream rejects proxies that do not connect by TCP.
func (TCP) ValidateUpstream(up Upstream) error {
	if up.Dial == nil {
		return fmt.Errorf("a tcp check cannot tell whether %s is alive, which is not reached by connecting to it; use an http check", up.Address)
	}
	return nil
}

// Probe connects and hangs up.
func (TCP) Probe(ctx context.Context, up Upstream) error {
	conn, err := up.Dial(ctx)
	if err != nil {
		return err
	}
	return conn.Close()
}

// String returns the check as it is shown.
func (TCP) String() string { return "tcp" }

// Interface guards
var (
	_ Prober                = (*TCP)(nil)
	_ UpstreamValidator     = (*TCP)(nil)
	_ caddyfile.Unmarshaler = (*TCP)(nil)
)
