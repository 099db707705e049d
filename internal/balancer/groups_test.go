// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/session"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/slots"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/upstreamname"
	"github.com/caddy-alive/caddy-alive/internal/view"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// inGroups puts the upstreams of a policy in groups, by position.
func inGroups(groups ...int) func(*setup) {
	return func(s *setup) {
		for i, group := range groups {
			s.members[i].Group = group
		}
	}
}

// spilling lets groups join while less than a percentage serves.
func spilling(percent float64) func(*setup) {
	return func(s *setup) { s.Rules.Spill = percent }
}

const inTurn = "up: gets requests in turn"

// TestExplain_Groups: each backup says what it waits for, or why it gets requests beside the
// groups before it. One that serves alone is like any other.
func TestExplain_Groups(t *testing.T) {
	for _, tc := range []struct {
		rule      string
		verdicts  string
		configure []func(*setup)
		want      []string
		serving   string // s where one serves
	}{
		{
			"one group of backups", "uuu",
			[]func(*setup){inGroups(0, 0, 1)},
			[]string{inTurn, inTurn, "up, and a backup: gets requests when no primary can serve"},
			"ss.",
		},
		{
			"several groups", "uuu",
			[]func(*setup){inGroups(0, 1, 2)},
			[]string{
				inTurn,
				"up, and a backup of group 1: gets requests when no primary can serve",
				"up, and a backup of group 2: gets requests when no upstream of the groups before it can serve",
			},
			"s..",
		},
		{
			"the second group serves", "ddu",
			[]func(*setup){inGroups(0, 1, 2)},
			[]string{"check 'test' failed: sick", "check 'test' failed: sick", inTurn},
			"..s",
		},
		{
			"spill, and enough serves", "uuuu",
			[]func(*setup){inGroups(0, 0, 1, 2), spilling(70)},
			[]string{
				inTurn, inTurn,
				"up, and a backup of group 1: gets requests when no primary can serve, or while less than 70 % of their weight serves",
				"up, and a backup of group 2: gets requests when no upstream of the groups before it can serve, or while less than 70 % of the weight of the primaries serves in these",
			},
			"ss..",
		},
		{
			"spill to the first group", "uduu",
			[]func(*setup){inGroups(0, 0, 1, 2), spilling(70)},
			[]string{
				inTurn, "check 'test' failed: sick",
				"up, and a backup of group 1: gets requests in turn, since less than 70 % of the weight of the primaries served, until 80 % does",
				"up, and a backup of group 2: gets requests when no upstream of the groups before it can serve, or while less than 70 % of the weight of the primaries serves in these",
			},
			"s.s.",
		},
		{
			"spill to all groups", "udduddu",
			[]func(*setup){inGroups(0, 0, 0, 0, 0, 1, 2), spilling(95)},
			[]string{
				inTurn, "check 'test' failed: sick", "check 'test' failed: sick", inTurn, "check 'test' failed: sick", "check 'test' failed: sick",
				"up, and a backup of group 2: gets requests in turn, since less than 95 % of the weight of the primaries served in the groups before it, until 100 % does",
			},
			"s..s..s",
		},
		{
			"spill by another policy", "udu",
			[]func(*setup){inGroups(0, 0, 1), spilling(70), func(s *setup) {
				s.Rules.Select, s.Rules.SelectName = reverseproxy.LeastConnSelection{}, "least_conn"
			}},
			[]string{
				"up: gets the requests for which least_conn picks it", "check 'test' failed: sick",
				"up, and a backup: gets the requests for which least_conn picks it, since less than 70 % of the weight of the primaries served, until 80 % does",
			},
			"s.s",
		},
		{
			"no primary is left, without a spill of their weight", "du",
			[]func(*setup){inGroups(0, 1), spilling(70)},
			[]string{"check 'test' failed: sick", inTurn},
			".s",
		},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPolicy(t, tc.verdicts, tc.configure...)
				time.Sleep(time.Minute) // groups that joined before there were verdicts leave again
				synctest.Wait()
				for i, row := range p.rows(Filter{}) {
					if row.Why != tc.want[i] || row.Serving != (tc.serving[i] == 's') {
						t.Errorf("%d: %q, serving %v, want %q, %v", i, row.Why, row.Serving, tc.want[i], tc.serving[i] == 's')
					}
					if one := p.rows(Filter{Upstream: row.Upstream}); len(one) != 1 || one[0].Why != row.Why || one[0].Serving != row.Serving {
						t.Errorf("%d: alone it is %+v, want as among all: %+v", i, one, row)
					}
				}
			})
		})
	}
}

