// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// The load of three upstreams with a capacity, as shares of it.
const (
	calmLoad   = 0.75
	heavyLoad  = 0.95
	spikeLoad  = 1.5
	allWorkers = 3 * workers
)

// Lengths of the phases around the heavy load and the spike.
const (
	calmBefore = 2 * time.Second
	calmAfter  = 6 * time.Second
)

// What tables call this build with and without what traffic says.
const (
	observing   = "on"
	unobserving = "off"
)

// observeLine returns the option for what a table calls it.
func observeLine(observe string) string {
	if observe == unobserving {
		return observeOff
	}
	return ""
}

// overloadSetups returns this build with and without what traffic says.
func (b *bench) overloadSetups() (setups []peer) {
	for _, observe := range []string{observing, unobserving} {
		setups = append(setups, setup(thisBuild+", observe "+observe, b.caddy, alive(everySecond, retriesOff, observeLine(observe))))
	}
	return setups
}

// phase is a part of a plan.
type phase struct {
	lasts time.Duration
	load  float64 // as a share of the capacity
}

// plan returns the arrivals of phases: of many independent clients, so the gaps between
// them and the work of each are exponentially distributed. A seed always gives the same
// plan.
func plan(seed uint64, phases []phase) (all []arrival) {
	random := rand.New(rand.NewPCG(seed, 0))
	var start time.Duration
	for _, p := range phases {
		gap := meanWork.Seconds() / allWorkers / p.load
		for at := start; ; {
			at += time.Duration(random.ExpFloat64() * gap * float64(time.Second))
			if at > start+p.lasts {
				break
			}
			all = append(all, arrival{at, time.Duration(random.ExpFloat64() * float64(meanWork))})
		}
		start += p.lasts
	}
	return all
}

// shed is what an overload did to the requests of a proxy.
type shed struct {
	sent, failed [2]int // in the heavy load, and in the spike and after it
	recovered    float64
}

// overload measures three upstreams that answer 503 when they are full, with and without
// what traffic says of them.
func (b *bench) overload(ctx context.Context) error {
	heavy, spike := b.duration, min(10*time.Second, b.duration)
	phases := []phase{{calmBefore, calmLoad}, {heavy, heavyLoad}, {spike, spikeLoad}, {calmAfter, calmLoad}}
	const failedHeavy, failedSpike, recovered = "failed at 95 %", "failed in the spike", "recovered after (s)"
	t := b.table("Overload", fmt.Sprintf("Each of three upstreams has %d workers and %d places to wait. It answers 503 without Retry-After when all are taken. A request takes %s on average; gaps and work are exponentially distributed, and equal for all proxies. The load is %.0f %% of the capacity for %s, %.0f %% for %s, and then %.0f %% (%s). There are no retries. In one setup probes always pass; in the other they wait and get 503 as requests do. Recovered after: the end of the last half second after the spike in which more than 10 %% of the requests failed, or of the last time without an answer of one of the upstreams for %s, whichever is later; the median of the rounds. caddy-alive runs with `observe on` and `observe off` at the same time.", workers, waiting, meanWork, 100*heavyLoad, heavy, 100*spikeLoad, spike, 100*calmLoad, rounds(b.rounds), idleGap),
		label("probes"), label("observe"), total("sent at 95 %"), total(failedHeavy), total("sent in the spike"), total(failedSpike), typical(recovered))
	for _, probes := range []struct{ name, mode string }{{"always pass", limited}, {"are shed, too", limitedProbes}} {
		for round := range b.rounds {
			requests := plan(uint64(round+1), phases)
			setups := b.overloadSetups()
			outcomes, errs := make([]shed, len(setups)), make([]error, len(setups))
			var running sync.WaitGroup
			for i, p := range setups {
				running.Go(func() {
					outcomes[i], errs[i] = b.overloadOne(ctx, p, 50+i, probes.mode, requests, calmBefore+heavy, spike)
				})
			}
			running.Wait()
			if err := errors.Join(errs...); err != nil {
				return err
			}
			for i, observe := range []string{observing, unobserving} {
				o := outcomes[i]
				t.sample(round, probes.name, observe, o.sent[0], o.failed[0], o.sent[1], o.failed[1], o.recovered)
			}
		}
		value := func(column, observe string) float64 { return t.value(column, probes.name, observe) }
		// a share of a small number is within the noise, so some requests are allowed
		b.budget("failed requests at 95 % load, probes "+probes.name, value(failedHeavy, observing), 1.1*value(failedHeavy, unobserving)+0.005*value("sent at 95 %", unobserving))
		b.budget("failed requests in a spike, probes "+probes.name, value(failedSpike, observing), 1.1*value(failedSpike, unobserving))
		b.budget("seconds to recover from a spike, probes "+probes.name, value(recovered, observing), value(recovered, unobserving)+0.5)
	}
	t.chart(5)
	return nil
}

// overloadOne measures one proxy. The spike begins at a time after the start, and lasts
// for another.
func (b *bench) overloadOne(ctx context.Context, p peer, network int, mode string, requests []arrival, begins, lasts time.Duration) (o shed, err error) {
	s, err := b.newSite(ctx, p, network, mode, noRetries)
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	began := time.Now()
	results := play(ctx, s.proxy.url(), requests)
	o = shedding(results, began, begins, lasts)
	over := began.Add(begins + lasts)
	o.recovered = max(o.recovered, gaps(results, s.addresses, over, over))
	return o, ctx.Err()
}

// shedding evaluates the requests of an overload.
func shedding(results []result, began time.Time, begins, lasts time.Duration) (o shed) {
	const step = 500 * time.Millisecond
	sent, failed := make(map[int]int), make(map[int]int) // of each step after the spike
	for _, r := range results {
		due := r.due.Sub(began)
		i := 0
		if due >= begins {
			i = 1
		}
		o.sent[i]++
		after := int((due - begins - lasts) / step)
		if due >= begins+lasts {
			sent[after]++
		}
		if r.ok() {
			continue
		}
		o.failed[i]++
		if due >= begins+lasts {
			failed[after]++
		}
	}
	for after, n := range failed {
		if float64(n) > 0.1*float64(sent[after]) {
			o.recovered = max(o.recovered, (time.Duration(after+1) * step).Seconds())
		}
	}
	return o
}
