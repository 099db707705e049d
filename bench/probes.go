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
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// probeInterval is how often each target is probed.
	probeInterval = time.Second
	// few is the number of targets for the comparison of memory.
	few = 10
	// maxTargets is the number of addresses for targets.
	maxTargets = 8000

	coreChecks = "Caddy's own checks"
	keeping    = thisBuild + ", keep_connection"
)

// backend answers the probes of all targets, which are addresses of the loopback
// network, and records their times.
type backend struct {
	server    *http.Server
	addresses []string // of the targets

	mu    sync.Mutex
	count int
	last  map[string]time.Time
	worst time.Duration // above the interval, between two probes of a target
	times []time.Duration
	began time.Time
}

type targetKey struct{}

// newBackend listens on this many addresses.
func newBackend(ctx context.Context, targets int) (*backend, error) {
	b := &backend{server: &http.Server{
		ReadHeaderTimeout: time.Minute,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, targetKey{}, conn.LocalAddr().String())
		},
	}}
	b.server.Handler = b
	b.reset()
	port := 0 // the system assigns a port to the first, and the others use it, too
	for i := range targets {
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf("127.1.%d.%d:%d", i/250, i%250+1, port))
		if err != nil {
			return nil, errors.Join(err, b.server.Close())
		}
		port = listener.Addr().(*net.TCPAddr).Port
		b.addresses = append(b.addresses, listener.Addr().String())
		go func() {
			if err := b.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				panic(err)
			}
		}()
	}
	return b, nil
}

// ServeHTTP answers a probe, and records its time.
func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	target := r.Context().Value(targetKey{}).(string)
	b.mu.Lock()
	b.count++
	if last, ok := b.last[target]; ok {
		b.worst = max(b.worst, now.Sub(last)-probeInterval)
	}
	b.last[target] = now
	b.times = append(b.times, now.Sub(b.began))
	b.mu.Unlock()
	_, _ = w.Write([]byte("ok"))
}

func (b *backend) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count, b.worst, b.times = 0, 0, nil
	b.last = make(map[string]time.Time)
	b.began = time.Now()
}

// densest returns the largest share of the targets that were probed within 50 ms.
func densest(times []time.Duration, targets int) float64 {
	slices.Sort(times)
	most, first := 0, 0
	for i, t := range times {
		for t-times[first] > 50*time.Millisecond {
			first++
		}
		most = max(most, i-first+1)
	}
	return float64(most) / float64(targets)
}

// checkers returns the installed programs to compare.
func (b *bench) checkers() []peer {
	caddyProbes := func(policy string) func(string, balance) (string, string) {
		return func(_ string, to balance) (string, string) {
			return "Caddyfile", fmt.Sprintf(`{
	admin off
	persist_config off
}
http://127.0.0.1:0 {
	reverse_proxy %s {
		%s
	}
}
`, strings.Join(to.upstreams, " "), policy)
		}
	}
	const check = "lb_policy alive {\n\t\t\tcheck http / {\n\t\t\t\tinterval 1s\n\t\t\t\ttimeout 2s\n%s\t\t\t}\n\t\t}"
	all := []peer{
		{name: thisBuild, path: b.caddy, args: caddyArgs, config: caddyProbes(fmt.Sprintf(check, ""))},
		{name: keeping, path: b.caddy, args: caddyArgs, config: caddyProbes(fmt.Sprintf(check, "\t\t\t\tkeep_connection\n"))},
		{name: coreChecks, path: b.stock, args: caddyArgs, config: caddyProbes("lb_policy round_robin\n\t\thealth_uri /\n\t\thealth_interval 1s\n\t\thealth_timeout 2s")},
	}
	if haproxy, err := exec.LookPath("haproxy"); err == nil {
		all = append(all, peer{name: "HAProxy", path: haproxy, args: []string{"-db", "-f", "haproxy.cfg"}, config: haproxyProbes})
	}
	return all
}

func haproxyProbes(_ string, to balance) (string, string) {
	var servers strings.Builder
	for i, address := range to.upstreams {
		fmt.Fprintf(&servers, "\tserver s%d %s\n", i, address)
	}
	return "haproxy.cfg", `global
	spread-checks 10
	maxconn 1000
defaults
	mode http
	timeout connect 2s
	timeout client 5s
	timeout server 5s
	timeout check 2s
frontend in
	bind unix@in.sock
	default_backend all
backend all
	option httpchk GET /
	default-server check inter 1s
` + servers.String()
}

