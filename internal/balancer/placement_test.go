// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/session"
	"github.com/caddy-alive/caddy-alive/internal/slots"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// limiting gives upstreams limits, by position.
func limiting(tb testing.TB, limits ...int) func(*setup) {
	return func(s *setup) {
		for i, limit := range limits {
			a, err := slots.Open(tb.Name()+s.members[i].Address, limit)
			if err != nil {
				tb.Fatal(err)
			}
			s.Limit = max(s.Limit, limit)
			s.members[i].Limit, s.members[i].Slots = limit, a
		}
	}
}

// inUse returns how many slots of an upstream are in use.
func (p *policy) inUse(i int) int { return p.members.byDial[p.listed[i].Dial].Slots.InUse() }

// ending returns a request that ends when the function is called.
func ending() (r *http.Request, end func()) {
	r = testkit.Get()
	ctx, end := context.WithCancel(r.Context())
	return r.WithContext(ctx), end
}

// A request has one slot at most: a further selection frees the slot of the one before.
func TestChoose_FreesTheSlotOfTheSelectionBefore(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPolicy(t, "uu", limiting(t, 1, 1), retrying)
		defer p.end(t)
		r, end := ending()
		for range 5 {
			if u := p.Select(p.listed, r, nil); u == nil {
				t.Fatal("it got no upstream")
			}
			if n := p.inUse(0) + p.inUse(1); n != 1 {
				t.Fatalf("it has %d slots", n)
			}
		}
		other, endOther := ending()
		if p.Select(p.listed, other, nil) == nil {
			t.Error("another request did not get the other upstream")
		}
		// one that shares its placeholders, as that of handle_errors
		if u := p.Select(p.listed, r.Clone(r.Context()), nil); u != nil {
			t.Errorf("a third request got %s, which is full", u.Dial)
		}
		end()
		endOther()
		synctest.Wait()
		if n := p.inUse(0) + p.inUse(1); n != 0 {
			t.Errorf("%d slots in use after the requests", n)
		}
	})
}

// A slot is held from the selection to the end of the answer, and is free in the end also if
// nothing was sent.
func TestChoose_SlotsOfRequests(t *testing.T) {
	failing := func(*http.Request) (*http.Response, error) { return nil, errors.New("lost") }
	for _, tc := range []struct {
		rule string
		send roundTrip // nil: none
	}{{"nothing is sent", nil}, {"it fails", failing}, {"it is answered", answeringStatus(200)}} {
		t.Run(tc.rule, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				p := newPolicy(t, "u", limiting(t, 1))
				defer p.end(t)
				r, end := ending()
				u := p.Select(p.listed, r, nil)
				other, endOther := ending()
				defer endOther()
				if u == nil || p.Select(p.listed, other, nil) != nil {
					t.Fatal("the limit is not held")
				}
				if tc.send != nil {
					p.roundTrip(r, u, func(r *http.Request) (*http.Response, error) {
						if p.inUse(0) != 1 {
							t.Error("the slot is free during the round trip")
						}
						return tc.send(r)
					})
				} else {
					end()
				}
				if synctest.Wait(); p.inUse(0) != 0 {
					t.Error("the slot is in use afterwards")
				}
				end()
			})
		})
	}
}

// A config that has ended still holds limits for the requests that it has, and what it shares
// goes with the last of them.
func TestChoose_SlotsOutliveTheConfig(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPolicy(t, "u", limiting(t, 1))
		r, end := ending()
		u := p.Select(p.listed, r, nil)
		next := newPolicy(t, "u", limiting(t, 1))
		p.end(t)
		other, endOther := ending()
		defer endOther()
		if next.Select(next.listed, other, nil) != nil {
			t.Error("a request of the config before does not count")
		}
		p.roundTrip(r, u, answeringStatus(200))
		if next.Select(next.listed, other, nil) == nil {
			t.Error("the slot of a request of the config before was not freed")
		}
		next.end(t)
		end()
	})
}

