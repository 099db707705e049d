// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"testing"
	"time"
)

const (
	// Patience is how long a test waits for what has to happen at some time. Only a failing
	// test waits that long.
	Patience = 30 * time.Second
	// Slack is what a busy machine may add to a time that is promised.
	Slack = 2 * time.Second
)

// Eventually fails the test unless cond becomes true in time.
func Eventually(tb testing.TB, within time.Duration, what string, cond func() bool) {
	tb.Helper()
	if !Poll(within, cond) {
		tb.Fatalf("not within %s: %s", within, what)
	}
}

// Poll reports whether cond becomes true in time.
func Poll(within time.Duration, cond func() bool) bool {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			return cond()
		}
	}
	return true
}

// Stays fails the test unless cond holds for the whole time.
func Stays(tb testing.TB, during time.Duration, what string, cond func() bool) {
	tb.Helper()
	end := time.NewTimer(during)
	defer end.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if !cond() {
			tb.Fatalf("no longer true: %s", what)
		}
		select {
		case <-tick.C:
		case <-end.C:
			return
		}
	}
}

// Wait returns the next value, or ends the test if there is none in time.
func Wait[T any](tb testing.TB, values <-chan T, within time.Duration) T {
	tb.Helper()
	select {
	case value := <-values:
		return value
	case <-time.After(within):
		tb.Fatalf("nothing within %s", within)
		panic("unreachable")
	}
}
