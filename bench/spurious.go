// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
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
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	defer client.CloseIdleConnections()
	var left, unavailables, others atomic.Int64
	left.Store(int64(requests))
	var asking sync.WaitGroup
	for range clients {
		asking.Go(func() {
			for left.Add(-1) >= 0 {
				switch status, _ := get(ctx, client, url); status {
				case http.StatusOK:
				case http.StatusServiceUnavailable:
					unavailables.Add(1)
				default:
					others.Add(1)
				}
			}
		})
	}
	asking.Wait()
	return int(unavailables.Load()), int(others.Load())
}

// get sends one request.
func get(ctx context.Context, client *http.Client, url string) (status int, body string) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, ""
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, ""
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, ""
	}
	return response.StatusCode, string(text)
}
