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
		return len(c.Lines("this process lacks a resource: probes that fail because of this do not count")) > 0
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

// A shortage of this process is found whatever probes and over whatever connection, and is
// no verdict.
func TestShortage_IsVoidForEveryKind(t *testing.T) {
	const local = "local_address 192.0.2.1" // which no host has, so nothing can connect from it
	plain := []string{"http /", "tcp", "grpc"}
	connections := map[string]struct { // by upstream, to which nothing gets through
		options string
		checks  []string
	}{
		"127.0.0.1:11": {local, plain},
		"127.0.0.1:12": {local + "\ntls_insecure_skip_verify", append(plain, "tls")},
		"127.0.0.1:13": {local + "\nversions h2c 2", plain},
	}
	var sites strings.Builder
	for upstream, over := range connections {
		fmt.Fprintf(&sites, "http://site%s {\nreverse_proxy %s {\ntransport http {\n%s\n}\nlb_policy alive {\n", strings.ReplaceAll(upstream, ":", "-"), upstream, over.options)
		for _, check := range over.checks {
			fmt.Fprintf(&sites, "check %s {\ninterval 20ms\nfails 1\n}\n", check)
		}
		sites.WriteString("}\n}\n}\n")
	}
	c := testkit.StartCaddyWith(t, "", sites.String())
	for upstream, over := range connections {
		for _, label := range over.checks {
			of := func(result string) string {
				return fmt.Sprintf(`checks_total{check="%s",result="%s",upstream="%s"}`, label, result, upstream)
			}
			testkit.Eventually(t, testkit.Patience, "void results of "+label+" at "+upstream, func() bool { return c.Metrics()[of("void")] >= 2 })
			c.WantMetrics(label+" at "+upstream, map[string]float64{of("pass"): 0, of("fail"): 0})
			if got := c.Status(upstream, label); got != "unknown" {
				t.Errorf("%s at %s: status %s, want none", label, upstream, got)
			}
		}
	}
}
