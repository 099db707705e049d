// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// An upstream that is drained at one Caddy of a fleet is drained at the other, also
// after both were restarted. A Caddy of another fleet on the same storage is not
// affected.
func TestFleet_DrainReachesAllMembers(t *testing.T) {
	storage := t.TempDir()
	a, b := startBackend(t), startBackend(t)
	site := fmt.Sprintf("reverse_proxy %s %s {\n\t\tlb_policy alive {\n\t\t\tcheck http / {\n\t\t\t\tinterval 100ms\n\t\t\t}\n\t\t}\n\t}", a.addr, b.addr)
	fleet := func(name string) string {
		return "alive {\n\t\tfleet " + name + "\n\t\tsync_interval 200ms\n\t}"
	}
	one := startCaddy(t, storage, fleet("shops"), site)
	two := startCaddy(t, storage, fleet("shops"), site)
	other := startCaddy(t, storage, fleet("blogs"), site)
	all := []*instance{one, two, other}
	for _, c := range all {
		eventually(t, "all is up", func() bool { return c.modes()[a.addr] == "ready up" && c.modes()[b.addr] == "ready up" })
	}

	out, errs, status := one.run("drain", b.addr, "--wait", "10s", "--config", one.config)
	if status != 0 || !strings.HasSuffix(out, b.addr+": all 2 members of the fleet shops are quiet: nothing is in flight\n") {
		t.Errorf("drain: status %d, %s%s", status, out, errs)
	}
	eventually(t, "the other one follows", func() bool { return two.modes()[b.addr] == "drain up" })
	for i, c := range all {
		want := map[string]int{a.addr: 10}
		if c == other {
			want = map[string]int{a.addr: 5, b.addr: 5}
		}
		if got := c.answers(10); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("instance %d: answers %v, want %v", i, got, want)
		}
	}

	one.stop()
	two.stop()
	one.start()
	two.start()
	for _, c := range []*instance{one, two} {
		eventually(t, "it still drains", func() bool { return c.modes()[b.addr] == "drain up" })
	}
	if _, errs, status := two.run("ready", b.addr, "--address", two.admin); status != 0 {
		t.Errorf("ready: status %d, %s", status, errs)
	}
	eventually(t, "both are ready", func() bool { return one.modes()[b.addr] == "ready up" && two.modes()[b.addr] == "ready up" })
	if got := other.modes()[b.addr]; got != "ready up" {
		t.Errorf("another fleet: %s", got)
	}
}

// A command that fails prints one line on standard error, and exits with the status 1.
func TestCommand_FailurePrintsOneLine(t *testing.T) {
	a := startBackend(t)
	c := startCaddy(t, t.TempDir(), "", fmt.Sprintf("reverse_proxy %s {\n\t\tlb_policy alive /\n\t}", a.addr))
	eventually(t, "it is up", func() bool { return c.modes()[a.addr] == "ready up" })
	for _, tc := range []struct{ args, says string }{
		{"status --address 127.0.0.1:1", "cannot reach Caddy at 127.0.0.1:1"},
		{"status --address " + a.addr, "this is no answer of Caddy's admin API"},
		{"drain unlisted:80 --address " + c.admin, "unknown upstream 'unlisted:80'"},
		{"weight " + a.addr + " 1000 --address " + c.admin, "weight must be a whole number from 0 to 256"},
		{"sleep", "there are status, ready, drain, maintenance, weight, check and fleet"},
	} {
		out, errs, status := c.run(strings.Fields(tc.args)...)
		if status != 1 || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, tc.says) {
			t.Errorf("%s: status %d, %q, %q, want %q", tc.args, status, out, errs, tc.says)
		}
	}
	a.sick.Store(true)
	if out, _, status := c.run("check", a.addr, "--address", c.admin); status != 1 || !strings.Contains(out, "failed: status 503") {
		t.Errorf("check: status %d, %s", status, out)
	}
}

// Two processes are two members of a fleet, also if they share the folder in which Caddy
// keeps its ID, or if the config gives both the same name. Each follows the other, and a drain
// at one of them waits for requests of the other.
func TestFleet_LikeProcessesAreTwoMembers(t *testing.T) {
	for name, tc := range map[string]struct {
		member string // the line of the config
		shared bool   // the data folder
	}{
		"one data folder": {"", true},
		"one name":        {"member edge", false},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := startSlow(t, 3*time.Second), startSlow(t, 3*time.Second)
			storage, data := t.TempDir(), ""
			if tc.shared {
				data = t.TempDir()
			}
			members := make([]*instance, 2)
			for i := range members {
				c := prepare(t, build, fmt.Sprintf("file_system %q", storage), "alive {\n\t\tfleet shops\n\t\tsync_interval 250ms\n\t\t"+tc.member+"\n\t}", operated(a.addr, b.addr))
				c.data = data
				c.start()
				members[i] = c
			}
			one, two := members[0], members[1]
			modes := map[string]string{a.addr: "ready up", b.addr: "ready up"}
			within(t, patience, modes, members...)
			for _, c := range members {
				eventually(t, "each knows both", func() bool {
					f := c.fleet("")
					return len(f.Members) == 2 && len(strings.Fields(f.live())) == 2 && f.Members[0].ID != f.Members[1].ID && f.Members[0].Member == f.Members[1].Member
				})
			}
			for _, step := range []struct {
				at   *instance
				mode string
			}{{one, "maintenance"}, {two, "ready"}, {two, "maintenance"}, {one, "ready"}} {
				step.at.set(a.addr, step.mode)
				modes[a.addr] = step.mode
				within(t, patience, modes, members...)
			}
			within(t, patience, map[string]string{a.addr: "ready up"}, members...)

			var requests sync.WaitGroup
			defer requests.Wait()
			for range 2 { // one of them to each
				requests.Go(func() { two.slowRequest() })
			}
			eventually(t, "each has a request", func() bool { return a.isBusy() && b.isBusy() })
			got := one.drain(b.addr, patience)
			left, last := b.state()
			if !got.ended(0, "all 2 members of the fleet shops are quiet") || left > 0 || got.at.Before(last) {
				t.Errorf("the wait: status %d, %d requests left: %s", got.status, left, got.out)
			}
			two.stop()
			if got := one.drain(b.addr, patience); !got.ended(0, "the only member of the fleet shops is quiet") {
				t.Errorf("after the other has left: status %d: %s", got.status, got.out)
			}
			two.start()
			within(t, patience, map[string]string{a.addr: "ready", b.addr: "drain"}, members...)
		})
	}
}

// Two processes without a fleet that share the folder in which Caddy keeps its ID store under
// the same ID. What is set at either is not lost, and of one upstream the newest mode wins.
func TestSettings_OneDataFolderLosesNothing(t *testing.T) {
	a, b, c := startBackend(t), startBackend(t), startBackend(t)
	storage, data := t.TempDir(), t.TempDir()
	both := make([]*instance, 2)
	for i := range both {
		caddy := prepare(t, build, fmt.Sprintf("file_system %q", storage), "", operated(a.addr, b.addr, c.addr))
		caddy.data = data
		caddy.start()
		both[i] = caddy
	}
	one, two := both[0], both[1]
	one.set(a.addr, "drain")
	two.set(b.addr, "drain")
	two.set(c.addr, "drain")
	one.set(c.addr, "maintenance")
	two.set(a.addr, "maintenance")
	one.stop()
	two.stop()
	for _, caddy := range both {
		caddy.start()
	}
	within(t, patience, map[string]string{a.addr: "maintenance", b.addr: "drain", c.addr: "maintenance"}, both...)
}
