// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

const shutDown = `
http://127.0.0.1 {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 100ms
				fast_interval 50ms
			}
		}
	}
}`

// Stop of the app ends nothing: requests may come until Cleanup.
func TestCaddyStop_ProbesGoOnUntilCleanup(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b")
	a, b := backends[0], backends[1]
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(shutDown, testkit.Addresses(backends...)))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(a.Addr, b.Addr) })
	app, err := caddy.ActiveContext().AppIfConfigured("alive")
	if err != nil {
		t.Fatal(err)
	}
	if err := app.(caddy.App).Stop(); err != nil {
		t.Fatal(err)
	}
	servesAlone(t, c, a, b)
}

// While shutdown_delay lasts, Caddy serves requests, whichever of its apps stops first.
func TestCaddyShutdownDelay_ProbesGoOn(t *testing.T) {
	for round := range 2 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			backends := testkit.StartBackends(t, "a", "b")
			a, b := backends[0], backends[1]
			c := testkit.StartCaddyWith(t, "shutdown_delay 3s", fmt.Sprintf(shutDown, testkit.Addresses(backends...)))
			testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(a.Addr, b.Addr) })
			stopped := make(chan error, 1)
			go func() { stopped <- caddy.Stop() }()
			testkit.Eventually(t, testkit.Patience, "the shutdown is scheduled", func() bool {
				log, err := os.ReadFile(c.LogFile())
				return err == nil && strings.Contains(string(log), "shutdown scheduled")
			})
			servesAlone(t, c, a, b)
			if err := <-stopped; err != nil {
				t.Error(err)
			}
		})
	}
}

// servesAlone has b die, and fails the test unless a then gets all requests and the list
// shows b as down.
func servesAlone(t *testing.T, c *testkit.Caddy, a, b *testkit.Backend) {
	t.Helper()
	b.Set(testkit.Refusing)
	testkit.Eventually(t, testkit.Patience, "b is down", func() bool { return c.Down(b.Addr) })
	testkit.Shares(t, "b is down", testkit.Tally(c.Client(), c.URL(), 10), map[string]int{a.Name: 10})
	if got := c.One(b.Addr).Status; got != "down" {
		t.Errorf("the list shows b as %s, want down", got)
	}
}
