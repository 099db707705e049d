// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// atOnce is how many requests each upstream may have at once.
const atOnce = 4

// limitSetups are this build with limits, with a queue and without.
func (b *bench) limitSetups() []peer {
	limit := fmt.Sprintf("max_requests %d", atOnce)
	return []peer{
		setup("with a queue", b.caddy, alive(everySecond, limit, "queue 10s", retriesOff)),
		setup("without a queue", b.caddy, alive(everySecond, limit, retriesOff)),
	}
}

// limits counts how many requests upstreams get at once, and which ones get 503, while many
// clients send requests without pauses and the config is reloaded. It also measures what a pick
// with limits costs.
func (b *bench) limits(ctx context.Context) error {
	requests := int(b.duration.Seconds() * 5000)
	t := b.table("Limits", fmt.Sprintf("%d clients send %d requests a round without pauses (%s) over three upstreams, each of which takes a millisecond for a request and may have %d at once. The config is reloaded after a third and after two thirds of the requests. An upstream counts a request until just before it ends its answer.", clients, requests, rounds(b.rounds), atOnce),
		label("caddy-alive"), most("most requests at once"), total("requests"), total("503 responses"), total("other failures"), worst("longest (s)"))
	for round := range b.rounds {
		for _, p := range b.limitSetups() {
			p.reload = b.peers[0].reload
			if err := b.limitUnderLoad(ctx, t, round, p, requests); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	for _, p := range b.limitSetups() {
		b.budget("requests at once, of "+fmt.Sprint(atOnce)+" allowed, "+p.name, t.value("most requests at once", p.name), atOnce)
	}
	b.budget("503 responses with a queue", t.value("503 responses", "with a queue"), 0)
	b.budget("other failures with a queue", t.value("other failures", "with a queue"), 0)
	return b.limitPicks(ctx)
}

// limitUnderLoad measures one setup in one round.
func (b *bench) limitUnderLoad(ctx context.Context, t *table, round int, p peer, requests int) (err error) {
	addresses, err := freeAddresses(ctx, 40, 3)
	if err != nil {
		return err
	}
	all, end, err := startEach(ctx, b.scratch, addresses)
	if err != nil {
		return err
	}
	defer end()
	for _, u := range all {
		if err := u.set(ctx, limited); err != nil {
			return err
		}
	}
	proxy, err := p.run(ctx, b.scratch, balance{upstreams: addresses})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, proxy.stop()) }()
	if err := pause(ctx, lead); err != nil { // until its checks have ended
		return err
	}
	due := make(chan struct{}, 2)
	var reloading sync.WaitGroup
	var failed error
	reloading.Go(func() {
		for range due {
			failed = errors.Join(failed, p.reload(ctx, proxy))
		}
	})
	results := press(ctx, http.MethodGet, proxy.url(), clients, 0, func(sent int) bool {
		if sent == requests/3 || sent == 2*requests/3 {
			due <- struct{}{}
		}
		return sent < requests
	})
	close(due)
	reloading.Wait()
	highest := 0
	for _, u := range all {
		c, err := u.count(ctx)
		if err != nil {
			return err
		}
		highest = max(highest, int(c.Most))
	}
	full, longest := 0, time.Duration(0)
	for _, r := range results {
		if r.status == http.StatusServiceUnavailable {
			full++
		}
		longest = max(longest, r.latency)
	}
	t.sample(round, p.name, highest, len(results), full, failures(results)-full, longest.Seconds())
	return errors.Join(failed, ctx.Err())
}

// limitLine is what TestBudgets_Limits prints for each pool.
var limitLine = regexp.MustCompile(`: +(\d+ upstreams) with limits, (\d+) at once: +([\d.]+) ns a pick, least_conn +([\d.]+) ns: ratio ([\d.]+)`)

// limitPicks runs the test that measures a pick with limits.
func (b *bench) limitPicks(ctx context.Context) error {
	t := b.table("Picks with limits", "A pick with `max_requests` takes a slot, and frees that of the pick before. The ratio is its time divided by the time of a pick of Caddy's `least_conn`, measured in turns in the same run. The figures come from `go test -run TestBudgets_Limits -v . -budgets`.",
		label("pool"), label("goroutines"), typical("ns a pick"), typical("ns of least_conn"), typical("ratio"))
	test := exec.CommandContext(ctx, "go", "test", "-count", "1", "-run", "^TestBudgets_Limits$", "-budgets", "-v", ".")
	test.Dir = ".."
	out, failed := test.CombinedOutput()
	if failed != nil {
		return fmt.Errorf("TestBudgets_Limits: %w: %s", failed, out)
	}
	for line := range strings.Lines(string(out)) {
		m := limitLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		var figures [3]float64
		for i, text := range m[3:] {
			var err error
			if figures[i], err = strconv.ParseFloat(text, 64); err != nil {
				return err
			}
		}
		t.sample(0, m[1], m[2], figures[0], figures[1], figures[2])
	}
	if len(t.Rows) == 0 {
		return fmt.Errorf("TestBudgets_Limits has printed no figures: %s", out)
	}
	return nil
}
