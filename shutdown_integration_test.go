// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/health"
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
	backends := startBackends(t, "a", "b")
	a, b := backends[0], backends[1]
	c := startOperated(t, "", fmt.Sprintf(shutDown, addresses(backends...)))
	eventually(t, patience, "both are up", func() bool { return statuses(a.addr, b.addr)[health.Up] == 2 })
	if err := newestApp().Stop(); err != nil {
		t.Fatal(err)
	}
	c.servesAlone(a, b)
}

// While shutdown_delay lasts, Caddy serves requests, whichever of its apps stops first.
func TestCaddyShutdownDelay_ProbesGoOn(t *testing.T) {
	for round := range 2 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			backends := startBackends(t, "a", "b")
			a, b := backends[0], backends[1]
			c := startOperated(t, "shutdown_delay 3s", fmt.Sprintf(shutDown, addresses(backends...)))
			eventually(t, patience, "both are up", func() bool { return statuses(a.addr, b.addr)[health.Up] == 2 })
			stopped := make(chan error, 1)
			go func() { stopped <- caddy.Stop() }()
			eventually(t, patience, "the shutdown is scheduled", func() bool {
				log, err := os.ReadFile(c.logFile())
				return err == nil && strings.Contains(string(log), "shutdown scheduled")
			})
			c.servesAlone(a, b)
			if err := <-stopped; err != nil {
				t.Error(err)
			}
		})
	}
}

// servesAlone has b die, and fails the test unless a then gets all requests and the list
// says why.
func (c *instance) servesAlone(a, b *backend) {
	c.t.Helper()
	b.set(refusing)
	eventually(c.t, patience, "b is down", func() bool { return is(health.Down, b.addr) })
	if got := tally(c.plain(), c.url(), 10); got[a.name] != 10 {
		c.t.Errorf("answers by backend: got %v, want 10 of %s", got, a.name)
	}
	if _, list := c.call(http.MethodGet, "/alive/upstreams", url.Values{"upstream": {b.addr}}, ""); !strings.Contains(list, `"status":"down"`) {
		c.t.Errorf("the list: got %s, want b as down", list)
	}
}
