// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit/storages"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// putMembers stores so many other members.
func putMembers(t *testing.T, e *storages.Engine, n int) {
	t.Helper()
	for i := range n {
		id := formatID(uint64(i + 1))
		v := value{Version: valueVersion, Fleet: "shop", ID: id, Name: "other-" + id, Seq: 1, Seconds: 100, At: time.Now()}
		text, err := v.encode(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		e.Put("alive/members/shop/"+id+".json", string(text))
	}
}

// A wait does not succeed while there are more members than are followed, and the log says so
// once.
func TestWait_FailsWithMoreMembersThanAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := storages.New()
		putMembers(t, e, maxMembers+1)
		a := startMember(t, e, "a")
		a.drain(t)
		time.Sleep(90 * time.Second)
		synctest.Wait()
		if w := a.wait(); w.Done || w.Quiet || !strings.HasPrefix(w.Failed, "more than 1000 other members are stored") {
			t.Errorf("%+v", w.Failed)
		}
		if n := a.logs.FilterMessageSnippet("more members than are followed").Len(); n != 1 {
			t.Errorf("%d warnings", n)
		}
	})
}

// A storage that answers all the time does not count as failing because there are many
// members to read.
func TestMembers_ManyAreReadFromASlowStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := storages.New()
		putMembers(t, e, maxMembers)
		a := startMember(t, e, "a")
		a.storage.SetLatency(50 * time.Millisecond)
		time.Sleep(5 * time.Minute)
		if n := a.logs.FilterMessageSnippet("the storage fails").Len(); n > 0 {
			t.Errorf("the storage was said to fail %d times", n)
		}
		a.storage.SetLatency(0)
	})
}

// Waits that have succeeded make room for more, however long they might have lasted.
func TestWait_EndedOnesMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startMember(t, storages.New(), "a")
		for i := range 2 * maxWaits {
			upstream := fmt.Sprintf("app%d:80", i)
			a.set.Change(upstream, settings.Change{Mode: new(settings.Mode(settings.Drain))})
			a.store.Sync(t.Context(), false)
			if err := a.Wait(t.Context(), upstream, time.Hour); err != nil {
				t.Fatalf("wait %d: %v", i, err)
			}
			time.Sleep(10 * time.Second)
			if w := a.View(upstream).Wait; w == nil || !w.Done {
				t.Fatalf("wait %d: %+v", i, w)
			}
		}
	})
}

// A wait that has lasted as long as it may is not shown any more: members say nothing of it.
func TestView_NoWaitThatIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := storages.New()
		a, _ := startWaiting(t, e)
		time.Sleep(119 * time.Second)
		if w := a.wait(); w == nil || len(w.Pending) != 1 {
			t.Errorf("before its end: %+v", w)
		}
		time.Sleep(time.Second)
		if w := a.wait(); w != nil {
			t.Errorf("after its end: %+v", w)
		}
	})
}

// What is not up at this member is shown as it is now, also while nothing can be stored.
func TestView_ShowsWhatIsNotUpHereNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSharer(t, storages.New(), 0)
		s.notUp = []view.NotUp{{Upstream: "app:80", Check: "tcp", Status: "down", Lasts: 3}}
		s.storage.Fail(errors.New("disk full"))
		defer s.start(t, 0)()
		time.Sleep(5 * time.Second)
		f := s.fleet.View("")
		if len(f.Members) != 1 || len(f.Members[0].NotUp) != 1 || f.Problem != "disk full" || strings.Contains(f.Summary(), "all upstreams") {
			t.Errorf("%+v: %s", f, f.Summary())
		}
	})
}

// Numbers that make no sense are taken for none, and acks with them for no acks.
func TestValue_NumbersAreBounded(t *testing.T) {
	const id, hash = "0000000000000001", "h"
	text := func(lasts, acks string) []byte {
		return []byte(`{"v":1,"fleet":"shop","id":"` + id + `","name":"a","seq":1,"every":10,"more":9223372036854775807,` +
			`"not_up":[{"u":"app:80","c":"tcp","s":"down","for":` + lasts + `}],"acks":{"` + hash + `":` + acks + `}}`)
	}
	for lasts, want := range map[string]float64{"3": 3, "-1": 0, "1e308": 0} {
		v, err := parseValue(text(lasts, "{}"), "shop", id)
		if err != nil || v.NotUp[0].For != want || v.More > math.MaxInt32 {
			t.Errorf("for %s: %+v, %v", lasts, v, err)
		}
	}
	for ack, want := range map[string]bool{
		`{"in_flight":3,"bound":2}`: true, `{"in_flight":-3,"quiet":true}`: false, `{"bound":-1}`: false, `{"bound":9223372036854775807}`: false,
	} {
		v, err := parseValue(text("1", ack), "shop", id)
		if _, taken := v.Acks[hash]; err != nil || taken != want {
			t.Errorf("ack %s: taken %v, %v", ack, taken, err)
		}
	}
}