// The cookie of a session is set by the answer alone, also without limits.
func TestChoose_CookieComesWithTheAnswer(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPolicy(t, "u", func(s *setup) { s.Rules.Sticky = &session.Cookie{Name: "lb"} })
		defer p.end(t)
		r, end := ending()
		defer end()
		w := httptest.NewRecorder()
		u := p.Select(p.listed, r, w)
		if len(w.Header()) > 0 {
			t.Errorf("the selection has set %v", w.Header())
		}
		header := make(http.Header)
		p.roundTrip(r, u, func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Header: header}, nil
		})
		if got := header.Get("Set-Cookie"); !strings.HasPrefix(got, "lb=") {
			t.Errorf("cookie %q", got)
		}
	})
}

// An answer is taken over by the first route of handle_response that matches, unless that only
// changes the status.
func TestHandles_IsAsCaddyDecides(t *testing.T) {
	ok, failed := &caddyhttp.ResponseMatcher{StatusCode: []int{2}}, &caddyhttp.ResponseMatcher{StatusCode: []int{5}}
	for _, tc := range []struct {
		rule   string
		routes []caddyhttp.ResponseHandler
		want   bool
	}{
		{"no route", nil, false},
		{"it matches", []caddyhttp.ResponseHandler{{Match: failed}, {Match: ok}}, true},
		{"another matches", []caddyhttp.ResponseHandler{{Match: failed}}, false},
		{"for all answers", []caddyhttp.ResponseHandler{{}}, true},
		{"the first that matches changes the status", []caddyhttp.ResponseHandler{{Match: ok, StatusCode: "204"}, {}}, false},
	} {
		p := newPolicy(t, "u", func(s *setup) { s.Proxy.HandleResponse = tc.routes })
		if got := p.traffic.handles(&http.Response{StatusCode: http.StatusOK, Header: make(http.Header)}); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.rule, got, tc.want)
		}
		p.end(t)
	}
}

// mostAllocations is how many a limit may add to a request.
const mostAllocations = 3

// A limit costs a request few allocations.
func TestChoose_Allocations(t *testing.T) {
	if testkit.RaceDetector {
		t.Skip("the race detector makes pools forget")
	}
	cost := func(configure ...func(*setup)) float64 {
		p := newPolicy(t, "uuu", configure...)
		defer p.end(t)
		res := &http.Response{StatusCode: http.StatusOK, Header: make(http.Header)}
		transport := p.Observe(roundTrip(func(r *http.Request) (*http.Response, error) {
			_, cancel := context.WithCancel(r.Context()) // as transports do
			cancel()
			return res, nil
		}), false)
		base := testkit.Get()
		base = base.WithContext(context.WithValue(base.Context(), caddyhttp.ServerCtxKey, new(caddyhttp.Server)))
		return testing.AllocsPerRun(1000, func() {
			ctx, end := context.WithCancel(base.Context())
			defer end()
			r := base.WithContext(ctx)
			u := p.Select(p.listed, r, nil)
			ctx = context.WithValue(ctx, caddy.CtxKey("reverse_proxy.dial_info"), reverseproxy.DialInfo{Upstream: u, Address: u.Dial})
			res.Body = unread{}
			if _, err := transport.RoundTrip(r.WithContext(ctx)); err != nil {
				t.Error(err)
			}
			_ = res.Body.Close()
		})
	}
	without, with := cost(), cost(limiting(t, 1, 1, 1))
	t.Logf("%v allocations more, at most %d", with-without, mostAllocations)
	if with-without > mostAllocations {
		t.Errorf("%v allocations with a limit, %v without, want %d more at most", with, without, mostAllocations)
	}
}

// unread is a body that is closed without being read.
type unread struct{}

// Read reads nothing.
func (unread) Read([]byte) (int, error) { return 0, nil }

// Close does nothing.
func (unread) Close() error { return nil }
