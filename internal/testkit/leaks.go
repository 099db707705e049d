// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/shared"
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

// leftovers returns what must not be there while no Caddy runs: goroutines, and state that
// configs share.
func leftovers() []string {
	left := Goroutines()
	for what, pool := range map[string]*caddy.UsagePool{
		"target": shared.Targets, "counters of the check": shared.CheckCounters, "counters of the pool": shared.PoolCounters,
		"watch list": shared.WatchLists, "settings": shared.Settings, "witness": shared.Witnesses,
		"dynamic source": shared.Sources, "slots": shared.Slots,
	} {
		pool.Range(func(key, _ any) bool {
			left = append(left, fmt.Sprintf("%s %v", what, key))
			return true
		})
	}
	return left
}
