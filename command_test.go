// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// A Caddy that hangs is given up, also in the middle of a wait.
func TestCommandGivesUp(t *testing.T) {
	hung := make(chan struct{})
	var answers atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/config/apps/alive":
			fmt.Fprint(w, "null")
		case answers.Add(-1) >= 0:
			fmt.Fprint(w, `[{"pool":"shop","upstream":"a:80","mode":"drain","requests":1}]`)
		default:
			<-hung
		}
	}))
	defer server.Close()
	defer close(hung)
	address := server.Listener.Addr().String()
	for _, n := range []int64{0, 2} { // at once, or in the wait
		answers.Store(n)
		began := time.Now()
		_, _, err := testkit.Command(t.Context(), address, "drain", "a:80", "--wait", "1s")
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "no answer from Caddy at "+address+" within 3s") || took > 6*time.Second {
			t.Errorf("after %s: %v", took, err)
		}
	}
}

// status --watch goes on when Caddy does not answer for a while.
func TestCommandWatchesOn(t *testing.T) {
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1) == 2 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, `[{"pool":"shop","upstream":"a:80","mode":"drain"}]`)
	}))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	stdout, stderr, err := testkit.Command(ctx, server.Listener.Addr().String(), "status", "--watch")
	if err != nil || strings.Count(stdout, "pool shop") != 2 || strings.Count(stderr, "warning: the server at ") != 1 {
		t.Errorf("%q, %q, %v", stdout, stderr, err)
	}
}

// What goes wrong is one line that says what to do, and nothing else is printed.
func TestCommandErrors(t *testing.T) {
	answers := func(status int, body string) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}))
		t.Cleanup(server.Close)
		return server.Listener.Addr().String()
	}
	stopped := testkit.Refused(t)
	for _, tc := range []struct {
		address string
		args    string
		says    string
	}{
		{stopped, "status", "cannot reach Caddy at " + stopped},
		{answers(404, "404 page not found"), "status", "it is a build without this plugin, or no Caddy"},
		{answers(404, `{"error":"unknown path"}`), "drain a:80", "it is a build without this plugin, or no Caddy"},
		{answers(404, `{"error":"unknown upstream 'a:80'; GET /alive/upstreams lists those there are"}`), "drain a:80", "unknown upstream 'a:80'; caddy alive status lists those there are"},
		{answers(400, `{"error":"bad\u001b[31m\nthing"}`), "drain a:80", "bad?[31m?thing"},
		{answers(500, "oops"), "status", "answers with the status 500"},
		{answers(200, "hello"), "status", "this is no answer of Caddy's admin API"},
		{answers(200, "hello"), "status --json", "this is no answer of Caddy's admin API"},
		{"localhost", "status", `the address of the admin API must be like localhost:2019 or unix//run/caddy-admin.sock; got "localhost"`},
		{"http://localhost:2019", "status", `the address of the admin API must be like localhost:2019`},
		{"localhost:2019-2021", "status", `the address of the admin API must be like localhost:2019`},
		{stopped, "check a --wait -1s", "--wait must not be below 0"},
		{stopped, "weight a -1", `the weight must be a whole number from 0 to 256, or reset; got "-1"`},
		{stopped, "weight a -300", `the weight must be a whole number from 0 to 256, or reset; got "-300"`},
		{stopped, "weight a -x", "unknown shorthand flag: 'x' in -x"},
		{stopped, "drain", "caddy alive drain takes one upstream"},
		{stopped, "drain a b", "caddy alive drain takes one upstream"},
		{stopped, "drain a --wait -1s", "--wait must not be below 0"},
		{stopped, "weight a", "caddy alive weight takes an upstream, and a whole number or reset"},
		{stopped, "weight a many", `the weight must be a whole number from 0 to 256, or reset; got "many"`},
		{stopped, "check", "caddy alive check takes one upstream"},
		{stopped, "status now", "caddy alive status takes no arguments"},
		{stopped, "sleep a", `unknown command "sleep": there are status, ready, drain, maintenance, weight and check`},
	} {
		stdout, stderr, err := testkit.Command(t.Context(), tc.address, strings.Fields(tc.args)...)
		if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want %q", tc.args, err, tc.says)
			continue
		}
		if stdout != "" || stderr != "Error: "+err.Error()+"\n" {
			t.Errorf("%s: printed %q and %q", tc.args, stdout, stderr)
		}
	}
}

// A change that could not be stored is warned of.
func TestCommandWarnsOfTheStorage(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `[{"pool":"shop","upstream":"a:80","mode":"drain","persisted":false}]`)
	}))
	defer server.Close()
	stdout, stderr, err := testkit.Command(t.Context(), server.Listener.Addr().String(), "drain", "a:80")
	if err != nil || stdout != "a:80: drain\n" || !strings.HasPrefix(stderr, "warning: ") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("printed %q and %q, %v", stdout, stderr, err)
	}
}

