// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/news"
)

// candidates returns n members that have some targets.
func candidates(n int, targets []uint64) (live []candidate) {
	random := rand.New(rand.NewPCG(1, 2))
	for range n {
		id := random.Uint64()
		m := &member{value: value{ID: formatID(id)}}
		m.setTargets(slices.Clone(targets))
		live = append(live, candidate{m, id})
	}
	return live
}

// targetIDs returns the IDs of n targets.
func targetIDs(n int) (ids []uint64) {
	for i := range n {
		ids = append(ids, targetID(fmt.Sprintf("app%d:80", i), "http"))
	}
	return ids
}

func TestChoose_SpreadsTargetsOverMembers(t *testing.T) {
	const members, targets, probers = 12, 2000, 3
	ids := targetIDs(targets)
	live := candidates(members, ids)
	counts := make(map[*member]int)
	for _, id := range ids {
		c := choose(live, id, probers)
		if len(c.probers) != probers || c.have != members {
			t.Fatalf("%d probers of %d members, want %d of %d", len(c.probers), c.have, probers, members)
		}
		for i, m := range c.probers {
			if slices.Contains(c.probers[:i], m) {
				t.Fatal("a member is a prober twice")
			}
			counts[m]++
		}
	}
	for _, m := range live {
		if n, want := counts[m.member], targets*probers/members; n < want*8/10 || n > want*12/10 {
			t.Errorf("a member probes %d targets, want about %d", n, want)
		}
	}
}

func TestChoose_AllMembersChooseAlike(t *testing.T) {
	ids := targetIDs(100)
	live := candidates(12, ids)
	other := slices.Clone(live)
	slices.Reverse(other)
	for _, id := range ids {
		if !slices.Equal(choose(live, id, 3).probers, choose(other, id, 3).probers) {
			t.Fatal("the probers depend on the order of the members")
		}
	}
}

func TestChoose_MemberThatLeavesIsReplacedWhereItProbes(t *testing.T) {
	ids := targetIDs(500)
	live := candidates(12, ids)
	gone, left := live[4].member, slices.Delete(slices.Clone(live), 4, 5)
	changed := 0
	for _, id := range ids {
		before, after := choose(live, id, 3).probers, choose(left, id, 3).probers
		if !slices.Contains(before, gone) {
			if !slices.Equal(before, after) {
				t.Error("the probers change of a target that the member did not probe")
			}
			continue
		}
		changed++
		for _, m := range before {
			if m != gone && !slices.Contains(after, m) {
				t.Error("another prober changes, too")
			}
		}
	}
	if changed == 0 {
		t.Error("the member probes nothing")
	}
}

func TestChoose_OnlyMembersThatHaveTheTarget(t *testing.T) {
	ids := targetIDs(20)
	live := append(candidates(3, ids), candidates(5, ids[:10])[3:]...)
	for i, id := range ids {
		want := 5
		if i >= 10 {
			want = 3
		}
		c := choose(live, id, 4)
		if c.have != want || len(c.probers) != min(4, want) {
			t.Errorf("%d of %d members, want %d", len(c.probers), c.have, want)
		}
		for _, m := range c.probers {
			if !m.hasTarget(id) {
				t.Error("a prober does not have the target")
			}
		}
	}
}

// sharers is a fleet as one of its members knows it. All have all targets, which are up.
type sharers struct {
	*Fleet
	targets []Target
	others  []*member
	now     time.Time
}

func newSharers(members, targets int) *sharers {
	s := &sharers{Fleet: New(), now: time.Now()}
	var ids []uint64
	for i := range targets {
		one := health.NewTarget(simSettings)
		one.Inherit(health.Up, false, s.now)
		s.targets = append(s.targets, Target{Upstream: fmt.Sprintf("app%d:80", i), Check: "http", Target: one})
		ids = append(ids, targetID(s.targets[i].Upstream, s.targets[i].Check))
	}
	live := candidates(members, ids)
	s.id = live[0].ID
	own := live[0].value
	own.Seconds = 10
	s.roster.wrote(own, s.now)
	for _, m := range live[1:] {
		m.heard, m.first, m.Seconds = s.now, s.now, 10
		s.roster.others[m.ID] = m.member
		s.others = append(s.others, m.member)
	}
	return s
}

// arrange returns by which factor each target is probed less often, 0 where it is not.
func (s *sharers) arrange(probers int) []int {
	factors := make([]int, len(s.targets))
	for _, one := range s.sharing.arrange(s.Fleet, probers, s.targets, s.now) {
		if i := slices.Index(s.targets, one.Target); i >= 0 && one.factor > 1 {
			factors[i] = one.factor
		}
	}
	return factors
}

// probersOf returns the members that probe a target, of which this member may be one.
func (s *sharers) probersOf(i int) []*member {
	return s.sharing.choices.made[s.targets[i]].probers
}

