// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
)

// pooled returns a policy over addresses, as far as what was set at run time goes. A
// name that ends in ! is one that the config gives.
func pooled(pool string, addresses ...string) *Selection {
	s := &Selection{pool: strings.TrimSuffix(pool, "!"), byDial: make(map[string]*member), logger: zap.NewNop()}
	s.refresh()
	if s.pool != pool {
		s.Name = s.pool
	}
	for _, address := range addresses {
		s.byDial[address] = &member{address: address, weight: 1}
	}
	return s
}

// beginning returns an app with policies, and what it logs. A storage without an
// interval is that of no fleet.
func beginning(t *testing.T, o *settings.Set, every time.Duration, policies ...*Selection) (*App, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	a := &App{
		operations: o, keeper: settings.NewStore(o, &certmagic.FileStorage{Path: t.TempDir()}, "f", every, zap.NewNop()),
		logger: zap.New(core), policies: policies, begun: make(chan struct{}),
	}
	a.keeper.Sync(t.Context(), true)
	return a, logs
}

// weights returns the weights of an address that hold, by pool, in a line.
func weightsOf(o *settings.Set, address string) string {
	var all []string
	for pool, w := range o.Of(address).Weights {
		if w.Weight != nil {
			all = append(all, fmt.Sprintf("%s %d", pool, *w.Weight))
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// A weight follows its upstream when the list, and so the name, of its pool changes;
// where that is not clear, it stays, and a warning names the pools.
func TestWeights_FollowTheirUpstream(t *testing.T) {
	for _, tc := range []struct {
		rule          string
		before        []*Selection // nil: a restart
		now           []*Selection
		every         time.Duration
		want, warning string
	}{
		{"one was added", []*Selection{pooled("a b", "a", "b")}, []*Selection{pooled("a b c", "a", "b", "c")}, 0, "a b c 0", ""},
		{"the order changed, at a restart", nil, []*Selection{pooled("b a", "a", "b")}, 0, "b a 0", ""},
		{"others in a fleet still have the old list", []*Selection{pooled("a b", "a", "b")}, []*Selection{pooled("b a", "a", "b")}, time.Second, "a b 0, b a 0", ""},
		{"the pool is the same", []*Selection{pooled("a b", "a", "b")}, []*Selection{pooled("a b", "a", "b"), pooled("x", "a")}, 0, "a b 0", ""},
		{"another pool had the upstream before, too", []*Selection{pooled("a b", "a", "b"), pooled("x", "a")}, []*Selection{pooled("b a", "a", "b"), pooled("x", "a")}, 0, "b a 0", ""},
		{"only another pool is left", []*Selection{pooled("a b", "a", "b"), pooled("x", "a")}, []*Selection{pooled("x", "a")}, 0, "a b 0", "x"},
		{"two pools could be meant", []*Selection{pooled("a b", "a", "b")}, []*Selection{pooled("b a", "a", "b"), pooled("x", "a")}, 0, "a b 0", "b a, x"},
		{"two pools could be meant, at a restart", nil, []*Selection{pooled("b a", "a", "b"), pooled("x", "a")}, 0, "a b 0", "b a, x"},
		{"the config names the pool", []*Selection{pooled("a b", "a", "b")}, []*Selection{pooled("shop!", "a", "b")}, 0, "a b 0", "shop"},
		{"no pool has it", []*Selection{pooled("a b", "a", "b")}, []*Selection{pooled("b", "b")}, 0, "a b 0", ""},
		{"it was of no pool before", []*Selection{pooled("b", "b")}, []*Selection{pooled("b a", "a", "b")}, 0, "b a 0", ""},
		{"it was of no pool before, and now of one that the config names", []*Selection{pooled("b", "b")}, []*Selection{pooled("shop!", "a", "b")}, 0, "a b 0", "shop"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			o := settings.NewSet()
			o.Change("a", settings.Change{Pool: "a b", Weight: new(new(0))})
			var before *App
			if tc.before != nil {
				before, _ = beginning(t, o, tc.every, tc.before...)
			}
			a, logs := beginning(t, o, tc.every, tc.now...)
			if !a.meet(before) {
				t.Fatal("the settings are not known")
			}
			close(a.begun)
			a.keepCarried()
			if got := weightsOf(o, "a"); got != tc.want {
				t.Errorf("weights %q, want %q", got, tc.want)
			}
			warnings := logs.FilterLevelExact(zapcore.WarnLevel).All()
			if tc.warning == "" && len(warnings) > 0 || tc.warning != "" && (len(warnings) != 1 ||
				!slices.Equal(warnings[0].ContextMap()["pools"].([]any), asAny(strings.Split(tc.warning, ", ")))) {
				t.Errorf("warned %v, want %q", warnings, tc.warning)
			}
			// the next one of the same config has nothing more to do
			again, logs := beginning(t, o, tc.every, tc.now...)
			again.meet(a)
			close(again.begun)
			again.keepCarried()
			if got := weightsOf(o, "a"); got != tc.want || logs.Len() > 0 {
				t.Errorf("again: weights %q, logged %v", got, logs.All())
			}
		})
	}
}

func asAny(texts []string) (all []any) {
	for _, text := range texts {
		all = append(all, text)
	}
	return all
}

// What an operator changes later follows back when the list does, the newest change
// first, with and without a fleet.
func TestWeights_FollowBack(t *testing.T) {
	for _, every := range []time.Duration{0, time.Second} {
		for _, later := range []**int{nil, new(new(5)), new((*int)(nil))} {
			o := settings.NewSet()
			o.Change("a", settings.Change{Pool: "a b", Weight: new(new(3))})
			load := func(before *App, pool string) *App {
				a, _ := beginning(t, o, every, pooled(pool, "a", "b"))
				a.meet(before)
				close(a.begun)
				a.keepCarried()
				return a
			}
			one := load(nil, "a b")
			two := load(one, "b a")
			if got := o.Of("a").WeightIn("b a", 1); got != 3 {
				t.Errorf("there: weight %d", got)
			}
			want := 3
			if later != nil {
				o.Change("a", settings.Change{Pool: "b a", Weight: later})
				if want = 1; *later != nil {
					want = **later
				}
			}
			load(two, "a b")
			if got := o.Of("a").WeightIn("a b", 1); got != want {
				t.Errorf("sync_interval %v: back: weight %d, want %d: %+v", every, got, want, o.Of("a"))
			}
		}
	}
}

// A policy of select takes no weight but 0, a config that never starts changes nothing,
// and hundreds of warnings are a few lines.
func TestWeights_AreNotCarriedInto(t *testing.T) {
	picks := pooled("b a", "a", "b")
	picks.inner = reverseproxy.RandomSelection{}
	for weight, want := range map[int]string{0: "b a 0", 3: "a b 3"} {
		o := settings.NewSet()
		o.Change("a", settings.Change{Pool: "a b", Weight: new(&weight)})
		a, _ := beginning(t, o, 0, picks)
		a.meet(nil)
		close(a.begun)
		a.keepCarried()
		if got := weightsOf(o, "a"); got != want {
			t.Errorf("select, weight %d: %q, want %q", weight, got, want)
		}
	}

	o := settings.NewSet()
	before := o.Change("a", settings.Change{Pool: "a b", Weight: new(new(0))})
	old, _ := beginning(t, o, 0, pooled("a b", "a", "b"))
	failing, _ := beginning(t, o, 0, pooled("b a", "a", "b"))
	failing.meet(old)
	if got := weightsOf(o, "a"); got != "a b 0, b a 0" {
		t.Errorf("before it begins: %q", got)
	}
	failing.keepCarried()
	failing.dropCarried()
	if got := o.Of("a"); !reflect.DeepEqual(got, before) {
		t.Errorf("after it failed: %+v, want %+v", got, before)
	}

	many := []*Selection{pooled("x", "a"), pooled("y", "a")}
	for i := range 300 {
		address := fmt.Sprintf("a%03d", i)
		o.Change(address, settings.Change{Pool: "gone", Weight: new(new(0))})
		for _, s := range many {
			s.byDial[address] = &member{address: address}
		}
	}
	a, logs := beginning(t, o, 0, many...)
	a.meet(nil)
	if got := logs.Len(); got != maxBeginLines+1 {
		t.Errorf("%d lines", got)
	}
}

// What applies to a config is logged when it begins, a line each and not too many; what
// does not apply is not.
func TestBegin_LogsWhatApplies(t *testing.T) {
	o := settings.NewSet()
	o.Change("a", settings.Change{Mode: new(settings.Mode(settings.Drain))})
	o.Change("b", settings.Change{Pool: "shop", Weight: new(new(0))})
	o.Change("c", settings.Change{Pool: "gone", Weight: new(new(2))})
	o.Change("d", settings.Change{Mode: new(settings.Mode(settings.Maintenance))}) // in no pool
	o.Change("e", settings.Change{Mode: new(settings.Mode(settings.Ready))})
	a, logs := beginning(t, o, 0, pooled("shop!", "a", "b", "c", "e"))
	a.logSettings()
	var got []string
	for _, line := range logs.All() {
		fields := line.ContextMap()
		got = append(got, fmt.Sprint(line.Level, fields["upstream"], fields["mode"], fields["pool"], fields["weight"]))
	}
	want := []string{fmt.Sprint(zapcore.InfoLevel, "a", "drain", nil, nil), fmt.Sprint(zapcore.InfoLevel, "b", "ready", "shop", int64(0))}
	if !slices.Equal(got, want) {
		t.Errorf("logged %q, want %q", got, want)
	}
	s := pooled("shop!")
	for i := range 300 {
		address := fmt.Sprintf("a%03d", i)
		o.Change(address, settings.Change{Mode: new(settings.Mode(settings.Drain))})
		s.byDial[address] = &member{address: address}
	}
	a, logs = beginning(t, o, 0, s)
	a.logSettings()
	if n := logs.Len(); n != maxBeginLines+1 || logs.All()[maxBeginLines].ContextMap()["upstreams"] != int64(300-maxBeginLines) {
		t.Errorf("%d lines, the last is %v", n, logs.All()[n-1])
	}
}

// What was set for an address that left is forgotten a day later, over restarts, unless
// the address returned or there is a fleet.
func TestModes_AreForgottenADayAfterTheAddressLeft(t *testing.T) {
	for _, tc := range []struct {
		rule    string
		every   time.Duration
		returns time.Duration // after it left, 0: never
		want    settings.Mode // 25 hours after it left
	}{
		{"it left", 0, 0, settings.Ready},
		{"it returned after 23 hours", 0, 23 * time.Hour, settings.Drain},
		{"in a fleet", time.Minute, 0, settings.Drain},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				storage := &certmagic.FileStorage{Path: t.TempDir()}
				var end func()
				start := func(policies ...*Selection) *App {
					if end != nil {
						end()
					}
					o := settings.NewSet() // as after a restart
					a := &App{operations: o, keeper: settings.NewStore(o, storage, "f", tc.every, zap.NewNop()), logger: zap.NewNop(), unsubscribe: func() {}, policies: policies, begun: make(chan struct{})}
					a.keeper.Sync(t.Context(), true)
					if err := a.Start(); err != nil {
						t.Fatal(err)
					}
					a.hasBegun()
					end = func() {
						if err := a.Cleanup(); err != nil {
							t.Error(err)
						}
					}
					return a
				}
				k := start(pooled("a b", "a", "b"))
				k.operations.Change("a", settings.Change{Mode: new(settings.Mode(settings.Drain))})
				k.keeper.Sync(t.Context(), false)
				time.Sleep(100 * time.Hour) // it is there
				start(pooled("b", "b"))
				if tc.returns > 0 {
					time.Sleep(tc.returns)
					start(pooled("b a", "a", "b"))
					time.Sleep(2 * time.Minute)
					k = start(pooled("b", "b"))
					time.Sleep(2 * time.Hour)
				} else {
					time.Sleep(12 * time.Hour)
					k = start(pooled("b", "b"))
					if got := k.operations.Of("a").ModeNow(); got != settings.Drain {
						t.Errorf("after half a day: mode %s", got)
					}
					time.Sleep(13 * time.Hour)
				}
				synctest.Wait()
				if got := k.operations.Of("a").ModeNow(); got != tc.want {
					t.Errorf("mode %s, want %s", got, tc.want)
				}
				end()
				keys, err := storage.List(t.Context(), "f", false)
				if err != nil {
					t.Fatal(err)
				}
				if stored := len(keys) > 0; stored != (tc.want == settings.Drain) {
					t.Errorf("stored: %v", keys)
				}
			})
		})
	}
}

// A config of another fleet that may still fail pauses nothing of the one that runs.
func TestPause_WaitsForTheConfigToBegin(t *testing.T) {
	old := newPolicy(t, "uu", following(t))
	defer old.targets[0].Attach(health.Driver{Probe: nil}, time.Hour)()
	next := newPolicy(t, "??", following(t))
	next.run(false)
	next.byDial[next.members[0].address].watches = old.members[0].watches // they share the target
	next.set(0, settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
	for step, then := range []func(){
		func() { next.set(0, settings.Change{Mode: new(settings.Mode(settings.Maintenance))}) }, // it is provisioned
		func() { next.app.starting.Store(true); drive([]*Selection{next.Selection}) },
		func() { next.set(0, settings.Change{Mode: new(settings.Mode(settings.Maintenance))}) },
	} {
		then()
		if old.targets[0].View().Paused || old.targets[0].Status() != health.Up {
			t.Fatalf("step %d: the target of the running config is paused", step)
		}
	}
	next.app.begun = make(chan struct{})
	next.app.hasBegun()
	if !old.targets[0].View().Paused {
		t.Error("the config has begun, but the target is not paused")
	}
	release([]*Selection{next.Selection})
}
