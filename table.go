// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// minWhy is how much room the reason needs to stand in the same line. In a narrow
// terminal it stands below.
const minWhy = 30

// writeTable writes upstreams by pool, cut to a width if that is not 0.
func writeTable(to *bytes.Buffer, entries []entry, width int, colours bool, now time.Time) {
	if len(entries) == 0 {
		to.WriteString("no upstreams: no reverse_proxy uses lb_policy alive\n")
		return
	}
	header := []string{"UPSTREAM", "STATUS", "MODE", "WEIGHT", "REQUESTS", "SINCE", "WHY"}
	rows := make([][]string, 0, len(entries))
	widths := make([]int, len(header))
	for i, name := range header {
		widths[i] = len(name)
	}
	for _, e := range entries {
		row := []string{printable(e.Upstream), printable(e.Status), printable(string(e.Mode)), weightCell(e), strconv.Itoa(e.Requests), sinceCell(e.Since, now), printable(e.Why)}
		rows = append(rows, row)
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	last := len(header) - 1
	below := false
	if width > 0 {
		fixed := 0
		for _, w := range widths[1:last] {
			fixed += w + 2
		}
		if below = width-fixed-widths[0]-2 < min(minWhy, widths[last]); below {
			last--
			widths[0] = min(widths[0], max(len(header[0]), width-fixed))
		} else {
			widths[last] = min(widths[last], width-fixed-widths[0]-2)
		}
	}

	writeRow := func(row []string, colour string) {
		var line strings.Builder
		for i, cell := range row[:last+1] {
			cell = cut(cell, widths[i])
			text := cell
			if i == 1 && colours && colour != "" {
				text = colour + cell + "\x1b[0m"
			}
			line.WriteString(text)
			if i < last {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		to.WriteString(strings.TrimRight(line.String(), " "))
		to.WriteByte('\n')
	}
	pool := ""
	for i, e := range entries {
		if i == 0 || e.Pool != pool {
			if pool = e.Pool; i > 0 {
				to.WriteByte('\n')
			}
			title := "pool " + printable(e.Pool)
			if e.Pool == "" {
				title = "of no pool"
			}
			to.WriteString(title + "\n")
			if failsOpen(entries[i:], e.Pool) {
				alarm := "!! FAIL-OPEN: too few upstreams serve, so requests go to upstreams whatever their health"
				if colours {
					alarm = "\x1b[1;31m" + alarm + "\x1b[0m"
				}
				to.WriteString(alarm + "\n")
			}
			writeRow(header, "")
		}
		writeRow(rows[i], statusColour(e))
		if below {
			to.WriteString(cut("    "+rows[i][last+1], width) + "\n")
		}
	}
}

func failsOpen(entries []entry, pool string) bool {
	for _, e := range entries {
		if e.Pool == pool && e.FailOpen {
			return true
		}
	}
	return false
}

func statusColour(e entry) string {
	switch {
	case e.Status == "down":
		return "\x1b[31m"
	case e.Serving:
		return "\x1b[32m"
	default:
		return "\x1b[33m"
	}
}

// weightCell shows the weight, and the one at this moment if that differs.
func weightCell(e entry) string {
	text := strconv.Itoa(e.Weight)
	if e.EffectiveWeight != float64(e.Weight) && e.EffectiveWeight > 0 {
		text = strconv.FormatFloat(e.EffectiveWeight, 'g', 3, 64) + "/" + text
	}
	if e.Backup {
		text += " (backup)"
	}
	return text
}

// sinceCell shows how long something lasts.
func sinceCell(since *time.Time, now time.Time) string {
	if since == nil {
		return "-"
	}
	lasts := max(0, now.Sub(*since))
	switch {
	case lasts < time.Minute:
		return strconv.Itoa(int(lasts.Seconds())) + "s"
	case lasts < time.Hour:
		return strconv.Itoa(int(lasts.Minutes())) + "m"
	case lasts < 48*time.Hour:
		return strconv.Itoa(int(lasts.Hours())) + "h"
	default:
		return strconv.Itoa(int(lasts.Hours()/24)) + "d"
	}
}

// printable has nothing in it that a terminal would take for anything but text.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, text)
}

// cut shortens text to a width.
func cut(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	if width <= 0 {
		return ""
	}
	return string([]rune(text)[:width-1]) + "…"
}
