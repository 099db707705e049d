// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// spurious counts 503s while one of ten upstreams is up, asked by 64 clients.
func (b *bench) spurious(ctx context.Context) error {
	const upstreams, clients = 10, 64
	n := int(b.duration/time.Second) * 1500
	t := b.table("Spurious 503s", fmt.Sprintf("%d clients, %d requests without a pause; %d upstreams, one of which is up, and the others are known to be down.", clients, n, upstreams),
		label("proxy"), total("answers 503"), total("other failures"))
	addresses, err := freeAddresses(ctx, 3, upstreams)
	if err != nil {
		return err
	}
	u, err := startUpstream(ctx, b.scratch, addresses[upstreams-1])
	if err != nil {
		return err
	}
	defer u.close()
	for _, p := range b.peers {
		running, err := p.run(ctx, b.scratch, balance{upstreams: addresses})
		if err != nil {
			return err
		}
		if err := pause(ctx, 6*time.Second); err != nil { // longer than any takes to notice
			return err
		}
		client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
		var left, unavailable, other atomic.Int64
		left.Store(int64(n))
		var asking sync.WaitGroup
		for range clients {
			asking.Go(func() {
				for left.Add(-1) >= 0 {
					switch status, _ := get(ctx, client, running.url()); status {
					case http.StatusOK:
					case http.StatusServiceUnavailable:
						unavailable.Add(1)
					default:
						other.Add(1)
					}
				}
			})
		}
		asking.Wait()
		client.CloseIdleConnections()
		t.sample(0, p.name, int(unavailable.Load()), int(other.Load()))
		if p.name == thisBuild {
			b.budget("spurious 503s with one of ten upstreams up", float64(unavailable.Load()+other.Load()), 0)
		}
		if err := running.stop(); err != nil {
			return err
		}
	}
	t.chart(1)
	return nil
}

// get asks once.
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
