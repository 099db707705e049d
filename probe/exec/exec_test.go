// SPDX-License-Identifier: Apache-2.0

package exec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/probe"
)

const (
	// short is the timeout of probes that are expected to time out.
	short = 500 * time.Millisecond
	// long is the timeout of probes that are expected to end before it.
	long = 30 * time.Second
	// grace is how much later than its timeout a probe may end. It is large, so that no
	// test fails on a busy machine: the tests look for probes that never end.
	grace = 10 * time.Second
)

var app = probe.Upstream{At: "app1:8080"}

// load provisions a command.
func load(t *testing.T, command string, args ...string) *Exec {
	t.Helper()
	p := &Exec{Command: command, Args: args}
	if err := p.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	return p
}

// shell provisions a shell script.
func shell(t *testing.T, script string) *Exec {
	t.Helper()
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("the test is a script for a Unix shell:", err)
	}
	return load(t, "/bin/sh", "-c", strings.NewReplacer("{", `\{`, "}", `\}`).Replace(script))
}

// run probes once. It ends the test if the probe does not return after its timeout.
func run(t *testing.T, p *Exec, up probe.Upstream, timeout time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	return testkit.Wait(t, start(ctx, p, up), timeout+grace)
}

// start probes in the background.
func start(ctx context.Context, p *Exec, up probe.Upstream) <-chan error {
	result := make(chan error, 1)
	go func() { result <- p.Probe(ctx, up) }()
	return result
}

// The exit status decides. The reason has it, with what the command wrote to both
// outputs, in one line.
func TestExec_ExitStatusDecides(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ script, want string }{
		{"exit 0", ""},
		{"echo all is well; echo hm >&2", ""},
		{"exit 3", "exit status 3"},
		{"echo database is gone; exit 3", "exit status 3: database is gone"},
		{"echo one; echo '  two\t three' >&2; echo; exit 1", "exit status 1: one two three"},
		{"kill -KILL $$", "signal: killed"},
		{"no-such-command 2>/dev/null", "exit status 127"},
		{"cat; exit 4", "exit status 4"}, // there is no input to wait for
	} {
		if got := text(run(t, shell(t, test.script), app, long)); got != test.want {
			t.Errorf("%s: got %q, want %q", test.script, got, test.want)
		}
	}
}

