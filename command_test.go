// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
)

// command runs `caddy alive` with arguments, and returns what it prints.
func command(ctx context.Context, address string, args ...string) (stdout, stderr string, err error) {
	root := aliveCommand()
	var out, errs bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(append(args, "--address", address))
	err = root.ExecuteContext(ctx)
	return out.String(), errs.String(), err
}

// aliveCommand returns `caddy alive`, as Caddy's main function runs it.
func aliveCommand() *cobra.Command {
	root := &cobra.Command{Use: "alive", SilenceUsage: true}
	caddycmd.Commands()["alive"].CobraFunc(root)
	return root
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