// An upstream that is too long to be told does not keep others from being told.
func TestValue_TooLongIsLeftOutAlone(t *testing.T) {
	v := value{Version: valueVersion}
	_, err := v.encode([]view.NotUp{
		{Upstream: "a:80", Check: strings.Repeat("x", maxText+1), Status: statusDown}, {Upstream: "b:80", Check: "tcp", Status: statusDown},
	}, nil)
	if err != nil || len(v.NotUp) != 1 || v.NotUp[0].Upstream != "b:80" || v.More != 1 {
		t.Errorf("%+v, %d more, %v", v.NotUp, v.More, err)
	}
}

// What an engine answers that is older than what is known of a member is no sign of life.
func TestRoster_EarlierValueIsNoNews(t *testing.T) {
	r, now := newRoster("0000000000000001"), time.Now()
	const other = "0000000000000002"
	take := func(seq uint64, at time.Time) {
		r.take(map[string]*value{other: {ID: other, Seq: seq, Seconds: 10, At: at}}, true, now)
	}
	r.add(other)
	take(5, now)
	began := now
	now = now.Add(time.Minute)
	if take(4, began.Add(-time.Second)); r.others[other].heard != began || r.others[other].Seq != 5 {
		t.Errorf("an earlier value: %+v", r.others[other])
	}
	if take(6, now); r.others[other].heard != now {
		t.Errorf("a later value: %+v", r.others[other])
	}
}

// A member is lost for a day before it is forgotten, whatever its clock says, if it was seen
// alive. What is left of one that was gone before counts by its clock.
func TestRoster_ForgetsAfterADay(t *testing.T) {
	for name, tc := range map[string]struct {
		seen  bool
		after time.Duration // until it is forgotten
	}{"seen alive": {true, forgetAfter}, "gone before": {false, time.Minute}} {
		began := time.Now()
		r := newRoster("0000000000000001")
		const other = "0000000000000002"
		slow := began.Add(-25 * time.Hour)
		r.add(other)
		r.take(map[string]*value{other: {ID: other, Seq: 1, Seconds: 10, At: slow}}, true, began)
		if tc.seen {
			r.take(map[string]*value{other: {ID: other, Seq: 2, Seconds: 10, At: slow.Add(time.Second)}}, true, began)
		}
		if tc.seen && len(r.drop(began.Add(tc.after-time.Second))) > 0 {
			t.Errorf("%s: forgotten before its time", name)
		}
		if ids := r.drop(began.Add(tc.after + time.Second)); len(ids) != 1 {
			t.Errorf("%s: not forgotten", name)
		}
	}
}

// A member that has just joined a large fleet wrote by the period of a small one. It is not
// lost before this member reads it again.
func TestRoster_MemberThatJoinsALargeFleetIsLive(t *testing.T) {
	r, now := newRoster("0000000000000001"), time.Now()
	for i := range 900 {
		id := formatID(uint64(i + 2))
		r.add(id)
		r.take(map[string]*value{id: {ID: id, Seq: 1, Seconds: leastPeriod.Seconds()}}, true, now)
	}
	if size := r.size(now.Add(r.period())); size != 901 {
		t.Errorf("%d members are live after a period", size)
	}
	if size := r.size(now.Add(livePeriods*r.period() + 2*liveGrace)); size != 1 {
		t.Errorf("%d members are live for ever", size)
	}
}

// A member is none of its own others, although its key may be there before it knows.
func TestRoster_OwnKeyIsNoOther(t *testing.T) {
	f := New()
	f.roster.list([]string{f.id}, time.Now())
	if len(f.roster.others) > 0 {
		t.Error("it takes itself for another member")
	}
}

// Probers that have more down than they can tell contradict no verdict. Such a target is probed
// at its interval, and nothing is said of a disagreement.
func TestSharing_SilenceIsNoDisagreement(t *testing.T) {
	for name, tc := range map[string]struct {
		more  int
		apart bool
	}{"silent": {10, false}, "they say up": {0, true}} {
		f := New()
		var targets []Target
		var ids []uint64
		for i := range 20 {
			target := health.NewTarget(health.Settings{})
			target.Inherit(health.Down, false, time.Now())
			targets = append(targets, Target{Upstream: fmt.Sprintf("app%d:80", i), Check: "tcp", Target: target})
			ids = append(ids, targetID(targets[i].Upstream, "tcp"))
		}
		now := time.Now()
		for i := range 5 {
			id := formatID(uint64(i + 1))
			v := value{ID: id, Name: id, Seq: 1, Seconds: 10, More: tc.more}
			v.setTargets(ids)
			v.index()
			f.roster.add(id)
			f.roster.take(map[string]*value{id: &v}, true, now)
		}
		own := value{ID: f.id}
		own.setTargets(ids)
		f.roster.wrote(own, now)
		f.sharing.arrange(f, 2, targets, now)
		now = now.Add(disagreementTime)
		thin := f.sharing.arrange(f, 2, targets, now)
		if f.sharing.apart != tc.apart || len(thin) > 0 {
			t.Errorf("%s: %q, %d are probed less often", name, f.sharing.alone, len(thin))
		}
		f.roster.own.Apart = f.sharing.apart // it has told the others
		if f.sharing.arrange(f, 5, targets, now); f.sharing.apart != tc.apart {
			t.Errorf("%s: apart no more, with as many others as probers", name)
		}
	}
}
