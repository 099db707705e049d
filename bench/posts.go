// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// outcomesToEject is how many outcomes in a row eject an upstream by default.
	outcomesToEject = 5
	// ejectedFor is how long the first ejection lasts by default, and trialWait how long
	// the trial after it waits for a request that may be sent again.
	ejectedFor, trialWait = 30 * time.Second, time.Second
	// postRest is the pause of a client, which keeps the load of all proxies bearable.
	postRest = 80 * time.Millisecond
)

// postSetups returns proxies with nothing except a check by TCP, where they have one.
func (b *bench) postSetups() []peer {
	setups := []peer{
		setup(thisBuild, b.caddy, alive(retriesOff)),
		setup(stockCaddy, b.stock, "lb_policy round_robin"),
	}
	if path, err := exec.LookPath("haproxy"); err == nil {
		setups = append(setups, peer{name: "HAProxy", path: path, args: []string{"-W", "-db", "-f", "haproxy.cfg"}, config: func(listen string, to balance) (string, string) {
			file, text := haproxyConfig(listen, to)
			return file, strings.NewReplacer("\toption httpchk GET "+probePath+"\n", "", " inter 1s fall 3 rise 2", "").Replace(text)
		}})
	}
	return setups
}

// posted is what a fault that checks do not see did to requests.
type posted struct {
	requests, failed, again int
	ejected                 string  // as the list of this build shows it
	back                    float64 // from the start of the fault, in seconds
}

// posts measures POST requests while an upstream accepts connections and resets them,
// which a check by TCP does not see.
func (b *bench) posts(ctx context.Context) error {
	during := min(5*time.Second, max(2*time.Second, b.duration))
	limit := during + ejectedFor + trialWait + 5*time.Second
	t := b.table("POST and a check by TCP", fmt.Sprintf("One of three upstreams accepts connections and resets them, for %s (%s). %d clients send POST requests to each proxy, each with a pause of %s after an answer. There are no retries, and the only checks are by TCP: of `lb_policy alive`, and of `check` of HAProxy. Stock Caddy has none. All proxies run at the same time.\n\n- Shown: whether the list of this build shows the upstream as ejected before the fault ends.\n- Back after: the time from the start of the fault to the first answer of the upstream after it. This build ejects an upstream for %s, and then sends it one request as a trial.", during, rounds(b.rounds), pressing, postRest, ejectedFor),
		label("proxy"), total("requests"), total("failed"), total("repeated"), most("failed, worst round"), total("shown as ejected"), worst("back after (s)"))
	for round := range b.rounds {
		setups := b.postSetups()
		outcomes, errs := make([]posted, len(setups)), make([]error, len(setups))
		var running sync.WaitGroup
		for i, p := range setups {
			running.Go(func() { outcomes[i], errs[i] = b.post(ctx, p, 40+i, during, limit) })
		}
		running.Wait()
		for i, p := range setups {
			if errs[i] != nil {
				return fmt.Errorf("%s: %w", p.name, errs[i])
			}
			o := outcomes[i]
			shown := unknown
			if p.name == thisBuild {
				if shown = 0; o.ejected != "" {
					shown = 1
				}
			}
			t.sample(round, p.name, o.requests, o.failed, o.again, o.failed+o.again, shown, o.back)
		}
	}
	b.budget("failed POST requests, an upstream accepts and resets behind a check by TCP", t.value("failed, worst round", thisBuild), outcomesToEject+pressing)
	b.budget("rounds in which it was not shown as ejected", float64(b.rounds)-t.value("shown as ejected", thisBuild), 0)
	b.budget("seconds until it is back, from the start of the fault", t.value("back after (s)", thisBuild), (ejectedFor + trialWait + 2*time.Second).Seconds())
	t.chart(2)
	return nil
}

// post makes one upstream of a proxy accept and reset, and mends it.
func (b *bench) post(ctx context.Context, p peer, network int, during, limit time.Duration) (o posted, err error) {
	s, err := b.newSite(ctx, p, network, normal, noRetries)
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	pressed, stop := context.WithCancel(ctx)
	defer stop()
	var results []result
	var posting sync.WaitGroup
	posting.Go(func() {
		results = press(ctx, http.MethodPost, s.proxy.url(), pressing, postRest, func(int) bool { return pressed.Err() == nil })
	})
	err = pause(ctx, lead)
	began := time.Now()
	err = errors.Join(err, s.upstreams[0].set(ctx, resets))
	if err == nil {
		err = pause(ctx, during)
	}
	if p.name == thisBuild && err == nil {
		var shown row
		shown, err = s.proxy.rowOf(ctx, s.addresses[0])
		o.ejected = shown.Ejected
	}
	err = errors.Join(err, s.upstreams[0].set(ctx, normal))
	healed := time.Now()
	before, countErr := s.upstreams[0].count(ctx)
	// two requests: the first may be a trial
	_ = within(ctx, time.Until(began.Add(limit)), "a request", func() bool {
		now, err := s.upstreams[0].count(ctx)
		return err != nil || now.Requests > before.Requests+1
	})
	err = errors.Join(err, countErr, pause(ctx, time.Second))
	stop()
	posting.Wait()
	o.requests, o.failed, o.again, o.back = len(results), failures(results), repeats(results), never
	for _, r := range results {
		if r.ok() && r.from == s.addresses[0] && r.due.After(healed) {
			o.back = math.Min(o.back, r.due.Add(r.latency).Sub(began).Seconds())
		}
	}
	return o, err
}

// row is what the list of this build shows of an upstream.
type row struct {
	Status  string `json:"status"`
	Ejected string `json:"ejected_until"`
}

// rowOf returns what this build shows of an upstream. The list of all upstreams may be a
// second old, that of one is not.
func (p *proxy) rowOf(ctx context.Context, upstream string) (row, error) {
	var rows []row
	err := getJSON(ctx, overUnix(filepath.Join(p.folder, "admin.sock")), "http://127.0.0.1/alive/upstreams?upstream="+url.QueryEscape(upstream), &rows)
	if err == nil && len(rows) != 1 {
		err = fmt.Errorf("the list of %s has %d rows of %s, not one", p.name, len(rows), upstream)
	}
	if err != nil {
		return row{}, err
	}
	return rows[0], nil
}
