// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"math"
	"testing"
	"time"
)

// overload is a load of more than servers can answer, at least at times. They answer 503
// when their queue is full.
type overload struct {
	servers int
	spike   bool
	probed  bool // probes wait in the queue, too
}

// overloaded is what becomes of some of them.
type overloaded struct {
	sent, failed, suspicions, flips, ejected int
	recovered                                time.Duration // the longest, after a spike
	taken                                    float64       // the sum
}

// TestSimulation_Overload has servers that shed at nearly all the load that they can take,
// and in a spike of more than that. Not to send requests to a server because it sheds would
// shift its load to the others.
func TestSimulation_Overload(t *testing.T) {
	table := newResults(t, "servers", "load", "probes queue", "requests", "failed: off", "on", "recovered after: off", "on", "suspicions", "taken", "flips: off", "on", "ejected")
	seeds, steady := uint64(2), 20*time.Second
	cases := []overload{{3, false, false}, {3, false, true}, {10, false, true}, {3, true, false}, {10, true, false}}
	if *wholeSimulation {
		seeds, steady = 10, time.Minute
		cases = append(cases, overload{10, false, false}, overload{3, true, true}, overload{10, true, true})
	}
	for _, o := range cases {
		var off, on overloaded
		for seed := range seeds {
			o.run(t, seed, steady, true, &off)
			o.run(t, seed, steady, false, &on)
		}
		load := "95 %"
		if o.spike {
			load = "80 %, 150 % for 10 s"
		}
		table.add(o.servers, load, o.probed, on.sent, off.failed, on.failed, off.recovered, on.recovered, on.suspicions, on.taken/float64(seeds), off.flips, on.flips, on.ejected)
		// what sheds comes in clusters, so its number varies by more than its square root
		most := 1.1*float64(off.failed) + 2.5*math.Sqrt(float64(off.failed))
		if float64(on.failed) > most {
			t.Errorf("%d servers, %s, probes queue %v: %d of %d failed, want %.0f at most", o.servers, load, o.probed, on.failed, on.sent, most)
		}
		slack := 2 * time.Second
		if o.probed { // probes that are shed turn a server down at times, observed or not
			slack = 6 * time.Second
		}
		if on.recovered > off.recovered+slack {
			t.Errorf("%d servers, %s, probes queue %v: recovered %s after the spike, %s without", o.servers, load, o.probed, on.recovered, off.recovered)
		}
	}
}

// run adds one run. A server can answer 100 requests a second.
func (o *overload) run(t *testing.T, seed uint64, steady time.Duration, unobserved bool, sum *overloaded) {
	const service, lead, spike = 40 * time.Millisecond, 3 * time.Second, 10 * time.Second
	p := plan{seed: seed, servers: o.servers, workers: 4, queue: 24, probed: o.probed, unobserved: unobserved}
	simulate(t, p, func(s *simulation) {
		full := float64(100 * o.servers)
		s.capacity.watch(s)
		if o.spike {
			s.open(0.8*full, lead+spike+7*time.Second, work(service))
			time.Sleep(lead)
			s.open(0.7*full, spike, work(service))
			time.Sleep(spike)
			end := s.elapsed()
			s.finish()
			sum.recovered = max(sum.recovered, s.lastFailure(end, forever)-end)
		} else {
			s.open(0.95*full, steady, work(service))
			s.finish()
		}
		taken, times := s.capacity.share()
		sum.sent += s.sent(normal)
		sum.failed += s.failed(normal, 0, forever)
		sum.suspicions += times
		sum.taken += taken
		sum.flips += s.events()["unhealthy"]
		sum.ejected += s.ejected()
	})
}

// TestSimulation_LimitsAndQueue has a load of more than servers can answer, because of a spike
// or because one of them is gone for a while. With limits and a queue, requests wait instead of
// being shed, and no more fail than without.
func TestSimulation_LimitsAndQueue(t *testing.T) {
	const service, lead, trouble = 40 * time.Millisecond, 3 * time.Second, 8 * time.Second
	table := newResults(t, "servers", "trouble", "retries", "requests", "failed: no limit", "limit and queue")
	for _, gone := range []bool{false, true} {
		for _, retries := range []int{0, 2} {
			var failed, sent [2]int
			for i, limit := range []int{0, 12} {
				p := plan{seed: 3, servers: 3, workers: 4, queue: 24, retries: retries, interval: time.Second, limit: limit}
				simulate(t, p, func(s *simulation) {
					full := float64(100 * s.plan.servers)
					s.open(0.8*full, lead+trouble+9*time.Second, work(service))
					time.Sleep(lead)
					if gone {
						s.servers[0].become(crashed)
					} else {
						s.open(0.7*full, trouble, work(service))
					}
					time.Sleep(trouble)
					s.servers[0].become(working)
					s.finish()
					sent[i], failed[i] = s.sent(normal), s.failed(normal, 0, forever)
				})
			}
			what := "a spike of 150 %"
			if gone {
				what = "one is gone, 120 % for the others"
			}
			table.add(3, what, retries, sent[0], failed[0], failed[1])
			if failed[0] < 100 {
				t.Errorf("%s, %d retries: %d of %d failed without a limit, too few to compare", what, retries, failed[0], sent[0])
			}
			// the clients whose requests break when it goes
			if failed[1] > 12 {
				t.Errorf("%s, %d retries: %d of %d failed with a limit and a queue, want 12 at most", what, retries, failed[1], sent[1])
			}
		}
	}
}
