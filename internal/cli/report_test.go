// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// poolOf returns the upstreams of a pool, of which the first are down.
func poolOf(pool string, down, all int) (rows []view.Upstream) {
	for i := range all {
		row := view.Upstream{
			Pool: pool, Upstream: fmt.Sprintf("10.0.%d.%d:80", len(pool), i), Status: "up", Mode: settings.Ready,
			Weight: 1, ConfiguredWeight: 1, EffectiveWeight: 1, Serving: true, Why: "up: gets requests in turn",
		}
		if i < down {
			row.Status, row.Serving, row.EffectiveWeight = "down", false, 0
			row.Why = "check 'tcp' failed: dial tcp " + row.Upstream + ": connect: connection refused"
		}
		rows = append(rows, row)
	}
	return rows
}

// small is a terminal of the usual size, of which the last line is for the prompt.
var small = report{screen: screen{columns: 80, lines: 24}, room: 23}

// shownOn returns the report of these rows on a terminal.
func shownOn(r report, rows ...view.Upstream) string {
	var to bytes.Buffer
	r.listing, r.now = listed(rows...), time.Now()
	r.write(&to)
	return to.String()
}

// With 200 upstreams of which 46 are down, and other pools, the first screen names all that are
// down, and counts the others.
func TestReport_WhatIsWrongFitsTheScreen(t *testing.T) {
	rows := append(poolOf("big", 46, 200), poolOf("well", 0, 4)...)
	text := shownOn(small, rows...)
	if n := strings.Count(text, "\n"); n > 23 {
		t.Errorf("%d lines:\n%s", n, text)
	}
	for i := range rows {
		if got, want := strings.Contains(" "+strings.Join(strings.Fields(text), " ")+" ", " "+rows[i].Upstream+" "), rows[i].Status == "down"; got != want {
			t.Errorf("%s is named: %v, want %v", rows[i].Upstream, got, want)
		}
	}
	for _, want := range []string{
		"204 upstreams in 2 pools, 46 down, 158 up, 0 in flight\n\npool big\n154 of 200 serve, 46 down, 0 in flight\nUPSTREAM",
		"\n46 upstreams   down   1       0          -\n    check 'tcp' failed: dial tcp: connect: connection refused\n    10.0.3.0:80 ",
		"\n… 154 more are up (--all shows them)\n\npool well: 4 of 4 serve, 0 in flight\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it lacks %q:\n%s", want, text)
		}
	}
	all := small
	all.room = 0
	if text := shownOn(all, rows...); strings.Count(text, "up: gets requests in turn") != 158 || strings.Contains(text, "more are up") {
		t.Errorf("without a limit:\n%s", text)
	}
}

// A report shows as much as fits: first it leaves out the reasons of those that serve, then it
// counts them in pools that do not fit, then those with the same trouble are one row, and in the
// end only the first of these are named.
func TestReport_ShowsWhatFits(t *testing.T) {
	for _, tc := range []struct {
		rule               string
		rows               []view.Upstream
		rest, has, without string
	}{
		{"all fits", poolOf("a", 3, 9), "", "    up: gets requests in turn", "more are up"},
		{"no reasons", poolOf("a", 3, 12), "", "10.0.1.11:80", "in turn"},
		{"a count", poolOf("a", 3, 30), "… 27 more are up (--all shows them)\n", "10.0.1.2:80   down", "10.0.1.3:80"},
		{"a count of one pool", append(poolOf("a", 3, 30), poolOf("ab", 0, 2)...), "10.0.2.1:80   up     1       0          -\n", "… 27 more are up", "10.0.1.3:80"},
		{"one row", poolOf("a", 14, 30), "… 16 more are up (--all shows them)\n", "14 upstreams  down", "10.0.1.14:80"},
		{"two are no group", append(poolOf("a", 14, 30), poolOf("ab", 2, 3)...), "10.0.2.2:80   up     1       0          -\n", "10.0.2.1:80   down", "2 upstreams  down   1       0          -\n    check 'tcp' failed: dial tcp: connect: connection refused\n    10.0.2"},
		{"the first", poolOf("a", 190, 230), "… 40 more are up (--all shows them)\n", "10.0.1.9:80 and 180 more\n", "10.0.1.10:80"},
		{"an alarm", poolOf("a", 30, 30), "10.0.1.29:80\n", "30 upstreams  down", "more"},
	} {
		text := shownOn(small, tc.rows...)
		if !strings.HasSuffix(text, tc.rest) || !strings.Contains(text, tc.has) || strings.Contains(text, tc.without) || strings.Count(text, "\n") > 23 {
			t.Errorf("%s: want %q in the end, %q, and not %q:\n%s", tc.rule, tc.rest, tc.has, tc.without, text)
		}
	}
}

// What is counted is said to be up or idle, and how many of those that are up get no requests. A
// filter counts nothing: what it wants is shown.
func TestReport_SaysWhatItLeavesOut(t *testing.T) {
	rows := poolOf("a", 1, 30)
	rows[5].Serving, rows[6].Serving = false, false
	rows[7].Idle = true
	if text := shownOn(small, rows...); !strings.Contains(text, "\n… 28 more are up, 2 of them without requests, 1 more is idle (--all shows them)\n") {
		t.Errorf("it counts otherwise:\n%s", text)
	}
	filtered := small
	filtered.filter.states = []string{"up"}
	if text := shownOn(filtered, rows...); strings.Contains(text, "more") || strings.Contains(text, "10.0.1.0:80") || !strings.Contains(text, "10.0.1.29:80") {
		t.Errorf("with a filter:\n%s", text)
	}
}

// One row for several upstreams has what they have in common, and the sum of their requests.
func TestGroupCells(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) *time.Time { return new(now.Add(-d)) }
	same := []*view.Upstream{
		{Status: "down", Weight: 2, ConfiguredWeight: 2, Requests: 1, Since: ago(3 * time.Minute)},
		{Status: "down", Weight: 2, ConfiguredWeight: 2, Requests: 2, Since: ago(3 * time.Minute)},
	}
	if got := strings.Join(groupCells(same, nil, now), "|"); got != "2 upstreams|down|2|3|3m ago" {
		t.Errorf("equal ones: %s", got)
	}
	other := append(same, &view.Upstream{Status: "down", Weight: 5, ConfiguredWeight: 2, Since: ago(2 * time.Hour)}, &view.Upstream{Status: "down"})
	if got := strings.Join(groupCells(other, nil, now), "|"); got != "4 upstreams|down|various|3|3m to 2h ago" {
		t.Errorf("others: %s", got)
	}
}

// Long names of pools take one line where not all fits.
func TestReport_CutsLongNames(t *testing.T) {
	text := shownOn(small, poolOf(strings.Repeat("10.0.0.1:80 ", 200), 3, 30)...)
	if !strings.Contains(text, "10.0.0.1:80 …\n") || strings.Count(text, "\n") > 23 {
		t.Errorf("got\n%s", text)
	}
}
