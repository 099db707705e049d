// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// command runs `caddy alive` with arguments, and returns what it prints.
func command(ctx context.Context, address string, args ...string) (stdout, stderr string, err error) {
	root := &cobra.Command{Use: "alive", SilenceUsage: true}
	addCommands(root)
	var out, errs bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(append(args, "--address", address))
	err = root.ExecuteContext(ctx)
	return out.String(), errs.String(), err
}

// The command gives up if Caddy hangs, also in the middle of a wait.
func TestCommand_GivesUpIfCaddyHangs(t *testing.T) {
	hung := make(chan struct{})
	var answers atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/config/apps/alive":
			fmt.Fprint(w, "null")
		case r.URL.Path == "/alive/fleet":
			http.NotFound(w, r)
		case answers.Add(-1) >= 0:
			fmt.Fprint(w, `[{"pool":"shop","upstream":"a:80","mode":"drain","requests":1}]`)
		default:
			<-hung
		}
	}))
	defer server.Close()
	defer close(hung)
	address := server.Listener.Addr().String()
	for _, n := range []int64{0, 2} { // at once, or in the wait
		answers.Store(n)
		began := time.Now()
		_, _, err := command(t.Context(), address, "drain", "a:80", "--wait", "1s")
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "no answer from Caddy at "+address+" within 3s") || took > 6*time.Second {
			t.Errorf("after %s: %v", took, err)
		}
	}
}

// status --watch goes on after a request that fails.
func TestStatus_WatchesOnAfterAnError(t *testing.T) {
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/alive/pools" {
			fmt.Fprint(w, `[{"pool":"shop"}]`)
			return
		}
		if n.Add(1) == 2 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, `[{"pool":"shop","upstream":"a:80","mode":"drain"}]`)
	}))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	stdout, stderr, err := command(ctx, server.Listener.Addr().String(), "status", "--watch")
	if err != nil || strings.Count(stdout, "pool shop") != 2 || strings.Count(stderr, "warning: the server at ") != 1 {
		t.Errorf("%q, %q, %v", stdout, stderr, err)
	}
}

// An error is one line that says what to do, and nothing else is printed.
func TestCommand_ErrorsAreOneLine(t *testing.T) {
	answers := func(status int, body string) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}))
		t.Cleanup(server.Close)
		return server.Listener.Addr().String()
	}
	stopped := testkit.Refused(t)
	for _, tc := range []struct {
		address string
		args    string
		says    string
	}{
		{stopped, "status", "cannot reach Caddy at " + stopped},
		{answers(404, "404 page not found"), "status", "it is a build without this plugin, or no Caddy"},
		{answers(404, `{"error":"unknown path"}`), "drain a:80", "it is a build without this plugin, or no Caddy"},
		{answers(404, `{"error":"unknown upstream 'a:80'"}`), "drain a:80", "it is a build without this plugin, or no Caddy"},
		{answers(404, `{"error":"unknown upstream 'a:80'","code":"unknown_upstream"}`), "drain a:80", "unknown upstream 'a:80'"},
		{answers(400, `{"error":"bad\u001b[31m\nthing"}`), "drain a:80", "bad?[31m?thing"},
		{answers(500, "oops"), "status", "answers with the status 500"},
		{answers(200, "hello"), "status", "this is no answer of Caddy's admin API"},
		{answers(200, "hello"), "status --json", "this is no answer of Caddy's admin API"},
		{"localhost", "status", `the address of the admin API must be like localhost:2019 or unix//run/caddy-admin.sock; got "localhost"`},
		{"http://localhost:2019", "status", `the address of the admin API must be like localhost:2019`},
		{"localhost:2019-2021", "status", `the address of the admin API must be like localhost:2019`},
		{stopped, "check a --wait -1s", "--wait must not be below 0"},
		{stopped, "weight a -1", "weight must be a whole number from 0 to 256, or reset; got '-1'"},
		{stopped, "weight a -300", "weight must be a whole number from 0 to 256, or reset; got '-300'"},
		{stopped, "weight a -x", "unknown shorthand flag: 'x' in -x"},
		{stopped, "drain", "caddy alive drain takes one upstream"},
		{stopped, "drain a b", "caddy alive drain takes one upstream"},
		{stopped, "drain a --wait -1s", "--wait must not be below 0"},
		{stopped, "drain a --wait 1s", "cannot reach Caddy at " + stopped},
		{stopped, "drain a --ignore-lost", "--ignore-lost has no meaning without --wait"},
		{stopped, "maintenance a --ignore-lost", "--ignore-lost has no meaning without --wait"},
		{stopped, "ready a --wait 1s --ignore-lost", "unknown flag: --ignore-lost"},
		{stopped, "fleet", "cannot reach Caddy at " + stopped},
		{stopped, "fleet shops", "caddy alive fleet takes no arguments"},
		{answers(404, "404 page not found"), "fleet", "shows no fleet: it is a build without this plugin or with an older one, or no Caddy"},
		{answers(404, `{"error":"this Caddy is in no fleet","code":"no_fleet"}`), "fleet", "this Caddy is in no fleet"},
		{answers(200, "hello"), "fleet", "this is no answer of Caddy's admin API"},
		{answers(200, "hello"), "fleet --json", "this is no answer of Caddy's admin API"},
		{answers(500, "oops"), "drain a --wait 1s", "answers with the status 500"},
		{stopped, "weight a", "caddy alive weight takes an upstream, and a whole number or reset"},
		{stopped, "weight a many", "weight must be a whole number from 0 to 256, or reset; got 'many'"},
		{stopped, "weight a 257", "weight must be a whole number from 0 to 256, or reset; got '257'"},
		{stopped, "weight a 1\x1b[31m", "weight must be a whole number from 0 to 256, or reset; got '1?[31m'"},
		{stopped, "check", "caddy alive check takes one upstream"},
		{stopped, "status now", "caddy alive status takes no arguments"},
		{stopped, "sleep a", `unknown command "sleep": there are status, ready, drain, maintenance, weight, check and fleet`},
		{stopped, "statsu", `weight, check and fleet; did you mean 'status'?`},
		{stopped, "status --state dwon", "--state takes down, ejected, suspect, unknown, draining, maintenance and up, several of them with commas between; got 'dwon'; did you mean 'down'?"},
		{stopped, "status --state down,", "got ''"},
		{stopped, "status --json --all", "if any flags in the group [json all] are set none of the others can be"},
	} {
		stdout, stderr, err := command(t.Context(), tc.address, strings.Fields(tc.args)...)
		if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want %q", tc.args, err, tc.says)
			continue
		}
		if stdout != "" || stderr != "Error: "+err.Error()+"\n" {
			t.Errorf("%s: printed %q and %q", tc.args, stdout, stderr)
		}
	}
}

// A change that could not be stored has a warning.
func TestMode_WarnsIfItIsNotStored(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `[{"pool":"shop","upstream":"a:80","mode":"drain","persisted":false}]`)
	}))
	defer server.Close()
	stdout, stderr, err := command(t.Context(), server.Listener.Addr().String(), "drain", "a:80")
	if err != nil || stdout != "a:80: drain\n" || !strings.HasPrefix(stderr, "warning: ") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("printed %q and %q, %v", stdout, stderr, err)
	}
}
