// SPDX-License-Identifier: Apache-2.0

package page

import (
	"slices"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// The newest result is at the right, bars are in proportion to the slowest, and failed
// results have a mark at the top.
func TestChart_BarsAreInProportion(t *testing.T) {
	for name, tc := range map[string]struct {
		check   view.Check
		slowest float64
		want    chart
	}{
		"no result":             {view.Check{}, 0, chart{Text: "0 results, 0 failed"}},
		"one":                   {view.Check{Recent: []float64{0.25}}, .25, chart{"1 result, 0 failed", "M236 0v-24", ""}},
		"one failed":            {view.Check{Recent: []float64{-0.25}}, .25, chart{"1 result, 1 failed", "", "M236 0v-24M236-24v2"}},
		"in proportion":         {view.Check{Recent: []float64{1, -2, 4}}, 4, chart{"3 results, 1 failed", "M228 0v-6M236 0v-24", "M232 0v-12M232-24v2"}},
		"of a slower neighbor":  {view.Check{Recent: []float64{1, -2}}, 8, chart{"2 results, 1 failed", "M232 0v-3", "M236 0v-6M236-24v2"}},
		"never invisible":       {view.Check{Recent: []float64{0.01, 4000}}, 4000, chart{"2 results, 0 failed", "M232 0v-2M236 0v-24", ""}},
		"no duration":           {view.Check{Recent: []float64{0}}, 0, chart{"1 result, 0 failed", "M236 0v-2", ""}},
		"as many as remembered": {view.Check{Recent: slices.Repeat([]float64{2}, view.Remembered)}, 2, chart{"60 results, 0 failed", fullPath(), ""}},
	} {
		if got := newChart(&tc.check, tc.slowest); got != tc.want {
			t.Errorf("%s: got %+v, want %+v", name, got, tc.want)
		}
	}
}

// fullPath is the path of a full chart whose bars are all as high as it is.
func fullPath() string {
	var path []byte
	for i := range view.Remembered {
		path = appendLine(path, barDistance*i, 0, -chartHeight)
	}
	return string(path)
}

// A full chart begins at the left edge of the drawing and ends at the right one.
func TestChart_FillsTheDrawing(t *testing.T) {
	if path := fullPath(); !strings.HasPrefix(path, "M0 0v-24M4 0v-24") || !strings.HasSuffix(path, "M236 0v-24") {
		t.Errorf("the path is %s", path)
	}
}
