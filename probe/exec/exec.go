// SPDX-License-Identifier: Apache-2.0

// Package exec adds the kind of health check that runs a command. It is not part of the
// plugin unless a build imports it, because with it the right to change the config
// includes the right to run commands.
//
// It is also an example of a kind from another package: it imports the package probe,
// and no other package of the plugin imports it. It has no locks.
package exec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/redact"
	"github.com/caddy-alive/caddy-alive/probe"
)

func init() {
	caddy.RegisterModule(Exec{})
}

const (
	// maxOutput is how much of the output of a command is kept, in bytes.
	maxOutput = 4 << 10
	// lingering is how long to wait, after the end of a command, for the processes that it
	// left running to close its output.
	lingering = 100 * time.Millisecond
)

// Exec checks that a command succeeds, which means that its exit status is 0. If it
// fails, its output is part of the reason. The variable `ALIVE_UPSTREAM` of its
// environment is the address that is probed: that of the upstream, or the one that the
// options of the check give instead.
//
// The command runs without a shell, in the working directory of Caddy, as the same
// user. It inherits the whole environment of Caddy, with all secrets in it. To hide
// them from a command, run it by `env -i`.
//
// At the timeout the command is killed, on Unix together with the processes of its
// process group. Processes that left the group, by `setsid` for example, keep running,
// and so do those that a command left running when it ended in time.
type Exec struct {
	// The command: a path, or a name that is looked up in `PATH`. Required.
	Command string `json:"command,omitempty"`

	// Its arguments. All users of the machine can see them while the command runs.
	// Default: none.
	Args []string `json:"args,omitempty"`

	path    string
	args    []string
	secrets redact.Values // what must not be in a reason
}

// CaddyModule returns the Caddy module information.
func (Exec) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "alive.probes.exec",
		New: func() caddy.Module { return new(Exec) },
	}
}

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	exec <command> [<args...>]
func (e *Exec) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the kind
	if !d.NextArg() || d.Val() == "" {
		return d.Err("an exec check needs a command, like exec /usr/local/bin/check-app --quick")
	}
	e.Command = d.Val()
	e.Args = d.RemainingArgs()
	if d.NextBlock(0) {
		return probe.UnrecognizedOption(d, "an exec check")
	}
	return nil
}

// Provision resolves placeholders and finds the command.
func (e *Exec) Provision(_ caddy.Context) error {
	repl := caddy.NewReplacer()
	resolve := func(option, value string) (string, error) {
		e.secrets.Learn(value)
		resolved, err := repl.ReplaceOrErr(value, true, true)
		if err != nil {
			return "", fmt.Errorf("%s: %v; only global placeholders, such as {env.*}, can be used in a check", option, err)
		}
		return resolved, nil
	}
	command, err := resolve("command", e.Command)
	if err != nil {
		return err
	}
	if command == "" {
		return errors.New("an exec check needs a command")
	}
	if e.path, err = exec.LookPath(command); err != nil {
		if command != e.Command { // show it as written
			for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
				err = inner
			}
			err = fmt.Errorf("%s: %w", e.Command, err)
		}
		return fmt.Errorf("command must be a program that can be executed: %v", err)
	}
	for i, arg := range e.Args {
		arg, err := resolve(fmt.Sprintf("args: position %d", i), arg)
		if err != nil {
			return err
		}
		e.args = append(e.args, arg)
	}
	return nil
}

// Overrides returns how probes differ from proxied requests.
func (*Exec) Overrides() probe.Overrides { return probe.Overrides{NoConnection: true} }

// NoRequests says that probes send no HTTP requests.
func (*Exec) NoRequests() {}

// Probe runs the command.
func (e *Exec) Probe(ctx context.Context, up probe.Upstream) error {
	output := new(head)
	cmd := exec.CommandContext(ctx, e.path, e.args...) //nolint:gosec // the command comes from the config
	cmd.Env = append(os.Environ(), "ALIVE_UPSTREAM="+up.At)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.WaitDelay = lingering
	killWhole(cmd)
	err := cmd.Run()
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		return nil // processes that it left running are ignored
	case ctx.Err() != nil && cmd.Process != nil:
		err = ctx.Err()
	}
	return e.failure(err, output)
}

// failure adds the output of the command to an error. The error stays recognizable, for
// example that the system has too many processes.
func (e *Exec) failure(err error, output *head) error {
	if text := output.line(&e.secrets); text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return e.secrets.Error(err)
}

// String returns the check as it is shown.
func (e *Exec) String() string {
	return strings.Join(append([]string{"exec", e.Command}, e.Args...), " ")
}

// head keeps the beginning of what is written to it.
type head struct{ kept []byte }

// Write keeps as much as there is room for, and discards the rest.
func (h *head) Write(p []byte) (int, error) {
	h.kept = append(h.kept, p[:min(len(p), maxOutput-len(h.kept))]...)
	return len(p), nil
}

// line returns the output in one line, without values of placeholders.
func (h *head) line(secrets *redact.Values) string {
	return strings.Join(strings.Fields(secrets.Text(string(h.kept))), " ")
}

// Interface guards
var (
	_ probe.Prober          = (*Exec)(nil)
	_ probe.Overrider       = (*Exec)(nil)
	_ caddy.Provisioner     = (*Exec)(nil)
	_ caddyfile.Unmarshaler = (*Exec)(nil)
)
