// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// clients is the number of clients where requests are sent without a pause.
const clients = 64

// spurious counts answers with the status 503 while one of ten upstreams is up and many
// clients send requests. All proxies run, and know which upstreams are down, but one at
// a time gets requests.
func (b *bench) spurious(ctx context.Context) error {
	const upstreams = 10
	requests := int(b.duration.Seconds() * 1500)
	t := b.table("Spurious 503s", fmt.Sprintf("%d clients send %d requests a round without pauses (%s). One of %d upstreams is up. All proxies except nginx know that the others are down.", clients, requests, rounds(b.rounds), upstreams),
		label("proxy"), total("503 responses"), total("other failures"))
	addresses, err := freeAddresses(ctx, 3, upstreams)
	if err != nil {
		return err
	}
	u, err := startUpstream(ctx, b.scratch, addresses[upstreams-1])
	if err != nil {
		return err
	}
	defer u.close()
	running, stop, err := b.runAll(ctx, b.peers, balance{upstreams: addresses})
	if err != nil {
		return err
	}
	err = pause(ctx, toNotice)
	for round := range b.rounds {
		for _, i := range turns(len(running), round) {
			unavailable, other := rush(ctx, running[i].url(), requests)
			t.sample(round, running[i].name, unavailable, other)
		}
	}
	b.budget("spurious 503s with one of ten upstreams up", t.value("503 responses", thisBuild)+t.value("other failures", thisBuild), 0)
	t.chart(1)
	return errors.Join(err, stop())
}

// rush sends this many requests without a pause, and counts failures.
func rush(ctx context.Context, url string, requests int) (unavailable, other int) {
	for _, r := range press(ctx, http.MethodGet, url, clients, 0, func(sent int) bool { return sent < requests }) {
		switch {
		case r.ok():
		case r.status == http.StatusServiceUnavailable:
			unavailable++
		default:
			other++
		}
	}
	return unavailable, other
}
