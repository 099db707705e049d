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

// balance is what a peer is to do. All peers are given the same, as far as they can:
// probes of /healthz each second, that have one second, and three that fail in a row.
type balance struct {
	upstreams []string
	weights   []int // nil: all the same
	retries   bool  // up to two, for what is idempotent
}

// peer is a proxy to measure.
type peer struct {
	name string
	// config returns the name and the text of its config, with the address to listen on.
	config func(listen string, b balance) (file, text string)
	args   []string // to run it by its config
	path   string
	reload func(ctx context.Context, p *proxy) error // by its config file
}

// proxy is a peer that runs.
type proxy struct {
	*process
	peer
	folder, listen string
}

// url is where to ask it.
func (p *proxy) url() string { return "http://" + p.listen + "/" }

const (
	thisBuild  = "caddy-alive"
	stockCaddy = "stock Caddy"
)

// findPeers returns the peers that are installed, and the names of those that are not.
// Stock Caddy is the same build with none of this plugin in its config: what both have
// in common is the same by that.
func findPeers(caddy string) (peers []peer, missing []string) {
	caddyArgs := []string{"run", "--config", "Caddyfile", "--adapter", "caddyfile"}
	reloadCaddy := func(ctx context.Context, p *proxy) error {
		command := exec.CommandContext(ctx, caddy, "reload", "--force", "--config", "Caddyfile", "--adapter", "caddyfile")
		command.Dir = p.folder
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	peers = []peer{
		{thisBuild, caddyConfig(caddyAlive), caddyArgs, caddy, reloadCaddy},
		{stockCaddy, caddyConfig(caddyStock), caddyArgs, caddy, reloadCaddy},
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

// reloadBy has a server reload its config by a signal, and returns when other workers do
// all of its work: a signal alone proves nothing.
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

// caddyConfig writes a Caddyfile; the transport's timeouts are those of the example of
// a public site.
func caddyConfig(policy func(balance) string) func(string, balance) (string, string) {
	return func(listen string, b balance) (string, string) {
		retries := ""
		if b.retries {
			retries = "lb_retries 2\n\t\tlb_retry_match {\n\t\t\tmethod GET\n\t\t}\n\t\tlb_retry_match {\n\t\t\tmethod GET\n\t\t\texpression `{rp.status_code} in [502, 503, 504]`\n\t\t}\n"
		}
		return "Caddyfile", fmt.Sprintf("{\n\tadmin unix//%s\n\tpersist_config off\n\tauto_https off\n\tgrace_period 5s\n\tlog {\n\t\tlevel ERROR\n\t\toutput discard\n\t}\n}\nhttp://%s {\n\treverse_proxy %s {\n\t\t%s\n\t\t%s\t\ttransport http {\n\t\t\tdial_timeout 2s\n\t\t\tresponse_header_timeout 10s\n\t\t}\n\t}\n}\n",
			"{$BENCH_FOLDER}/admin.sock", listen, strings.Join(b.upstreams, " "), policy(b), retries)
	}
}

func caddyAlive(b balance) string {
	var policy strings.Builder
	policy.WriteString("lb_policy alive {\n\t\t\tcheck http /healthz {\n\t\t\t\tinterval 1s\n\t\t\t\ttimeout 1s\n\t\t\t}\n")
	for i, weight := range b.weights {
		fmt.Fprintf(&policy, "\t\t\tweight %s %d\n", b.upstreams[i], weight)
	}
	policy.WriteString("\t\t}")
	return policy.String()
}

func caddyStock(b balance) string {
	policy := "lb_policy round_robin"
	if b.weights != nil {
		policy = "lb_policy weighted_round_robin " + strings.Trim(fmt.Sprint(b.weights), "[]")
	}
	return policy + "\n\t\thealth_uri /healthz\n\t\thealth_interval 1s\n\t\thealth_timeout 1s\n\t\thealth_fails 3"
}

// weightsOf returns the weights, 1 for each if there are none.
func (b balance) weightsOf() []int {
	weights := make([]int, len(b.upstreams))
	for i := range weights {
		if weights[i] = 1; b.weights != nil {
			weights[i] = b.weights[i]
		}
	}
	return weights
}

// nginxConfig writes one of nginx as Debian has it, which has no probes: what fails is
// left alone for a while.
func nginxConfig(listen string, b balance) (string, string) {
	var servers strings.Builder
	for i, weight := range b.weightsOf() {
		fmt.Fprintf(&servers, "\t\tserver %s weight=%d max_fails=3 fail_timeout=1s;\n", b.upstreams[i], weight)
	}
	next := "off"
	if b.retries {
		next = "error timeout http_502 http_503 http_504;\n\t\t\tproxy_next_upstream_tries 3"
	}
	return "nginx.conf", fmt.Sprintf(`daemon off;
pid nginx.pid;
worker_processes auto;
worker_rlimit_nofile 16384;
events { worker_connections 8192; }
http {
	access_log off;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	upstream all {
%s		keepalive 256;
	}
	server {
		listen %s backlog=4096;
		location / {
			proxy_pass http://all;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_connect_timeout 2s;
			proxy_read_timeout 10s;
			proxy_next_upstream %s;
		}
	}
}
`, servers.String(), listen, next)
}

func haproxyConfig(listen string, b balance) (string, string) {
	var servers strings.Builder
	for i, weight := range b.weightsOf() {
		fmt.Fprintf(&servers, "\tserver s%d %s weight %d\n", i, b.upstreams[i], weight)
	}
	retries := "retries 0"
	if b.retries {
		retries = "retries 2\n\tretry-on all-retryable-errors\n\toption redispatch 1"
	}
	return "haproxy.cfg", fmt.Sprintf("global\n\tmaxconn 8000\ndefaults\n\tmode http\n\ttimeout connect 2s\n\ttimeout client 60s\n\ttimeout server 10s\n\ttimeout check 1s\n\t%s\nfrontend in\n\tbind %s\n\tdefault_backend all\nbackend all\n\tbalance roundrobin\n\toption httpchk GET /healthz\n\tdefault-server check inter 1s fall 3 rise 2\n%s",
		retries, listen, servers.String())
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
	file, text := p.config(listen, b)
	if err := os.WriteFile(filepath.Join(folder, file), []byte(strings.ReplaceAll(text, "{$BENCH_FOLDER}", folder)), 0o600); err != nil {
		return nil, err
	}
	running, err := start(ctx, folder, p.path, p.args...)
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

// runAll starts all peers, and returns what stops them.
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

// turns returns the numbers below n, beginning with another one each round: nobody is
// always the first, or always comes after the same one's load.
func turns(n, round int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = (i + round) % n
	}
	return order
}

// freeAddresses returns so many addresses in a loopback network of their own.
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