// TestExplain_JoinedAgrees: what a backup says of the percentage is true at each moment: it
// stays for as long as the sentence says, and then waits again.
func TestExplain_JoinedAgrees(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "uuuuuuuuuuu", inGroups(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), spilling(70))
		time.Sleep(time.Minute)
		const joined = "since less than 70 % of the weight of the primaries served, until 80 % does"
		for _, step := range []struct {
			verdicts string
			wait     time.Duration
			joined   bool
		}{
			{"uuuuuuuddd", 0, false},             // 70 %
			{"uuuuuudddd", 0, true},              // 60 %
			{"uuuuuuuddd", time.Minute, true},    // 70 %
			{"uuuuuuuudd", 0, true},              // 80 %, a moment ago
			{"uuuuuuuudd", time.Minute, false},   // 80 %
			{"uuuuuuuddd", time.Minute, false},   // 70 %
			{"dddddddddd", time.Minute, false},   // it serves alone
			{"uuuuuuuuuu", 2 * time.Hour, false}, // and no more
		} {
			p.decide(step.verdicts + "?")
			time.Sleep(step.wait)
			synctest.Wait()
			row := p.rows(Filter{Upstream: p.listed[10].Dial})[0]
			if got := strings.HasSuffix(row.Why, joined); got != step.joined {
				t.Errorf("%s, %s later: %q, want joined %v", step.verdicts, step.wait, row.Why, step.joined)
			}
		}
	})
}

// TestExplain_SuspectBackup: a suspect backup serves while its group is in use, since it would
// get requests if it were not suspect.
func TestExplain_SuspectBackup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for i, n := range []*network{newNetwork("a:80", "b:80", "c:80"), newNetwork("b:80", "c:80")} {
			p := newAccusedPool(t, "shop", n, func(c *Config) { c.Groups = upstreamname.NumbersOf(map[string]int{"b:80": 1, "c:80": 1}) }, "a:80", "b:80", "c:80")
			p.fail("c:80", 1, witness.Outcome, "status 502")
			if row := (lister{p.Balancer, Filter{}}).rows()[2]; !row.Suspect || row.Serving != (i == 1) {
				t.Errorf("%d: serving %v, want %v: %+v", i, row.Serving, i == 1, row)
			}
		}
	})
}

// TestExplain_BoundClientsStay: where clients are bound to upstreams, a backup that waits and a
// suspect say that these go on. They do not if no request could connect to it.
func TestExplain_BoundClientsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80")
		p := newAccusedPool(t, "shop", n, func(c *Config) {
			c.Groups = upstreamname.NumbersOf(map[string]int{"c:80": 1})
			c.Rules.Sticky = &session.Cookie{Name: "lb"}
		}, "a:80", "b:80", "c:80")
		const (
			up      = "up, serves true: up: gets requests in turn"
			backup  = "up, serves false: up, and a backup: gets requests when no primary can serve; clients that are bound to it stay"
			suspect = "suspect, serves true: up, but suspect since a request to it failed (%s): gets requests only while no other upstream serves"
		)
		p.want("at first", up, up, backup)
		p.fail("a:80", 1, witness.Outcome, "status 502")
		p.want("by an outcome", fmt.Sprintf(suspect, "status 502")+"; clients that are bound to it stay", up, backup)
		time.Sleep(time.Minute)
		synctest.Wait()
		p.want("the checks pass", up, up, backup)
		p.fail("a:80", 1, witness.Connect, "connection refused")
		p.want("by a connection", fmt.Sprintf(suspect, "connection refused"), up, backup)
	})
}

