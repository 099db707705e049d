// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// closed is a round trip whose connection is closed without an answer.
func closed(*http.Request) (*http.Response, error) { return nil, io.EOF }

// fail has n requests to an upstream fail.
func (p *policy) fail(u *reverseproxy.Upstream, n int, end roundTrip) {
	for range n {
		p.roundTrip(testkit.Get(), u, end)
	}
}

// TestTraffic_SurvivesAReload: a suspicion and an ejection go on in the next config, whose
// handler is told of their end. What belongs to the old one is gone with it.
func TestTraffic_SurvivesAReload(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80", "d:80")
		list := checking(n.check(), "a:80", "b:80", "c:80", "d:80")
		p := newPolicy(t, "", list)
		time.Sleep(5 * time.Second)
		ejected, suspect := p.listed[0], p.listed[1]
		p.fail(ejected, 5, answeringStatus(502))
		time.Sleep(2 * time.Second)
		p.fail(suspect, 1, closed)

		next := newPolicy(t, "", list)
		p.end(t)
		if m := next.members.byDial["a:80"]; m.Ejection().IsZero() {
			t.Error("the ejection has ended")
		}
		if m := next.members.byDial["b:80"]; !m.IsSuspect() {
			t.Error("the suspicion has ended")
		}
		if got := testkit.Counts(next.picks(testkit.Get, 40), 4); got[0] != 0 || got[1] != 0 {
			t.Errorf("picks %v", got)
		}
		time.Sleep(2 * time.Second)
		if got := testkit.Counts(next.picks(testkit.Get, 39), 4); !slices.Equal(got, []int{0, 13, 13, 13}) {
			t.Errorf("picks %v when it was acquitted", got)
		}
		time.Sleep(time.Until(next.members.byDial["a:80"].Ejection()))
		synctest.Wait()
		if got := next.picks(testkit.Get, 1); got[0] != 0 {
			t.Errorf("picked %v after the ejection, want the trial", got)
		}
		next.roundTrip(testkit.Get(), next.listed[0], answeringStatus(200))
		synctest.Wait()
		if got := testkit.Counts(next.picks(testkit.Get, 40), 4); !slices.Equal(got, []int{10, 10, 10, 10}) {
			t.Errorf("picks %v after the return", got)
		}
		p.fail(p.listed[2], 10, closed) // in flight in the old config
		next.end(t)
	})
}

// TestTraffic_PoolsOfOneNameShareIt: what one handler sees of an upstream counts for others
// whose pool has its name, and not for those of another name.
func TestTraffic_PoolsOfOneNameShareIt(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80")
		list := checking(n.check(), "a:80", "b:80", "c:80")
		p := newPolicy(t, "", list)
		same := newPolicy(t, "", list)
		other := newPolicy(t, "", list, func(s *setup) { s.Name = "other" })
		time.Sleep(5 * time.Second)
		same.fail(same.listed[0], 5, answeringStatus(502))
		synctest.Wait()
		for _, tc := range []struct {
			*policy
			want []int
		}{{p, []int{0, 15, 15}}, {same, []int{0, 15, 15}}, {other, []int{10, 10, 10}}} {
			if got := testkit.Counts(tc.picks(testkit.Get, 30), 3); !slices.Equal(got, tc.want) {
				t.Errorf("%s: picks %v, want %v", tc.Name(), got, tc.want)
			}
		}
		time.Sleep(2 * time.Second)
		other.fail(other.listed[1], 1, refused) // belongs to the target, which they share
		synctest.Wait()
		for _, tc := range []*policy{p, same, other} {
			if got := testkit.Counts(tc.picks(testkit.Get, 30), 3); got[1] != 0 {
				t.Errorf("%s: picks %v, want none of the one that refuses", tc.Name(), got)
			}
		}
		for _, tc := range []*policy{p, same, other} {
			tc.end(t)
		}
	})
}

