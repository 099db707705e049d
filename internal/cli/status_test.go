// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// exitStatus returns the status with which Caddy's main function exits.
func exitStatus(err error) int {
	if err == nil {
		return 0
	}
	if v := reflect.Indirect(reflect.ValueOf(err)); v.Kind() == reflect.Struct {
		if code := v.FieldByName("ExitCode"); code.IsValid() { // its type is Caddy's own
			return int(code.Int())
		}
	}
	return 1
}

// listOf serves a list of upstreams as Caddy does.
func listOf(t *testing.T, rows ...view.Upstream) (address string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown := []view.Upstream{}
		for _, e := range rows {
			if pool := r.URL.Query().Get("pool"); pool == "" || pool == e.Pool {
				shown = append(shown, e)
			}
		}
		if err := json.NewEncoder(w).Encode(shown); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// The exit status of status --check is 3 if no upstream of a pool serves, with one line
// for each such pool; 0 and no output if there is none; 1 if the list is not known.
func TestStatusCheck_ExitStatus(t *testing.T) {
	well := view.Upstream{Pool: "shop", Upstream: "a:80", Serving: true, EffectiveWeight: 1}
	dead := view.Upstream{Pool: "api", Upstream: "b:80", Status: "down"}
	const line = "pool api: No upstream serves, and none gets requests: they are answered 503.\n"
	for _, tc := range []struct {
		address        string
		args           string
		exit           int
		stdout, stderr string
	}{
		{listOf(t, well), "status --check", 0, "", ""},
		{listOf(t), "status --check", 0, "", ""},
		{listOf(t, dead, well), "status --check", 3, line, ""},
		{listOf(t, view.Upstream{Pool: "x", Gone: true}, well), "status --check", 0, "", ""},
		{listOf(t, dead, well), "status --check --json", 3, "[", line},
		{listOf(t, well), "status --check --json", 0, "[", ""},
		{listOf(t, dead, well), "status", 0, "pool api\n!! No upstream serves, and none gets requests", ""},
		{testkit.Refused(t), "status --check", 1, "", "Error: cannot reach Caddy"},
		{testkit.Refused(t), "status --check --watch", 1, "", "Error: if any flags in the group [watch check] are set none of the others can be"},
	} {
		stdout, stderr, err := command(t.Context(), tc.address, strings.Fields(tc.args)...)
		if got := exitStatus(err); got != tc.exit {
			t.Errorf("%s: exit status %d (%v), want %d", tc.args, got, err, tc.exit)
		}
		if !strings.HasPrefix(stdout, tc.stdout) || (stdout == "") != (tc.stdout == "") || !strings.HasPrefix(stderr, tc.stderr) || (stderr == "") != (tc.stderr == "") {
			t.Errorf("%s: printed %q and %q, want %q and %q", tc.args, stdout, stderr, tc.stdout, tc.stderr)
		}
	}
}

// A change that takes the last serving upstream out of a pool is made, with a warning
// for each such pool.
func TestChange_WarnsOfTheLastServingUpstream(t *testing.T) {
	gets := view.Upstream{Pool: "shop", Upstream: "a:80", Mode: settings.Drain, EffectiveWeight: 1}
	also := view.Upstream{Pool: "api", Upstream: "a:80", Mode: settings.Drain, EffectiveWeight: 1}
	none := view.Upstream{Pool: "api", Upstream: "a:80"}
	well := view.Upstream{Pool: "api", Upstream: "b:80", Serving: true, EffectiveWeight: 1}
	for _, tc := range []struct {
		args   string
		rows   []view.Upstream
		stderr string
	}{
		{"drain a:80", []view.Upstream{none, gets}, "warning: it still gets new requests: no other upstream of the pool shop serves\n"},
		{"drain a:80", []view.Upstream{also, gets}, "warning: it still gets new requests: no other upstream serves in the pools api, shop\n"},
		{"drain a:80", []view.Upstream{none}, ""},
		{"maintenance a:80", []view.Upstream{none}, "warning: pool api: No upstream serves, and none gets requests: they are answered 503.\n"},
		{"maintenance a:80", []view.Upstream{none, well}, ""},
		{"weight a:80 0", []view.Upstream{none}, "warning: pool api: No upstream serves, and none gets requests: they are answered 503.\n"},
		{"weight a:80 2", []view.Upstream{none}, ""},
	} {
		// the server of this test answers a change with the whole list
		_, stderr, err := command(t.Context(), listOf(t, tc.rows...), strings.Fields(tc.args)...)
		if err != nil || stderr != tc.stderr {
			t.Errorf("%s: printed %q, %v, want %q", tc.args, stderr, err, tc.stderr)
		}
	}
}
