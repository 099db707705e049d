// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

const (
	// indent is before the lines that continue an upstream.
	indent = "    "
	// gap is between two cells of a row.
	gap = "  "
)

// stateColumn is the one with a colour.
const stateColumn = 1

var tableHeader = []string{"UPSTREAM", "STATE", "WEIGHT", "IN FLIGHT", "SINCE"}

// table is a list as a terminal shows it, of upstreams or of the members of a fleet: for each
// a row of cells, which continues on the next line where the terminal is too narrow, and
// below it the reason.
type table struct {
	screen
	to     *bytes.Buffer
	widths []int // of the columns
}

// measure makes the columns wide enough for a row.
func (t *table) measure(row []string) {
	for i, cell := range row {
		t.widths[i] = max(t.widths[i], columnsOf(cell))
	}
}

// newTable returns a table without rows.
func (s screen) newTable(to *bytes.Buffer, header []string) *table {
	t := &table{screen: s, to: to, widths: make([]int, len(header))}
	t.measure(header)
	return t
}

// writeRow writes one row, or the header. Where a line ends depends on
// the widths of the columns only, so all rows stay aligned.
func (t *table) writeRow(row []string, colour string) {
	var line strings.Builder
	used := 0 // columns of the line
	newLine := func() {
		t.to.WriteString(strings.TrimRight(line.String(), " ") + "\n")
		line.Reset()
		line.WriteString(indent)
		used = len(indent)
	}
	for i, cell := range row {
		if i > 0 && t.columns > 0 && used+t.widths[i] > t.columns {
			newLine()
		}
		parts := []string{cell}
		if t.columns > 0 && used+columnsOf(cell) > t.columns { // it is longer than a line
			parts = wrap(cell, t.indented())
		}
		next := used + t.widths[i] + len(gap)
		for j, part := range parts {
			if j > 0 {
				newLine()
			}
			if i == stateColumn {
				part = t.coloured(colour, part)
			}
			line.WriteString(part)
		}
		line.WriteString(strings.Repeat(" ", t.widths[i]-columnsOf(cell)) + gap)
		used = next
	}
	t.to.WriteString(strings.TrimRight(line.String(), " ") + "\n")
}

// writeReason writes the reason below a row.
func (t *table) writeReason(reason string) {
	if reason == "" {
		return
	}
	for _, line := range wrap(reason, t.indented()) {
		t.to.WriteString(indent + line + "\n")
	}
}

// indented is how many columns there are after the indent, 0 if nothing has to fit.
func (t *table) indented() int {
	if t.columns == 0 {
		return 0
	}
	return max(1, t.columns-len(indent))
}

// cells returns the row of an upstream of a pool, which is nil if it is in none.
func cells(row *view.Upstream, p *view.Pool, now time.Time) []string {
	return []string{printable(row.Upstream), printable(stateCell(row, now)), weightCell(row, p), row.InFlight(), sinceCell(row.StateSince(), now)}
}

// groupCells returns the row that stands for several upstreams of a pool with the same state.
func groupCells(rows []*view.Upstream, p *view.Pool, now time.Time) []string {
	first := rows[0]
	weight, inFlight := weightCell(first, p), 0
	var oldest, newest *time.Time
	for _, row := range rows {
		if weightCell(row, p) != weight {
			weight = "various"
		}
		inFlight += row.Requests
		if since := row.StateSince(); since != nil {
			if oldest == nil || since.Before(*oldest) {
				oldest = since
			}
			if newest == nil || since.After(*newest) {
				newest = since
			}
		}
	}
	since := sinceCell(newest, now)
	if until := sinceCell(oldest, now); until != since {
		since = strings.TrimSuffix(since, " ago") + " to " + until
	}
	return []string{strconv.Itoa(len(rows)) + " upstreams", printable(first.State()), weight, strconv.Itoa(inFlight), since}
}

// stateCell shows the state: for how long an upstream is still ejected, and of one that drains,
// whether it is up.
func stateCell(row *view.Upstream, now time.Time) string {
	switch state := row.State(); {
	case state == "ejected":
		return state + " (" + row.Ejection(now, func(until time.Time) string { return ageCell(until.Sub(now)) }) + ")"
	case state == "draining" && row.Status != "up":
		return state + " (" + row.Status + ")"
	default:
		return state
	}
}

// stateColour tells what is wrong from what an operator has set, and from what is well.
func stateColour(row *view.Upstream) string {
	switch row.State() {
	case "down", "ejected":
		return red
	case "draining", "maintenance":
		if row.Status == "down" {
			return red
		}
		return cyan
	case "up":
		if row.Serving || row.Backup {
			return green
		}
	}
	return yellow
}

// weightCell shows the weight: before it the effective one if that differs, and after it that
// of the config if that differs, and the group of a backup.
func weightCell(row *view.Upstream, p *view.Pool) string {
	text := strconv.Itoa(row.Weight)
	if row.EffectiveWeight != float64(row.Weight) && row.EffectiveWeight > 0 {
		text = strconv.FormatFloat(row.EffectiveWeight, 'g', 3, 64) + "/" + text
	}
	var notes []string
	if row.Weight != row.ConfiguredWeight && !row.Gone {
		notes = append(notes, fmt.Sprintf("config %d", row.ConfiguredWeight))
	}
	if name := p.GroupName(row.Group); name != "" {
		notes = append(notes, name)
	}
	if len(notes) > 0 {
		text += " (" + strings.Join(notes, ", ") + ")"
	}
	return text
}

// sinceCell shows how long ago the status changed.
func sinceCell(since *time.Time, now time.Time) string {
	if since == nil {
		return "-"
	}
	return ageCell(max(0, now.Sub(*since))) + " ago"
}

// ageCell shows a duration in its largest unit.
func ageCell(age time.Duration) string {
	switch {
	case age < time.Minute:
		return strconv.Itoa(int(age.Seconds())) + "s"
	case age < time.Hour:
		return strconv.Itoa(int(age.Minutes())) + "m"
	case age < 48*time.Hour:
		return strconv.Itoa(int(age.Hours())) + "h"
	default:
		return strconv.Itoa(int(age.Hours()/24)) + "d"
	}
}
