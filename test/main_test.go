// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-alive/caddy-alive"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// asCaddy is a variable of the environment with which the test program is Caddy itself, for
// tests that run its commands.
const asCaddy = "CADDY_ALIVE_TEST_AS_CADDY"

func TestMain(m *testing.M) {
	if os.Getenv(asCaddy) != "" {
		caddycmd.Main()
		return
	}
	os.Exit(testkit.Main(m))
}
