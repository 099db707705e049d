// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
)

// What a placeholder in the address of a check stands for is in no error of the config.
func TestCheckAddress_ErrorsShowItAsWritten(t *testing.T) {
	for _, tc := range []struct {
		value string
		port  int
	}{
		{"http://hunter2/", 0},
		{"hunter2:0", 0},
		{"hunter2:81", 82},
	} {
		t.Setenv("PROBE_SECRET", tc.value)
		err := (&HealthCheck{Address: "{env.PROBE_SECRET}", Port: tc.port}).provisionAddress()
		if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "{env.PROBE_SECRET}") {
			t.Errorf("%s, port %d: got %v, want an error with the placeholder and without its value", tc.value, tc.port, err)
		}
	}
}

// Nor is it in a reason: neither in the list, nor in the log.
func TestCaddyCheckAddress_ReasonsShowItAsWritten(t *testing.T) {
	t.Setenv("PROBE_SECRET", "hunter2")
	c := startOperated(t, "", fmt.Sprintf(`http://127.0.0.1:%d {
	reverse_proxy 127.0.0.1:1 {
		lb_policy alive {
			check http /healthz {
				address unix//nowhere/{env.PROBE_SECRET}.sock
			}
		}
	}
}
`, freePort(t)))
	if !poll(patience, func() bool { return len(c.lines("upstream is down")) == 1 }) {
		t.Fatal("the upstream does not go down")
	}
	_, list := c.call("GET", "/alive/upstreams", url.Values{}, "")
	for what, text := range map[string]string{"list": list, "log": c.lines("upstream is down")[0].Reason} {
		if strings.Contains(text, "hunter2") || !strings.Contains(text, "{env.PROBE_SECRET}.sock") {
			t.Errorf("the %s has the value, or not the placeholder: %s", what, text)
		}
	}
}
