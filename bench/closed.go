// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// pressing is the number of clients of a closed loop while an upstream fails: at most so
// many requests are at it at once.
const pressing = 16

// closed counts the requests that fail while clients send without a pause and one of
// three upstreams is killed.
func (b *bench) closed(ctx context.Context) error {
	requests := int(b.duration.Seconds() * 1500)
	runs := max(1, b.rounds*10/3) // ten of a full run
	t := b.table("Closed loop", fmt.Sprintf("%d clients send GET requests without a pause: %d, or more if those took less than %s after the kill. One of three upstreams is killed with SIGKILL after a third of them. There are no retries. caddy-alive runs %d times, the others %d times, one after the other. A repeated request counts as failed in the budget.", pressing, requests, min(toNotice, b.duration), runs, b.rounds),
		label("proxy"), total("runs"), total("requests"), total("failed"), total("repeated"), most("failed, worst run"), worst("last failure after (s)"))
	for round := range runs {
		for _, i := range turns(len(b.peers), round) {
			if i > 0 && round >= b.rounds {
				continue
			}
			results, killed, err := b.killUnderPressure(ctx, b.peers[i], requests)
			if err != nil {
				return fmt.Errorf("%s: %w", b.peers[i].name, err)
			}
			last := 0.0
			for _, r := range results {
				if !r.ok() || r.again {
					last = max(last, r.due.Sub(killed).Seconds())
				}
			}
			failed, again := failures(results), repeats(results)
			t.sample(round, b.peers[i].name, 1, len(results), failed, again, failed+again, last)
		}
	}
	b.budget(fmt.Sprintf("failed requests of %d clients in a closed loop, worst run", pressing), t.value("failed, worst run", thisBuild), pressing)
	t.chart(5)
	return nil
}

// killUnderPressure kills one of the three upstreams of a proxy after a third of the
// requests. It returns the results, and when the upstream was killed.
func (b *bench) killUnderPressure(ctx context.Context, p peer, requests int) (results []result, killed time.Time, err error) {
	addresses, err := freeAddresses(ctx, 30, 3)
	if err != nil {
		return nil, killed, err
	}
	all, end, err := startEach(ctx, b.scratch, addresses)
	if err != nil {
		return nil, killed, err
	}
	defer end()
	proxy, err := p.run(ctx, b.scratch, balance{upstreams: addresses})
	if err != nil {
		return nil, killed, err
	}
	defer func() { err = errors.Join(err, proxy.stop()) }()
	if err := pause(ctx, lead); err != nil { // until its checks have ended
		return nil, killed, err
	}
	due, done := make(chan struct{}), make(chan struct{})
	var killing sync.WaitGroup
	killing.Go(func() {
		select {
		case <-due:
			killed = time.Now()
			all[0].kill()
		case <-ctx.Done():
		}
		close(done)
	})
	longest := min(toNotice, b.duration)
	results = press(ctx, http.MethodGet, proxy.url(), pressing, 0, func(sent int) bool {
		switch {
		case sent < requests/3:
			return true
		case sent == requests/3:
			close(due)
		}
		select {
		case <-done:
			return sent < requests || time.Since(killed) < longest
		default:
			return true
		}
	})
	killing.Wait()
	return results, killed, ctx.Err()
}
