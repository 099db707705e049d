// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// detail is how much a report shows: less where more does not fit the terminal.
type detail int

const (
	whole   detail = iota // all upstreams and their reasons
	terse                 // no reasons of upstreams that serve, and long names of pools are cut
	summed                // in pools that do not fit, upstreams that are well are counted
	grouped               // upstreams with the same trouble are one row
	counted               // of which only the first are named
)

// smallestGroup is how many upstreams one row stands for at least.
const smallestGroup = 3

// report shows pools and their upstreams, what is wrong first. What it says of a pool, and of
// all, is by all upstreams, and not only by those that the filter wants.
type report struct {
	screen
	listing
	filter filter
	now    time.Time // of the list
	clock  string    // what the first line begins with, empty for nothing
	room   int       // how many lines fit, 0 for any number
}

// write writes the report with as much as fits.
func (r report) write(to *bytes.Buffer) {
	sections := r.sections()
	for d := whole; ; d++ {
		text := r.render(sections, d)
		if r.room <= 0 || lines(text) <= r.room || d == counted {
			to.Write(text)
			return
		}
	}
}

// lines counts lines.
func lines(text []byte) int { return bytes.Count(text, []byte("\n")) }

// sections returns what is shown.
func (r report) sections() []view.Section {
	sections := view.WorstFirst(r.filter.rows(r.rows), r.pools)
	if r.filter.wantsAll() {
		return sections
	}
	return slices.DeleteFunc(sections, func(s view.Section) bool { return len(s.Rows) == 0 })
}

// render returns the report with so much detail.
func (r report) render(sections []view.Section, d detail) []byte {
	var to bytes.Buffer
	if len(r.rows) == 0 && len(r.pools) == 0 {
		r.writeTotals(&to)
		to.WriteString("no reverse_proxy uses lb_policy alive\n")
		return to.Bytes()
	}
	r.writeTotals(&to)
	if len(sections) == 0 {
		to.WriteString(r.filter.nothing() + "\n")
		return to.Bytes()
	}
	blocks := r.blocks(sections, d)
	spare := r.room - lines(to.Bytes()) - 1 // one for the line above those of one line
	for i := range blocks {
		spare -= lines(blocks[i].short)
	}
	wasLine := false
	for _, b := range blocks {
		text, isLine := b.short, b.isLine
		if more := lines(b.full) - lines(b.short); more <= spare || d < summed {
			text, isLine = b.full, false
			spare -= more
		}
		if isLine && !wasLine {
			to.WriteByte('\n')
		}
		wasLine = isLine
		to.Write(text)
	}
	return to.Bytes()
}

// writeTotals writes the line of all pools.
func (r report) writeTotals(to *bytes.Buffer) {
	totals := view.NewTotals(r.rows, r.pools)
	text := strings.Join(totals.Facts(), ", ")
	if r.clock != "" {
		text = r.clock + "  " + text
	}
	colour := ""
	switch {
	case totals.Out > 0, totals.FailOpen > 0, totals.States["down"] > 0, totals.States["ejected"] > 0:
		colour = red
	case totals.States["suspect"] > 0, totals.States["unknown"] > 0:
		colour = yellow
	}
	for _, line := range wrap(text, r.columns) {
		to.WriteString(r.coloured(colour, line) + "\n")
	}
}

// block is one section as text: in full, and shorter. A line is the short form of a pool of
// which all upstreams are well.
type block struct {
	full, short []byte
	isLine      bool
}

// blocks returns the sections as text.
func (r report) blocks(sections []view.Section, d detail) []block {
	t := r.newTable(nil, tableHeader)
	items := make([][]item, len(sections))
	for i := range sections {
		items[i] = r.items(&sections[i], d)
		for _, it := range items[i] {
			t.measure(it.cells)
		}
	}
	blocks := make([]block, len(sections))
	for i := range sections {
		s := &sections[i]
		well := r.wellOf(s)
		blocks[i].full = r.section(t, s, items[i], nil, d)
		switch {
		case d < summed || len(well) == 0:
			blocks[i].short = blocks[i].full
		case len(well) == len(s.Rows):
			blocks[i].isLine = true
			for _, line := range wrap(r.title(s, d)+": "+strings.Join(s.Pool.Facts(), ", "), r.columns) {
				blocks[i].short = append(blocks[i].short, line+"\n"...)
			}
		default:
			blocks[i].short = r.section(t, s, items[i][:len(items[i])-len(well)], well, d)
		}
	}
	return blocks
}

// wellOf returns the last rows of a section, which need no look: those that are up in a pool
// without an alarm, and those that requests do not bring at present. What a filter wants is
// worth a look.
func (r report) wellOf(s *view.Section) []*view.Upstream {
	from := len(s.Rows)
	if !r.filter.wantsAll() {
		return nil
	}
	for from > 0 && s.Pool != nil {
		if row := s.Rows[from-1]; !row.Idle && (row.State() != "up" || s.Pool.Alarm() != "") {
			break
		}
		from--
	}
	return s.Rows[from:]
}

