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
)

// pickRatio is a line of the test that holds the pick to its budgets.
type pickRatio struct {
	what          string
	ratio, atMost float64
}

var pickLine = regexp.MustCompile(`: +(\d+ upstreams, +\d+% down, \d+ at once): .* ns a pick, (\w+) .*: ratio ([\d.]+) of ([\d.]+)`)

// runPicks runs that test.
func runPicks(ctx context.Context) (ratios []pickRatio, err error) {
	test := exec.CommandContext(ctx, "go", "test", "-count", "1", "-run", "TestBudgets", "-budgets", "-v", ".")
	test.Dir = ".."
	out, err := test.CombinedOutput() // it fails where a budget is missed by far, which its lines say
	for line := range strings.Lines(string(out)) {
		m := pickLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		ratio, ratioErr := strconv.ParseFloat(m[3], 64)
		atMost, atMostErr := strconv.ParseFloat(m[4], 64)
		if err := errors.Join(ratioErr, atMostErr); err != nil {
			return nil, err
		}
		ratios = append(ratios, pickRatio{strings.Join(strings.Fields(m[1]), " ") + ", beside " + m[2], ratio, atMost})
	}
	if len(ratios) == 0 {
		return nil, fmt.Errorf("the test of the budgets says nothing: %w: %s", err, out)
	}
	return ratios, nil
}

// picks runs the benchmarks of the pick, which compare it with Caddy's own policies.
func (b *bench) picks(ctx context.Context) error {
	t := b.table("Picks", "The time of a pick over that of Caddy's own policy in the same run, by turns.", label("pool"), typical("ratio"), typical("at most"))
	ratios, err := runPicks(ctx)
	if err != nil {
		return err
	}
	for _, r := range ratios {
		t.sample(0, r.what, r.ratio, r.atMost)
		b.budget("pick: "+r.what, r.ratio, r.atMost)
	}
	return nil
}
