// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/session"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// sticky binds clients to upstreams.
func sticky(p *policy) { p.handler.Rules.Sticky = &session.Cookie{Name: "lb", Secret: "secret"} }

// client is one that keeps its cookie.
type client struct {
	p      *policy
	cookie string // empty before the first answer
}

// pick selects an upstream for a request of a client. Moved says that its answer binds the
// client anew.
func (c *client) pick() (i int, moved bool) { return c.pickFor(testkit.Get()) }

func (c *client) pickFor(r *http.Request) (i int, moved bool) {
	if c.cookie != "" {
		r.AddCookie(&http.Cookie{Name: "lb", Value: c.cookie})
	}
	choice := c.p.Pick(Attempt{Upstreams: c.p.list, Request: r, Writer: httptest.NewRecorder(), Tried: remember(r)})
	if choice.Slot != nil {
		choice.Slot.Free()
	}
	if choice.Binds {
		c.cookie = c.p.handler.Rules.Sticky.Value(choice.Upstream.Dial)
	}
	return slices.Index(c.p.list, choice.Upstream), choice.Binds
}

// boundTo returns a client that is bound to an upstream.
func (p *policy) boundTo(i int) *client {
	return &client{p, p.handler.Rules.Sticky.Value(p.list[i].Dial)}
}

// New clients are placed by the weights, and then stay.
func TestSticky_NewClientsGoByWeight(t *testing.T) {
	p := newPolicy(t, "uu", sticky, withWeights(1, 3))
	counts := make([]int, 2)
	for range 4000 {
		c := &client{p: p}
		first, moved := c.pick()
		if !moved {
			t.Fatal("a new client is not bound")
		}
		counts[first]++
		for range 2 {
			if i, moved := c.pick(); i != first || moved {
				t.Fatalf("a client bound to %d went to %d, bound anew: %v", first, i, moved)
			}
		}
	}
	if want := []int{1000, 3000}; !slices.Equal(counts, want) {
		t.Errorf("4,000 new clients went to %v, want %v", counts, want)
	}
	if n := p.members[1].Bound.Sum(); n != 6000 {
		t.Errorf("counted %d requests of bound clients, want 6,000", n)
	}
}

// A bound client stays while its upstream is up, also while it drains. It moves once when it
// is down, ejected or in maintenance.
func TestSticky_BoundClientsStayWhileUp(t *testing.T) {
	for _, tc := range []struct {
		rule   string
		change func(t *testing.T, a *accusable)
		want   int  // where its requests go
		moves  bool // with a new cookie
	}{
		{"up", func(*testing.T, *accusable) {}, 0, false},
		{"draining", func(_ *testing.T, a *accusable) { a.setMode(0, settings.Drain) }, 0, false},
		{"draining, and its clients move", func(_ *testing.T, a *accusable) {
			a.set(0, settings.Change{Mode: new(settings.Mode(settings.Drain)), Rebind: true})
		}, 1, true},
		{"in maintenance", func(_ *testing.T, a *accusable) { a.setMode(0, settings.Maintenance) }, 1, true},
		{"of weight 0", func(_ *testing.T, a *accusable) { a.set(0, settings.Change{Pool: "shop", Weight: weightOf(0)}) }, 1, true},
		{"down", func(_ *testing.T, a *accusable) { a.decide("d?") }, 1, true},
		{"unhealthy by Caddy", func(_ *testing.T, a *accusable) { setAllHealthy(a.list, "01") }, 1, true},
		{"ejected", func(t *testing.T, a *accusable) { a.eject(t, 0) }, 1, true},
		{"suspect by connect", func(_ *testing.T, a *accusable) { a.accuse(0, witness.Failure{Cause: witness.Connect}) }, 1, false},
		{"suspect by outcome", func(_ *testing.T, a *accusable) {
			a.accuse(0, witness.Failure{Cause: witness.Outcome})
			a.accuse(0, witness.Failure{Cause: witness.Outcome})
		}, 0, false},
		{"full", func(_ *testing.T, a *accusable) { a.list[0].MaxRequests = 1; testkit.SetRequests(a.list[0], 1) }, 1, true},
		{"down, and the others, too: the last resort", func(_ *testing.T, a *accusable) { a.decide("dd") }, 0, false},
		{"a backup, and the primary serves", func(_ *testing.T, a *accusable) { a.members[0].Group = 1; a.RefreshNow() }, 0, false},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAccusable(t, "uu", sticky)
				c := a.boundTo(0)
				tc.change(t, a)
				for n := range 4 {
					if i, moved := c.pick(); i != tc.want || moved != (tc.moves && n == 0) {
						t.Errorf("request %d: went to %d, bound anew: %v; want %d", n, i, moved, tc.want)
					}
				}
			})
		})
	}
}

