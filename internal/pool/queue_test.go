// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/slots"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// limited gives upstreams limits, and a queue unless its length is 0.
func limited(t *testing.T, length int, limits ...int) func(*policy) {
	return func(p *policy) {
		if length > 0 {
			p.handler.Rules.Queue = Queue{Timeout: 10 * time.Second, Length: length}
		}
		for i, limit := range limits {
			if limit == 0 {
				continue
			}
			m := p.members[i]
			a, err := slots.Open(t.Name()+m.Address, limit)
			if err != nil {
				t.Fatal(err)
			}
			m.Limit, m.Slots = limit, a
			t.Cleanup(func() {
				if err := m.CloseSlots(); err != nil || a.InUse() > 0 {
					t.Errorf("upstream %d: %d slots in use in the end, %v", i, a.InUse(), err)
				}
			})
		}
	}
}

// limitedRequest is a request to a policy with limits.
type limitedRequest struct {
	*http.Request
	p      *policy
	leave  context.CancelFunc
	result chan Choice
	choice Choice
}

// newLimited returns a request that has picked nothing yet.
func (p *policy) newLimited() *limitedRequest {
	r := testkit.Get()
	ctx, leave := context.WithCancel(r.Context())
	return &limitedRequest{Request: r.WithContext(ctx), p: p, leave: leave, result: make(chan Choice, 1)}
}

// begin selects an upstream, in a goroutine.
func (r *limitedRequest) begin() *limitedRequest {
	var tried *Tried
	if r.p.handler.Rules.Retries {
		tried = remember(r.Request)
	}
	go func() { r.result <- r.p.Pick(Attempt{Upstreams: r.p.list, Request: r.Request, Tried: tried}) }()
	return r
}

// got returns the position of the upstream, -1 if it got none, and -2 if it still waits.
func (r *limitedRequest) got() int {
	synctest.Wait()
	select {
	case r.choice = <-r.result:
		return slices.Index(r.p.list, r.choice.Upstream)
	default:
		return -2
	}
}

// finish frees the slot.
func (r *limitedRequest) finish() {
	if r.choice.Slot != nil {
		r.choice.Slot.Free()
		r.choice.Slot = nil
	}
	r.leave()
}

// ask begins requests, one after the other, and returns what they got.
func (p *policy) ask(n int) (requests []*limitedRequest, got []int) {
	for range n {
		r := p.newLimited().begin()
		requests, got = append(requests, r), append(got, r.got())
	}
	return requests, got
}

// finishAll frees all slots.
func finishAll(requests []*limitedRequest) {
	for _, r := range requests {
		r.got()
		r.finish()
	}
}

// withCaddysChecks has Caddy check the health of upstreams, too.
func withCaddysChecks(p *policy) { p.handler.Proxy.HealthChecks = new(reverseproxy.HealthChecks) }

// weightOf is a weight that is set at run time.
func weightOf(weight int) **int { return new(&weight) }

// drained returns what a closed channel has.
func drained[T any](values <-chan T) (all []T) {
	for v := range values {
		all = append(all, v)
	}
	return all
}

// sorted returns numbers in their order.
func sorted(numbers []int) []int { return slices.Sorted(slices.Values(numbers)) }

// Two primaries with a limit of 2 and a backup with 3: the backup gets requests when the
// primaries are full, and nothing more when all are.
func TestLimits_BackupsFollowFullPrimaries(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPolicy(t, "uuu", limited(t, 0, 2, 2, 3), func(p *policy) { p.members[2].Group = 1 })
		requests, got := p.ask(8)
		if !slices.Equal(sorted(got[:4]), []int{0, 0, 1, 1}) || !slices.Equal(got[4:], []int{2, 2, 2, -1}) {
			t.Errorf("got %v", got)
		}
		requests[1].finish()
		if again, got := p.ask(1); got[0] != slices.Index(p.list, requests[1].choice.Upstream) {
			t.Errorf("the slot of a request that has ended went to %v", got)
		} else {
			finishAll(again)
		}
		finishAll(requests)
	})
}

