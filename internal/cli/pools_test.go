// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// poolsOf serves upstreams and pools as Caddy does. Without pools, it is a Caddy that does
// not list any.
func poolsOf(t *testing.T, pools []view.Pool, rows ...view.Upstream) (address string) {
	t.Helper()
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, status int, value any) {
		w.WriteHeader(status)
		if err := json.NewEncoder(w).Encode(value); err != nil {
			t.Error(err)
		}
	}
	mux.HandleFunc("/alive/upstreams", func(w http.ResponseWriter, r *http.Request) {
		shown := []view.Upstream{}
		for _, row := range rows {
			if name := r.URL.Query().Get("pool"); name == "" || name == row.Pool {
				shown = append(shown, row)
			}
		}
		answer(w, http.StatusOK, shown)
	})
	if pools != nil {
		mux.HandleFunc("/alive/pools", func(w http.ResponseWriter, r *http.Request) {
			name, shown := r.URL.Query().Get("pool"), []view.Pool{}
			for _, p := range pools {
				if name == "" || name == p.Pool {
					shown = append(shown, p)
				}
			}
			if len(shown) == 0 && name != "" {
				answer(w, http.StatusNotFound, map[string]string{"error": "unknown pool '" + name + "'", "code": "unknown_pool"})
				return
			}
			answer(w, http.StatusOK, shown)
		})
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// status has a line for each pool, also for those without upstreams, and --pool shows one of
// them. A Caddy that does not list pools is shown without what only it knows. A name that is
// unknown is an error, unless something was set for it.
func TestStatus_Pools(t *testing.T) {
	rows := []view.Upstream{
		{Pool: "api", Upstream: "a:80", Status: "down", Mode: settings.Ready},
		{Pool: "shop", Upstream: "b:80", Status: "up", Mode: settings.Ready, Serving: true, EffectiveWeight: 1, Weight: 1, ConfiguredWeight: 1, Requests: 4, Limit: 4, Why: "up, but full"},
		{Pool: "shop", Upstream: "c:80", Status: "up", Mode: settings.Ready, Weight: 1, ConfiguredWeight: 1, Group: 1, Backup: true},
		{Pool: "past", Upstream: "d:80", Status: "unknown", Mode: settings.Ready, Gone: true},
	}
	pools := view.Pools(rows)
	pools[1].Queue = &view.Queue{Waiting: 3, Limit: 1000}
	pools = append(pools, view.NewPool("zoo"))
	const (
		totals = "3 upstreams in 2 pools, 1 down, 2 up, 4 in flight\n\n"
		header = "UPSTREAM  STATE    WEIGHT      IN FLIGHT  SINCE\n"
		api    = "pool api\n0 of 1 serve, 1 down, 0 in flight\n!! No upstream serves, and none gets requests: they are answered 503.\n"
		a      = "a:80      down     0           0          -\n"
		shop   = "pool shop\n1 of 2 serve, 4 in flight, 3 of 1000 wait\n"
		b      = "b:80      up       1           4 of 4     -\n    up, but full\n"
		c      = "c:80      up       1 (backup)  0          -\n"
		past   = "Set at run time, but in no pool\n"
		d      = "d:80      unknown  0           0          -\n"
		zoo    = "pool zoo\nno upstreams at present, 0 in flight\n"
		none   = "0 upstreams in 0 pools, 0 in flight\n"
	)
	current := poolsOf(t, pools, rows...)
	earlier := poolsOf(t, nil, rows...)
	for _, tc := range []struct {
		address, args, want string
	}{
		{current, "status", totals + api + header + a + "\n" + shop + header + b + c + "\n" + zoo + "\n" + past + header + d},
		{current, "status --pool zoo", none + "\n" + zoo},
		{current, "status --not-serving --pool zoo", none + "all upstreams of the pool zoo serve, and none is suspect or ejected\n"},
		{current, "status --check --pool shop", ""},
		{earlier, "status", totals + api + header + a + "\n" + strings.Replace(shop, ", 3 of 1000 wait", "", 1) + header + b + c + "\n" + past + header + d},
		{earlier, "status --pool nothing", none + "no reverse_proxy uses lb_policy alive\n"},
	} {
		if stdout, stderr, err := command(t.Context(), tc.address, strings.Fields(tc.args)...); err != nil || stderr != "" || stdout != tc.want {
			t.Errorf("%s: got\n%s%s%v\nwant\n%s", tc.args, stdout, stderr, err, tc.want)
		}
	}
	for args, names := range map[string]string{"status --pool shop": "bc", "status --pool past": "d", "status --pool shop --json": "bc", "status --pool api --not-serving --json": "a"} {
		stdout, _, err := command(t.Context(), current, strings.Fields(args)...)
		shown := ""
		for _, row := range rows {
			if strings.Contains(stdout, row.Upstream) {
				shown += row.Upstream[:1]
			}
		}
		if err != nil || shown != names {
			t.Errorf("%s: shows %s, %v, want %s", args, shown, err, names)
		}
	}
	for _, args := range []string{"status --pool nothing", "status --pool nothing --json", "status --pool nothing --check"} {
		if stdout, _, err := command(t.Context(), current, strings.Fields(args)...); stdout != "" || err == nil || err.Error() != "unknown pool 'nothing'" {
			t.Errorf("%s: printed %q, %v", args, stdout, err)
		}
	}
	nothing := view.NewPool("nothing")
	nothing.Empty = true
	if stdout, _, err := command(t.Context(), poolsOf(t, []view.Pool{nothing}), "status", "--check"); exitStatus(err) != exitOutage || stdout != "pool nothing: A dynamic source returns no upstreams: requests of its handler are answered 503.\n" {
		t.Errorf("an empty pool: %v, printed %q", err, stdout)
	}
	if stdout, _, err := command(t.Context(), current, "status", "--check", "--pool", "api"); exitStatus(err) != exitOutage || !strings.HasPrefix(stdout, "pool api: ") {
		t.Errorf("status --check --pool api: printed %q, %v", stdout, err)
	}
}

// A Caddy that runs since before there were groups lists backups without a number.
func TestParseRows_BackupsWithoutAGroup(t *testing.T) {
	rows, err := parseRows([]byte(`[{"upstream":"a","backup":true},{"upstream":"b","backup":true,"group":2},{"upstream":"c"}]`))
	if err != nil || rows[0].Group != 1 || rows[1].Group != 2 || rows[2].Group != 0 {
		t.Errorf("%+v, %v", rows, err)
	}
}
