// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
)

// Caddy runs inside the test process. There can be only one at a time, so tests that
// have one are not parallel.
type Caddy struct {
	T                   testing.TB
	Dir                 string
	httpPort, httpsPort int
	Admin               string // the address of the admin API
	Global              string // further global options
	loaded              bool
}

// StartCaddy runs Caddy with these sites of a Caddyfile until the test ends. Sites on
// `http://` and `https://localhost` are reached by its clients.
func StartCaddy(tb testing.TB, sites string) *Caddy {
	tb.Helper()
	return StartCaddyWith(tb, "", sites)
}

// StartCaddyWith is StartCaddy with further global options.
func StartCaddyWith(tb testing.TB, global, sites string) *Caddy {
	tb.Helper()
	var found []string // what an earlier test has just ended may take a moment
	if !Poll(Patience, func() bool { found = leftovers(); return len(found) == 0 }) {
		tb.Fatalf("there before Caddy started: %s", strings.Join(found, "\n"))
	}
	c := &Caddy{
		T: tb, Dir: folder(tb), Admin: Loopback(FreePort(tb)), Global: global,
		httpPort: FreePort(tb), httpsPort: FreePort(tb),
	}
	tb.Cleanup(func() {
		c.Stop()
		if tb.Failed() {
			c.showLog()
		}
	})
	c.Load(sites)
	return c
}

// folder returns a folder that is removed after the test. Caddy does not wait until its
// certificates are stored, so this is tried until it is gone.
func folder(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "caddy-alive-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if !Poll(Patience, func() bool { err = os.RemoveAll(dir); return err == nil }) {
			tb.Error(err)
		}
	})
	return dir
}

// Load loads the sites, in place of those loaded before.
func (c *Caddy) Load(sites string) {
	c.T.Helper()
	if err := c.TryLoad(sites); err != nil {
		c.T.Fatal(err)
	}
}

// ReloadInTraffic loads sites that say their version in a header, and returns when
// that version answers and the clients had answers of it.
func (c *Caddy) ReloadInTraffic(sites string, version int, probing *http.Client, clients *Traffic) {
	c.T.Helper()
	answered := clients.Answered()
	c.Load(sites)
	Eventually(c.T, Patience, "the new config serves", func() bool {
		return Ask(probing, c.URL()).Header.Get("Version") == strconv.Itoa(version)
	})
	Eventually(c.T, Patience, "traffic goes on", func() bool { return clients.Answered() > answered+50 })
}

// TryLoad loads the sites, in place of those loaded before, unless they are wrong.
func (c *Caddy) TryLoad(sites string) error {
	text := fmt.Sprintf(`{
	admin %s
	%s
	persist_config off
	storage file_system {
		root %s
	}
	skip_install_trust
	local_certs
	auto_https disable_redirects
	http_port %d
	https_port %d
	default_bind 127.0.0.1
	grace_period 1s
	log {
		output file %s {
			roll_disabled
		}
		level INFO
		exclude admin.api
	}
}
%s
`, c.Admin, c.Global, "`"+c.Dir+"`", c.httpPort, c.httpsPort, "`"+c.LogFile()+"`", sites)
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return fmt.Errorf("adapting:\n%s\n%v", text, err)
	}
	c.loaded = true
	err = caddy.Load(config, true)
	c.awaitOneListener() // the admin endpoint is replaced even if the config fails
	if err != nil {
		return fmt.Errorf("loading:\n%s\n%v", text, err)
	}
	return nil
}

// awaitOneListener waits until the listeners of the config before are closed. Caddy does
// not wait for that, and on Linux each config has a socket of its own: connections that
// wait to be accepted by the old one are reset, or served by the old config.
func (c *Caddy) awaitOneListener() {
	c.T.Helper()
	for _, port := range []int{c.httpPort, c.httpsPort} {
		if !Poll(Patience, func() bool { return listeners(port) <= 1 }) {
			c.T.Fatalf("the port %d of the site still has %d listeners", port, listeners(port))
		}
	}
	_, text, _ := net.SplitHostPort(c.Admin)
	port, err := strconv.Atoi(text)
	if err != nil {
		c.T.Fatal(err)
	}
	// The admin endpoint can have two until the next reload: its goroutine looks up the server
	// when it runs, and serves the old socket by the new server if a reload comes before that.
	Poll(time.Second, func() bool { return listeners(port) <= 1 })
}

