// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// oneProbe is a check of which one probe decides, soon.
const oneProbe = `check http /healthz {
				interval 50ms
				fast_interval 50ms
				timeout 5s
				passes 1
				fails 1
			}
			retries off`

// Three groups go through every combination of upstreams that serve, one death or return at a
// time. In each, the first group with one that serves gets all requests, each of its upstreams
// that serve its share; the lists say so. If none serves, the primaries get them all.
func TestGroups_EveryDeathAndReturn(t *testing.T) {
	groups := []int{0, 0, 1, 2, 2}
	c, backends := startSticky(t, []string{"a", "b", "c", "d", "e"}, func(b []*testkit.Backend) string {
		return stickySite(b, fmt.Sprintf("%s\nbackup %s\nbackup %s %s\n", oneProbe, b[2].Addr, b[3].Addr, b[4].Addr))
	})
	client := c.Client()
	state := 0 // a bit for each that does not serve
	for step := 1; step <= 1<<len(backends); step++ {
		// a Gray code: one changes at a time, and each combination occurs
		next := (step ^ step>>1) % (1 << len(backends))
		for i, b := range backends {
			switch changed := (state ^ next) & (1 << i); {
			case changed == 0:
			case next&changed == 0:
				b.Set(testkit.Well)
			case step%2 == 0:
				b.Set(testkit.Refusing)
			default:
				b.Set(testkit.Sick)
			}
		}
		state = next

		serves := func(i int) bool { return state&(1<<i) == 0 }
		inUse := -1
		for i := range backends {
			if serves(i) && (inUse < 0 || groups[i] < inUse) {
				inUse = groups[i]
			}
		}
		failsOpen := inUse < 0
		if failsOpen {
			inUse = 0
		}
		want := make(map[string]int)
		for i, b := range backends {
			if groups[i] != inUse || !failsOpen && !serves(i) {
				continue
			}
			if mode := b.Conduct(); mode == testkit.Refusing {
				want["error"] += 4
			} else {
				want[b.Name] += 4
			}
		}
		what := fmt.Sprintf("step %d, those that do not serve: %05b", step, state)
		listed := testkit.Poll(testkit.Patience, func() bool {
			for i, b := range backends {
				if row := c.One(b.Addr); row.Group != groups[i] || (row.Status == "up") != serves(i) || row.Suspect || row.FailOpen != failsOpen ||
					row.Serving != (serves(i) && groups[i] == inUse) || (row.EffectiveWeight > 0) != (groups[i] == inUse && (serves(i) || failsOpen)) {
					return false
				}
			}
			return true
		})
		if !listed {
			for _, b := range backends {
				t.Errorf("%s: %+v", what, c.One(b.Addr))
			}
			t.FailNow()
		}
		testkit.Settles(t, what, client, c.URL(), want)
		if step%5 != 1 {
			continue // the list of pools can be a second old
		}
		var p []testkit.Pool
		if !testkit.Poll(testkit.Patience, func() bool {
			p = c.Pools("shop")
			return len(p) == 1 && p[0].Groups == 3 && slices.Equal(p[0].GroupsInUse, []int{inUse}) && p[0].FailOpen == failsOpen
		}) {
			t.Errorf("%s: the list has %+v, want the group %d in use", what, p, inUse)
		}
	}
}

// No request fails while groups take over from each other, whatever dies, as long as one
// upstream serves.
func TestGroups_NoRequestFailsWhileOneServes(t *testing.T) {
	c, backends := startSticky(t, []string{"a", "b", "c"}, func(b []*testkit.Backend) string {
		return stickySite(b, fmt.Sprintf("%s\nbackup %s\nbackup %s\n", strings.Replace(oneProbe, "retries off", "retries 2", 1), b[1].Addr, b[2].Addr))
	})
	client := c.Client()
	clients := testkit.StartTraffic(t, 4, func() testkit.Answer { return testkit.Ask(client, c.URL()) })
	goesTo := func(b *testkit.Backend) {
		t.Helper()
		testkit.Eventually(t, testkit.Patience, "all requests go to "+b.Name, func() bool {
			return testkit.Tally(client, c.URL(), 10)[b.Name] == 10
		})
	}
	goesTo(backends[0])
	for _, deaths := range [][]int{{0, 1}, {1, 0}} {
		for _, i := range deaths {
			backends[i].Set(testkit.Refusing)
			if i == 0 && deaths[0] == 0 {
				goesTo(backends[1])
			}
		}
		goesTo(backends[2])
		for _, i := range deaths {
			backends[i].Set(testkit.Well)
			goesTo(backends[min(i, map[bool]int{true: 0, false: 1}[backends[0].Conduct() == testkit.Well])])
		}
		goesTo(backends[0])
	}
	clients.Stop()
	if err := clients.Err(); err != nil {
		t.Errorf("of %d requests: %v", clients.Answered(), err)
	}
}

