// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// listed is what a Caddy lists that has these rows.
func listed(rows ...view.Upstream) listing { return listing{rows: rows, pools: view.Pools(rows)} }

// The line below a row also says how many requests bound clients send, and at how many
// members of the fleet the upstream is down.
func TestTable_ReasonHasWhatTheFleetSees(t *testing.T) {
	down := 3
	for _, test := range []struct {
		row  view.Upstream
		want string
	}{
		{view.Upstream{Why: "up", Bound: 1, DownAt: &down, Members: 12}, "up; 1 request in the last minute of a client bound to it; down at 3 of 12 members"},
		{view.Upstream{Why: "up", DownAt: &down, Members: 12}, "up; down at 3 of 12 members"},
		{view.Upstream{Bound: 1, DownAt: &down, Members: 12}, "down at 3 of 12 members"},
		{view.Upstream{Why: "up", DownAt: new(int), Members: 12}, "up"},
	} {
		if got := reason(&test.row); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

// The table has one layout at every width. Its lines fit the terminal, nothing is left
// out, no character is a command to the terminal, and fail-open is shown once.
func TestTable_FitsTheTerminal(t *testing.T) {
	now := time.Now()
	since := now.Add(-90 * time.Second)
	rows := []view.Upstream{
		{Pool: "shop", Upstream: "app1.internal:8080", Status: "up", Mode: settings.Ready, Weight: 3, ConfiguredWeight: 3, EffectiveWeight: 1.5, Serving: true, Why: "up, in its slow start: gets requests with 50 % of its weight", Since: &since},
		{Pool: "shop", Upstream: "unix//run/\x1b[2Jevil\n.sock", Status: "down", Mode: settings.Drain, Weight: 1, ConfiguredWeight: 1, Group: 1, Backup: true, Why: "check 'http /' failed: \x1b]0;title\x07 \u202e reversed", Requests: 12},
		{Pool: "shop", Upstream: "10.11.12.13:8080", Status: "up", Mode: settings.Ready, Weight: 256, ConfiguredWeight: 2, Group: 2, Backup: true, Requests: 1000, Limit: 1000, Bound: 123456, Why: "up, and a backup of group 2: …"},
		{Pool: strings.Repeat("app.internal:8080 ", 10) + "end-of-title", Upstream: "app9:80", Status: "unknown", Mode: settings.Ready, Weight: 1, FailOpen: true, Why: strings.Repeat("long ", 100) + "end-of-reason"},
		{Pool: "漢字", Upstream: "漢字漢字漢字漢字漢字.example:80", Status: "up", Mode: settings.Maintenance, Weight: 1, Why: strings.Repeat("絵", 100) + "e\u0301nd"},
	}
	for _, columns := range []int{0, 1, 2, 20, 40, 60, 80, 120, 200} {
		var to bytes.Buffer
		report{screen: screen{columns: columns}, listing: listed(rows...), now: now}.write(&to)
		for line := range strings.Lines(to.String()) {
			line = strings.TrimSuffix(line, "\n")
			for _, r := range line {
				if r < ' ' || r == 0x7f || r == '\u202e' {
					t.Errorf("%d columns: %q", columns, line)
				}
			}
			if n := columnsOf(line); columns >= 20 && n > columns {
				t.Errorf("%d columns: %d columns: %s", columns, n, line)
			}
		}
		whole := strings.Join(strings.Fields(to.String()), " ")
		if columns >= 20 && strings.Count(whole, "!! Fail-open: ") != 1 {
			t.Errorf("%d columns: fail-open is not shown once:\n%s", columns, to.String())
		}
		// also where it is broken into lines
		whole = strings.Join(strings.Fields(to.String()), "")
		for _, want := range []string{"app1.internal:8080", "50%ofitsweight", "end-of-title", "end-of-reason", "漢字漢字漢字漢字漢字.example:80", "reversed", "1000of1000", "256(config2,backup2)", "1(backup1)", "123456requestsinthelastminuteofclientsboundtoit", "1of3serve,1draining,", "絵e\u0301nd"} {
			if !strings.Contains(whole, want) {
				t.Errorf("%d columns: it lacks %q:\n%s", columns, want, to.String())
			}
		}
	}
	for _, tc := range []struct {
		screen screen
		want   string
	}{
		{screen{colours: true}, "1 upstream in 1 pool, 1 up, 0 in flight\n" +
			"\npool shop\n" +
			"1 of 1 serve, 0 in flight\n" +
			"UPSTREAM            STATE  WEIGHT  IN FLIGHT  SINCE\n" +
			"app1.internal:8080  \x1b[32mup\x1b[0m     1.5/3   0          1m ago\n" +
			"    up, in its slow start: gets requests with 50 % of its weight\n"},
		{screen{columns: 54}, "1 upstream in 1 pool, 1 up, 0 in flight\n" +
			"\npool shop\n" +
			"1 of 1 serve, 0 in flight\n" +
			"UPSTREAM            STATE  WEIGHT  IN FLIGHT  SINCE\n" +
			"app1.internal:8080  up     1.5/3   0          1m ago\n" +
			"    up, in its slow start: gets requests with 50 % of\n" +
			"    its weight\n"},
		{screen{columns: 40}, "1 upstream in 1 pool, 1 up, 0 in flight\n" +
			"\npool shop\n" +
			"1 of 1 serve, 0 in flight\n" +
			"UPSTREAM            STATE  WEIGHT\n" +
			"    IN FLIGHT  SINCE\n" +
			"app1.internal:8080  up     1.5/3\n" +
			"    0          1m ago\n" +
			"    up, in its slow start: gets requests\n" +
			"    with 50 % of its weight\n"},
		{screen{columns: 16, colours: true}, "1 upstream in 1\n" +
			"pool, 1 up, 0 in\n" +
			"flight\n" +
			"\npool shop\n" +
			"1 of 1 serve, 0\n" +
			"in flight\n" +
			"UPSTREAM\n" +
			"    STATE\n" +
			"    WEIGHT\n" +
			"    IN FLIGHT\n" +
			"    SINCE\n" +
			"app1.interna\n" +
			"    l:8080\n" +
			"    \x1b[32mup\x1b[0m\n" +
			"    1.5/3\n" +
			"    0\n" +
			"    1m ago\n" +
			"    up, in its\n" +
			"    slow start:\n" +
			"    gets\n" +
			"    requests\n" +
			"    with 50 % of\n" +
			"    its weight\n"},
	} {
		var to bytes.Buffer
		report{screen: tc.screen, listing: listed(rows[0]), now: now}.write(&to)
		if got := to.String(); got != tc.want {
			t.Errorf("%+v: got\n%s\nwant\n%s", tc.screen, got, tc.want)
		}
	}
	var to bytes.Buffer
	report{screen: screen{columns: 80}, now: now}.write(&to)
	if to.String() != "0 upstreams in 0 pools, 0 in flight\nno reverse_proxy uses lb_policy alive\n" {
		t.Errorf("without any: %s", to.String())
	}
}

// A pool has its alarm above its rows, and a pool without one has none.
func TestTable_ShowsAlarms(t *testing.T) {
	for _, tc := range []struct {
		entry view.Upstream
		alarm string
	}{
		{view.Upstream{Serving: true, EffectiveWeight: 1}, ""},
		{view.Upstream{EffectiveWeight: 1}, "!! No upstream serves: requests go to "},
		{view.Upstream{}, "!! No upstream serves, and none gets requests"},
		{view.Upstream{EffectiveWeight: 1, FailOpen: true}, "!! Fail-open: no upstream serves, "},
		{view.Upstream{Idle: true}, ""},
		{view.Upstream{Gone: true}, ""},
	} {
		rows := []view.Upstream{{Pool: "other", Upstream: "x:80", Serving: true, EffectiveWeight: 1}, tc.entry}
		rows[1].Pool = "shop"
		var to bytes.Buffer
		report{listing: listed(rows...), now: time.Now()}.write(&to)
		_, below, found := strings.Cut(to.String(), "\n"+tc.alarm)
		if !found || strings.Contains(below, "!! ") {
			t.Errorf("%+v: want %q:\n%s", tc.entry, tc.alarm, to.String())
		}
	}
}

// The state is one word: what is wrong differs from what an operator has set, and from what is
// well, in its colour too. For how long an upstream is ejected is said, and of one that drains,
// that it is down.
func TestTable_ShowsStates(t *testing.T) {
	now := time.Now()
	later, before := now.Add(90*time.Second), now.Add(-time.Second)
	for _, tc := range []struct {
		row  view.Upstream
		want string
	}{
		{view.Upstream{Status: "up", Mode: settings.Ready, Serving: true}, "\x1b[32mup\x1b[0m"},
		{view.Upstream{Status: "up", Mode: settings.Ready, Group: 1, Backup: true}, "\x1b[32mup\x1b[0m"},
		{view.Upstream{Status: "up", Mode: settings.Ready}, "\x1b[33mup\x1b[0m"},
		{view.Upstream{Status: "unknown", Mode: settings.Ready}, "\x1b[33munknown\x1b[0m"},
		{view.Upstream{Status: "up", Mode: settings.Ready, Serving: true, Suspect: true}, "\x1b[33msuspect\x1b[0m"},
		{view.Upstream{Status: "up", Mode: settings.Ready, Suspect: true, EjectedUntil: &later}, "\x1b[31mejected (1m)\x1b[0m"},
		{view.Upstream{Status: "up", Mode: settings.Ready, EjectedUntil: &before}, "\x1b[31mejected (on trial)\x1b[0m"},
		{view.Upstream{Status: "up", Mode: settings.Drain, Suspect: true, EjectedUntil: &later}, "\x1b[36mdraining\x1b[0m"},
		{view.Upstream{Status: "up", Mode: settings.Ready, Checks: []view.Check{{Draining: true}}}, "\x1b[36mdraining\x1b[0m"},
		{view.Upstream{Status: "down", Mode: settings.Drain}, "\x1b[31mdraining (down)\x1b[0m"},
		{view.Upstream{Status: "unknown", Mode: settings.Maintenance}, "\x1b[36mmaintenance\x1b[0m"},
		{view.Upstream{Status: "down", Mode: settings.Ready, Suspect: true, EjectedUntil: &later}, "\x1b[31mdown\x1b[0m"},
	} {
		tc.row.Pool, tc.row.Upstream = "shop", "a:80"
		var to bytes.Buffer
		report{screen: screen{colours: true}, listing: listed(tc.row), now: now}.write(&to)
		if got := to.String(); !strings.Contains(got, "\na:80      "+tc.want+" ") {
			t.Errorf("want %q:\n%q", tc.want, got)
		}
	}
}

// The weight shows that of the config if another was set at run time, and the one in use during
// a slow start.
func TestWeightCell_ShowsWhatDiffers(t *testing.T) {
	for _, tc := range []struct {
		row  view.Upstream
		want string
	}{
		{view.Upstream{Weight: 1, ConfiguredWeight: 1, EffectiveWeight: 1}, "1"},
		{view.Upstream{Weight: 1, ConfiguredWeight: 1}, "1"}, // it gets no requests
		{view.Upstream{Weight: 5, ConfiguredWeight: 2, EffectiveWeight: 5}, "5 (config 2)"},
		{view.Upstream{Weight: 0, ConfiguredWeight: 2}, "0 (config 2)"},
		{view.Upstream{Weight: 5, ConfiguredWeight: 0, EffectiveWeight: 1.2345}, "1.23/5 (config 0)"},
		{view.Upstream{Weight: 5, ConfiguredWeight: 2, Group: 2, Backup: true}, "5 (config 2, backup 2)"},
		{view.Upstream{Weight: 5, Gone: true}, "5"},
	} {
		if got := weightCell(&tc.row, &view.Pool{Groups: 3}); got != tc.want {
			t.Errorf("%+v: got %q, want %q", tc.row, got, tc.want)
		}
	}
}

// Lines below the end of the terminal are left out and counted.
func TestScreen_LeavesOutWhatDoesNotFit(t *testing.T) {
	text := strings.Repeat("line\n", 10)
	for lines, want := range map[int]string{
		0:  text,
		11: text,
		10: strings.Repeat("line\n", 8) + "… 2 more lines do not fit\n",
		3:  "line\n… 9 more lines do not fit\n",
		1:  "… 10 more lines do not fit\n",
	} {
		if got := string(screen{columns: 80, lines: lines}.fit([]byte(text))); got != want {
			t.Errorf("%d lines: got\n%s\nwant\n%s", lines, got, want)
		}
	}
}

// Escaped JSON has the same value, and no character that is a command to a terminal.
func TestPrintableJSON_EscapesTerminalCommands(t *testing.T) {
	const hostile = "漢 \u202e \u009b2J \x7f \U000e0001 \U0001f600\n"
	text, err := json.Marshal([]string{hostile})
	if err != nil {
		t.Fatal(err)
	}
	safe := printableJSON(append(text, '\n'))
	var back []string
	if err := json.Unmarshal(safe, &back); err != nil || len(back) != 1 || back[0] != hostile {
		t.Errorf("%s: %q, %v", safe, back, err)
	}
	if want := `["漢 \u202e \u009b2J \u007f \udb40\udc01 ` + "\U0001f600" + `\n"]` + "\n"; string(safe) != want {
		t.Errorf("got %s, want %s", safe, want)
	}
}
