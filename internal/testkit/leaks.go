// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"runtime"
	"strings"
)

// Goroutines returns the stacks of goroutines that run code of this project
// other than its tests and this package.
func Goroutines() []string {
	buffer := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buffer, true)
		if n < len(buffer) {
			buffer = buffer[:n]
			break
		}
		buffer = make([]byte, 2*len(buffer))
	}
	var found []string
	for stack := range strings.SplitSeq(string(buffer), "\n\n") {
		lines := strings.Split(stack, "\n")
		for i, line := range lines[:len(lines)-1] {
			function := strings.TrimPrefix(line, "created by ")
			if strings.HasPrefix(function, "github.com/caddy-alive/caddy-alive") && !strings.HasPrefix(function, "github.com/caddy-alive/caddy-alive/internal/testkit.") &&
				!strings.Contains(lines[i+1], "_test.go:") {
				found = append(found, stack)
				break
			}
		}
	}
	return found
}
