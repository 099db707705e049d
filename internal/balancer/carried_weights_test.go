// SPDX-License-Identifier: Apache-2.0

package balancer

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

// pooled is a pool of a config, as far as what was set at run time goes.
type pooled struct {
	name      string // one that ends in ! is given by the config
	addresses []string
	sel       reverseproxy.Selector // nil if none is configured
}

func pools(all ...pooled) []pooled { return all }

func poolOf(name string, addresses ...string) pooled { return pooled{name: name, addresses: addresses} }

// beginning returns the registry of a config with pools, and what it logs. A storage
// without an interval is that of no fleet.
func beginning(t *testing.T, set *settings.Set, every time.Duration, all ...pooled) (*Registry, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	r := newRegistry(t, set)
	r.Store = settings.NewStore(set, &certmagic.FileStorage{Path: t.TempDir()}, "f", every, zap.NewNop())
	r.Store.Sync(t.Context(), true)
	for _, one := range all {
		one.begin(t, r)
	}
	r.Logger = zap.New(core)
	return r, logs
}

// begin adds the pool to a registry. Nothing of it is probed.
func (one pooled) begin(t *testing.T, r *Registry) {
	t.Helper()
	newPolicy(t, "", idle, in(r), func(s *setup) {
		s.Proxy.Upstreams, s.Rules.Select = brought(one.addresses...), one.sel
		s.Name = strings.TrimSuffix(one.name, "!")
		s.Named = s.Name != one.name
	})
}

