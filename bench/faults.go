// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"syscall"
	"time"
)

// fault is a fault of an upstream.
type fault struct {
	name   string
	inject func(ctx context.Context, u *upstream) error
	heal   func(ctx context.Context, u *upstream) error
	counts bool    // the upstream can count the requests that reach it meanwhile
	atMost float64 // requests of a round that fail without retries
}

// How many requests of a round may fail without retries: those that are on their way when
// the first one fails; and those that are sent while a request has no answer for half a
// second, and an eighth of a second later.
const (
	fewFail    = 3
	stallFails = 50
)

var faults = []fault{
	{"kill -9", func(_ context.Context, u *upstream) error { u.kill(); return nil }, func(ctx context.Context, u *upstream) error { return u.begin(ctx) }, false, fewFail},
	{"SIGSTOP", send(syscall.SIGSTOP), send(syscall.SIGCONT), false, stallFails},
	{"503s", mode(unavailable), mode(normal), true, fewFail},
	{"resets after accept", mode(resets), mode(normal), true, fewFail},
	{slowAnswers, mode(slow), mode(normal), true, 0},
	{"black hole", func(ctx context.Context, u *upstream) error { return u.swallow(ctx) }, func(ctx context.Context, u *upstream) error { return u.unswallow(ctx) }, false, stallFails},
}

// slowAnswers is the fault in which requests do not fail, but are delayed.
const slowAnswers = "2 s latency"

// refused is the fault of a process that lives, and whose port refuses connections.
var refused = fault{"refused connections", mode(refuses), mode(normal), false, fewFail}

// mode makes an upstream answer in another way.
func mode(name string) func(context.Context, *upstream) error {
	return func(ctx context.Context, u *upstream) error { return u.set(ctx, name) }
}

// send sends a signal to an upstream.
func send(s os.Signal) func(context.Context, *upstream) error {
	return func(_ context.Context, u *upstream) error { return u.cmd.Process.Signal(s) }
}

const (
	faultRate = 200                    // requests a second, for each proxy
	lead      = time.Second            // before the fault
	tail      = 4 * time.Second        // after it
	notable   = 500 * time.Millisecond // a request that takes longer is delayed
)

// outcome is what a fault did to the requests of one proxy.
type outcome struct {
	failed, again, heldUp int
	reached               float64 // attempts that the upstream counted meanwhile, if it can count
	eject, readmit        float64 // in seconds
	slowest               time.Duration
}

// faults measures the requests while one of three upstreams fails. All proxies run at
// once, each with upstreams of its own, because one after the other would take four
// times as long: the results are seconds and counts, not milliseconds. It is the
// longest part, so it has one round less than the others.
func (b *bench) faults(ctx context.Context) error {
	during := max(answerTimeout+4*time.Second, b.duration*3/5)
	times := max(1, b.rounds-1)
	t := b.table("Faults", fmt.Sprintf("One of three upstreams fails for %s. Each proxy gets %d requests a second, %d in a round (%s). All proxies run at the same time. With retries, a request is retried up to two times, also after the statuses 502, 503 and 504. In a black hole, open connections get no answer, and new ones are neither accepted nor refused, as when a machine is cut off.\n\n- Repeated: requests that did not fail because the client sent them again. Go and browsers do this when a kept connection ends without a response. HAProxy relies on it when an upstream breaks a connection.\n- Delayed: requests that took longer than %s.\n- Reached: attempts that reached the faulty upstream, where it can count them.\n- Ejected after: the time until the last attempt reached the upstream. Where it cannot count, this is the time until the last request failed, was repeated or was delayed. A dash means that retries hide it.\n- Readmitted after: the time from the end of the fault to the first answer of the upstream.\n- Never: not within %s after the fault.\n\nCounts are sums of all rounds. Seconds are those of the worst round. In the budgets without retries, a repeated request counts as failed: a client that does not send it again sees an error. With 2 s latency no request fails, so the delayed ones are compared.",
		during, faultRate, int((lead+during+tail)/time.Second)*faultRate, rounds(times), notable, tail),
		label("fault"), label("retries"), label("proxy"), total("failed"), total("repeated"), total("delayed"), total("reached"), worst("ejected after (s)"), worst("readmitted after (s)"), worst("slowest (s)"))
	// an interval and three probes, at their longest
	const bound = 1.1 + 3*1.1
	for _, f := range faults {
		for _, again := range []retries{noRetries, twoRetries} {
			for round := range times {
				err := b.failAll(ctx, f, b.peers, 10, again, during, func(p peer, o outcome) {
					t.sample(round, f.name, again.String(), p.name, o.failed, o.again, o.heldUp, o.reached, o.eject, o.readmit, o.slowest.Seconds())
				})
				if err != nil {
					return err
				}
			}
		}
		value := func(column, retries string) float64 { return t.value(column, f.name, retries, thisBuild) }
		b.budget("seconds to eject, "+f.name, value("ejected after (s)", "no"), bound)
		if eject := value("ejected after (s)", "yes"); !math.IsNaN(eject) {
			b.budget("seconds to eject with retries, "+f.name, eject, bound)
		}
		b.budget("failed requests with retries, "+f.name, value("failed", "yes"), 0)
		b.withoutRetries(t, f)
	}
	t.chartWhere(3, "failed requests without retries", func(row []any) bool { return row[1] == "no" })
	return nil
}

