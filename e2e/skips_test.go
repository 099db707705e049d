// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"sync"
	"testing"
)

// skips are the tests that were skipped, with the reasons: `go test` does not show
// them.
var skips struct {
	mu    sync.Mutex
	lines []string
}

// skip skips a test for a reason, which is also shown at the end of the run.
func skip(t *testing.T, reason string, args ...any) {
	t.Helper()
	reason = fmt.Sprintf(reason, args...)
	skips.mu.Lock()
	skips.lines = append(skips.lines, fmt.Sprintf("skipped: %s: %s\n", t.Name(), reason))
	skips.mu.Unlock()
	t.Skip(reason)
}

// tellSkipped prints the skipped tests.
func tellSkipped(to io.Writer) {
	skips.mu.Lock()
	defer skips.mu.Unlock()
	for _, line := range skips.lines {
		_, _ = io.WriteString(to, line)
	}
}
