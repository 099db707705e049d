// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// nginx is a running nginx.
type nginx struct {
	t      testing.TB
	addr   string
	dir    string
	binary string
	cmd    *exec.Cmd
}

// startNginx runs nginx with the lines of a server block until the test ends. The
// test is skipped where there is none.
func startNginx(tb testing.TB, server string) *nginx {
	tb.Helper()
	binary, err := exec.LookPath("nginx")
	if err != nil {
		if binary, err = exec.LookPath("/usr/sbin/nginx"); err != nil {
			tb.Skip("nginx is not installed")
		}
	}
	n := &nginx{t: tb, addr: testkit.Loopback(testkit.FreePort(tb)), binary: binary, dir: tb.TempDir()}
	for _, dir := range []string{"logs", "temp"} {
		if err := os.Mkdir(filepath.Join(n.dir, dir), 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	n.configure(server)
	n.cmd = exec.Command(binary, "-p", n.dir, "-c", "nginx.conf", "-e", "logs/error.log")
	if err := n.cmd.Start(); err != nil {
		tb.Skipf("nginx cannot be started: %v", err)
	}
	tb.Cleanup(func() {
		n.signal("stop")
		done := make(chan error, 1)
		go func() { done <- n.cmd.Wait() }()
		select {
		case <-done:
		case <-time.After(testkit.Patience):
			_ = n.cmd.Process.Kill()
			<-done
		}
		if tb.Failed() {
			log, _ := os.ReadFile(filepath.Join(n.dir, "logs", "error.log"))
			tb.Logf("the log of nginx:\n%s", log)
		}
	})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testkit.Patience}
	testkit.Eventually(tb, testkit.Patience, "nginx answers", func() bool { return testkit.Ask(client, "http://"+n.addr+"/started").Err == nil })
	return n
}

// configure writes its config.
func (n *nginx) configure(server string) {
	n.t.Helper()
	temp := ""
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temp += fmt.Sprintf("%s_temp_path temp/%s;\n", kind, kind)
	}
	config := fmt.Sprintf(`
daemon off;
worker_processes 1;
pid nginx.pid;
events { worker_connections 64; }
http {
	%s
	# the connection, how many requests it had, and what for
	log_format connections '$connection $connection_requests $uri $status';
	access_log logs/access.log connections;
	server {
		listen %s;
		%s
	}
}
`, temp, n.addr, server)
	if err := os.WriteFile(filepath.Join(n.dir, "nginx.conf"), []byte(config), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// signal tells it to do something.
func (n *nginx) signal(what string) {
	n.t.Helper()
	cmd := exec.Command(n.binary, "-p", n.dir, "-c", "nginx.conf", "-e", "logs/error.log", "-s", what)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Errorf("nginx -s %s: %v: %s", what, err, out)
	}
}

// connections returns how many probes came over each connection.
func (n *nginx) connections() map[string]int {
	count := make(map[string]int)
	log, err := os.ReadFile(filepath.Join(n.dir, "logs", "access.log"))
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if fields := strings.Fields(line); len(fields) == 4 && fields[2] == "/healthz" {
			count[fields[0]]++
		}
	}
	return count
}

// probes returns how many came.
func (n *nginx) probes() (sum int) {
	for _, probes := range n.connections() {
		sum += probes
	}
	return sum
}

const nginxSite = `
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval %s
				jitter 25%%
				fails 1
				keep_connection
			}
			fail_open off
		}
	}
}`

// With keep_connection, probes of nginx share a connection if nginx keeps it, and connect
// again if nginx does not keep it, or ends it after a time or a number of requests. None
// of that is a failure.
func TestNginx_ConnectionsAreKeptOrNot(t *testing.T) {
	const answers = "location / { return 200 nginx; }\n"
	for _, test := range []struct {
		name, server, interval string
		fits                   func(connections, probes int) bool
	}{
		{"kept", "keepalive_requests 1000;", "20ms", func(connections, _ int) bool { return connections == 1 }},
		{"not kept", "keepalive_timeout 0;", "20ms", func(connections, probes int) bool { return connections == probes }},
		// which ends connections about when the next probe is sent
		{"kept for a short time", "keepalive_timeout 50ms;", "42ms", func(int, int) bool { return true }},
		{"kept for four requests", "keepalive_requests 4;", "20ms", func(connections, probes int) bool { return connections == (probes+3)/4 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := startNginx(t, test.server+"\n"+answers)
			c := testkit.StartCaddy(t, fmt.Sprintf(nginxSite, n.addr, test.interval))
			testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(n.addr) })
			testkit.Eventually(t, testkit.Patience, "it is probed again and again", func() bool { return n.probes() >= 25 })
			testkit.Shares(t, "requests", testkit.Tally(c.Client(), c.URL(), 5), map[string]int{"nginx": 5})
			c.Stop()
			connections, probes := len(n.connections()), n.probes()
			if !test.fits(connections, probes) {
				t.Errorf("got %d probes over %d connections", probes, connections)
			}
			t.Logf("%d probes over %d connections", probes, connections)
			if lines := c.Lines("upstream is down"); len(lines) > 0 {
				t.Errorf("it is down, and should not be: %+v", lines)
			}
		})
	}
}

// An error page of nginx takes the upstream down, with its status as the reason. A reload
// of nginx, which ends connections, does not.
func TestNginx_AnswersDecide(t *testing.T) {
	n := startNginx(t, "location / { return 200 nginx; }")
	c := testkit.StartCaddy(t, fmt.Sprintf(nginxSite, n.addr, "30ms"))
	client := c.Client()
	testkit.Eventually(t, testkit.Patience, "it serves", func() bool { return testkit.Ask(client, c.URL()).Body == "nginx" })
	reload := func(server string) {
		t.Helper()
		n.configure(server)
		n.signal("reload")
	}

	before := len(n.connections())
	reload("location / { return 200 again; }")
	testkit.Eventually(t, testkit.Patience, "it has other workers, which are probed", func() bool {
		return testkit.Ask(client, c.URL()).Body == "again" && len(n.connections()) > before
	})
	if lines := c.Lines("upstream is down"); len(lines) > 0 {
		t.Errorf("it is down after a reload, and should not be: %+v", lines)
	}

	reload("location / { return 200 well; }\nlocation = /healthz { return 503; }")
	testkit.Eventually(t, testkit.Patience, "it is down", func() bool { return c.Down(n.addr) })
	testkit.Settles(t, "while it is down", client, c.URL(), map[string]int{"error": 3})
	if !slices.ContainsFunc(c.Lines("upstream is down"), func(l testkit.LogLine) bool { return l.Reason == "status 503, want 2xx" }) {
		t.Errorf("lines about what is down: got %+v, want one with the status", c.Lines("upstream is down"))
	}
	reload("location / { return 200 back; }")
	testkit.Settles(t, "when it is well again", client, c.URL(), map[string]int{"back": 3})
}
