// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// operated returns a site with upstreams that are checked often.
func operated(upstreams ...string) string {
	return fmt.Sprintf("reverse_proxy %s {\n\t\tlb_policy alive {\n\t\t\tname shop\n\t\t\tcheck http / {\n\t\t\t\tinterval 100ms\n\t\t\t\tfast_interval 50ms\n\t\t\t}\n\t\t\tretries off\n\t\t}\n\t}", strings.Join(upstreams, " "))
}

// inTerminal runs a command of Caddy in a terminal of this size, for this time at most, and
// returns what the terminal receives.
func (c *instance) inTerminal(columns, lines int, during time.Duration, args ...string) string {
	c.t.Helper()
	script, err := exec.LookPath("script")
	if err != nil {
		skip(c.t, "script (Debian package bsdutils) is not installed")
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), during)
	defer cancel()
	inner := fmt.Sprintf("stty cols %d rows %d; exec %s alive %s --address %s", columns, lines, c.caddy, strings.Join(args, " "), c.admin)
	command := exec.CommandContext(ctx, script, "-qec", inner, filepath.Join(c.t.TempDir(), "typescript"))
	command.Env = append(os.Environ(), "TERM=xterm", "NO_COLOR=", "XDG_DATA_HOME="+c.folder, "XDG_CONFIG_HOME="+c.folder)
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.WaitDelay = patience
	out, err := command.CombinedOutput()
	if err != nil && ctx.Err() == nil {
		c.t.Errorf("%v: %s", err, out)
	}
	return string(out)
}

// In a terminal the table has colours and fits, and --watch draws it again in place.
// Otherwise it is plain text.
func TestStatus_FitsTheTerminal(t *testing.T) {
	up, down := startBackend(t), startBackend(t)
	down.sick.Store(true)
	c := startCaddy(t, t.TempDir(), "", operated(up.addr, down.addr))
	eventually(t, "all have a verdict", func() bool {
		modes := c.modes()
		return modes[up.addr] == "ready up" && modes[down.addr] == "ready down"
	})
	const red, green, home = "\x1b[31mdown", "\x1b[32mup", "\x1b[H"
	for _, columns := range []int{60, 80, 200} {
		shown := c.inTerminal(columns, 24, patience, "status")
		if !strings.Contains(shown, red) || !strings.Contains(shown, green) || strings.Contains(shown, home) {
			t.Errorf("%d columns: no colours, or it clears the screen: %q", columns, shown)
		}
		for line := range strings.Lines(regexp.MustCompile(`\x1b\[[0-9;]*m`).ReplaceAllString(shown, "")) {
			if n := len([]rune(strings.TrimRight(line, "\r\n"))); n > columns {
				t.Errorf("%d columns: a line of %d: %q", columns, n, line)
			}
		}
	}
	time.AfterFunc(2500*time.Millisecond, sync.OnceFunc(func() { _ = syscall.Kill(c.pid, syscall.SIGKILL) }))
	watched := c.inTerminal(100, 4, 5500*time.Millisecond, "status", "--watch")
	if n := strings.Count(watched, home); n < 4 || n > 7 {
		t.Errorf("--watch drew %d times in 5.5 s, want once a second", n)
	}
	if !strings.Contains(watched, "!! this is how it was ") || !strings.Contains(watched, ": cannot reach Caddy") {
		t.Errorf("--watch does not go on when Caddy is gone: %q", watched)
	}
	for drawn := range strings.SplitSeq(watched, home) {
		drawn, _, _ = strings.Cut(drawn, "\nSession terminated") // printed by the program script
		if strings.Count(drawn, "\n") > 3 {                      // the cursor is in the last line
			t.Errorf("--watch scrolls: %q", drawn)
		}
	}
	c.stop()
	c.start()
	if out, _, _ := c.run("status", "--address", c.admin); strings.Contains(out, "\x1b") || !strings.Contains(out, down.addr) {
		t.Errorf("not in a terminal: %q", out)
	}
}

