// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/caddy-alive/caddy-alive/internal/health"
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
	if got := c.one(b.addr).Mode; got != modeDrain {
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
	stdout, _, err = command(t.Context(), c.admin, "status", "--json")
	if entries, broken := parseEntries([]byte(stdout)); err != nil || broken != nil || len(entries) != 2 {
		t.Errorf("status --json: %q, %v, %v", stdout, err, broken)
	}
	stdout, _, err = command(t.Context(), c.admin, "status")
	if err != nil || !strings.HasPrefix(stdout, "pool shop\nUPSTREAM ") || !strings.Contains(stdout, b.addr) || strings.Contains(stdout, "\x1b") {
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
	all[1].held.open()
	for range 2 {
		if got := <-answers; got.status != http.StatusOK {
			t.Errorf("a request in flight: %v", got)
		}
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
		{answers(404, `{"error":"unknown upstream 'a:80'; GET …"}`), "drain a:80", "unknown upstream 'a:80'; GET …"},
		{answers(400, `{"error":"bad\u001b[31m\nthing"}`), "drain a:80", "bad?[31m?thing"},
		{answers(500, "oops"), "status", "answers with the status 500"},
		{answers(200, "hello"), "status", "this is no answer of Caddy's admin API"},
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
// terminal; fail-open cannot be overlooked.
func TestTable(t *testing.T) {
	now := time.Now()
	since := now.Add(-90 * time.Second)
	entries := []entry{
		{Pool: "shop", Upstream: "app1.internal:8080", Status: "up", Mode: modeReady, Weight: 3, EffectiveWeight: 1.5, Serving: true, Why: "up, in its slow start: gets requests by 50 % of its weight", Since: &since},
		{Pool: "shop", Upstream: "unix//run/\x1b[2Jevil\n.sock", Status: "down", Mode: modeDrain, Weight: 1, Backup: true, Why: "check 'http /' failed: \x1b]0;title\x07 \u202e reversed", Requests: 12},
		{Pool: "other", Upstream: "app9:80", Status: "unknown", Mode: modeReady, Weight: 1, FailOpen: true, Why: strings.Repeat("long ", 100)},
	}
	for _, width := range []int{0, 20, 40, 80, 120, 200} {
		var to bytes.Buffer
		writeTable(&to, entries, width, false, now)
		for line := range strings.Lines(to.String()) {
			line = strings.TrimSuffix(line, "\n")
			for _, r := range line {
				if r < ' ' || r == 0x7f || r == '\u202e' {
					t.Errorf("width %d: %q", width, line)
				}
			}
			if n := utf8.RuneCountInString(line); width >= 80 && n > width && !strings.HasPrefix(line, "!!") {
				t.Errorf("width %d: %d columns: %s", width, n, line)
			}
		}
		if !strings.Contains(to.String(), "!! FAIL-OPEN") || strings.Count(to.String(), "FAIL-OPEN") != 1 {
			t.Errorf("width %d: fail-open is not shown once:\n%s", width, to.String())
		}
	}
	var to bytes.Buffer
	writeTable(&to, entries[:1], 0, true, now)
	want := "pool shop\n" +
		"UPSTREAM            STATUS  MODE   WEIGHT  REQUESTS  SINCE  WHY\n" +
		"app1.internal:8080  \x1b[32mup\x1b[0m      ready  1.5/3   0         1m     up, in its slow start: gets requests by 50 % of its weight\n"
	if got := to.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	to.Reset()
	writeTable(&to, nil, 80, false, now)
	if to.String() != "no upstreams: no reverse_proxy uses lb_policy alive\n" {
		t.Errorf("without any: %s", to.String())
	}
}
