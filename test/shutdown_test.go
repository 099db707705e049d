// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

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

// Stop of the app does not end probes, because requests may come until Cleanup.
func TestStop_ProbesGoOnUntilCleanup(t *testing.T) {
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

// During shutdown_delay, Caddy serves requests and probes go on, in whatever order its
// apps stop.
func TestShutdownDelay_ProbesGoOn(t *testing.T) {
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

// When Caddy stops, all probes end, also those in flight, and nothing stays behind. Every
// other test that runs Caddy verifies the latter, too.
func TestStop_LeavesNothingBehind(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "sick", "hanging")
	backends[1].Set(testkit.Sick)
	backends[2].Set(testkit.Hanging)
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 20ms
				timeout 10m
			}
			check tcp {
				interval 20ms
			}
		}
	}
}`, testkit.Addresses(backends...)))
	testkit.Eventually(t, testkit.Patience, "all are probed", func() bool {
		return !slices.ContainsFunc(backends, func(b *testkit.Backend) bool { return b.Probed("/healthz") == 0 })
	})
	if a := testkit.Ask(c.Client(), c.URL()); a.Body != "a" {
		t.Errorf("before the stop: got %v, want an answer of a", a)
	}
	if len(testkit.Goroutines()) == 0 {
		t.Error("before the stop: got no goroutines: nothing was tested")
	}
	c.Stop()

	counts := func() (n int) {
		for _, b := range backends {
			_, probes := b.Seen()
			n += probes
		}
		return n
	}
	awaitQuiet(t, counts)
	n := counts()
	testkit.Stays(t, 400*time.Millisecond, "no probe arrives", func() bool { return counts() == n })
}

// awaitQuiet waits until a count of probes does not change any more: one that was cut off may
// still be on its way into its backend.
func awaitQuiet(t *testing.T, count func() int) {
	t.Helper()
	testkit.Eventually(t, testkit.Patience, "the last probe has arrived", func() bool {
		n := count()
		return !testkit.Poll(100*time.Millisecond, func() bool { return count() != n })
	})
}
