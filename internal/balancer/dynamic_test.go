// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// An address is forgotten when requests have seen the pool without it for five minutes.
// Without requests it is not known to be gone, so it is kept, for an hour.
func TestDynamic_AddressesThatAreGoneAreForgotten(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80")
		p := newDynamicPolicy(t, n, "x")
		p.served(1, "a:80", "b:80")
		minutes := func(minutes int, pool ...string) []string {
			for range minutes * 6 {
				time.Sleep(10 * time.Second)
				if len(pool) > 0 {
					p.served(1, pool...)
				}
			}
			n.probed()
			time.Sleep(30 * time.Second)
			return n.probed()
		}
		for _, step := range []struct {
			what string
			got  []string
			want []string
		}{
			{"10 minutes without a request", minutes(10), []string{"a:80", "b:80"}},
			{"a request without b", minutes(1, "a:80"), []string{"a:80", "b:80"}},
			{"3 minutes without b", minutes(3, "a:80"), []string{"a:80", "b:80"}},
			{"b is back", minutes(1, "a:80", "b:80"), []string{"a:80", "b:80"}},
			{"4 minutes without b", minutes(4, "a:80"), []string{"a:80", "b:80"}},
			{"6 minutes without b", minutes(2, "a:80"), []string{"a:80"}},
			{"c instead of a", minutes(7, "c:80"), []string{"c:80"}},
			{"50 minutes without a request", minutes(50), []string{"c:80"}},
			{"over an hour without a request", minutes(12), nil},
			{"c again", minutes(1, "c:80"), []string{"c:80"}},
		} {
			if !slices.Equal(step.got, step.want) {
				t.Errorf("%s: probed %v, want %v", step.what, step.got, step.want)
			}
		}
	})
}

// Answers that alternate are all watched, and none is made anew for a request.
func TestDynamic_AnswersThatAlternateAreKeptReady(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80")
		p := newDynamicPolicy(t, n, "x")
		p.served(1, "a:80", "b:80")
		p.served(1, "c:80")
		time.Sleep(time.Second)
		snapshot := func(dials ...string) *pool.Snapshot {
			p.served(1, dials...)
			return p.dynamic.find(brought(dials...)).Current()
		}
		first, second := snapshot("a:80", "b:80"), snapshot("c:80")
		for range 10 * 60 {
			time.Sleep(time.Second)
			if snapshot("a:80", "b:80") != first || snapshot("c:80") != second {
				t.Fatal("a snapshot was made anew although nothing changed")
			}
		}
		n.probed()
		time.Sleep(time.Minute)
		if got, want := n.probed(), []string{"a:80", "b:80", "c:80"}; !slices.Equal(got, want) {
			t.Errorf("probed %v, want %v", got, want)
		}
		for i := range 3 * maxAnswers { // many answers: those that requests have not brought for long go
			p.served(1, fmt.Sprintf("x%d:80", i%37), "a:80", fmt.Sprintf("y%d:80", i/37))
		}
		if got := len(p.dynamic.answers.all()); got > maxAnswers || got < maxAnswers/2 {
			t.Errorf("%d answers kept, want them to be many, but %d at most", got, maxAnswers)
		}
	})
}