// withoutRetries judges the requests that failed without retries.
func (b *bench) withoutRetries(t *table, f fault) {
	worst, what := 0.0, "failed"
	for i, failed := range t.each("failed", f.name, "no", thisBuild) {
		worst = max(worst, failed+t.each("repeated", f.name, "no", thisBuild)[i])
	}
	lost := func(proxy string) float64 {
		return t.value("failed", f.name, "no", proxy) + t.value("repeated", f.name, "no", proxy)
	}
	if f.name == slowAnswers {
		what = "delayed"
		lost = func(proxy string) float64 { return t.value("delayed", f.name, "no", proxy) }
	}
	b.budget("failed requests without retries in the worst round, "+f.name, worst, f.atMost)
	others := make([]float64, 0, len(b.peers)-1)
	for _, p := range b.peers[1:] {
		others = append(others, lost(p.name))
	}
	b.fewer(what+" requests without retries, fewer than all others, "+f.name, lost(thisBuild), others)
}

// failAll makes one upstream of each proxy fail, at the same time, and calls show for the
// outcome of each. The proxies have loopback networks of their own, from this one on.
func (b *bench) failAll(ctx context.Context, f fault, peers []peer, network int, again retries, during time.Duration, show func(peer, outcome)) error {
	outcomes, errs := make([]outcome, len(peers)), make([]error, len(peers))
	var running sync.WaitGroup
	for i, p := range peers {
		running.Go(func() { outcomes[i], errs[i] = b.fail(ctx, f, p, network+i, again, during) })
	}
	running.Wait()
	for i, p := range peers {
		if errs[i] != nil {
			return fmt.Errorf("%s, %s: %w", f.name, p.name, errs[i])
		}
		show(p, outcomes[i])
	}
	return nil
}

// fail makes one upstream of a proxy fail.
func (b *bench) fail(ctx context.Context, f fault, p peer, network int, again retries, during time.Duration) (o outcome, err error) {
	s, err := b.newSite(ctx, p, network, normal, again)
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, s.close()) }()

	var failing sync.WaitGroup
	var happened period
	var failed error
	failing.Go(func() { happened, failed = f.befall(ctx, s.upstreams[0], during) })
	results := attack(ctx, s.proxy.url(), faultRate, lead+during+tail)
	failing.Wait()
	if failed != nil {
		return o, failed
	}
	return happened.outcome(results, s.addresses[0], again != noRetries), nil
}

// period is the time of a fault, and what the upstream counted in it.
type period struct {
	began, healed time.Time
	reached       float64
	last          time.Time // reached it
}

// befall makes the fault happen, at its time in the load.
func (f fault) befall(ctx context.Context, u *upstream, during time.Duration) (p period, err error) {
	if err := pause(ctx, lead); err != nil {
		return p, err
	}
	before, err := u.count(ctx)
	if err != nil {
		return p, err
	}
	p.began, p.reached = time.Now(), unknown
	if err := f.inject(ctx, u); err != nil {
		return p, err
	}
	if err := pause(ctx, during-time.Since(p.began)); err != nil {
		return p, err
	}
	if f.counts {
		after, err := u.count(ctx)
		if err != nil {
			return p, err
		}
		p.reached, p.last = float64(after.Requests-before.Requests), time.Unix(0, after.Last)
	}
	p.healed = time.Now()
	return p, f.heal(ctx, u)
}

// outcome evaluates the requests. If the upstream can count, it knows the time of the
// last attempt. Otherwise the failed and the delayed requests show it.
func (p period) outcome(results []result, upstream string, retries bool) outcome {
	o := outcome{failed: failures(results), again: repeats(results), reached: p.reached, readmit: never}
	counted := !math.IsNaN(p.reached)
	ejected, traces := p.began, 0
	if counted && p.last.After(p.began) {
		ejected = p.last
	}
	for _, r := range results {
		o.slowest = max(o.slowest, r.latency)
		if r.latency > notable {
			o.heldUp++
		}
		meanwhile := r.due.After(p.began) && r.due.Before(p.healed)
		waited := r.latency > notable && r.from == upstream || r.latency > connectTimeout && retries
		if !counted && meanwhile && (!r.ok() || r.again || waited) {
			traces++
			ejected = r.due
		}
		if o.readmit == never && r.due.After(p.healed) && r.from == upstream && r.ok() {
			o.readmit = r.due.Sub(p.healed).Seconds()
		}
	}
	switch {
	case !counted && traces == 0 && retries:
		o.eject = unknown // hidden by retries
	case p.healed.Sub(ejected) > notable+200*time.Millisecond:
		o.eject = ejected.Sub(p.began).Seconds()
	default: // it lasted until the end of the fault, as far as can be seen
		o.eject = never
	}
	return o
}