// If the admin API is at a unix socket, the command finds it by the config.
func TestCommand_FindsAUnixSocketByTheConfig(t *testing.T) {
	up := startBackend(t)
	socket := filepath.Join(t.TempDir(), "admin.sock")
	c := startCaddy(t, t.TempDir(), "", operated(up.addr))
	c.stop()
	text, err := os.ReadFile(c.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.config, []byte(strings.Replace(string(text), "admin "+c.admin, "admin unix/"+socket, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	c.start()
	for _, by := range [][]string{{"--address", "unix/" + socket}, {"--config", c.config}} {
		eventually(t, fmt.Sprintf("%v: the status", by), func() bool {
			out, _, status := c.run(append([]string{"status"}, by...)...)
			return status == 0 && strings.Contains(out, up.addr+"  ") && strings.Contains(out, "1 upstream in 1 pool")
		})
		if out, errs, status := c.run(append([]string{"drain", up.addr}, by...)...); status != 0 || out != up.addr+": drain\n" {
			t.Errorf("%v: status %d, %s%s", by, status, out, errs)
		}
	}
}

// respond starts a deployed upstream: a process that answers with its version.
func respond(t *testing.T, folder, addr string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), filepath.Join(folder, "start"), addr, "old")
	command.Dir = folder
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// The script of the example, with other addresses, replaces one process after the
// other. Each is gone long enough to be noticed, while clients send requests all the
// time, and no request fails. The script stops if a process does not come back.
func TestDeployScript_FailsNoRequest(t *testing.T) {
	blue, green := fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	c := startCaddy(t, t.TempDir(), "", operated(blue, green))
	text, err := os.ReadFile("../examples/blue-green/deploy.sh")
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for name, script := range map[string]string{
		"deploy.sh": strings.NewReplacer("blue:8080", blue, "green:8080", green).Replace(string(text)),
		"caddy":     fmt.Sprintf("#!/bin/sh\nexec %s \"$@\" --address %s\n", c.caddy, c.admin), // at another port than usual
		// it ends by itself, even if the test does not stop it
		"start":   fmt.Sprintf("#!/bin/sh\nXDG_DATA_HOME=. XDG_CONFIG_HOME=. timeout 120 %s respond --listen \"$1\" \"$2\" >\"log-$1\" 2>&1 &\necho $! >\"pid-$1\"\n", c.caddy),
		"stop":    "#!/bin/sh\nkill \"$(cat \"pid-$1\")\"\n",
		"replace": "#!/bin/sh\nset -e\n./stop \"$1\"\nsleep 2\n./start \"$1\" new\n",
		"break":   "#!/bin/sh\nexit 1\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, addr := range []string{blue, green} {
		respond(t, folder, addr)
		t.Cleanup(func() {
			command := exec.Command(filepath.Join(folder, "stop"), addr)
			command.Dir = folder
			if out, err := command.CombinedOutput(); err != nil {
				t.Errorf("stopping %s: %v: %s", addr, err, out)
			}
		})
	}
	eventually(t, "all are up", func() bool { return c.modes()[blue] == "ready up" && c.modes()[green] == "ready up" })

	deploy := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
		defer cancel()
		command := exec.CommandContext(ctx, "./deploy.sh", args...)
		command.Dir = folder
		command.Env = append(os.Environ(), "PATH="+folder+":"+os.Getenv("PATH"), "XDG_DATA_HOME="+c.folder, "XDG_CONFIG_HOME="+c.folder)
		out, err := command.CombinedOutput()
		t.Logf("%s", out)
		return string(out), err
	}
	if out, err := deploy(); err == nil || !strings.HasPrefix(out, "usage: ") {
		t.Errorf("without a command: %s", out)
	}
	var failed failures
	asked, stop := c.startClients(&failed)
	_, err = deploy("./replace")
	stop()
	if err != nil {
		t.Fatal(err)
	}
	if len(failed.all) > 0 || asked.Load() < 1000 {
		t.Errorf("of %d requests, %d failed: %v", asked.Load(), len(failed.all), errors.Join(failed.all[:min(5, len(failed.all))]...))
	}
	t.Logf("%d requests", asked.Load())
	if modes := c.modes(); modes[blue] != "ready up" || modes[green] != "ready up" {
		t.Errorf("afterwards: %v", modes)
	}
	if answered := c.answers(10); answered["new"] != 10 {
		t.Errorf("afterwards: %v", answered)
	}

	// one that could not be replaced stays in drain, and the next one is not touched
	if out, err := deploy("./break"); err == nil || !strings.Contains(out, blue+" stays in drain") {
		t.Errorf("the script goes on when the upstream could not be replaced: %s", out)
	}
	if modes := c.modes(); modes[blue] != "drain up" || modes[green] != "ready up" {
		t.Errorf("after one could not be replaced: %v", modes)
	}
}
