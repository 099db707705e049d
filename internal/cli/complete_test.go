// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// complete returns what a shell gets that completes the last word of a line, without what cobra
// adds. The request is that of the script for bash, or that of the other shells.
func complete(t *testing.T, request, address, line string) (offered []string) {
	t.Helper()
	caddy := &cobra.Command{Use: "caddy", SilenceUsage: true}
	alive := &cobra.Command{Use: "alive"}
	addCommands(alive)
	caddy.AddCommand(alive)
	var out, errs bytes.Buffer
	caddy.SetOut(&out)
	caddy.SetErr(&errs)
	words := strings.Split(line, " ")
	caddy.SetArgs(append([]string{request, "alive", words[0], "--address", address}, words[1:]...))
	if err := caddy.ExecuteContext(t.Context()); err != nil {
		t.Errorf("%s: %v", line, err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	last := len(lines) - 1
	if directive := lines[last]; directive != ":4" && directive != ":6" { // without names of files
		t.Errorf("%s: the directive is %q", line, directive)
	}
	if text := errs.String(); !strings.HasPrefix(text, "Completion ended with directive: ") || strings.Count(text, "\n") != 1 {
		t.Errorf("%s: printed %q", line, text)
	}
	return lines[:last]
}

// Upstreams, pools, states and reset are offered where they belong. Names that a shell would
// not take as they are written are not, nor in bash those with spaces.
func TestComplete_OffersWhatThereIs(t *testing.T) {
	rows := []view.Upstream{
		{Pool: "shop", Upstream: "app1:80", Status: "down", Mode: settings.Ready},
		{Pool: "shop", Upstream: "app2:80", Status: "up", Mode: settings.Drain},
		{Pool: "zoo park", Upstream: "app1:80", Status: "up", Mode: settings.Ready, Serving: true},
		{Pool: "zoo park", Upstream: "app3:80", Status: "unknown", Mode: settings.Maintenance},
		{Pool: "zoo park", Upstream: "[::1]:80", Status: "up", Mode: settings.Ready, Serving: true},
		{Pool: "$(id)", Upstream: "app`id`", Status: "up", Mode: settings.Ready},
		{Pool: "$(id)", Upstream: "app$IFS", Status: "up", Mode: settings.Ready},
		{Pool: "$(id)", Upstream: "app\nx", Status: "up", Mode: settings.Ready},
		{Upstream: "app9:80", Status: "unknown", Mode: settings.Ready, Gone: true},
	}
	address := poolsOf(t, view.Pools(rows), rows...)
	const all, bash = cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd
	for _, tc := range []struct{ request, line, want string }{
		{all, "drain app", "app1:80\tdown, app2:80\tdraining, app3:80\tmaintenance, app9:80\tunknown"},
		{all, "maintenance app1", "app1:80\tdown"},
		{all, "check app1:80 ", ""},
		{bash, "check ", "app1:80, app2:80, app3:80, [::1]:80, app9:80"},
		{all, "ready ", "app2:80\tdraining, app3:80\tmaintenance, app9:80\tunknown"},
		{bash, "weight app2", "app2:80"},
		{bash, "weight --pool shop ", "app1:80, app2:80"},
		{all, "weight app2:80 ", "reset"},
		{all, "weight app2:80 5", ""},
		{all, "weight app2:80 5 ", ""},
		{bash, "status --upstream app3", "app3:80"},
		{bash, "fleet --upstream app3", "app3:80"},
		{all, "status --pool ", "shop\t0 of 2 serve, zoo park\t2 of 3 serve"},
		{bash, "status --pool ", "shop"},
		{bash, "weight app1:80 5 --pool s", "shop"},
		{all, "status --state d", "down, draining"},
		{all, "status --state down,u", "down,unknown, down,up"},
		{all, "status ", ""},
		{all, "fleet ", ""},
	} {
		if got := strings.Join(complete(t, tc.request, address, tc.line), ", "); got != tc.want {
			t.Errorf("%s %q: got %q, want %q", tc.request, tc.line, got, tc.want)
		}
	}
}

// A shell gets no error and does not wait long if Caddy does not run, hangs, or is another
// program.
func TestComplete_IsSilentWithoutAnAnswer(t *testing.T) {
	hung := make(chan struct{})
	hangs := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hung }))
	defer hangs.Close()
	defer close(hung)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	defer other.Close()
	for _, address := range []string{testkit.Refused(t), hangs.Listener.Addr().String(), other.Listener.Addr().String(), "nonsense"} {
		for _, line := range []string{"drain ", "status --pool ", "status --upstream "} {
			began := time.Now()
			if got := complete(t, cobra.ShellCompRequestCmd, address, line); len(got) > 0 {
				t.Errorf("%s %q: offers %q", address, line, got)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("%s %q: took %s", address, line, took)
			}
		}
	}
}
