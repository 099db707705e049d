// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	pythonServer = `
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"small")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
`
	uwsgiApp = `
def application(env, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"small"]
`
)

// startSmall runs a server that serves one connection at a time, and keeps it as long
// as its client does. It returns the address.
func startSmall(t *testing.T, server string) string {
	t.Helper()
	path, err := exec.LookPath(server)
	if err != nil {
		skip(t, "%s is not installed", server)
	}
	port := freePort(t)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	script := filepath.Join(t.TempDir(), "small.py")
	text, args := pythonServer, []string{script, fmt.Sprint(port)}
	if server == "uwsgi" {
		text, args = uwsgiApp, []string{"--plugin", "python3", "--http11-socket", address, "--need-app", "--wsgi-file", script}
	}
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(path, args...)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		if log.Close(); t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s says:\n%s", server, text)
		}
	})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	eventually(t, server+" serves", func() bool {
		response, err := client.Get("http://" + address)
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	return address
}

// startSmallSite runs Caddy in front of two such servers. Caddy keeps no connections
// for requests, as the README recommends.
func startSmallSite(t *testing.T, server, check string) *instance {
	t.Helper()
	site := fmt.Sprintf("reverse_proxy %s %s {\nlb_policy alive %s\ntransport http {\nkeepalive off\n}\n}", startSmall(t, server), startSmall(t, server), check)
	return startCaddy(t, t.TempDir(), "", site)
}

// slow sends n requests with a pause between them, and returns those that took longer
// than a second or failed.
func (c *instance) slow(n int, pause time.Duration) (slow []string) {
	c.t.Helper()
	client := &http.Client{Timeout: 5 * time.Second}
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for i := range n {
		began := time.Now()
		answer := ""
		response, err := client.Get("http://" + c.site)
		if err == nil {
			var body []byte
			body, err = io.ReadAll(response.Body)
			response.Body.Close()
			answer = fmt.Sprintf("%d %s", response.StatusCode, body)
		}
		if took := time.Since(began); err != nil || answer != "200 small" || took > time.Second {
			slow = append(slow, fmt.Sprintf("request %d after %v: %q, %v", i+1, took, answer, err))
			if len(slow) == 3 {
				return slow
			}
		}
		<-ticker.C
	}
	return slow
}

// Probes do not occupy servers that serve one connection at a time: of 60 requests in
// 20 s at most one takes longer than a second, since the machine may be busy, and both servers
// stay up.
func TestSmallServers_AreNotOccupiedByProbes(t *testing.T) {
	t.Parallel()
	for _, server := range []string{"python3", "uwsgi"} {
		t.Run(server, func(t *testing.T) {
			t.Parallel()
			c := startSmallSite(t, server, "/healthz")
			if slow := c.slow(60, time.Second/3); len(slow) > 1 {
				t.Errorf("slow or failed:\n%s", strings.Join(slow, "\n"))
			}
			if log := c.log(); strings.Contains(log, "upstream is down") {
				t.Error("one was down")
			}
			for upstream, mode := range c.modes() {
				if mode != "ready up" {
					t.Errorf("%s: got %s, want it up", upstream, mode)
				}
			}
		})
	}
}

// With keep_connection they do, and so it is not the default.
func TestSmallServers_AreOccupiedByKeptConnections(t *testing.T) {
	t.Parallel()
	for _, server := range []string{"python3", "uwsgi"} {
		t.Run(server, func(t *testing.T) {
			t.Parallel()
			c := startSmallSite(t, server, "{\ncheck http /healthz {\nkeep_connection\n}\n}")
			if slow := c.slow(10, 100*time.Millisecond); len(slow) == 0 {
				t.Error("no request was slow or failed")
			}
		})
	}
}
