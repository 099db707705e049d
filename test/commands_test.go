// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// Every command does what it says to a running Caddy.
func TestCommands_DoWhatTheySay(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	a, b := all[0], all[1]
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...)))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(a.Addr, b.Addr) })
	run := func(want string, args ...string) {
		t.Helper()
		stdout, stderr, err := testkit.Command(t.Context(), c.Admin, args...)
		if err != nil || stdout != want || stderr != "" {
			t.Errorf("%v: printed %q and %q, error %v, want %q", args, stdout, stderr, err, want)
		}
	}
	run(fmt.Sprintf("%s: drain\n%[1]s: nothing is in flight\n", b.Addr), "drain", b.Addr, "--wait", "5s")
	if got := c.One(b.Addr).Mode; got != "drain" {
		t.Errorf("mode %s", got)
	}
	run(b.Addr+": maintenance\n", "maintenance", b.Addr)
	run(b.Addr+": ready\n", "ready", b.Addr)
	run(a.Addr+": weight 5 in the pool shop\n", "weight", a.Addr, "5")
	run(a.Addr+": weight 1 in the pool shop\n", "weight", a.Addr, "reset", "--pool", "shop")

	stdout, _, err := testkit.Command(t.Context(), c.Admin, "check", a.Addr)
	if err != nil || !strings.HasPrefix(stdout, a.Addr+"  http /healthz  ") || !strings.HasSuffix(stdout, " ms  passed\n") {
		t.Errorf("check: %q, %v", stdout, err)
	}
	a.Set(testkit.Sick)
	stdout, _, err = testkit.Command(t.Context(), c.Admin, "check", a.Addr)
	if err == nil || !strings.HasSuffix(stdout, " ms  failed: status 503, want 2xx\n") {
		t.Errorf("a check that fails: %q, %v", stdout, err)
	}
	if _, _, err = testkit.Command(t.Context(), c.Admin, "drain", a.Addr); err != nil {
		t.Error(err)
	}
	// of two that drain, both serve
	if _, stderr, err := testkit.Command(t.Context(), c.Admin, "drain", b.Addr); err != nil || !strings.HasPrefix(stderr, "warning: it still gets new requests: no other upstream of the pool shop serves") {
		t.Errorf("the last one that serves is drained: %q, %v", stderr, err)
	}
	stdout, _, err = testkit.Command(t.Context(), c.Admin, "status", "--json")
	if entries, broken := testkit.ParseList(stdout); err != nil || broken != nil || len(entries) != 2 {
		t.Errorf("status --json: %q, %v, %v", stdout, err, broken)
	}
	stdout, _, err = testkit.Command(t.Context(), c.Admin, "status")
	if err != nil || !strings.HasPrefix(stdout, "2 upstreams in 1 pool, 2 draining, 0 in flight\n\npool shop\n0 of 2 serve, 2 draining, 0 in flight\n!! No upstream serves: ") || !strings.Contains(stdout, "\nUPSTREAM ") || !strings.Contains(stdout, b.Addr) || strings.Contains(stdout, "\x1b") {
		t.Errorf("status: %q, %v", stdout, err)
	}
	run(a.Addr+": weight 3 in the pool shop\n", "weight", a.Addr, "3")
	stdout, _, err = testkit.Command(t.Context(), c.Admin, "status", "--upstream", a.Addr)
	if err != nil || !strings.Contains(stdout, "\n"+a.Addr+"  draining ") || !strings.Contains(stdout, "  3 (config 1)  0          ") || strings.Contains(stdout, b.Addr) {
		t.Errorf("status --upstream: %q, %v", stdout, err)
	}
	stdout, _, err = testkit.Command(t.Context(), c.Admin, "status", "--state", "down,up")
	if err != nil || stdout != "2 upstreams in 1 pool, 2 draining, 0 in flight\nno upstream matches --state down,up\n" {
		t.Errorf("status --state: %q, %v", stdout, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(2500*time.Millisecond, cancel)
	stdout, _, err = testkit.Command(ctx, c.Admin, "status", "--watch")
	if n := strings.Count(stdout, " UTC  2 upstreams in 1 pool, 2 draining, 0 in flight\n\npool shop\n"); err != nil || n < 2 || n > 4 {
		t.Errorf("status --watch for two and a half seconds: %d tables, %v; want one a second", n, err)
	}
}

// An upstream that is not quite named as it is listed is an error that says which may be meant.
func TestCommands_SayWhichUpstreamIsMeant(t *testing.T) {
	all := testkit.StartBackends(t, "a")
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...)))
	host, port, err := net.SplitHostPort(all[0].Addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{port, ":" + port, host, "http://" + all[0].Addr + "/", "localhost:" + port} {
		for _, args := range [][]string{{"drain", name}, {"weight", name, "3"}, {"check", name}, {"status", "--upstream", name}} {
			_, _, err := testkit.Command(t.Context(), c.Admin, args...)
			if err == nil || !strings.HasPrefix(err.Error(), "unknown upstream '"+name+"'; ") || !strings.HasSuffix(err.Error(), "; did you mean '"+all[0].Addr+"'?") {
				t.Errorf("%v: %v", args, err)
			}
		}
	}
}

