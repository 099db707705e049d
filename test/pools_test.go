// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// The list of pools has all documented fields. It follows verdicts and modes, has handlers of
// one name once, and can be narrowed to one pool.
func TestPools_AreListed(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b", "c")
	site := func(name, upstreams, more string) string {
		return fmt.Sprintf("http://127.0.0.1:%d {\n\treverse_proxy %s {\n\t\tlb_policy alive {\n\t\t\tname %s\n\t\t\tcheck http /healthz {\n\t\t\t\tinterval 50ms\n\t\t\t}\n\t\t\t%s\n\t\t}\n\t}\n}\n", testkit.FreePort(t), upstreams, name, more)
	}
	a, b, c := all[0].Addr, all[1].Addr, all[2].Addr
	caddy := testkit.StartCaddyWith(t, "", site("shop", a+" "+b+" "+c, "backup "+c+"\n\t\t\tmax_requests 4\n\t\t\tqueue 10s 20")+site("shop", a, "fail_open off\n\t\t\tmax_requests 2\n\t\t\tqueue 1s 5")+site("api", b, ""))
	testkit.Eventually(t, testkit.Patience, "all are up", func() bool { return caddy.Up(a, b, c) })
	caddy.Patch(b, `{"mode":"drain"}`)

	status, text := caddy.Call(http.MethodGet, "/alive/pools", nil, "")
	var list []map[string]any
	if err := json.Unmarshal([]byte(text), &list); err != nil || status != http.StatusOK || len(list) != 2 {
		t.Fatalf("%d %s", status, text)
	}
	fields := []string{"empty", "fail_open", "failure_share", "groups", "groups_in_use", "idle", "pool", "queue", "receiving", "recent_failures", "requests", "requests_per_second", "serving", "states", "upstreams"}
	for _, p := range list {
		if got := slices.Sorted(maps.Keys(p)); !slices.Equal(got, fields) {
			t.Errorf("fields %q, want %q", got, fields)
		}
	}
	pools := caddy.Pools("")
	if api := pools[0]; api.Pool != "api" || api.Upstreams != 1 || api.States["draining"] != 1 || api.Serving != 0 || api.Receiving != 1 || api.Queue != nil || api.FailOpen {
		t.Errorf("api: %+v", api)
	}
	if shop := pools[1]; shop.Pool != "shop" || shop.Upstreams != 3 || shop.States["up"] != 2 || shop.States["draining"] != 1 || shop.Serving != 1 || shop.Receiving != 1 ||
		shop.Groups != 2 || !slices.Equal(shop.GroupsInUse, []int{0}) || shop.Queue == nil || shop.Queue.Waiting != 0 || shop.Queue.Limit != 25 {
		t.Errorf("shop: %+v", shop)
	}
	if got := caddy.One(a); got.Limit != 4 || got.Group != 0 {
		t.Errorf("of two limits the list has %+v", got)
	}
	if got := caddy.List(url.Values{"upstream": {c}})[0]; got.Group != 1 || !got.Backup || got.Why != "up, and a backup: gets requests when no primary can serve" {
		t.Errorf("the backup: %+v", got)
	}
	all[0].Set(testkit.Sick)
	testkit.Eventually(t, testkit.Patience, "the backup is in use", func() bool {
		p := caddy.Pools("shop")
		return len(p) == 1 && slices.Equal(p[0].GroupsInUse, []int{1}) && p[0].States["down"] == 1
	})
	if request, err := http.NewRequestWithContext(t.Context(), http.MethodHead, "http://"+caddy.Admin+"/alive/pools", nil); err != nil {
		t.Error(err)
	} else if response, err := http.DefaultClient.Do(request); err != nil || response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != "application/json" {
		t.Errorf("HEAD: %v %v", response, err)
	} else {
		response.Body.Close()
	}
	stdout, _, err := testkit.Command(t.Context(), caddy.Admin, "status", "--pool", "shop")
	if want := "3 upstreams in 1 pool, 1 down, 1 draining, 1 up, 0 in flight\n\npool shop\n1 of 3 serve, 1 down, 1 draining, backup in use, 0 in flight, 0 of 25 wait\nUPSTREAM "; err != nil || !strings.HasPrefix(stdout, want) {
		t.Errorf("status --pool shop: %q, %v, want %q", stdout, err, want)
	}
	if stdout, _, err := testkit.Command(t.Context(), caddy.Admin, "status", "--pool", "shpo"); stdout != "" || err == nil || !strings.HasSuffix(err.Error(), "did you mean 'shop'?") {
		t.Errorf("status --pool shpo: %q, %v", stdout, err)
	}
}

