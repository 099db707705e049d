// SPDX-License-Identifier: Apache-2.0

package exec

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// Many commands print their arguments if these are wrong.
func TestExec_ReasonsShowNoValueOfAPlaceholder(t *testing.T) {
	const secret = "hunter-2 \t two"
	t.Setenv("PROBE_SECRET", secret)
	p := &Exec{Command: "sh", Args: []string{"-c", `echo "bad argument: $0"; exit 1`, "{env.PROBE_SECRET}"}}
	if err := p.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	if got, want := text(run(t, p, app, long)), "exit status 1: bad argument: {env.PROBE_SECRET}"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestExec_ErrorsShowTheCommandAsWritten(t *testing.T) {
	t.Setenv("PROBE_SECRET", "no-such-command-hunter2")
	for _, command := range []string{"{env.PROBE_SECRET}", "/nowhere/{env.PROBE_SECRET}"} {
		err := (&Exec{Command: command}).Provision(caddy.Context{})
		if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), command) {
			t.Errorf("got %v, want an error with %q and without its value", err, command)
		}
	}
}

// The caller tells a shortage of this machine from a failure of the upstream.
func TestExec_FailuresOfForkStayRecognizable(t *testing.T) {
	t.Setenv("PROBE_SECRET", "/bin/hunter2")
	p := new(Exec)
	p.secrets.Learn("{env.PROBE_SECRET}")
	output := new(head)
	for _, written := range []string{"", "some output"} {
		if _, err := output.Write([]byte(written)); err != nil {
			t.Fatal(err)
		}
		err := p.failure(&os.PathError{Op: "fork/exec", Path: "/bin/hunter2", Err: syscall.EAGAIN}, output)
		if !errors.Is(err, syscall.EAGAIN) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("got %v, want %v without a value", err, syscall.EAGAIN)
		}
	}
}