// A shell that completes a line gets the upstreams and pools of a running Caddy.
func TestCompletion_AsksARunningCaddy(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...)))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	if _, _, err := testkit.Command(t.Context(), c.Admin, "maintenance", all[1].Addr); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ want, command, rest string }{
		{all[0].Addr + "\tup\n" + all[1].Addr + "\tmaintenance\n", "drain", ""},
		{all[0].Addr + "\tup\n", "check", all[0].Addr},
		{all[1].Addr + "\tmaintenance\n", "ready", ""},
		{"shop\t1 of 2 serve\n", "status", "--pool="},
	} {
		// the word to complete is the last one
		stdout, _, err := testkit.CommandLine(t.Context(), "__complete", tc.command, "--address", c.Admin, tc.rest)
		got := strings.Split(strings.TrimSuffix(stdout, ":4\n"), "\n")
		slices.Sort(got)
		want := strings.Split(tc.want, "\n")
		slices.Sort(want)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s %q: printed %q, %v, want %q", tc.command, tc.rest, stdout, err, tc.want)
		}
	}
}

// --wait ends when no request is in flight. When its time is up, the error says how many
// are left.
func TestCommandWait_EndsWhenNothingIsInFlight(t *testing.T) {
	all := startDrainables(t, "a", "b")
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(testkit.ShopSite, all[0].Addr+" "+all[1].Addr))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	answers := make(chan testkit.Answer, 2)
	for range 2 {
		go func() { answers <- testkit.Ask(c.Client(), c.URL()+"/held") }()
	}
	testkit.Eventually(t, testkit.Patience, "both are busy", func() bool { return c.One(all[0].Addr).Requests == 1 && c.One(all[1].Addr).Requests == 1 })
	if _, _, err := testkit.Command(t.Context(), c.Admin, "drain", all[0].Addr, "--wait", "300ms"); err == nil || !strings.HasSuffix(err.Error(), "after 300ms, requests in flight: 1") {
		t.Errorf("with too little time: %v", err)
	}
	time.AfterFunc(300*time.Millisecond, all[0].held.Open)
	stdout, _, err := testkit.Command(t.Context(), c.Admin, "drain", all[0].Addr, "--wait", "10s")
	if err != nil || !strings.HasSuffix(stdout, ": nothing is in flight\n") {
		t.Errorf("with time: %q, %v", stdout, err)
	}
	// no other one serves now: whether or not anything is in flight, it is not drained
	_, _, err = testkit.Command(t.Context(), c.Admin, "drain", all[1].Addr, "--wait", "300ms")
	if err == nil || !strings.HasSuffix(err.Error(), "after 300ms, requests in flight: 1") {
		t.Errorf("with no other one: %v", err)
	}
	all[1].held.Open()
	_, _, err = testkit.Command(t.Context(), c.Admin, "drain", all[1].Addr, "--wait", "1s")
	if err == nil || !strings.HasSuffix(err.Error(), "after 1s, it still gets new requests: no other upstream of the pool shop serves") {
		t.Errorf("with no other one: %v", err)
	}
	if stdout, _, err := testkit.Command(t.Context(), c.Admin, "maintenance", all[1].Addr, "--wait", "10s"); err != nil || !strings.HasSuffix(stdout, ": nothing is in flight\n") {
		t.Errorf("maintenance with no other one: %q, %v", stdout, err)
	}
	for range 2 {
		if got := <-answers; got.Status != http.StatusOK {
			t.Errorf("a request in flight: %v", got)
		}
	}
}

// check --wait continues until the upstream is up, which takes more than one pass if it
// was down. Without --wait, one pass of an upstream that is down is an error.
func TestCommandCheckWait_EndsWhenUp(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	a := all[0]
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf("http:// {\n\treverse_proxy %s {\n\t\tlb_policy alive {\n\t\t\tcheck http /healthz {\n\t\t\t\tinterval 1h\n\t\t\t\tfast_interval 1h\n\t\t\t\tpasses 3\n\t\t\t\tfails 1\n\t\t\t}\n\t\t}\n\t}\n}\n", testkit.Addresses(all...)))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(a.Addr, all[1].Addr) })
	a.Set(testkit.Sick)
	if _, _, err := testkit.Command(t.Context(), c.Admin, "check", a.Addr, "--wait", "100ms"); err == nil || !strings.HasSuffix(err.Error(), " does not pass") {
		t.Errorf("it is sick: %v", err)
	}
	a.Set(testkit.Well)
	if _, _, err := testkit.Command(t.Context(), c.Admin, "check", a.Addr); err == nil || !strings.HasSuffix(err.Error(), " passes, but stays down until it has passed several times in a row") {
		t.Errorf("after one pass of three: %v", err)
	}
	stdout, _, err := testkit.Command(t.Context(), c.Admin, "check", a.Addr, "--wait", "10s")
	if n := strings.Count(stdout, "passed\n"); err != nil || n != 2 || !c.Up(a.Addr) {
		t.Errorf("with time: %d more passes, %q, %v", n, stdout, err)
	}
	// in maintenance there is no verdict to wait for
	if _, _, err := testkit.Command(t.Context(), c.Admin, "maintenance", a.Addr); err != nil {
		t.Fatal(err)
	}
	if _, _, err := testkit.Command(t.Context(), c.Admin, "check", a.Addr); err != nil {
		t.Errorf("in maintenance: %v", err)
	}
}

