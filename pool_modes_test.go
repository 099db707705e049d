// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
)

// set changes what is set at run time, as an operator would.
func (p *policy) set(i int, c settings.Change) { p.app.operations.Change(p.members[i].address, c) }

// following has a policy follow what is set at run time, as the pool "shop".
func following(t *testing.T) func(*Selection) {
	return func(s *Selection) {
		s.app = newTestApp(t)
		s.app.events = telemetry.NewQueue(zap.NewNop(), nil, runningQueues)
		s.pool = "shop"
		s.rules.operations, s.rules.pool = s.app.operations, s.pool
		s.app.policies = append(s.app.policies, s)
		t.Cleanup(s.app.operations.Subscribe(s.app.applySetting))
	}
}

// handMadeModes makes members as handMadeDraining does, each with what an operator
// set after a colon: d for drain, m for maintenance, a number for the weight.
func handMadeModes(words string) ([]*member, *settings.Set) {
	var members []*member
	o := settings.NewSet()
	for i, word := range strings.Fields(words) {
		made, set, _ := strings.Cut(word, ":")
		m := handMadeDraining(made)[0]
		m.address = address(i)
		members = append(members, m)
		for c := range strings.SplitSeq(set, ",") {
			switch weight, err := strconv.Atoi(c); {
			case c == "":
			case c == "d":
				o.Change(m.address, settings.Change{Mode: new(settings.Mode(settings.Drain))})
			case c == "m":
				o.Change(m.address, settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
			case err == nil:
				o.Change(m.address, settings.Change{Pool: "shop", Weight: new(&weight)})
			default:
				panic(fmt.Sprintf("%s: what is %q?", word, c))
			}
		}
	}
	return members, o
}

// What an operator drains gets requests as what asks for it by itself; maintenance
// is nothing at all, not even in fail-open; a weight replaces that of the config.
func TestModeTiers(t *testing.T) {
	half := failOpen{percent: 50}
	none := []int(nil)
	for _, tc := range []struct {
		rule     string
		members  string
		failOpen failOpen
		tiers    [][]int // turns in a cycle, by position
		unknown  []int
		resort   []int
		mood     mood
	}{
		{"drain: others first, backups too", "u1:d u2 u1b", failOpen{}, [][]int{{0, 1, 0}, {0, 0, 1}, {1, 0, 0}}, none, []int{0, 1, 0}, fine},
		{"drain: better than an error", "u1:d d1", failOpen{}, [][]int{{1, 0}}, none, []int{0, 1}, fine},
		{"drain: better than to wait", "u1:d ?1", failOpen{}, [][]int{{1, 0}}, []int{0, 1}, []int{0, 1}, fine},
		{"drain: all, by their weights", "u5:d u2:d", failOpen{}, [][]int{{5, 2}}, none, none, fine},
		{"drain: by itself, too", "r1:d u1", failOpen{}, [][]int{{0, 1}, {1, 0}}, none, []int{0, 1}, fine},
		{"drain: a backup", "d1 u1b:d u1b", failOpen{}, [][]int{{0, 0, 1}, {0, 1, 0}}, none, []int{1, 0, 0}, fine},
		{"drain: one that is down is no last resort", "d1:d d1", failOpen{}, nil, none, []int{0, 1}, lastResort},
		{"drain: nor when it is alone", "d1:d", failOpen{}, nil, none, none, unavailable},
		{"drain: one without a verdict is not waited for", "?1:d d1", failOpen{}, nil, none, []int{0, 1}, lastResort},
		{"drain: fail_open counts it neither way, 1 of 2", "u1 d1 u1:d d1:d", half, [][]int{{1, 0, 0, 0}, {0, 0, 1, 0}}, none, []int{1, 1, 0, 0}, fine},
		{"drain: fail_open counts it neither way, 1 of 3", "u1 d1 d1 u1:d", half, [][]int{{1, 1, 1, 0}, {1, 0, 0, 0}, {0, 0, 0, 1}}, none, []int{1, 1, 1, 0}, failedOpen},
		{"drain: off", "u1:d d1", failOpen{never: true}, [][]int{{1, 0}}, none, none, fine},

		{"maintenance: nothing", "u1:m u2", failOpen{}, [][]int{{0, 1}}, none, []int{0, 1}, fine},
		{"maintenance: not as the last resort", "u1:m d1", failOpen{}, nil, none, []int{0, 1}, lastResort},
		{"maintenance: of all", "u1:m d1:m u1b:m", failOpen{}, nil, none, none, unavailable},
		{"maintenance: of the primaries: a backup", "u1:m u1b", failOpen{}, [][]int{{0, 1}}, none, []int{0, 1}, fine},
		{"maintenance: of the primaries, the backup is down", "u1:m d1b", failOpen{}, nil, none, []int{0, 1}, lastResort},
		{"maintenance: is not waited for", "?1:m d1", failOpen{}, nil, none, []int{0, 1}, lastResort},
		{"maintenance: whatever it asks for itself", "r1:m d1", failOpen{}, nil, none, []int{0, 1}, lastResort},
		{"maintenance: fail_open does not count it, 1 of 2", "u1 d1 d1:m d1:m", half, [][]int{{1, 0, 0, 0}}, none, []int{1, 1, 0, 0}, fine},
		{"maintenance: fail_open does not count it, 1 of 3", "u1 d1 d1 u1:m", half, [][]int{{1, 1, 1, 0}, {1, 0, 0, 0}}, none, []int{1, 1, 1, 0}, failedOpen},

		{"weight: instead of the config's", "u1:5 u2", failOpen{}, [][]int{{5, 2}}, none, []int{5, 2}, fine},
		{"weight: 0 is no traffic at all", "u1:0 d1", failOpen{}, nil, none, []int{0, 1}, lastResort},
		{"weight: 0, and fail_open does not count it", "u1 d1 d1:0", half, [][]int{{1, 0, 0}}, none, []int{1, 1, 0}, fine},
		{"weight: one of 0 in the config gets requests", "u0:3 u1", failOpen{}, [][]int{{3, 1}}, none, []int{3, 1}, fine},
		{"weight: of a backup", "d1 u1b:4 u1b", failOpen{}, [][]int{{0, 4, 1}}, none, []int{1, 0, 0}, fine},
		{"weight: of one that drains", "u1:d,7 u1:d", failOpen{}, [][]int{{7, 1}}, none, none, fine},
		{"weight: 0 of one that drains", "u1:d,0 d1", failOpen{}, nil, none, []int{0, 1}, lastResort},
		{"weight: in maintenance", "u1:m,7 u1", failOpen{}, [][]int{{0, 1}}, none, []int{0, 1}, fine},
		{"weight: in the last resort", "d1:3 d1", failOpen{}, nil, none, []int{3, 1}, lastResort},
		{"weight: without a verdict", "?1:3 ?1", failOpen{}, nil, []int{3, 1}, []int{3, 1}, fine},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			members, o := handMadeModes(tc.members)
			s := newSnapshot(members, rules{failOpen: tc.failOpen, operations: o, pool: "shop"}, time.Now())
			wantSnapshot(t, s, len(members), tc.tiers, tc.unknown, tc.resort, tc.mood)
		})
	}
}