// A group joins as soon as less than the share of the weight serves, not at it, with the
// weights of its own upstreams. It leaves after 5 seconds at ten percentage points more, not
// before, and not at less. Weights of run time change the base.
func TestSpill_JoinsBelowAndLeavesAbove(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "spare", "far"}
	c, backends := startSticky(t, names, func(b []*testkit.Backend) string {
		return stickySite(b, fmt.Sprintf("%s\nweight %s 2\nbackup %s\nbackup %s\nspill 60%%\n", oneProbe, b[5].Addr, b[5].Addr, b[6].Addr))
	})
	client := c.Client()
	serving := func(conducts string) {
		t.Helper()
		for i, conduct := range conducts {
			b := backends[i]
			want := testkit.Well
			if conduct == '-' {
				want = testkit.Sick
			}
			if b.Conduct() != want {
				b.Set(want)
			}
			testkit.Eventually(t, testkit.Patience, b.Name+" is noticed", func() bool { return (c.One(b.Addr).Status == "up") == (want == testkit.Well) })
		}
	}
	shares := func(what, letters string) {
		t.Helper()
		want := make(map[string]int)
		for name := range strings.FieldsSeq(letters) {
			want[name] += 4
		}
		testkit.Settles(t, what, client, c.URL(), want)
	}
	leaves := func(groups int, from time.Time) {
		t.Helper()
		testkit.Eventually(t, testkit.Patience, fmt.Sprintf("%d groups are in use", groups), func() bool {
			n := 0
			for _, i := range []int{0, 5, 6} {
				if c.One(backends[i].Addr).EffectiveWeight > 0 {
					n++
				}
			}
			return n == groups
		})
		if took := time.Since(from); took < 5*time.Second-50*time.Millisecond {
			t.Errorf("a group left after %s, want 5s", took)
		}
	}

	serving("+++--")
	shares("at the threshold", "a b c")
	serving("++---")
	shares("below it: the next group joins", "a b spare spare")
	serving("+----")
	shares("further below, and enough with the next group", "a spare spare")
	serving("-----")
	shares("the next group is not enough: the one after it joins, too", "spare spare far")
	// with 3 of 5, which is 60 %, the next group stays, whatever the time. With that it is
	// 100 %, so the one after it leaves
	from := time.Now()
	serving("+++--")
	shares("at the threshold from below", "a b c spare spare far")
	leaves(2, from)
	shares("for 5 seconds", "a b c spare spare")
	// the primaries at 80 % are not long enough for it to leave, again and again
	for range 2 {
		serving("++++-")
		shares("above it for a moment", "a b c d spare spare")
		serving("+++--")
		shares("and at it again", "a b c spare spare")
	}
	from = time.Now()
	serving("++++-")
	leaves(1, from)
	shares("above it for 5 seconds", "a b c d")
	serving("+++--")
	shares("back at the threshold", "a b c")

	// a primary that drains, or has more weight, counts in the base
	c.Patch(backends[0].Addr, `{"mode":"drain"}`)
	shares("one drains", "b c spare spare")
	c.Patch(backends[0].Addr, `{"mode":"ready"}`)
	serving("+++++")
	c.Patch(backends[4].Addr, `{"weight":6}`)
	shares("weights 1, 1, 1, 1, 6, for less than 5 seconds", "a b c d e e e e e e spare spare")
	testkit.Settles(t, "weights 1, 1, 1, 1, 6", client, c.URL(), map[string]int{"a": 1, "b": 1, "c": 1, "d": 1, "e": 6})
	serving("++++-")
	shares("4 of 10", "a b c d spare spare")
}

