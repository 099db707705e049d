// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Caddyfiles with the retries that this build has by default.
const (
	smallestFile  = thisBuild + ", nothing else"
	timeoutsFile  = thisBuild + ", timeouts"
	exampleFile   = thisBuild + ", example"
	smallestStock = stockCaddy + ", nothing else"
)

// smallestSetups returns the Caddyfiles with the default retries, and the smallest one of
// stock Caddy.
func (b *bench) smallestSetups() []peer {
	return []peer{
		setup(smallestFile, b.caddy, alive()),
		setup(timeoutsFile, b.caddy, alive()+timeouts),
		setup(exampleFile, b.caddy, alive()+" "+probePath+matchRetries+timeouts),
		setup(smallestStock, b.stock, ""),
	}
}

// smallest measures the smallest Caddyfile, with the retries that this build has by
// default, and what more lines add to it.
func (b *bench) smallest(ctx context.Context) error {
	during := max(answerTimeout+4*time.Second, b.duration*3/5)
	times := max(1, b.rounds-1)
	t := b.table("Smallest Caddyfile", fmt.Sprintf("One of three upstreams fails for %s. Each proxy gets %d GET requests a second (%s). All run at the same time.\n\n- %s: `lb_policy alive` and nothing else, so the check is a TCP connect every 5 s, and the retries are the default.\n- %s: the same with `dial_timeout %s` and `response_header_timeout %s`.\n- %s: `lb_policy alive %s` with these timeouts and the two `lb_retry_match` of the example.\n- %s: `reverse_proxy` without any line.\n\nWithout timeouts, requests to an upstream that hangs do not end, so only the faults that end a request are measured there. Caddy does not retry a response, as 503, without `lb_retry_match`.\n\nRefused connections: the process lives, and has closed its port and its idle connections.",
		during, faultRate, rounds(times), smallestFile, timeoutsFile, connectTimeout, answerTimeout, exampleFile, probePath, smallestStock),
		label("fault"), label("Caddyfile"), total("failed"), total("repeated"), total("delayed"), worst("slowest (s)"))
	for _, f := range append(slices.Clone(faults), refused) {
		setups := b.smallestSetups()
		if f.atMost != fewFail || f.name == "503s" { // it lasts, or nothing ends a request
			setups = setups[1:3]
		}
		for round := range times {
			err := b.failAll(ctx, f, setups, 20, defaultRetries, during, func(p peer, o outcome) {
				t.sample(round, f.name, p.name, o.failed, o.again, o.heldUp, o.slowest.Seconds())
			})
			if err != nil {
				return err
			}
		}
		for _, p := range setups {
			atMost := 0.0
			switch {
			case p.name == smallestStock:
				continue
			case p.name == timeoutsFile && f.name == "503s": // the check passes, so the outcomes eject it
				atMost = (outcomesToEject + fewFail) * float64(times)
			}
			b.budget("failed requests of "+p.name+": "+f.name, t.value("failed", f.name, p.name)+t.value("repeated", f.name, p.name), atMost)
		}
	}
	t.chart(2)
	return nil
}
