// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// chooser is a policy for select that records what it was offered.
type chooser struct {
	offered []string
	choose  func(reverseproxy.UpstreamPool) *reverseproxy.Upstream
}

// Select records what it is offered.
func (c *chooser) Select(pool reverseproxy.UpstreamPool, _ *http.Request, _ http.ResponseWriter) *reverseproxy.Upstream {
	var dials []string
	for _, u := range pool {
		dials = append(dials, u.Dial)
	}
	slices.Sort(dials)
	c.offered = append(c.offered, strings.Join(dials, " "))
	return c.choose(pool)
}

// offer is what a chooser records of some positions.
func offer(indexes ...int) string {
	var dials []string
	for _, i := range indexes {
		dials = append(dials, address(i))
	}
	return strings.Join(dials, " ")
}

// last chooses the last upstream.
func last(pool reverseproxy.UpstreamPool) *reverseproxy.Upstream { return pool[len(pool)-1] }

// TestSelect_IsOfferedWhatServes: the policy of select is offered the upstreams that are
// up, have a weight and were not tried, each once; backups when all primaries were tried.
func TestSelect_IsOfferedWhatServes(t *testing.T) {
	c := &chooser{choose: last}
	p := newPolicy(t, "uduuuud", withWeights(3, 1, 1, 0, 2, -1, -1), retrying, func(p *policy) { p.handler.Rules.Select = c })
	r := testkit.Same()
	var got []int
	for range 5 {
		got = append(got, p.pickIndex(r()))
	}
	if want := offer(0, 2, 4); c.offered[0] != want {
		t.Errorf("offered %s first, want %s", c.offered[0], want)
	}
	for i := 1; i < 3; i++ {
		var untried []int
		for _, u := range []int{0, 2, 4} {
			if !slices.Contains(got[:i], u) {
				untried = append(untried, u)
			}
		}
		if want := offer(untried...); c.offered[i] != want {
			t.Errorf("offered %s after %v, want %s", c.offered[i], got[:i], want)
		}
	}
	if want := offer(5); got[3] != 5 || c.offered[3] != want {
		t.Errorf("the fourth try got %d, offered %v; want the backup", got[3], c.offered)
	}
	for range 3 {
		got = append(got, p.pickIndex(r()))
	}
	if down := slices.Sorted(slices.Values(got[4:6])); !slices.Equal(down, []int{1, 6}) {
		t.Errorf("tried %v, want those that are down after those that serve", got)
	}
	if !slices.Contains(got[:3], got[6]) {
		t.Errorf("tried %v, want a primary again in the end", got)
	}
}

// TestSelect_ThatPicksNone: where the policy of select picks none, round robin picks.
func TestSelect_ThatPicksNone(t *testing.T) {
	c := &chooser{choose: func(reverseproxy.UpstreamPool) *reverseproxy.Upstream { return nil }}
	p := newPolicy(t, "uduu", func(p *policy) { p.handler.Rules.Select = c })
	if got, want := testkit.Counts(p.picks(testkit.Get, 300), 4), []int{100, 0, 100, 100}; !slices.Equal(got, want) {
		t.Errorf("picks %v, want %v", got, want)
	}
	if len(c.offered) != 300 || c.offered[0] != offer(0, 2, 3) {
		t.Errorf("asked %d times, the first with %q; want at every pick", len(c.offered), c.offered[0])
	}
}

// TestSelect_PoliciesOfCaddy: Caddy's own policies pick among the upstreams that serve as
// they do among all.
func TestSelect_PoliciesOfCaddy(t *testing.T) {
	for _, tc := range []struct {
		policy   reverseproxy.Selector
		verdicts string
		weights  []int
		want     []int // which may be picked
	}{
		{reverseproxy.FirstSelection{}, "duuu", []int{1, 1, 1, 1}, []int{1}},
		{reverseproxy.FirstSelection{}, "uuuu", []int{0, 1, 1, 1}, []int{1}},
		{reverseproxy.FirstSelection{}, "dduu", []int{-1, 1, 1, -1}, []int{2}},
		{reverseproxy.FirstSelection{}, "uddu", []int{-1, 1, 1, -1}, []int{0}},
		{reverseproxy.FirstSelection{}, "dddd", []int{-1, 1, 1, -1}, []int{1}}, // the last resort
		{reverseproxy.LeastConnSelection{}, "duud", []int{1, 1, 1, 1}, []int{1, 2}},
		{reverseproxy.LeastConnSelection{}, "ddud", []int{1, 1, -1, 1}, []int{2}},
		{reverseproxy.LeastConnSelection{}, "dddd", []int{1, 0, -1, 1}, []int{0, 3}},
	} {
		// the order of FirstSelection is that of the configuration, wherever the
		// rotation is: as many picks as a cycle has, and some
		p := newPolicy(t, tc.verdicts, withWeights(tc.weights...), func(p *policy) { p.handler.Rules.Select = tc.policy })
		got := p.picks(testkit.Get, 200)
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, tc.want) {
			t.Errorf("%T over %s with weights %v picked %v, want %v", tc.policy, tc.verdicts, tc.weights, got, tc.want)
		}
	}
}

// TestSelect_HoldAndLastResort: with select, too, a request is held at a cold start, and
// goes to upstreams without a verdict, and then to all.
func TestSelect_HoldAndLastResort(t *testing.T) {
	for _, tc := range []struct {
		rule, verdicts, after string
		waited                time.Duration
		offered               string
	}{
		{"the first that pass", "???", "duu", time.Second, offer(1, 2)},
		{"no verdict in time", "d??", "???", 2 * time.Second, offer(1, 2)},
		{"all turn out to be down", "???", "ddd", time.Second, offer(0, 1, 2)},
		{"the last resort", "ddd", "???", 0, offer(0, 1, 2)},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &chooser{choose: last}
				p := newPolicy(t, tc.verdicts, func(p *policy) { p.handler.Rules.Select = c })
				began := time.Now()
				result := p.held(testkit.Get())
				synctest.Wait()
				if tc.waited > 0 {
					time.Sleep(time.Second)
					p.decide(tc.after)
				}
				u, waited := <-result, time.Since(began)
				if u == nil || waited != tc.waited || !slices.Equal(c.offered, []string{tc.offered}) {
					t.Errorf("picked %v after %v, offered %q; want %v and %q", u, waited, c.offered, tc.waited, tc.offered)
				}
			})
		})
	}
}

// TestSelect_WithoutAWriter: the policy of select may write to a response that the
// policies header and query do not pass on.
func TestSelect_WithoutAWriter(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	inner := &reverseproxy.CookieHashSelection{Name: "lb"}
	if err := inner.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	p := newPolicy(t, "udu", func(p *policy) { p.handler.Rules.Select = inner })
	for range 10 {
		if i := p.pickIndex(testkit.Get()); i != 0 && i != 2 {
			t.Fatalf("picked %d, want one that is alive", i)
		}
	}
}
