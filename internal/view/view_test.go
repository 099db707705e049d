// SPDX-License-Identifier: Apache-2.0

package view

import (
	"strings"
	"testing"
	"time"
)

// TestMerge_SaysWhatDiffers: of a row that stands for several handlers, each sentence is
// there once, and those of handlers for which it serves come first.
func TestMerge_SaysWhatDiffers(t *testing.T) {
	row := Upstream{Why: "down"}
	for _, other := range []Upstream{{Why: "down"}, {Why: "up", Serving: true}, {Why: "up", Serving: true}, {Why: "draining"}} {
		row.Merge(other)
	}
	if want := "up; elsewhere in this pool: down; elsewhere in this pool: draining"; row.Why != want || !row.Serving {
		t.Errorf("%q, serving %v; want %q and true", row.Why, row.Serving, want)
	}
}

// Rows of handlers of one pool are merged: shared counts once, the worst where they
// differ. An upstream serves if it does for one of them.
func TestMerge_ShowsTheWorst(t *testing.T) {
	early, late := new(time.Unix(1, 0)), new(time.Unix(2, 0))
	row := Upstream{
		Status: "up", Serving: true, Why: "up", Weight: 2, EffectiveWeight: 1, Requests: 3, Fails: 1, Backup: true, Since: early,
		Checks: []Check{{Check: "tcp", Status: "up"}, {Check: "http /", Status: "up"}},
	}
	row.Merge(Upstream{
		Status: "down", Why: "refused", Weight: 3, EffectiveWeight: 0, Requests: 3, Fails: 2, Since: late, FailOpen: true,
		Checks: []Check{{Check: "http /", Status: "down"}, {Check: "tls", Status: "unknown"}},
	})
	if row.Status != "down" || row.Since != late || !row.Serving || row.Why != "up; elsewhere in this pool: refused" || !row.FailOpen || row.Backup ||
		row.Weight != 3 || row.EffectiveWeight != 1 || row.Requests != 3 || row.Fails != 2 {
		t.Errorf("merged: %+v", row)
	}
	var checks []string
	for _, c := range row.Checks {
		checks = append(checks, c.Check+" "+c.Status)
	}
	if want := "http / down, tcp up, tls unknown"; strings.Join(checks, ", ") != want {
		t.Errorf("checks %v, want %s", checks, want)
	}
	row.Merge(Upstream{Status: "up", Serving: true, Why: "up", Since: early, Checks: []Check{{Check: "http /", Status: "up"}}})
	if row.Status != "down" || row.Since != late || !row.Serving || row.Checks[0].Status != "down" || row.Why != "up; elsewhere in this pool: refused" {
		t.Errorf("merged with a better one: %+v", row)
	}
}

// Each pool is said to serve or not, and what is no pool at present has no alarm.
func TestAlarms_SayWhetherAPoolServes(t *testing.T) {
	up := Upstream{Upstream: "a:80", Serving: true, EffectiveWeight: 1}
	down := Upstream{Upstream: "b:80"}
	gets := Upstream{Upstream: "c:80", EffectiveWeight: 1}
	open := Upstream{Upstream: "d:80", EffectiveWeight: 1, FailOpen: true}
	for _, tc := range []struct {
		rule   string
		rows   []Upstream
		alarm  string
		outage bool
	}{
		{"one serves", []Upstream{down, up}, "", false},
		{"some drain, and get requests", []Upstream{gets, down}, "No upstream serves: requests go to ", true},
		{"none gets requests", []Upstream{down}, "No upstream serves, and none gets requests", true},
		{"fail-open, and none serves", []Upstream{open}, "Fail-open: no upstream serves, ", true},
		{"fail-open, and one serves", []Upstream{open, up}, "Fail-open: too few upstreams serve, ", false},
		{"requests bring it no more", []Upstream{{Upstream: "e:80", Idle: true}}, "", false},
		{"one that requests bring no more serves", []Upstream{{Serving: true, Idle: true}, down}, "No upstream serves, and", true},
		{"only what was set", []Upstream{{Upstream: "f:80", Gone: true}}, "", false},
		{"nothing", nil, "", false},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			for i := range tc.rows {
				tc.rows[i].Pool = "shop"
			}
			rows := append([]Upstream{{Pool: "other", Upstream: "x:80", Serving: true, EffectiveWeight: 1}}, tc.rows...)
			if got := ByName(Pools(rows))["shop"].Alarm(); !strings.HasPrefix(got, tc.alarm) || (got == "") != (tc.alarm == "") {
				t.Errorf("alarm %q, want %q", got, tc.alarm)
			}
			lines := Outages(Pools(rows))
			if (len(lines) == 1) != tc.outage || tc.outage && !strings.HasPrefix(lines[0], "pool shop: "+tc.alarm) {
				t.Errorf("outages %q, want some: %v", lines, tc.outage)
			}
		})
	}
}

