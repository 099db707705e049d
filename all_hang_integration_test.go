// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// TestCaddyAllHang_TheErrorPageComes: as the README says, with fail_open off and timeouts
// of the transport, a page of handle_errors comes when every upstream hangs: by the
// timeout before the checks have found out, and at once afterwards.
func TestCaddyAllHang_TheErrorPageComes(t *testing.T) {
	backends := startBackends(t, "a", "b")
	c := startCaddy(t, fmt.Sprintf(`
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
}`, addresses(backends...)))
	eventually(t, patience, "both are up", func() bool { return statuses(backends[0].addr, backends[1].addr)[health.Up] == 2 })
	client := c.plain()
	for _, b := range backends {
		b.set(hanging)
	}
	for _, when := range []string{"before the checks have found out", "afterwards"} {
		began := time.Now()
		if got := ask(client, c.url()); got.status != http.StatusServiceUnavailable || got.body != "Back in a minute." {
			t.Errorf("%s: answer %v after %v, want the page", when, got, time.Since(began))
		}
		eventually(t, patience, "both are down", func() bool { return statuses(backends[0].addr, backends[1].addr)[health.Down] == 2 })
	}
}
