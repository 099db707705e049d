// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// edges is a fleet of four, of which one is lost.
func edges() view.Fleet {
	down := view.NotUp{Upstream: "app1:80", Check: "tcp", Status: "down", Reason: "connection refused", Lasts: 150}
	return view.Fleet{Fleet: "shops", SyncInterval: 1, Members: []view.Member{
		{ID: "11111111-a", Member: "edge-1", Self: true, State: view.MemberLive},
		{ID: "22222222-a", Member: "edge-2", State: view.MemberLive, Heard: 3.4, NotUp: []view.NotUp{down, {Upstream: "app2:80", Check: "http /", Status: "unknown"}}},
		{ID: "22222222-b", Member: "edge-2", State: view.MemberLive, Heard: 0.2, NotUp: []view.NotUp{down}, More: 7},
		{ID: "99999999-a", Member: "edge-9", State: view.MemberLost, Heard: 4000, NotUp: []view.NotUp{{Upstream: "app3:80", Check: "tcp", Status: "down"}}},
	}}
}

// One line sums up. Each member has a row, and below it a line for each check by which an
// upstream is not up there. Members of the same name are told apart.
func TestFleet_ShowsMembers(t *testing.T) {
	withWait, one := edges(), edges()
	withWait.Wait = &view.Wait{Pending: []string{"edge-2: 3 in flight"}, Lost: []string{"edge-9: not heard for 1h"}}
	withWait.Members[1].Ack = &view.Ack{Follows: true, InFlight: 3}
	withWait.Members[2].Ack = &view.Ack{Follows: true, Quiet: true}
	one.Members, one.Problem = one.Members[:1], "the storage does not answer within 2s"
	one.Probers, one.ProbesAlone = 3, "only this Caddy is known"
	// another member waits
	elsewhere := view.Fleet{Fleet: "shops", Members: []view.Member{{ID: "1", Member: "edge-1", Self: true, State: view.MemberLive, Ack: &view.Ack{Follows: true}}}}
	for _, tc := range []struct {
		args  string
		fleet view.Fleet
		want  string
	}{
		{"fleet --upstream app1:80", elsewhere, "" +
			"fleet shops: 1 member; all upstreams are up everywhere\n" +
			"MEMBER  STATE  HEARD       NOT UP\n" +
			"edge-1  live   this Caddy  0\n" +
			"    of the wait: nothing in flight, but the mode is new there\n"},
		{"fleet", edges(), "" +
			"fleet shops: 4 members, 1 lost; at least 2 upstreams are not up somewhere\n" +
			"MEMBER             STATE  HEARD       NOT UP\n" +
			"edge-1             live   this Caddy  0\n" +
			"edge-2 (22222222)  live   3s ago      2\n" +
			"    app1:80  down for 2m by tcp: connection refused\n" +
			"    app2:80  unknown by http /\n" +
			"edge-2 (22222222)  live   0s ago      1+\n" +
			"    app1:80  down for 2m by tcp: connection refused\n" +
			"    7 more that it does not name\n" +
			"edge-9             lost   1h ago      1\n" +
			"    app3:80  down by tcp\n"},
		{"fleet --upstream app2:80", withWait, "" +
			"fleet shops: 4 members, 1 lost; at least 2 upstreams are not up somewhere\n" +
			"wait for app2:80: 1 pending, 1 lost\n" +
			"MEMBER             STATE  HEARD       NOT UP\n" +
			"edge-1             live   this Caddy  0\n" +
			"    of the wait: does not follow the mode yet\n" +
			"edge-2 (22222222)  live   3s ago      1\n" +
			"    of the wait: 3 in flight\n" +
			"    app2:80  unknown by http /\n" +
			"edge-2 (22222222)  live   0s ago      0+\n" +
			"    of the wait: quiet\n" +
			"    7 more that it does not name\n" +
			"edge-9             lost   1h ago      0\n" +
			"    of the wait: does not follow the mode yet\n"},
		{"fleet", one, "" +
			"fleet shops: 1 member; all upstreams are up at the live members\n" +
			"1 of 1 live member probes each upstream at its interval\n" +
			"this Caddy probes all upstreams at their intervals: only this Caddy is known\n" +
			"!! only this Caddy is known: the storage does not answer within 2s\n" +
			"MEMBER  STATE  HEARD       NOT UP\n" +
			"edge-1  live   this Caddy  0\n"},
	} {
		stdout, stderr, err := command(t.Context(), answering(t, tc.fleet), strings.Fields(tc.args)...)
		if err != nil || stdout != tc.want || stderr != "" {
			t.Errorf("%s: %v, %q, printed\n%s\nwant\n%s", tc.args, err, stderr, stdout, tc.want)
		}
	}
}

