// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// An upstream of weight 0 stays excluded when the list of upstreams changes, with a line
// in the log, and over a restart.
func TestWeights_FollowTheirUpstream(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b", "c")
	sites := func(list ...*testkit.Backend) string {
		return strings.Replace(fmt.Sprintf(testkit.ShopSite, testkit.Addresses(list...)), "name shop", "", 1)
	}
	c := testkit.StartCaddyWith(t, "", sites(all[0], all[1]))
	up := func(n int) {
		t.Helper()
		testkit.Eventually(t, testkit.Patience, "they are up", func() bool { return c.Statuses(all[0].Addr, all[1].Addr, all[2].Addr)["up"] == n })
	}
	up(2)
	c.Patch(all[0].Addr, `{"weight":0}`)
	testkit.Shares(t, "excluded", testkit.Tally(c.Client(), c.URL(), 10), map[string]int{"b": 10})
	c.Load(sites(all...))
	up(3)
	testkit.Shares(t, "one is added", testkit.Tally(c.Client(), c.URL(), 10), map[string]int{"b": 5, "c": 5})
	if n := len(c.List(url.Values{})); n != 3 {
		t.Errorf("%d entries: %+v", n, c.List(nil))
	}
	testkit.Eventually(t, testkit.Patience, "it is logged", func() bool {
		return len(c.Lines("a weight that was set at run time follows its upstream into another pool")) == 1 &&
			len(c.Lines("set at run time, and applies to this config")) == 1
	})
	testkit.Eventually(t, testkit.Patience, "it is stored", func() bool { return c.One(all[0].Addr).Persisted == nil })
	c.Stop()
	c.Load(sites(all[2], all[1], all[0]))
	up(3)
	testkit.Shares(t, "reordered at a restart", testkit.Tally(c.Client(), c.URL(), 10), map[string]int{"b": 5, "c": 5})
	c.Patch(all[0].Addr, `{"weight":null}`)
	testkit.Shares(t, "taken back", testkit.Tally(c.Client(), c.URL(), 9), map[string]int{"a": 3, "b": 3, "c": 3})
	c.Load(sites(all...))
	testkit.Shares(t, "taken back, and the list changes", testkit.Tally(c.Client(), c.URL(), 9), map[string]int{"a": 3, "b": 3, "c": 3})
}

// Two handlers with the same upstreams and different checks are two pools, each with rows
// and weights of its own.
func TestPools_ThatDifferAreListedApart(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	proxy := func(check string) string {
		return "reverse_proxy " + testkit.Addresses(all...) + " {\n\t\tlb_policy alive {\n\t\t\tfail_open off\n\t\t\tcheck " + check + " {\n\t\t\t\tinterval 50ms\n\t\t\t}\n\t\t}\n\t}\n"
	}
	sites := "http:// {\n\thandle /one {\n" + proxy("tcp") + "}\n\thandle {\n" + proxy("http /healthz") + "}\n}"
	c := testkit.StartCaddyWith(t, "", sites)
	all[0].Set(testkit.Sick)
	name := testkit.Addresses(all...)
	row := func(pool string) testkit.Upstream {
		t.Helper()
		rows := c.List(url.Values{"upstream": {all[0].Addr}, "pool": {pool}})
		if len(rows) != 1 {
			t.Fatalf("%s: got %d rows, want 1: %+v", pool, len(rows), rows)
		}
		return rows[0]
	}
	testkit.Eventually(t, testkit.Patience, "one handler has it up, and the other down", func() bool {
		return row(name).Serving && row(name).Status == "up" && !row(name+" #2").Serving && row(name+" #2").Status == "down"
	})
	status, text := c.Call(http.MethodPatch, "/alive/upstreams", url.Values{"upstream": {all[0].Addr}, "pool": {name + " #2"}}, `{"weight":7}`)
	if status != http.StatusOK || row(name).Weight != 1 || row(name+" #2").Weight != 7 {
		t.Errorf("status %d: %s; weights %d and %d, want 1 and 7", status, text, row(name).Weight, row(name+" #2").Weight)
	}
	c.Load(sites)
	if row(name).Weight != 1 || row(name+" #2").Weight != 7 {
		t.Errorf("after a reload: weights %d and %d, want 1 and 7", row(name).Weight, row(name+" #2").Weight)
	}
	pools := make(map[string]bool)
	for _, e := range c.List(nil) {
		pools[e.Pool] = true
	}
	if got, want := slices.Sorted(maps.Keys(pools)), []string{name, name + " #2"}; !slices.Equal(got, want) {
		t.Errorf("pools: got %q, want %q", got, want)
	}
}
