// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// requests measures what a proxied request costs, and how long it takes.
func (b *bench) requests(ctx context.Context) error {
	t := b.table("Proxied requests", fmt.Sprintf("%d requests a second for %s; medians of %d rounds, by turns.", b.rate, b.duration, b.rounds),
		label("upstreams"), label("proxy"), typical("CPU a request (µs)"), typical("p50 (ms)"), typical("p99 (ms)"), typical("p99.9 (ms)"), total("failed"))
	for _, n := range []int{3, 100} {
		addresses, err := freeAddresses(ctx, 2, n)
		if err != nil {
			return err
		}
		u, err := startUpstream(ctx, b.scratch, addresses...)
		if err != nil {
			return err
		}
		for round := range b.rounds {
			for _, p := range b.peers {
				running, err := p.run(ctx, b.scratch, balance{upstreams: addresses})
				if err != nil {
					return err
				}
				attack(ctx, running.url(), b.rate, 2*time.Second) // warms up
				before, beforeErr := running.cpu()
				results := attack(ctx, running.url(), b.rate, b.duration)
				after, afterErr := running.cpu()
				if err := errors.Join(beforeErr, afterErr, running.stop()); err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
				t.sample(round, n, p.name, float64((after-before).Microseconds())/float64(len(results)),
					milliseconds(percentile(results, 50)), milliseconds(percentile(results, 99)), milliseconds(percentile(results, 99.9)), failures(results))
			}
		}
		u.close()
		const cpu = "CPU a request (µs)"
		b.budget(fmt.Sprintf("CPU of a proxied request over %d upstreams, beside stock Caddy", n), t.value(cpu, n, thisBuild)/t.value(cpu, n, stockCaddy), 1.02)
	}
	t.chart(2)
	t.chart(4)
	return nil
}
