// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// warmUp is how long a proxy gets requests before it is measured.
const warmUp = time.Second

// requests measures the cost and the latency of a proxied request.
func (b *bench) requests(ctx context.Context) error {
	t := b.table("Proxied requests", fmt.Sprintf("The load is %d requests a second for %s. Figures are medians of %s in which the proxies take turns. CPU is the CPU time of all processes of a proxy, including its probes: one a second to each upstream, except for nginx, which sends none. Nothing is retried, except what caddy-alive retries by default. Direct is the same load without a proxy. It shows how much of the latencies comes from the load generator, the upstream and the kernel.",
		b.rate, b.duration, rounds(b.rounds)),
		label("upstreams"), label("proxy"), typical("CPU per request (µs)"), typical("p50 (ms)"), typical("p99 (ms)"), typical("p99.9 (ms)"), total("failed"))
	pairs := b.table("CPU of a proxied request beside stock Caddy", fmt.Sprintf("caddy-alive, with its defaults for what traffic says and for retries, and stock Caddy get the load by turns, %s each, in %d pairs. Both run at the same time, and send the same probes. The ratio is the CPU time of caddy-alive divided by that of stock Caddy.", b.duration/3, pairsOf(b.rounds)),
		label("upstreams"), typical("median ratio"), column{name: "upper quartile", of: upperQuartile})
	for _, n := range []int{3, 100} {
		addresses, err := freeAddresses(ctx, 2, n)
		if err != nil {
			return err
		}
		u, err := startUpstream(ctx, b.scratch, addresses...)
		if err != nil {
			return err
		}
		defer u.close()
		sample := func(round int, proxy string, cpu float64, results []result) {
			t.sample(round, n, proxy, cpu, milliseconds(percentile(results, 50)), milliseconds(percentile(results, 99)), milliseconds(percentile(results, 99.9)), failures(results))
		}
		for round := range b.rounds {
			sample(round, "direct", unknown, attack(ctx, "http://"+addresses[0]+"/", b.rate, b.duration))
			for _, i := range turns(len(b.peers), round) {
				running, stop, err := b.runAll(ctx, b.peers[i:i+1], balance{upstreams: addresses, retries: defaultRetries})
				if err != nil {
					return err
				}
				attack(ctx, running[0].url(), b.rate, warmUp)
				results, cpu, err := b.cost(ctx, running[0], b.duration)
				if err := errors.Join(err, stop()); err != nil {
					return err
				}
				sample(round, b.peers[i].name, cpu, results)
			}
		}
		ratios, err := b.besideStock(ctx, addresses)
		if err != nil {
			return err
		}
		for pair, ratio := range ratios {
			pairs.sample(pair, n, ratio, ratio)
		}
		b.ratio(fmt.Sprintf("CPU of a proxied request over %d upstreams, beside stock Caddy", n), ratios, 1.05)
		u.close()
	}
	t.chart(2)
	t.chart(4)
	t.chart(5)
	return nil
}

// cost returns the CPU time of a proxy per request, in µs.
func (b *bench) cost(ctx context.Context, p *proxy, during time.Duration) (results []result, cpu float64, err error) {
	before, beforeErr := p.cpu()
	results = attack(ctx, p.url(), b.rate, during)
	after, afterErr := p.cpu()
	if err := errors.Join(beforeErr, afterErr); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", p.name, err)
	}
	return results, float64((after - before).Microseconds()) / float64(len(results)), nil
}

// pairsOf returns how many pairs are measured in this many rounds: nine in a full run.
func pairsOf(rounds int) int { return 3 * rounds }

// upperQuartile returns the value that a quarter of the values reach or exceed.
func upperQuartile(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)*3/4]
}

// besideStock returns the CPU time per request of this build in relation to that of
// stock Caddy, for each round. There are more rounds than elsewhere, which are shorter
// and alternate in both orders, so that changes of the machine's load affect both.
func (b *bench) besideStock(ctx context.Context, addresses []string) (ratios []float64, err error) {
	both, stop, err := b.runAll(ctx, b.peers[:2], balance{upstreams: addresses, retries: defaultRetries})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, p := range both {
		attack(ctx, p.url(), b.rate, warmUp)
	}
	for round := range pairsOf(b.rounds) {
		var used [2]float64
		for _, i := range [][]int{{0, 1, 1, 0}, {1, 0, 0, 1}}[round%2] {
			_, cpu, err := b.cost(ctx, both[i], b.duration/3)
			if err != nil {
				return nil, err
			}
			used[i] += cpu
		}
		ratios = append(ratios, used[0]/used[1])
	}
	return ratios, nil
}
