// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"strings"
	"time"
)

// balance is the task of a peer. All peers get the same, as far as they support it:
// probes of /healthz every second with a timeout of one second; three failures in a row
// turn an upstream down, and two passes turn it up.
type balance struct {
	upstreams []string
	weights   []int // nil: all equal
	retries   bool  // up to two, of idempotent requests
}

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

// caddyConfig writes a Caddyfile.
func caddyConfig(policy func(balance) string) func(string, balance) (string, string) {
	return func(listen string, b balance) (string, string) {
		retries := ""
		if b.retries {
			retries = `
		lb_retries 2
		lb_retry_match {
			method GET
		}
		lb_retry_match {
			method GET
			expression "{rp.status_code} in [502, 503, 504]"
		}`
		}
		return "Caddyfile", fmt.Sprintf(`{
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
	reverse_proxy %s {
		%s%s
		transport http {
			dial_timeout %s
			response_header_timeout %s
		}
	}
}
`, listen, strings.Join(b.upstreams, " "), policy(b), retries, connectTimeout, answerTimeout)
	}
}

func caddyAlive(b balance) string {
	var weights strings.Builder
	for i, weight := range b.weights {
		fmt.Fprintf(&weights, "\n\t\t\tweight %s %d", b.upstreams[i], weight)
	}
	return `lb_policy alive {
			check http /healthz {
				interval 1s
				timeout 1s
				fails 3
				passes 2
			}` + weights.String() + `
		}`
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
	if b.retries {
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
		name := strings.NewReplacer(" ", "-", "'", "").Replace(strings.ToLower(p.name))
		b.configs[name+"-"+what+"-"+file+".txt"] = text
	}
	for _, p := range b.peers {
		keep("plain", p, balance{upstreams: upstreams})
		keep("retries", p, balance{upstreams: upstreams, retries: true})
		keep("weights", p, balance{upstreams: upstreams, weights: []int{1, 2, 5}, retries: true})
	}
	for _, p := range b.checkers() {
		keep("probes", p, balance{upstreams: upstreams})
	}
}
