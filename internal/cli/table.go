// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"slices"
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

// statusColumn is the one with a colour.
const statusColumn = 1

var tableHeader = []string{"UPSTREAM", "STATUS", "MODE", "WEIGHT", "REQUESTS", "SINCE"}

// table is a list as a terminal shows it, of upstreams or of the members of a fleet: for each
// a row of cells, which continues on the next line where the terminal is too narrow, and
// below it the reason.
type table struct {
	screen
	to     *bytes.Buffer
	widths []int // of the columns
}

// writeStatus writes pools and their upstreams, all or only those in trouble. What it says
// of a pool is by all of its upstreams.
func (s screen) writeStatus(to *bytes.Buffer, all listing, onlyInTrouble bool, now time.Time) {
	if len(all.rows) == 0 && len(all.pools) == 0 {
		to.WriteString("no upstreams: no reverse_proxy uses lb_policy alive\n")
		return
	}
	shown := all
	if onlyInTrouble {
		shown.rows = slices.DeleteFunc(slices.Clone(all.rows), func(row view.Upstream) bool { return !row.InTrouble() })
		if len(shown.rows) == 0 {
			to.WriteString("all upstreams serve, and none is suspect or ejected\n")
			return
		}
	}
	s.writeTable(to, shown, now)
	for i := range all.pools {
		if p := &all.pools[i]; p.Upstreams == 0 && !onlyInTrouble && !hasRows(all.rows, p) {
			s.writePool(to, "pool "+p.Pool, p)
		}
	}
}

// hasRows reports whether there are upstreams of a pool, those that requests no longer bring
// included.
func hasRows(rows []view.Upstream, p *view.Pool) bool {
	return slices.ContainsFunc(rows, func(row view.Upstream) bool { return !row.Gone && row.Pool == p.Pool })
}

// writePool writes what there is to say of a pool, above its upstreams. Where they are in no
// pool, it is nil.
func (s screen) writePool(to *bytes.Buffer, title string, p *view.Pool) {
	if to.Len() > 0 {
		to.WriteByte('\n')
	}
	for _, text := range []string{printable(title), strings.Join(p.Facts(), ", ")} {
		if text == "" {
			continue
		}
		for _, line := range wrap(text, s.columns) {
			to.WriteString(line + "\n")
		}
	}
	if text := p.Alarm(); text != "" {
		s.alarm(to, text)
	}
}

// writeTable writes upstreams by pool.
func (s screen) writeTable(to *bytes.Buffer, shown listing, now time.Time) {
	t := s.newTable(to, tableHeader)
	pools := view.ByName(shown.pools)
	lines := make([][]string, 0, len(shown.rows))
	for i := range shown.rows {
		line := cells(&shown.rows[i], pools.Of(&shown.rows[i]), now)
		lines = append(lines, line)
		t.measure(line)
	}
	above := ""
	for i := range shown.rows {
		row := &shown.rows[i]
		if title := row.Title(); i == 0 || title != above {
			above = title
			if !row.Gone {
				title = "pool " + title
			}
			s.writePool(to, title, pools.Of(row))
			t.writeRow(tableHeader, "")
		}
		t.writeRow(lines[i], statusColour(row))
		t.writeReason(printable(reason(row)))
	}
}

// reason is what the line below a row says.
func reason(row *view.Upstream) string {
	parts := []string{row.Why, row.InFleet()}
	if row.Why != "" {
		parts = []string{row.Why, row.BoundTraffic(), row.InFleet()}
	}
	return strings.Join(slices.DeleteFunc(parts, func(part string) bool { return part == "" }), "; ")
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
			if i == statusColumn {
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
	return []string{printable(row.Upstream), printable(statusCell(row, now)), printable(row.Mode), weightCell(row, p), row.InFlight(), sinceCell(row.Since, now)}
}

// statusCell shows the status, or what traffic says of an upstream that is up: that it is
// suspect, or for how long it is still ejected.
func statusCell(row *view.Upstream, now time.Time) string {
	switch state := row.State(); state {
	case "suspect":
		return state
	case "ejected":
		return state + " (" + row.Ejection(now, func(until time.Time) string { return ageCell(until.Sub(now)) }) + ")"
	default:
		return row.Status
	}
}

func statusColour(row *view.Upstream) string {
	switch state := row.State(); {
	case row.Status == "down", state == "ejected":
		return red
	case row.Serving && state != "suspect":
		return green
	default:
		return yellow
	}
}

// weightCell shows the weight, the effective weight before it if that differs, and the group
// of a backup.
func weightCell(row *view.Upstream, p *view.Pool) string {
	text := strconv.Itoa(row.Weight)
	if row.EffectiveWeight != float64(row.Weight) && row.EffectiveWeight > 0 {
		text = strconv.FormatFloat(row.EffectiveWeight, 'g', 3, 64) + "/" + text
	}
	if name := p.GroupName(row.Group); name != "" {
		text += " (" + name + ")"
	}
	return text
}

// sinceCell shows how long ago the status changed.
func sinceCell(since *time.Time, now time.Time) string {
	if since == nil {
		return "-"
	}
	return ageCell(max(0, now.Sub(*since)))
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