// Another pool's weight is not this one's; a mode is every pool's.
func TestAWeightIsOfOnePool(t *testing.T) {
	members, o := handMadeModes("u1:5 u2 u1:d")
	s := newSnapshot(members, rules{operations: o, pool: "other"}, time.Now())
	wantSnapshot(t, s, len(members), [][]int{{1, 2, 0}, {0, 0, 1}}, nil, []int{1, 2, 0}, fine)
}

// The next request follows what an operator sets, on every path of a pick.
func TestModesTakeTurns(t *testing.T) {
	to := func(m settings.Mode) settings.Change { return settings.Change{Mode: new(m)} }
	weigh := func(n int) settings.Change { return settings.Change{Pool: "shop", Weight: new(&n)} }
	for _, how := range []struct {
		path      string
		configure func(*Selection)
	}{
		{"the quick way", func(*Selection) {}},
		{"the slow way", retrying},
		{"with select", func(s *Selection) { s.inner = reverseproxy.RandomSelection{} }},
	} {
		t.Run(how.path, func(t *testing.T) {
			p := newPolicy(t, "uuuu", withWeights(5, 1, 1, -1), how.configure, following(t))
			for _, step := range []struct {
				rule string
				who  int
				what settings.Change
				want []int // of 42 picks, which are whole cycles
			}{
				{"one drains", 0, to(settings.Drain), []int{0, 21, 21, 0}},
				{"another is in maintenance", 1, to(settings.Maintenance), []int{0, 0, 42, 0}},
				{"the third has no weight: the backup", 2, weigh(0), []int{0, 0, 0, 42}},
				{"the backup is in maintenance: who drains", 3, to(settings.Maintenance), []int{42, 0, 0, 0}},
				{"the third drains, too, but has no weight", 2, to(settings.Drain), []int{42, 0, 0, 0}},
				{"the third has the weight of the config: both drain", 2, settings.Change{Pool: "shop", Weight: new((*int)(nil))}, []int{35, 0, 7, 0}},
				{"all is taken back of one", 2, settings.Change{Clear: true}, []int{0, 0, 42, 0}},
				{"ready again", 0, to(settings.Ready), []int{35, 0, 7, 0}},
				{"another weight", 0, weigh(2), []int{28, 0, 14, 0}},
				{"another pool's weight", 0, settings.Change{Pool: "other", Weight: new(new(9))}, []int{28, 0, 14, 0}},
			} {
				p.set(step.who, step.what)
				got, want := counts(p.picks(get, 42), 4), slices.Clone(step.want)
				if p.inner != nil { // it does not go by weights
					for i := range got {
						got[i], want[i] = min(got[i], 1), min(want[i], 1)
					}
				}
				if !slices.Equal(got, want) {
					t.Errorf("%s: picks %v, want %v", step.rule, got, want)
				}
			}
		})
	}
}

