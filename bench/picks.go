// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// contests is how many lines of ratios TestBudgets prints: for ten pools, with one and
// with two goroutines.
const contests = 20

// What TestBudgets prints: a line for each contest; one for each pool in which a pick
// allocates memory; and one for making an order anew.
var (
	ratioLine      = regexp.MustCompile(`: +(\d+ upstreams, +\d+% down, \d+ at once): .* ns a pick, (\w+) .*: ratio ([\d.]+) of ([\d.]+)`)
	allocationLine = regexp.MustCompile(`: ([\d.]+) allocations a pick`)
	rebuildLine    = regexp.MustCompile(`takes ([\w.µ]+) to show`)
)

// picks runs the test for the budgets of the pick, beside Caddy's own policies. What
// the test does not print is missed.
func (b *bench) picks(ctx context.Context) error {
	t := b.table("Picks", "The ratio is the time of a pick divided by the time of a pick of Caddy's own policy. Both are measured in turns in the same run. The figures come from `go test -run TestBudgets -v . -budgets`.", label("pool"), typical("ratio"), typical("at most"))
	test := exec.CommandContext(ctx, "go", "test", "-count", "1", "-run", "^TestBudgets$", "-budgets", "-v", ".")
	test.Dir = ".."
	out, failed := test.CombinedOutput()

	ended, allocations, rebuild, missedAny := 0, 0.0, unknown, false
	for line := range strings.Lines(string(out)) {
		if m := ratioLine.FindStringSubmatch(line); m != nil {
			pool := strings.Join(strings.Fields(m[1]), " ") + ", beside " + m[2]
			ratio, ratioErr := strconv.ParseFloat(m[3], 64)
			atMost, atMostErr := strconv.ParseFloat(m[4], 64)
			if err := errors.Join(ratioErr, atMostErr); err != nil {
				return err
			}
			ended++
			missedAny = missedAny || ratio > atMost
			t.sample(0, pool, ratio, atMost)
			b.speed("pick: "+pool, ratio, atMost)
		} else if m := allocationLine.FindStringSubmatch(line); m != nil {
			n, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				return err
			}
			allocations = max(allocations, n)
		} else if m := rebuildLine.FindStringSubmatch(line); m != nil {
			took, err := time.ParseDuration(m[1])
			if err != nil {
				return err
			}
			rebuild = milliseconds(took)
		}
	}
	if ended < contests && allocations == 0 {
		allocations = unknown // the pools that are not printed are unknown
	}
	b.budget("pick: measurements that did not end", float64(contests-ended), 0)
	b.budget("allocations of a pick", allocations, 0)
	b.speed("ms until picks follow a changed status, 1,000 upstreams with weights 1 to 10", rebuild, 5)
	if explained := missedAny || allocations > 0 || rebuild > 5; failed != nil && (ended < contests || !explained) {
		return fmt.Errorf("TestBudgets: %w: %s", failed, out)
	}
	return nil
}
