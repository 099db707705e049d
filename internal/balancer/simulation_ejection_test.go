// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestSimulation_Ejection has servers that fail every request and pass every probe. They
// leave after a few requests, come to trial with a back-off, and are back once they work.
func TestSimulation_Ejection(t *testing.T) {
	table := newResults(t, "fault", "check", "servers", "method", "observe", "requests", "failed", "rounds: begin (requests)", "back after")
	mended := 200 * time.Second
	if *wholeSimulation {
		mended = 20 * time.Minute
	}
	sizes := []int{2, 10}
	if *wholeSimulation {
		sizes = []int{2, 3, 10}
	}
	for _, servers := range sizes {
		for _, c := range []struct {
			name        string
			fault       fault
			connectOnly bool
			post        bool
		}{
			{"502", shallow, false, false},
			{"reset", shallowReset, true, true},
			{"stop", stopped, true, false},
		} {
			for _, unobserved := range []bool{false, true} {
				if unobserved && !*wholeSimulation {
					continue
				}
				p := plan{seed: 5, servers: servers, connectOnly: c.connectOnly, unobserved: unobserved, headerTimeout: 10 * time.Second}
				simulate(t, p, func(s *simulation) {
					requests, method := work(5*time.Millisecond), "GET"
					if c.post {
						requests, method = posts(5*time.Millisecond), "POST"
					}
					s.open(30, mended+6*time.Minute, requests)
					time.Sleep(5 * time.Second)
					broke := s.elapsed()
					s.servers[0].become(c.fault)
					time.Sleep(mended)
					again := s.elapsed()
					s.servers[0].become(working)
					s.finish()
					rounds := roundsOf(s.servers[0].requests(broke, again), broke)
					failed, back := s.failed(normal, 0, forever), s.backAfter(0, again)
					if back == forever {
						back = -time.Second
					}
					check := "http"
					if c.connectOnly {
						check = "tcp"
					}
					table.add(c.name, check, servers, method, onOff(unobserved), s.sent(normal), failed, describe(rounds), back)
					if !s.heeds() {
						return
					}
					name := fmt.Sprintf("%s, %d servers", c.name, servers)
					first, trial, slack := 8, 1, 5*time.Second
					if c.fault == stopped { // it takes several stalls, each of them after a back-off
						first, trial, slack = 400, 8, time.Minute
					}
					if len(rounds) < 3 || rounds[0].requests > first {
						t.Errorf("%s: rounds of requests %s, want a few requests and then trials", name, describe(rounds))
						return
					}
					for i, r := range rounds[1:] {
						if r.requests > trial {
							t.Errorf("%s: a trial had %d requests, want %d at most", name, r.requests, trial)
						}
						out := min(30*time.Second*time.Duration(i+1), 5*time.Minute)
						if pause := r.began - rounds[i].ended; pause < out-2*time.Second || pause > out+slack {
							t.Errorf("%s: trial %d came after %s, want %s", name, i+1, pause, out)
						}
					}
					if back < 0 || back > 5*time.Minute+5*time.Second {
						t.Errorf("%s: back after %s", name, back)
					}
				})
			}
		}
	}
}

// round are requests that come soon after each other.
type round struct {
	began, ended time.Duration
	requests     int
}

// roundsOf returns the rounds of requests. Each begins ten seconds or more after the one
// before.
func roundsOf(at []time.Duration, from time.Duration) (rounds []round) {
	for _, t := range at {
		t -= from
		if n := len(rounds); n > 0 && t-rounds[n-1].ended < 10*time.Second {
			rounds[n-1].ended = t
			rounds[n-1].requests++
			continue
		}
		rounds = append(rounds, round{t, t, 1})
	}
	return rounds
}

func describe(rounds []round) string {
	var texts []string
	for _, r := range rounds {
		texts = append(texts, fmt.Sprintf("%.1fs (%d)", r.began.Seconds(), r.requests))
	}
	return strings.Join(texts, ", ")
}

// TestSimulation_CommonTrouble has so many servers fail every request that ejecting them
// would leave too few.
func TestSimulation_CommonTrouble(t *testing.T) {
	table := newResults(t, "servers", "shallow", "one after another", "observe", "requests", "failed", "ejected", "out at once")
	for _, servers := range []int{2, 3, 10} {
		for _, bad := range []int{1, 2, 3, 5} {
			if bad > servers || servers < 10 && bad > 2 || servers == 2 && !*wholeSimulation {
				continue
			}
			for _, staggered := range []bool{false, true} {
				simulate(t, plan{seed: 6, servers: servers}, func(s *simulation) {
					const length = 2 * time.Minute
					s.open(100, length, work(5*time.Millisecond))
					time.Sleep(5 * time.Second)
					for _, server := range s.servers[:bad] {
						server.become(shallow)
						if staggered {
							time.Sleep(10 * time.Second)
						}
					}
					out := 0
					for s.elapsed() < length-time.Second {
						time.Sleep(100 * time.Millisecond)
						s.without() // counts ejections
						n := 0
						for _, m := range s.policy.members.byDial {
							if m.Witness != nil && !m.Witness.Ejection().IsZero() {
								n++
							}
						}
						out = max(out, n)
					}
					s.finish()
					ejected := s.ejected()
					table.add(servers, bad, staggered, "on", s.sent(normal), s.failed(normal, 0, forever), ejected, out)
					if !s.heeds() {
						return
					}
					name := fmt.Sprintf("%d of %d shallow, staggered %v", bad, servers, staggered)
					most := max(1, servers*3/10)
					if out > most {
						t.Errorf("%s: %d were out at once, want %d at most", name, out, most)
					}
					if bad == 1 && ejected == 0 {
						t.Errorf("%s: none was ejected", name)
					}
				})
			}
		}
	}
}
