// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"slices"
	"testing"
	"time"
)

func TestRoster_PeriodGrowsWithTheFleet(t *testing.T) {
	for members, want := range map[int]time.Duration{1: 10 * time.Second, 100: 10 * time.Second, 101: 10100 * time.Millisecond, 300: 30 * time.Second} {
		r := newRoster(formatID(0))
		for i := range members - 1 {
			r.add(formatID(uint64(i + 1)))
		}
		if r.period() != want {
			t.Errorf("%d members: the period is %s, want %s", members, r.period(), want)
		}
	}
}

func TestRoster_MembersAreBounded(t *testing.T) {
	r := newRoster(formatID(0))
	for i := range maxMembers + 1 {
		r.add(formatID(uint64(i + 1)))
	}
	if len(r.others) != maxMembers || !r.crowded {
		t.Errorf("%d members are known, crowded: %v", len(r.others), r.crowded)
	}
}

// heardOf returns a roster that has heard of members at a time. Their IDs are 2, 3 and so on.
func heardOf(now time.Time, members ...value) *roster {
	r := newRoster(formatID(1))
	r.wrote(value{ID: formatID(1), Name: "own", Seq: 1, Seconds: 10, Since: now.Add(-time.Hour)}, now)
	found := map[string]*value{formatID(1): &r.own.value}
	for i, v := range members {
		v.ID = formatID(uint64(i + 2))
		v.Seq, v.Seconds = 1, 10
		r.add(v.ID)
		found[v.ID] = &v
	}
	r.take(found, true, now)
	return &r
}

// names returns the names of members.
func names(members []*member) (all []string) {
	for _, m := range members {
		all = append(all, m.Name)
	}
	return all
}

func TestRoster_MemberIsLostAfterThreePeriods(t *testing.T) {
	now := time.Now()
	r := heardOf(now, value{Name: "b", At: now}, value{Name: "a", At: now})
	last := now.Add(32 * time.Second)
	if live := names(r.live(last)); !slices.Equal(live, []string{"a", "b"}) || r.size(last) != 3 || len(r.lost(last)) > 0 {
		t.Errorf("live are %q, of %d", live, r.size(last))
	}
	if lost := names(r.lost(last.Add(1))); !slices.Equal(lost, []string{"a", "b"}) || r.size(last.Add(1)) != 1 {
		t.Errorf("lost are %q, of %d", lost, r.size(last.Add(1)))
	}
}

// What matters is that the number changes: an engine may answer with an old value, and the
// clocks of members may differ.
func TestRoster_MemberIsHeardWhenItsNumberChanges(t *testing.T) {
	now := time.Now()
	r := heardOf(now, value{Name: "a", At: now.Add(-time.Hour)})
	later := now.Add(30 * time.Second)
	same := r.others[formatID(2)].value
	r.take(map[string]*value{formatID(2): &same}, true, later)
	if heard := r.others[formatID(2)].heard; !heard.Equal(now) {
		t.Errorf("the same value counts as heard after %s", heard.Sub(now))
	}
	next := same
	next.Seq++
	r.take(map[string]*value{formatID(2): &next}, true, later)
	if heard := r.others[formatID(2)].heard; !heard.Equal(later) {
		t.Errorf("a new value was heard after %s", heard.Sub(now))
	}
}

func TestRoster_MemberThatCameBackSupersedesTheLost(t *testing.T) {
	now := time.Now()
	const late = 40 * time.Second
	for name, tc := range map[string]struct {
		lost   value
		others []value
		want   bool // the lost one is superseded
	}{
		"another name":           {value{Name: "a", At: now}, []value{{Name: "b", Since: now.Add(time.Second)}}, false},
		"began after it":         {value{Name: "a", At: now}, []value{{Name: "a", Since: now.Add(time.Second)}}, true},
		"ran beside it":          {value{Name: "a", At: now}, []value{{Name: "a", Since: now.Add(-time.Second)}}, false},
		"this member":            {value{Name: "own", At: now.Add(-2 * time.Hour)}, nil, true},
		"this one ran beside it": {value{Name: "own", At: now}, nil, false},
	} {
		r := heardOf(now, append([]value{tc.lost}, tc.others...)...)
		for id, m := range r.others {
			if id != formatID(2) {
				m.heard = now.Add(late)
			}
		}
		if lost := r.lost(now.Add(late)); (len(lost) == 0) != tc.want {
			t.Errorf("%s: lost are %q", name, names(lost))
		}
		if gone := r.drop(now.Add(late)); (len(gone) == 1) != tc.want {
			t.Errorf("%s: %d are forgotten", name, len(gone))
		}
	}
}

func TestRoster_LostMemberIsForgottenAfterADay(t *testing.T) {
	now := time.Now()
	r := heardOf(now, value{Name: "a", At: now}, value{Name: "no time"})
	if gone := r.drop(now.Add(forgetAfter)); len(gone) > 0 {
		t.Errorf("%q are forgotten early", gone)
	}
	if gone := r.drop(now.Add(forgetAfter + 1)); len(gone) != 2 || len(r.others) > 0 {
		t.Errorf("%q are forgotten, want both", gone)
	}
	// a process that starts later does not wait for another day
	r = heardOf(now, value{Name: "a", At: now.Add(-forgetAfter)})
	if gone := r.drop(now.Add(33 * time.Second)); len(gone) != 1 {
		t.Errorf("%q are forgotten, want the one", gone)
	}
}

func TestRoster_ChangesAreStoredEarly(t *testing.T) {
	now := time.Now()
	r := heardOf(now)
	r.hasten()
	if want := now.Add(leastPeriod / hastenFactor); !r.write.Equal(want) {
		t.Errorf("a change is stored after %s", r.write.Sub(now))
	}
	r.wrote(value{ID: formatID(1), Seconds: 10, NotUp: []notUp{{Upstream: "app:80", Status: statusDown}}}, now)
	if !r.write.Equal(now.Add(leastPeriod)) {
		t.Errorf("what does not change is stored after %s", r.write.Sub(now))
	}
	r.wrote(value{ID: formatID(1), Seconds: 10, NotUp: []notUp{{Upstream: "app:80", Status: statusUnknown}}}, now)
	if !r.write.Equal(now.Add(leastPeriod / hastenFactor)) {
		t.Errorf("what is not known yet is stored again after %s", r.write.Sub(now))
	}
}

// An engine may answer with an earlier value for a while, but not with none, or for long.
func TestRoster_OwnValueThatDoesNotReadBackIsStoredAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		back *value
		want bool // it is missing
	}{
		"the last one":             {&value{Seq: 4}, false},
		"the one before":           {&value{Seq: 3}, false},
		"one from two periods ago": {&value{Seq: 1}, true},
		"none":                     {nil, true},
	} {
		began := time.Now()
		r := heardOf(began)
		now := began
		for seq := uint64(2); seq <= 4; seq++ {
			now = now.Add(leastPeriod)
			r.wrote(value{ID: formatID(1), Seq: seq, Seconds: 10}, now)
		}
		r.take(map[string]*value{formatID(1): tc.back}, true, now)
		if r.missing != tc.want || r.isDue(nil, now) != tc.want {
			t.Errorf("%s reads back: it is missing: %v, want %v; it is due: %v", name, r.missing, tc.want, r.isDue(nil, now))
		}
	}
}
