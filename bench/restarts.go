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

// restartSetup is this build with options.
type restartSetup struct {
	failOpen, observe string
	peer
}

// restartVariants returns this build with and without fail_open, and with and without
// what traffic says.
func (b *bench) restartVariants() (all []restartSetup) {
	for _, failOpen := range []string{"none_up", "off"} {
		for _, observe := range []string{observing, unobserving} {
			name := thisBuild + ", fail_open " + failOpen + ", observe " + observe
			all = append(all, restartSetup{failOpen, observe, setup(name, b.caddy, alive("check http "+probePath, retriesOff, "fail_open "+failOpen, observeLine(observe)))})
		}
	}
	return all
}

// restartSetups returns the same as peers.
func (b *bench) restartSetups() (setups []peer) {
	for _, s := range b.restartVariants() {
		setups = append(setups, s.peer)
	}
	return setups
}

// restarted is what a restart did to the requests of a proxy.
type restarted struct {
	failed     int
	picked, up float64 // from the time at which the upstreams listen again, in seconds
}

// afterRestart is how long the load goes on after a restart.
const afterRestart = 8 * time.Second

// restarts measures short restarts of one of three upstreams, and of all, with and
// without what traffic says of them.
func (b *bench) restarts(ctx context.Context) error {
	t := b.table("Restarts", fmt.Sprintf("One of three upstreams, or all of them, are killed with SIGKILL and listen again after a while (%s). Each proxy gets %d requests a second. The check is HTTP at its defaults, and there are no retries. All proxies run at the same time.\n\n- Picked again after: the time from the end of the restart until every upstream gets its share, and goes on to get it: the end of the last time without an answer of one of them for %s.\n- Up again after: the time until the list shows all as up.\n- Never: not within %s.\n\nCounts are sums of all rounds. Seconds are those of the worst round.", rounds(b.rounds), faultRate, idleGap, afterRestart),
		label("restart"), label("fail_open"), label("observe"), total("failed"), worst("picked again after (s)"), worst("up again after (s)"))
	for _, outage := range []time.Duration{300 * time.Millisecond, 600 * time.Millisecond} {
		for _, of := range []int{1, 3} {
			name := fmt.Sprintf("%s of %d", outage, of)
			variants := b.restartVariants()
			for round := range b.rounds {
				outcomes, errs := make([]restarted, len(variants)), make([]error, len(variants))
				var running sync.WaitGroup
				for i, v := range variants {
					running.Go(func() { outcomes[i], errs[i] = b.restartUnderLoad(ctx, v.peer, 60+i, outage, of) })
				}
				running.Wait()
				for i, v := range variants {
					if errs[i] != nil {
						return fmt.Errorf("%s, %s: %w", name, v.name, errs[i])
					}
					t.sample(round, name, v.failOpen, v.observe, outcomes[i].failed, outcomes[i].picked, outcomes[i].up)
				}
			}
			for _, failOpen := range []string{"none_up", "off"} {
				value := func(column, observe string) float64 { return t.value(column, name, failOpen, observe) }
				what := fmt.Sprintf("a restart of %s, fail_open %s", name, failOpen)
				b.budget("seconds until all are picked after "+what, value("picked again after (s)", observing), 1)
				b.budget("seconds until all are up after "+what, value("up again after (s)", observing), 1)
				// the requests of 10 ms are within the noise
				b.budget("failed requests in "+what, value("failed", observing), 1.05*value("failed", unobserving)+float64(b.rounds)*faultRate/100)
			}
		}
	}
	return nil
}

// restartUnderLoad restarts some of the three upstreams of a proxy.
func (b *bench) restartUnderLoad(ctx context.Context, p peer, network int, outage time.Duration, of int) (o restarted, err error) {
	s, err := b.newSite(ctx, p, network, normal, noRetries)
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, s.close()) }()

	lasts := lead + outage + afterRestart
	ends := time.Now().Add(lasts)
	var restarting sync.WaitGroup
	var began, listens, down time.Time
	errs := make([]error, of+1)
	restarting.Go(func() {
		if errs[of] = pause(ctx, lead); errs[of] != nil {
			return
		}
		began = time.Now()
		listens = began.Add(outage)
		var each sync.WaitGroup
		for i, u := range s.upstreams[:of] {
			each.Go(func() { u.kill(); errs[i] = u.beginAt(ctx, listens) })
		}
		down, errs[of] = s.proxy.lastDown(ctx, s.addresses[:of], ends)
		each.Wait()
	})
	results := attack(ctx, s.proxy.url(), faultRate, lasts)
	restarting.Wait()
	o = restarted{failed: failures(results), picked: gaps(results, s.addresses, began, listens)}
	switch {
	case down.After(ends.Add(-idleGap)):
		o.up = never
	case down.After(listens):
		o.up = down.Sub(listens).Seconds()
	}
	return o, errors.Join(errs...)
}

// lastDown looks at some upstreams until a time, and returns when one was last not up.
func (p *proxy) lastDown(ctx context.Context, upstreams []string, until time.Time) (last time.Time, err error) {
	for time.Now().Before(until) {
		for _, upstream := range upstreams {
			shown, err := p.rowOf(ctx, upstream)
			if err != nil {
				return last, err
			}
			if shown.Status != "up" {
				last = time.Now()
			}
		}
		if err := pause(ctx, 25*time.Millisecond); err != nil {
			return last, err
		}
	}
	return last, nil
}

// idleGap is far longer than an upstream waits for its share of the requests.
const idleGap = 200 * time.Millisecond

// gaps returns the seconds from the end of a disturbance until the end of the last time
// after its begin in which an upstream answered nothing for idleGap.
func gaps(results []result, addresses []string, began, ended time.Time) float64 {
	latest := ended
	for _, address := range addresses {
		last := began
		for _, r := range results {
			if !r.ok() || r.from != address || r.due.Before(last) {
				continue
			}
			if r.due.Sub(last) > idleGap && r.due.After(latest) {
				latest = r.due
			}
			last = r.due
		}
		if results[len(results)-1].due.Sub(last) > idleGap {
			return never
		}
	}
	return latest.Sub(ended).Seconds()
}
