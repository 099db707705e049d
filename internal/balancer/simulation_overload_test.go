// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"testing"
	"time"
)

// TestSimulation_Overload has servers that answer 503 when their queue is full, at nearly
// all the load that they can take, and in a spike of more than that. Not to send requests
// to a server because it sheds would shift its load to the others.
func TestSimulation_Overload(t *testing.T) {
	table := newResults(t, "servers", "load", "probes queue", "requests", "failed: off", "on", "recovered after: off", "on", "suspicions", "taken", "flips", "ejected")
	steady := 20 * time.Second
	if *wholeSimulation {
		steady = time.Minute
	}
	for _, servers := range []int{3, 10} {
		for _, load := range []string{"95 %", "150 % for 10 s"} {
			for _, probed := range []bool{false, true} {
				var failed, sent [2]int
				var recovered [2]time.Duration
				var taken float64
				var times int
				var flips, ejected int
				for i, unobserved := range []bool{true, false} {
					// a server can answer 100 a second
					p := plan{seed: seed, servers: servers, workers: 4, queue: 24, probed: probed, unobserved: unobserved}
					simulate(t, p, func(s *simulation) {
						service, full := 40*time.Millisecond, float64(100*servers)
						s.capacity.watch(s)
						var end time.Duration
						if load == "95 %" {
							s.open(0.95*full, steady, work(service))
						} else {
							s.open(0.8*full, 35*time.Second, work(service))
							time.Sleep(5 * time.Second)
							s.open(0.7*full, 10*time.Second, work(service))
							time.Sleep(10 * time.Second)
							end = s.elapsed()
						}
						s.finish()
						failed[i], sent[i] = s.failed(normal, 0, forever), s.sent(normal)
						if end > 0 {
							recovered[i] = s.lastFailure(end, forever) - end
						}
						taken, times = s.capacity.share()
						flips, ejected = s.events()["unhealthy"], s.ejected()
					})
				}
				table.add(servers, load, probed, sent[0], failed[0], failed[1], recovered[0], recovered[1], times, taken, flips, ejected)
				if most := failed[0] + failed[0]/10 + 5; failed[1] > most {
					t.Errorf("%d servers, %s, probes queue %v: %d of %d failed, want %d at most", servers, load, probed, failed[1], sent[1], most)
				}
				if recovered[1] > recovered[0]+time.Second {
					t.Errorf("%d servers, %s, probes queue %v: recovered %s after the spike, %s without", servers, load, probed, recovered[1], recovered[0])
				}
			}
		}
	}
}