// proberOf returns another member that probes a target.
func (s *sharers) proberOf(i int) *member {
	probers := s.probersOf(i)
	return probers[slices.IndexFunc(probers, func(m *member) bool { return m != &s.roster.own })]
}

// find makes the probers of a target say that it has a status.
func (s *sharers) find(i int, status string) {
	id := targetID(s.targets[i].Upstream, s.targets[i].Check)
	for _, m := range s.probersOf(i) {
		if m.status == nil {
			m.status = make(map[uint64]string)
		}
		m.status[id] = status
	}
}

func TestSharing_OthersProbeLessOften(t *testing.T) {
	s := newSharers(12, 200)
	thin := 0
	for i, factor := range s.arrange(3) {
		isProber := slices.Contains(s.probersOf(i), &s.roster.own)
		switch {
		case isProber && factor != 0:
			t.Errorf("a prober probes %d times less often", factor)
		case !isProber && factor != 4:
			t.Errorf("the factor is %d, want 4", factor)
		case !isProber:
			thin++
		}
		if id := targetID(s.targets[i].Upstream, "http"); s.sharing.isProber(id) != isProber {
			t.Errorf("isProber is %v", !isProber)
		}
	}
	if thin < 120 || thin > 180 {
		t.Errorf("%d of 200 targets are probed less often, want about 150", thin)
	}
}

func TestSharing_FewMembersProbeAll(t *testing.T) {
	s := newSharers(3, 20)
	if factors := s.arrange(3); slices.Max(factors) > 0 {
		t.Errorf("the factors are %v with as many members as probers", factors)
	}
}

func TestSharing_TargetOfWhichProbersDifferIsProbedAtTheInterval(t *testing.T) {
	s := newSharers(12, 200)
	i := slices.Index(s.arrange(3), 4)
	for _, status := range []string{statusDown, statusUnknown} {
		s.find(i, status)
		if s.arrange(3)[i] != 0 {
			t.Errorf("the probers say %s, and the target is probed less often", status)
		}
	}
	s.find(i, statusUp)
	if s.arrange(3)[i] != 4 {
		t.Error("the probers agree again, and the target is not probed less often")
	}
}

func TestSharing_WhatDoesNotFitIsNotKnown(t *testing.T) {
	s := newSharers(12, 200)
	i := slices.Index(s.arrange(3), 4)
	s.proberOf(i).More = 1
	if s.arrange(3)[i] != 0 {
		t.Error("a prober does not say what the status is, and the target is probed less often")
	}
}

func TestSharing_MemberThatDisagreesIsApart(t *testing.T) {
	s := newSharers(12, 400)
	factors := s.arrange(3)
	disputed, limit := 0, len(s.targets)*2/100
	for i, factor := range factors {
		if factor > 0 && disputed < limit-1 {
			s.find(i, statusDown)
			disputed++
		}
	}
	if s.arrange(3); s.sharing.alone != "" {
		t.Errorf("with %d disputed targets it is alone: %s", disputed, s.sharing.alone)
	}
	for i, factor := range factors {
		if factor > 0 {
			s.find(i, statusDown)
		}
	}
	if s.arrange(3); s.sharing.alone != "" {
		t.Errorf("it is alone before it can have heard of changes: %s", s.sharing.alone)
	}
	s.now = s.now.Add(disagreementTime)
	if factors := s.arrange(3); !s.sharing.apart || slices.Max(factors) > 0 {
		t.Errorf("it disagrees about most targets, and shares: %q", s.sharing.alone)
	}
	if !strings.Contains(s.sharing.alone, "disagrees") {
		t.Errorf("the reason is %q", s.sharing.alone)
	}
	if want := s.roster.own.heard.Add(leastPeriod / hastenFactor); s.roster.write.After(want) {
		t.Errorf("it tells the others at %s, want %s", s.roster.write, want)
	}
}

func TestSharing_MemberThatIsApartIsNoProber(t *testing.T) {
	s := newSharers(12, 100)
	s.arrange(3)
	apart := s.others[3]
	apart.Apart = true
	apart.More = 100
	s.arrange(3)
	for i := range s.targets {
		if slices.Contains(s.probersOf(i), apart) {
			t.Fatal("a member that is apart is a prober")
		}
	}
}