// The watch list outlives a reload: the next config knows which are dead before its first
// request, and goes on probing.
func TestWatchList_SurvivesAReload(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80")
		p := newDynamicPolicy(t, n, "x")
		p.served(1, "a:80", "b:80")
		time.Sleep(time.Second)

		other := newDynamicPolicy(t, n, "y")
		next := newDynamicPolicy(t, n, "x")
		p.end(t)
		if got := len(other.monitors.all()); got != 0 {
			t.Errorf("a policy with another source watches %d, want 0", got)
		}
		if got := len(next.monitors.all()); got != 2 {
			t.Errorf("the next config watches %d, want 2", got)
		}
		began := time.Now()
		if got, want := next.served(60, "a:80", "b:80"), map[string]int{"a:80": 60}; !maps.Equal(got, want) || time.Since(began) != 0 {
			t.Errorf("served by %v after %v, want %v at once", got, time.Since(began), want)
		}
		n.probed()
		time.Sleep(15 * time.Second)
		if got, want := n.probed(), []string{"a:80", "b:80"}; !slices.Equal(got, want) {
			t.Errorf("probed %v, want %v", got, want)
		}

		// requests of the old config that are still in flight start nothing
		if u := p.Select(brought("z:80"), testkit.Get(), nil); u == nil {
			t.Error("nil for a request in flight after Cleanup")
		}
		time.Sleep(15 * time.Second)
		if got := n.probed(); slices.Contains(got, "z:80") {
			t.Error("a config that has ended began to watch")
		}
	})
}

// When there is room again, those past the limit are watched, too.
func TestDynamic_AddressesPastTheLimitAreWatchedLater(t *testing.T) {
	if testkit.RaceDetector {
		t.Skip("the race detector crashes by itself over thousands of timers of virtual time")
	}
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork()
		p := newDynamicPolicy(t, n, "x")
		for i := range maxObserved {
			p.Select(brought(fmt.Sprintf("a%d:80", i)), testkit.Get(), nil)
		}
		for range 10 * 60 {
			p.Select(brought("z:80"), testkit.Get(), nil)
			time.Sleep(time.Second)
		}
		n.probed()
		time.Sleep(time.Minute)
		if got, want := n.probed(), []string{"z:80"}; !slices.Equal(got, want) {
			t.Errorf("probed %v, want %v", got, want)
		}
	})
}

// An upstream that one of the checks refuses leaves no monitor of the others.
func TestDynamic_RefusedUpstreamLeavesNoMonitor(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newDynamicPolicy(t, newNetwork(), "x")
		refuses := *p.config.Checks[0]
		refuses.Validate = func(*monitor.Route) error { return errors.New("not this one") }
		p.config.Checks = append(p.config.Checks, &refuses)
		p.Select(brought("a:80"), testkit.Get(), nil)
		if got := len(p.monitors.all()); got != 0 {
			t.Errorf("%d monitors, want none", got)
		}
	})
}

// A failed request makes a suspect of the upstream, from a dynamic source, too.
func TestDynamic_AFailedTryProbesThatUpstream(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80")
		p := newDynamicPolicy(t, n, "x", retrying)
		p.served(1, "a:80")
		time.Sleep(5 * time.Second)
		n.probed()
		r := testkit.Get()
		p.roundTrip(r, p.Select(brought("a:80"), r, nil), refused)
		if !p.dynamic.memberNamed("a:80").IsSuspect() {
			t.Error("it is no suspect")
		}
		time.Sleep(time.Second)
		if got, want := n.probed(), []string{"a:80"}; !slices.Equal(got, want) {
			t.Errorf("probed %v after a failure, want %v", got, want)
		}
	})
}

// An upstream in maintenance is not probed: neither when a source brings it for the
// first time, nor by the next config. Its mode is forgotten with it, unless another
// policy has it.
func TestDynamic_ModesAreForgottenWithTheAddress(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80")
		p := newDynamicPolicy(t, n, "x")
		o := p.registry.Settings
		for _, address := range []string{"b:80", "c:80"} {
			o.Change(address, settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
		}
		if got, want := p.served(60, "a:80", "b:80", "c:80"), map[string]int{"a:80": 60}; !maps.Equal(got, want) {
			t.Errorf("served by %v, want %v", got, want)
		}
		time.Sleep(time.Minute)
		if got, want := n.probed(), []string{"a:80"}; !slices.Equal(got, want) {
			t.Errorf("probed %v, want %v", got, want)
		}

		next := newDynamicPolicy(t, n, "x", in(newRegistry(t, o)))
		p.end(t)
		n.probed()
		time.Sleep(time.Minute)
		if got, want := n.probed(), []string{"a:80"}; !slices.Equal(got, want) {
			t.Errorf("the next config probed %v, want %v", got, want)
		}

		other := newDynamicPolicy(t, n, "y", in(next.registry))
		other.served(1, "a:80", "c:80")
		for range 60 { // b and c are gone from one, and c is not from the other
			time.Sleep(10 * time.Second)
			next.served(1, "a:80")
			other.served(1, "a:80", "c:80")
		}
		if got := o.Of("b:80").ModeNow(); got != settings.Ready {
			t.Errorf("the mode of one that was forgotten: %s", got)
		}
		if got := o.Of("c:80").ModeNow(); got != settings.Maintenance {
			t.Errorf("the mode of one that another policy has: %s", got)
		}
	})
}

