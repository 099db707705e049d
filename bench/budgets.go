// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import "fmt"

// verdict is whether a budget is held.
type verdict struct {
	Budget   string  `json:"budget"`
	Measured any     `json:"measured"` // a number as tables have them
	AtMost   float64 `json:"at_most"`
	Verdict  string  `json:"verdict"`
}

// Verdicts. What was not measured, and what never happened, is missed.
const (
	held   = "held"
	missed = "missed"
)

func (r *report) budget(what string, measured, atMost float64) {
	v := verdict{what, column{}.plain(measured), atMost, missed}
	if measured <= atMost {
		v.Verdict = held
	}
	r.Budgets = append(r.Budgets, v)
}

// budgets writes the verdicts as a table.
func (r *report) budgets() string {
	t := table{Title: "Budgets", Text: "What this project promises itself.", Columns: []column{label("budget"), label("measured"), label("at most"), label("")}}
	for _, v := range r.Budgets {
		text := v.Verdict
		if text != held {
			text = fmt.Sprintf("**%s**", text)
		}
		t.Rows = append(t.Rows, []any{v.Budget, v.Measured, v.AtMost, text})
	}
	return t.markdown()
}
