// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// balance is the task of a peer. All peers get the same, as far as they support it:
// probes of /healthz every second with a timeout of one second; three failures in a row
// turn an upstream down, and two passes turn it up.
type balance struct {
	upstreams []string
	weights   []int // nil: all equal
	retries   retries
}

// retries says what a proxy retries.
type retries int

const (
	noRetries      retries = iota // nothing
	twoRetries                    // up to two, of GET requests, also after the statuses 502, 503 and 504
	defaultRetries                // what this build retries by default; its peers: nothing
)

// String returns what tables show.
func (r retries) String() string { return [...]string{"no", "yes", "default"}[r] }

// Options of this build that switch off what other proxies do not have, so that both are
// compared without it. They are variables, so that -ldflags "-X main.retriesOff=" can
// measure a build that does not know them.
var (
	retriesOff = "retries off"
	observeOff = "observe off"
)

// How long all peers wait for an upstream. Faults last longer, so that retries after
// timeouts are measured. A slow upstream answers earlier.
const (
	connectTimeout = time.Second
	answerTimeout  = 3 * time.Second // until the header has come
)

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

// Lines of a handler in a Caddyfile.
var (
	// matchRetries retry GET requests, also after the statuses that an upstream has when
	// it fails.
	matchRetries = `
		lb_retry_match {
			method GET
		}
		lb_retry_match {
			method GET
			expression "{rp.status_code} in [502, 503, 504]"
		}`
	// timeouts end requests to an upstream that hangs.
	timeouts = fmt.Sprintf(`
		transport http {
			dial_timeout %s
			response_header_timeout %s
		}`, connectTimeout, answerTimeout)
)

// caddyConfig writes a Caddyfile.
func caddyConfig(policy func(balance) string) func(string, balance) (string, string) {
	return func(listen string, b balance) (string, string) {
		lines := policy(b)
		if b.retries == twoRetries {
			lines += "\n\t\tlb_retries 2" + matchRetries
		}
		return "Caddyfile", caddyfile(listen, b.upstreams, lines+timeouts)
	}
}

// caddyfile is a Caddyfile with one handler, which has these lines.
func caddyfile(listen string, upstreams []string, lines string) string {
	if lines != "" {
		lines = " {\n\t\t" + lines + "\n\t}"
	}
	return fmt.Sprintf(`{
	admin unix//{$BENCH_FOLDER}/admin.sock
	persist_config off
	auto_https off
	grace_period 5s
	log {
		level ERROR
		output discard
	}
}
http://%s {
	reverse_proxy %s%s
}
`, listen, strings.Join(upstreams, " "), lines)
}

// setup returns a Caddy as a peer whose handler always has these lines.
func setup(name, path, lines string) peer {
	return peer{name: name, path: path, args: caddyArgs, config: func(listen string, b balance) (string, string) {
		return "Caddyfile", caddyfile(listen, b.upstreams, lines)
	}}
}

// alive is the policy of this build with options.
func alive(options ...string) string {
	options = slices.DeleteFunc(options, func(o string) bool { return o == "" })
	if len(options) == 0 {
		return "lb_policy alive"
	}
	return "lb_policy alive {\n\t\t\t" + strings.Join(options, "\n\t\t\t") + "\n\t\t}"
}

// everySecond is the check of this build with the settings that all peers have.
const everySecond = `check http /healthz {
				interval 1s
				timeout 1s
				fails 3
				passes 2
			}`

func caddyAlive(b balance) string {
	options := []string{everySecond}
	for i, weight := range b.weights {
		options = append(options, fmt.Sprintf("weight %s %d", b.upstreams[i], weight))
	}
	if b.retries == noRetries {
		options = append(options, retriesOff)
	}
	return alive(options...)
}

func caddyStock(b balance) string {
	policy := "round_robin"
	if b.weights != nil {
		policy = "weighted_round_robin " + strings.Trim(fmt.Sprint(b.weights), "[]")
	}
	return "lb_policy " + policy + `
		health_uri /healthz
		health_interval 1s
		health_timeout 1s
		health_fails 3
		health_passes 2`
}

// nginxConfig writes a config for nginx as packaged by Debian. It has no probes: an
// upstream that fails gets no requests for a while.
func nginxConfig(listen string, b balance) (string, string) {
	var servers strings.Builder
	for i, weight := range b.weightsOf() {
		fmt.Fprintf(&servers, "\t\tserver %s weight=%d max_fails=3 fail_timeout=1s;\n", b.upstreams[i], weight)
	}
	next := "off"
	if b.retries == twoRetries {
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
		zone all 256k;
%s		keepalive 256;
	}
	server {
		listen %s backlog=4096;
		location / {
			proxy_pass http://all;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_connect_timeout %s;
			proxy_read_timeout %s;
			proxy_next_upstream %s;
		}
	}
}
`, servers.String(), listen, connectTimeout, answerTimeout, next)
}

func haproxyConfig(listen string, b balance) (string, string) {
	var servers strings.Builder
	for i, weight := range b.weightsOf() {
		fmt.Fprintf(&servers, "\tserver s%d %s weight %d\n", i, b.upstreams[i], weight)
	}
	retries := "retries 0"
	if b.retries == twoRetries {
		retries = "retries 2\n\tretry-on all-retryable-errors\n\toption redispatch 1"
	}
	return "haproxy.cfg", fmt.Sprintf(`global
	maxconn 8000
defaults
	mode http
	timeout connect %s
	timeout client 60s
	timeout server %s
	timeout check 1s
	%s
frontend in
	bind %s
	default_backend all
backend all
	balance roundrobin
	option httpchk GET /healthz
	default-server check inter 1s fall 3 rise 2
%s`, connectTimeout, answerTimeout, retries, listen, servers.String())
}

// describe describes the setup of the peers, and keeps their configs.
func (b *bench) describe() {
	b.note("vegeta sends %d requests a second in an open loop. A latency counts from the time at which the request was due.", b.rate)
	b.note("Stock Caddy is Caddy without this plugin, in the same version and with the same dependencies. It uses `round_robin` and its own checks.")
	b.note("All proxies have the same settings as far as possible. They probe each second with a timeout of one second. An upstream is down after 3 fails in a row, and up after 2 passes in a row. The timeout is %s for a connection and %s for the start of a response. nginx of Debian has no checks; after three failed requests within one second it avoids an upstream for one second. nginx keeps up to 256 idle connections to upstreams per worker. Caddy and HAProxy (`http-reuse safe`) keep as many as they do by default. The configs are in [configs](configs).", connectTimeout, answerTimeout)
	b.configs = make(map[string]string)
	upstreams := []string{"127.0.0.1:8001", "127.0.0.1:8002", "127.0.0.1:8003"}
	keep := func(what string, p peer, to balance) {
		file, text := p.config("127.0.0.1:8000", to)
		name := strings.NewReplacer(" ", "-", "'", "", ",", "").Replace(strings.ToLower(p.name))
		b.configs[name+"-"+what+"-"+file+".txt"] = text
	}
	for _, p := range b.peers {
		keep("plain", p, balance{upstreams: upstreams})
		keep("retries", p, balance{upstreams: upstreams, retries: twoRetries})
		keep("weights", p, balance{upstreams: upstreams, weights: []int{1, 2, 5}, retries: twoRetries})
	}
	for what, setups := range map[string][]peer{
		"probes": b.checkers(), "smallest": b.smallestSetups(), "posts": b.postSetups(), "overload": b.overloadSetups(), "restarts": b.restartSetups(), "limits": b.limitSetups(),
	} {
		for _, p := range setups {
			keep(what, p, balance{upstreams: upstreams})
		}
	}
}
