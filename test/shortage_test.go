// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// While this process has a shortage, probes are counted as void, the log names the cause,
// and so does the answer to a check by an operator. No upstream goes down.
func TestShortage_IsShown(t *testing.T) {
	b := testkit.StartBackend(t, "a", nil)
	site := func(options string) string {
		return fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		transport http {
			%s
		}
		lb_policy alive {
			check http /healthz {
				interval 20ms
				fails 1
			}
		}
	}
}`, b.Addr, options)
	}
	c := testkit.StartCaddyWith(t, "", site("local_address 192.0.2.1"))
	testkit.Eventually(t, testkit.Patience, "the log names the cause", func() bool {
		return len(c.Lines("this process has a shortage: probes that fail by it count for nothing as long as it lasts")) > 0
	})
	of := func(result string) string {
		return fmt.Sprintf(`checks_total{check="http /healthz",result="%s",upstream="%s"}`, result, b.Addr)
	}
	testkit.Eventually(t, testkit.Patience, "void results are counted", func() bool { return c.Metrics()[of("void")] >= 3 })
	c.WantMetrics("in a shortage", map[string]float64{of("pass"): 0, of("fail"): 0})
	status, text := c.Call(http.MethodPost, "/alive/check", url.Values{"upstream": {b.Addr}}, "")
	if status != http.StatusServiceUnavailable || !strings.Contains(text, "this process has a shortage") {
		t.Errorf("a check got %d: %s", status, text)
	}
	if c.One(b.Addr).Status != "unknown" {
		t.Error("it has a verdict")
	}
}
