// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// memberCaddy answers as a member of a fleet does. Once the mode is set, it answers each of
// the waits in turn, the last one for good.
type memberCaddy struct {
	mu     sync.Mutex // guards what follows
	fleet  view.Fleet
	waits  []*view.Wait
	row    view.Upstream
	bodies []string // of changes
	gone   bool     // there is no fleet any more after the change
}

// start returns the address of its admin API.
func (m *memberCaddy) start(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		defer m.mu.Unlock()
		var answer any = []view.Upstream{m.row}
		switch {
		case r.Method == http.MethodPatch:
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			m.bodies = append(m.bodies, string(body))
		case r.URL.Path == "/config/apps/alive":
			answer = map[string]string{"fleet": m.fleet.Fleet}
		case r.URL.Path == "/alive/fleet" && m.gone && len(m.bodies) > 0:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"error":"this Caddy is in no fleet","code":"no_fleet"}`)
			return
		case r.URL.Path == "/alive/fleet":
			fleet := m.fleet
			if len(m.bodies) > 0 && r.URL.Query().Get("upstream") == "a:80" {
				fleet.Wait = m.waits[0]
				if len(m.waits) > 1 {
					m.waits = m.waits[1:]
				}
			}
			answer = fleet
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// threeMembers is a fleet of which one member is lost.
var threeMembers = view.Fleet{Fleet: "shops", Members: []view.Member{
	{ID: "1", Member: "edge-1", Self: true, State: view.MemberLive},
	{ID: "2", Member: "edge-7", State: view.MemberLive},
	{ID: "3", Member: "edge-9", State: view.MemberLost},
}}

// serving is a row that gives no reason for a warning.
var serving = view.Upstream{Pool: "shop", Upstream: "a:80", Serving: true}

// In a fleet, the mode is set with a wait that outlives the command. The command ends well
// when all members are quiet, with bound clients named as those of all, and with lost members
// only if they are ignored. Else it fails at the timeout with what is left, or at once if the
// wait cannot succeed.
func TestFleetWait_EndsWhenAllMembersAreQuiet(t *testing.T) {
	const (
		lost      = "edge-9: not heard for 41s, it may still send requests"
		notStored = `only this Caddy is known: the storage does not answer`
	)
	busy := &view.Wait{Pending: []string{"edge-7: 3 in flight"}}
	busyAndLost := &view.Wait{Pending: busy.Pending, Lost: []string{lost}}
	onlyLost := &view.Wait{Quiet: true, Lost: []string{lost}}
	settling := &view.Wait{}
	done := &view.Wait{Done: true, Quiet: true}
	bound := &view.Wait{Done: true, Quiet: true, Bound: 12}
	allLive := view.Fleet{Fleet: "shops", Members: threeMembers.Members[:2]}
	alone := view.Fleet{Fleet: "shops", Members: threeMembers.Members[:1]}
	for _, tc := range []struct {
		args, body   string
		fleet        view.Fleet
		waits        []*view.Wait
		stdout, says string // says is the error
	}{
		{
			"drain a:80 --wait 60s", `{"mode":"drain","wait":"1m10s"}`, allLive,
			[]*view.Wait{busy, settling, done},
			"a:80: drain\na:80: all 2 members of the fleet shops are quiet: nothing is in flight\n", "",
		},
		{
			"maintenance a:80 --wait 1500ms", `{"mode":"maintenance","wait":"11.5s"}`, alone,
			[]*view.Wait{done},
			"a:80: maintenance\na:80: the only member of the fleet shops is quiet: nothing is in flight\n", "",
		},
		{
			"drain a:80 --wait 24h", `{"mode":"drain","wait":"24h0m0s"}`, allLive,
			[]*view.Wait{bound},
			"a:80: drain\na:80: all 2 members of the fleet shops are quiet: nothing is in flight, but 12 requests in the last minute of clients bound to it, which --rebind moves\n", "",
		},
		{
			"drain a:80 --rebind --wait 60s", `{"mode":"drain","rebind":true,"wait":"1m10s"}`, allLive,
			[]*view.Wait{bound},
			"a:80: drain, and clients that are bound to it move\na:80: all 2 members of the fleet shops are quiet: nothing is in flight\n", "",
		},
		{
			"drain a:80 --wait 500ms", `{"mode":"drain","wait":"10.5s"}`, threeMembers,
			[]*view.Wait{busyAndLost},
			"a:80: drain\n", "a:80: after 500ms, edge-7: 3 in flight; " + lost,
		},
		{
			"drain a:80 --wait 500ms", `{"mode":"drain","wait":"10.5s"}`, threeMembers,
			[]*view.Wait{onlyLost},
			"a:80: drain\n", "a:80: after 500ms, " + lost,
		},
		{
			"drain a:80 --wait 500ms --ignore-lost", `{"mode":"drain","wait":"10.5s"}`, threeMembers,
			[]*view.Wait{busyAndLost},
			"a:80: drain\n", "a:80: after 500ms, edge-7: 3 in flight",
		},
		{
			"drain a:80 --wait 60s --ignore-lost", `{"mode":"drain","wait":"1m10s"}`, threeMembers,
			[]*view.Wait{busyAndLost, onlyLost},
			"a:80: drain\na:80: all 2 members of the fleet shops are quiet: nothing is in flight; ignored: " + lost + "\n", "",
		},
		{
			"drain a:80 --wait 500ms --ignore-lost", `{"mode":"drain","wait":"10.5s"}`, threeMembers,
			[]*view.Wait{settling},
			"a:80: drain\n", "a:80: after 500ms, members may be there that have had no time to answer",
		},
		{
			"drain a:80 --wait 500ms", `{"mode":"drain","wait":"10.5s"}`, threeMembers,
			[]*view.Wait{{Bound: 1, Pending: []string{"edge\x1b[2J: 1 in flight"}}},
			"a:80: drain\n", "a:80: after 500ms, edge?[2J: 1 in flight; 1 request in the last minute of a client bound to it, which --rebind moves",
		},
		{
			"drain a:80 --wait 60s", `{"mode":"drain","wait":"1m10s"}`, threeMembers,
			[]*view.Wait{busy, {Failed: notStored}},
			"a:80: drain\n", "a:80: " + notStored,
		},
		{
			"drain a:80 --wait 60s", `{"mode":"drain","wait":"1m10s"}`, threeMembers,
			[]*view.Wait{busy, nil},
			"a:80: drain\n", "does not know of this wait any more: it was restarted, or is in another fleet now",
		},
		{"drain a:80 --wait 25h", "", threeMembers, []*view.Wait{busy}, "", "--wait must not be longer than 24h in a fleet"},
	} {
		caddy := &memberCaddy{fleet: tc.fleet, waits: tc.waits, row: serving}
		began := time.Now()
		stdout, stderr, err := command(t.Context(), caddy.start(t), strings.Fields(tc.args)...)
		if got := fmt.Sprint(err); (err == nil) != (tc.says == "") || !strings.HasSuffix(got, tc.says) && err != nil {
			t.Errorf("%s: error %v, want %q", tc.args, err, tc.says)
		}
		if stdout != tc.stdout || err == nil && stderr != "" {
			t.Errorf("%s: printed %q and %q, want %q", tc.args, stdout, stderr, tc.stdout)
		}
		if strings.Join(caddy.bodies, " ") != tc.body {
			t.Errorf("%s: sent %q, want %s", tc.args, caddy.bodies, tc.body)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s: took %s", tc.args, took)
		}
	}
}

// While it waits, the command says every five seconds what is left.
func TestFleetWait_SaysWhatIsPending(t *testing.T) {
	busy := &view.Wait{Pending: []string{"edge-7: 3 in flight"}, Lost: []string{"edge-9: not heard for 41s, it may still send requests"}}
	caddy := &memberCaddy{fleet: threeMembers, waits: []*view.Wait{busy}, row: serving}
	stdout, _, err := command(t.Context(), caddy.start(t), "maintenance", "a:80", "--wait", "8s")
	const left = "edge-7: 3 in flight; edge-9: not heard for 41s, it may still send requests"
	if want := "a:80: maintenance\na:80: " + left + "\n"; stdout != want {
		t.Errorf("printed %q, want %q", stdout, want)
	}
	if want := "a:80: after 8s, " + left; err == nil || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
}

// The wait is that of one Caddy for ready. It fails if the fleet is gone in the middle of it.
func TestFleetWait_OnlyInAFleet(t *testing.T) {
	caddy := &memberCaddy{fleet: threeMembers, row: view.Upstream{Pool: "shop", Upstream: "a:80", Mode: settings.Ready}}
	stdout, _, err := command(t.Context(), caddy.start(t), "ready", "a:80", "--wait", "5s")
	if want := "a:80: ready\na:80: nothing is in flight at this Caddy; ask each of the fleet shops, by --address\n"; err != nil || stdout != want {
		t.Errorf("ready: printed %q, %v, want %q", stdout, err, want)
	}
	if len(caddy.bodies) != 1 || caddy.bodies[0] != `{"mode":"ready"}` {
		t.Errorf("ready: sent %q", caddy.bodies)
	}
	caddy = &memberCaddy{fleet: threeMembers, gone: true}
	stdout, _, err = command(t.Context(), caddy.start(t), "drain", "a:80", "--wait", "5s")
	if err == nil || err.Error() != "this Caddy is in no fleet" || stdout != "a:80: drain\n" {
		t.Errorf("the fleet is gone: printed %q, %v", stdout, err)
	}
}