// TestExplain_Drain: where clients are bound to upstreams, a drain says whether they stay.
func TestExplain_Drain(t *testing.T) {
	sticky := func(s *setup) { s.Rules.Sticky = &session.Cookie{Name: "lb"} }
	plain := func(*setup) {}
	for _, tc := range []struct {
		rule      string
		configure func(*setup)
		rebind    bool
		verdicts  string
		want      string
	}{
		{"no clients are bound", plain, false, "uu", ": no new requests while another upstream can take them"},
		{"no clients are bound that could move", plain, true, "uu", ": no new requests while another upstream can take them"},
		{"they stay", sticky, false, "uu", ": no new clients while another upstream can take them; clients that are bound to it stay"},
		{"they move", sticky, true, "uu", ", and its bound clients move: no new requests while another upstream can take them"},
		{"they cannot move", sticky, true, "ud", ", and its bound clients move, but gets requests, since no other upstream serves"},
		{"it is down", sticky, true, "du", ", and its bound clients move, and check 'test' failed: sick: no requests"},
	} {
		p := newPolicy(t, tc.verdicts, tc.configure)
		p.set(0, settings.Change{Mode: new(settings.Mode(settings.Drain)), Rebind: tc.rebind})
		row := p.rows(Filter{})[0]
		if want := "draining since " + p.registry.Settings.Of(row.Upstream).Changed.Format(time.RFC3339) + tc.want; row.Why != want || row.Rebind != tc.rebind {
			t.Errorf("%s: %q, rebind %v, want %q", tc.rule, row.Why, row.Rebind, want)
		}
		p.set(0, settings.Change{Mode: new(settings.Mode(settings.Ready))})
		if row := p.rows(Filter{})[0]; row.Rebind || strings.Contains(row.Why, "bound") {
			t.Errorf("%s: when it is ready: %+v", tc.rule, row)
		}
	}
}

// TestExplain_DrainOfOneThatFails: bound clients do not stay with an upstream that drains while
// it is ejected, or while no request can connect to it.
func TestExplain_DrainOfOneThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80")
		p := newAccusedPool(t, "shop", n, func(c *Config) { c.Rules.Sticky = &session.Cookie{Name: "lb"} }, "a:80", "b:80")
		p.registry.Settings.Change("a:80", settings.Change{Mode: new(settings.Mode(settings.Drain))})
		want := func(rule string, stay bool) {
			t.Helper()
			row := (lister{p.Balancer, Filter{}}).rows()[0]
			if !strings.HasPrefix(row.Why, "draining since") || strings.Contains(row.Why, "bound to it stay") != stay {
				t.Errorf("%s: %q, want its clients to stay: %v", rule, row.Why, stay)
			}
		}
		want("at first", true)
		p.fail("a:80", 1, witness.Connect, "connection refused")
		want("no request can connect", false)
		time.Sleep(time.Minute)
		want("the checks pass", true)
		p.fail("a:80", 5, witness.Outcome, "status 502")
		want("ejected", false)
	})
}

