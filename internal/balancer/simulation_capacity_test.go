// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// begin makes the balancer, as the policy does when it is provisioned, and starts it.
func (s *simulation) begin(tb testing.TB, check *monitor.Check, dials []string) {
	ctx, unload := context.WithCancel(context.Background())
	c := Config{
		Name: "simulated", Transport: defaultTransport, Checks: []*monitor.Check{check},
		Proxy: &reverseproxy.Handler{Upstreams: brought(dials...)}, Logger: zap.NewNop(), Ended: ctx.Done(),
	}
	c.Rules.Hold = 2 * time.Second
	c.Rules.FailOpen, c.Rules.Retries = s.failOpen, s.retries > 0
	c.Rules.Witness = witness.DefaultSettings()
	c.Rules.Witness.Off = s.unobserved
	if c.Limit = s.limit; s.limit > 0 {
		c.Rules.Queue = pool.Queue{Timeout: 15 * time.Second, Length: 10_000}
	}
	s.policy = &policy{Balancer: new(Balancer), unload: unload}
	registry := newRegistry(tb, settings.NewSet())
	if err := s.policy.Init(registry, c); err != nil {
		tb.Fatal(err)
	}
	s.transport = s.policy.Observe(s.network, false)
	startAll([]*Balancer{s.policy.Balancer})
}

// pick selects the upstream of a request, as the policy does.
func (s *simulation) pick(r *http.Request) *reverseproxy.Upstream {
	b := s.policy.Balancer
	if now := b.Current(); now.Fast() {
		i := now.Draw()
		if u := b.listed[i]; u.Available() {
			return u
		}
		now.Skip(i)
	}
	return b.Decide(b.listed, r, nil)
}

// capacity is how much of the time servers got no requests although they could have.
type capacity struct {
	stop func() // ends the watching; nil if it did not begin

	mu     sync.Mutex
	taken  []time.Duration // from each server
	whole  time.Duration   // how long it was watched
	losses []int           // how often it began, for each server

	ejections map[ejection]bool // all that were seen
}

// ejection is one of a server.
type ejection struct {
	server string
	until  time.Time
}

// watched is how often it is looked at.
const watched = time.Millisecond

// watch begins to watch which servers get requests, until stop is called.
func (c *capacity) watch(s *simulation) {
	c.taken, c.losses = make([]time.Duration, len(s.servers)), make([]int, len(s.servers))
	end := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		tick := time.NewTicker(watched)
		defer tick.Stop()
		var last *pool.Snapshot
		out := make([]bool, len(s.servers))
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			if now := s.policy.Current(); now != last {
				last = now
				c.look(s, out)
			}
			c.count(out)
		}
	})
	c.stop = func() {
		close(end)
		watcher.Wait()
	}
}

// look finds out which servers get no requests.
func (c *capacity) look(s *simulation, out []bool) {
	without := s.without()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range out {
		if without[i] && !out[i] {
			c.losses[i]++
		}
	}
	copy(out, without)
}

func (c *capacity) count(out []bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.whole += watched
	for i, without := range out {
		if without {
			c.taken[i] += watched
		}
	}
}

// share returns the share of the capacity of all servers that was taken away, and how
// often one was taken out.
func (c *capacity) share() (share float64, times int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var taken time.Duration
	for i, t := range c.taken {
		taken += t
		times += c.losses[i]
	}
	if c.whole == 0 {
		return 0, 0
	}
	return float64(taken) / float64(c.whole) / float64(len(c.taken)), times
}

// without returns which servers get no requests now, and notes which are ejected.
func (s *simulation) without() []bool {
	receiving := make(map[string]bool)
	for _, row := range s.policy.rows(Filter{}) {
		receiving[row.Upstream] = row.EffectiveWeight > 0
	}
	without := make([]bool, len(s.servers))
	for i, server := range s.servers {
		without[i] = !receiving[server.address]
		m := s.policy.members.byDial[server.address]
		if m.Witness == nil || m.Witness.Ejection().IsZero() {
			continue
		}
		s.capacity.mu.Lock()
		if s.capacity.ejections == nil {
			s.capacity.ejections = make(map[ejection]bool)
		}
		s.capacity.ejections[ejection{server.address, m.Witness.Ejection()}] = true
		s.capacity.mu.Unlock()
	}
	return without
}

// ejected returns how often a server was ejected, as far as that was looked at.
func (s *simulation) ejected() int {
	s.capacity.mu.Lock()
	defer s.capacity.mu.Unlock()
	return len(s.capacity.ejections)
}
