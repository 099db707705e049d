// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"os"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }
