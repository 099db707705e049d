// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func init() { servers[s3Address] = serveS3 }

const (
	// followTime is how long a change may take to be known at another Caddy.
	followTime = 5 * time.Second
	// aloneTime is how long it may take a Caddy to know that the engine does not serve.
	aloneTime = 5 * time.Second
	// healTime is how long it may take all to agree after the engine serves again.
	healTime = 10 * time.Second
)

// member starts a Caddy of a fleet.
func (e *engine) member(t *testing.T, fleet, name string, interval time.Duration, site string) *instance {
	t.Helper()
	c := prepare(t, buildWithStorages, e.storage, fmt.Sprintf("alive {\n\t\tfleet %s\n\t\tmember %s\n\t\tsync_interval %s\n\t}", fleet, name, interval), site)
	c.start()
	return c
}

// traffic sends requests to Caddys until it is stopped, and returns what failed.
func traffic(t *testing.T, caddys ...*instance) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	client := &http.Client{Timeout: patience}
	var mu sync.Mutex
	var failed []error
	sent := make([]int, len(caddys))
	var clients sync.WaitGroup
	for i, c := range caddys {
		clients.Go(func() {
			for ctx.Err() == nil {
				response, err := client.Get("http://" + c.site)
				if err == nil {
					if response.StatusCode != http.StatusOK {
						err = fmt.Errorf("status %d", response.StatusCode)
					}
					response.Body.Close()
				}
				mu.Lock()
				sent[i]++
				if err != nil {
					failed = append(failed, err)
				}
				mu.Unlock()
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	return func() error {
		cancel()
		clients.Wait()
		for _, n := range sent {
			if n == 0 {
				failed = append(failed, fmt.Errorf("a Caddy got no requests: %v", sent))
			}
		}
		return errors.Join(failed...)
	}
}

// Caddys of a fleet follow each other on all engines. Another fleet on the same engine with a
// name that begins with the same letters is not touched. While the engine hangs, is gone, or is
// emptied, requests go on and modes apply where they are set; afterwards all Caddys have all
// of them, and the engine, too.
func TestFleet_OnEngines(t *testing.T) {
	onEachEngine(t, func(t *testing.T, e *engine) {
		a, b, c := startBackend(t), startBackend(t), startBackend(t)
		site := operated(a.addr, b.addr, c.addr)
		one, two := e.member(t, "shops", "edge-1", time.Second, site), e.member(t, "shops", "edge-2", time.Second, site)
		other := e.member(t, "shop", "edge-3", time.Second, site)
		modes := map[string]string{a.addr: "ready up", b.addr: "ready up", c.addr: "ready up"}
		within(t, patience, modes, one, two, other)
		for upstream := range modes {
			modes[upstream] = "ready"
		}
		others := maps.Clone(modes)
		untouched := func(t *testing.T) {
			t.Helper()
			within(t, followTime, others, other)
			for _, c := range []*instance{one, two, other} {
				if log := c.log(); strings.Contains(log, "ignoring a stored") {
					t.Errorf("a Caddy reads what is not of its fleet:\n%s", log)
				}
			}
		}
		run := func(name string, step func(t *testing.T)) {
			t.Helper()
			if !t.Run(name, step) {
				t.FailNow()
			}
		}

		run("follow", func(t *testing.T) {
			for _, step := range []struct {
				at             *instance
				upstream, mode string
			}{{one, b.addr, "drain"}, {two, b.addr, "ready"}, {two, b.addr, "maintenance"}, {one, b.addr, "drain"}} {
				modes[step.upstream] = step.mode
				if got := step.at.set(step.upstream, step.mode); strings.Contains(got, "persisted") {
					t.Errorf("not stored: %s", got)
				}
				t.Logf("known at both after %v", within(t, followTime, modes, one, two))
			}
			if got := other.set(c.addr, "drain"); strings.Contains(got, "persisted") {
				t.Errorf("not stored: %s", got)
			}
			others[c.addr] = "drain"
			time.Sleep(2500 * time.Millisecond) // two looks and a half
			untouched(t)
			within(t, 0, modes, one, two)
		})

		// outage says what applies during an outage, and when both agree after it
		outage := func(t *testing.T, lasts time.Duration, begin, end func()) {
			stop := traffic(t, one, two, other)
			began := time.Now()
			begin()
			opposite := map[string]string{"ready": "drain", "drain": "ready"}
			modes[b.addr] = opposite[modes[b.addr]]
			var changing sync.WaitGroup
			for _, change := range []struct {
				at             *instance
				upstream, mode string
			}{{one, b.addr, modes[b.addr]}, {two, c.addr, "maintenance"}} {
				changing.Go(func() {
					if got := change.at.set(change.upstream, change.mode); !strings.HasPrefix(got, change.upstream+" "+change.mode+" ") || !strings.HasSuffix(got, " persisted:false") {
						t.Errorf("a change during the outage: %s", got)
					}
				})
			}
			for _, c := range []*instance{one, two} {
				changing.Go(func() {
					if !poll(func() bool { return c.fleet("").Problem != "" }) {
						t.Error("a Caddy does not know that it is alone")
					} else if took := time.Since(began); took > aloneTime {
						t.Errorf("a Caddy knew that it is alone after %v, want %v at most", took, aloneTime)
					} else {
						t.Logf("a Caddy knew that it is alone after %v", took)
					}
				})
			}
			changing.Wait()
			// newer than what the other one has set
			modes[c.addr] = "drain"
			if got := one.drain(c.addr, patience); !got.ended(1, "only this Caddy is known: ") || time.Since(began) > patience/2 {
				t.Errorf("a wait during the outage: status %d after %v: %s", got.status, time.Since(began), got.out)
			}
			if answered := one.answers(6); modes[b.addr] == "drain" && answered[b.addr] > 0 || answered[c.addr] > 0 {
				t.Errorf("the modes do not apply: %v", answered)
			}
			time.Sleep(time.Until(began.Add(lasts)))
			end()
			defer func() {
				if t.Failed() {
					t.Logf("stored is\n%s", stored(t, e.open(t)))
				}
			}()
			t.Logf("both agree %v after the outage", within(t, healTime, modes, one, two))
			ended := time.Now()
			eventually(t, "both know each other again", func() bool {
				for _, c := range []*instance{one, two} {
					if f := c.fleet(""); f.Problem != "" || f.live() != "edge-1 edge-2" {
						return false
					}
				}
				return true
			})
			t.Logf("both know each other again %v later", time.Since(ended))
			untouched(t)
			if err := stop(); err != nil {
				t.Errorf("requests failed: %v", err)
			}
		}
		if e.launch != nil {
			run("hangs", func(t *testing.T) {
				outage(t, 5*time.Second, func() { e.signal(syscall.SIGSTOP) }, func() { e.signal(syscall.SIGCONT) })
			})
		}
		run("killed", func(t *testing.T) {
			outage(t, 3*time.Second, e.kill, e.restart)
		})
		run("emptied", func(t *testing.T) {
			stop := traffic(t, one, two, other)
			if err := e.flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			storage := e.open(t)
			began := time.Now()
			eventually(t, "all that was set is stored again", func() bool {
				text := stored(t, storage)
				complete := strings.Count(text, `"mode"`) == 3 // two of one fleet, one of the other
				for _, set := range []struct {
					modes    map[string]string
					upstream string
				}{{modes, b.addr}, {modes, c.addr}, {others, c.addr}} {
					complete = complete && strings.Contains(text, fmt.Sprintf(`{"address":%q,"mode":%q`, set.upstream, set.modes[set.upstream]))
				}
				return complete
			})
			t.Logf("stored again after %v", time.Since(began))
			within(t, followTime, modes, one, two)
			untouched(t)
			if err := stop(); err != nil {
				t.Errorf("requests failed: %v", err)
			}
			// only the engine has them now
			for _, c := range []*instance{one, two, other} {
				c.kill()
			}
			one.start()
			other.start()
			within(t, followTime, modes, one)
			untouched(t)
		})
	})
}

// A drain with a wait at one Caddy ends after the last request that another one has in flight,
// and not before. While a member is lost, the wait fails and names it, unless lost members are
// ignored. When the member is back, all is as before.
func TestFleet_DrainWaitsForAllMembers(t *testing.T) {
	const takes = 8 * time.Second // the drain, and what all members know of it, come meanwhile
	onEachEngine(t, func(t *testing.T, e *engine) {
		a, b := startSlow(t, takes), startSlow(t, takes)
		site := operated(a.addr, b.addr)
		members := make([]*instance, 3)
		for i := range members {
			members[i] = e.member(t, "shops", fmt.Sprintf("edge-%d", i+1), 250*time.Millisecond, site)
		}
		asked, killed, busy := members[0], members[1], members[2]
		within(t, patience, map[string]string{a.addr: "ready up", b.addr: "ready up"}, members...)
		eventually(t, "all know all", func() bool {
			for _, c := range members {
				if c.fleet("").live() != "edge-1 edge-2 edge-3" {
					return false
				}
			}
			return true
		})

		var requests sync.WaitGroup
		defer requests.Wait()
		for range 2 { // one of them to each
			requests.Go(func() { busy.slowRequest() })
		}
		eventually(t, "each has a request", func() bool { return a.isBusy() && b.isBusy() })
		named := make(chan bool, 1)
		go func() {
			named <- poll(func() bool {
				f := asked.fleet(b.addr)
				return f.Wait != nil && slices.Contains(f.Wait.Pending, "edge-3: 1 in flight")
			})
		}()
		got := asked.drain(b.addr, patience)
		left, last := b.state()
		if !got.ended(0, "all 3 members of the fleet shops are quiet") || left > 0 || got.at.Before(last) {
			t.Errorf("the wait: status %d, %d requests left: %s", got.status, left, got.out)
		} else if took := got.at.Sub(last); took > patience/4 {
			t.Errorf("the wait ended %v after the last request", took)
		} else {
			t.Logf("the wait ended %v after the last request", took)
		}
		if !<-named {
			t.Error("the member with the request is not named")
		}
		killed.kill()
		if got := asked.drain(b.addr, 2*time.Second); !got.ended(1, "edge-2: ") {
			t.Errorf("with a member that was just killed: status %d: %s", got.status, got.out)
		}
		if got := asked.drain(b.addr, time.Minute, "--ignore-lost"); !got.ended(0, "ignored: edge-2: not heard for ") {
			t.Errorf("with a lost member that is ignored: status %d: %s", got.status, got.out)
		}
		if got := asked.drain(b.addr, 3*time.Second); !got.ended(1, "edge-2: not heard for ") {
			t.Errorf("with a lost member: status %d: %s", got.status, got.out)
		}
		killed.start()
		if got := asked.drain(b.addr, patience); !got.ended(0, "all 3 members of the fleet shops are quiet") {
			t.Errorf("with a member that has returned: status %d: %s", got.status, got.out)
		}
		killed.stop()
		if got := asked.drain(b.addr, patience); !got.ended(0, "all 2 members of the fleet shops are quiet") {
			t.Errorf("with a member that has left: status %d: %s", got.status, got.out)
		}
	})
}
