// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// The table of the options of every check has the defaults of the code.
func TestReadmeDefaults(t *testing.T) {
	defaults, err := new(HealthCheck).resolve()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"interval": defaults.Interval.String(), "timeout": defaults.Timeout.String(),
		"passes": fmt.Sprint(defaults.Passes), "fails": fmt.Sprint(defaults.Fails), "jitter": fmt.Sprintf("%.0f%%", 100*defaults.Jitter),
	}
	_, _, tables := testkit.README(t)
	for _, table := range tables {
		if table.About != "## Options of every check" {
			continue
		}
		for _, row := range table.Rows {
			for _, option := range testkit.InCode(row[0]) {
				if value := want[option]; value != "" && row[1] != value {
					t.Errorf("%s: default of %s: got %s, want %s", table, option, row[1], value)
				}
				delete(want, option)
			}
		}
	}
	for option := range want {
		t.Errorf("the table does not have %s", option)
	}
}