// TestExplain_Full: an upstream that is full names the limit that keeps requests away, and
// says that they wait if they do.
func TestExplain_Full(t *testing.T) {
	for _, tc := range []struct {
		rule                        string
		limit, core, requests, wait int
		want                        string // "" for one that is not full
	}{
		{"by its limit", 4, 0, 4, 0, "up, but full: its limit is 4 requests at once"},
		{"with a queue", 4, 0, 5, 1000, "up, but full: its limit is 4 requests at once; requests wait while no other upstream has room"},
		{"in its slow start", 1, 0, 1, 0, "up, but full: its limit is 1 request at once in its slow start"},
		{"by the limit of Caddy", 0, 3, 3, 0, "up, but full: its limit is 3 requests at once"},
		{"by the lower of both", 4, 3, 3, 0, "up, but full: its limit is 3 requests at once"},
		{"by the lower of both, the other way", 3, 4, 3, 10, "up, but full: its limit is 3 requests at once; requests wait while no other upstream has room"},
		{"below its limit", 4, 5, 3, 10, ""},
		{"without a limit", 0, 0, 100, 0, ""},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			u := &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: "a:80", MaxRequests: tc.core}
			testkit.SetRequests(u, tc.requests)
			m := &pool.Member{Address: "a:80", Limit: tc.limit}
			if tc.rule == "in its slow start" {
				m.Limit = 4
			}
			if tc.limit > 0 {
				opened, err := slots.Open("a:80", m.Limit)
				if err != nil {
					t.Fatal(err)
				}
				for range tc.requests {
					opened.Take(100)
					defer opened.Free()
				}
				m.Slots = opened
				defer func() {
					if err := m.CloseSlots(); err != nil {
						t.Error(err)
					}
				}()
			}
			e := explanation{
				row:      &view.Upstream{Status: "up", Mode: settings.Ready, Weight: 2, EffectiveWeight: 2, Limit: tc.limit},
				balancer: &Balancer{config: Config{Rules: pool.Rules{Queue: pool.Queue{Length: tc.wait}}}},
				member:   m, upstream: u, healthy: true,
			}
			got := e.sentence()
			if tc.want == "" && strings.Contains(got, "full") || tc.want != "" && got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

// TestList_Pools: the pools are those of the config, with and without upstreams. Handlers of
// one name are one pool, and their queues are summed.
func TestList_Pools(t *testing.T) {
	queueing := func(length int) func(*setup) {
		return func(s *setup) { s.Rules.Queue = pool.Queue{Timeout: time.Second, Length: length} }
	}
	named := func(name string) func(*setup) { return func(s *setup) { s.Name = name } }
	first := newPolicy(t, "uud", queueing(100), inGroups(0, 0, 1))
	r := first.registry
	newPolicy(t, "uu", in(r), queueing(20))
	newPolicy(t, "d", in(r), named("api"), func(s *setup) { s.Rules.FailOpen.Never = true })
	newPolicy(t, "", in(r), named("zoo"), queueing(5), func(s *setup) { s.Proxy.DynamicUpstreamsRaw = []byte("x") })
	answering(t, r)
	got := listPools(r, List(Filter{}))
	var names []string
	for _, p := range got {
		names = append(names, p.Pool)
	}
	if want := []string{"api", "shop", "zoo"}; !slices.Equal(names, want) {
		t.Fatalf("pools %q, want %q", names, want)
	}
	if api := got[0]; api.Upstreams != 1 || api.States["down"] != 1 || api.Serving != 0 || api.Receiving != 0 || len(api.GroupsInUse) != 0 || api.Queue != nil || api.FailOpen {
		t.Errorf("api: %+v", api)
	}
	if shop := got[1]; shop.Upstreams != 3 || shop.States["up"] != 2 || shop.Serving != 2 || shop.Groups != 2 || !slices.Equal(shop.GroupsInUse, []int{0}) || shop.Queue == nil || *shop.Queue != (view.Queue{Limit: 120}) {
		t.Errorf("shop: %+v", shop)
	}
	if zoo := got[2]; zoo.Upstreams != 0 || len(zoo.States) != len(view.States) || zoo.Groups != 1 || zoo.Queue == nil || zoo.Queue.Limit != 5 || zoo.Alarm() != "" {
		t.Errorf("zoo: %+v", zoo)
	}
	if names := CurrentListing().Pools(); !slices.Equal(names, []string{"api", "shop", "zoo"}) {
		t.Errorf("the listing has the pools %q", names)
	}
}
