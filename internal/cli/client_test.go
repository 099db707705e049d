// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	_ "github.com/caddyserver/caddy/v2/modules/standard" // the adapter of the Caddyfile, and what a Caddyfile names
)

// The Caddyfile in the current folder says where the admin API is, unless a flag does. One that
// cannot be read is no error: a half-edited file must not keep operators from looking.
func TestClient_UsesTheCaddyfileNearby(t *testing.T) {
	const admin = "{\n\tadmin localhost:3019\n}\n"
	for name, test := range map[string]struct {
		file          string // none if it is empty
		flags         []string
		address, warn string
	}{
		"no file":          {"", nil, "localhost:2019", ""},
		"its address":      {admin, nil, "localhost:3019", ""},
		"without one":      {"http://localhost:8080\nrespond ok\n", nil, "localhost:2019", ""},
		"a flag":           {admin, []string{"--address", "localhost:4019"}, "localhost:4019", ""},
		"half-edited":      {admin + "http://localhost:8080 {\n", nil, "localhost:2019", "warning: the Caddyfile in this folder does not say where the admin API is: "},
		"a flag beside it": {"{\n", []string{"--address", "localhost:4019"}, "localhost:4019", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			if test.file != "" {
				if err := os.WriteFile(nearby, []byte(test.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var warned bytes.Buffer
			root := new(cobra.Command)
			addCommands(root)
			root.SetErr(&warned)
			if err := root.ParseFlags(test.flags); err != nil {
				t.Fatal(err)
			}
			c, err := newClient(root)
			if err != nil || c.address != test.address {
				t.Errorf("%+v, %v, want %s", c, err, test.address)
			}
			if got := warned.String(); (test.warn == "") != (got == "") || !strings.HasPrefix(got, test.warn) {
				t.Errorf("warned %q, want %q", got, test.warn)
			}
		})
	}
}
