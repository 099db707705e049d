// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// TestCaddyAllHang_TheErrorPageComes: as the README says, with fail_open off and timeouts
// of the transport, a page of handle_errors comes when every upstream hangs: by the
// timeout before the checks have found out, and at once afterwards.
func TestCaddyAllHang_TheErrorPageComes(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b")
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 200ms
				timeout 200ms
			}
			fail_open off
		}
		transport http {
			response_header_timeout 100ms
		}
	}
	handle_errors {
		respond "Back in a minute." 503
	}
}`, testkit.Addresses(backends...)))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(backends[0].Addr, backends[1].Addr) })
	client := c.Client()
	for _, b := range backends {
		b.Set(testkit.Hanging)
	}
	for _, when := range []string{"before the checks have found out", "afterwards"} {
		began := time.Now()
		if got := testkit.Ask(client, c.URL()); got.Status != http.StatusServiceUnavailable || got.Body != "Back in a minute." {
			t.Errorf("%s: answer %v after %v, want the page", when, got, time.Since(began))
		}
		testkit.Eventually(t, testkit.Patience, "both are down", func() bool { return c.Down(backends[0].Addr, backends[1].Addr) })
	}
}