// While a check looks at an upstream that is new, which can take its time or ask for the
// list, no lock is held. However many requests bring the upstream meanwhile, the check
// looks once.
func TestDynamic_UpstreamsAreOpenedWithoutALock(t *testing.T) {
	for _, ends := range []string{"no config", "the config"} {
		t.Run(ends+" ends meanwhile", func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				n := newNetwork("a:80", "b:80", "c:80")
				var looks atomic.Int64
				var p *policy
				slow := n.check()
				slow.Validate = func(r *monitor.Route) error {
					if r.Address == "a:80" {
						looks.Add(1)
						time.Sleep(time.Minute)
						p.rows(Filter{})
						p.Member("a:80")
					}
					return nil
				}
				p = newDynamicPolicy(t, n, "x", func(s *setup) { s.Checks = []*monitor.Check{slow} })
				began := time.Now()
				var waiting sync.WaitGroup
				for range 20 {
					for _, dials := range [][]string{{"a:80"}, {"a:80", "b:80"}, {"b:80", "a:80"}} {
						waiting.Go(func() { p.served(1, dials...) })
					}
				}
				time.Sleep(time.Second)
				if p.served(1, "c:80"); time.Since(began) > 2*time.Second {
					t.Error("a request for another upstream waits")
				}
				if ends == "the config" {
					p.end(t)
				}
				waiting.Wait()
				if took := time.Since(began); took > time.Minute+time.Second {
					t.Errorf("the last request is answered after %s, want a minute", took)
				}
				if got := looks.Load(); got != 1 {
					t.Errorf("the check has looked at the upstream %d times, want once", got)
				}
				want := 3
				if ends == "the config" {
					want = 0
				}
				if got := len(p.monitors.all()); got != want {
					t.Errorf("%d monitors, want %d", got, want)
				}
			})
		})
	}
}

// A check that panics at an upstream makes no other request wait.
func TestDynamic_CheckThatPanicsDelaysNothing(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		panics := newNetwork().check()
		panics.Validate = func(r *monitor.Route) error {
			if r.Address == "a:80" {
				panic("not this one")
			}
			return nil
		}
		p := newDynamicPolicy(t, newNetwork(), "x", func(s *setup) { s.Checks = []*monitor.Check{panics} })
		func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			p.served(1, "a:80", "b:80")
		}()
		if got := p.served(10, "a:80"); got["a:80"] != 10 {
			t.Errorf("served by %v, want the upstream that counts as alive", got)
		}
	})
}

// An upstream in maintenance that requests bring is not probed, also while the config has
// not begun as a whole.
func TestDynamic_MaintenanceHoldsBeforeTheConfigHasBegun(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80")
		p := newDynamicPolicy(t, n, "x")
		p.registry.beside.Store(true)
		p.registry.Settings.Change("b:80", settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
		p.served(1, "a:80", "b:80")
		time.Sleep(time.Minute)
		if got, want := n.probed(), []string{"a:80"}; !slices.Equal(got, want) {
			t.Errorf("probed %v, want %v", got, want)
		}
	})
}
