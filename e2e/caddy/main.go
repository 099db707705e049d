// SPDX-License-Identifier: Apache-2.0

// Command caddy is Caddy with its standard modules, caddy-alive, and the storages of the
// tests. It is built for the tests of fleets only.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-alive/caddy-alive"
	_ "github.com/caddy-alive/caddy-alive/e2e/storages"
)

func main() {
	caddycmd.Main()
}
