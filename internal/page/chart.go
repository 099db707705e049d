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

// chart is the last results of a check: a text, and bars as two paths of SVG.
type chart struct{ Text, Passed, Failed string }

// newChart draws the last results, the newest at the right. The height of a bar is its
// duration in proportion to the slowest. A failed result has a mark at the top as well,
// for readers who cannot tell the colours apart.
func newChart(c *view.Check) chart {
	slowest, failures := 0.0, 0
	for _, ms := range c.Recent {
		slowest = max(slowest, math.Abs(ms))
		if ms < 0 {
			failures++
		}
	}
	// a bar takes 10 bytes at most
	passed, failed := make([]byte, 0, 10*len(c.Recent)), []byte(nil)
	for i, ms := range c.Recent {
		x := (view.Remembered - len(c.Recent) + i) * barDistance
		height := 2
		if slowest > 0 {
			height = max(2, int(math.Round(chartHeight*math.Abs(ms)/slowest)))
		}
		if ms >= 0 {
			passed = appendLine(passed, x, 0, -height)
		} else {
			failed = appendLine(failed, x, 0, -height)
			failed = appendLine(failed, x, -chartHeight, 2)
		}
	}
	text := fmt.Sprintf("%d results, %d failed", len(c.Recent), failures)
	if c.Last != nil {
		text += fmt.Sprintf(", the last took %g ms, the slowest %g ms", c.Last.DurationMS, slowest)
	}
	return chart{Text: text, Passed: string(passed), Failed: string(failed)}
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
