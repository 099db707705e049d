// SPDX-License-Identifier: Apache-2.0

package view

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// shown returns sections as words: the title, and the upstreams.
func shown(sections []Section) (words []string) {
	for _, s := range sections {
		word := s.Title + ":"
		for _, row := range s.Rows {
			word += " " + row.Upstream
		}
		words = append(words, word)
	}
	return words
}

// Pools with an alarm come first, then those with the worst upstream; in each pool the worst
// upstream does. What is equal keeps its order.
func TestWorstFirst_Order(t *testing.T) {
	until := time.Unix(1, 0)
	rows := []Upstream{
		{Pool: "a", Upstream: "fine-1", Status: "up", Serving: true, EffectiveWeight: 1},
		{Pool: "a", Upstream: "fine-2", Status: "up", Serving: true, EffectiveWeight: 1},
		{Pool: "a", Upstream: "backup", Status: "up", Group: 1, Backup: true},
		{Pool: "a", Upstream: "weight-0", Status: "up"},
		{Pool: "b", Upstream: "fine", Status: "up", Serving: true, EffectiveWeight: 1},
		{Pool: "b", Upstream: "repaired", Status: "unknown", Mode: "maintenance"},
		{Pool: "b", Upstream: "drains", Status: "up", Mode: "drain"},
		{Pool: "b", Upstream: "new", Status: "unknown"},
		{Pool: "b", Upstream: "suspect", Status: "up", Suspect: true, Serving: true},
		{Pool: "c", Upstream: "fine", Status: "up", Serving: true, EffectiveWeight: 1},
		{Pool: "c", Upstream: "past", Status: "down", Idle: true, Stale: true},
		{Pool: "c", Upstream: "dead", Status: "down"},
		{Pool: "c", Upstream: "ejected", Status: "up", EjectedUntil: &until},
		{Pool: "d", Upstream: "dead", Status: "down", EffectiveWeight: 1, FailOpen: true},
		{Pool: "e", Upstream: "dead", Status: "down"},
		{Pool: "a", Upstream: "left", Status: "unknown", Gone: true},
	}
	pools := append(Pools(rows), NewPool("f"))
	got := shown(WorstFirst(rows, pools))
	want := []string{
		"e: dead", "d: dead", "c: dead ejected fine past", "b: suspect new drains repaired fine", "a: weight-0 fine-1 fine-2 backup", "f:",
		"Set at run time, but in no pool: left",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, s := range WorstFirst(rows, pools) {
		if s.Pool != nil != (s.Title != "Set at run time, but in no pool") || s.Pool != nil && s.Pool.Pool != s.Title {
			t.Errorf("%s has the pool %+v", s.Title, s.Pool)
		}
	}
}

// Totals count each upstream once in each of its pools, and requests in flight once for each
// address. The summary begins with what is wrong.
func TestTotals_CountAndSummarize(t *testing.T) {
	until := time.Unix(1, 0)
	well := Upstream{Pool: "shop", Upstream: "a", Status: "up", Serving: true, Requests: 2}
	suspect := Upstream{Pool: "shop", Upstream: "b", Status: "up", Serving: true, Suspect: true}
	ejected := Upstream{Pool: "shop", Upstream: "c", Status: "up", EjectedUntil: &until}
	down := Upstream{Pool: "shop", Upstream: "d", Status: "down"}
	drains := Upstream{Pool: "shop", Upstream: "e", Status: "up", Mode: "drain"}
	repaired := Upstream{Pool: "shop", Upstream: "f", Status: "unknown", Mode: "maintenance"}
	open := Upstream{Pool: "open", Upstream: "d", Status: "down", EffectiveWeight: 1, FailOpen: true, Requests: 1}
	elsewhere := Upstream{Pool: "other", Upstream: "a", Status: "up", Serving: true, Requests: 2}
	idle, gone, past := down, down, down
	idle.Idle, gone.Gone = true, true
	past.Idle, past.Stale, past.Requests = true, true, 1
	for _, test := range []struct {
		rows           []Upstream
		facts, summary string
	}{
		{nil, "0 upstreams in 0 pools, 0 in flight", "0 of 0 upstreams serve"},
		{[]Upstream{well}, "1 upstream in 1 pool, 1 up, 2 in flight", "1 of 1 upstreams serve"},
		{[]Upstream{well, elsewhere}, "2 upstreams in 2 pools, 2 up, 2 in flight", "2 of 2 upstreams serve"},
		{[]Upstream{well, drains, repaired}, "3 upstreams in 1 pool, 1 draining, 1 in maintenance, 1 up, 2 in flight", "1 of 3 upstreams serve"},
		{[]Upstream{well, suspect, ejected, down, idle, gone}, "5 upstreams in 1 pool, 1 down, 1 ejected, 1 suspect, 1 up, 1 idle, 2 in flight", "1 down, 1 ejected, 1 suspect; 2 of 5 upstreams serve"},
		{[]Upstream{suspect, past}, "1 upstream in 1 pool, 1 suspect, 1 in flight", "1 suspect; 1 of 1 upstreams serve"},
		{[]Upstream{ejected}, "1 upstream in 1 pool, 1 ejected, 0 in flight", "No upstream serves in 1 of 1 pool. 1 ejected; 0 of 1 upstreams serve"},
		{[]Upstream{well, open}, "2 upstreams in 2 pools, 1 down, 1 up, 3 in flight", "Fail-open in 1 of 2 pools: 1 down; 1 of 2 upstreams serve"},
		{[]Upstream{down, open}, "2 upstreams in 2 pools, 2 down, 1 in flight", "No upstream serves in 1 of 2 pools. Fail-open in 1 of 2 pools: 2 down; 0 of 2 upstreams serve"},
	} {
		totals := NewTotals(test.rows, Pools(test.rows))
		if got := strings.Join(totals.Facts(), ", "); got != test.facts {
			t.Errorf("facts: got %q, want %q", got, test.facts)
		}
		if got := totals.Summary(); got != test.summary {
			t.Errorf("summary: got %q, want %q", got, test.summary)
		}
	}
}
