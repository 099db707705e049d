// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
	"golang.org/x/text/width"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// screen is what a command writes to.
type screen struct {
	columns, lines int // 0 if it is no terminal: then nothing has to fit
	colours        bool
}

func screenOf(out io.Writer) screen {
	file, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return screen{}
	}
	columns, lines, err := term.GetSize(int(file.Fd()))
	if err != nil || columns <= 0 || lines <= 0 {
		columns, lines = 80, 24
	}
	return screen{columns: columns, lines: lines, colours: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

const (
	clearScreen = "\x1b[H\x1b[2J" // home, and clear
	plain       = "\x1b[0m"
	red         = "\x1b[31m"
	green       = "\x1b[32m"
	yellow      = "\x1b[33m"
	loud        = "\x1b[1;31m"
)

// coloured puts a colour around text, if there are any.
func (s screen) coloured(colour, text string) string {
	if !s.colours {
		return text
	}
	return colour + text + plain
}

// alarm writes what must not be overlooked.
func (s screen) alarm(to *bytes.Buffer, text string) {
	for _, line := range wrap("!! "+text, s.columns) {
		to.WriteString(s.coloured(loud, line) + "\n")
	}
}

// fit leaves out what is below the end of the screen, and says so.
func (s screen) fit(shown []byte) []byte {
	lines := bytes.SplitAfter(shown, []byte("\n"))
	room := s.lines - 2 // the last line is that of the cursor
	if s.lines == 0 || len(lines)-1 <= room+1 {
		return shown
	}
	room = max(0, room)
	said := wrap(fmt.Sprintf("… and %d lines for which it is not high enough", len(lines)-1-room), s.columns)[0]
	return append(bytes.Join(lines[:room], nil), said+"\n"...)
}

// minWhy is how much room the reason needs to stand beside the rest. In a narrow
// terminal it stands below.
const minWhy = 30

// indent is before what stands below an upstream.
const indent = "    "

var tableHeader = []string{"UPSTREAM", "STATUS", "MODE", "WEIGHT", "REQUESTS", "SINCE", "WHY"}

// table is the list of upstreams as a terminal shows it: in a row each, with the
// reason at its end or below it, or as some lines each where not even that fits.
type table struct {
	screen
	rows   [][]string
	widths []int // of all columns but that of the reason
	before int   // that of the reason
	inRows bool
	beside bool // the reason stands in the row
}

// writeTable writes upstreams by pool.
func (s screen) writeTable(to *bytes.Buffer, entries []view.Upstream, now time.Time) {
	if len(entries) == 0 {
		to.WriteString("no upstreams: no reverse_proxy uses lb_policy alive\n")
		return
	}
	t := newTable(s, entries, now)
	alarm := view.Alarms(entries)
	above := ""
	for i, e := range entries {
		if title := e.Title(); i == 0 || title != above {
			if above = title; i > 0 {
				to.WriteByte('\n')
			}
			shown := title
			if !e.Gone {
				shown = "pool " + title
			}
			for _, line := range wrap(printable(shown), s.columns) {
				to.WriteString(line + "\n")
			}
			if text := alarm[title]; text != "" && !e.Gone {
				s.alarm(to, text)
			}
			if t.inRows {
				t.writeRow(to, tableHeader, "")
			}
		}
		t.writeRow(to, t.rows[i], statusColour(e))
	}
}

func newTable(s screen, entries []view.Upstream, now time.Time) *table {
	t := &table{screen: s}
	last := len(tableHeader) - 1
	widths := make([]int, last+1)
	measure := func(row []string) {
		for i, cell := range row {
			widths[i] = max(widths[i], columnsOf(cell))
		}
	}
	measure(tableHeader)
	for _, e := range entries {
		row := []string{printable(e.Upstream), printable(e.Status), printable(e.Mode), weightCell(e), strconv.Itoa(e.Requests), sinceCell(e.Since, now), printable(e.Why)}
		t.rows = append(t.rows, row)
		measure(row)
	}
	t.widths = widths[:last]
	for _, w := range t.widths {
		t.before += w + 2
	}
	t.beside = s.columns == 0 || s.columns-t.before >= min(minWhy, widths[last])
	t.inRows = t.beside || s.columns >= t.before-2
	return t
}

// writeRow writes the cells of one upstream, or the header.
func (t *table) writeRow(to *bytes.Buffer, row []string, colour string) {
	last := len(row) - 1
	if !t.inRows {
		for _, line := range wrap(row[0], t.columns) {
			to.WriteString(line + "\n")
		}
		facts := fmt.Sprintf("%s %s, weight %s, %s requests, %s", row[1], row[2], row[3], row[4], row[5])
		t.writeBelow(to, facts, row[last])
		return
	}
	var line strings.Builder
	for i, cell := range row[:last] {
		text := cell
		if i == 1 && colour != "" {
			text = t.coloured(colour, cell)
		}
		line.WriteString(text + strings.Repeat(" ", t.widths[i]-columnsOf(cell)+2))
	}
	switch {
	case !t.beside:
		to.WriteString(strings.TrimRight(line.String(), " ") + "\n")
		if colour != "" { // else it is the header
			t.writeBelow(to, row[last])
		}
	default:
		room := 0
		if t.columns > 0 {
			room = t.columns - t.before
		}
		for i, why := range wrap(row[last], room) {
			if i > 0 {
				line.Reset()
				line.WriteString(strings.Repeat(" ", t.before))
			}
			to.WriteString(strings.TrimRight(line.String()+why, " ") + "\n")
		}
	}
}

// writeBelow writes texts below an upstream.
func (t *table) writeBelow(to *bytes.Buffer, texts ...string) {
	for _, text := range texts {
		for _, line := range wrap(text, max(1, t.columns-len(indent))) {
			to.WriteString(strings.TrimRight(indent+line, " ") + "\n")
		}
	}
}

func statusColour(e view.Upstream) string {
	switch {
	case e.Status == "down":
		return red
	case e.Serving:
		return green
	default:
		return yellow
	}
}

// weightCell shows the weight, and the one at this moment if that differs.
func weightCell(e view.Upstream) string {
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

// printableJSON is the same JSON, but what a terminal would take for anything but text
// is escaped.
func printableJSON(text []byte) []byte {
	var safe bytes.Buffer
	for _, r := range string(text) {
		switch {
		case unicode.IsPrint(r), r == '\n':
			safe.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&safe, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		default:
			fmt.Fprintf(&safe, `\u%04x`, r)
		}
	}
	return safe.Bytes()
}

// columnsOf returns how wide text is in a terminal.
func columnsOf(text string) (columns int) {
	for _, r := range text {
		columns += columnsOfRune(r)
	}
	return columns
}

func columnsOfRune(r rune) int {
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0 // it stands on the one before
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	default:
		return 1
	}
}

// wrap breaks text into lines of so many columns at most, at spaces where it can; not
// at all if columns is 0.
func wrap(text string, columns int) []string {
	if columns <= 0 || columnsOf(text) <= columns {
		return []string{text}
	}
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case columnsOf(line)+1+columnsOf(word) <= columns:
			line += " " + word
		default:
			lines, line = append(lines, line), word
		}
		for columnsOf(line) > columns {
			at := breakAt(line, columns)
			lines, line = append(lines, line[:at]), line[at:]
		}
	}
	return append(lines, line)
}

// breakAt returns how many bytes of text fit, those of one rune at least.
func breakAt(text string, columns int) int {
	used := 0
	for i, r := range text {
		if used += columnsOfRune(r); used > columns && i > 0 {
			return i
		}
	}
	return len(text)
}
