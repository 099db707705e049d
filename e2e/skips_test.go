// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"sync"
	"testing"
)

// skips are the tests that were skipped, and why: `go test` says nothing of them.
var skips struct {
	mu    sync.Mutex
	lines []string
}

// skip skips a test for a reason, which is told at the end of the run, too.
func skip(t *testing.T, reason string, args ...any) {
	t.Helper()
	reason = fmt.Sprintf(reason, args...)
	skips.mu.Lock()
	skips.lines = append(skips.lines, fmt.Sprintf("skipped: %s, for %s\n", t.Name(), reason))
	skips.mu.Unlock()
	t.Skipf("skipped, for %s", reason)
}

// tellSkipped says what was skipped.
func tellSkipped(to io.Writer) {
	skips.mu.Lock()
	defer skips.mu.Unlock()
	for _, line := range skips.lines {
		_, _ = io.WriteString(to, line)
	}
}