// The table fits the terminal, whatever is in it; nothing in it is a command to the
// terminal, and nothing is left out; fail-open cannot be overlooked.
func TestTable(t *testing.T) {
	now := time.Now()
	since := now.Add(-90 * time.Second)
	entries := []entry{
		{Pool: "shop", Upstream: "app1.internal:8080", Status: "up", Mode: modeReady, Weight: 3, EffectiveWeight: 1.5, Serving: true, Why: "up, in its slow start: gets requests by 50 % of its weight", Since: &since},
		{Pool: "shop", Upstream: "unix//run/\x1b[2Jevil\n.sock", Status: "down", Mode: modeDrain, Weight: 1, Backup: true, Why: "check 'http /' failed: \x1b]0;title\x07 \u202e reversed", Requests: 12},
		{Pool: strings.Repeat("app.internal:8080 ", 10) + "end-of-title", Upstream: "app9:80", Status: "unknown", Mode: modeReady, Weight: 1, FailOpen: true, Why: strings.Repeat("long ", 100) + "end-of-reason"},
		{Pool: "漢字", Upstream: "漢字漢字漢字漢字漢字.example:80", Status: "up", Mode: modeMaintenance, Weight: 1, Why: strings.Repeat("絵", 100) + "e\u0301nd"},
	}
	for _, columns := range []int{0, 1, 2, 20, 40, 60, 80, 120, 200} {
		var to bytes.Buffer
		screen{columns: columns}.writeTable(&to, entries, now)
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
		// what is broken into lines is there
		whole = strings.Join(strings.Fields(to.String()), "")
		for _, want := range []string{"app1.internal:8080", "50%ofitsweight", "end-of-title", "end-of-reason", "漢字漢字漢字漢字漢字.example:80", "reversed", "絵e\u0301nd"} {
			if !strings.Contains(whole, want) {
				t.Errorf("%d columns: it lacks %q:\n%s", columns, want, to.String())
			}
		}
	}
	for _, tc := range []struct {
		screen screen
		want   string
	}{
		{screen{colours: true}, "pool shop\n" +
			"UPSTREAM            STATUS  MODE   WEIGHT  REQUESTS  SINCE  WHY\n" +
			"app1.internal:8080  \x1b[32mup\x1b[0m      ready  1.5/3   0         1m     up, in its slow start: gets requests by 50 % of its weight\n"},
		{screen{columns: 90}, "pool shop\n" +
			"UPSTREAM            STATUS  MODE   WEIGHT  REQUESTS  SINCE  WHY\n" +
			"app1.internal:8080  up      ready  1.5/3   0         1m     up, in its slow start: gets\n" +
			"                                                            requests by 50 % of its weight\n"},
		{screen{columns: 70}, "pool shop\n" +
			"UPSTREAM            STATUS  MODE   WEIGHT  REQUESTS  SINCE\n" +
			"app1.internal:8080  up      ready  1.5/3   0         1m\n" +
			"    up, in its slow start: gets requests by 50 % of its weight\n"},
		{screen{columns: 40}, "pool shop\n" +
			"app1.internal:8080\n" +
			"    up ready, weight 1.5/3, 0 requests,\n" +
			"    1m\n" +
			"    up, in its slow start: gets requests\n" +
			"    by 50 % of its weight\n"},
	} {
		var to bytes.Buffer
		tc.screen.writeTable(&to, entries[:1], now)
		if got := to.String(); got != tc.want {
			t.Errorf("%+v: got\n%s\nwant\n%s", tc.screen, got, tc.want)
		}
	}
	var to bytes.Buffer
	screen{columns: 80}.writeTable(&to, nil, now)
	if to.String() != "no upstreams: no reverse_proxy uses lb_policy alive\n" {
		t.Errorf("without any: %s", to.String())
	}
}

// What is below the end of the terminal is left out, and that is said.
func TestScreenFits(t *testing.T) {
	text := strings.Repeat("line\n", 10)
	for lines, want := range map[int]string{
		0:  text,
		11: text,
		10: strings.Repeat("line\n", 8) + "… and 2 lines for which it is not high enough\n",
		3:  "line\n… and 9 lines for which it is not high enough\n",
		1:  "… and 10 lines for which it is not high enough\n",
	} {
		if got := string(screen{columns: 80, lines: lines}.fit([]byte(text))); got != want {
			t.Errorf("%d lines: got\n%s\nwant\n%s", lines, got, want)
		}
	}
}

// JSON for scripts says the same, and a terminal takes none of it for a command.
func TestPrintableJSON(t *testing.T) {
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
