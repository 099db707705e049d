// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/pool"
)

// observe configures what the traffic says about upstreams.
func (s *simulation) observe(*setup) {}

// observed returns the transport of the handler as the policy wraps it.
func (s *simulation) observed() http.RoundTripper { return s.network }

// pick selects the upstream of a request.
func (s *simulation) pick(r *http.Request) *reverseproxy.Upstream {
	return s.policy.Select(s.policy.listed, r, nil)
}

// capacity is how much of the time servers got no requests although they could have.
type capacity struct {
	stop func() // ends the watching; nil if it did not begin

	mu     sync.Mutex
	taken  []time.Duration // from each server
	whole  time.Duration   // how long it was watched
	losses []int           // how often it began, for each server
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
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, row := range s.policy.rows(Filter{}) {
		for i, server := range s.servers {
			if server.address != row.Upstream {
				continue
			}
			without := row.EffectiveWeight == 0
			if without && !out[i] {
				c.losses[i]++
			}
			out[i] = without
		}
	}
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

// out returns how many servers get no requests now.
func (s *simulation) out() (n int) {
	for _, row := range s.policy.rows(Filter{}) {
		if row.EffectiveWeight == 0 {
			n++
		}
	}
	return n
}

// hasObserver says that the policy sees how requests end.
const hasObserver = false
