// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strconv"
	"strings"
)

// chart is a column that is drawn as bars.
type chart struct {
	values int                  // the column
	what   string               // is drawn
	rows   func(row []any) bool // those to draw; nil: all
}

// chart draws a column.
func (t *table) chart(column int) {
	t.charts = append(t.charts, chart{values: column, what: t.Columns[column].name})
}

// chartWhere draws a column of the rows that f accepts.
func (t *table) chartWhere(column int, what string, f func(row []any) bool) {
	t.charts = append(t.charts, chart{column, what, f})
}

// file returns the name of the file with the drawing of a column.
func (t *table) file(c chart) string {
	return strings.NewReplacer(" ", "-", ",", "", ":", "").Replace(strings.ToLower(t.Title)) + "-" + strconv.Itoa(c.values) + ".svg"
}

// svg draws a column as bars, without the rows that have no number there.
func (t *table) svg(c chart) string {
	const width, bar, left, right = 720, 26, 300, 90
	var rows [][]any
	largest := 0.0
	for _, row := range t.Rows {
		v := number(row[c.values])
		if math.IsNaN(v) || math.IsInf(v, 0) || c.rows != nil && !c.rows(row) {
			continue
		}
		rows = append(rows, row)
		largest = max(largest, v)
	}
	var text strings.Builder
	fmt.Fprintf(&text, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13" role="img">`+"\n", width, bar*len(rows)+44)
	fmt.Fprintf(&text, `<title>%s</title><rect width="100%%" height="100%%" fill="#fff"/><text x="10" y="22" font-weight="bold">%[1]s</text>`+"\n", html.EscapeString(t.Title+": "+c.what))
	for i, row := range rows {
		var names []string
		for column, v := range t.labels(row) {
			if slices.ContainsFunc(rows, func(other []any) bool { return other[column] != v }) { // all bars equal would show nothing
				names = append(names, cell(v))
			}
		}
		name, fill := strings.Join(names, " "), "#9aa5b1"
		if strings.Contains(name, thisBuild) {
			fill = "#1f7a4d"
		}
		y, length := 36+i*bar, 0.0
		if largest > 0 {
			length = number(row[c.values]) / largest * (width - left - right)
		}
		fmt.Fprintf(&text, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d">%s</text>`+"\n",
			left-8, y+16, html.EscapeString(name), left, y+2, length, bar-6, fill, left+length+6, y+16, cell(row[c.values]))
	}
	text.WriteString("</svg>\n")
	return text.String()
}