// TestTraffic_DynamicUpstreams: those that requests bring are ejected as others are, as long
// as enough is left, and what was known of them is forgotten with them.
func TestTraffic_DynamicUpstreams(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		dials := []string{"a:80", "b:80", "c:80", "d:80"}
		p := newDynamicPolicy(t, newNetwork(dials...), "x", func(s *setup) { s.Rules.Witness.EjectFor = 2 * time.Minute })
		p.served(1, dials...)
		time.Sleep(5 * time.Second)
		for i, dial := range []string{"a:80", "b:80"} {
			p.fail(brought(dial)[0], 5, answeringStatus(502))
			time.Sleep(40 * time.Second) // longer than trouble counts
			if out := !p.dynamic.memberNamed(dial).Ejection().IsZero(); out != (i == 0) {
				t.Errorf("%s is ejected: %v; one of four may go", dial, out)
			}
		}
		if got, want := p.served(30, dials...), map[string]int{"b:80": 10, "c:80": 10, "d:80": 10}; !maps.Equal(got, want) {
			t.Errorf("served by %v, want %v", got, want)
		}
		for range 100 { // until it is forgotten
			time.Sleep(10 * time.Second)
			p.served(1, dials[1:]...)
		}
		if p.dynamic.memberNamed("a:80") != nil || p.traffic.upstream(brought("a:80")[0]) != nil {
			t.Error("it is not forgotten")
		}
		if p.traffic.upstream(brought("b:80")[0]) == nil {
			t.Error("another one is forgotten, too")
		}
		p.fail(brought("a:80")[0], 5, closed) // in flight
		p.end(t)
	})
}

// TestTraffic_OffJoinsNothing: with observe off nothing is known of the traffic, and retries
// work as before.
func TestTraffic_OffJoinsNothing(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPolicy(t, "uuu", retrying, func(s *setup) { s.Rules.Witness.Off = true })
		p.fail(p.listed[0], 20, closed)
		if got := testkit.Counts(p.picks(testkit.Get, 30), 3); !slices.Equal(got, []int{10, 10, 10}) {
			t.Errorf("picks %v", got)
		}
		r := testkit.Get()
		p.roundTrip(r, p.listed[0], closed)
		for range 10 {
			if p.Select(p.listed, r, nil) == p.listed[0] {
				t.Fatal("a retry went to the upstream that has failed the request")
			}
		}
		p.end(t)
	})
}

// TestTraffic_WhatFailsEverywhereIsTakenBack: a request that fails on a second upstream takes
// back what it counted against the first. A good answer there does not, also where each
// answer is noted for retries.
func TestTraffic_WhatFailsEverywhereIsTakenBack(t *testing.T) {
	for _, tc := range []struct {
		rule   string
		second roundTrip
		out    bool
	}{
		{"it fails", closed, false},
		{"it is refused", refused, false},
		{"it fails by its status", answeringStatus(502), false},
		{"it ends well", answeringStatus(200), true},
		{"it ends with a status that does not accuse", answeringStatus(404), true},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				p := newPolicy(t, strings.Repeat("u", 8), retrying)
				for range 8 {
					r := testkit.Get()
					p.answersAreNoted(r, p.listed[0], closed)
					p.answersAreNoted(r, p.listed[1], tc.second)
					p.roundTrip(testkit.Get(), p.listed[1], answeringStatus(200)) // no row there
				}
				if out := !p.members.byDial[p.listed[0].Dial].Ejection().IsZero(); out != tc.out {
					t.Errorf("the first is ejected: %v, want %v", out, tc.out)
				}
				p.end(t)
			})
		})
	}
}

// answersAreNoted is roundTrip where retries can follow from answers.
func (p *policy) answersAreNoted(r *http.Request, u *reverseproxy.Upstream, end roundTrip) {
	p.roundTripBy(p.Observe(end, true), r, u)
}

// TestTraffic_DownEndsAnEjection: checks that turn an upstream down end its ejection, and it
// returns with them.
func TestTraffic_DownEndsAnEjection(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80")
		p := newPolicy(t, "", checking(n.check(), "a:80", "b:80", "c:80"), func(s *setup) { s.Rules.FailOpen = pool.FailOpen{Never: true} })
		time.Sleep(5 * time.Second)
		p.fail(p.listed[0], 5, answeringStatus(502))
		n.kill("a:80")
		time.Sleep(20 * time.Second)
		if m := p.members.byDial["a:80"]; !m.Ejection().IsZero() {
			t.Error("it is out and down at once")
		}
		n.mu.Lock()
		n.alive["a:80"] = true
		n.mu.Unlock()
		time.Sleep(20 * time.Second)
		if got := testkit.Counts(p.picks(testkit.Get, 30), 3); !slices.Equal(got, []int{10, 10, 10}) {
			t.Errorf("picks %v", got)
		}
		p.end(t)
	})
}
