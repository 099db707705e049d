// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// table is the table of one part. Each column says how a row is computed from its
// samples, one of each round.
type table struct {
	Title   string   `json:"title"`
	Text    string   `json:"text"`
	Columns []column `json:"columns"`
	Rows    [][]any  `json:"rows"`
	Samples [][]any  `json:"samples"` // the round, and then the cells of a row
	charts  []chart
}

// column is one cell of each row.
type column struct {
	name  string
	of    func([]float64) float64 // computes a cell from samples; nil: the column is a label
	whole bool                    // it counts something
}

// MarshalText returns the name of the column.
func (c column) MarshalText() ([]byte, error) { return []byte(c.name), nil } //nolint:unparam // the interface has it

func label(name string) column   { return column{name: name} }
func typical(name string) column { return column{name: name, of: median[float64]} }
func worst(name string) column   { return column{name: name, of: slices.Max[[]float64]} }
func most(name string) column    { return column{name, slices.Max[[]float64], true} }
func total(name string) column {
	return column{name, func(values []float64) (sum float64) {
		for _, v := range values {
			sum += v
		}
		return sum
	}, true}
}

// median returns the median, of an even number the mean of the two in the middle.
func median[T float64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// Values that could not be measured, and that never happened. JSON has no numbers for
// them.
var (
	unknown = math.NaN()
	never   = math.Inf(1)
)

const neverText = "never"

// sample adds the measurement of a round, counted from 0.
func (t *table) sample(round int, cells ...any) {
	row := make([]any, len(cells))
	for i, c := range t.Columns {
		if row[i] = cells[i]; c.of != nil {
			row[i] = c.plain(number(cells[i]))
		}
	}
	t.Samples = append(t.Samples, append([]any{round + 1}, row...))
	if i := t.find(row); i < 0 {
		t.Rows = append(t.Rows, row)
	} else {
		t.Rows[i] = t.summary(row)
	}
}

// labels returns the labels of a row.
func (t *table) labels(row []any) []any {
	n := slices.IndexFunc(t.Columns, func(c column) bool { return c.of != nil })
	return row[:n]
}

// find returns the index of the row with the same labels, -1 if there is none.
func (t *table) find(like []any) int {
	return slices.IndexFunc(t.Rows, func(row []any) bool { return slices.Equal(t.labels(row), t.labels(like)) })
}

// summary computes one row from all samples with these labels.
func (t *table) summary(like []any) []any {
	row := slices.Clone(like)
	for i, c := range t.Columns {
		if c.of == nil {
			continue
		}
		var values []float64
		for _, s := range t.Samples {
			if v := number(s[1+i]); slices.Equal(t.labels(s[1:]), t.labels(like)) && !math.IsNaN(v) {
				values = append(values, v)
			}
		}
		if row[i] = nil; len(values) > 0 {
			row[i] = c.plain(c.of(values))
		}
	}
	return row
}

// value returns a number of the row with these labels.
func (t *table) value(name string, labels ...any) float64 {
	i := t.find(labels)
	j := slices.IndexFunc(t.Columns, func(c column) bool { return c.name == name })
	if i < 0 || j < 0 {
		return unknown
	}
	return number(t.Rows[i][j])
}

// each returns the numbers of all rounds of the row with these labels.
func (t *table) each(name string, labels ...any) (values []float64) {
	j := slices.IndexFunc(t.Columns, func(c column) bool { return c.name == name })
	for _, s := range t.Samples {
		if j >= 0 && slices.Equal(t.labels(s[1:]), labels) {
			values = append(values, number(s[1+j]))
		}
	}
	return values
}

// plain returns a number for JSON, which has neither NaN nor infinity.
func (c column) plain(v float64) any {
	switch {
	case math.IsNaN(v):
		return nil
	case math.IsInf(v, 0):
		return neverText
	case c.whole:
		return int(v)
	}
	return v
}

// number is the inverse of plain.
func number(v any) float64 {
	switch v := v.(type) {
	case float64:
		return v
	case int:
		return float64(v)
	case string:
		if v == neverText {
			return never
		}
	}
	return unknown
}

// cell returns a value as a table shows it.
func cell(v any) string {
	switch v := v.(type) {
	case nil:
		return "–"
	case float64:
		decimals := 3
		for limit := 1.0; decimals > 0 && v >= limit; limit *= 10 {
			decimals--
		}
		return strconv.FormatFloat(v, 'f', decimals, 64)
	default:
		return fmt.Sprint(v)
	}
}

func (t *table) markdown() string {
	var text strings.Builder
	fmt.Fprintf(&text, "## %s\n\n%s\n\n|", t.Title, t.Text)
	for _, c := range t.Columns {
		text.WriteString(" " + c.name + " |")
	}
	text.WriteString("\n|" + strings.Repeat("---|", len(t.Columns)) + "\n")
	for _, row := range t.Rows {
		for _, v := range row {
			text.WriteString("| " + cell(v) + " ")
		}
		text.WriteString("|\n")
	}
	return text.String()
}
