// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// minuteLimit lets a few reports of any minute pass, and holds the others back for one
// report of all of them. It has no clock and no lock of its own.
type minuteLimit struct {
	most   int         // how many pass in any minute
	passed []time.Time // when the last ones passed, the oldest first
	held   heldBack
}

// heldBack is what a limit has held back since it was last asked.
type heldBack struct {
	since     time.Time // of the first
	total     int
	causes    map[string]int
	upstreams map[string]struct{}
}

// add reports whether a report about an upstream passes. If not, it is held back.
func (l *minuteLimit) add(upstream, cause string, now time.Time) bool {
	l.passed = slices.DeleteFunc(l.passed, func(at time.Time) bool { return now.Sub(at) >= time.Minute })
	if len(l.passed) < l.most {
		l.passed = append(l.passed, now)
		return true
	}
	if l.held.total == 0 {
		l.held = heldBack{since: now, causes: make(map[string]int), upstreams: make(map[string]struct{})}
	}
	l.held.total++
	l.held.causes[cause]++
	l.held.upstreams[upstream] = struct{}{}
	return false
}

// due is when to report what is held back, if there is something.
func (l *minuteLimit) due() (at time.Time, some bool) {
	return l.held.since.Add(time.Minute), l.held.total > 0
}

// take returns what is held back, which is not held back any more.
func (l *minuteLimit) take() heldBack {
	held := l.held
	l.held = heldBack{}
	return held
}

// span is the time since the first: "minute", or less if it was not waited for.
func (h heldBack) span(now time.Time) string {
	if took := now.Sub(h.since); took < time.Minute {
		return max(time.Second, took.Round(time.Second)).String()
	}
	return "minute"
}

// byCause is how often each cause was given, the most frequent first: "2 connect, 1 outcome".
func (h heldBack) byCause() string {
	causes := slices.SortedFunc(maps.Keys(h.causes), func(a, b string) int {
		if h.causes[a] != h.causes[b] {
			return h.causes[b] - h.causes[a]
		}
		return strings.Compare(a, b)
	})
	for i, cause := range causes {
		causes[i] = fmt.Sprintf("%d %s", h.causes[cause], cause)
	}
	return strings.Join(causes, ", ")
}
