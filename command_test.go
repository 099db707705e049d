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

	"github.com/spf13/cobra"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// command runs `caddy alive` with arguments, and returns what it prints.
func command(ctx context.Context, address string, args ...string) (stdout, stderr string, err error) {
	root := &cobra.Command{Use: "alive", SilenceUsage: true}
	addCommands(root)
	var out, errs bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(append(args, "--address", address))
	err = root.ExecuteContext(ctx)
	return out.String(), errs.String(), err
}

// Against a running Caddy, every command does what it says.
func TestCaddyCommands(t *testing.T) {
	all := startBackends(t, "a", "b")
	a, b := all[0], all[1]
	c := startOperated(t, "", fmt.Sprintf(operated, addresses(all...)))
	eventually(t, patience, "both are up", func() bool { return statuses(a.addr, b.addr)[health.Up] == 2 })
	run := func(want string, args ...string) {
		t.Helper()
		stdout, stderr, err := command(t.Context(), c.admin, args...)
		if err != nil || stdout != want || stderr != "" {
			t.Errorf("%v: printed %q and %q, error %v, want %q", args, stdout, stderr, err, want)
		}
	}
	run(fmt.Sprintf("%s: drain\n%[1]s: nothing is in flight\n", b.addr), "drain", b.addr, "--wait", "5s")
	if got := c.one(b.addr).Mode; got != settings.Drain {
		t.Errorf("mode %s", got)
	}
	run(b.addr+": maintenance\n", "maintenance", b.addr)
	run(b.addr+": ready\n", "ready", b.addr)
	run(a.addr+": weight 5 in the pool shop\n", "weight", a.addr, "5")
	run(a.addr+": weight 1 in the pool shop\n", "weight", a.addr, "reset", "--pool", "shop")

	stdout, _, err := command(t.Context(), c.admin, "check", a.addr)
	if err != nil || !strings.HasPrefix(stdout, a.addr+"  http /healthz  ") || !strings.HasSuffix(stdout, " ms  passed\n") {
		t.Errorf("check: %q, %v", stdout, err)
	}
	a.set(sick)
	stdout, _, err = command(t.Context(), c.admin, "check", a.addr)
	if err == nil || !strings.HasSuffix(stdout, " ms  failed: status 503, want 2xx\n") {
		t.Errorf("a check that fails: %q, %v", stdout, err)
	}
	if _, _, err = command(t.Context(), c.admin, "drain", a.addr); err != nil {
		t.Error(err)
	}
	// of two that drain, both serve
	if _, stderr, err := command(t.Context(), c.admin, "drain", b.addr); err != nil || !strings.HasPrefix(stderr, "warning: it still gets new requests: no other upstream of the pool shop serves") {
		t.Errorf("the last one that serves is drained: %q, %v", stderr, err)
	}
	stdout, _, err = command(t.Context(), c.admin, "status", "--json")
	if entries, broken := parseEntries([]byte(stdout)); err != nil || broken != nil || len(entries) != 2 {
		t.Errorf("status --json: %q, %v, %v", stdout, err, broken)
	}
	stdout, _, err = command(t.Context(), c.admin, "status")
	if err != nil || !strings.HasPrefix(stdout, "pool shop\n!! No upstream serves: ") || !strings.Contains(stdout, "\nUPSTREAM ") || !strings.Contains(stdout, b.addr) || strings.Contains(stdout, "\x1b") {
		t.Errorf("status: %q, %v", stdout, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(1500*time.Millisecond, cancel)
	stdout, _, err = command(ctx, c.admin, "status", "--watch")
	if n := strings.Count(stdout, "pool shop"); err != nil || n != 2 {
		t.Errorf("status --watch for one and a half seconds: %d tables, %v", n, err)
	}
}

// --wait is over when nothing is in flight; if that takes too long, it is an error
// that says how much is left.
func TestCaddyCommandWaits(t *testing.T) {
	all := startDrainables(t, "a", "b")
	c := startOperated(t, "", fmt.Sprintf(operated, all[0].addr+" "+all[1].addr))
	eventually(t, patience, "both are up", func() bool { return statuses(all[0].addr, all[1].addr)[health.Up] == 2 })
	answers := make(chan answer, 2)
	for range 2 {
		go func() { answers <- ask(c.plain(), c.url()+"/held") }()
	}
	eventually(t, patience, "both are busy", func() bool { return c.one(all[0].addr).Requests == 1 && c.one(all[1].addr).Requests == 1 })
	if _, _, err := command(t.Context(), c.admin, "drain", all[0].addr, "--wait", "300ms"); err == nil || !strings.HasSuffix(err.Error(), "after 300ms, requests in flight: 1") {
		t.Errorf("with too little time: %v", err)
	}
	time.AfterFunc(300*time.Millisecond, all[0].held.open)
	stdout, _, err := command(t.Context(), c.admin, "drain", all[0].addr, "--wait", "10s")
	if err != nil || !strings.HasSuffix(stdout, ": nothing is in flight\n") {
		t.Errorf("with time: %q, %v", stdout, err)
	}
	// nobody else serves now: whether or not anything is in flight, it is not drained
	_, _, err = command(t.Context(), c.admin, "drain", all[1].addr, "--wait", "300ms")
	if err == nil || !strings.HasSuffix(err.Error(), "after 300ms, requests in flight: 1") {
		t.Errorf("with nobody else: %v", err)
	}
	all[1].held.open()
	_, _, err = command(t.Context(), c.admin, "drain", all[1].addr, "--wait", "1s")
	if err == nil || !strings.HasSuffix(err.Error(), "after 1s, it still gets new requests: no other upstream of the pool shop serves") {
		t.Errorf("with nobody else: %v", err)
	}
	if stdout, _, err := command(t.Context(), c.admin, "maintenance", all[1].addr, "--wait", "10s"); err != nil || !strings.HasSuffix(stdout, ": nothing is in flight\n") {
		t.Errorf("maintenance with nobody else: %q, %v", stdout, err)
	}
	for range 2 {
		if got := <-answers; got.status != http.StatusOK {
			t.Errorf("a request in flight: %v", got)
		}
	}
}

// check --wait goes on until the upstream is up, which takes more than one pass if it
// was down. Without, one pass of one that is down is not success.
func TestCaddyCommandChecksUntilUp(t *testing.T) {
	all := startBackends(t, "a", "b")
	a := all[0]
	c := startOperated(t, "", fmt.Sprintf("http:// {\n\treverse_proxy %s {\n\t\tlb_policy alive {\n\t\t\tcheck http /healthz {\n\t\t\t\tinterval 1h\n\t\t\t\tfast_interval 1h\n\t\t\t\tpasses 3\n\t\t\t\tfails 1\n\t\t\t}\n\t\t}\n\t}\n}\n", addresses(all...)))
	eventually(t, patience, "both are up", func() bool { return statuses(a.addr, all[1].addr)[health.Up] == 2 })
	a.set(sick)
	if _, _, err := command(t.Context(), c.admin, "check", a.addr, "--wait", "100ms"); err == nil || !strings.HasSuffix(err.Error(), " does not pass") {
		t.Errorf("it is sick: %v", err)
	}
	a.set(well)
	if _, _, err := command(t.Context(), c.admin, "check", a.addr); err == nil || !strings.HasSuffix(err.Error(), " passes, but is down until it did so more often in a row") {
		t.Errorf("after one pass of three: %v", err)
	}
	stdout, _, err := command(t.Context(), c.admin, "check", a.addr, "--wait", "10s")
	if n := strings.Count(stdout, "passed\n"); err != nil || n != 2 || !is(health.Up, a.addr) {
		t.Errorf("with time: %d more passes, %q, %v", n, stdout, err)
	}
	// in maintenance there is no verdict to wait for
	if _, _, err := command(t.Context(), c.admin, "maintenance", a.addr); err != nil {
		t.Fatal(err)
	}
	if _, _, err := command(t.Context(), c.admin, "check", a.addr); err != nil {
		t.Errorf("in maintenance: %v", err)
	}
}

// An upstream that a reload removes while somebody waits is not drained: nobody knows.
func TestCaddyCommandWaitsForOneThatGoes(t *testing.T) {
	all := startDrainables(t, "a", "b")
	c := startOperated(t, "", fmt.Sprintf(operated, all[0].addr+" "+all[1].addr))
	eventually(t, patience, "both are up", func() bool { return statuses(all[0].addr, all[1].addr)[health.Up] == 2 })
	held := make(chan answer, 2)
	for range 2 {
		go func() { held <- ask(c.plain(), c.url()+"/held") }()
	}
	eventually(t, patience, "both are busy", func() bool { return c.one(all[0].addr).Requests == 1 && c.one(all[1].addr).Requests == 1 })
	done := make(chan error, 1)
	go func() {
		_, _, err := command(t.Context(), c.admin, "drain", all[0].addr, "--wait", "10s")
		done <- err
	}()
	eventually(t, patience, "it is drained", func() bool { return c.one(all[0].addr).Mode == settings.Drain })
	c.load(fmt.Sprintf(operated, all[1].addr))
	if err := <-done; err == nil || !strings.HasSuffix(err.Error(), "no pool has it any more, so it is not known what is in flight") {
		t.Errorf("got %v", err)
	}
	for i := range 2 {
		all[i].held.open()
	}
	for range 2 {
		<-held
	}
}

// In a fleet, nobody is done before the others can know.
func TestCaddyCommandWaitsForTheFleet(t *testing.T) {
	all := startBackends(t, "a", "b")
	c := startOperated(t, "alive {\n\t\tfleet shops\n\t\tsync_interval 700ms\n\t}", fmt.Sprintf(operated, addresses(all...)))
	eventually(t, patience, "both are up", func() bool { return statuses(all[0].addr, all[1].addr)[health.Up] == 2 })
	_, _, err := command(t.Context(), c.admin, "drain", all[0].addr, "--wait", "300ms")
	if err == nil || !strings.HasSuffix(err.Error(), "after 300ms, the others of the fleet shops may not know yet: they look every 700ms") {
		t.Errorf("with too little time: %v", err)
	}
	began := time.Now()
	stdout, _, err := command(t.Context(), c.admin, "drain", all[0].addr, "--wait", "10s")
	if took := time.Since(began); err != nil || took < 700*time.Millisecond || !strings.HasSuffix(stdout, ": nothing is in flight at this Caddy; ask each of the fleet shops, by --address\n") {
		t.Errorf("after %s: %q, %v", took, stdout, err)
	}
}

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
		_, _, err := command(t.Context(), address, "drain", "a:80", "--wait", "1s")
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
	stdout, stderr, err := command(ctx, server.Listener.Addr().String(), "status", "--watch")
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
	stopped := refused(t)
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
		stdout, stderr, err := command(t.Context(), tc.address, strings.Fields(tc.args)...)
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
	stdout, stderr, err := command(t.Context(), server.Listener.Addr().String(), "drain", "a:80")
	if err != nil || stdout != "a:80: drain\n" || !strings.HasPrefix(stderr, "warning: ") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("printed %q and %q, %v", stdout, stderr, err)
	}
}

