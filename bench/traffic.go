// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// requests measures what a proxied request costs, and how long it takes.
func (b *bench) requests(ctx context.Context) error {
	type sample struct {
		cpu            float64 // µs a request
		p50, p99, p999 time.Duration
		failed         int
	}
	t := b.table("Proxied requests", fmt.Sprintf("%d requests a second for %s; medians of %d rounds, by turns.", b.rate, b.duration, b.rounds),
		"upstreams", "proxy", "CPU a request (µs)", "p50 (ms)", "p99 (ms)", "p99.9 (ms)", "failed")
	for _, n := range []int{3, 100} {
		addresses, err := freeAddresses(ctx, 2, n)
		if err != nil {
			return err
		}
		u, err := startUpstream(ctx, b.scratch, addresses...)
		if err != nil {
			return err
		}
		samples := make([][]sample, len(b.peers))
		for range b.rounds {
			for i, p := range b.peers {
				s, err := func() (s sample, err error) {
					running, err := p.run(ctx, b.scratch, balance{upstreams: addresses})
					if err != nil {
						return s, err
					}
					defer func() { err = errors.Join(err, running.stop()) }()
					attack(ctx, running.url(), b.rate, 2*time.Second) // warms up
					before, err := running.cpu()
					if err != nil {
						return s, err
					}
					results := attack(ctx, running.url(), b.rate, b.duration)
					after, err := running.cpu()
					s.cpu = float64((after - before).Microseconds()) / float64(len(results))
					s.p50, s.p99, s.p999 = percentile(results, 50), percentile(results, 99), percentile(results, 99.9)
					s.failed = failures(results)
					return s, err
				}()
				if err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
				samples[i] = append(samples[i], s)
			}
		}
		u.close()
		ms := func(s []sample, f func(sample) time.Duration) float64 {
			return float64(median(s, f).Microseconds()) / 1000
		}
		first := len(t.Rows)
		for i, p := range b.peers {
			failed := 0
			for _, s := range samples[i] {
				failed += s.failed
			}
			t.add(n, p.name, median(samples[i], func(s sample) float64 { return s.cpu }), ms(samples[i], func(s sample) time.Duration { return s.p50 }),
				ms(samples[i], func(s sample) time.Duration { return s.p99 }), ms(samples[i], func(s sample) time.Duration { return s.p999 }), failed)
		}
		b.budget(fmt.Sprintf("CPU of a proxied request over %d upstreams, beside stock Caddy", n), ratio(t.value(first, 2), t.value(first+1, 2)), 1.02)
	}
	t.chart(1, 2)
	t.chart(1, 4)
	return nil
}

// spurious counts 503s while one of ten upstreams is up, asked by 64 clients.
func (b *bench) spurious(ctx context.Context) error {
	const upstreams, clients = 10, 64
	n := int(b.duration/time.Second) * 1500
	t := b.table("Spurious 503s", fmt.Sprintf("%d clients, %d requests without a pause; %d upstreams, one of which is up, and the others are known to be down.", clients, n, upstreams),
		"proxy", "answers 503", "other failures")
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
		t.add(p.name, unavailable.Load(), other.Load())
		if p.name == thisBuild {
			b.budget("spurious 503s with one of ten upstreams up", float64(unavailable.Load()+other.Load()), 0)
		}
		if err := running.stop(); err != nil {
			return err
		}
	}
	t.chart(0, 1)
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

// weights looks at who gets requests when the first of three with weights is dead.
func (b *bench) weights(ctx context.Context) error {
	weights := []int{1, 2, 5}
	const requests = 700
	t := b.table("Weights with a dead upstream", fmt.Sprintf("%d requests, one after the other, over upstreams with the weights 1, 2 and 5, of which the first is dead: 2 to 5 would be right.", requests),
		"proxy", "shares of the living", "off by (%)", "longest run", "failed")
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
		t.add(p.name, strconv.Itoa(two)+" to "+strconv.Itoa(five), off, longest, failed)
		if err := running.stop(); err != nil {
			return err
		}
	}
	t.chart(0, 2)
	return nil
}

// reloads counts what fails while the config is loaded anew each second, and how often
// an upstream gets requests that is known to be dead.
func (b *bench) reloads(ctx context.Context) error {
	t := b.table("Reload every second", fmt.Sprintf("%d requests a second for %s over three upstreams, one of which answers everything 503 and fails its checks; no retries.", b.rate/2, b.duration),
		"proxy", "reloads", "failed requests", "requests to the dead one", "p99 (ms)")
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
		t.add(p.name, reloads, failures(results), after.Requests-before.Requests, float64(percentile(results, 99).Microseconds())/1000)
	}
	b.note("nginx as Debian has it makes no checks, so nothing is known when it is loaded anew: it is left out there.")
	t.chart(0, 2)
	return nil
}

// picks runs the benchmarks of the pick, which compare it with Caddy's own policies.
func (b *bench) picks(ctx context.Context) error {
	t := b.table("Picks", "The time of a pick over that of Caddy's own policy in the same run, by turns.", "pool", "ratio", "at most")
	ratios, err := runPicks(ctx)
	if err != nil {
		return err
	}
	for _, r := range ratios {
		t.add(r.what, r.ratio, r.atMost)
		b.budget("pick: "+r.what, r.ratio, r.atMost)
	}
	return nil
}

// lastBefore returns the last of results that is true of f, nil if none is.
func lastBefore(results []result, f func(result) bool) *result {
	i := len(results) - 1
	for i >= 0 && !f(results[i]) {
		i--
	}
	if i < 0 {
		return nil
	}
	return &results[i]
}