// section returns a section with these rows, and a line that counts those that are left out.
func (r report) section(t *table, s *view.Section, items []item, leftOut []*view.Upstream, d detail) []byte {
	to := bytes.NewBufferString("\n")
	for _, text := range []string{r.title(s, d), strings.Join(s.Pool.Facts(), ", ")} {
		if text == "" {
			continue
		}
		for _, line := range wrap(text, r.columns) {
			to.WriteString(line + "\n")
		}
	}
	if text := s.Pool.Alarm(); text != "" {
		r.alarm(to, text)
	}
	part := *t
	part.to = to
	if len(items) > 0 {
		part.writeRow(tableHeader, "")
	}
	for _, it := range items {
		part.writeRow(it.cells, it.colour)
		for _, text := range it.below {
			part.writeReason(text)
		}
	}
	if len(leftOut) > 0 {
		to.WriteString(wrap(leftOutLine(leftOut), r.columns)[0] + "\n")
	}
	return to.Bytes()
}

// title is the heading of a section.
func (r report) title(s *view.Section, d detail) string {
	title := printable(s.Title)
	if s.Pool != nil || !s.Rows[0].Gone {
		title = "pool " + title
	}
	if d >= terse && r.columns > 0 && columnsOf(title) > r.columns {
		title = wrap(title, max(1, r.columns-2))[0] + " …"
	}
	return title
}

// leftOutLine says how many upstreams are left out because they need no look.
func leftOutLine(rows []*view.Upstream) string {
	up, notServing, idle := 0, 0, 0
	for _, row := range rows {
		switch {
		case row.Idle:
			idle++
		case !row.Serving:
			notServing++
			fallthrough
		default:
			up++
		}
	}
	var parts []string
	if up > 0 {
		parts = append(parts, fmt.Sprintf("%d more %s up", up, are(up)))
	}
	if notServing > 0 {
		parts = append(parts, fmt.Sprintf("%d of them without requests", notServing))
	}
	if idle > 0 {
		parts = append(parts, fmt.Sprintf("%d more %s idle", idle, are(idle)))
	}
	return "… " + strings.Join(parts, ", ") + " (--all shows them)"
}

// are is the verb for a number of things.
func are(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

// item is one row of the table, which stands for one upstream or for several.
type item struct {
	cells  []string
	colour string
	below  []string // the lines below it
}

// items returns the rows of a section.
func (r report) items(s *view.Section, d detail) []item {
	rows, well := s.Rows, []*view.Upstream(nil)
	if d >= grouped {
		well = r.wellOf(s)
		rows = rows[:len(rows)-len(well)]
	}
	groups := groupsOf(rows, d)
	items := make([]item, 0, len(groups)+len(well))
	for _, group := range groups {
		items = append(items, r.itemOf(s.Pool, group, d))
	}
	for _, row := range well {
		items = append(items, r.itemOf(s.Pool, []*view.Upstream{row}, d))
	}
	return items
}

// groupsOf returns the rows, of which some are shown as one: those of the same state for the
// same reason. Others are groups of one. The order is that of the first of each.
func groupsOf(rows []*view.Upstream, d detail) (groups [][]*view.Upstream) {
	type key struct{ state, why string }
	sizes := make(map[key]int)
	keyOf := func(row *view.Upstream) key { return key{row.State(), commonReason(row)} }
	for _, row := range rows {
		sizes[keyOf(row)]++
	}
	at := make(map[key]int)
	for _, row := range rows {
		k := keyOf(row)
		place, known := at[k]
		if d < grouped || sizes[k] < smallestGroup || !known {
			at[k] = len(groups)
			groups = append(groups, []*view.Upstream{row})
			continue
		}
		groups[place] = append(groups[place], row)
	}
	return groups
}

// addresses are what errors of connections name beside what is wrong.
var addresses = regexp.MustCompile(`\b(dial|read|write) (tcp|udp|unix)[46]? \S+: `)

// commonReason is why an upstream gets requests or none, without what differs between upstreams
// for which it is the same.
func commonReason(row *view.Upstream) string {
	return strings.ReplaceAll(addresses.ReplaceAllString(row.Why, "$1 $2: "), row.Upstream, "the upstream")
}

// itemOf returns the row of upstreams of a pool, which is nil if they are in none.
func (r report) itemOf(p *view.Pool, rows []*view.Upstream, d detail) item {
	first := rows[0]
	it := item{cells: cells(first, p, r.now), colour: stateColour(first)}
	if len(rows) > 1 {
		it.cells = groupCells(rows, p, r.now)
		names := make([]string, 0, len(rows))
		for _, row := range rows {
			names = append(names, printable(row.Upstream))
		}
		if d >= counted {
			names = view.Few(names)
		}
		it.below = []string{printable(commonReason(first)), strings.Join(names, " ")}
		return it
	}
	if d == whole || !first.Serving || first.InTrouble() {
		it.below = []string{printable(reason(first))}
	}
	return it
}

// reason is what the line below a row says.
func reason(row *view.Upstream) string {
	parts := []string{row.Why, row.InFleet()}
	if row.Why != "" {
		parts = []string{row.Why, row.BoundTraffic(), row.InFleet()}
	}
	return strings.Join(slices.DeleteFunc(parts, func(part string) bool { return part == "" }), "; ")
}