// answering returns the address of an admin API that shows a fleet.
func answering(t *testing.T, fleet view.Fleet) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/alive/fleet" {
			http.NotFound(w, r)
			return
		}
		if err := json.NewEncoder(w).Encode(fleet); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// An upstream that this Caddy does not have has a warning that says which may be meant. Other
// members may have it.
func TestFleet_WarnsOfAnUnknownUpstream(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/alive/fleet" {
			fmt.Fprint(w, `{"fleet":"shops"}`)
			return
		}
		fmt.Fprint(w, `[{"pool":"shop","upstream":"app1:80"}]`)
	}))
	defer server.Close()
	for upstream, want := range map[string]string{
		"app1:80": "",
		"app1":    "warning: at this Caddy: unknown upstream 'app1'; caddy alive status lists all upstreams; did you mean 'app1:80'?\n",
	} {
		stdout, stderr, err := command(t.Context(), server.Listener.Addr().String(), "fleet", "--upstream", upstream)
		if err != nil || !strings.HasPrefix(stdout, "fleet shops: ") || stderr != want {
			t.Errorf("%s: printed %q and %q, %v, want %q", upstream, stdout, stderr, err, want)
		}
	}
}

// With --json, the answer is printed as it is, with what the command may not know. A named
// upstream is asked for.
func TestFleet_JSONIsTheAnswer(t *testing.T) {
	asked := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.String()
		fmt.Fprintln(w, `{"fleet":"shops","later":"\u001b[2J`+"\u202e"+`"}`)
	}))
	defer server.Close()
	stdout, _, err := command(t.Context(), server.Listener.Addr().String(), "fleet", "--json", "--upstream", "app1:80")
	if want := `{"fleet":"shops","later":"\u001b[2J\u202e"}` + "\n"; err != nil || stdout != want {
		t.Errorf("printed %q, %v, want %q", stdout, err, want)
	}
	if asked != "/alive/fleet?upstream=app1%3A80" {
		t.Errorf("asked for %s", asked)
	}
}

// What comes from other members is text, at every width of the terminal. Nothing is left out.
func TestFleet_HostileTextFitsTheTerminal(t *testing.T) {
	const hostile = "\x1b]0;title\x07\n\u202e"
	fleet := view.Fleet{
		Fleet: "shops" + hostile, Problem: "problem" + hostile, Probers: 3, ProbesAlone: "alone" + hostile,
		Wait: &view.Wait{Failed: "failed" + hostile},
		Members: []view.Member{{
			ID: "a" + hostile, Member: "edge" + hostile, State: "state" + hostile, More: 3,
			NotUp: []view.NotUp{{Upstream: "app1:80" + hostile, Check: "check" + hostile, Status: "status" + hostile, Reason: strings.Repeat("reason ", 40) + hostile + "end", Lasts: 1}},
		}, {ID: "b" + hostile, Member: "edge" + hostile, State: view.MemberLost}},
	}
	for _, columns := range []int{0, 1, 20, 40, 80, 200} {
		var to bytes.Buffer
		writeFleet(screen{columns: columns}, &to, &fleet, "")
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
		whole := strings.Join(strings.Fields(to.String()), "")
		for _, want := range []string{"fleetshops", "problem", "alone", "failed", "edge", "app1:80", "check", "status", "end", "3morethatitdoesnotname"} {
			if !strings.Contains(whole, want) {
				t.Errorf("%d columns: it lacks %q:\n%s", columns, want, to.String())
			}
		}
	}
}

// Once a wait has succeeded, members say no more of it. That does not look as if they did not
// follow.
func TestFleet_WaitThatIsDone(t *testing.T) {
	fleet := edges()
	fleet.Wait = &view.Wait{Done: true, Quiet: true}
	fleet.Members[1].NotUp[0].Lasts = 1e308
	stdout, _, err := command(t.Context(), answering(t, fleet), "fleet", "--upstream", "app1:80")
	if err != nil || strings.Contains(stdout, "of the wait") || !strings.Contains(stdout, "wait for app1:80: all members are quiet") {
		t.Errorf("%v, printed\n%s", err, stdout)
	}
	if strings.Contains(stdout, "for -") || strings.Contains(stdout, "for 0s") {
		t.Errorf("a very long time is none, printed\n%s", stdout)
	}
}
