// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// TestTried_BelongsToARequest: the variables of a request outlive the handler. Another
// request with the same ones, as in handle_errors, has tried nothing yet.
func TestTried_BelongsToARequest(t *testing.T) {
	p := newPolicy(t, "uu", retrying)
	failed := testkit.Get()
	p.Select(p.listed, failed, nil)
	known := p.tried(failed)
	if other := p.tried(failed.Clone(failed.Context())); other == known || other.Failed() != "" {
		t.Error("another request got what the first one has tried")
	}
	failed = testkit.Get()
	if got := []int{slices.Index(p.listed, p.Select(p.listed, failed, nil)), slices.Index(p.listed, p.Select(p.listed, failed, nil))}; got[0] == got[1] {
		t.Errorf("one request tried %v: what it tried was forgotten", got)
	}
}

// TestTried_RetryProbesTheLastPick: a further selection for a request means that the last
// pick failed. That upstream is probed at once, and no other. First selections cause no
// probe.
func TestTried_RetryProbesTheLastPick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "uu", retrying)
		var probes [2]int
		for i, target := range p.targets {
			defer target.Attach(health.Driver{Probe: func(context.Context, bool) (bool, error) { probes[i]++; return false, nil }}, 0)()
		}
		synctest.Wait()
		probes = [2]int{}
		p.picks(testkit.Get, 10)
		synctest.Wait()
		if probes != [2]int{} {
			t.Errorf("%v probes after first tries, want none", probes)
		}
		r := testkit.Same()
		first := p.picks(r, 1)[0]
		p.picks(r, 1)
		synctest.Wait()
		want := [2]int{}
		want[first] = 1
		if probes != want {
			t.Errorf("%v probes after a retry, want %v", probes, want)
		}
	})
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
			got = append(got, p.Select(brought("a:80", "b:80", "c:80"), r, nil).Dial)
		}
		slices.Sort(got[:2])
		if want := []string{"a:80", "b:80", "c:80"}; !slices.Equal(got, want) {
			t.Errorf("tried %v, want the one that is down in the end", got)
		}
	})
}
