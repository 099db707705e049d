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

// reloads counts what fails while the config is loaded anew each second, and how often
// an upstream gets requests that is known to be dead.
func (b *bench) reloads(ctx context.Context) error {
	t := b.table("Reload every second", fmt.Sprintf("%d requests a second for %s over three upstreams, one of which answers everything 503 and fails its checks; no retries.", b.rate/2, b.duration),
		label("proxy"), total("reloads"), total("failed requests"), total("requests to the dead one"), typical("p99 (ms)"))
	addresses, err := freeAddresses(ctx, 5, 3)
	if err != nil {
		return err
	}
	var all []*upstream
	for _, address := range addresses {
		u, err := startUpstream(ctx, b.scratch, address)
		if err != nil {
			return err
		}
		defer u.close()
		all = append(all, u)
	}
	for _, p := range b.peers {
		if p.name == "nginx" {
			continue // it has no checks that could know
		}
		if err := all[0].set(ctx, ""); err != nil {
			return err
		}
		running, err := p.run(ctx, b.scratch, balance{upstreams: addresses})
		if err != nil {
			return err
		}
		if err := all[0].set(ctx, "503"); err != nil {
			return err
		}
		if err := pause(ctx, 6*time.Second); err != nil {
			return err
		}
		before, err := all[0].count(ctx)
		if err != nil {
			return err
		}
		loading, over := context.WithCancel(ctx)
		var reloading sync.WaitGroup
		reloads, failed := 0, error(nil)
		reloading.Go(func() {
			for pause(loading, time.Second) == nil && failed == nil {
				failed = running.reload(ctx, running)
				reloads++
			}
		})
		results := attack(ctx, running.url(), b.rate/2, b.duration)
		over()
		reloading.Wait()
		after, err := all[0].count(ctx)
		if err := errors.Join(err, failed, running.stop()); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		t.sample(0, p.name, reloads, failures(results), int(after.Requests-before.Requests), milliseconds(percentile(results, 99)))
	}
	b.note("nginx as Debian has it makes no checks, so nothing is known when it is loaded anew: it is left out there.")
	t.chart(2)
	return nil
}
