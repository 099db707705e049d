// SPDX-License-Identifier: Apache-2.0

// Package page renders the status page: one HTML document with its style and its script.
// It is complete without the script, which only asks for it again and swaps in what
// changed. Filters are part of the URL, so that the server applies them.
//
// The package knows what to show ([Data]) and nothing else: not where it comes from, how long
// it is valid, or how the page is served. It has no state that changes, and no locks.
package page

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

//go:embed page.html
var document string

//go:embed page.css
var style string

//go:embed page.js
var script string

var page = template.Must(template.New("page").Funcs(template.FuncMap{"exact": exact, "datetime": datetime, "mark": mark}).Parse(document))

// Policy is the Content-Security-Policy of the page: it runs its own script, uses its own
// style, asks its own server for data, and loads nothing else. Its icon is part of it.
var Policy = fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
	sourceHash(style), sourceHash(script))

// sourceHash names a style or script by its content, as a Content-Security-Policy does.
func sourceHash(source string) string {
	sum := sha256.Sum256([]byte(source))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// Site says which Caddy the page is of.
type Site struct {
	// Host is the name of the host.
	Host string
	// Caddy and Module are the versions of Caddy and of this module.
	Caddy, Module string
}

// Data is what there is to show at a moment.
type Data struct {
	Site  Site
	Rows  []view.Upstream
	Pools []view.Pool
	At    time.Time
}

// Render returns the page with what a filter wants.
func Render(d Data, f Filter) ([]byte, error) {
	var out bytes.Buffer
	totals := view.NewTotals(d.Rows, d.Pools)
	summary := totals.Summary()
	title := summary
	if d.Site.Host != "" {
		title += " · " + d.Site.Host
	}
	all := view.WorstFirst(d.Rows, d.Pools)
	sections, rest, matching := plan(all, f, d.At)
	allURL := "" // empty if that page has no more
	if !f.IsSet() && !f.All {
		allURL = Filter{All: true}.URL()
	}
	err := page.Execute(&out, map[string]any{
		"Style":    template.CSS(style), //nolint:gosec // it is part of the program
		"Script":   template.JS(script), //nolint:gosec // it is part of the program
		"Title":    title,
		"Icon":     icon(totals),
		"Site":     d.Site,
		"Summary":  summary,
		"Totals":   totalsOf(totals),
		"At":       d.At,
		"Filter":   f,
		"States":   view.States,
		"Pools":    poolNames(all, f),
		"Matching": matching,
		"Count":    len(d.Rows),
		"Sections": sections,
		"Rest":     rest,
		"AllURL":   allURL,
		"IsEmpty":  len(all) == 0,
	})
	return out.Bytes(), err
}

// icon returns the icon of the page: a disc in the colour of the worst state.
func icon(t view.Totals) template.URL {
	colour := "2da44e"
	switch {
	case t.Out > 0 || t.FailOpen > 0 || t.States["down"] > 0 || t.States["ejected"] > 0:
		colour = "cf222e"
	case t.States["suspect"] > 0, t.States["unknown"] > 0:
		colour = "d4a72c"
	}
	//nolint:gosec // it is part of the program
	return template.URL("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Ccircle cx='8' cy='8' r='7' fill='%23" + colour + "'/%3E%3C/svg%3E")
}

// total is how many upstreams are in a state, with the address of the page that shows them.
type total struct {
	State, URL string
	Count      int
}

// totalsOf returns the totals by state, the worst first, without those in which none is.
func totalsOf(t view.Totals) (totals []total) {
	for _, state := range view.States {
		if n := t.States[state]; n > 0 {
			totals = append(totals, total{state, Filter{State: state}.URL(), n})
		}
	}
	return totals
}

// mark returns the sign of a state, for readers who cannot tell the colours apart.
func mark(state string) string {
	switch state {
	case "down":
		return "✖"
	case "ejected":
		return "⏏"
	case "suspect":
		return "▲"
	case "draining":
		return "◐"
	case "maintenance":
		return "‖"
	case "up":
		return "●"
	default:
		return "?"
	}
}