func TestSharing_Alone(t *testing.T) {
	for why, change := range map[string]func(s *sharers){
		"the storage fails: it hangs":          func(s *sharers) { s.problem = "it hangs" },
		"the others do not know it yet":        func(s *sharers) { s.roster.joined = false },
		"the storage works again only now":     func(s *sharers) { s.roster.again = 1 },
		"its config is new":                    func(s *sharers) { s.sharing.ready = s.now.Add(time.Second) },
		"the others do not know it yet, again": func(s *sharers) { s.roster.missing = true },
	} {
		s := newSharers(12, 50)
		if slices.Max(s.arrange(3)) == 0 {
			t.Fatal("nothing is shared")
		}
		change(s)
		if factors := s.arrange(3); slices.Max(factors) > 0 || !strings.HasPrefix(why, s.sharing.alone) || s.sharing.alone == "" {
			t.Errorf("%q: the factors are %v, and it is alone because %q", why, factors, s.sharing.alone)
		}
		if s.sharing.isProber(targetID(s.targets[0].Upstream, "http")) {
			t.Error("it is a prober")
		}
	}
}

func TestSharing_LostMembersAreNoProbers(t *testing.T) {
	s := newSharers(12, 100)
	lost := s.others[2]
	lost.heard = s.now.Add(-33 * time.Second)
	s.arrange(3)
	for i := range s.targets {
		if slices.Contains(s.probersOf(i), lost) {
			t.Fatal("a lost member is a prober")
		}
	}
}

func TestSharing_TargetsThatGoAreNotThinned(t *testing.T) {
	s := newSharers(12, 100)
	i := slices.Index(s.arrange(3), 4)
	gone := s.targets[i]
	s.targets = slices.Delete(s.targets, i, i+1)
	for _, one := range s.sharing.arrange(s.Fleet, 3, s.targets, s.now) {
		if one.Target == gone {
			if one.factor != 1 {
				t.Errorf("the factor is %d", one.factor)
			}
			return
		}
	}
	t.Error("a target that is shared no more is still probed less often")
}

func TestSharing_NewsAreNewerThanWhatIsStored(t *testing.T) {
	s := newSharers(12, 100)
	i := slices.Index(s.arrange(3), 4)
	id := targetID(s.targets[i].Upstream, "http")
	m := s.proberOf(i)
	doubt := func(status string) {
		s.roster.doubt(news.Entry{Kind: news.Doubt, Key: formatID(id), From: m.ID, Status: status}, s.now)
	}
	doubt(statusFails)
	if got := s.roster.says(m, id, s.now); got != statusUp {
		t.Errorf("after two failures it says %q, want up", got)
	}
	doubt(statusDown)
	late := s.now.Add(2 * s.roster.period())
	if got := s.roster.says(m, id, late.Add(-1)); got != statusDown {
		t.Errorf("it says %q, want down", got)
	}
	if got := s.roster.says(m, id, late); got != statusUp {
		t.Errorf("later it says %q, want what is stored", got)
	}
	s.roster.forgetTold(late)
	if len(s.roster.told) > 0 {
		t.Error("what was told long ago is remembered")
	}
}

// What probers have stored before one of them told of a change says nothing against it.
func TestSharing_OlderValuesDoNotDiffer(t *testing.T) {
	s := newSharers(12, 200)
	i := slices.Index(s.arrange(3), 4)
	down := health.NewTarget(simSettings)
	down.Inherit(health.Down, false, s.now)
	s.targets[i].Target = down
	if s.arrange(3)[i] != 0 {
		t.Fatal("the target is down here and up at its probers, and is probed less often")
	}
	s.now = s.now.Add(time.Second)
	id := targetID(s.targets[i].Upstream, "http")
	teller := s.proberOf(i)
	s.roster.doubt(news.Entry{Kind: news.Doubt, Key: formatID(id), From: teller.ID, Status: statusDown}, s.now)
	if s.arrange(3)[i] != 4 {
		t.Error("a prober has just told that the target is down, and it is not probed less often")
	}
	for _, m := range s.probersOf(i) {
		if m != teller {
			m.heard = s.now.Add(time.Second)
		}
	}
	if s.arrange(3)[i] != 0 {
		t.Error("another prober says that it is up since, and it is probed less often")
	}
}

// A member that is no prober tells of a fault only if no other has.
func TestSharing_FirstTellsOfAFault(t *testing.T) {
	s := newSharers(12, 100)
	s.arrange(3)
	period := s.roster.period()
	if !s.sharing.isFirst(7, s.now, period) {
		t.Error("no member has doubted the target")
	}
	s.sharing.doubt(7, statusFails, s.now)
	if s.sharing.isFirst(7, s.now.Add(period-1), period) {
		t.Error("another member has doubted the target")
	}
	if !s.sharing.isFirst(7, s.now.Add(period), period) {
		t.Error("the doubt is old")
	}
	s.sharing.doubt(7, statusDown, s.now)
	s.sharing.doubt(7, statusUp, s.now)
	if !s.sharing.isFirst(7, s.now, period) {
		t.Error("the target was found to be up since it was doubted")
	}
	s.sharing.alone = "it is apart"
	if s.sharing.isFirst(8, s.now, period) {
		t.Error("a member that is alone tells of faults")
	}
}
