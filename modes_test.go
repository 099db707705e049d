// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"testing"

	"go.uber.org/zap"

	"github.com/caddyserver/certmagic"
)

// newTestApp returns an app as it is after Provision, with a storage of its own.
func newTestApp(t *testing.T) *App {
	t.Helper()
	o := newOperations()
	return &App{operations: o, keeper: newKeeper(o, &certmagic.FileStorage{Path: t.TempDir()}, "alive/test", 0, zap.NewNop())}
}
