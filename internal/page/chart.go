// SPDX-License-Identifier: Apache-2.0

package page

import (
	"fmt"
	"math"
	"strconv"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// The drawing of a chart is 240 by 24. Its bars stand on the line y = 0, each on the
// middle of its place.
const (
	barDistance = 4
	chartHeight = 24
)

// chart is a text, and bars as two paths of SVG: of what passed and what failed.
type chart struct{ Text, Passed, Failed string }

// slowestOf returns the longest of the results of all checks, in milliseconds.
func slowestOf(rows []*view.Upstream) (slowest float64) {
	for _, u := range rows {
		for i := range u.Checks {
			for _, ms := range u.Checks[i].Recent {
				slowest = max(slowest, math.Abs(ms))
			}
		}
	}
	return slowest
}

// newChart draws the last results of a check, the newest at the right. The height of a bar is
// its duration in proportion to a slowest one. A failed result has a mark at the top as well,
// for readers who cannot tell the colours apart.
func newChart(c *view.Check, slowest float64) chart {
	failures := 0
	// a bar takes 10 bytes at most
	passed, failed := make([]byte, 0, 10*len(c.Recent)), []byte(nil)
	for i, ms := range c.Recent {
		x := (view.Remembered - len(c.Recent) + i) * barDistance
		height := heightOf(math.Abs(ms), slowest)
		if ms >= 0 {
			passed = appendLine(passed, x, 0, -height)
		} else {
			failures++
			failed = appendLine(failed, x, 0, -height)
			failed = appendLine(failed, x, -chartHeight, 2)
		}
	}
	results := "results"
	if len(c.Recent) == 1 {
		results = "result"
	}
	return chart{Text: fmt.Sprintf("%d %s, %d failed", len(c.Recent), results, failures), Passed: string(passed), Failed: string(failed)}
}

// newTrend draws the requests a second of the last minutes, the newest at the right, and below
// them, in another colour, those that failed.
func newTrend(points []view.TrendPoint) chart {
	if len(points) == 0 {
		return chart{}
	}
	most, failures := 0.0, 0.0
	for _, p := range points {
		most, failures = max(most, p.Requests, p.Failures), max(failures, p.Failures)
	}
	var passed, failed []byte
	for i, p := range points {
		x := (view.TrendLength - len(points) + i) * barDistance
		if p.Requests > 0 {
			passed = appendLine(passed, x, 0, -heightOf(p.Requests, most))
		}
		if p.Failures > 0 {
			failed = appendLine(failed, x, 0, -heightOf(p.Failures, most))
		}
	}
	text := fmt.Sprintf("requests a second in the last five minutes: %s at most", brief(most))
	if failures > 0 {
		text += fmt.Sprintf(", %s failed at most", brief(failures))
	}
	return chart{Text: text, Passed: string(passed), Failed: string(failed)}
}

// brief writes a number with three digits at most.
func brief(n float64) string {
	if n >= 100 {
		return strconv.FormatFloat(math.Round(n), 'f', -1, 64)
	}
	return strconv.FormatFloat(n, 'g', 3, 64)
}

// heightOf returns the height of a bar: at least 2, so that it can be seen.
func heightOf(value, most float64) int {
	if most <= 0 {
		return 2
	}
	return max(2, int(math.Round(chartHeight*min(1, value/most))))
}

// appendLine appends a vertical line to a path of SVG.
func appendLine(path []byte, x, y, length int) []byte {
	path = append(path, 'M')
	path = strconv.AppendInt(path, int64(x), 10)
	if y >= 0 { // a minus sign separates numbers, too
		path = append(path, ' ')
	}
	path = strconv.AppendInt(path, int64(y), 10)
	path = append(path, 'v')
	return strconv.AppendInt(path, int64(length), 10)
}