// A command gets the address that is probed, whatever Caddy's own environment says, and
// the rest of that environment. Arguments are passed without a shell, with global
// placeholders resolved once.
func TestExec_CommandGetsAddressEnvironmentAndArguments(t *testing.T) {
	t.Setenv("ALIVE_UPSTREAM", "of Caddy itself")
	t.Setenv("EXEC_SHELL", "/bin/sh")
	t.Setenv("EXEC_VALUE", "a b $HOME {env.EXEC_SHELL}")
	if runtime.GOOS == "windows" {
		t.Skip("the test is a script for a Unix shell")
	}
	p := load(t, "{env.EXEC_SHELL}", "-c", `[ "$1" = "<$EXEC_VALUE>" ] || exit 2; echo "$ALIVE_UPSTREAM|$EXEC_VALUE|$0|$1|$2|$#"; exit 1`, "zero", "<{env.EXEC_VALUE}>", `*;\{x\}`, "")
	for _, address := range []string{"app1:8080", "unix//run/app.sock"} {
		want := "exit status 1: " + address + "|{env.EXEC_VALUE}|zero|<{env.EXEC_VALUE}>|*;{x}|3" // as written
		if got := text(run(t, p, probe.Upstream{At: address}, long)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A command that cannot be run is an error when the config is loaded.
func TestExec_ProvisionRejectsInvalidCommand(t *testing.T) {
	t.Setenv("EXEC_EMPTY", "")
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const (
		must   = "command must be a program that can be executed: "
		global = "; only global placeholders, such as {env.*}, can be used in a check"
	)
	for _, test := range []struct {
		p    Exec
		want string // the beginning
	}{
		{Exec{}, "an exec check needs a command"},
		{Exec{Command: "no-such-command"}, must + `exec: "no-such-command": executable file not found in `},
		{Exec{Command: filepath.Join(dir, "nothing")}, must + fmt.Sprintf("exec: %q: ", filepath.Join(dir, "nothing"))},
		{Exec{Command: dir}, must + fmt.Sprintf("exec: %q: ", dir)},
		{Exec{Command: file}, must + fmt.Sprintf("exec: %q: ", file)},
		{Exec{Command: "{env.EXEC_EMPTY}"}, "command: evaluated placeholder {env.EXEC_EMPTY} is empty" + global},
		{Exec{Command: "{http.request.host}"}, "command: unrecognized placeholder {http.request.host}" + global},
		{Exec{Command: os.Args[0], Args: []string{"a", "{http.request.host}"}}, "args: position 1: unrecognized placeholder {http.request.host}" + global},
	} {
		err := test.p.Provision(caddy.Context{})
		if got := text(err); got == "" || !strings.HasPrefix(got, test.want) {
			t.Errorf("%+v: got %q, want %q", test.p, got, test.want)
		}
	}
}

// A program that is missing at the time of a probe fails it with a reason.
func TestExec_MissingProgramFailsTheProbe(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("the program is a Unix script")
	}
	file := filepath.Join(t.TempDir(), "check")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := load(t, file)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := run(t, p, app, long); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want %v", err, os.ErrNotExist)
	}
}

// However much a command writes, little of it is kept, and the command is not blocked.
func TestExec_OutputIsBounded(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		script  string
		timeout time.Duration
		want    string // the beginning
		whole   int    // the length
	}{
		{"i=0; while [ $i -lt 4000 ]; do echo abcdefghi; i=$((i+1)); done; exit 5", long, "exit status 5: abcdefghi abcdefghi", maxOutput},
		{"while :; do echo abcdefghi; done", 4 * short, context.DeadlineExceeded.Error() + ": abcdefghi abcdefghi", maxOutput},
		{"while :; do echo abcdefghi >&2; done", 4 * short, context.DeadlineExceeded.Error() + ": abcdefghi abcdefghi", maxOutput},
	} {
		got := text(run(t, shell(t, test.script), app, test.timeout))
		if !strings.HasPrefix(got, test.want) || len(got) > 2*test.whole {
			t.Errorf("%s: got %d bytes that begin with %.80q, want %q and %d bytes or so", test.script, len(got), got, test.want, test.whole)
		}
	}
}

// The beginning is kept, as much as fits.
func TestHead_KeepsTheBeginning(t *testing.T) {
	t.Parallel()
	h := new(head)
	var all []byte
	for i := range 3 * maxOutput / 7 {
		part := fmt.Appendf(nil, "%07d", i)[:7]
		if n, err := h.Write(part); n != len(part) || err != nil {
			t.Fatalf("got %d, %v; want %d: a short write would end the command's pipe", n, err, len(part))
		}
		all = append(all, part...)
	}
	if !bytes.Equal(h.kept, all[:maxOutput]) {
		t.Errorf("%d bytes are kept, want the first %d", len(h.kept), maxOutput)
	}
}

