// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
)

// fault is what can befall an upstream.
type fault struct {
	name   string
	inject func(ctx context.Context, u *upstream) error
	heal   func(ctx context.Context, u *upstream) error
	counts bool // the upstream can tell how many requests reach it meanwhile
}

var faults = []fault{
	{"kill -9", func(_ context.Context, u *upstream) error { u.kill(); return nil }, func(ctx context.Context, u *upstream) error { return u.begin(ctx) }, false},
	{"SIGSTOP", send(syscall.SIGSTOP), send(syscall.SIGCONT), false},
	{"503s", mode("503"), mode(""), true},
	{"resets after accept", mode("reset"), mode(""), false},
	{"2 s latency", mode("slow"), mode(""), true},
	{"black hole", func(ctx context.Context, u *upstream) error { return u.swallow(ctx) }, func(ctx context.Context, u *upstream) error { u.unswallow(); return u.begin(ctx) }, false},
}

// mode has an upstream answer in another way.
func mode(name string) func(context.Context, *upstream) error {
	return func(ctx context.Context, u *upstream) error { return u.set(ctx, name) }
}

// send sends a signal to an upstream.
func send(s os.Signal) func(context.Context, *upstream) error {
	return func(_ context.Context, u *upstream) error { return u.cmd.Process.Signal(s) }
}

const (
	faultRate = 200                    // requests a second, for each proxy
	lead      = 2 * time.Second        // before the fault
	tail      = 4 * time.Second        // after it
	notable   = 500 * time.Millisecond // a request that takes longer was held up
)

// outcome is what a fault did to the requests of one proxy.
type outcome struct {
	failed         int
	reached        float64 // requests that the upstream saw meanwhile, if it can tell
	eject, readmit float64 // in seconds
	slowest        time.Duration
}

// faults looks at what becomes of requests when one of three upstreams fails. All
// proxies run at once, each with upstreams of its own: nothing here is measured that
// would mind.
func (b *bench) faults(ctx context.Context) error {
	during := max(6*time.Second, b.duration*3/5)
	t := b.table("Faults", fmt.Sprintf("%d requests a second over three upstreams, of which one fails for %s. Ejected is when the last request failed, was held up for longer than %s, or reached it; readmitted is when it answered the first one afterwards. With retries there are up to two, after 502, 503 and 504 too.",
		faultRate, during, notable), label("fault"), label("retries"), label("proxy"), total("failed"), total("reached it"), worst("ejected after (s)"), worst("readmitted after (s)"), worst("slowest (s)"))
	// the longest of an interval, and three probes
	const bound = 1.1 + 3*1.1
	for _, f := range faults {
		for _, retries := range []bool{false, true} {
			outcomes := make([]outcome, len(b.peers))
			errs := make([]error, len(b.peers))
			var running sync.WaitGroup
			for i, p := range b.peers {
				running.Go(func() { outcomes[i], errs[i] = b.fail(ctx, f, p, 10+i, retries, during) })
			}
			running.Wait()
			for i, p := range b.peers {
				if errs[i] != nil {
					return fmt.Errorf("%s, %s: %w", f.name, p.name, errs[i])
				}
				o := outcomes[i]
				t.sample(0, f.name, map[bool]string{true: "yes", false: "no"}[retries], p.name, o.failed, o.reached, o.eject, o.readmit, o.slowest.Seconds())
				if p.name != thisBuild {
					continue
				}
				if retries {
					b.budget("failed requests with retries, "+f.name, float64(o.failed), 0)
				} else {
					b.budget("seconds to eject, "+f.name, o.eject, bound)
				}
			}
		}
	}
	return nil
}

// fail has one fault befall one upstream of a proxy.
func (b *bench) fail(ctx context.Context, f fault, p peer, network int, retries bool, during time.Duration) (o outcome, err error) {
	addresses, err := freeAddresses(ctx, network, 3)
	if err != nil {
		return o, err
	}
	var all []*upstream
	for _, address := range addresses {
		u, err := startUpstream(ctx, b.scratch, address)
		if err != nil {
			return o, err
		}
		defer u.close()
		all = append(all, u)
	}
	proxy, err := p.run(ctx, b.scratch, balance{upstreams: addresses, retries: retries})
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, proxy.stop()) }()

	var began, healed time.Time
	var before, after upstreamCount
	var failing sync.WaitGroup
	var failed error
	failing.Go(func() {
		failed = func() (err error) {
			if err := pause(ctx, lead); err != nil {
				return err
			}
			if before, err = all[0].count(ctx); err != nil {
				return err
			}
			began = time.Now()
			if err := f.inject(ctx, all[0]); err != nil {
				return err
			}
			if err := pause(ctx, during-time.Since(began)); err != nil {
				return err
			}
			if f.counts {
				if after, err = all[0].count(ctx); err != nil {
					return err
				}
			}
			healed = time.Now()
			return f.heal(ctx, all[0])
		}()
	})
	results := attack(ctx, proxy.url(), faultRate, lead+during+tail)
	failing.Wait()
	if failed != nil {
		return o, failed
	}

	o = outcome{failed: failures(results), reached: unknown, eject: never, readmit: never}
	for _, r := range results {
		o.slowest = max(o.slowest, r.latency)
	}
	last := lastBefore(results, func(r result) bool {
		return r.due.After(began) && r.due.Before(healed) && (!r.ok() || r.latency > notable)
	})
	ejected := began
	if last != nil {
		ejected = last.due
	}
	if f.counts {
		o.reached = float64(after.Requests - before.Requests)
		if reached := time.Unix(0, after.Last); reached.After(ejected) {
			ejected = reached
		}
	}
	if healed.Sub(ejected) > 200*time.Millisecond { // else it went on to the end
		o.eject = ejected.Sub(began).Seconds()
	}
	for _, r := range results {
		if r.due.After(healed) && r.from == addresses[0] && r.ok() {
			o.readmit = r.due.Sub(healed).Seconds()
			break
		}
	}
	return o, nil
}
