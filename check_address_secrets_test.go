// SPDX-License-Identifier: Apache-2.0

package alive

import (
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
