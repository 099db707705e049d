// SPDX-License-Identifier: Apache-2.0

package alive

import "github.com/caddy-alive/caddy-alive/internal/telemetry"

// picks is a policy as a source of counters.
type picks Selection

// Selections returns how often each upstream was picked.
func (p *picks) Selections() map[string]uint64 { return (*Selection)(p).selections() }

// joinPool has s count for the pool of its name.
func (s *Selection) joinPool() (err error) {
	s.counters, err = telemetry.JoinPool(s.pool, (*picks)(s))
	return err
}

// leavePool undoes joinPool. What s counted stays, while others count.
func (s *Selection) leavePool() error {
	if s.counters == nil {
		return nil
	}
	return s.counters.Leave((*picks)(s), s.tellLeft)
}

// tellLeft tells that a pool ignores health no longer, since a config ended: in the
// config that runs on. At the end of the last one nothing is left to tell it to.
func (s *Selection) tellLeft(active bool) {
	if newest := newestApp(); newest != s.app || newest.eventQueue().Successor() != nil {
		newest.eventQueue().FailOpen(s.pool, active)
	}
}

// runningQueues returns the event queues of the running apps, the newest last.
func runningQueues() (queues []*telemetry.Queue) {
	running.Lock()
	defer running.Unlock()
	for _, a := range running.apps {
		if a.events != nil {
			queues = append(queues, a.events)
		}
	}
	return queues
}