// A full upstream is not dead: those that are down, drain or are ejected get nothing because
// others are busy. Suspects do, if there is no queue.
func TestLimits_FullIsNotDown(t *testing.T) {
	for _, queue := range []int{0, 10} {
		testkit.Bubble(t, func(t *testing.T) {
			p := newPolicy(t, "uuud", limited(t, queue, 1, 0, 0, 0))
			p.setMode(1, settings.Drain)
			p.setMode(2, settings.Maintenance)
			requests, got := p.ask(2)
			want := []int{0, -1}
			if queue > 0 {
				want[1] = -2
			}
			if !slices.Equal(got, want) {
				t.Errorf("a queue of %d: got %v, want %v", queue, got, want)
			}
			finishAll(requests[:1])
			finishAll(requests[1:])
		})
		testkit.Bubble(t, func(t *testing.T) {
			a := newAccusable(t, "uu", limited(t, queue, 1, 0))
			a.accuse(1, witness.Failure{Cause: witness.Connect})
			requests, got := a.ask(2)
			want := []int{0, 1}
			if queue > 0 {
				want[1] = -2
			}
			if !slices.Equal(got, want) {
				t.Errorf("a queue of %d: got %v, want %v", queue, got, want)
			}
			finishAll(requests)
		})
	}
}

// Requests that wait get slots in the order in which they came, and wait no longer than the
// timeout.
func TestQueue_KeepsTheOrder(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		waits, refused := make(chan time.Duration, 10), make(chan bool, 10)
		p := newPolicy(t, "uu", limited(t, 3, 1, 1), func(p *policy) {
			p.handler.OnQueued = func(waited time.Duration) { waits <- waited }
			p.handler.OnRefused = func(timedOut bool) { refused <- timedOut }
		})
		requests, got := p.ask(6)
		if !slices.Equal(sorted(got[:2]), []int{0, 1}) || !slices.Equal(got[2:], []int{-2, -2, -2, -1}) {
			t.Fatalf("got %v", got)
		}
		if n := p.handler.Waiting(); n != 3 {
			t.Errorf("%d wait, want 3", n)
		}
		time.Sleep(time.Second)
		for i := range 2 {
			requests[i].finish()
			if first, then := requests[i+2].got(), requests[i+3].got(); first != got[i] || then != -2 {
				t.Errorf("after request %d: got %d and %d, want %d for the first", i, first, then, got[i])
			}
		}
		time.Sleep(9 * time.Second)
		if last := requests[4].got(); last != -1 {
			t.Errorf("after the timeout: got %d", last)
		}
		close(waits)
		close(refused)
		if got, want := drained(waits), []time.Duration{time.Second, time.Second, 10 * time.Second}; !slices.Equal(got, want) {
			t.Errorf("waited %v, want %v", got, want)
		}
		if got, want := drained(refused), []bool{false, true}; !slices.Equal(got, want) {
			t.Errorf("refused with a timeout: %v, want %v", got, want)
		}
		finishAll(requests[2:4])
	})
}

// Each event that makes room wakes those that wait, the first ones first.
func TestQueue_WakesWhenThereIsRoom(t *testing.T) {
	for _, tc := range []struct {
		event     string
		verdicts  string
		configure func(*policy)
		prepare   func(*policy)
		happens   func(*policy)
		want      []int // of those that wait
	}{
		{"an upstream returns", "ud", nil, nil, func(p *policy) { p.decide("?u") }, []int{1, 1, -2}},
		{"one has its first verdict", "u?", nil, nil, func(p *policy) { p.decide("?u") }, []int{1, 1, -2}},
		{"one is resumed", "uu", nil, func(p *policy) { p.setMode(1, settings.Drain) }, func(p *policy) { p.setMode(1, settings.Ready) }, []int{1, 1, -2}},
		{
			"one gets a weight", "uu", nil, func(p *policy) { p.set(1, settings.Change{Pool: "shop", Weight: weightOf(0)}) },
			func(p *policy) { p.set(1, settings.Change{Pool: "shop", Weight: weightOf(1)}) },
			[]int{1, 1, -2},
		},
		{"Caddy considers one healthy again", "uu", nil, func(p *policy) { setAllHealthy(p.list, "10") }, func(p *policy) { setAllHealthy(p.list, "11") }, []int{1, 1, -2}},
		{
			"Caddy's own limit has room", "uu", nil, func(p *policy) { testkit.SetRequests(p.list[1], 1); p.list[1].MaxRequests = 1 },
			func(p *policy) { testkit.SetRequests(p.list[1], 0) },
			[]int{1, 1, -2},
		},
		{
			"the only one dies, and the backup serves", "uu", func(p *policy) { p.members[1].Group = 1; p.members[1].Limit = 2 }, func(p *policy) { p.decide("?d") },
			func(p *policy) { p.decide("?u") },
			[]int{1, 1, -2},
		},
		{
			"Caddy considers the only one unhealthy: the last resort", "ud", withCaddysChecks, nil,
			func(p *policy) { setAllHealthy(p.list, "01") },
			[]int{1, 1, -2},
		},
		{
			"Caddy considers the only one unhealthy: one that drains", "uu", withCaddysChecks, func(p *policy) { p.setMode(1, settings.Drain) },
			func(p *policy) { setAllHealthy(p.list, "01") },
			[]int{1, 1, -2},
		},
		{"the only one dies: the last resort has the same limit", "ud", nil, nil, func(p *policy) { p.decide("d?") }, []int{1, 1, -2}},
		{"the only one dies: nothing is left to wait for", "ud", func(p *policy) { p.handler.Rules.FailOpen.Never = true }, nil, func(p *policy) { p.decide("d?") }, []int{-1, -1, -1}},
	} {
		t.Run(tc.event, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				p := newPolicy(t, tc.verdicts, limited(t, 10, 1, 2), func(p *policy) {
					if tc.configure != nil {
						tc.configure(p)
					}
				})
				if tc.prepare != nil {
					tc.prepare(p)
				}
				requests, got := p.ask(4)
				if want := []int{0, -2, -2, -2}; !slices.Equal(got, want) {
					t.Fatalf("before: got %v, want %v", got, want)
				}
				tc.happens(p)
				looks := lookEvery
				if p.handler.judges() {
					looks = healthEvery
				}
				time.Sleep(looks)
				got = nil
				for _, r := range requests[1:] {
					got = append(got, r.got())
				}
				if strings.HasPrefix(tc.event, "Caddy") { // without a signal, there is no order
					got, tc.want = sorted(got), sorted(tc.want)
				}
				if !slices.Equal(got, tc.want) {
					t.Errorf("got %v, want %v", got, tc.want)
				}
				for range requests {
					finishAll(requests)
				}
			})
		})
	}
}

// Caddy's own limit gives no signal, so requests that wait look for room.
func TestQueue_WaitsForCaddysOwnLimit(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPolicy(t, "u", func(p *policy) {
			p.handler.Rules.Queue = Queue{Timeout: time.Second, Length: 10}
			p.list[0].MaxRequests = 1
			testkit.SetRequests(p.list[0], 1)
		})
		r := p.newLimited().begin()
		time.Sleep(300 * time.Millisecond)
		if got := r.got(); got != -2 {
			t.Fatalf("got %d while it is full", got)
		}
		testkit.SetRequests(p.list[0], 0)
		time.Sleep(lookEvery)
		if got := r.got(); got != 0 {
			t.Errorf("got %d afterwards", got)
		}
	})
}

// A client that leaves frees its place, and the process can exit.
func TestQueue_EndsWithItsRequest(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		exiting := make(chan struct{})
		p := newPolicy(t, "u", limited(t, 2, 1), func(p *policy) { p.handler.Exiting = exiting })
		requests, _ := p.ask(3)
		requests[1].leave()
		if requests[1].got(); p.handler.Waiting() != 1 {
			t.Errorf("%d wait after one has left", p.handler.Waiting())
		}
		more, got := p.ask(1)
		if got[0] != -2 {
			t.Errorf("its place is not free: %v", got)
		}
		requests[0].finish()
		if requests[2].got() != 0 {
			t.Error("the next one got nothing")
		}
		close(exiting)
		if more[0].got() != -1 {
			t.Error("it waits although the process exits")
		}
		requests[2].finish()
		if _, got := p.ask(2); !slices.Equal(got, []int{0, -1}) {
			t.Errorf("got %v while the process exits, want no wait", got)
		}
		p.members[0].Slots.Free()
	})
}

// At a reload requests wait on, and follow verdicts.
func TestQueue_OutlivesItsConfig(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPolicy(t, "ud", limited(t, 10, 1, 1))
		requests, _ := p.ask(3)
		p.end()
		p.Close()
		requests[0].finish()
		if requests[1].got() != 0 {
			t.Error("the first got nothing")
		}
		testkit.Decide(p.targets[1], true)
		testkit.Decide(p.targets[1], true)
		time.Sleep(2 * lookEvery)
		if requests[2].got() != 1 {
			t.Error("the second does not know that another one is up")
		}
		finishAll(requests)
	})
}

