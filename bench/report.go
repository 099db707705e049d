// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// report is what was measured.
type report struct {
	Notes   []string  `json:"notes"`
	Tables  []*table  `json:"tables"`
	Budgets []verdict `json:"budgets"`
	shown   int       // so many tables were printed
}

// table is one part, or a half of it.
type table struct {
	Title   string   `json:"title"`
	Text    string   `json:"text"`
	Columns []string `json:"columns"`
	Rows    [][]any  `json:"rows"`
	charts  [][2]int
}

// verdict is whether a budget is held.
type verdict struct {
	Budget   string  `json:"budget"`
	Measured float64 `json:"measured"`
	AtMost   float64 `json:"at_most"`
	Held     bool    `json:"held"`
}

func (r *report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

func (r *report) table(title, text string, columns ...string) *table {
	t := &table{Title: title, Text: text, Columns: columns}
	r.Tables = append(r.Tables, t)
	return t
}

func (r *report) budget(what string, measured, atMost float64) {
	r.Budgets = append(r.Budgets, verdict{what, measured, atMost, measured <= atMost})
}

func (t *table) add(cells ...any) { t.Rows = append(t.Rows, cells) }

// value returns a number of the table.
func (t *table) value(row, column int) float64 {
	switch v := t.Rows[row][column].(type) {
	case float64:
		return v
	case int:
		return float64(v)
	case int64:
		return float64(v)
	}
	return 0
}

// chart has a column drawn, with the labels of all columns up to another one.
func (t *table) chart(labels, values int) { t.charts = append(t.charts, [2]int{labels, values}) }

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// cell writes a value as a table shows it.
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
	fmt.Fprintf(&text, "## %s\n\n%s\n\n| %s |\n|%s\n", t.Title, t.Text, strings.Join(t.Columns, " | "), strings.Repeat("---|", len(t.Columns)))
	for _, row := range t.Rows {
		for _, v := range row {
			text.WriteString("| " + cell(v) + " ")
		}
		text.WriteString("|\n")
	}
	return text.String()
}

// svg draws a column as bars.
func (t *table) svg(labels, values int) string {
	const width, bar, left, right = 720, 26, 300, 90
	largest := 0.0
	for i := range t.Rows {
		largest = max(largest, t.value(i, values))
	}
	var text strings.Builder
	fmt.Fprintf(&text, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13" role="img">`+"\n", width, bar*len(t.Rows)+44)
	fmt.Fprintf(&text, `<title>%s</title><rect width="100%%" height="100%%" fill="#fff"/><text x="10" y="22" font-weight="bold">%[1]s</text>`+"\n", html.EscapeString(t.Title+": "+t.Columns[values]))
	for i, row := range t.Rows {
		var label []string
		for _, v := range row[:labels+1] {
			label = append(label, cell(v))
		}
		fill := "#9aa5b1"
		if strings.Contains(strings.Join(label, " "), thisBuild) {
			fill = "#1f7a4d"
		}
		y, length := 36+i*bar, 0.0
		if largest > 0 {
			length = t.value(i, values) / largest * (width - left - right)
		}
		fmt.Fprintf(&text, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d">%s</text>`+"\n",
			left-8, y+16, html.EscapeString(strings.Join(label, " ")), left, y+2, length, bar-6, fill, left+length+6, y+16, cell(row[values]))
	}
	text.WriteString("</svg>\n")
	return text.String()
}

// budgets writes the verdicts as a table.
func (r *report) budgets() string {
	t := table{Title: "Budgets", Text: "What this project promises itself.", Columns: []string{"budget", "measured", "at most", ""}}
	for _, v := range r.Budgets {
		held := "held"
		if !v.Held {
			held = "**missed**"
		}
		t.add(v.Budget, v.Measured, v.AtMost, held)
	}
	return t.markdown()
}

// show prints the tables that were not printed yet.
func (r *report) show() {
	for _, t := range r.Tables[r.shown:] {
		fmt.Println(t.markdown())
	}
	r.shown = len(r.Tables)
}

// write writes everything to a folder, and prints the budgets.
func (r *report) write(folder string) error {
	fmt.Println(r.budgets())
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return err
	}
	var text strings.Builder
	text.WriteString("# Measured side by side\n\n")
	for _, note := range r.Notes {
		text.WriteString("- " + note + "\n")
	}
	files := make(map[string]string)
	for _, t := range r.Tables {
		text.WriteString("\n" + t.markdown())
		for _, c := range t.charts {
			name := strings.NewReplacer(" ", "-", ",", "", ":", "").Replace(strings.ToLower(t.Title)) + "-" + strconv.Itoa(c[1]) + ".svg"
			files[name] = t.svg(c[0], c[1])
			fmt.Fprintf(&text, "\n![%s](%s)\n", t.Columns[c[1]], name)
		}
	}
	files["README.md"] = text.String() + "\n" + r.budgets()
	raw, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	files["results.json"] = string(raw) + "\n"
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}