// At a cold start, held requests of bound clients go to their upstreams, however many others
// serve by then.
func TestSticky_HeldRequestsOfBoundClientsStay(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPolicy(t, "???", sticky)
		type result struct {
			i     int
			moved bool
		}
		results := make(chan result, 10)
		for range cap(results) {
			go func() {
				i, moved := p.boundTo(2).pick()
				results <- result{i, moved}
			}()
		}
		time.Sleep(time.Second)
		p.decide("uuu")
		for range cap(results) {
			if r := <-results; r.i != 2 || r.moved {
				t.Errorf("went to %d, bound anew: %v", r.i, r.moved)
			}
		}
	})
}

// Before the first verdict on its upstream a bound client goes to one that serves, and stays
// bound. While none serves it goes to its own.
func TestSticky_ClientsStayBoundBeforeTheFirstVerdict(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPolicy(t, "u?", sticky)
		for range 4 {
			if i, moved := p.boundTo(1).pick(); i != 0 || moved {
				t.Errorf("went to %d, bound anew: %v", i, moved)
			}
		}
		p = newPolicy(t, "???", sticky)
		for range 4 {
			if i, moved := p.boundTo(1).pick(); i != 1 || moved {
				t.Errorf("none has a verdict: went to %d, bound anew: %v", i, moved)
			}
		}
		p = newPolicy(t, "u?", sticky)
		p.setMode(1, settings.Maintenance)
		if i, moved := p.boundTo(1).pick(); i != 0 || !moved {
			t.Errorf("in maintenance: went to %d, bound anew: %v", i, moved)
		}
	})
}

// While an upstream drains, new clients go to others.
func TestSticky_DrainTakesNoNewClients(t *testing.T) {
	p := newPolicy(t, "uu", sticky)
	p.setMode(0, settings.Drain)
	for range 10 {
		if i, moved := (&client{p: p}).pick(); i != 1 || !moved {
			t.Fatalf("a new client went to %d", i)
		}
	}
}

// A cookie of another upstream set, or one that no server has made, is that of a new client.
func TestSticky_ForeignCookiesAreOfNewClients(t *testing.T) {
	p := newPolicy(t, "u", sticky)
	other := &session.Cookie{Name: "lb", Secret: "other"}
	for _, value := range []string{"x", other.Value(p.list[0].Dial), p.list[0].Dial} {
		if i, moved := (&client{p, value}).pick(); i != 0 || !moved {
			t.Errorf("%q: went to %d, bound anew: %v", value, i, moved)
		}
	}
	if choice := p.Pick(Attempt{Upstreams: p.list, Request: testkit.Get()}); choice.Binds {
		t.Error("bound a client without a response")
	}
}

// A retry goes elsewhere, and the client stays bound.
func TestSticky_RetriesDoNotMoveClients(t *testing.T) {
	p := newPolicy(t, "uu", sticky, retrying)
	c, r := p.boundTo(0), testkit.Get()
	remember(r).Add(p.list[0], true, witness.Counted{})
	if i, moved := c.pickFor(r); i != 1 || moved {
		t.Errorf("the retry went to %d, bound anew: %v", i, moved)
	}
}

// A bound client waits for its own upstream in the queue, and then moves. Without a queue it
// moves at once.
func TestSticky_WaitsForItsOwn(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPolicy(t, "uu", sticky, limited(t, 10, 1, 1))
		p.members[0].Slots.Take(1)
		began := time.Now()
		if i, moved := p.boundTo(0).pick(); i != 1 || !moved || time.Since(began) != 10*time.Second {
			t.Errorf("went to %d after %v, bound anew: %v", i, time.Since(began), moved)
		}
		time.AfterFunc(time.Second, p.members[0].Slots.Free)
		began = time.Now()
		if i, moved := p.boundTo(0).pick(); i != 0 || moved || time.Since(began) != time.Second {
			t.Errorf("went to %d after %v, bound anew: %v", i, time.Since(began), moved)
		}
		p.members[0].Slots.Take(1)
		p.handler.Rules.Queue = Queue{}
		if i, moved := p.boundTo(0).pick(); i != 1 || !moved {
			t.Errorf("without a queue: went to %d, bound anew: %v", i, moved)
		}
		p.members[0].Slots.Free()
	})
}

