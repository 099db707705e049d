// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// peer is a proxy that is measured.
type peer struct {
	name string
	// config returns the name and the text of its config file, with the address to listen
	// on.
	config func(listen string, b balance) (file, text string)
	args   []string // to run it with its config file
	path   string
	reload func(ctx context.Context, p *proxy) error // by its config file
}

// proxy is a running peer.
type proxy struct {
	*process
	peer
	folder, listen string
}

// url returns the URL of the proxy.
func (p *proxy) url() string { return "http://" + p.listen + "/" }

const (
	thisBuild  = "caddy-alive"
	stockCaddy = "stock Caddy" // the program of its own module, with the version that this plugin uses
)

var caddyArgs = []string{"run", "--config", "Caddyfile", "--adapter", "caddyfile"}

// findPeers returns the installed peers, and the names of the others.
func findPeers(caddy, stock string) (peers []peer, missing []string) {
	reloadCaddy := func(ctx context.Context, p *proxy) error {
		command := exec.CommandContext(ctx, p.path, "reload", "--force", "--config", "Caddyfile", "--adapter", "caddyfile") //nolint:gosec // a program that was built or found here
		command.Dir = p.folder
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	peers = []peer{
		{thisBuild, caddyConfig(caddyAlive), caddyArgs, caddy, reloadCaddy},
		{stockCaddy, caddyConfig(caddyStock), caddyArgs, stock, reloadCaddy},
	}
	for _, other := range []peer{
		{"nginx", nginxConfig, []string{"-p", ".", "-c", "nginx.conf", "-e", "error.log"}, "nginx", reloadBy(syscall.SIGHUP)},
		{"HAProxy", haproxyConfig, []string{"-W", "-db", "-f", "haproxy.cfg"}, "haproxy", reloadBy(syscall.SIGUSR2)},
	} {
		path, err := exec.LookPath(other.path)
		if err != nil {
			missing = append(missing, other.name)
			continue
		}
		other.path = path
		peers = append(peers, other)
	}
	return peers, missing
}

// reloadBy makes a server reload its config by a signal, and returns when new workers
// do all of its work: the signal alone proves nothing.
func reloadBy(s os.Signal) func(context.Context, *proxy) error {
	return func(ctx context.Context, p *proxy) error {
		old, err := p.children()
		if err != nil {
			return err
		}
		if err := p.cmd.Process.Signal(s); err != nil {
			return err
		}
		return within(ctx, 5*time.Second, p.name+" has new workers, and none of the old ones", func() bool {
			workers, err := p.children()
			return err == nil && len(workers) > 0 && !slices.ContainsFunc(workers, func(w int) bool { return slices.Contains(old, w) })
		})
	}
}

// run starts a peer, and returns when it serves.
func (p peer) run(ctx context.Context, scratch string, b balance) (*proxy, error) {
	folder, err := os.MkdirTemp(scratch, "run-")
	if err != nil {
		return nil, err
	}
	free, err := freeAddresses(ctx, 0, 1)
	if err != nil {
		return nil, err
	}
	listen := free[0]
	running, err := p.start(ctx, folder, listen, b)
	if err != nil {
		return nil, err
	}
	up := &proxy{running, p, folder, listen}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	err = within(ctx, 20*time.Second, p.name+" serves", func() bool {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, up.url(), nil)
		if err != nil {
			return false
		}
		response, err := client.Do(request)
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %s %w", err, running.output, running.stop())
	}
	return up, nil
}

// start starts a peer in a folder of its own.
func (p peer) start(ctx context.Context, folder, listen string, b balance) (*process, error) {
	file, text := p.config(listen, b)
	text = strings.ReplaceAll(text, "{$BENCH_FOLDER}", folder)
	if err := os.WriteFile(filepath.Join(folder, file), []byte(text), 0o600); err != nil {
		return nil, err
	}
	return launch(folder, exec.CommandContext(ctx, p.path, p.args...)) //nolint:gosec // a program that was built or found here
}

// runAll starts all peers, and returns a function that stops them.
func (b *bench) runAll(ctx context.Context, peers []peer, to balance) (running []*proxy, stop func() error, err error) {
	stop = func() (err error) {
		for _, p := range running {
			err = errors.Join(err, p.stop())
		}
		return err
	}
	for _, p := range peers {
		up, err := p.run(ctx, b.scratch, to)
		if err != nil {
			return nil, nil, errors.Join(err, stop())
		}
		running = append(running, up)
	}
	return running, stop, nil
}

// turns returns the numbers below n, beginning with another one each round: none is
// always the first, or always follows the load of the same one.
func turns(n, round int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = (i + round) % n
	}
	return order
}

// freeAddresses returns this many free addresses in a loopback network of their own.
func freeAddresses(ctx context.Context, network, n int) ([]string, error) {
	port := "0"
	addresses := make([]string, 0, n)
	for i := range n {
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(fmt.Sprintf("127.%d.%d.%d", network, i/250, i%250+1), port))
		if err != nil {
			return nil, err
		}
		defer listener.Close()
		addresses = append(addresses, listener.Addr().String())
		_, port, _ = net.SplitHostPort(addresses[0])
	}
	return addresses, nil
}