// At the deadline, or when the probe is canceled, the command and the processes that it
// started are killed, even if they ignore signals, and the probe returns.
func TestExec_EndKillsTheProcessGroup(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("looks for processes in /proc, which is Linux only")
	}
	for name, script := range map[string]string{
		"alone":               `echo $$ >>"$PIDS"; exec sleep 1000`,
		"children":            `echo $$ >>"$PIDS"; for i in 1 2 3; do sleep 1000 & echo $! >>"$PIDS"; done; wait`,
		"grandchildren":       `echo $$ >>"$PIDS"; (echo $$ >>"$PIDS"; sleep 1000 & echo $! >>"$PIDS"; sleep 1000) & echo $! >>"$PIDS"; wait`,
		"ignores signals":     `trap '' TERM INT HUP; echo $$ >>"$PIDS"; while :; do sleep 1000 & echo $! >>"$PIDS"; wait; done`,
		"says why, and waits": `echo too slow; echo $$ >>"$PIDS"; exec sleep 1000`,
	} {
		for _, want := range []error{context.DeadlineExceeded, context.Canceled} {
			t.Run(name+"/"+want.Error(), func(t *testing.T) {
				t.Parallel()
				file := filepath.Join(t.TempDir(), "pids")
				p := shell(t, `PIDS=`+file+`; `+script)
				lines := strings.Count(script, `>>"$PIDS"`) // at least so many
				limit := 4 * short
				if want == context.Canceled {
					limit = 10 * grace
				}
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				result := start(ctx, p, app)
				testkit.Eventually(t, grace, "the command runs", func() bool {
					data, _ := os.ReadFile(file)
					return bytes.Count(data, []byte("\n")) >= lines || ctx.Err() != nil
				})
				if want == context.Canceled {
					cancel()
				}
				err := testkit.Wait(t, result, limit+grace)
				if !errors.Is(err, want) {
					t.Errorf("got %v, want %v", err, want)
				}
				if got := text(err); strings.Contains(script, "too slow") && got != want.Error()+": too slow" {
					t.Errorf("got %q, want what the command wrote", got)
				}
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				for pid := range strings.FieldsSeq(string(data)) {
					testkit.Eventually(t, grace, "the end of process "+pid, func() bool { return !runs(t, pid) })
				}
				if left := withArgument(t, file); len(left) > 0 {
					testkit.Eventually(t, grace, "the end of "+strings.Join(left, " "), func() bool { return len(withArgument(t, file)) == 0 })
				}
			})
		}
	}
}

// runs reports whether a process exists and is not a zombie. It stays a zombie if no
// process of the machine collects orphans.
func runs(t *testing.T, pid string) bool {
	t.Helper()
	if _, err := strconv.Atoi(pid); err != nil {
		t.Fatalf("%q is no process", pid)
	}
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := bytes.Cut(stat, []byte(") "))
	return len(after) > 0 && after[0] != 'Z' && after[0] != 'X'
}

// withArgument returns the processes whose command line has a text in it.
func withArgument(t *testing.T, text string) (pids []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if line, err := os.ReadFile(file); err == nil && bytes.Contains(line, []byte(text)) {
			pids = append(pids, filepath.Base(filepath.Dir(file)))
		}
	}
	return pids
}

// A command that succeeds passes soon, even if a process that it started keeps its
// output open; that process keeps running. A command that fails stays failed.
func TestExec_BackgroundProcessDelaysNothing(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]string{0: "", 3: "exit status 3: started"} {
		file := filepath.Join(t.TempDir(), "pid")
		p := shell(t, fmt.Sprintf(`echo started; sleep 1000 & echo $! >%s; exit %d`, file, status))
		t.Cleanup(func() {
			data, err := os.ReadFile(file)
			if err != nil {
				return
			}
			if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
				if process, err := os.FindProcess(pid); err == nil {
					process.Kill()
				}
			}
		})
		began := time.Now()
		if got := text(run(t, p, app, 10*grace)); got != want {
			t.Errorf("status %d: got %q, want %q", status, got, want)
		}
		if took := time.Since(began); took > grace {
			t.Errorf("status %d: took %s, want about %s", status, took, lingering)
		}
		if runtime.GOOS == "linux" {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if pid := strings.TrimSpace(string(data)); !runs(t, pid) {
				t.Errorf("status %d: process %s was killed, want it left alone", status, pid)
			}
		}
	}
}

// A probe whose context has ended starts nothing.
func TestExec_EndedContextStartsNothing(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "ran")
	p := shell(t, "touch "+file)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := testkit.Wait(t, start(ctx, p, app), grace); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the command ran")
	}
}

// One probe is used for many upstreams at once: none gets the address or the output of
// another.
func TestExec_ConcurrentProbesShareNothing(t *testing.T) {
	t.Parallel()
	p := shell(t, `echo "$ALIVE_UPSTREAM"; exit 1`)
	results := make(map[string]<-chan error)
	for i := range 8 {
		address := fmt.Sprintf("app%d:80", i)
		results[address] = start(t.Context(), p, probe.Upstream{At: address})
	}
	for address, result := range results {
		if got, want := text(testkit.Wait(t, result, long)), "exit status 1: "+address; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
