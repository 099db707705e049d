// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// status shows the upstreams that all filters want, in the table and as JSON, and says when
// there are none. The totals are those of all. A name that no upstream has is an error that says
// which may be meant.
func TestStatus_Filters(t *testing.T) {
	address := poolsOf(
		t, nil,
		view.Upstream{Pool: "api", Upstream: "a:80", Status: "down", Mode: settings.Ready},
		view.Upstream{Pool: "api", Upstream: "b:80", Status: "up", Mode: settings.Ready, Serving: true},
		view.Upstream{Pool: "shop", Upstream: "a:80", Status: "down", Mode: settings.Ready},
		view.Upstream{Pool: "shop", Upstream: "c:80", Status: "up", Mode: settings.Drain},
		view.Upstream{Pool: "shop", Upstream: "d:80", Status: "unknown", Mode: settings.Maintenance},
	)
	const totals = "5 upstreams in 2 pools, 2 down, 1 draining, 1 in maintenance, 1 up, 0 in flight\n"
	for args, want := range map[string]string{
		"--upstream a:80":                            "api a:80, shop a:80",
		"--upstream a:80 --pool shop":                "shop a:80",
		"--state down":                               "api a:80, shop a:80",
		"--state draining,maintenance":               "shop c:80, shop d:80",
		"--state draining --state up":                "api b:80, shop c:80",
		"--state up,draining --not-serving":          "shop c:80",
		"--not-serving --pool api":                   "api a:80",
		"--state suspect":                            "no upstream matches --state suspect",
		"--upstream b:80 --not-serving":              "no upstream matches --upstream b:80 --not-serving",
		"--state ejected,suspect --pool api":         "no upstream of the pool api matches --state ejected,suspect",
		"--state down --upstream c:80 --not-serving": "no upstream matches --upstream c:80 --state down --not-serving",
	} {
		args := strings.Fields("status " + args)
		stdout, stderr, err := command(t.Context(), address, append(args, "--json")...)
		var rows []view.Upstream
		if err != nil || stderr != "" || json.Unmarshal([]byte(stdout), &rows) != nil {
			t.Fatalf("%v: %q, %q, %v", args, stdout, stderr, err)
		}
		var shown []string
		for _, row := range rows {
			shown = append(shown, row.Pool+" "+row.Upstream)
		}
		wanted := want
		if strings.HasPrefix(want, "no ") {
			wanted = ""
		}
		if got := strings.Join(shown, ", "); got != wanted {
			t.Errorf("%v as JSON: got %q, want %q", args, got, wanted)
		}
		stdout, _, err = command(t.Context(), address, args...)
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		if !strings.Contains(strings.Join(args, " "), "--pool") && !strings.HasPrefix(stdout, totals) {
			t.Errorf("%v: the first line differs: %s", args, stdout)
		}
		if wanted == "" && !strings.HasSuffix(stdout, "in flight\n"+want+"\n") || wanted != "" && strings.Count(stdout, ":80 ") != len(rows) {
			t.Errorf("%v: want %q:\n%s", args, want, stdout)
		}
	}
	for args, want := range map[string]string{
		"--upstream 80":             "unknown upstream '80'; caddy alive status lists all upstreams; did you mean 'a:80', 'b:80', 'c:80' or one of 1 more?",
		"--upstream c --json":       "unknown upstream 'c'; caddy alive status lists all upstreams; did you mean 'c:80'?",
		"--upstream zz:1 --watch":   "unknown upstream 'zz:1'; caddy alive status lists all upstreams",
		"--pool shop --upstream b":  "unknown upstream 'b' in the pool 'shop'; caddy alive status lists all upstreams",
		"--check --upstream a:80":   "if any flags in the group [upstream check] are set none of the others can be; [check upstream] were all set",
		"--check --state down":      "if any flags in the group [state check] are set none of the others can be; [check state] were all set",
		"--check --all":             "if any flags in the group [all check] are set none of the others can be; [all check] were all set",
		"--upstream a\x1b[2J:80":    "unknown upstream 'a?[2J:80'; caddy alive status lists all upstreams",
		"--upstream http://c:80/up": "unknown upstream 'http://c:80/up'; caddy alive status lists all upstreams; did you mean 'c:80'?",
	} {
		stdout, _, err := command(t.Context(), address, append([]string{"status"}, strings.Fields(args)...)...)
		if err == nil || err.Error() != want || stdout != "" {
			t.Errorf("%s: printed %q, %v; want %q", args, stdout, err, want)
		}
	}
}
