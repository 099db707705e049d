// SPDX-License-Identifier: Apache-2.0

package page

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// row is an upstream as the page shows it. The key names it in its section, so that the
// script finds it again in the next page.
type row struct {
	Key     string
	Address string
	State   string
	// StateNotes say more of the state, such as until when it is ejected, and Notes more of the
	// upstream: its group and its weight.
	StateNotes, Notes        []string
	Bound, InFleet           string // empty if there is nothing to say
	Share                    share100
	InFlight, Rate, Failures string
	Since                    *time.Time
	SinceWords, Why          string
	Checks                   []check
}

// share100 is a share in percent, and in words.
type share100 struct {
	Width string
	Words string
}

// check is a check as the page shows it. The label is its key.
type check struct {
	Label, Status string
	Last, Usual   string // how long the last probe took, and what is usual
	Chart         chart
	LastFailed    *view.Result // nil if the results that are kept have no failure
}

// newRow returns the row of an upstream at a moment, in the section of a pool, which can be nil,
// with a total of effective weights and a slowest result of all checks.
func newRow(u *view.Upstream, p *view.Pool, total, slowest float64, now time.Time) row {
	r := row{
		Key: u.Upstream, Address: u.Upstream, State: u.State(), Share: shareOf(u.EffectiveWeight, total), Why: u.Why,
		InFlight: u.InFlight(), Bound: u.BoundTraffic(), InFleet: u.InFleet(), Rate: rate(u.RequestsPerSecond), Failures: "–",
		Since: u.StateSince(), Checks: make([]check, len(u.Checks)),
	}
	if u.RecentFailures > 0 {
		r.Failures = strconv.FormatUint(u.RecentFailures, 10)
	}
	if ejection := u.Ejection(now, func(until time.Time) string { return "for " + words(until.Sub(now)) }); ejection != "" {
		r.StateNotes = append(r.StateNotes, ejection)
	}
	if u.Mode == "drain" && u.Status != "up" {
		r.StateNotes = append(r.StateNotes, u.Status)
	}
	for _, note := range []string{p.GroupName(u.Group), weightOf(u)} {
		if note != "" {
			r.Notes = append(r.Notes, note)
		}
	}
	if u.Gone { // one section has such rows of all pools
		r.Key = u.Pool + "\n" + u.Upstream
	}
	if r.Since != nil {
		r.SinceWords = words(now.Sub(*r.Since)) + " ago"
	}
	for i := range u.Checks {
		c := &u.Checks[i]
		r.Checks[i] = check{Label: c.Check, Status: c.Status, Chart: newChart(c, slowest), Usual: usual(c)}
		if c.Last != nil {
			r.Checks[i].Last = milliseconds(c.Last.DurationMS)
		}
		if c.Status == "up" && slices.ContainsFunc(c.Recent, func(ms float64) bool { return ms < 0 }) {
			r.Checks[i].LastFailed = c.LastFailed // else the reason says why it is down
		}
	}
	return r
}

// weightOf says the weight of an upstream where that is not 1, and that of the config where it
// differs.
func weightOf(u *view.Upstream) string {
	switch {
	case u.Gone:
		return ""
	case u.Weight != u.ConfiguredWeight:
		return fmt.Sprintf("weight %d, in the config %d", u.Weight, u.ConfiguredWeight)
	case u.Weight != 1:
		return fmt.Sprintf("weight %d", u.Weight)
	default:
		return ""
	}
}

// usual says what is usual for the results of a check that passed and are kept.
func usual(c *view.Check) string {
	passed := make([]float64, 0, view.Remembered)
	for _, ms := range c.Recent {
		if ms >= 0 {
			passed = append(passed, ms)
		}
	}
	if len(passed) == 0 {
		return ""
	}
	slices.Sort(passed)
	at := func(share float64) string { // the nearest rank
		return milliseconds(passed[int(math.Ceil(share*float64(len(passed))))-1])
	}
	return fmt.Sprintf("p50 %s, p95 %s", strings.TrimSuffix(at(.5), " ms"), at(.95))
}

// shareOf returns a part of a total in percent.
func shareOf(part, total float64) share100 {
	if part <= 0 {
		return share100{"0", "0 %"}
	}
	share := part / total
	return share100{strconv.FormatFloat(math.Round(1000*share)/10, 'f', -1, 64), percent(share)}
}

// percent writes a share in percent, with one digit after the point.
func percent(share float64) string {
	if share > 0 && share < .0005 {
		return "<0.1 %"
	}
	return strconv.FormatFloat(math.Round(1000*share)/10, 'f', -1, 64) + " %"
}

// rate writes a number of requests a second.
func rate(perSecond float64) string { return strconv.FormatFloat(perSecond, 'f', -1, 64) }

// milliseconds writes a duration with three digits at most.
func milliseconds(ms float64) string {
	switch {
	case ms >= 1000:
		return strconv.FormatFloat(math.Round(ms/10)/100, 'f', -1, 64) + " s"
	case ms >= 100:
		return strconv.FormatFloat(math.Round(ms), 'f', -1, 64) + " ms"
	case ms >= 10:
		return strconv.FormatFloat(math.Round(ms*10)/10, 'f', -1, 64) + " ms"
	default:
		return strconv.FormatFloat(math.Round(ms*100)/100, 'f', -1, 64) + " ms"
	}
}

// words writes a duration in its largest unit.
func words(d time.Duration) string {
	d = max(0, d)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
}

// exact writes a time to the second, with its zone.
func exact(t time.Time) string { return t.Format("2006-01-02 15:04:05 MST") }

// datetime writes a time for programs.
func datetime(t time.Time) string { return t.UTC().Format(time.RFC3339) }
