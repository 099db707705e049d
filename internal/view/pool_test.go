// SPDX-License-Identifier: Apache-2.0

package view

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// shop returns the pool of rows, which all are of one pool.
func shop(t *testing.T, rows ...Upstream) Pool {
	t.Helper()
	for i := range rows {
		rows[i].Pool = "shop"
	}
	pools := Pools(rows)
	if len(pools) != 1 {
		t.Fatalf("%d pools, want 1: %+v", len(pools), pools)
	}
	return pools[0]
}

// A pool is the sum of its rows. What requests do not bring at present has no state, what they no
// longer bring counts for nothing but its requests in flight, and what is in no pool does not count at all.
func TestPools_AreTheSumOfTheirRows(t *testing.T) {
	until := new(time.Unix(1, 0))
	pools := Pools([]Upstream{
		{Pool: "b", Status: "up", Mode: "ready", Serving: true, EffectiveWeight: 2, Requests: 3},
		{Pool: "b", Status: "up", Mode: "ready", Serving: true, EffectiveWeight: 0.5, Requests: 1, Group: 2},
		{Pool: "b", Status: "up", Mode: "ready", Serving: true, Suspect: true},
		{Pool: "b", Status: "up", Mode: "ready", EjectedUntil: until},
		{Pool: "b", Status: "down", Mode: "ready"},
		{Pool: "b", Status: "down", Mode: "ready", Idle: true},
		{Pool: "b", Status: "down", Mode: "ready", Idle: true, Stale: true, Requests: 5, Group: 4},
		{Pool: "b", Status: "up", Mode: "drain", Group: 1, FailOpen: true},
		{Pool: "b", Status: "unknown", Mode: "maintenance"},
		{Pool: "a", Status: "unknown", Mode: "ready", EffectiveWeight: 1, Group: 1},
		{Pool: "b", Upstream: "gone", Gone: true, Status: "up", Requests: 7},
		{Upstream: "gone", Gone: true},
	})
	text, err := json.Marshal(pools)
	if err != nil {
		t.Fatal(err)
	}
	const want = `[` +
		`{"pool":"b","upstreams":8,"states":{"down":1,"draining":1,"ejected":1,"maintenance":1,"suspect":1,"unknown":0,"up":2},"idle":1,"serving":3,"receiving":2,"groups":3,"groups_in_use":[0,2],"requests":9,"queue":null,"fail_open":true,"empty":false,"requests_per_second":0,"recent_failures":0,"failure_share":0},` +
		`{"pool":"a","upstreams":1,"states":{"down":0,"draining":0,"ejected":0,"maintenance":0,"suspect":0,"unknown":1,"up":0},"idle":0,"serving":0,"receiving":1,"groups":2,"groups_in_use":[1],"requests":0,"queue":null,"fail_open":false,"empty":false,"requests_per_second":0,"recent_failures":0,"failure_share":0}]`
	if string(text) != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

// Every state that a row can have is counted under its word, and no other word is.
func TestPools_CountEveryState(t *testing.T) {
	empty := NewPool("shop")
	for _, row := range []Upstream{{Status: "up"}, {Status: "down"}, {Status: "unknown"}, {Mode: "drain"}, {Mode: "maintenance"}, {Status: "up", Suspect: true}, {Status: "up", EjectedUntil: new(time.Time)}} {
		p := shop(t, row)
		if p.States[row.State()] != 1 || len(p.States) != len(States) || len(empty.States) != len(States) {
			t.Errorf("%s: %v", row.State(), p.States)
		}
	}
}

// The facts of a pool name what is not up, the backups in use, and the queue if there is one.
func TestFacts_NameWhatIsNotPlain(t *testing.T) {
	up := Upstream{Status: "up", Mode: "ready", Serving: true, EffectiveWeight: 1, Requests: 2}
	down := Upstream{Status: "down", Mode: "ready"}
	backup := Upstream{Status: "up", Mode: "ready", Group: 1}
	inUse := Upstream{Status: "up", Mode: "ready", Group: 1, Serving: true, EffectiveWeight: 1}
	second := Upstream{Status: "up", Mode: "ready", Group: 2, Serving: true, EffectiveWeight: 1}
	for _, tc := range []struct {
		rows  []Upstream
		queue *Queue
		want  string
	}{
		{[]Upstream{up, up}, nil, "2 of 2 serve, 4 in flight"},
		{[]Upstream{up, up}, &Queue{Waiting: 3, Limit: 1000}, "2 of 2 serve, 4 in flight, 3 of 1000 wait"},
		{nil, &Queue{Limit: 10}, "no upstreams at present, 0 in flight, 0 of 10 wait"},
		{[]Upstream{up, backup}, nil, "1 of 2 serve, 2 in flight"},
		{[]Upstream{down, inUse}, nil, "1 of 2 serve, 1 down, backup in use, 0 in flight"},
		{[]Upstream{up, down, inUse, second}, &Queue{}, "3 of 4 serve, 1 down, backup 1 and backup 2 in use, 2 in flight, 0 of 0 wait"},
		{[]Upstream{{Status: "down", Mode: "ready", FailOpen: true, EffectiveWeight: 1}}, nil, "0 of 1 serve, 1 down, fail-open, 0 in flight"},
		{[]Upstream{up, {Status: "up", Mode: "maintenance"}, {Status: "up", Mode: "drain"}, {Status: "unknown", Idle: true}}, nil, "1 of 4 serve, 1 draining, 1 in maintenance, 1 idle, 2 in flight"},
	} {
		p := NewPool("shop")
		if len(tc.rows) > 0 {
			p = shop(t, tc.rows...)
		}
		p.Queue = tc.queue
		if got := strings.Join(p.Facts(), ", "); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
}

// Groups of backups have a number only where there are several.
func TestGroupName_TellsGroupsApart(t *testing.T) {
	for groups, want := range map[int][]string{1: {""}, 2: {"", "backup"}, 3: {"", "backup 1", "backup 2"}} {
		var got []string
		for group := range groups {
			got = append(got, (&Pool{Groups: groups}).GroupName(group))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d groups: got %q, want %q", groups, got, want)
		}
	}
	var none *Pool
	if none.GroupName(0) != "" || none.GroupName(2) != "backup" || none.Facts() != nil || none.Alarm() != "" {
		t.Error("without a pool there is more than a name to say")
	}
}

// A row of several handlers has the largest limit, and none if one of them has none. Requests
// of bound clients are summed, since each handler counts its own.
func TestMerge_LimitAndBound(t *testing.T) {
	row := Upstream{Limit: 4, Bound: 3, Requests: 2, Group: 2}
	for _, step := range []struct {
		other Upstream
		limit int
		bound int
		says  string
	}{
		{Upstream{Limit: 2, Requests: 2, Group: 1}, 4, 3, "2 of 4"},
		{Upstream{Limit: 9, Bound: 2, Requests: 3, Group: 3}, 9, 5, "3 of 9"},
		{Upstream{Bound: 1, Group: 1}, 0, 6, "3"},
		{Upstream{Limit: 7, Group: 1}, 0, 6, "3"},
	} {
		row.Merge(step.other)
		if row.Limit != step.limit || row.Bound != step.bound || row.InFlight() != step.says || row.Group != 1 && row.Group != 2 || !row.Backup {
			t.Errorf("with %+v: %+v, %s; want limit %d, bound %d, %s", step.other, row, row.InFlight(), step.limit, step.bound, step.says)
		}
	}
	if row.Group != 1 {
		t.Errorf("the group is %d, want the first one", row.Group)
	}
	for bound, want := range map[int]string{0: "", 1: "1 request in the last minute of a client bound to it", 12: "12 requests in the last minute of clients bound to it"} {
		if got := (&Upstream{Bound: bound}).BoundTraffic(); got != want {
			t.Errorf("%d: got %q, want %q", bound, got, want)
		}
	}
}

// A row that is in no pool finds none, even if a pool has the name that it names.
func TestByName_FindsThePoolOfARow(t *testing.T) {
	index := ByName([]Pool{NewPool("a"), NewPool("b")})
	for _, tc := range []struct {
		row  Upstream
		want string
	}{{Upstream{Pool: "a"}, "a"}, {Upstream{Pool: "b"}, "b"}, {Upstream{Pool: "c"}, ""}, {Upstream{Pool: "a", Gone: true}, ""}} {
		got := ""
		if p := index.Of(&tc.row); p != nil {
			got = p.Pool
		}
		if got != tc.want {
			t.Errorf("%+v: got %q, want %q", tc.row, got, tc.want)
		}
	}
}
