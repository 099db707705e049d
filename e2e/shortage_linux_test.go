// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	// shortFor is how long a shortage lasts: long enough to turn an upstream down many
	// times, if its failed probes counted.
	shortFor = 3 * time.Second
	// scarce is how many descriptors or ports there are.
	scarce = 40
	// shortSite does not fail open, so a wrong verdict is a 503.
	shortSite = `{
	admin %[1]s
	metrics
	persist_config off
	auto_https off
}
http://%[2]s {
	reverse_proxy %[3]s {
		lb_policy alive {
			check http /healthz {
				interval 100ms
			}
			fail_open off
		}
	}
}
`
)

// short is Caddy in front of two upstreams, before a shortage.
type short struct {
	*instance
	t         *testing.T
	upstreams []string
	asking    *http.Client // has a connection to the site already
}

// startShort starts it. Listen and dial say at which host it runs.
func startShort(t *testing.T, listen func(address string) net.Listener, dial dialer, inside func(*exec.Cmd) *exec.Cmd) *short {
	t.Helper()
	caddy, err := build()
	if err != nil {
		t.Fatal(err)
	}
	s := &short{t: t, instance: &instance{t: t, caddy: caddy, folder: t.TempDir(), inside: inside}}
	s.admin, s.site = fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	for range 2 {
		listener := listen(fmt.Sprintf("127.0.0.1:%d", freePort(t)))
		s.upstreams = append(s.upstreams, listener.Addr().String())
		server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, listener.Addr())
		})}
		t.Cleanup(func() { server.Close() })
		go func() { _ = server.Serve(listener) }()
	}
	s.config = filepath.Join(s.folder, "Caddyfile")
	if err := os.WriteFile(s.config, fmt.Appendf(nil, shortSite, s.admin, s.site, strings.Join(s.upstreams, " ")), 0o600); err != nil {
		t.Fatal(err)
	}
	client := func() *http.Client {
		return &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: dial, MaxConnsPerHost: 1}}
	}
	s.client, s.asking = client(), client()
	s.start()
	t.Cleanup(func() { s.stop() })
	for _, upstream := range s.upstreams {
		eventually(t, upstream+" passes", func() bool { return s.results(upstream, "pass") != "0" })
	}
	for range 4 { // so that Caddy has a connection to each
		s.ask()
	}
	return s
}

// ask sends a request to the site, which must answer.
func (s *short) ask() {
	s.t.Helper()
	response, err := s.asking.Get("http://" + s.site)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK {
		s.t.Errorf("status %d: %s, %v", response.StatusCode, body, err)
	}
}

// results returns how many results of this kind the checks of an upstream had.
func (s *short) results(upstream, result string) string {
	s.t.Helper()
	response, err := s.client.Get("http://" + s.admin + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	series := fmt.Sprintf(`caddy_alive_checks_total{check="http /healthz",result=%q,upstream=%q} `, result, upstream)
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, series); found {
			return strings.TrimSpace(value)
		}
	}
	return "0"
}

// holdsOut expects the site to answer during the shortage and after it, without a
// change of status, although probes fail because of it.
func (s *short) holdsOut(release func()) {
	s.t.Helper()
	for _, upstream := range s.upstreams {
		eventually(s.t, "a probe of "+upstream+" fails by the shortage", func() bool { return s.results(upstream, "void") != "0" })
	}
	for began := time.Now(); time.Since(began) < shortFor; time.Sleep(50 * time.Millisecond) {
		s.ask()
	}
	release()
	for _, upstream := range s.upstreams {
		passed := s.results(upstream, "pass")
		eventually(s.t, upstream+" passes again", func() bool { return s.results(upstream, "pass") != passed })
	}
	log := s.log()
	if strings.Contains(log, "upstream is down") {
		s.t.Error("an upstream was turned down")
	}
	if !strings.Contains(log, "this process lacks a resource") {
		s.t.Error("the log does not name the shortage")
	}
}

// occupy makes as many connections to an address as possible, up to n.
func occupy(t *testing.T, dial dialer, address string, n int) (release func()) {
	var conns []net.Conn
	for range n {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		conn, err := dial(ctx, "tcp", address)
		cancel()
		if err != nil {
			break
		}
		conns = append(conns, conn)
	}
	release = func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
	t.Cleanup(release)
	return release
}

// If clients hold all descriptors of the process, its probes say nothing about the
// upstreams.
func TestShortage_OfDescriptorsTurnsNothingDown(t *testing.T) {
	if _, err := exec.LookPath("prlimit"); err != nil {
		skip(t, "prlimit (Debian package util-linux) is not installed")
	}
	dial := new(net.Dialer).DialContext
	s := startShort(t, func(address string) net.Listener {
		listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return listener
	}, dial, func(command *exec.Cmd) *exec.Cmd {
		return exec.Command("prlimit", append([]string{fmt.Sprintf("--nofile=%d", scarce)}, command.Args...)...)
	})
	s.holdsOut(occupy(t, dial, s.site, scarce))
}

// If all local ports are in use, probes cannot connect, which says nothing about the
// upstreams either.
func TestShortage_OfPortsTurnsNothingDown(t *testing.T) {
	n := newHosts(t)
	s := startShort(t, func(address string) net.Listener { return n.listen("caddy", address) }, n.from("caddy"), func(command *exec.Cmd) *exec.Cmd {
		return n.command(t.Context(), "caddy", command.Args...)
	})
	if err := n.at("caddy", func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", fmt.Appendf(nil, "%d %d", 50000, 50000+scarce-1), 0o600)
	}); err != nil {
		t.Fatal(err)
	}
	var releases []func()
	for _, upstream := range s.upstreams {
		releases = append(releases, occupy(t, n.from("caddy"), upstream, 2*scarce))
	}
	s.holdsOut(func() {
		for _, release := range releases {
			release()
		}
	})
}