// An upstream that a reload removes while a command waits is not drained: what is in
// flight is not known.
func TestCommandWait_FailsWhenTheUpstreamIsGone(t *testing.T) {
	all := startDrainables(t, "a", "b")
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(testkit.ShopSite, all[0].Addr+" "+all[1].Addr))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	held := make(chan testkit.Answer, 2)
	for range 2 {
		go func() { held <- testkit.Ask(c.Client(), c.URL()+"/held") }()
	}
	testkit.Eventually(t, testkit.Patience, "both are busy", func() bool { return c.One(all[0].Addr).Requests == 1 && c.One(all[1].Addr).Requests == 1 })
	done := make(chan error, 1)
	go func() {
		_, _, err := testkit.Command(t.Context(), c.Admin, "drain", all[0].Addr, "--wait", "10s")
		done <- err
	}()
	testkit.Eventually(t, testkit.Patience, "it is drained", func() bool { return c.One(all[0].Addr).Mode == "drain" })
	c.Load(fmt.Sprintf(testkit.ShopSite, all[1].Addr))
	if err := <-done; err == nil || !strings.HasSuffix(err.Error(), "no pool has it any more, so it is not known what is in flight") {
		t.Errorf("got %v", err)
	}
	for i := range 2 {
		all[i].held.Open()
	}
	for range 2 {
		<-held
	}
}

// In a fleet, the wait ends only when all members can know: at once never, and with one member
// after its interval. For ready it is that of one Caddy, and says so.
func TestCommandWait_AllowsTheFleetToFollow(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	c := testkit.StartCaddyWith(t, "alive {\n\t\tfleet shops\n\t\tmember edge-1\n\t\tsync_interval 2s\n\t}", fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...)))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	_, _, err := testkit.Command(t.Context(), c.Admin, "drain", all[0].Addr, "--wait", "300ms")
	if err == nil || !strings.HasSuffix(err.Error(), "after 300ms, edge-1: nothing in flight, but the mode is new there") {
		t.Errorf("with too little time: %v", err)
	}
	for _, mode := range []string{"drain", "maintenance"} {
		began := time.Now()
		stdout, _, err := testkit.Command(t.Context(), c.Admin, mode, all[0].Addr, "--wait", "10s")
		if took := time.Since(began); err != nil || took < 2*time.Second || !strings.HasSuffix(stdout, ": the only member of the fleet shops is quiet: nothing is in flight\n") {
			t.Errorf("%s: after %s: %q, %v", mode, took, stdout, err)
		}
	}
	stdout, _, err := testkit.Command(t.Context(), c.Admin, "ready", all[0].Addr, "--wait", "10s")
	if err != nil || !strings.HasSuffix(stdout, ": nothing is in flight at this Caddy; ask each of the fleet shops, by --address\n") {
		t.Errorf("ready: %q, %v", stdout, err)
	}
}

// Every view of a running Caddy shows that a pool has its only upstream in maintenance, or
// its last one in drain.
func TestLastServingUpstream_IsWarnedOf(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...)))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	check := func(want int, says string) {
		t.Helper()
		stdout, stderr, err := testkit.Command(t.Context(), c.Admin, "status", "--check")
		if testkit.ExitStatus(err) != want || !strings.HasPrefix(stdout, says) || stderr != "" {
			t.Errorf("status --check: exit status %d, printed %q and %q; want %d and %q", testkit.ExitStatus(err), stdout, stderr, want, says)
		}
	}
	run := func(stderr string, args ...string) {
		t.Helper()
		if _, got, err := testkit.Command(t.Context(), c.Admin, args...); err != nil || got != stderr {
			t.Errorf("%v: printed %q, %v, want %q", args, got, err, stderr)
		}
	}
	check(0, "")
	run("", "maintenance", all[0].Addr)
	check(0, "")
	run("warning: it still gets new requests: no other upstream of the pool shop serves\n", "drain", all[1].Addr)
	check(3, "pool shop: No upstream serves: requests go to upstreams that drain")
	testkit.Shares(t, "the last one drains", testkit.Tally(c.Client(), c.URL(), 5), map[string]int{"b": 5})
	run("warning: pool shop: No upstream serves, and none gets requests: they are answered 503.\n", "maintenance", all[1].Addr)
	check(3, "pool shop: No upstream serves, and none gets requests")
	if got := testkit.Ask(c.Client(), c.URL()); got.Status != http.StatusServiceUnavailable {
		t.Errorf("a request: %v", got)
	}
	run("", "ready", all[1].Addr)
	testkit.Eventually(t, testkit.Patience, "one is up", func() bool { return c.Up(all[1].Addr) })
	check(0, "")
}
