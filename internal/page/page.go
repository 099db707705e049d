// SPDX-License-Identifier: Apache-2.0

// Package page renders the status page: one HTML document with its style and its script.
// It is complete without the script, which only asks for it again and swaps in what
// changed.
//
// The package knows the rows to show ([view.Upstream]) and nothing else: not where they
// come from, how long they are valid, or how the page is served. It has no state that
// changes, and no locks.
package page

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"math"
	"strconv"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

//go:embed page.html
var document string

//go:embed page.css
var style string

//go:embed page.js
var script string

var page = template.Must(template.New("page").Funcs(template.FuncMap{"utc": utc}).Parse(document))

// Policy is the Content-Security-Policy of the page: it runs its own script, uses its own
// style, asks its own server for data, and loads nothing else.
var Policy = fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	sourceHash(style), sourceHash(script))

// sourceHash names a style or script by its content, as a Content-Security-Policy does.
func sourceHash(source string) string {
	sum := sha256.Sum256([]byte(source))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// Render returns the page that shows the rows and their pools as they are at a moment.
func Render(rows []view.Upstream, pools []view.Pool, now time.Time) ([]byte, error) {
	var out bytes.Buffer
	err := page.Execute(&out, map[string]any{
		"Style":    template.CSS(style), //nolint:gosec // it is part of the program
		"Script":   template.JS(script), //nolint:gosec // it is part of the program
		"Summary":  view.Summary(rows),
		"Now":      utc(now),
		"Sections": sections(rows, pools, now),
	})
	if err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// section is a heading and the rows below it. The title is its key.
type section struct {
	Title string
	Facts []string // of the pool, none if it is no pool
	Alarm string
	Rows  []row
}

// row is an upstream as the page shows it. The key names it in its section, so that the
// script finds it again in the next page.
type row struct {
	Key, Address, State, Ejection, Mode, Share, Since, Why string
	Group, InFlight, Bound, InFleet                        string // empty if there is nothing to say
	Classes                                                string // of its element
	Weight                                                 int
	Checks                                                 []check
}

// check is a check as the page shows it. The label is its key.
type check struct {
	Label, Status string
	Chart         chart
	LastFailed    *view.Result
}

// sections groups consecutive rows by their titles, as they are at a moment. Pools without
// rows come after them.
func sections(rows []view.Upstream, pools []view.Pool, now time.Time) []section {
	totals := make(map[string]float64)
	for i := range rows {
		totals[rows[i].Title()] += rows[i].EffectiveWeight
	}
	var all []section
	byName, titles := view.ByName(pools), make(map[string]bool)
	for i := range rows {
		u := &rows[i]
		title, pool := u.Title(), byName.Of(u)
		titles[title] = true
		if len(all) == 0 || title != all[len(all)-1].Title {
			all = append(all, section{Title: title, Facts: pool.Facts(), Alarm: pool.Alarm()})
		}
		s := &all[len(all)-1]
		r := newRow(u, totals[title], now)
		r.Group = pool.GroupName(u.Group)
		s.Rows = append(s.Rows, r)
	}
	for i := range pools {
		if p := &pools[i]; !titles[p.Pool] {
			all = append(all, section{Title: p.Pool, Facts: p.Facts()})
		}
	}
	return all
}

// newRow returns the row of an upstream at a moment, in a section with a total of effective
// weights.
func newRow(u *view.Upstream, total float64, now time.Time) row {
	r := row{
		Key: u.Upstream, Address: u.Upstream, State: u.State(), Mode: u.Mode, Share: share(u.EffectiveWeight, total), Since: "—", Why: u.Why,
		InFlight: u.InFlight(), Bound: u.BoundTraffic(), InFleet: u.InFleet(), Weight: u.Weight, Classes: u.State(),
		Ejection: u.Ejection(now, func(until time.Time) string { return "until " + utc(until) }),
		Checks:   make([]check, len(u.Checks)),
	}
	if u.Serving {
		r.Classes += " serving"
	}
	if u.InTrouble() {
		r.Classes += " troubled"
	}
	if u.Gone { // one section has such rows of all pools
		r.Key = u.Pool + "\n" + u.Upstream
	}
	if u.Since != nil {
		r.Since = utc(*u.Since)
	}
	for i := range u.Checks {
		c := &u.Checks[i]
		r.Checks[i] = check{Label: c.Check, Status: c.Status, Chart: newChart(c), LastFailed: c.LastFailed}
	}
	return r
}

// share returns a part of a total in percent, with one digit after the point.
func share(part, total float64) string {
	if part <= 0 {
		return "0 %"
	}
	return strconv.FormatFloat(math.Round(1000*part/total)/10, 'f', -1, 64) + " %"
}

// utc writes a time in UTC, to the second.
func utc(t time.Time) string {
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}
