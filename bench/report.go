// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// report is the results.
type report struct {
	Environment environment `json:"environment"`
	Notes       []string    `json:"notes"`
	Tables      []*table    `json:"tables"`
	Budgets     []verdict   `json:"budgets"`
	configs     map[string]string
	shown       int // the number of tables that were printed
}

func (r *report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

func (r *report) table(title, text string, columns ...column) *table {
	t := &table{Title: title, Text: text, Columns: columns}
	r.Tables = append(r.Tables, t)
	return t
}

// rounds describes a number of rounds.
func rounds(n int) string {
	if n == 1 {
		return "one round"
	}
	return fmt.Sprintf("%d rounds", n)
}

// show prints the tables that were not printed yet.
func (r *report) show() {
	for _, t := range r.Tables[r.shown:] {
		fmt.Println(t.markdown())
	}
	r.shown = len(r.Tables)
}

// write writes the results to a folder, and prints the budgets.
func (r *report) write(folder string) error {
	fmt.Println(r.budgets())
	if err := os.MkdirAll(filepath.Join(folder, "configs"), 0o750); err != nil {
		return err
	}
	var text strings.Builder
	text.WriteString("# Benchmark results\n\n" + r.Environment.String() + "\n\n")
	for _, note := range r.Notes {
		text.WriteString("- " + note + "\n")
	}
	files := make(map[string]string)
	for _, t := range r.Tables {
		text.WriteString("\n" + t.markdown())
		for _, c := range t.charts {
			name := t.file(c)
			files[name] = t.svg(c)
			fmt.Fprintf(&text, "\n![%s](%s)\n", c.what, name)
		}
	}
	for name, config := range r.configs {
		files[filepath.Join("configs", name)] = config
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