// sample is one measurement of one checker.
type sample struct {
	cpu    float64 // a probe, in µs
	memory float64 // a target, in bytes
	late   time.Duration
	dense  float64
	probes float64 // a second and target
}

// probes measures the cost of probes of this many targets.
func (b *bench) probes(ctx context.Context) error {
	to, err := newBackend(ctx, slices.Max(b.targets))
	if err != nil {
		return err
	}
	defer to.server.Close()
	all := b.checkers()
	const memory = "memory per target (KiB)"
	t := b.table("Probes", fmt.Sprintf("Each checker sends one HTTP probe a second to each target. Figures are medians of %s of %s. caddy-alive and HAProxy open a connection for each probe. caddy-alive with keep_connection and Caddy keep theirs.", rounds(b.rounds), b.duration),
		label("targets"), label("checker"), typical("CPU per probe (µs)"), typical(memory), typical("worst lateness (ms)"), typical("densest 50 ms (%)"), typical("probes per target and second"))
	for _, targets := range b.targets {
		var ratios, kept []float64
		for round := range b.rounds {
			used := make(map[string]float64)
			for _, i := range turns(len(all), round) {
				s, err := b.measure(ctx, to, all[i], targets)
				if err != nil {
					return fmt.Errorf("%s: %w", all[i].name, err)
				}
				used[all[i].name] = s.cpu
				t.sample(round, targets, all[i].name, s.cpu, s.memory/1024, milliseconds(s.late), 100*s.dense, s.probes)
			}
			ratios = append(ratios, used[thisBuild]/used[coreChecks])
			kept = append(kept, used[keeping]/used[coreChecks])
		}
		if targets == 1000 {
			b.ratio("CPU of a probe at 1,000 targets, beside Caddy's own checker, which keeps its connections", ratios, 1.3)
			b.ratio("the same with keep_connection", kept, 0.75)
			b.budget("memory of a target at 1,000 targets, in KiB", t.value(memory, targets, thisBuild), 25)
		}
	}
	t.chart(2)
	return nil
}

// measure runs a checker twice: with few targets, for its memory, and with many.
func (b *bench) measure(ctx context.Context, to *backend, c peer, targets int) (s sample, err error) {
	var base, memory int64
	err = b.settled(ctx, c, to.addresses[:few], func(p *process) (err error) {
		base, err = p.memory()
		return err
	})
	if err != nil {
		return s, err
	}
	err = b.settled(ctx, c, to.addresses[:targets], func(p *process) (err error) {
		to.reset()
		before, err := p.cpu()
		if err != nil {
			return err
		}
		if err := pause(ctx, b.duration); err != nil {
			return err
		}
		after, err := p.cpu()
		if err != nil {
			return err
		}
		if memory, err = p.memory(); err != nil {
			return err
		}
		s, err = to.seen(targets, after-before, b.duration)
		return err
	})
	s.memory = float64(memory-base) / float64(targets-few)
	return s, err
}

// settled runs a checker, and measures it after a while.
func (b *bench) settled(ctx context.Context, c peer, addresses []string, look func(*process) error) error {
	folder, err := os.MkdirTemp(b.scratch, "run-")
	if err != nil {
		return err
	}
	p, err := c.start(ctx, folder, "", balance{upstreams: addresses})
	if err != nil {
		return err
	}
	if err = pause(ctx, b.settle); err == nil {
		err = look(p)
	}
	return errors.Join(err, p.stop())
}

// seen makes a sample of the probes that were recorded, and of their CPU time.
func (b *backend) seen(targets int, cpu, during time.Duration) (s sample, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.last) != targets {
		return s, fmt.Errorf("probes of %d targets came, not of %d", len(b.last), targets)
	}
	s.cpu = float64(cpu.Nanoseconds()) / 1e3 / float64(b.count)
	s.late = b.worst
	s.dense = densest(b.times, targets)
	s.probes = float64(b.count) / during.Seconds() / float64(targets)
	return s, nil
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
