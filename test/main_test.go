// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"testing"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-alive/caddy-alive"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }
