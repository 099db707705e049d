// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/testkit/storages"
)

// Rebind belongs to the mode drain: each change of the mode decides about it anew, and a
// change of a weight leaves it as it is.
func TestSet_RebindBelongsToTheMode(t *testing.T) {
	var none *Setting
	if none.RebindNow() {
		t.Error("without a setting clients move")
	}
	set := NewSet()
	for i, step := range []struct {
		change Change
		want   bool
	}{
		{Change{Mode: new(Mode(Drain))}, false},
		{Change{Mode: new(Mode(Drain)), Rebind: true}, true},
		{Change{Pool: "shop", Weight: new(new(3))}, true},
		{Change{Mode: new(Mode(Drain))}, false},
		{Change{Mode: new(Mode(Drain)), Rebind: true}, true},
		{Change{Mode: new(Mode(Maintenance))}, false},
		{Change{Mode: new(Mode(Ready)), Rebind: true}, false},
		{Change{Mode: new(Mode(Drain))}, false},
		{Change{Mode: new(Mode(Drain)), Rebind: true}, true},
		{Change{Clear: true}, false},
	} {
		set.Change("a:80", step.change)
		got := set.Of("a:80")
		logged := slices.ContainsFunc(got.Fields(), func(f zap.Field) bool { return f.Key == "rebind" })
		if got.RebindNow() != step.want || logged != step.want {
			t.Errorf("step %d: rebind %v, logged %v, want %v", i, got.RebindNow(), logged, step.want)
		}
	}
}

// The newest change of the mode wins together with its rebind. At the same time, all take
// the one that moves clients.
func TestMerge_RebindGoesWithTheMode(t *testing.T) {
	moving := func(at int) *Setting { s := drained(at); s.Rebind = true; return s }
	for _, tc := range []struct {
		a, b *Setting
		want bool
	}{
		{drained(3), moving(4), true},
		{moving(3), drained(4), false},
		{moving(3), drained(3), true},
		{moving(3), weighed(new(2), 4), true},
		{moving(3), &Setting{Address: "a:80", Mode: Maintenance, Changed: time.Unix(3, 0)}, false},
	} {
		one, other := Merge(tc.a, tc.b), Merge(tc.b, tc.a)
		if !one.equal(other) || one.RebindNow() != tc.want {
			t.Errorf("%+v and %+v: %+v one way, %+v the other, want rebind %v", tc.a, tc.b, one, other, tc.want)
		}
	}
	if drained(3).equal(moving(3)) {
		t.Error("two settings are equal although clients move by one of them only")
	}
}

// A drain without rebind is stored as before. An earlier version reads one with rebind as a
// drain. If it then stores the setting for another reason, the others store rebind again.
func TestStore_RebindOutlivesAnEarlierVersion(t *testing.T) {
	type earlier struct { // the fields that it knows
		Address string            `json:"address"`
		Mode    Mode              `json:"mode"`
		Changed time.Time         `json:"changed"`
		Weights map[string]Weight `json:"weights,omitempty"`
	}
	eachStorage(t, func(t *testing.T, e *storages.Engine) {
		store, _ := runStore(t, e.Client(), "alive/fleets/a", time.Second)
		stored := func() string {
			value, _ := e.Get(store.key("a:80"))
			return value
		}
		store.set.Change("a:80", Change{Mode: new(Mode(Drain))})
		store.Sync(t.Context(), false)
		if text := stored(); strings.Contains(text, "rebind") {
			t.Errorf("stored is %s", text)
		}
		store.set.Change("a:80", Change{Mode: new(Mode(Drain)), Rebind: true})
		store.Sync(t.Context(), false)
		if text := stored(); !strings.Contains(text, `"rebind":true`) {
			t.Errorf("stored is %s", text)
		}
		var known earlier
		if err := json.Unmarshal([]byte(stored()), &known); err != nil || known.Mode != Drain {
			t.Fatalf("an earlier version reads %+v, %v", known, err)
		}
		known.Weights = map[string]Weight{"shop": {Weight: new(3), Changed: time.Now()}}
		text, err := json.Marshal(known)
		if err != nil {
			t.Fatal(err)
		}
		e.Put(store.key("a:80"), string(text))
		time.Sleep(fullInterval + time.Second) // an earlier version does not write news
		if s := store.set.Of("a:80"); !s.RebindNow() || s.WeightIn("shop", 1) != 3 {
			t.Errorf("the setting is %+v", s)
		}
		if text := stored(); !strings.Contains(text, `"rebind":true`) || !strings.Contains(text, `"weight":3`) {
			t.Errorf("stored is %s", text)
		}
	})
}
