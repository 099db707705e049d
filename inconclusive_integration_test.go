// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/probe"
)

// notHere is an address that no host has, so that connections from it fail by want of a
// local address.
const notHere = "192.0.2.1"

// A shortage of this process is found whatever probes and over whatever connection, and
// is no verdict.
func TestShortage_IsVoidForEveryKind(t *testing.T) {
	server := testkit.StartBackend(t, "a", nil)
	for name, prober := range map[string]interface {
		probe.Prober
		Provision(ctx caddy.Context) error
	}{
		"http": &probe.HTTP{URI: "/"}, "tcp": new(probe.TCP), "tls": new(probe.TLS), "grpc": new(probe.GRPC),
	} {
		for _, transport := range []*reverseproxy.HTTPTransport{
			{LocalAddress: notHere},
			{LocalAddress: notHere, TLS: &reverseproxy.TLSConfig{InsecureSkipVerify: true}},
			{LocalAddress: notHere, Versions: []string{"h2c", "2"}},
		} {
			if name == "tls" && transport.TLS == nil {
				continue
			}
			t.Run(fmt.Sprintf("%s over TLS %v, versions %v", name, transport.TLS != nil, transport.Versions), func(t *testing.T) {
				ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
				defer cancel()
				if err := errors.Join(transport.Provision(ctx), prober.Provision(ctx)); err != nil {
					t.Fatal(err)
				}
				way, err := monitor.NewTransport(ctx, &reverseproxy.Handler{Transport: transport})
				if err != nil {
					t.Fatal(err)
				}
				check := checkBy(prober, name, newSaying('u').checking().resolved.Settings)
				if o, ok := prober.(probe.Overrider); ok {
					check.resolved.Overrides = monitor.Overrides(o.Overrides())
				}
				upstream, err := monitor.ParseUpstream(server.Addr)
				if err != nil {
					t.Fatal(err)
				}
				w, err := way.Open(upstream, &check.resolved, monitor.Hooks{Logger: zap.NewNop(), Counters: openCounters})
				if err != nil {
					t.Fatal(err)
				}
				w.Start(time.Hour)
				defer func() {
					w.Stop()
					if err := w.Release(); err != nil {
						t.Error(err)
					}
				}()
				_, err = w.Target.Check(t.Context())
				if why, ok := errors.AsType[*health.InconclusiveError](err); !ok || why.Shortage == "" {
					t.Errorf("got %v, want a shortage", err)
				}
				if got := w.Target.Status(); got != health.Unknown {
					t.Errorf("status %v, want none", got)
				}
			})
		}
	}
}