// The state is one word. What an operator wants or a check says goes before what requests
// say.
func TestState_IsTheFirstThatHolds(t *testing.T) {
	until := new(time.Unix(1, 0))
	drains := []Check{{Check: "http /", Draining: true}}
	for _, tc := range []struct {
		row  Upstream
		want string
	}{
		{Upstream{Mode: "maintenance", Status: "unknown", Suspect: true, EjectedUntil: until}, "maintenance"},
		{Upstream{Mode: "drain", Status: "up", Suspect: true, EjectedUntil: until}, "draining"},
		{Upstream{Mode: "ready", Status: "up", Checks: drains, Suspect: true, EjectedUntil: until}, "draining"},
		{Upstream{Mode: "ready", Status: "down", Suspect: true, EjectedUntil: until}, "down"},
		{Upstream{Mode: "ready", Status: "unknown", Suspect: true, EjectedUntil: until}, "unknown"},
		{Upstream{Mode: "ready", Status: "up", Suspect: true, EjectedUntil: until}, "ejected"},
		{Upstream{Mode: "ready", Status: "up", Suspect: true}, "suspect"},
		{Upstream{Mode: "ready", Status: "up"}, "up"},
	} {
		if got := tc.row.State(); got != tc.want {
			t.Errorf("%+v: %s, want %s", tc.row, got, tc.want)
		}
	}
}

// A row of several handlers is suspect if one of them says so, and ejected until the latest
// time of all.
func TestMerge_SuspectAndEjected(t *testing.T) {
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	row := Upstream{Status: "up"}
	for i, step := range []struct {
		other   Upstream
		suspect bool
		until   *time.Time
	}{
		{Upstream{Status: "up"}, false, nil},
		{Upstream{Status: "up", EjectedUntil: &early, ConfiguredWeight: 4}, false, &early},
		{Upstream{Status: "up", Suspect: true, EjectedUntil: &late}, true, &late},
		{Upstream{Status: "up", EjectedUntil: &early}, true, &late},
		{Upstream{Status: "up"}, true, &late},
	} {
		row.Merge(step.other)
		if row.Suspect != step.suspect || row.EjectedUntil != step.until {
			t.Errorf("step %d: suspect %v, ejected until %v; want %v, %v", i, row.Suspect, row.EjectedUntil, step.suspect, step.until)
		}
	}
	if row.ConfiguredWeight != 4 {
		t.Errorf("the configured weight is %d, want 4", row.ConfiguredWeight)
	}
}

// Bytes that are not UTF-8 are shown, and those that differ are told apart.
func TestValidText_ShowsBytesThatAreNotUTF8(t *testing.T) {
	for text, want := range map[string]string{
		"app:80": "app:80", "": "", `C:\x`: `C:\x`, "漢": "漢", "\ufffd": "\ufffd",
		"a\xff:80": `a\xff:80`, "\xfe\xff": `\xfe\xff`, "a\\\xff": `a\\\xff`, "\xe6\xbc": `\xe6\xbc`,
	} {
		if got := ValidText(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// A state that an operator set begins with the mode, and any other with the status.
func TestStateSince_OfModeOrStatus(t *testing.T) {
	status, mode := time.Unix(1, 0), time.Unix(2, 0)
	for _, test := range []struct {
		row  Upstream
		want *time.Time
	}{
		{Upstream{Mode: "ready"}, nil},
		{Upstream{Mode: "ready", Since: &status}, &status},
		{Upstream{Mode: "ready", Since: &status, ModeSince: &mode}, &status},
		{Upstream{Mode: "drain", Since: &status, ModeSince: &mode}, &mode},
		{Upstream{Mode: "maintenance", ModeSince: &mode}, &mode},
		{Upstream{Mode: "drain", Since: &status}, &status},
	} {
		if got := test.row.StateSince(); got != test.want {
			t.Errorf("%+v: %v, want %v", test.row, got, test.want)
		}
	}
}
