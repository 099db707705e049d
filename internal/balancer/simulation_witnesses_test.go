// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// falseWitness is a load that says something bad about upstreams which are all well.
type falseWitness struct {
	name    string
	rate    float64 // a second
	jobs    jobs
	servers int
	good    float64 // normal requests a second beside it

	headerTimeout time.Duration
	retries       int
	lost          bool // every connection of the first server breaks, once in a while
}

// TestSimulation_FalseWitnesses has requests fail or wait for reasons that are not those
// of one upstream. No upstream may lose more than a moment, and a kill afterwards must be
// noticed as quickly as ever.
func TestSimulation_FalseWitnesses(t *testing.T) {
	cases := []falseWitness{
		{name: "slow endpoint", rate: 1, jobs: all(job{kind: slow, work: 3 * time.Second}), good: 1},
		{name: "slow endpoint", rate: 1, jobs: all(job{kind: slow, work: 3 * time.Second}), good: 10},
		{name: "slow endpoint", rate: 10, jobs: all(job{kind: slow, work: 3 * time.Second}), good: 200},
		{name: "slow endpoint alone", rate: 1, jobs: all(job{kind: slow, work: 3 * time.Second}), good: 0.01},
		{name: "slow endpoint alone", rate: 10, jobs: all(job{kind: slow, work: 3 * time.Second}), good: 0.01},
		{name: "long polls", rate: 1, jobs: all(job{kind: longPoll, work: 30 * time.Second}), good: 1},
		{name: "long polls", rate: 10, jobs: all(job{kind: longPoll, work: 30 * time.Second}), good: 10},
		{name: "long polls", rate: 100, jobs: all(job{kind: longPoll, work: 30 * time.Second}), good: 100},
		{name: "clients that leave", rate: 100, jobs: all(job{kind: leaving, work: 400 * time.Millisecond, patient: 50 * time.Millisecond}), good: 100},
		{name: "clients that leave late", rate: 20, jobs: all(job{kind: leaving, work: 5 * time.Second, patient: time.Second}), good: 100},
		{name: "short header timeout", rate: 10, jobs: all(job{kind: slow, work: 3 * time.Second}), good: 100, headerTimeout: time.Second},
		{name: "POST at the idle timeout", rate: 5, jobs: all(job{kind: stale, post: true}), good: 100},
		{name: "a connection with 100 streams is lost", rate: 100, jobs: all(job{kind: slow, work: 3 * time.Second, post: true}), good: 100, lost: true},
	}
	goods, sizes := []float64{10, 100}, []int{3}
	if *wholeSimulation {
		goods, sizes = []float64{1, 10, 100, 1000}, []int{3, 10}
	}
	for _, size := range sizes {
		for _, rate := range []float64{1, 10, 100} {
			for _, good := range goods {
				if good == 100 {
					cases = append(cases, falseWitness{name: "poison reset, retried", rate: rate, jobs: all(job{kind: poisonReset}), servers: size, good: good, retries: 2})
				}
				cases = append(cases,
					falseWitness{name: "poison 502", rate: rate, jobs: all(job{kind: poison502}), servers: size, good: good},
					falseWitness{name: "poison reset", rate: rate, jobs: all(job{kind: poisonReset, post: true}), servers: size, good: good})
			}
		}
	}
	table := newResults(t, "witness", "rate", "good", "servers", "observe", "failed", "suspicions", "taken", "bursts", "flips", "ejected", "below", "above", "kill: failed")
	for _, c := range cases {
		if c.servers == 0 {
			c.servers = 3
		}
		for _, unobserved := range []bool{false, true} {
			if unobserved && !*wholeSimulation {
				continue
			}
			simulate(t, plan{seed: 3, servers: c.servers, headerTimeout: c.headerTimeout, retries: c.retries, unobserved: unobserved}, func(s *simulation) {
				c.run(t, s, table)
			})
		}
	}
}

func (c *falseWitness) run(t *testing.T, s *simulation, table *results) {
	const length, after = 40 * time.Second, 5 * time.Second
	service := 5 * time.Millisecond
	from := s.elapsed()
	s.capacity.watch(s)
	s.open(c.good, length+after, work(service))
	s.open(c.rate, length+after, c.jobs)
	for range 4 {
		time.Sleep(length / 4)
		if c.lost {
			s.servers[0].lose()
		}
	}
	killed := s.elapsed()
	taken, times := s.capacity.share()
	flips, ejected := s.events()["unhealthy"], s.ejected()
	below, above := s.spread(from, killed)
	failedBefore := s.failed(normal, 0, killed-time.Second)
	s.servers[0].become(crashed)
	time.Sleep(after)
	s.finish()
	failed := s.failed(normal, killed-time.Second, forever)
	table.add(c.name, c.rate, c.good, c.servers, onOff(s.unobserved), failedBefore, times, taken, s.burstProbes(12*time.Second, killed), flips, ejected, below, above, failed)
	if !s.heeds() {
		return
	}
	name := fmt.Sprintf("%s, %g/s beside %g/s, %d servers", c.name, c.rate, c.good, c.servers)
	if !c.lost && failedBefore > 0 {
		t.Errorf("%s: %d normal requests failed", name, failedBefore)
	}
	if taken > 0.02 {
		t.Errorf("%s: %.1f %% of the capacity was taken away", name, 100*taken)
	}
	if flips+ejected > 0 {
		t.Errorf("%s: %d flips, %d ejections", name, flips, ejected)
	}
	// a few requests are no measure of shares
	if slack := 0.02 + 3*float64(c.servers)/((c.good+c.rate)*length.Seconds()); below > slack || above > slack {
		t.Errorf("%s: shares are off by -%.1f %% and +%.1f %%", name, 100*below, 100*above)
	}
	if most := 3 + int(c.good*service.Seconds()); failed > most {
		t.Errorf("%s: a kill cost %d requests, want %d at most", name, failed, most)
	}
}

// posts makes normal requests that cannot be repeated.
func posts(mean time.Duration) jobs {
	return func(rng *rand.Rand) job { return job{kind: normal, work: exponential(rng, mean), post: true} }
}
