// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"
)

// weights counts the requests of each upstream while the first of three with weights is
// dead. All proxies run, and know which upstream is down, but one at a time gets
// requests.
func (b *bench) weights(ctx context.Context) error {
	weights := []int{1, 2, 5}
	const requests = 700
	t := b.table("Weights with a dead upstream", fmt.Sprintf("One client sends %d requests a round, one after the other (%s). The upstreams have the weights 1, 2 and 5, and the first one is dead. The correct ratio of the other two is 2 to 5. The deviation is that of the worst round.", requests, rounds(b.rounds)),
		label("proxy"), total("requests to weight 2"), worst("deviation (%)"), most("longest run"), total("requests to weight 5"), total("failed"))
	addresses, err := freeAddresses(ctx, 4, len(weights))
	if err != nil {
		return err
	}
	u, err := startUpstream(ctx, b.scratch, addresses[1:]...)
	if err != nil {
		return err
	}
	defer u.close()
	running, stop, err := b.runAll(ctx, b.peers, balance{upstreams: addresses, weights: weights, retries: twoRetries})
	if err != nil {
		return err
	}
	err = pause(ctx, toNotice)
	for round := range b.rounds {
		for _, i := range turns(len(running), round) {
			served, longest := queue(ctx, running[i].url(), requests)
			two, five := served[addresses[1]], served[addresses[2]]
			off := math.Abs(float64(two)/float64(two+five)-2.0/7) / (2.0 / 7) * 100
			t.sample(round, running[i].name, two, off, longest, five, requests-two-five)
		}
	}
	b.budget("deviation from the weights with a dead upstream, in percent", t.value("deviation (%)", thisBuild), 0)
	t.chart(2)
	return errors.Join(err, stop())
}

// queue sends requests one after the other. It returns how many each upstream answered,
// and the longest run of one upstream.
func queue(ctx context.Context, url string, requests int) (served map[string]int, longest int) {
	client := &http.Client{Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	served = make(map[string]int)
	run, before := 0, ""
	for range requests {
		r := ask(ctx, client, time.Now(), http.MethodGet, url, nil)
		if !r.ok() {
			continue
		}
		if served[r.from]++; r.from != before {
			run, before = 0, r.from
		}
		run++
		longest = max(longest, run)
	}
	return served, longest
}