// With `fail_open 2`, health is ignored while fewer than two primaries serve, and no backup
// does. Each begin and end is one event.
func TestFailOpen_ByNumber(t *testing.T) {
	testkit.RecordEvents(t, nil)
	backends := testkit.StartBackends(t, "a", "b", "c", "spare")
	c := testkit.StartCaddyWith(t, testkit.EventsOption, stickySite(backends, fmt.Sprintf("%s\nbackup %s\nfail_open 2\n", oneProbe, backends[3].Addr)))
	all := addresses(backends)
	testkit.Eventually(t, testkit.Patience, "all are up", func() bool { return c.Up(all...) })
	client := c.Client()
	backends[3].Set(testkit.Sick)
	testkit.Eventually(t, testkit.Patience, "the backup is down", func() bool { return c.Down(all[3]) })
	for _, step := range []struct {
		upstream  int
		conduct   testkit.Conduct
		want      map[string]int
		failsOpen bool
	}{
		{0, testkit.Sick, map[string]int{"b": 4, "c": 4}, false},
		{1, testkit.Sick, map[string]int{"a": 4, "b": 4, "c": 4}, true},
		{2, testkit.Sick, map[string]int{"a": 4, "b": 4, "c": 4}, true},
		{2, testkit.Well, map[string]int{"a": 4, "b": 4, "c": 4}, true},
		{3, testkit.Well, map[string]int{"c": 4}, false}, // a backup serves, so the primaries are asked by their health
		{2, testkit.Sick, map[string]int{"spare": 4}, false},
		{3, testkit.Sick, map[string]int{"a": 4, "b": 4, "c": 4}, true},
		{2, testkit.Well, map[string]int{"a": 4, "b": 4, "c": 4}, true},
		{1, testkit.Well, map[string]int{"b": 4, "c": 4}, false},
		{0, testkit.Well, map[string]int{"a": 4, "b": 4, "c": 4}, false},
	} {
		backends[step.upstream].Set(step.conduct)
		what := fmt.Sprintf("%s behaves like %d", backends[step.upstream].Name, step.conduct)
		testkit.Eventually(t, testkit.Patience, what, func() bool {
			return (c.One(all[step.upstream]).Status == "up") == (step.conduct == testkit.Well) && c.One(all[0]).FailOpen == step.failsOpen
		})
		testkit.Settles(t, what, client, c.URL(), step.want)
	}
	var events []string
	for _, e := range testkit.RecordedEvents() {
		if e.Name() == "fail_open" {
			events = append(events, fmt.Sprint(e.Data["active"]))
		}
	}
	if want := []string{"true", "false", "true", "false"}; !slices.Equal(events, want) {
		t.Errorf("events of fail-open: %q, want %q", events, want)
	}
}

// Networks name the upstreams of a dynamic source: their weights, groups and limits. An address
// in the narrower of two has that one's.
func TestGroups_NetworksOfADynamicSource(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("127.1.0.1 and so on belong to the loopback interface on Linux only")
	}
	hosts := []string{"127.1.0.1", "127.1.0.2", "127.1.9.9", "127.2.0.1", "127.2.0.2", "127.3.0.1"}
	names := strings.Fields("near1 near2 heavy backup1 backup2 last")
	sick := make([]atomic.Bool, len(hosts))
	port := testkit.FreePort(t)
	dial := func(i int) string { return fmt.Sprintf("%s:%d", hosts[i], port) }
	for i, name := range names {
		testkit.StartRecorder(t, "tcp", dial(i), nil, func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/healthz") && sick[i].Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			fmt.Fprint(w, name)
		})
	}
	server := testkit.StartNameServer(t)
	name := testkit.NewName()
	server.Set(name, testkit.Records{A: hosts})
	c := testkit.StartCaddy(t, testkit.DynamicSite(server.Source(name, port), `name shop
`+oneProbe[:strings.Index(oneProbe, "retries")]+`
weight 127.1.9.0/24 3
weight 127.2.0.2/32 2
backup 127.2.0.0/16
backup 127.3.0.0/16
max_requests 7 127.2.0.0/16
max_requests 9 127.2.0.2/32`))
	client := c.Client()
	settle := func(states string) {
		t.Helper()
		for i, state := range states {
			sick[i].Store(state == '-')
		}
		testkit.Eventually(t, testkit.Patience, "as it should be: "+states, func() bool {
			testkit.Ask(client, c.URL())
			rows := c.List(nil)
			for i, state := range states {
				at := slices.IndexFunc(rows, func(row testkit.Upstream) bool { return row.Upstream == dial(i) })
				if at < 0 || (c.One(dial(i)).Status == "up") != (state == '+') {
					return false
				}
			}
			return true
		})
	}
	settle("++++++")
	for i, want := range []struct{ group, weight, limit int }{{0, 1, 0}, {0, 1, 0}, {0, 3, 0}, {1, 1, 7}, {1, 2, 9}, {2, 1, 0}} {
		if row := c.One(dial(i)); row.Group != want.group || row.Weight != want.weight || row.Limit != want.limit {
			t.Errorf("%s: group %d, weight %d, limit %d, want %+v", names[i], row.Group, row.Weight, row.Limit, want)
		}
	}
	shares := func(what string, want map[string]int) {
		t.Helper()
		n := 0
		for _, share := range want {
			n += share
		}
		// a new answer of the name server is another order, which begins anywhere
		testkit.Settles(t, what, client, c.URL(), want)
	}
	shares("all serve", map[string]int{"near1": 2, "near2": 2, "heavy": 6})
	settle("+--+++")
	shares("one primary serves", map[string]int{"near1": 6})
	settle("---+++")
	shares("no primary serves", map[string]int{"backup1": 2, "backup2": 4})
	settle("-----+")
	shares("the last group serves", map[string]int{"last": 6})
	settle("--++++")
	shares("one returns", map[string]int{"heavy": 6})
	server.Set(name, testkit.Records{A: hosts[3:]})
	shares("the primaries have left", map[string]int{"backup1": 2, "backup2": 4})
	server.Set(name, testkit.Records{A: hosts})
	shares("and returned", map[string]int{"heavy": 6})
}
