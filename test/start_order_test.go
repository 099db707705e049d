// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

func init() {
	caddy.RegisterModule(new(witness))
	caddy.RegisterModule(witnessSource{})
}

// witness is an app that calls a function when it is started. Caddy starts apps in any
// order, so that is before or after the app of this module.
type witness struct{}

// witnessed is what it sees, and what it saw.
var witnessed struct {
	sync.Mutex
	look func() health.Status
	saw  []health.Status
}

func (*witness) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "alive_test_witness", New: func() caddy.Module { return new(witness) }}
}

func (*witness) Start() error {
	witnessed.Lock()
	defer witnessed.Unlock()
	if witnessed.look != nil {
		witnessed.saw = append(witnessed.saw, witnessed.look())
	}
	return nil
}

func (*witness) Stop() error { return nil }

// witnessSource has the app loaded.
type witnessSource struct{}

func (witnessSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.reverse_proxy.upstreams.alive_test_witness", New: func() caddy.Module { return new(witnessSource) }}
}

func (*witnessSource) Provision(ctx caddy.Context) error {
	_, err := ctx.App("alive_test_witness")
	return err
}

func (*witnessSource) UnmarshalCaddyfile(*caddyfile.Dispenser) error { return nil }

func (*witnessSource) GetUpstreams(*http.Request) ([]*reverseproxy.Upstream, error) { return nil, nil }

// probing is the status of the check of an address with a text in its options. It is the
// only look inside of these tests: before the start, nothing shows the status.
func probing(address, options string) (status health.Status) {
	shared.Targets.Range(func(key, value any) bool {
		if text := fmt.Sprint(key); strings.Contains(text, "/"+address+" ") && strings.Contains(text, options) {
			status = value.(interface{ Status() health.Status }).Status()
			return false
		}
		return true
	})
	return status
}

// Requests may come before the app of this module starts, as soon as all apps are
// provisioned. Even then, a check that another site keeps does not count for a changed
// check.
func TestReload_InheritsBeforeTheStart(t *testing.T) {
	s := testkit.StartScripted(t, "a", nil)
	s.Set("/healthz/bad", http.StatusServiceUnavailable)
	sites := func(version int) string {
		const long = "interval 10m\nfast_interval 10m"
		return testkit.CheckedSite(version, s.Addr, long, fmt.Sprintf("/healthz/%d", version)) +
			strings.Replace(testkit.CheckedSite(version, s.Addr, long, "/healthz/bad"), "http://", "http://other.localhost", 1) +
			"\nhttp://witness.localhost {\nreverse_proxy {\ndynamic alive_test_witness\n}\n}"
	}
	c := testkit.StartCaddy(t, sites(0))
	defer func() { witnessed.look = nil }()
	for version := 1; version <= 10; version++ {
		testkit.Eventually(t, testkit.Patience, "a verdict of all", func() bool {
			return probing(s.Addr, fmt.Sprintf("/healthz/%d", version-1)) == health.Up && probing(s.Addr, "bad") == health.Down
		})
		witnessed.Lock()
		witnessed.saw, witnessed.look = nil, func() health.Status { return probing(s.Addr, fmt.Sprintf("/healthz/%d", version)) }
		witnessed.Unlock()
		c.Load(sites(version))
		if got := witnessed.saw; len(got) != 1 || got[0] != health.Up {
			t.Fatalf("while the apps start, the status is %v, want up, as what was before", got)
		}
	}
}
