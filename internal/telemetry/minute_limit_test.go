// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// In any minute no more than the limit pass. All others are in a sum, which is due a minute
// after its first.
func TestMinuteLimit_NothingIsLost(t *testing.T) {
	for _, most := range []int{0, 1, 10} {
		for seed := range uint64(20) {
			random := rand.New(rand.NewPCG(seed, 0))
			l := minuteLimit{most: most}
			now := time.Unix(1000, 0)
			var passed, firstHeld []time.Time
			summed := 0
			const all = 500
			for range all {
				now = now.Add(time.Duration(random.IntN(12000)) * time.Millisecond)
				if at, some := l.due(); some && !at.After(now) {
					if want := firstHeld[0].Add(time.Minute); !at.Equal(want) {
						t.Fatalf("limit %d: the sum is due at %v, want %v", most, at, want)
					}
					held := l.take()
					if held.total != len(firstHeld) || held.span(at) != "minute" {
						t.Fatalf("limit %d: the sum is %d in %s, want %d in a minute", most, held.total, held.span(at), len(firstHeld))
					}
					summed, firstHeld = summed+held.total, nil
				}
				if l.add("a:80", "connect", now) {
					passed = append(passed, now)
				} else {
					firstHeld = append(firstHeld, now)
				}
				last := slices.DeleteFunc(slices.Clone(passed), func(at time.Time) bool { return now.Sub(at) >= time.Minute })
				if len(last) > most || len(firstHeld) > 0 && firstHeld[len(firstHeld)-1].Equal(now) && len(last) < most {
					t.Fatalf("limit %d: %d passed in a minute", most, len(last))
				}
			}
			if _, some := l.due(); some != (len(firstHeld) > 0) {
				t.Errorf("limit %d: something is held back: %v, want %d", most, some, len(firstHeld))
			}
			if n := len(passed) + summed + l.take().total; n != all {
				t.Errorf("limit %d: %d were reported, want %d", most, n, all)
			}
			if _, some := l.due(); some {
				t.Errorf("limit %d: something is still held back", most)
			}
		}
	}
}

// A sum counts by cause, the most frequent first, and knows the upstreams.
func TestMinuteLimit_SumByCause(t *testing.T) {
	var l minuteLimit
	now := time.Unix(1000, 0)
	for _, cause := range []string{"outcome", "connect", "stall", "connect"} {
		l.add(fmt.Sprint(cause, ":80"), cause, now)
	}
	held := l.take()
	if got, want := held.byCause(), "2 connect, 1 outcome, 1 stall"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := slices.Sorted(maps.Keys(held.upstreams)), []string{"connect:80", "outcome:80", "stall:80"}; !slices.Equal(got, want) {
		t.Errorf("upstreams %v, want %v", got, want)
	}
	for took, want := range map[time.Duration]string{0: "1s", 1400 * time.Millisecond: "1s", 59 * time.Second: "59s", time.Minute: "minute", time.Hour: "minute"} {
		if got := held.span(now.Add(took)); got != want {
			t.Errorf("after %s: %q, want %q", took, got, want)
		}
	}
}