// listeners counts the TCP sockets of this process that listen on a port, as far as Linux
// tells. It lists them before all others, which can be tens of thousands after a test of load.
func listeners(port int) (n int) {
	sockets, err := os.Open("/proc/net/tcp")
	if err != nil {
		return 0
	}
	defer sockets.Close()
	found := make(map[string]bool) // as the links of file descriptors have them
	for lines := bufio.NewScanner(sockets); lines.Scan(); {
		// the local address, the state and the inode are the fields 1, 3 and 9 of a line
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[0] == "sl" {
			continue
		}
		if fields[3] != "0A" {
			break
		}
		if strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
			found["socket:["+fields[9]+"]"] = true
		}
	}
	if len(found) < 2 {
		return len(found)
	}
	// another process can listen on another address
	files, _ := os.ReadDir("/proc/self/fd")
	for _, file := range files {
		if link, err := os.Readlink("/proc/self/fd/" + file.Name()); err == nil && found[link] {
			n++
		}
	}
	return n
}

// Stop stops Caddy, and fails the test if anything of this project stays behind, such
// as a probe that runs on, or what configs share.
func (c *Caddy) Stop() {
	c.T.Helper()
	if !c.loaded {
		return
	}
	c.loaded = false
	if err := caddy.Stop(); err != nil {
		c.T.Errorf("stopping Caddy: %v", err)
	}
	var leaks []string
	Poll(Patience, func() bool {
		leaks = leftovers()
		return len(leaks) == 0
	})
	for _, leak := range leaks {
		c.T.Errorf("left behind after Caddy stopped: %s", leak)
	}
}

// For returns the same Caddy, for use by a subtest: it fails that instead.
func (c *Caddy) For(tb testing.TB) *Caddy {
	of := *c
	of.T = tb
	return &of
}

// URL is where the plain sites are.
func (c *Caddy) URL() string { return "http://" + Loopback(c.httpPort) }

// SecureURL is where the site https://localhost is.
func (c *Caddy) SecureURL() string { return "https://localhost:" + strconv.Itoa(c.httpsPort) }

// Client returns a client of the plain sites, whose connections are its own.
func (c *Caddy) Client() *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 1024}
	c.T.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: Patience}
}

// ClientOf returns a client of https://localhost that speaks one version of HTTP and
// trusts Caddy's own CA.
func (c *Caddy) ClientOf(version int) *http.Client {
	c.T.Helper()
	root := filepath.Join(c.Dir, "pki", "authorities", "local", "root.crt")
	var ca []byte
	Eventually(c.T, Patience, "the internal CA has a root", func() bool {
		var err error
		ca, err = os.ReadFile(root)
		return err == nil && len(ca) > 0
	})
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		c.T.Fatalf("no certificate in %s", root)
	}
	trust := &tls.Config{RootCAs: roots, ServerName: "localhost"}
	address := Loopback(c.httpsPort)

	if version == 3 {
		transport := &http3.Transport{
			TLSClientConfig: trust,
			Dial: func(ctx context.Context, _ string, tlsConfig *tls.Config, config *quic.Config) (*quic.Conn, error) {
				return quic.DialAddrEarly(ctx, address, tlsConfig, config)
			},
		}
		c.T.Cleanup(func() { transport.Close() })
		return &http.Client{Transport: transport, Timeout: Patience}
	}
	transport := &http.Transport{
		TLSClientConfig: trust,
		Protocols:       new(http.Protocols),
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	transport.Protocols.SetHTTP1(version == 1)
	transport.Protocols.SetHTTP2(version == 2)
	c.T.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: Patience}
}
