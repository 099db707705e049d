// SPDX-License-Identifier: Apache-2.0

package view

import "testing"

// A row says at how many members its upstream is down, unless that is none. Rows of one
// upstream that are merged say the same.
func TestInFleet_SaysAtHowManyMembersItIsDown(t *testing.T) {
	at := func(down, members int) Upstream { return Upstream{DownAt: &down, Members: members} }
	for _, test := range []struct {
		row  Upstream
		want string
	}{
		{Upstream{}, ""}, {at(0, 12), ""}, {at(1, 1), "down at 1 of 1 member"}, {at(3, 12), "down at 3 of 12 members"},
	} {
		if got := test.row.InFleet(); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
		for _, merged := range []Upstream{{}, test.row} {
			if merged.Merge(test.row); merged.InFleet() != test.want {
				t.Errorf("merged: got %q, want %q", merged.InFleet(), test.want)
			}
		}
		if test.row.Merge(Upstream{}); test.row.InFleet() != test.want {
			t.Errorf("merged with one that knows of no fleet: got %q, want %q", test.row.InFleet(), test.want)
		}
	}
	row := at(0, 12)
	if row.Merge(at(2, 11)); row.InFleet() != "down at 2 of 12 members" {
		t.Errorf("merged with a later one: got %q", row.InFleet())
	}
}

// The summary counts upstreams, each once, and only by what live members say.
func TestFleetSummary_CountsLiveMembers(t *testing.T) {
	not := func(upstreams ...string) (list []NotUp) {
		for _, u := range upstreams {
			list = append(list, NotUp{Upstream: u, Status: "down"})
		}
		return list
	}
	for _, test := range []struct {
		members []Member
		want    string
	}{
		{nil, "fleet shops: 0 members; all upstreams are up everywhere"},
		{[]Member{{State: MemberLive}}, "fleet shops: 1 member; all upstreams are up everywhere"},
		{[]Member{{State: MemberLive, NotUp: not("a", "a")}, {State: MemberLive, NotUp: not("a")}}, "fleet shops: 2 members; 1 upstream is not up somewhere"},
		{[]Member{{State: MemberLive, NotUp: not("a")}, {State: MemberLost, NotUp: not("b")}, {State: MemberLive, NotUp: not("c")}}, "fleet shops: 3 members, 1 lost; 2 upstreams are not up somewhere"},
		{[]Member{{State: MemberLive, NotUp: not("a"), More: 2}}, "fleet shops: 1 member; at least 1 upstream is not up somewhere"},
		{[]Member{{State: MemberLive}, {State: MemberLost, NotUp: not("b"), More: 2}}, "fleet shops: 2 members, 1 lost; all upstreams are up at the live members"},
	} {
		f := Fleet{Fleet: "shops", Members: test.members}
		if got := f.Summary(); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

// What a member has left to do is one thing at a time.
func TestAck_SaysWhatIsLeft(t *testing.T) {
	for _, test := range []struct {
		ack  *Ack
		want string
	}{
		{nil, "does not follow the mode yet"},
		{&Ack{InFlight: 3}, "does not follow the mode yet"},
		{&Ack{Follows: true, InFlight: 3, Gets: true}, "3 in flight"},
		{&Ack{Follows: true, Gets: true}, "still sends new requests, since no other upstream serves there"},
		{&Ack{Follows: true}, "nothing in flight, but the mode is new there"},
		{&Ack{Follows: true, Quiet: true}, ""},
	} {
		if got := test.ack.Left(); got != test.want {
			t.Errorf("%+v: got %q, want %q", test.ack, got, test.want)
		}
	}
}

// A wait is said to be done, quiet at all live members, or failed, or what is left is counted.
func TestWait_SaysHowItIs(t *testing.T) {
	for _, test := range []struct {
		wait Wait
		want string
	}{
		{Wait{Pending: []string{"a", "b"}, Lost: []string{"c"}}, "2 pending, 1 lost"},
		{Wait{Quiet: true, Lost: []string{"c"}}, "all live members are quiet"},
		{Wait{Quiet: true, Done: true}, "all members are quiet"},
		{Wait{Failed: "only this Caddy is known"}, "only this Caddy is known"},
	} {
		if got := test.wait.String(); got != test.want {
			t.Errorf("%+v: got %q, want %q", test.wait, got, test.want)
		}
	}
}
