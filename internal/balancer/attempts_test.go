// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// TestTried_LeavesTheVariablesAlone: when a round trip has failed, the transport may still
// dial for it. A dial of Caddy reads the variables of the request, which have no lock.
func TestTried_LeavesTheVariablesAlone(t *testing.T) {
	p := newPolicy(t, "uu", retrying)
	r := testkit.Get()
	variables := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	before := maps.Clone(variables)
	var dials sync.WaitGroup
	p.roundTrip(r, p.Select(p.listed, r, nil), func(r *http.Request) (*http.Response, error) {
		dials.Go(func() { caddyhttp.GetVar(r.Context(), "any") }) // the race detector sees a write
		return refused(r)
	})
	dials.Wait()
	if p.traffic.tried(r) == nil {
		t.Error("the try is not noted")
	}
	if !maps.Equal(variables, before) {
		t.Errorf("variables %v, want %v", variables, before)
	}
}

// TestTried_BelongsToARequest: the placeholders of a request outlive the handler. Another
// request with the same ones, as in handle_errors, has tried nothing yet.
func TestTried_BelongsToARequest(t *testing.T) {
	p := newPolicy(t, "uu", retrying)
	failed := testkit.Get()
	first := p.Select(p.listed, failed, nil)
	p.roundTrip(failed, first, refused)
	if p.traffic.tried(failed) == nil {
		t.Error("what the request tried was forgotten")
	}
	if other := p.traffic.tried(failed.Clone(failed.Context())); other != nil {
		t.Error("another request got what the first one has tried")
	}
	for range 10 {
		if got := p.Select(p.listed, failed, nil); got == first {
			t.Fatal("a retry went to the upstream that has failed the request")
		}
	}
}

// TestTried_OnlyFailedTriesAreNoted: a request that ends well costs nothing for retries, and
// leaves the fast path on. Nothing is noted without retries, or when the client has left.
func TestTried_OnlyFailedTriesAreNoted(t *testing.T) {
	left, leave := context.WithCancel(testkit.Get().Context())
	leave()
	for _, tc := range []struct {
		rule    string
		retries bool
		ctx     context.Context // nil: that of any request
		end     roundTrip
		noted   bool
	}{
		{"refused", true, nil, refused, true},
		{"without retries", false, nil, refused, false},
		{"an answer", true, nil, answeringStatus(200), false},
		{"a failed answer", true, nil, answeringStatus(502), false},
		{"the client has left", true, left, refused, false},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			p := newPolicy(t, "uu", func(s *setup) { s.Rules.Retries = tc.retries })
			r := testkit.Get()
			if tc.ctx != nil {
				r = r.WithContext(tc.ctx)
			}
			p.roundTrip(r, p.Select(p.listed, r, nil), tc.end)
			if got := p.handler.HasRetries(); got != tc.noted {
				t.Errorf("there are retries: %v, want %v", got, tc.noted)
			}
			if got := p.traffic.tried(r) != nil; got != tc.noted {
				t.Errorf("noted %v, want %v", got, tc.noted)
			}
		})
	}
}

// TestTried_EndsWithTheRequest: when the requests have ended of which a try failed, the fast
// path is on again.
func TestTried_EndsWithTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "uu", retrying)
		var ends []context.CancelFunc
		for range 3 {
			r := testkit.Get()
			ctx, end := context.WithCancel(r.Context())
			ends = append(ends, end)
			r = r.WithContext(ctx)
			for range 2 { // it counts once, however often it fails
				p.roundTrip(r, p.Select(p.listed, r, nil), refused)
			}
		}
		for _, end := range ends {
			if !p.handler.HasRetries() {
				t.Error("the retries have ended while requests are under way")
			}
			end()
			synctest.Wait()
		}
		if p.handler.HasRetries() {
			t.Error("there are retries after all requests have ended")
		}
	})
}

// TestTraffic_AFailedTryProbesThatUpstream: an upstream that refuses a request is probed at
// once, and no other, and gets no requests until its checks have decided. First tries cause
// no probe.
func TestTraffic_AFailedTryProbesThatUpstream(t *testing.T) {
	for _, retries := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPolicy(t, "uu", func(s *setup) { s.Rules.Retries = retries })
			var probes [2]atomic.Int64
			for i, target := range p.targets {
				defer target.Attach(health.Driver{Probe: func(context.Context, bool) (bool, error) {
					probes[i].Add(1)
					time.Sleep(time.Second / 2)
					return false, nil
				}}, 0)()
			}
			time.Sleep(time.Hour / 2) // so that no probe is put off
			synctest.Wait()
			probed := func() (n [2]int64) {
				for i := range probes {
					n[i] = probes[i].Swap(0)
				}
				return n
			}
			probed()
			p.picks(testkit.Get, 10)
			synctest.Wait()
			if got := probed(); got != [2]int64{} {
				t.Errorf("%v probes after first tries, want none", got)
			}
			r := testkit.Get()
			first := p.Select(p.listed, r, nil)
			p.roundTrip(r, first, refused)
			synctest.Wait()
			i := slices.Index(p.listed, first)
			want := [2]int64{}
			want[i] = 1
			if got := probed(); got != want {
				t.Errorf("retries %v: %v probes after a failure, want %v", retries, got, want)
			}
			if got := testkit.Counts(p.picks(testkit.Get, 20), 2); got[i] != 0 {
				t.Errorf("retries %v: picks %v while %d is a suspect", retries, got, i)
			}
			time.Sleep(time.Second)
			if got := testkit.Counts(p.picks(testkit.Get, 20), 2); got[i] != 10 {
				t.Errorf("retries %v: picks %v when %d is acquitted, want its share", retries, got, i)
			}
		})
	}
}

// TestDynamic_VerdictsGoByAddress: upstreams that are not the list come from a dynamic
// source, with new values for each request, or from another policy that passes on a part.
// An address that has no verdict counts as up.
func TestDynamic_VerdictsGoByAddress(t *testing.T) {
	p := newPolicy(t, "ud")
	served := p.served(100, "10.9.9.9:80", address(0), address(1))
	if served["10.9.9.9:80"] != 50 || served[address(0)] != 50 {
		t.Errorf("served %v, want 50 each of those not known to be down", served)
	}
	if u := p.Select(brought(), testkit.Get(), nil); u != nil {
		t.Errorf("picked %v from an empty pool", u)
	}
	if u := p.Select(p.listed[1:], testkit.Get(), nil); u != p.listed[1] {
		t.Errorf("picked %v, want the one that is down if it is all there is", u)
	}
}

// TestDynamic_RetriesGoOnToTheDown: a retry over a dynamic source skips what the request
// has tried by address, and goes to the one that is down in the end.
func TestDynamic_RetriesGoOnToTheDown(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newDynamicPolicy(t, newNetwork("a:80", "b:80"), "retries", retrying)
		defer p.end(t)
		p.served(1, "a:80", "b:80", "c:80")
		time.Sleep(time.Second)
		r := testkit.Get()
		var got []string
		for range 3 {
			u := p.Select(brought("a:80", "b:80", "c:80"), r, nil)
			p.traffic.noteTried(r, u, true, witness.Counted{})
			got = append(got, u.Dial)
		}
		slices.Sort(got[:2])
		if want := []string{"a:80", "b:80", "c:80"}; !slices.Equal(got, want) {
			t.Errorf("tried %v, want the one that is down in the end", got)
		}
	})
}
