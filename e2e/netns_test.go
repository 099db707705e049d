// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hosts are network namespaces, each but one with a cable to the one in the
// middle.
type hosts struct {
	t      *testing.T
	prefix string
	names  []string
}

// newHosts makes them, and lays cables from "caddy" to the others: host i of them has the address
// 10.77.i.2, and finds caddy at 10.77.i.1.
func newHosts(t *testing.T, others ...string) *hosts {
	n := &hosts{t: t, prefix: fmt.Sprintf("alive%d", os.Getpid())}
	for _, tool := range []string{"ip", "tc", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			skip(t, "%s is not installed", tool)
		}
	}
	if out, err := n.command(t.Context(), "", "ip", "netns", "add", n.name("caddy")).CombinedOutput(); err != nil {
		skip(t, "network namespaces are not permitted here: %s", bytes.TrimSpace(out))
	}
	n.names = []string{"caddy"}
	t.Cleanup(func() {
		for _, host := range n.names {
			_ = exec.Command("ip", "netns", "del", n.name(host)).Run()
		}
	})
	n.must("caddy", "ip link set lo up")
	for i, host := range others {
		n.must("", "ip netns add "+n.name(host))
		n.names = append(n.names, host)
		n.must("caddy", fmt.Sprintf("ip link add to-%s type veth peer name eth netns %s", host, n.name(host)))
		n.must("caddy", fmt.Sprintf("ip addr add 10.77.%d.1/24 dev to-%s", i, host))
		n.must("caddy", "ip link set to-"+host+" up")
		n.must(host, fmt.Sprintf("ip addr add 10.77.%d.2/24 dev eth", i))
		n.must(host, "ip link set lo up")
		n.must(host, "ip link set eth up")
	}
	return n
}

func (n *hosts) name(host string) string { return n.prefix + "-" + host }

// command is a command at a host, or at this one if it is "".
func (n *hosts) command(ctx context.Context, host string, args ...string) *exec.Cmd {
	if host != "" {
		args = append([]string{"ip", "netns", "exec", n.name(host)}, args...)
	}
	return exec.CommandContext(ctx, args[0], args[1:]...)
}

// must runs a command at a host, which must succeed.
func (n *hosts) must(host, command string) string {
	n.t.Helper()
	out, err := n.command(n.t.Context(), host, strings.Fields(command)...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %s: %v: %s", host, command, err, out)
	}
	return string(out)
}

// run runs a server at a host until the test ends.
func (n *hosts) run(host, folder string, args ...string) {
	n.t.Helper()
	command := n.command(n.t.Context(), host, args...)
	command.Env = append(os.Environ(), "XDG_DATA_HOME="+folder, "XDG_CONFIG_HOME="+folder)
	if err := command.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
}

// ask asks so many times, one after the other, and counts who answers.
func (n *hosts) ask(times int) map[string]int {
	n.t.Helper()
	counts := make(map[string]int)
	for line := range strings.Lines(n.must("client", fmt.Sprintf(`curl -s --max-time 20 -w \n%%{http_code}\n http://10.77.0.1:8080/[1-%d]`, times))) {
		if line = strings.TrimSpace(line); line != "" {
			counts[line]++
		}
	}
	return counts
}

// Between hosts, a partition costs no request: who cannot be reached is found out, and
// returns when the cable does. Loss and delay take nobody down.
func TestSeveralHosts(t *testing.T) {
	caddy, err := build()
	if err != nil {
		t.Fatal(err)
	}
	n := newHosts(t, "client", "one", "two")
	folder := t.TempDir()
	for i, host := range []string{"one", "two"} {
		n.run(host, filepath.Join(folder, host), caddy, "respond", "--listen", fmt.Sprintf("10.77.%d.2:80", i+1), "--body", host)
	}
	config := filepath.Join(folder, "Caddyfile")
	text := `{
	persist_config off
	auto_https off
}
http://10.77.0.1:8080 {
	reverse_proxy 10.77.1.2:80 10.77.2.2:80 {
		lb_policy alive {
			check http / {
				interval 500ms
				timeout 500ms
			}
		}
		lb_retries 2
		transport http {
			dial_timeout 1s
			response_header_timeout 2s
		}
	}
}
`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n.run("caddy", folder, caddy, "run", "--config", config)
	status := func(upstream string) string {
		out, err := n.command(t.Context(), "caddy", caddy, "alive", "status", "--json").Output()
		if err != nil {
			return ""
		}
		var entries []struct{ Upstream, Status string }
		if err := json.Unmarshal(out, &entries); err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Upstream == upstream {
				return e.Status
			}
		}
		return ""
	}
	const one, two = "10.77.1.2:80", "10.77.2.2:80"
	eventually(t, "both are up", func() bool { return status(one) == "up" && status(two) == "up" })
	if got := n.ask(100); got["200"] != 100 || got["one"] != 50 || got["two"] != 50 {
		t.Errorf("all is well: %v", got)
	}

	n.must("one", "ip link set eth down")
	began := time.Now()
	if got := n.ask(300); got["200"] != 300 {
		t.Errorf("one is cut off: %v", got)
	}
	eventually(t, "one is down", func() bool { return status(one) == "down" })
	// an interval with its jitter, and three probes
	if took, bound := time.Since(began), 550*time.Millisecond+3*550*time.Millisecond+time.Second; took > bound+2*time.Second {
		t.Errorf("it took %v, want %v and what the requests took", took, bound)
	}
	if got := n.ask(100); got["200"] != 100 || got["two"] != 100 {
		t.Errorf("one is known to be cut off: %v", got)
	}
	n.must("one", "ip link set eth up")
	eventually(t, "one is back", func() bool { return status(one) == "up" })
	if got := n.ask(100); got["200"] != 100 || got["one"] != 50 {
		t.Errorf("one is back: %v", got)
	}

	t.Run("loss and delay", func(t *testing.T) {
		if out, err := n.command(t.Context(), "one", "tc", "qdisc", "add", "dev", "eth", "root", "netem", "loss", "5%", "delay", "20ms", "5ms").CombinedOutput(); err != nil {
			skip(t, "this kernel cannot make them: %s", bytes.TrimSpace(out))
		}
		if got := n.ask(200); got["200"] != 200 || got["one"] == 0 {
			t.Errorf("answers %v", got)
		}
		if got := status(one); got != "up" {
			t.Errorf("it is %s", got)
		}
	})
}