// A retry waits for one that was not tried while that is full, then takes what it has tried.
// Once refused, a request gets nothing more.
func TestQueue_Retries(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPolicy(t, "uu", limited(t, 10, 1, 1), retrying)
		p.members[1].Slots.Take(1)
		r := p.newLimited().begin()
		if r.got() != 0 {
			t.Fatal("the first try failed to get the one that is free")
		}
		remember(r.Request).Add(p.list[0], true, witness.Counted{})
		r.choice.Slot.Free()
		if r.begin().got() != -2 {
			t.Fatal("the retry does not wait")
		}
		p.members[1].Slots.Free()
		if r.got() != 1 {
			t.Fatal("the retry did not get the other one")
		}
		remember(r.Request).Add(p.list[1], true, witness.Counted{})
		r.finish()

		p.members[1].Slots.Take(1)
		r = p.newLimited()
		remember(r.Request).Add(p.list[0], true, witness.Counted{})
		r.begin()
		time.Sleep(10 * time.Second)
		if r.got() != 0 {
			t.Fatalf("a retry that waited in vain got %v, not what it had tried", r.choice)
		}
		r.choice.Slot.Free()
		p.members[0].Slots.Take(1)
		if r.begin().got() != -1 {
			t.Error("a request that has waited for as long as it may waits again")
		}
		p.members[0].Slots.Free()
		p.members[1].Slots.Free()
		if r.begin().got() != -1 {
			t.Error("a request that was refused gets an upstream")
		}
	})
}

// The limit grows in a slow start, and is at least 1.
func TestLimits_GrowInASlowStart(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPolicy(t, "ud", limited(t, 0, 0, 10), slowly(0.1))
		time.Sleep(time.Minute)
		p.decide("?u")
		time.Sleep(time.Millisecond)
		for _, want := range []int{1, 5, 10} {
			if got := p.Current().LimitOf(1); got != want {
				t.Errorf("limit %d, want %d", got, want)
			}
			time.Sleep(10 * time.Second)
		}
	})
}

// A slot that was given while Caddy considers its upstream unhealthy, or full by its own limit,
// goes on to a request that can use it. Those that wait go to others, and come back.
func TestQueue_GivesNoSlotsOfUpstreamsThatCaddyRefuses(t *testing.T) {
	for _, tc := range []struct {
		rule          string
		refuse, admit func(*policy)
	}{
		{"unhealthy", func(p *policy) { setAllHealthy(p.list, "01") }, func(p *policy) { setAllHealthy(p.list, "11") }},
		{"full", func(p *policy) { p.list[0].MaxRequests = 1; testkit.SetRequests(p.list[0], 1) }, func(p *policy) { testkit.SetRequests(p.list[0], 0) }},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				p := newPolicy(t, "uu", limited(t, 10, 1, 1))
				requests, got := p.ask(5)
				if !slices.Equal(sorted(got[:2]), []int{0, 1}) || !slices.Equal(got[2:], []int{-2, -2, -2}) {
					t.Fatalf("before: got %v", got)
				}
				first := slices.Index(got[:2], 0) // the request that the first upstream got
				tc.refuse(p)
				requests[first].finish()
				for i, r := range requests[2:] {
					if got := r.got(); got != -2 {
						t.Errorf("request %d got %d, want it to wait", i, got)
					}
				}
				requests[1-first].finish()
				if got := requests[2].got(); got != 1 {
					t.Errorf("the first got %d, want the other upstream", got)
				}
				tc.admit(p)
				time.Sleep(lookEvery)
				if got := sorted([]int{requests[3].got(), requests[4].got()}); !slices.Equal(got, []int{-2, 0}) {
					t.Errorf("afterwards: got %v, want one of the two to go there", got)
				}
				for range requests {
					finishAll(requests)
				}
			})
		})
	}
}

// Requests that wait for the same upstreams share what they wait for, also if that is only a
// part of those that serve. Else each slot that is freed would cost as much as requests wait.
func TestQueue_RequestsShareWhatTheyWaitFor(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPolicy(t, "uuu", limited(t, 10, 1, 1, 1))
		now := p.Current()
		for _, positions := range [][]int{{0, 1, 2}, {0, 1}, {2}} {
			set := awaitedAt(now, positions)
			if again := awaitedAt(now, slices.Clone(positions)); again != set {
				t.Errorf("%v: two requests have sets of their own", positions)
			}
			if whole := awaitedSlots(now).set; (set == whole) != (len(positions) == 3) {
				t.Errorf("%v: it has the set of all: %v", positions, set == whole)
			}
		}
		p.decide("?d?")
		if awaitedAt(p.Current(), []int{2}) == awaitedAt(now, []int{2}) {
			t.Error("another snapshot has the same set")
		}
	})
}

