// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"math"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// Status is a page that shows what all `alive` selection policies of the config
// balance over: status, mode, share of traffic and the last results of each upstream,
// and why it gets requests or none. To clients that do not ask for HTML by name, it
// is the same as JSON. It changes nothing; but it tells the addresses of upstreams, so
// it should not stand in public.
type Status struct{}

// CaddyModule returns the Caddy module information.
func (Status) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.alive_status",
		New: func() caddy.Module { return new(Status) },
	}
}

// parseStatus reads the directive. Syntax:
//
//	alive_status [<matcher>]
func parseStatus(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	h.Next() // consume the directive's name
	if h.NextArg() {
		return nil, h.ArgErr()
	}
	if h.NextBlock(0) {
		return nil, h.Err("alive_status has no options")
	}
	return Status{}, nil
}

//go:embed status.html
var statusHTML string

//go:embed status.css
var statusCSS string

//go:embed status.js
var statusJS string

var (
	statusPage = template.Must(template.New("status").Parse(statusHTML))
	// statusPolicy lets the page do nothing but show itself and ask for its own URL.
	statusPolicy = fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		sourceHash(statusCSS), sourceHash(statusJS))
)

// sourceHash is how a content security policy names a source by what is in it.
func sourceHash(source string) string {
	sum := sha256.Sum256([]byte(source))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// ServeHTTP answers with the page, or with JSON.
func (Status) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	header := w.Header()
	header.Set("Vary", "Accept")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		return caddyhttp.Error(http.StatusMethodNotAllowed, errors.New("the status page can only be read"))
	}
	render := (*listing).jsonList
	if wantsHTML(r.Header) {
		header.Set("Content-Type", "text/html; charset=utf-8")
		header.Set("Content-Security-Policy", statusPolicy)
		header.Set("Referrer-Policy", "no-referrer")
		render = (*listing).htmlPage
	} else {
		header.Set("Content-Type", "application/json")
	}
	if r.Method == http.MethodHead {
		return nil
	}
	text, err := listings.render(render)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

// wantsHTML reports whether a client accepts HTML by name, and no less than JSON: what
// accepts anything may be a script.
func wantsHTML(header http.Header) bool {
	var html, asJSON float64
	for accepted := range strings.SplitSeq(strings.Join(header.Values("Accept"), ","), ",") {
		kind, params, err := mime.ParseMediaType(accepted)
		if err != nil {
			continue
		}
		quality := 1.0
		if q, given := params["q"]; given {
			if quality, err = strconv.ParseFloat(q, 64); err != nil || !(quality >= 0 && quality <= 1) {
				continue
			}
		}
		switch kind {
		case "text/html", "application/xhtml+xml":
			html = max(html, quality)
		case "application/json":
			asJSON = max(asJSON, quality)
		}
	}
	return html > 0 && html >= asJSON
}

// renderStatus returns the page. The list is that of the entries as JSON, with which
// the script begins; encoding/json leaves nothing in it that could end the script.
func renderStatus(entries []view.Upstream, list []byte, now time.Time) ([]byte, error) {
	var page bytes.Buffer
	err := statusPage.Execute(&page, map[string]any{
		"CSS":     template.CSS(statusCSS), //nolint:gosec // it is part of the program
		"JS":      template.JS(statusJS),   //nolint:gosec // so is this
		"Data":    template.JS(list),       //nolint:gosec // see above
		"Pools":   pages(entries),
		"Now":     now.UTC().Format("2006-01-02 15:04:05 UTC"),
		"Summary": view.Summary(entries),
	})
	return page.Bytes(), err
}

// poolPage is a pool as the page shows it.
type poolPage struct {
	Title string
	Alarm string
	Rows  []upstreamPage
}

// upstreamPage is an upstream as the page shows it.
type upstreamPage struct {
	view.Upstream
	State  string
	Since  string
	Share  string
	Checks []checkPage
}

// checkPage is a check as the page shows it.
type checkPage struct {
	view.Check
	Chart chart
}

// chart is the last results as bars in a drawing of 240 by 24, by two paths of SVG.
type chart struct{ Text, Passed, Failed string }

const (
	barWidth    = 4 // with the gap
	chartHeight = 24
)

// pages groups entries by pool.
func pages(entries []view.Upstream) []poolPage {
	totals := make(map[string]float64)
	for _, e := range entries {
		totals[e.Title()] += e.EffectiveWeight
	}
	alarm := view.Alarms(entries)
	var pools []poolPage
	for i, e := range entries {
		title := e.Title()
		if i == 0 || title != entries[i-1].Title() {
			pools = append(pools, poolPage{Title: title, Alarm: alarm[title]})
		}
		pool := &pools[len(pools)-1]
		row := upstreamPage{Upstream: e, State: e.State(), Since: "—", Share: "0 %"}
		if e.Since != nil {
			row.Since = e.Since.UTC().Format("2006-01-02 15:04:05 UTC")
		}
		if e.EffectiveWeight > 0 {
			row.Share = strconv.FormatFloat(math.Round(1000*e.EffectiveWeight/totals[title])/10, 'f', -1, 64) + " %"
		}
		for _, c := range e.Checks {
			row.Checks = append(row.Checks, checkPage{Check: c, Chart: newChart(c)})
		}
		pool.Rows = append(pool.Rows, row)
	}
	return pools
}

// newChart draws the last results, the newest at the right, as high as they took in
// proportion to the slowest. Those that failed have a mark at the top as well, for who
// cannot tell the colours.
func newChart(c view.Check) chart {
	slowest, failed := 0.0, 0
	for _, ms := range c.Recent {
		slowest = max(slowest, math.Abs(ms))
		if ms < 0 {
			failed++
		}
	}
	var drawn chart
	for i, ms := range c.Recent {
		x := (health.Remembered - len(c.Recent) + i) * barWidth
		height := max(2, int(math.Round(chartHeight*math.Abs(ms)/slowest)))
		bar := fmt.Sprintf("M%d %dv-%dh3v%dz", x, chartHeight, height, height)
		if ms > 0 {
			drawn.Passed += bar
		} else {
			drawn.Failed += bar + fmt.Sprintf("M%d 2v-2h3v2z", x)
		}
	}
	drawn.Text = fmt.Sprintf("%d results, %d failed", len(c.Recent), failed)
	if c.Last != nil {
		drawn.Text += fmt.Sprintf(", the last took %g ms, the slowest %g ms", c.Last.DurationMS, slowest)
	}
	return drawn
}

// Interface guard
var _ caddyhttp.MiddlewareHandler = Status{}