// With select cookie, bound clients of an upstream that drains stay, and others go elsewhere
// with one cookie.
func TestSelectCookie_DrainKeepsBoundClients(t *testing.T) {
	p := newPolicy(t, "uuu", func(p *policy) {
		p.handler.Rules.Select, p.handler.Rules.SelectName = cookiePolicy(t), "cookie"
	})
	ask := func(cookie string) (i int, cookies []*http.Cookie) {
		r, w := testkit.Get(), httptest.NewRecorder()
		if cookie != "" {
			r.AddCookie(&http.Cookie{Name: "lb", Value: cookie})
		}
		i = slices.Index(p.list, p.Pick(Attempt{Upstreams: p.list, Request: r, Writer: w}).Upstream)
		return i, w.Result().Cookies()
	}
	p.setMode(0, settings.Drain)
	own := (&session.Cookie{}).Value(p.list[0].Dial)
	for range 20 {
		if i, cookies := ask(own); i != 0 || len(cookies) > 0 {
			t.Fatalf("a bound client went to %d, with %v", i, cookies)
		}
		i, cookies := ask("")
		if i <= 0 || len(cookies) != 1 || cookies[0].Value != (&session.Cookie{}).Value(p.list[i].Dial) {
			t.Fatalf("a new client went to %d, with %v", i, cookies)
		}
		if again, cookies := ask(cookies[0].Value); again != i || len(cookies) > 0 {
			t.Fatalf("a client bound to %d went to %d, with %v", i, again, cookies)
		}
	}
	p.setMode(0, settings.Maintenance)
	if i, cookies := ask(own); i <= 0 || len(cookies) != 1 {
		t.Errorf("in maintenance a bound client went to %d, with %v", i, cookies)
	}
}

// With select cookie and limits, an answer has one cookie, however often another request was
// quicker: here the first pick loses its slot each time.
func TestSelectCookie_LostSlotsAddNoCookies(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		thief := &thieving{Selector: cookiePolicy(t)}
		p := newPolicy(t, "uu", limited(t, 0, 1, 1), func(p *policy) {
			p.handler.Rules.Select, p.handler.Rules.SelectName = thief, "cookie"
			thief.p = p
		})
		w := httptest.NewRecorder()
		choice := p.Pick(Attempt{Upstreams: p.list, Request: testkit.Get(), Writer: w})
		cookies := w.Result().Cookies()
		if choice.Slot == nil || len(cookies) != 1 || cookies[0].Value != (&session.Cookie{}).Value(choice.Upstream.Dial) {
			t.Errorf("went to %v with %v", choice.Upstream, cookies)
		}
		for _, m := range p.members {
			m.Slots.Free()
		}
	})
}

// thieving is a policy whose first choice is full as soon as it has made it.
type thieving struct {
	reverseproxy.Selector
	p    *policy
	once bool
}

// Select lets the policy choose, and takes the last slot there, once.
func (s *thieving) Select(upstreams reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	u := s.Selector.Select(upstreams, r, w)
	if !s.once {
		s.once = true
		s.p.members[slices.Index(s.p.list, u)].Slots.Take(1)
	}
	return u
}

// cookiePolicy returns the policy cookie of Caddy, as it is by default.
func cookiePolicy(t *testing.T) reverseproxy.Selector {
	t.Helper()
	s := &reverseproxy.CookieHashSelection{}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(cancel)
	if err := s.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// RecentCount forgets after a minute.
func TestRecentCount_IsOfTheLastMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c RecentCount
		for range 12 {
			for range 100 {
				c.Add()
			}
			time.Sleep(10 * time.Second)
		}
		if n := c.Sum(); math.Abs(float64(n)-600) > 100 {
			t.Errorf("got %d of 100 in each ten seconds", n)
		}
		time.Sleep(time.Minute + 10*time.Second)
		if n := c.Sum(); n != 0 {
			t.Errorf("got %d after a minute without any", n)
		}
	})
}
