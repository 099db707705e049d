// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// toNotice is longer than any peer needs to notice that an upstream is dead.
const toNotice = 6 * time.Second

// reloads counts failures while the config is reloaded every second, and the requests
// that reach an upstream which is known to be dead. It is the last in the list: at its
// start HAProxy checks the first upstream at once, and the others one after the other
// within the interval.
func (b *bench) reloads(ctx context.Context) error {
	t := b.table("Reload every second", fmt.Sprintf("The load is %d requests a second for %s in a round (%s), over three upstreams, without retries. The last upstream answers all requests and probes with 503. nginx of Debian has no health checks, so it does not know this, with a reload or without, and sends the dead upstream its share. HAProxy could read its state from a file that a script saves before each reload; this is not configured here. A reload of nginx or HAProxy counts when all its workers are new. A server that ends can drop a connection which has just been opened, without an answer. Caddy does, whatever the policy: its listener is a new socket, and what waits at the old one is lost; and Go's server drops a request that it reads from a new connection after the end has begun. Such requests have a column of their own.",
		b.rate/2, b.duration, rounds(b.rounds)),
		label("proxy"), total("reloads"), total("failed requests"), total("dropped connections"), total("requests to the dead upstream"), typical("p99 (ms)"))
	addresses, err := freeAddresses(ctx, 5, 3)
	if err != nil {
		return err
	}
	all, end, err := startEach(ctx, b.scratch, addresses)
	if err != nil {
		return err
	}
	defer end()
	running, stop, err := b.runAll(ctx, b.peers, balance{upstreams: addresses})
	if err != nil {
		return err
	}
	dead := all[len(all)-1]
	err = errors.Join(dead.set(ctx, "503"), pause(ctx, toNotice))
	for round := range b.rounds {
		for _, i := range turns(len(running), round) {
			if err == nil {
				err = b.reloadUnderLoad(ctx, t, round, running[i], dead)
			}
		}
	}
	b.budget("failed requests with a reload every second", t.value("failed requests", thisBuild), 0)
	b.budget("requests to a dead upstream with a reload every second", t.value("requests to the dead upstream", thisBuild), 0)
	t.chart(2)
	return errors.Join(err, stop())
}

// reloadUnderLoad measures one proxy in one round.
func (b *bench) reloadUnderLoad(ctx context.Context, t *table, round int, p *proxy, dead *upstream) error {
	before, err := dead.count(ctx)
	if err != nil {
		return err
	}
	loading, over := context.WithCancel(ctx)
	var reloading sync.WaitGroup
	reloads, failed := 0, error(nil)
	reloading.Go(func() {
		for pause(loading, time.Second) == nil && failed == nil {
			failed = p.reload(ctx, p)
			reloads++
		}
	})
	results := attack(ctx, p.url(), b.rate/2, b.duration)
	over()
	reloading.Wait()
	after, err := dead.count(ctx)
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	t.sample(round, p.name, reloads, failures(results)-drops(results), drops(results), int(after.Requests-before.Requests), milliseconds(percentile(results, 99)))
	return nil
}