// An upstream that has no limit, and was full by Caddy's a moment ago, has no slots to wait
// for: the request looks again.
func TestQueue_UpstreamsWithoutALimitHaveNoSlots(t *testing.T) {
	p := newPolicy(t, "uu", limited(t, 10, 0, 1))
	d := decision{Attempt: Attempt{Upstreams: p.list, Request: testkit.Get()}, pool: p.Pool}
	d.snapshot()
	d.noteFull(0)
	d.noteFull(1)
	if !slices.Equal(d.full, []int{1}) || !d.fullByCaddy || !d.unsignaled {
		t.Errorf("full: %v, by Caddy: %v, to look again: %v", d.full, d.fullByCaddy, d.unsignaled)
	}
}

// While none serves, a request waits for a slot of one without a verdict, also if health is
// never ignored.
func TestQueue_WaitsForUpstreamsWithoutAVerdict(t *testing.T) {
	for _, never := range []bool{true, false} {
		testkit.Bubble(t, func(t *testing.T) {
			p := newPolicy(t, "?d", limited(t, 10, 1, 1), func(p *policy) {
				p.handler.Rules.FailOpen.Never, p.handler.Rules.Hold = never, 0
			})
			p.members[1].Slots.Take(1)
			requests, got := p.ask(3)
			if !slices.Equal(got, []int{0, -2, -2}) {
				t.Fatalf("fail_open off: %v: got %v", never, got)
			}
			for n := range 2 {
				requests[n].finish()
				if got := requests[n+1].got(); got != 0 {
					t.Errorf("fail_open off: %v: when there was a slot, %d got %v", never, n+1, got)
				}
			}
			finishAll(requests)
			p.members[1].Slots.Free()
		})
	}
}

// Requests that wait for upstreams of a dynamic source follow every new snapshot: one that
// another request makes when they have looked, and one that is due at a time.
func TestQueue_DynamicPoolsWakeWaitingRequests(t *testing.T) {
	waits := func(p *policy) (*Pool, *limitedRequest) {
		d := New(p.handler, p.members, p.list, new(LoggedState))
		p.members[0].Slots.Take(1)
		return d, (&policy{Pool: d, list: p.list}).newLimited().begin()
	}
	t.Run("another request makes the snapshot", func(t *testing.T) {
		testkit.Bubble(t, func(t *testing.T) {
			p := newPolicy(t, "ud", limited(t, 10, 1))
			d, r := waits(p)
			if got := r.got(); got != -2 {
				t.Fatalf("got %d, want it to wait", got)
			}
			d.making.Lock() // the other request is at it
			p.decide("?u")
			if got := r.got(); got != -2 {
				t.Fatalf("got %d by the old snapshot", got)
			}
			d.making.Unlock()
			d.Pick(Attempt{Upstreams: p.list, Request: testkit.Get()})
			if got := r.got(); got != 1 {
				t.Errorf("got %d, want the upstream that is up now", got)
			}
			r.finish()
			p.members[0].Slots.Free()
		})
	})
	t.Run("an ejection ends", func(t *testing.T) {
		testkit.Bubble(t, func(t *testing.T) {
			a := newAccusable(t, "uu", limited(t, 10, 1))
			a.handler.Rules.Queue.Timeout = time.Minute
			a.eject(t, 1)
			_, r := waits(a.policy)
			if got := r.got(); got != -2 {
				t.Fatalf("got %d, want it to wait", got)
			}
			time.Sleep(time.Until(a.members[1].Ejection()) + time.Second)
			if got := r.got(); got != 1 {
				t.Errorf("got %d, want the upstream for a trial", got)
			}
			r.finish()
			a.members[0].Slots.Free()
		})
	})
}

// A request that waits tries an upstream whose ejection is over, also one with a limit.
func TestQueue_WaitingRequestsAreTrials(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		a := newAccusable(t, "uu", limited(t, 10, 1, 1))
		a.handler.Rules.Queue.Timeout = time.Minute
		a.eject(t, 1)
		requests, got := a.ask(3)
		if !slices.Equal(got, []int{0, -2, -2}) {
			t.Fatalf("got %v, want the last two to wait", got)
		}
		time.Sleep(time.Until(a.members[1].Ejection()) + 2*time.Second)
		if got := []int{requests[1].got(), requests[2].got()}; !slices.Equal(sorted(got), []int{-2, 1}) {
			t.Errorf("got %v, want a trial by one of them", got)
		}
		finishAll(requests[:1])
		finishAll(requests)
	})
}