// One in maintenance is not probed, and has no verdict afterwards until it was; one
// that drains is up all the time, and does not start slowly afterwards.
func TestModesAndSlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "uuu", slowly(0.1), following(t))
		time.Sleep(time.Minute)
		for _, step := range []struct {
			rule string
			then func()
			want []int
		}{
			{"it drains", func() { p.set(0, settings.Change{Mode: new(settings.Mode(settings.Drain))}) }, []int{0, 1, 1}},
			{"it is ready", func() { p.set(0, settings.Change{Mode: new(settings.Mode(settings.Ready))}) }, []int{1, 1, 1}},
			{"it is in maintenance", func() { p.set(0, settings.Change{Mode: new(settings.Mode(settings.Maintenance))}) }, []int{0, 1, 1}},
			{"it is ready, but not probed yet", func() { p.set(0, settings.Change{Mode: new(settings.Mode(settings.Ready))}) }, []int{0, 1, 1}},
			{"it passes", func() { p.decide("u??") }, []int{1, 10, 10}},
		} {
			step.then()
			if got := inLowestTerms(p.current.Load().tiers[0].weights); !slices.Equal(got, step.want) {
				t.Errorf("%s: weights %v, want %v", step.rule, got, step.want)
			}
			time.Sleep(time.Second)
		}
	})
}

// Whoever changes a mode at the same time: probes go by the last change.
func TestModesSetAtOnce(t *testing.T) {
	p := newPolicy(t, "uu", following(t))
	for i := range 2000 {
		var writers sync.WaitGroup
		for _, m := range []settings.Mode{settings.Maintenance, settings.Ready, settings.Drain} {
			writers.Go(func() { p.set(0, settings.Change{Mode: new(m)}) })
		}
		writers.Wait()
		now := p.app.operations.Of(p.members[0].address).ModeNow()
		if paused := p.targets[0].View().Paused; paused != (now == settings.Maintenance) {
			t.Fatalf("round %d: the mode is %s, paused %v", i, now, paused)
		}
	}
}

// newTestApp returns an app as it is after Provision, with a storage of its own.
func newTestApp(t *testing.T) *App {
	t.Helper()
	o := settings.NewSet()
	return &App{operations: o, keeper: settings.NewStore(o, &certmagic.FileStorage{Path: t.TempDir()}, "alive/test", 0, zap.NewNop()), logger: zap.NewNop(), unsubscribe: func() {}}
}

// Requests go by what a storage tells, as by what is set here.
func TestPicksFollowTheStorage(t *testing.T) {
	p := newPolicy(t, "uu", following(t))
	p.app.operations.MergeStored(&settings.Setting{Address: p.members[0].address, Mode: settings.Drain, Changed: time.Now()})
	if got := counts(p.picks(get, 10), 2); !slices.Equal(got, []int{0, 10}) {
		t.Errorf("picks %v, want all of them for who does not drain", got)
	}
}

// What one instance of a fleet has not seen for long, another may have.
func TestAFleetDoesNotForget(t *testing.T) {
	for every, want := range map[time.Duration]settings.Mode{0: settings.Ready, time.Second: settings.Maintenance} {
		o := settings.NewSet()
		a := &App{operations: o, keeper: settings.NewStore(o, &certmagic.FileStorage{Path: t.TempDir()}, "f", every, zap.NewNop())}
		o.Change("x:80", settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
		a.forget("x:80")
		if got := o.Of("x:80").ModeNow(); got != want {
			t.Errorf("sync_interval %v: mode %s, want %s", every, got, want)
		}
	}
}

// When a change returns, picks follow it, however many verdicts change meanwhile.
func TestAChangeIsFollowedWhenItReturns(t *testing.T) {
	p := newPolicy(t, strings.Repeat("u", 200), following(t))
	var over atomic.Bool
	var verdicts sync.WaitGroup
	for range 3 {
		verdicts.Go(func() {
			for !over.Load() {
				p.refresh()
			}
		})
	}
	for i := range 199 {
		p.set(i, settings.Change{Mode: new(settings.Mode(settings.Drain))})
		if p.current.Load().tiers[0].weights[i] > 0 {
			t.Errorf("upstream %d still gets requests", i)
		}
	}
	over.Store(true)
	verdicts.Wait()
}