// The table fits the terminal, whatever is in it; nothing in it is a command to the
// terminal, and nothing is left out; fail-open cannot be overlooked.
func TestTable(t *testing.T) {
	now := time.Now()
	since := now.Add(-90 * time.Second)
	entries := []view.Upstream{
		{Pool: "shop", Upstream: "app1.internal:8080", Status: "up", Mode: settings.Ready, Weight: 3, EffectiveWeight: 1.5, Serving: true, Why: "up, in its slow start: gets requests by 50 % of its weight", Since: &since},
		{Pool: "shop", Upstream: "unix//run/\x1b[2Jevil\n.sock", Status: "down", Mode: settings.Drain, Weight: 1, Backup: true, Why: "check 'http /' failed: \x1b]0;title\x07 \u202e reversed", Requests: 12},
		{Pool: strings.Repeat("app.internal:8080 ", 10) + "end-of-title", Upstream: "app9:80", Status: "unknown", Mode: settings.Ready, Weight: 1, FailOpen: true, Why: strings.Repeat("long ", 100) + "end-of-reason"},
		{Pool: "漢字", Upstream: "漢字漢字漢字漢字漢字.example:80", Status: "up", Mode: settings.Maintenance, Weight: 1, Why: strings.Repeat("絵", 100) + "e\u0301nd"},
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
