// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// verdict says whether a budget is held.
type verdict struct {
	Budget   string    `json:"budget"`
	Measured any       `json:"measured"` // as tables show it
	Rounds   []float64 `json:"rounds,omitempty"`
	AtMost   float64   `json:"at_most"`
	Verdict  string    `json:"verdict"`
	speed    bool      // it depends on the machine and its other load
}

// Verdicts. What was not measured, and what never happened, is missed.
const (
	held      = "held"
	missed    = "missed"
	undecided = "undecided" // the noise is larger than the distance to the limit
)

// budget judges a figure that is the same on every machine.
func (r *report) budget(what string, measured, atMost float64) {
	v := verdict{Budget: what, Measured: column{}.plain(measured), AtMost: atMost, Verdict: missed}
	if measured <= atMost {
		v.Verdict = held
	}
	r.Budgets = append(r.Budgets, v)
}

// fewer judges a count that has to be smaller than that of all others in the same run.
func (r *report) fewer(what string, measured float64, others []float64) {
	if len(others) > 0 {
		r.budget(what, measured, slices.Min(others)-1)
	}
}

// speed judges a figure that depends on the machine.
func (r *report) speed(what string, measured, atMost float64) {
	r.budget(what, measured, atMost)
	r.Budgets[len(r.Budgets)-1].speed = true
}

// ratio judges the median of the ratios of all rounds. It is undecided if the limit is
// within the ratios, and no farther from the median than half of them are.
func (r *report) ratio(what string, ratios []float64, atMost float64) {
	ratios = slices.DeleteFunc(ratios, func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) })
	if len(ratios) == 0 {
		r.speed(what, unknown, atMost)
		return
	}
	middle := median(ratios)
	r.speed(what, middle, atMost)
	v := &r.Budgets[len(r.Budgets)-1]
	v.Rounds = ratios
	distances := make([]float64, 0, len(ratios))
	for _, ratio := range ratios {
		distances = append(distances, math.Abs(ratio-middle))
	}
	if slices.Min(ratios) <= atMost && atMost <= slices.Max(ratios) && math.Abs(middle-atMost) <= median(distances) && len(ratios) > 1 {
		v.Verdict = undecided
	}
}

// broken returns an error with the missed budgets that do not depend on the machine.
func (r *report) broken() (err error) {
	for _, v := range r.Budgets {
		if v.Verdict == missed && !v.speed {
			err = errors.Join(err, fmt.Errorf("missed: %s: %s, at most %s", v.Budget, cell(v.Measured), cell(v.AtMost)))
		}
	}
	return err
}

// budgets writes the verdicts as a table.
func (r *report) budgets() string {
	t := table{Title: "Budgets", Text: "These are the limits that this project sets for itself. A measurement that is a median has the lowest and the highest round beside it. The verdict is undecided if the limit is between these two, and if its distance from the median is not larger than the median distance of the rounds.", Columns: []column{label("budget"), label("measured"), label("rounds"), label("at most"), label("verdict")}}
	for _, v := range r.Budgets {
		text := v.Verdict
		if text != held {
			text = fmt.Sprintf("**%s**", text)
		}
		rounds := ""
		if len(v.Rounds) > 0 {
			rounds = cell(slices.Min(v.Rounds)) + " to " + cell(slices.Max(v.Rounds))
		}
		t.Rows = append(t.Rows, []any{v.Budget, v.Measured, rounds, v.AtMost, text})
	}
	return t.markdown()
}