// While requests wait, every view says how many. Requests that are refused and those that
// waited are counted and logged, and the counts go on across a reload.
func TestQueue_IsSeen(t *testing.T) {
	d := startDrainables(t, "a")[0]
	sites := fmt.Sprintf(`
http:// {
	alive_status /status
	reverse_proxy %s {
		lb_policy alive {
			name shop
			check http /healthz {
				interval 50ms
			}
			max_requests 1
			queue 10s 2
		}
	}
}`, d.Addr)
	c := testkit.StartCaddyWith(t, "", sites)
	testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(d.Addr) })
	series := func(name, more string) string { return "queue_" + name + `{pool="shop"` + more + "}" }
	c.WantMetrics("at first", map[string]float64{
		series("length", ""): 0, series("seconds_count", ""): 0, series("refused_total", `,reason="full"`): 0, series("refused_total", `,reason="timeout"`): 0,
	})
	answers := make(chan testkit.Answer, 3)
	ask := func() { answers <- testkit.Ask(c.Client(), c.URL()+"/held") }
	go ask()
	testkit.Eventually(t, testkit.Patience, "it is busy", func() bool { return c.One(d.Addr).Requests == 1 })
	for range 2 {
		go ask()
	}
	testkit.Eventually(t, testkit.Patience, "two wait", func() bool { return c.Metrics()[series("length", "")] == 2 })
	if got := testkit.Ask(c.Client(), c.URL()); got.Status != http.StatusServiceUnavailable {
		t.Errorf("one too many: %v", got)
	}
	c.WantMetrics("with a full queue", map[string]float64{series("length", ""): 2, series("seconds_count", ""): 0, series("refused_total", `,reason="full"`): 1})
	if got, want := c.One(d.Addr), "up, but full: its limit is 1 request at once; requests wait while no other upstream has room"; got.Limit != 1 || got.Requests != 1 || got.Why != want || !got.Serving || got.Status != "up" {
		t.Errorf("the upstream: %+v, want %q", got, want)
	}
	testkit.Eventually(t, testkit.Patience, "the pool is listed with its queue", func() bool {
		q := c.Pools("shop")[0].Queue
		return q != nil && q.Waiting == 2 && q.Limit == 2
	})
	stdout, _, err := testkit.Command(t.Context(), c.Admin, "status")
	if err != nil || !strings.HasPrefix(stdout, "1 upstream in 1 pool, 1 up, 1 in flight\n\npool shop\n1 of 1 serve, 1 in flight, 2 of 2 wait\n") || !strings.Contains(stdout, "  1 of 1  ") {
		t.Errorf("status: %q, %v", stdout, err)
	}
	page := testkit.AskHost(c.Client(), c.URL()+"/status", "", http.Header{"Accept": {"text/html"}})
	for _, want := range []string{"<span>2 of 2 wait</span>", `data-label="in flight">1 of 1<`} {
		if !strings.Contains(page.Body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	d.held.Open()
	for range 3 {
		if got := <-answers; got.Status != http.StatusOK {
			t.Errorf("a request that waited: %v", got)
		}
	}
	c.Load(sites + "\n# reloaded")
	c.WantMetrics("after a reload", map[string]float64{series("length", ""): 0, series("seconds_count", ""): 2, series("refused_total", `,reason="full"`): 1})
	c.Load(strings.Replace(sites, "queue 10s 2", "", 1))
	for name := range c.Metrics() {
		if strings.HasPrefix(name, "queue_") {
			t.Errorf("there is no queue, but %s", name)
		}
	}
	c.Stop() // which writes what a minute would
	if n := c.Logged(`"msg":"the queue refused requests: 1 in the last `); n != 1 {
		t.Errorf("lines about refused requests: %d, want 1", n)
	}
}

// A client that is bound to an upstream stays with it while it drains, and the command says
// so. With --rebind it moves, and so does the list say. The mode ready ends both.
func TestDrain_Rebind(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	c := testkit.StartCaddyWith(t, "", strings.Replace(fmt.Sprintf(testkit.ShopSite, testkit.Addresses(all...)), "retries off", "retries off\n\t\t\tsticky lb {\n\t\t\t\tsecret x\n\t\t\t}", 1))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	client := c.Client()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client.Jar = jar
	first := testkit.Ask(client, c.URL()).Body
	own, other := all[0], all[1]
	if first == "b" {
		own, other = other, own
	}
	testkit.Shares(t, "it is bound", testkit.Tally(client, c.URL(), 6), map[string]int{first: 6})
	if got := c.One(own.Addr).Bound; got != 6 {
		t.Errorf("%d requests of bound clients, want 6", got)
	}
	_, stderr, err := testkit.Command(t.Context(), c.Admin, "drain", own.Addr)
	if want := "warning: 6 requests in the last minute of clients bound to it, which --rebind moves\n"; err != nil || stderr != want {
		t.Errorf("drain: printed %q, %v, want %q", stderr, err, want)
	}
	testkit.Shares(t, "it stays", testkit.Tally(client, c.URL(), 4), map[string]int{first: 4})
	if got := c.One(own.Addr); got.Rebind || got.Bound != 10 || !strings.HasSuffix(got.Why, ": no new clients while another upstream can take them; clients that are bound to it stay") {
		t.Errorf("while it drains: %+v", got)
	}
	stdout, _, err := testkit.Command(t.Context(), c.Admin, "drain", own.Addr, "--wait", "10s")
	if want := own.Addr + ": drain\n" + own.Addr + ": nothing is in flight, but 10 requests in the last minute of clients bound to it, which --rebind moves\n"; err != nil || stdout != want {
		t.Errorf("drain --wait: printed %q, %v, want %q", stdout, err, want)
	}
	stdout, _, err = testkit.Command(t.Context(), c.Admin, "drain", own.Addr, "--rebind", "--wait", "10s")
	if want := own.Addr + ": drain, and clients that are bound to it move\n" + own.Addr + ": nothing is in flight\n"; err != nil || stdout != want {
		t.Errorf("drain --rebind: printed %q, %v, want %q", stdout, err, want)
	}
	moved := map[string]string{"a": "b", "b": "a"}[first]
	testkit.Shares(t, "it moves", testkit.Tally(client, c.URL(), 5), map[string]int{moved: 5})
	if got := c.One(own.Addr); !got.Rebind || got.Mode != "drain" || !strings.Contains(got.Why, ", and its bound clients move: no new requests") {
		t.Errorf("with --rebind: %+v", got)
	}
	if got := c.Patch(own.Addr, `{"mode":"ready"}`)[0]; got.Rebind {
		t.Errorf("when it is ready: %+v", got)
	}
	if got := c.Patch(other.Addr, `{"mode":"drain","rebind":null}`)[0]; got.Rebind || got.Mode != "drain" {
		t.Errorf("rebind null: %+v", got)
	}
	testkit.Shares(t, "it stays again", testkit.Tally(client, c.URL(), 3), map[string]int{moved: 3})
}
