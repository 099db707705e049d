// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// shownLines is how much of Caddy's log is shown where a test failed.
const shownLines = 20

// Main runs the tests of a package that runs Caddy, and returns the exit status. What
// Caddy logs to the standard error stream goes to a file, because it would stand before
// the reason of a failure. Its end is shown after all tests, and only where one failed.
func Main(m *testing.M) int {
	stderr := os.Stderr
	file, err := os.CreateTemp("", "caddy-alive-test-*.log")
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	defer os.Remove(file.Name())
	defer file.Close()
	os.Stderr = file
	// Caddy's first logger has the stream from before; the one of a config replaces it
	if err := caddy.Validate(new(caddy.Config)); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	code := m.Run()
	os.Stderr = stderr
	if code != 0 {
		showEnd(stderr, file)
	}
	return code
}

// showEnd shows the last lines of what was logged.
func showEnd(to io.Writer, log *os.File) {
	if _, err := log.Seek(0, io.SeekStart); err != nil {
		return
	}
	text, err := io.ReadAll(log)
	if err != nil || len(text) == 0 {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	fmt.Fprintf(to, "the end of Caddy's log, %d lines in all:\n%s\n", len(lines), strings.Join(lines[max(0, len(lines)-shownLines):], "\n"))
}
