// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// operated is a site over upstreams that are checked often.
func operated(upstreams ...string) string {
	return fmt.Sprintf("reverse_proxy %s {\n\t\tlb_policy alive {\n\t\t\tname shop\n\t\t\tcheck http / {\n\t\t\t\tinterval 100ms\n\t\t\t\tfast_interval 50ms\n\t\t\t}\n\t\t}\n\t}", strings.Join(upstreams, " "))
}

// inTerminal runs a command of Caddy in a terminal of that width for at most a while,
// and returns what the terminal gets.
func (c *instance) inTerminal(columns int, during time.Duration, args ...string) string {
	c.t.Helper()
	script, err := exec.LookPath("script")
	if err != nil {
		c.t.Skip("skipped, for script (Debian package bsdutils) is not installed")
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), during)
	defer cancel()
	inner := fmt.Sprintf("stty cols %d; exec %s alive %s --address %s", columns, c.caddy, strings.Join(args, " "), c.admin)
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

// In a terminal, the table has colours and fits; --watch draws it anew in place.
// Elsewhere it is plain text.
func TestStatusInATerminal(t *testing.T) {
	up, down := startBackend(t), startBackend(t)
	down.sick.Store(true)
	c := startCaddy(t, t.TempDir(), "", operated(up.addr, down.addr))
	eventually(t, "all have a verdict", func() bool {
		modes := c.modes()
		return modes[up.addr] == "ready up" && modes[down.addr] == "ready down"
	})
	const red, green, home = "\x1b[31mdown", "\x1b[32mup", "\x1b[H\x1b[2J"
	for _, columns := range []int{60, 80, 200} {
		shown := c.inTerminal(columns, patience, "status")
		if !strings.Contains(shown, red) || !strings.Contains(shown, green) || strings.Contains(shown, home) {
			t.Errorf("%d columns: no colours, or it clears the screen: %q", columns, shown)
		}
		for line := range strings.Lines(regexp.MustCompile(`\x1b\[[0-9;]*m`).ReplaceAllString(shown, "")) {
			if n := len([]rune(strings.TrimRight(line, "\r\n"))); n > columns {
				t.Errorf("%d columns: a line of %d: %q", columns, n, line)
			}
		}
	}
	if n := strings.Count(c.inTerminal(100, 3500*time.Millisecond, "status", "--watch"), home); n < 3 || n > 4 {
		t.Errorf("--watch drew %d times in 3.5 s, want once a second", n)
	}
	if out, _, _ := c.run("status", "--address", c.admin); strings.Contains(out, "\x1b") || !strings.Contains(out, down.addr) {
		t.Errorf("not in a terminal: %q", out)
	}
}

// Where the admin API is a unix socket, the command finds it there by the config.
func TestCommandOverAUnixSocket(t *testing.T) {
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
			return status == 0 && strings.Contains(out, up.addr+"  up")
		})
		if out, errs, status := c.run(append([]string{"drain", up.addr}, by...)...); status != 0 || out != up.addr+": drain\n" {
			t.Errorf("%v: status %d, %s%s", by, status, out, errs)
		}
	}
}

// The script of the example, as it is but for the addresses: it replaces one upstream
// after the other, and stops where one does not come back.
func TestDeployScript(t *testing.T) {
	blue, green := startBackend(t), startBackend(t)
	c := startCaddy(t, t.TempDir(), "", operated(blue.addr, green.addr))
	eventually(t, "all are up", func() bool { return c.modes()[blue.addr] == "ready up" && c.modes()[green.addr] == "ready up" })
	text, err := os.ReadFile("../examples/blue-green/deploy.sh")
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for name, script := range map[string]string{
		"deploy.sh": strings.NewReplacer("blue:8080", blue.addr, "green:8080", green.addr).Replace(string(text)),
		"caddy":     fmt.Sprintf("#!/bin/sh\nexec %s \"$@\" --address %s\n", c.caddy, c.admin), // not at the usual port
		"replace":   "#!/bin/sh\ncaddy alive status | grep \"$1\" >> replaced\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	deploy := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		command := exec.CommandContext(ctx, "./deploy.sh", "./replace")
		command.Dir = folder
		command.Env = append(os.Environ(), "PATH="+folder+":"+os.Getenv("PATH"), "XDG_DATA_HOME="+c.folder, "XDG_CONFIG_HOME="+c.folder)
		out, err := command.CombinedOutput()
		t.Logf("%s", out)
		return err
	}
	if err := deploy(); err != nil {
		t.Fatal(err)
	}
	replaced, err := os.ReadFile(filepath.Join(folder, "replaced"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(replaced)), "\n")
	for i, addr := range []string{blue.addr, green.addr} {
		if len(lines) != 2 || !strings.HasPrefix(lines[i], addr) || !strings.Contains(lines[i], "drain") {
			t.Fatalf("while they were replaced: %q", lines)
		}
	}
	if modes := c.modes(); modes[blue.addr] != "ready up" || modes[green.addr] != "ready up" {
		t.Errorf("afterwards: %v", modes)
	}

	// one that stays sick is not put back, and the next one is not touched
	if err := os.WriteFile(filepath.Join(folder, "replace"), []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := deploy(); err == nil {
		t.Error("the script goes on when the upstream could not be replaced")
	}
	if modes := c.modes(); modes[blue.addr] != "drain up" || modes[green.addr] != "ready up" {
		t.Errorf("after one could not be replaced: %v", modes)
	}
}
