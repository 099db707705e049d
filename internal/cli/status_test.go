// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

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
		var answer any = shown
		if r.URL.Path == "/alive/pools" {
			answer = view.Pools(shown)
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
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
		{listOf(t, dead, well), "status", 0, "2 upstreams in 2 pools, 1 down, 0 in flight\n\npool api\n0 of 1 serve, 1 down, 0 in flight\n!! No upstream serves, and none gets requests", ""},
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

// With --not-serving, status shows the upstreams that do not serve, or are suspect or
// ejected, and the alarms of all, since others decide these too.
func TestStatus_NotServing(t *testing.T) {
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	well := view.Upstream{Pool: "shop", Upstream: "well:80", Status: "up", Mode: settings.Ready, Serving: true, EffectiveWeight: 1}
	suspect := view.Upstream{Pool: "shop", Upstream: "suspect:80", Status: "up", Mode: settings.Ready, Serving: true, Suspect: true}
	ejected := view.Upstream{Pool: "shop", Upstream: "ejected:80", Status: "up", Mode: settings.Ready, EjectedUntil: &until}
	// another handler of the pool has ejected it
	elsewhere := view.Upstream{Pool: "shop", Upstream: "elsewhere:80", Status: "up", Mode: settings.Ready, Serving: true, EffectiveWeight: 1, EjectedUntil: &until}
	down := view.Upstream{Pool: "shop", Upstream: "down:80", Status: "down", Mode: settings.Ready}
	for _, tc := range []struct {
		rows []view.Upstream
		want []string
		says string
	}{
		{[]view.Upstream{well, suspect, ejected, elsewhere, down}, []string{"down:80", "ejected:80", "elsewhere:80", "suspect:80"}, "5 upstreams in 1 pool, 1 down, 2 ejected, 1 suspect, 1 up, 0 in flight\n\npool shop\n3 of 5 serve, 1 down, 2 ejected, 1 suspect, 0 in flight\nUPSTREAM"},
		{[]view.Upstream{well, down}, []string{"down:80"}, "2 upstreams in 1 pool, 1 down, 1 up, 0 in flight\n\npool shop\n1 of 2 serve, 1 down, 0 in flight\nUPSTREAM"},
		{[]view.Upstream{down}, []string{"down:80"}, "1 upstream in 1 pool, 1 down, 0 in flight\n\npool shop\n0 of 1 serve, 1 down, 0 in flight\n!! No upstream serves, and none gets requests"},
		{[]view.Upstream{well}, []string{}, "1 upstream in 1 pool, 1 up, 0 in flight\nall upstreams serve, and none is suspect or ejected\n"},
		{nil, []string{}, "0 upstreams in 0 pools, 0 in flight\nno reverse_proxy uses lb_policy alive\n"},
	} {
		address := listOf(t, tc.rows...)
		stdout, stderr, err := command(t.Context(), address, "status", "--not-serving")
		if err != nil || stderr != "" || !strings.HasPrefix(stdout, tc.says) {
			t.Errorf("%v: printed %q and %q, %v; want %q", tc.want, stdout, stderr, err, tc.says)
		}
		for _, row := range tc.rows {
			if got, want := strings.Contains(stdout, row.Upstream+" "), slices.Contains(tc.want, row.Upstream); got != want {
				t.Errorf("%s is shown: %v, want %v:\n%s", row.Upstream, got, want, stdout)
			}
		}
		stdout, _, err = command(t.Context(), address, "status", "--not-serving", "--json")
		var rows []map[string]any
		if err != nil || json.Unmarshal([]byte(stdout), &rows) != nil {
			t.Fatalf("--json: printed %q, %v", stdout, err)
		}
		shown := []string{}
		for _, row := range rows {
			shown = append(shown, row["upstream"].(string))
		}
		slices.Sort(shown) // JSON has the order of Caddy's list
		if want := slices.Sorted(slices.Values(tc.want)); !slices.Equal(shown, want) {
			t.Errorf("--json: shown are %v, want %v", shown, tc.want)
		}
	}
	if _, stderr, err := command(t.Context(), listOf(t, well), "status", "--not-serving", "--check"); exitStatus(err) != 1 {
		t.Errorf("with --check: exit status %d, printed %q", exitStatus(err), stderr)
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