// weightsOf returns the weights of an address that hold, by pool, in a line.
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
		before        []pooled // nil: a restart
		now           []pooled
		every         time.Duration
		want, warning string
	}{
		{"one was added", pools(poolOf("a b", "a", "b")), pools(poolOf("a b c", "a", "b", "c")), 0, "a b c 0", ""},
		{"the order changed, at a restart", nil, pools(poolOf("b a", "a", "b")), 0, "b a 0", ""},
		{"others in a fleet still have the old list", pools(poolOf("a b", "a", "b")), pools(poolOf("b a", "a", "b")), time.Second, "a b 0, b a 0", ""},
		{"the pool is the same", pools(poolOf("a b", "a", "b")), pools(poolOf("a b", "a", "b"), poolOf("x", "a")), 0, "a b 0", ""},
		{"another pool had the upstream before, too", pools(poolOf("a b", "a", "b"), poolOf("x", "a")), pools(poolOf("b a", "a", "b"), poolOf("x", "a")), 0, "b a 0", ""},
		{"only another pool is left", pools(poolOf("a b", "a", "b"), poolOf("x", "a")), pools(poolOf("x", "a")), 0, "a b 0", "x"},
		{"two pools could be meant", pools(poolOf("a b", "a", "b")), pools(poolOf("b a", "a", "b"), poolOf("x", "a")), 0, "a b 0", "b a, x"},
		{"two pools could be meant, at a restart", nil, pools(poolOf("b a", "a", "b"), poolOf("x", "a")), 0, "a b 0", "b a, x"},
		{"the config names the pool", pools(poolOf("a b", "a", "b")), pools(poolOf("shop!", "a", "b")), 0, "a b 0", "shop"},
		{"no pool has it", pools(poolOf("a b", "a", "b")), pools(poolOf("b", "b")), 0, "a b 0", ""},
		{"it was of no pool before", pools(poolOf("b", "b")), pools(poolOf("b a", "a", "b")), 0, "b a 0", ""},
		{"it was of no pool before, and now of one that the config names", pools(poolOf("b", "b")), pools(poolOf("shop!", "a", "b")), 0, "a b 0", "shop"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			o := settings.NewSet()
			o.Change("a", settings.Change{Pool: "a b", Weight: new(new(0))})
			var before *Registry
			if tc.before != nil {
				before, _ = beginning(t, o, tc.every, tc.before...)
			}
			a, logs := beginning(t, o, tc.every, tc.now...)
			a.startBeside(before)
			if !a.carried.done {
				t.Fatal("the settings are not known")
			}
			a.ConfigStarted()
			a.carried.storeCarried(a)
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
			again.startBeside(a)
			again.ConfigStarted()
			again.carried.storeCarried(again)
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
			load := func(before *Registry, pool string) *Registry {
				a, _ := beginning(t, o, every, poolOf(pool, "a", "b"))
				a.startBeside(before)
				a.ConfigStarted()
				a.carried.storeCarried(a)
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

// A policy of select takes only the weight 0, a config that never starts changes nothing,
// and hundreds of warnings are a few lines.
func TestWeights_AreNotCarried(t *testing.T) {
	picks := poolOf("b a", "a", "b")
	picks.sel = reverseproxy.RandomSelection{}
	for weight, want := range map[int]string{0: "b a 0", 3: "a b 3"} {
		o := settings.NewSet()
		o.Change("a", settings.Change{Pool: "a b", Weight: new(&weight)})
		a, _ := beginning(t, o, 0, picks)
		a.startBeside(nil)
		a.ConfigStarted()
		a.carried.storeCarried(a)
		if got := weightsOf(o, "a"); got != want {
			t.Errorf("select, weight %d: %q, want %q", weight, got, want)
		}
	}

	o := settings.NewSet()
	before := o.Change("a", settings.Change{Pool: "a b", Weight: new(new(0))})
	old, _ := beginning(t, o, 0, poolOf("a b", "a", "b"))
	failing, _ := beginning(t, o, 0, poolOf("b a", "a", "b"))
	failing.startBeside(old)
	if got := weightsOf(o, "a"); got != "a b 0, b a 0" {
		t.Errorf("before it begins: %q", got)
	}
	failing.carried.storeCarried(failing)
	failing.carried.drop(o)
	if got := o.Of("a"); !reflect.DeepEqual(got, before) {
		t.Errorf("after it failed: %+v, want %+v", got, before)
	}

	many := pools(poolOf("x", "a"), poolOf("y", "a"))
	for i := range 300 {
		address := fmt.Sprintf("a%03d", i)
		o.Change(address, settings.Change{Pool: "gone", Weight: new(new(0))})
		for i := range many {
			many[i].addresses = append(many[i].addresses, address)
		}
	}
	a, logs := beginning(t, o, 0, many...)
	a.startBeside(nil)
	if got := logs.Len(); got != maxLines+1 {
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
	a, logs := beginning(t, o, 0, poolOf("shop!", "a", "b", "c", "e"))
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
	many := poolOf("shop!")
	for i := range 300 {
		address := fmt.Sprintf("a%03d", i)
		o.Change(address, settings.Change{Mode: new(settings.Mode(settings.Drain))})
		many.addresses = append(many.addresses, address)
	}
	a, logs = beginning(t, o, 0, many)
	a.logSettings()
	if n := logs.Len(); n != maxLines+1 || logs.All()[maxLines].ContextMap()["upstreams"] != int64(300-maxLines) {
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
				start := func(one pooled) *Registry {
					if end != nil {
						end()
					}
					set := settings.NewSet() // as after a restart
					r := newRegistry(t, set)
					r.Store = settings.NewStore(set, storage, "f", tc.every, zap.NewNop())
					r.Store.Sync(t.Context(), true)
					one.begin(t, r)
					r.Start()
					r.ConfigStarted()
					end = r.Close
					return r
				}
				k := start(poolOf("a b", "a", "b"))
				k.Settings.Change("a", settings.Change{Mode: new(settings.Mode(settings.Drain))})
				k.Store.Sync(t.Context(), false)
				time.Sleep(100 * time.Hour) // it is there
				start(poolOf("b", "b"))
				if tc.returns > 0 {
					time.Sleep(tc.returns)
					start(poolOf("b a", "a", "b"))
					time.Sleep(2 * time.Minute)
					k = start(poolOf("b", "b"))
					time.Sleep(2 * time.Hour)
				} else {
					time.Sleep(12 * time.Hour)
					k = start(poolOf("b", "b"))
					if got := k.Settings.Of("a").ModeNow(); got != settings.Drain {
						t.Errorf("after half a day: mode %s", got)
					}
					time.Sleep(13 * time.Hour)
				}
				synctest.Wait()
				if got := k.Settings.Of("a").ModeNow(); got != tc.want {
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
	old := newPolicy(t, "uu")
	defer old.targets[0].Attach(health.Driver{Probe: nil}, time.Hour)()
	next := newPolicy(t, "??", idle, func(s *setup) {
		s.members[0].Checks = old.pool.Members()[0].Checks // they share the target
	})
	for step, then := range []func(){
		func() { next.set(0, settings.Change{Mode: new(settings.Mode(settings.Maintenance))}) }, // it is provisioned
		func() { next.registry.beside.Store(true); startAll([]*Balancer{next.Balancer}) },
		func() { next.set(0, settings.Change{Mode: new(settings.Mode(settings.Maintenance))}) },
	} {
		then()
		if old.targets[0].View().Paused || old.targets[0].Status() != health.Up {
			t.Fatalf("step %d: the target of the running config is paused", step)
		}
	}
	next.registry.ConfigStarted()
	if !old.targets[0].View().Paused {
		t.Error("the config has begun, but the target is not paused")
	}
}
