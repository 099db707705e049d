// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/balancer"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// A wait is announced to the fleet once the mode is set. If that cannot be stored, the mode
// applies nevertheless, and the answer is the same.
func TestAdminWait_IsAnnouncedToTheFleet(t *testing.T) {
	b := testkit.StartBackend(t, "b", nil)
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(testkit.ShopSite, b.Addr))
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(b.Addr) })
	fleet := new(testkit.Fleet)
	balancer.Newest().Fleet = fleet
	if row := c.Patch(b.Addr, `{"mode":"drain","wait":"60s"}`)[0]; row.Mode != "drain" {
		t.Errorf("drain: %+v", row)
	}
	c.Patch(b.Addr, `{"mode":"maintenance","wait":"1s"}`)
	c.Patch(b.Addr, `{"mode":"drain","rebind":true,"weight":2,"wait":"24h"}`)
	c.Patch(b.Addr, `{"mode":"ready","wait":null}`)
	want := []testkit.AnnouncedWait{{Upstream: b.Addr, Longest: time.Minute}, {Upstream: b.Addr, Longest: time.Second}, {Upstream: b.Addr, Longest: 24 * time.Hour}}
	if got := fleet.Waits(); !slices.Equal(got, want) {
		t.Errorf("announced: %v, want %v", got, want)
	}
	const alone = "only this Caddy is known: the storage does not answer"
	fleet.FailWith(errors.New(alone))
	fleet.Know(view.Fleet{Wait: &view.Wait{Failed: alone}}, nil)
	if row := c.Patch(b.Addr, `{"mode":"drain","wait":"60s"}`)[0]; row.Mode != "drain" || c.One(b.Addr).Mode != "drain" {
		t.Errorf("the storage fails: %+v", row)
	}
	if n := c.Logged("the wait for the fleet fails"); n != 1 {
		t.Errorf("logged: %d failures, want one", n)
	}
	fleet.FailWith(errors.New("16 waits run already"))
	fleet.Know(view.Fleet{}, nil)
	status, text := c.Call(http.MethodPatch, "/alive/upstreams", url.Values{"upstream": {b.Addr}}, `{"mode":"maintenance","wait":"60s"}`)
	if status != http.StatusServiceUnavailable || errorCode(text) != "wait_failed" || !strings.Contains(text, "the mode of '"+b.Addr+"' is set, but the fleet cannot wait for it: 16 waits run already") {
		t.Errorf("too many: %d %s", status, text)
	}
	if mode := c.One(b.Addr).Mode; mode != "maintenance" {
		t.Errorf("too many: the mode is %s, want maintenance", mode)
	}
}

// A wait that is wrong, or that there is no fleet for, changes nothing. The error says what is
// allowed.
func TestAdminWait_ErrorsSayWhatIsAllowed(t *testing.T) {
	b := testkit.StartBackend(t, "b", nil)
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(testkit.ShopSite, b.Addr))
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(b.Addr) })
	refuse := func(body string, status int, says string) {
		t.Helper()
		got, text := c.Call(http.MethodPatch, "/alive/upstreams", url.Values{"upstream": {b.Addr}}, body)
		if got != status || !strings.Contains(text, says) {
			t.Errorf("%s: got %d %s, want %d and %q", body, got, text, status, says)
		}
		if row := c.One(b.Addr); row.Mode != "ready" || row.Weight != 1 {
			t.Errorf("%s: it has changed: %+v", body, row)
		}
	}
	refuse(`{"mode":"drain","wait":"60s"}`, 404, `this Caddy is in no fleet; the global option alive { fleet \u003cname\u003e } puts it into one`)
	fleet := new(testkit.Fleet)
	balancer.Newest().Fleet = fleet
	const (
		modes = "wait is part of the modes drain and maintenance; give both"
		limit = "wait must be a duration from 1s to 24h, like 60s; got "
	)
	for body, says := range map[string]string{
		`{"wait":"60s"}`:                               modes,
		`{"mode":"ready","wait":"60s"}`:                modes,
		`{"mode":null,"wait":"60s"}`:                   modes,
		`{"weight":0,"wait":"60s"}`:                    modes,
		`{"mode":"drain","wait":"999ms"}`:              limit + "'999ms'",
		`{"mode":"drain","wait":"25h"}`:                limit + "'25h'",
		`{"mode":"drain","wait":"soon"}`:               limit + "'soon'",
		`{"mode":"drain","wait":60}`:                   limit + "'60'",
		`{"mode":"maintenance","wait":60000000000}`:    limit + "'60000000000'",
		`{"mode":"drain","wait":true}`:                 limit + "'true'",
		`{"mode":"drain","weight":999,"wait":"60s"}`:   "weight must be",
		`{"mode":"drain","wait":"60s","wait":"never"}`: limit + "'never'",
		`{"mode":"drain","wait":{"seconds":60}}`:       limit,
	} {
		refuse(body, 400, says)
	}
	if got := fleet.Waits(); len(got) != 0 {
		t.Errorf("announced: %v, want none", got)
	}
}

