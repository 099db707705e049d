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

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// bindingCaddy answers as a Caddy does whose upstream has bound clients. Its list has each
// of the rows in turn, the last one for good.
type bindingCaddy struct {
	mu     sync.Mutex // guards what follows
	rows   []view.Upstream
	bodies []string // of changes
}

// start returns the address of its admin API.
func (b *bindingCaddy) start(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/config/apps/alive":
			fmt.Fprint(w, "null")
			return
		case "/alive/fleet":
			http.NotFound(w, r) // it runs since before there was one
			return
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		row := b.rows[0]
		if r.Method == http.MethodPatch {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			b.bodies = append(b.bodies, string(body))
		} else if len(b.rows) > 1 {
			b.rows = b.rows[1:]
		}
		if err := json.NewEncoder(w).Encode([]view.Upstream{row}); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// While clients are bound to an upstream that drains, the wait says now and then what keeps
// it busy, and what moves them. In the end it names them too, whether or not all requests
// have ended.
func TestDrainWait_NamesBoundTraffic(t *testing.T) {
	busy := view.Upstream{Pool: "shop", Upstream: "a:80", Mode: settings.Drain, Requests: 2, Bound: 12}
	idle := busy
	idle.Requests, idle.Bound = 0, 1
	const keeps = "a:80: requests in flight: 2; 12 requests in the last minute of clients bound to it, which --rebind moves"
	stdout, _, err := command(t.Context(), (&bindingCaddy{rows: []view.Upstream{busy}}).start(t), "drain", "a:80", "--wait", "5500ms")
	if want := "a:80: drain\n" + keeps + "\n"; stdout != want {
		t.Errorf("printed %q, want %q", stdout, want)
	}
	if want := strings.Replace(keeps, "a:80: ", "a:80: after 5.5s, ", 1); err == nil || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
	stdout, _, err = command(t.Context(), (&bindingCaddy{rows: []view.Upstream{busy, busy, idle}}).start(t), "drain", "a:80", "--wait", "5s")
	if want := "a:80: drain\na:80: nothing is in flight, but 1 request in the last minute of a client bound to it, which --rebind moves\n"; err != nil || stdout != want {
		t.Errorf("printed %q, %v, want %q", stdout, err, want)
	}
}

// Without a wait, a drain warns of clients that stay. With --rebind they move, so there is
// nothing to warn of or to wait for but the requests in flight. Other modes have no such
// clients.
func TestDrain_WarnsOfBoundClients(t *testing.T) {
	busy := view.Upstream{Pool: "shop", Upstream: "a:80", Mode: settings.Drain, Bound: 12}
	moving, ready := busy, busy
	moving.Rebind, ready.Mode = true, settings.Ready
	for _, tc := range []struct {
		args, body, stdout, stderr string
		row                        view.Upstream
	}{
		{"drain a:80", `{"mode":"drain"}`, "a:80: drain\n", "warning: 12 requests in the last minute of clients bound to it, which --rebind moves\n", busy},
		{"drain a:80 --rebind", `{"mode":"drain","rebind":true}`, "a:80: drain, and clients that are bound to it move\n", "", moving},
		{"drain a:80 --rebind --wait 5s", `{"mode":"drain","rebind":true}`, "a:80: drain, and clients that are bound to it move\na:80: nothing is in flight\n", "", moving},
		{"drain a:80 --rebind=false", `{"mode":"drain"}`, "a:80: drain\n", "warning: 12 requests in the last minute of clients bound to it, which --rebind moves\n", busy},
		{"ready a:80 --wait 5s", `{"mode":"ready"}`, "a:80: ready\na:80: nothing is in flight\n", "", ready},
	} {
		caddy := &bindingCaddy{rows: []view.Upstream{tc.row}}
		stdout, stderr, err := command(t.Context(), caddy.start(t), strings.Fields(tc.args)...)
		if err != nil || stdout != tc.stdout || stderr != tc.stderr {
			t.Errorf("%s: printed %q and %q, %v, want %q and %q", tc.args, stdout, stderr, err, tc.stdout, tc.stderr)
		}
		if len(caddy.bodies) != 1 || caddy.bodies[0] != tc.body {
			t.Errorf("%s: sent %q, want %q", tc.args, caddy.bodies, tc.body)
		}
	}
	for _, mode := range []string{"ready", "maintenance"} {
		if _, _, err := command(t.Context(), "localhost:1", mode, "a:80", "--rebind"); err == nil || err.Error() != "unknown flag: --rebind" {
			t.Errorf("%s --rebind: %v", mode, err)
		}
	}
}
