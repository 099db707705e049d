// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"testing"
	"time"
)

// TestSimulation_OneFails has one of three servers fail, without retries.
func TestSimulation_OneFails(t *testing.T) {
	table := newResults(t, "fault", "load", "method", "observe", "requests", "failed", "last after", "back after")
	for _, f := range []struct {
		name  string
		fault fault
		most  int // failed of an open loop
	}{
		{"kill", crashed, 3},
		{"503s", answers503, 3},
		{"resets", resets, 3},
		{"stop", stopped, 50},
		{"black hole", vanished, 50},
	} {
		for _, load := range []string{"200/s", "200/s, retries", "16 clients"} {
			for _, unobserved := range []bool{false, true} {
				for _, post := range []bool{false, true} {
					if post && load != "200/s" {
						continue
					}
					p := plan{seed: 1, servers: 3, interval: time.Second, headerTimeout: 3 * time.Second, unobserved: unobserved}
					if load == "200/s, retries" {
						p.retries = 2
					}
					simulate(t, p, func(s *simulation) {
						const length = 12 * time.Second
						most, method, requests := f.most, "GET", work(20*time.Millisecond)
						if post {
							method, requests = "POST", posts(20*time.Millisecond)
						}
						if load != "16 clients" {
							s.open(200, length, requests)
						} else {
							most = 16
							s.closed(16, length, requests)
						}
						if s.retries > 0 && f.fault != answers503 { // an answer is not retried
							most = 0
						}
						time.Sleep(time.Second)
						began := s.elapsed()
						s.servers[0].become(f.fault)
						time.Sleep(7 * time.Second)
						healed := s.elapsed()
						s.servers[0].become(working)
						s.finish()
						failed, back := s.failed(normal, 0, forever), s.backAfter(0, healed)
						table.add(f.name, load, method, onOff(unobserved), s.sent(normal), failed, s.lastFailure(began, forever)-began, back)
						if s.heeds() && failed > most {
							t.Errorf("%s, %s: %d of %d requests failed, want %d at most", f.name, load, failed, s.sent(normal), most)
						}
						if back > 3*time.Second {
							t.Errorf("%s, %s: the server gets requests %s after it works again", f.name, load, back)
						}
					})
				}
			}
		}
	}
}

// TestSimulation_Restarts has one of three servers, and all of them, gone for a while.
func TestSimulation_Restarts(t *testing.T) {
	const rate = 200
	table := newResults(t, "servers", "gone", "fail_open", "interval", "failed: off", "on", "back after: off", "on")
	for _, all := range []bool{false, true} {
		for _, gone := range []time.Duration{300 * time.Millisecond, 600 * time.Millisecond, 2 * time.Second} {
			for _, failOpen := range []string{"none_up", "off"} {
				for _, interval := range []time.Duration{5 * time.Second, time.Second} {
					var failed [2]int
					var back [2]time.Duration
					for i, unobserved := range []bool{true, false} {
						p := plan{seed: 2, servers: 3, interval: interval, unobserved: unobserved}
						p.failOpen.Never, p.failOpen.Text = failOpen == "off", failOpen
						simulate(t, p, func(s *simulation) {
							s.open(rate, 16*time.Second, work(8*time.Millisecond))
							time.Sleep(7300 * time.Millisecond)
							restarted := s.servers[:1]
							if all {
								restarted = s.servers
							}
							for _, server := range restarted {
								server.become(crashed)
							}
							time.Sleep(gone)
							returned := s.elapsed()
							for _, server := range restarted {
								server.become(working)
							}
							s.finish()
							failed[i] = s.failed(normal, 0, forever)
							for j := range restarted {
								back[i] = max(back[i], s.backAfter(j, returned))
							}
						})
					}
					which := "one"
					if all {
						which = "all"
					}
					table.add(which, gone, failOpen, interval, failed[0], failed[1], back[0], back[1])
					if most := failed[0] + failed[0]/20; failed[1] > most {
						t.Errorf("%s gone for %s, fail_open %s, interval %s: %d failed, want %d at most", which, gone, failOpen, interval, failed[1], most)
					}
					between := 250 * time.Millisecond // the probes of one that is down
					if gone >= interval {
						between = interval + interval/10
					}
					if most := max(time.Second, 2*between); back[1] > most {
						t.Errorf("%s gone for %s, fail_open %s, interval %s: back after %s", which, gone, failOpen, interval, back[1])
					}
				}
			}
		}
	}
}