// The list of a Caddy in a fleet has at how many members each upstream is down, and that of
// another Caddy does not.
func TestAdminList_HasMembers(t *testing.T) {
	b := testkit.StartBackend(t, "b", nil)
	c := testkit.StartCaddyWith(t, "", fmt.Sprintf(testkit.ShopSite, b.Addr))
	fields := func() map[string]any {
		t.Helper()
		_, text := c.Call(http.MethodGet, "/alive/upstreams", url.Values{"upstream": {b.Addr}}, "")
		var list []map[string]any
		if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) != 1 {
			t.Fatalf("%v: %s", err, text)
		}
		return list[0]
	}
	row := fields()
	for _, key := range []string{"members", "down_at"} {
		if value, there := row[key]; there {
			t.Errorf("without a fleet: %s is %v", key, value)
		}
	}
	fleet := new(testkit.Fleet)
	fleet.Know(view.Fleet{Members: make([]view.Member, 3)}, nil)
	balancer.Newest().Fleet = fleet
	if row := fields(); row["members"] != 3.0 || row["down_at"] != 0.0 {
		t.Errorf("down at none of 3: members %v, down_at %v", row["members"], row["down_at"])
	}
}

// A request that is in flight counts until it ends, also if its config has ended and the
// next one does not have the upstream, or has it again.
func TestInFleet_CountsRequestsOfEndedConfigs(t *testing.T) {
	old, other := testkit.StartBackend(t, "old", nil), testkit.StartBackend(t, "other", nil)
	began, end := make(chan struct{}), make(chan struct{})
	old.Answer(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/long" {
			close(began)
			<-end
		}
		return false
	})
	with, without := fmt.Sprintf(testkit.ShopSite, old.Addr), fmt.Sprintf(testkit.ShopSite, other.Addr)
	c := testkit.StartCaddyWith(t, "", with)
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(old.Addr) })
	inFlight := func() int {
		return balancer.InFleet{Registry: balancer.Newest()}.Requests(old.Addr).InFlight
	}
	ended := make(chan error, 1)
	go func() {
		answer, err := c.Client().Get(c.URL() + "/long")
		if err == nil {
			err = answer.Body.Close()
		}
		ended <- err
	}()
	<-began
	for _, step := range []struct{ config, sites string }{{"with the upstream", with + "\n# again"}, {"without it", without}, {"without it again", without + "\n# again"}, {"with it again", with}} {
		c.Load(step.sites)
		if n := inFlight(); n != 1 {
			t.Errorf("in flight after a config %s: %d, want 1", step.config, n)
		}
	}
	close(end)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	testkit.Eventually(t, testkit.Patience, "nothing is in flight", func() bool { return inFlight() == 0 })
}

// A Caddy in a fleet shows itself, with what is down at it. Its status says so too.
func TestCommandFleet_ShowsWhatIsDown(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	all[1].Set(testkit.Sick)
	c := testkit.StartCaddyWith(t, "alive {\n\t\tfleet shops\n\t\tmember edge-1\n\t\tsync_interval 100ms\n\t\tprobers 3\n\t}", fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...)))
	testkit.Eventually(t, testkit.Patience, "one is up, the other down", func() bool { return c.Up(all[0].Addr) && c.Down(all[1].Addr) })
	run := func(args ...string) string {
		t.Helper()
		stdout, stderr, err := testkit.Command(t.Context(), c.Admin, args...)
		if err != nil || stderr != "" {
			t.Errorf("%v: %q, %v", args, stderr, err)
		}
		return stdout
	}
	const begin = "fleet shops: 1 member; 1 upstream is not up somewhere\n1 of 1 live member probes each upstream at its interval\n"
	line := all[1].Addr + "  down for "
	testkit.Eventually(t, testkit.Patience, "the member shows what is down", func() bool {
		shown := run("fleet")
		return strings.HasPrefix(shown, begin) && strings.Contains(shown, "\nedge-1  live   this Caddy  1\n    "+line) && strings.Contains(shown, " by http /healthz: status 503, want 2xx\n")
	})
	if shown := run("fleet", "--upstream", all[0].Addr); strings.Contains(shown, line) || !strings.Contains(shown, "\nedge-1  live   this Caddy  0\n") {
		t.Errorf("of another upstream:\n%s", shown)
	}
	if shown := run("fleet", "--json"); !strings.Contains(shown, `"member":"edge-1","self":true,"state":"live"`) || !strings.HasSuffix(shown, `"wait":null}`+"\n") {
		t.Errorf("as JSON: %s", shown)
	}
	if shown := run("status"); strings.Count(shown, "down at 1 of 1 member\n") != 1 || !strings.Contains(shown, "    check 'http /healthz' failed: status 503, want 2xx; down at 1 of 1 member\n") {
		t.Errorf("status:\n%s", shown)
	}
}
