// SPDX-License-Identifier: Apache-2.0

// Command caddy is Caddy with its standard modules and caddy-alive: a build to try the
// plugin, which its tests use, too. For a build with other plugins, use xcaddy.
package main

import (
	_ "time/tzdata"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-alive/caddy-alive"
)

func main() {
	caddycmd.Main()
}
