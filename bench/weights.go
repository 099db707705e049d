// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"time"
)

// weights looks at who gets requests when the first of three with weights is dead.
func (b *bench) weights(ctx context.Context) error {
	weights := []int{1, 2, 5}
	const requests = 700
	t := b.table("Weights with a dead upstream", fmt.Sprintf("%d requests, one after the other, over upstreams with the weights 1, 2 and 5, of which the first is dead: 2 to 5 would be right.", requests),
		label("proxy"), total("of weight 2"), worst("off by (%)"), most("longest run"), total("of weight 5"), total("failed"))
	addresses, err := freeAddresses(ctx, 4, len(weights))
	if err != nil {
		return err
	}
	u, err := startUpstream(ctx, b.scratch, addresses[1:]...)
	if err != nil {
		return err
	}
	defer u.close()
	for _, p := range b.peers {
		running, err := p.run(ctx, b.scratch, balance{upstreams: addresses, weights: weights, retries: true})
		if err != nil {
			return err
		}
		if err := pause(ctx, 6*time.Second); err != nil {
			return err
		}
		client := &http.Client{Timeout: 30 * time.Second}
		served := make(map[string]int)
		failed, run, longest, before := 0, 0, 0, ""
		for range requests {
			status, from := get(ctx, client, running.url())
			if status != http.StatusOK {
				failed++
				continue
			}
			if served[from]++; from != before {
				run, before = 0, from
			}
			run++
			longest = max(longest, run)
		}
		client.CloseIdleConnections()
		two, five := served[addresses[1]], served[addresses[2]]
		off := math.Abs(float64(two)/float64(two+five)-2.0/7) / (2.0 / 7) * 100
		t.sample(0, p.name, two, off, longest, five, failed)
		if err := running.stop(); err != nil {
			return err
		}
	}
	t.chart(2)
	return nil
}
