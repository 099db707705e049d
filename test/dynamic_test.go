// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// An address that appears in DNS is watched from then on, and gets its share
// after its first pass and not before. One that fails its checks gets nothing
// while others serve; it is skipped once it is down, and used once it is back.
func TestDynamic_NewAddressServesAfterItsFirstPass(t *testing.T) {
	port, backends := testkit.StartLoopbacks(t, testkit.Well, testkit.Well, testkit.Sick, testkit.Refusing)
	joining, dead := backends[1], backends[2]
	checked := testkit.NewGate(t)
	joining.Hook = func(r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/healthz") {
			checked.Pass(r)
		}
	}
	n, name := testkit.StartNameServer(t), testkit.NewName()
	n.Set(name, testkit.Records{A: []string{"127.0.0.1"}})
	c := testkit.StartCaddy(t, testkit.DynamicSite(n.Source(name, port), testkit.QuickCheck))
	client := c.Client()
	testkit.Shares(t, "one address", testkit.Tally(client, c.URL(), 5), map[string]int{"a": 5})

	n.Set(name, testkit.Records{A: []string{"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"}})
	n.AwaitQuery(t, name, client, c.URL())
	testkit.Eventually(t, testkit.Patience, "the live one that appeared is probed", func() bool {
		_, probes := joining.Seen()
		return probes > 0
	})
	testkit.Eventually(t, testkit.Patience, "the dead ones that appeared are down", func() bool {
		return c.Down(dead.Addr, backends[3].Addr)
	})
	testkit.Shares(t, "before the first pass", testkit.Tally(client, c.URL(), 20), map[string]int{"a": 20})
	checked.Open()
	testkit.Eventually(t, testkit.Slack, "it gets its share after its first pass", func() bool {
		return maps.Equal(testkit.Tally(client, c.URL(), 6), map[string]int{"a": 3, "b": 3})
	})
	if requests, _ := dead.Seen(); requests != 0 {
		t.Errorf("requests to one that never passed: got %d, want 0", requests)
	}
	if got := joining.History().Earlier; got < 1 {
		t.Errorf("probes before the first request of one that appeared: got %d, want 1 at least", got)
	}

	dead.Set(testkit.Well)
	testkit.Eventually(t, testkit.Patience, "the dead one gets its share once it lives", func() bool {
		return maps.Equal(testkit.Tally(client, c.URL(), 6), map[string]int{"a": 2, "b": 2, "c": 2})
	})
	dead.Set(testkit.Sick)
	testkit.Eventually(t, testkit.Patience, "it is down again", func() bool { return c.Down(dead.Addr) })
	testkit.Shares(t, "down again", testkit.Tally(client, c.URL(), 6), map[string]int{"a": 3, "b": 3})
	dead.Set(testkit.Well)
	testkit.Eventually(t, testkit.Patience, "and back again", func() bool {
		return maps.Equal(testkit.Tally(client, c.URL(), 6), map[string]int{"a": 2, "b": 2, "c": 2})
	})
	if got := dead.History().Earlier; got < 2 {
		t.Errorf("probes before the first request of one that came back: got %d, want `passes`, 2, at least", got)
	}
}

// At a cold start the first request waits for verdicts, and none reaches one
// that is dead. An address that left DNS gets no more requests.
func TestDynamic_GoneAddressGetsNoRequests(t *testing.T) {
	port, backends := testkit.StartLoopbacks(t, testkit.Well, testkit.Sick, testkit.Well)
	n, name := testkit.StartNameServer(t), testkit.NewName()
	all := []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}
	n.Set(name, testkit.Records{A: all})
	c := testkit.StartCaddy(t, testkit.DynamicSite(n.Source(name, port), testkit.QuickCheck))
	client := c.Client()
	testkit.Eventually(t, testkit.Patience, "both that live take turns", func() bool {
		return maps.Equal(testkit.Tally(client, c.URL(), 6), map[string]int{"a": 3, "c": 3})
	})
	if requests, _ := backends[1].Seen(); requests != 0 {
		t.Errorf("requests to a dead one from the start on: got %d, want 0", requests)
	}

	n.Set(name, testkit.Records{A: all[:1]})
	n.AwaitQuery(t, name, client, c.URL())
	before, _ := backends[2].Seen()
	testkit.Shares(t, "one left", testkit.Tally(client, c.URL(), 20), map[string]int{"a": 20})
	if after, _ := backends[2].Seen(); after != before {
		t.Errorf("requests to one that left: got %d, want 0", after-before)
	}
	n.Set(name, testkit.Records{A: all})
	n.AwaitQuery(t, name, client, c.URL())
	testkit.Shares(t, "it returned within five minutes, still watched", testkit.Tally(client, c.URL(), 6), map[string]int{"a": 3, "c": 3})
}

// Caddy's own rules hold with `stale off`: when the source fails, the static upstreams
// serve; without them, or with an empty answer, Caddy answers 503. By default, they hold for
// a name that does not exist, and a source that fails goes on with its last answer.
func TestDynamic_FailedSourceFallsBack(t *testing.T) {
	port, _ := testkit.StartLoopbacks(t, testkit.Well)
	static := testkit.StartBackend(t, "static", nil)
	n, name := testkit.StartNameServer(t), testkit.NewName()
	source := n.Source(name, port)
	sites := ""
	for _, stale := range []string{"", "stale off"} {
		site := func(host, upstreams, source string) {
			host += strings.ReplaceAll(stale, "stale ", ".")
			sites += fmt.Sprintf("http://%s.test {\nreverse_proxy %s {\ndynamic %s\nlb_policy alive {\n%s\n%s\n}\n}\n}\n", host, upstreams, source, stale, testkit.QuickCheck)
		}
		site("fallback", static.Addr, source)
		site("alone", "", source)
		site("multi", static.Addr, "multi {\n"+source+"\n}")
	}
	n.Set(name, testkit.Records{A: []string{"127.0.0.1"}})
	c := testkit.StartCaddy(t, sites)
	client := c.Client()
	expect := func(what string, want map[string]string) {
		t.Helper()
		for _, host := range slices.Sorted(maps.Keys(want)) {
			testkit.Eventually(t, testkit.Patience, fmt.Sprintf("%s: %s answers %s", what, host, want[host]), func() bool {
				a := testkit.AskHost(client, c.URL(), host+".test", nil)
				got := strconv.Itoa(a.Status)
				if a.Status == http.StatusOK {
					got = a.Body
				}
				return got == want[host]
			})
		}
	}
	well := map[string]string{"fallback": "a", "alone": "a", "multi": "a", "fallback.off": "a", "alone.off": "a", "multi.off": "a"}
	gone := map[string]string{"fallback": "static", "alone": "503", "multi": "503", "fallback.off": "static", "alone.off": "503", "multi.off": "503"}
	fails := map[string]string{"fallback": "a", "alone": "a", "multi": "a", "fallback.off": "static", "alone.off": "503", "multi.off": "503"}
	one := testkit.Records{A: []string{"127.0.0.1"}}
	expect("an address", well)
	for _, nothing := range []struct {
		what   string
		answer testkit.Records
		want   map[string]string
	}{
		{"NXDOMAIN", testkit.Records{RCode: dnsmessage.RCodeNameError}, gone},
		{"SERVFAIL", testkit.Records{RCode: dnsmessage.RCodeServerFailure}, fails},
		{"an empty answer", testkit.Records{}, gone},
	} {
		n.Set(name, nothing.answer)
		testkit.Eventually(t, testkit.Patience, nothing.what+" takes effect without stale", func() bool {
			return testkit.AskHost(client, c.URL(), "alone.off.test", nil).Status == http.StatusServiceUnavailable
		})
		expect(nothing.what, nothing.want)
		n.Set(name, one)
		expect("after "+nothing.what, well)
	}
}

// A name without addresses is an outage if the list has no upstreams: the pool, the page and the
// metric say so, also if no request has ever found one.
func TestDynamic_NameWithoutAddressesIsAnOutage(t *testing.T) {
	port, _ := testkit.StartLoopbacks(t, testkit.Well)
	n, name := testkit.StartNameServer(t), testkit.NewName()
	c := testkit.StartCaddy(t, "http://page.test {\nalive_status\n}\n"+testkit.DynamicSite(n.Source(name, port), "name shop\n"+testkit.QuickCheck))
	client := c.Client()
	for _, at := range []struct {
		what   string
		answer testkit.Records
		status int
	}{
		{"at the start", testkit.Records{RCode: dnsmessage.RCodeNameError}, http.StatusServiceUnavailable},
		{"with an address", testkit.Records{A: []string{"127.0.0.1"}}, http.StatusOK},
		{"when it is gone", testkit.Records{RCode: dnsmessage.RCodeNameError}, http.StatusServiceUnavailable},
		{"when it is back", testkit.Records{A: []string{"127.0.0.1"}}, http.StatusOK},
		{"without records", testkit.Records{}, http.StatusServiceUnavailable},
	} {
		n.Set(name, at.answer)
		testkit.Eventually(t, testkit.Patience, fmt.Sprintf("%s: %d", at.what, at.status), func() bool {
			return testkit.Ask(client, c.URL()).Status == at.status
		})
		isOut := at.status != http.StatusOK
		c.WantMetrics(at.what, map[string]float64{`pool_empty{pool="shop"}`: map[bool]float64{true: 1}[isOut]})
		for where, shows := range map[string]func() bool{
			"list": func() bool { return len(c.List(url.Values{"serving": {"true"}})) == 0 },
			"pool": func() bool {
				_, text := c.Call(http.MethodGet, "/alive/pools", nil, "")
				return strings.Contains(text, `"empty":true`)
			},
			"page": func() bool {
				page := testkit.AskHost(client, c.URL(), "page.test", http.Header{"Accept": {"text/html"}})
				return strings.Contains(page.Body, "A dynamic source returns no upstreams: requests of its handler are answered 503.")
			},
		} {
			testkit.Eventually(t, testkit.Patience, fmt.Sprintf("%s: the %s shows an outage: %v", at.what, where, isOut), func() bool { return shows() == isOut })
		}
	}
}

// `dynamic multi` is one pool of all its sources. One that fails goes on with its last
// answer, and one whose name does not exist has no effect on the others.
func TestDynamic_MultiIsOnePool(t *testing.T) {
	port, backends := testkit.StartLoopbacks(t, testkit.Well, testkit.Well, testkit.Sick)
	n, first, second := testkit.StartNameServer(t), testkit.NewName(), testkit.NewName()
	n.Set(first, testkit.Records{A: []string{"127.0.0.1"}})
	n.Set(second, testkit.Records{A: []string{"127.0.0.2", "127.0.0.3"}})
	c := testkit.StartCaddy(t, testkit.DynamicSite("multi {\n"+n.Source(first, port)+"\n"+n.Source(second, port)+"\n}", testkit.QuickCheck))
	client := c.Client()
	testkit.Eventually(t, testkit.Patience, "those of both that live take turns", func() bool {
		return maps.Equal(testkit.Tally(client, c.URL(), 6), map[string]int{"a": 3, "b": 3})
	})
	n.Set(first, testkit.Records{RCode: dnsmessage.RCodeServerFailure})
	n.AwaitQuery(t, first, client, c.URL())
	testkit.Shares(t, "the first fails", testkit.Tally(client, c.URL(), 6), map[string]int{"a": 3, "b": 3})
	n.Set(first, testkit.Records{RCode: dnsmessage.RCodeNameError})
	testkit.Eventually(t, testkit.Patience, "the first is gone", func() bool {
		return maps.Equal(testkit.Tally(client, c.URL(), 6), map[string]int{"b": 6})
	})
	if requests, _ := backends[2].Seen(); requests != 0 {
		t.Errorf("requests to the dead one: got %d, want 0", requests)
	}
}

// After a reload under traffic, an address that is known to be dead gets no request, and
// all addresses are probed even before the first request.
func TestDynamic_ReloadForgetsNothing(t *testing.T) {
	port, backends := testkit.StartLoopbacks(t, testkit.Well, testkit.Hanging, testkit.Well)
	dead := backends[1]
	n, name := testkit.StartNameServer(t), testkit.NewName()
	n.Set(name, testkit.Records{A: []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}})
	sites := func(version int) string {
		return fmt.Sprintf("http:// {\nheader Version %d\n", version) +
			strings.TrimPrefix(testkit.DynamicSite(n.Source(name, port), `check http /healthz {
	interval 10m
	fast_interval 300ms
	timeout 300ms
}`), "http:// {\n")
	}
	c := testkit.StartCaddy(t, sites(0))
	client := c.Client()
	testkit.Eventually(t, testkit.Patience, "the dead one is down, the others take turns", func() bool {
		return maps.Equal(testkit.Tally(client, c.URL(), 6), map[string]int{"a": 3, "c": 3}) && c.Down(dead.Addr)
	})
	const reloads = 5
	before, _ := dead.Seen()

	clients := testkit.StartTraffic(t, 4, func() testkit.Answer {
		a, _ := testkit.AskPastReloads(client, c.URL(), reloads)
		return a
	})
	probing := c.Client()
	for version := 1; version <= reloads; version++ {
		c.ReloadInTraffic(sites(version), version, probing, clients)
	}
	clients.Stop()
	if err := clients.Err(); err != nil {
		t.Errorf("of %d requests: %v", clients.Answered(), err)
	}

	// without any request
	for version := 6; version <= 7; version++ {
		c.Load(sites(version))
		want := []string{backends[0].Addr, dead.Addr, backends[2].Addr}
		if got := c.Addresses(); !slices.Equal(got, want) {
			t.Errorf("watched after a reload without a request: got %v, want %v", got, want)
		}
		_, probed := dead.Seen()
		testkit.Eventually(t, testkit.Patience, "the dead one is still probed", func() bool {
			_, probes := dead.Seen()
			return probes > probed+1
		})
	}
	testkit.Shares(t, "after the reloads", testkit.Tally(client, c.URL(), 6), map[string]int{"a": 3, "c": 3})
	if after, _ := dead.Seen(); after != before {
		t.Errorf("requests to an address known to be dead: got %d, want 0", after-before)
	}
	for _, b := range []*testkit.Backend{backends[0], backends[2]} {
		if _, probes := b.Seen(); probes != 1 {
			t.Errorf("probes of %s over all reloads: got %d, want the first one only", b.Name, probes)
		}
	}

	// a config that fails to load changes nothing
	if err := c.TryLoad(sites(8) + "http://broken.test {\nreverse_proxy 127.0.0.1:1-3000 {\nlb_policy alive {\nweight unknown:1 2\n}\n}\n}\n"); err == nil {
		t.Error("a config with the weight of an unknown upstream was loaded")
	}
	if got := c.Addresses(); len(got) != 3 {
		t.Errorf("watched after a reload that failed: got %v, want 3", got)
	}
	testkit.Shares(t, "after a reload that failed", testkit.Tally(client, c.URL(), 6), map[string]int{"a": 3, "c": 3})
}

// Caddy's own rules hold for every answer of a source.
func TestDynamic_OddAnswersAreHandled(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "static")
	a, b := backends[0].Addr, backends[1].Addr
	s := testkit.NewSource(t)
	c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s {\ndynamic %s\nlb_policy alive {\n%s\nretries off\n}\n}\n}", backends[2].Addr, s.Name(), testkit.SingleCheck))
	client := c.Client()
	testkit.Eventually(t, testkit.Patience, "the static one is up", func() bool { return c.Up(backends[2].Addr) })

	if got := testkit.Ask(client, c.URL()); got.Status != http.StatusServiceUnavailable {
		t.Errorf("no upstreams: got %v, want 503", got)
	}
	s.Set([]string{}...)
	if got := testkit.Ask(client, c.URL()); got.Status != http.StatusServiceUnavailable {
		t.Errorf("an empty list: got %v, want 503", got)
	}
	s.Answer(func(*http.Request) ([]string, error) { return []string{a}, errors.New("by test") })
	testkit.Shares(t, "an error", testkit.Tally(client, c.URL(), 4), map[string]int{"static": 4})
	s.Set(a, backends[2].Addr)
	// the only one known to be up, unless the machine was so busy that the first probe passed
	if got := testkit.Ask(client, c.URL()); got.Body != "static" && (got.Body != "a" || !c.Up(a)) {
		t.Errorf("one that is static, too: got %v, want the only one known to be up", got)
	}
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(a) })
	testkit.Shares(t, "one that is static, too", testkit.Tally(client, c.URL(), 6), map[string]int{"a": 3, "static": 3})
	s.Set(a, a, b, a)
	testkit.Eventually(t, testkit.Patience, "duplicates count each", func() bool {
		return maps.Equal(testkit.Tally(client, c.URL(), 8), map[string]int{"a": 6, "b": 2})
	})
	for _, backend := range backends {
		if _, probes := backend.Seen(); probes != 1 {
			t.Errorf("probes of %s: got %d, want 1", backend.Name, probes)
		}
	}

	// An address that cannot be checked counts as alive, and it is Caddy itself
	// that cannot use it. The others get their share all the same.
	for _, invalid := range []string{"", "127.0.0.1:1-3", "127.0.0.1:99999"} {
		s.Set(a, invalid, b)
		testkit.Shares(t, fmt.Sprintf("with the address %q", invalid), testkit.Tally(client, c.URL(), 6), map[string]int{"a": 2, "b": 2, "error": 2})
		s.Set(invalid)
		if got := testkit.Ask(client, c.URL()); got.Err != nil || got.Status != http.StatusBadGateway {
			t.Errorf("nothing but the address %q: got %v, want 502", invalid, got)
		}
	}
	// One that Caddy takes for the name of a host is checked, and so known to be
	// of no use.
	for _, unusable := range []string{"x:y:z", "bad/127.0.0.1:80", "\x00"} {
		s.Set(a, unusable, b)
		testkit.Shares(t, fmt.Sprintf("with the address %q", unusable), testkit.Tally(client, c.URL(), 6), map[string]int{"a": 3, "b": 3})
		s.Set(unusable)
		if got := testkit.Ask(client, c.URL()); got.Err != nil || got.Status != http.StatusBadGateway {
			t.Errorf("nothing but the address %q: got %v, want 502", unusable, got)
		}
	}

	// One with placeholders of the request is not checked, and always serves; a
	// single warning says so. Where they are known beforehand, it is checked.
	t.Setenv("ALIVE_TEST_UPSTREAM", b)
	s.Set("{http.request.header.To}", a, "{env.ALIVE_TEST_UPSTREAM}")
	got := make(map[string]int)
	for range 6 {
		got[testkit.AskHost(client, c.URL(), "", http.Header{"To": {b}}).Body]++
	}
	testkit.Shares(t, "with placeholders", got, map[string]int{"a": 2, "b": 4})
	s.Set("{http.request.header.To}", "{http.request.header.Too}")
	if got := testkit.AskHost(client, c.URL(), "", http.Header{"To": {a}, "Too": {a}}); got.Body != "a" {
		t.Errorf("with placeholders only: got %v, want an answer of a", got)
	}
	if got := c.Logged("upstream cannot be checked"); got != 1 {
		t.Errorf("warnings of upstreams that cannot be checked: got %d, want 1", got)
	}
	if _, probes := backends[1].Seen(); probes != 1 {
		t.Errorf("probes of b, which a placeholder of the environment names, too: got %d, want 1", probes)
	}
}

// A name that depends on the request does not make the watch list grow without bound,
// under concurrent requests, across reloads and at the end.
func TestDynamic_WatchListIsBounded(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("127.0.0.2 and so on belong to the loopback interface on Linux only")
	}
	dials := testkit.ManyAddresses(testkit.FreePort(t), 1<<16)
	s := testkit.NewSource(t)
	var next atomic.Int64
	s.Answer(func(*http.Request) ([]string, error) {
		i := next.Add(1) % int64(len(dials))
		return dials[i : i+1], nil
	})
	sites := testkit.DynamicSite(s.Name(), "check tcp {\ninterval 10m\nfast_interval 10m\n}")
	c := testkit.StartCaddy(t, sites)
	client := c.Client()
	count := testkit.Hammer(client, c.URL(), 16, 1500)
	if want := map[int]int64{http.StatusBadGateway: 1500}; !maps.Equal(count, want) {
		t.Errorf("answers by status (-1: none): got %v, want %v", count, want)
	}
	const most = 1024
	if got := checked(c); got != most {
		t.Errorf("checked after 1500 addresses: got %d, want %d", got, most)
	}
	if got := c.Logged("too many upstreams from a dynamic source"); got != 1 {
		t.Errorf("warnings of too many: got %d, want 1", got)
	}

	// requests go on while configs come and go, and Caddy stops
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				testkit.Ask(client, c.URL())
			}
		})
	}
	for range 3 {
		asked := next.Load()
		c.Load(sites)
		testkit.Eventually(t, testkit.Patience, "requests go on", func() bool { return next.Load() > asked+20 })
		if got := checked(c); got > most {
			t.Errorf("checked after a reload: got %d, want %d at most", got, most)
		}
	}
	c.Stop()
	cancel()
	clients.Wait()
}

// checked returns how many upstreams have checks.
func checked(c *testkit.Caddy) (n int) {
	for _, row := range c.List(nil) {
		if len(row.Checks) > 0 {
			n++
		}
	}
	return n
}

// A change is logged once, however many answers a source has: requests to a pool without
// an alive upstream do not repeat the line.
func TestDynamic_ChangesAreLoggedOnce(t *testing.T) {
	const pools, rounds = 260, 10 // more pools than are kept ready
	var dials []string
	for range pools {
		dials = append(dials, testkit.Refused(t))
	}
	s := testkit.NewSource(t)
	s.Answer(func(r *http.Request) ([]string, error) {
		i, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		return dials[i : i+1], nil
	})
	c := testkit.StartCaddy(t, testkit.DynamicSite(s.Name(), "check tcp {\ninterval 10m\nfast_interval 10m\n}"))
	client := c.Client()
	for range rounds {
		for i := range pools {
			if got := testkit.Ask(client, c.URL()+"/"+strconv.Itoa(i)); got.Status != http.StatusBadGateway {
				t.Fatalf("as the last resort: got %v, want 502", got)
			}
		}
	}
	if got := c.Logged("no upstream is alive"); got > pools {
		t.Errorf("lines of the log that say that none is alive, for %d pools that never changed, over %d requests: got %d, want %d at most",
			pools, pools*rounds, got, pools)
	}
}

// A deployment behind a dynamic source brings new addresses, and the old ones stop. No
// request fails, and no gauge, line or event is an alarm.
func TestDynamic_DeploymentRaisesNoAlarm(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "c", "d", "e", "f")
	old, next := backends[:3], backends[3:]
	dials := func(backends []*testkit.Backend) (dials []string) {
		for _, b := range backends {
			dials = append(dials, b.Addr)
		}
		return dials
	}
	s := testkit.NewSource(t, dials(old)...)
	site := strings.Replace(testkit.DynamicSite(s.Name(), testkit.QuickCheck), "lb_policy alive {", "lb_policy alive {\nname shop", 1)
	c := testkit.StartCaddyWith(t, "", site)
	clients := testkit.StartTraffic(t, 2, func() testkit.Answer { return testkit.Ask(c.Client(), c.URL()) })
	testkit.Eventually(t, testkit.Patience, "the old ones serve", func() bool { return c.Statuses(dials(old)...)["up"] == 3 })
	s.Set(dials(next)...)
	testkit.Eventually(t, testkit.Patience, "requests bring the next ones", func() bool { return c.Statuses(dials(next)...)["up"] == 3 })
	answered := clients.Answered()
	testkit.Eventually(t, testkit.Patience, "no request has the old ones any more", func() bool { return clients.Answered() > answered+100 })
	for _, b := range old {
		b.Set(testkit.Refusing)
	}
	watch := func() {
		t.Helper()
		want := map[string]float64{
			`pool_fail_open{pool="shop"}`: 0, `pool_upstreams{pool="shop",state="down"}`: 0, `pool_upstreams{pool="shop",state="up"}`: 3,
		}
		for _, dial := range dials(old) {
			want[`upstream_up{check="http /healthz",upstream="`+dial+`"}`] = -1
		}
		for _, dial := range dials(next) {
			want[`upstream_up{check="http /healthz",upstream="`+dial+`"}`] = 1
		}
		c.WantMetrics("after the deployment", want)
		for _, e := range c.List(nil) {
			past := strings.HasPrefix(e.Why, "the source returns other upstreams now")
			if isOld := e.Upstream == old[0].Addr || e.Upstream == old[1].Addr || e.Upstream == old[2].Addr; past != isOld || e.FailOpen {
				t.Errorf("%s: %q, fail-open %v", e.Upstream, e.Why, e.FailOpen)
			}
		}
	}
	testkit.Eventually(t, testkit.Patience, "the old ones are down", func() bool {
		watch()
		return c.Statuses(dials(old)...)["down"] == 3
	})
	watch()
	clients.Stop()
	if err := clients.Err(); err != nil {
		t.Errorf("of %d requests: %v", clients.Answered(), err)
	}
	if n := c.Logged("upstream is down") + c.Logged("no upstream is alive"); n > 0 {
		t.Errorf("%d lines of the log are alarms, want none", n)
	}
}

// Answers that change with each request, upstreams that come and go, scrapes, lists and
// reloads happen at once. No request fails, each pick is counted once, and no counter goes
// back. A reload can close a connection that has just begun to be used. Then the request is
// handled without a client, possibly after its config has ended, when picks are not counted any more.
func TestDynamic_StormLosesNothing(t *testing.T) {
	const reloads = 5
	backends := testkit.StartBackends(t, "a", "b", "flaps")
	s := testkit.NewSource(t)
	var brought, dropped atomic.Uint64
	s.Answer(func(*http.Request) ([]string, error) {
		brought.Add(1)
		dials := []string{backends[0].Addr, backends[1].Addr, backends[2].Addr}
		rand.Shuffle(len(dials), func(i, j int) { dials[i], dials[j] = dials[j], dials[i] })
		for range rand.IntN(8) { // more answers than are kept
			dials = append(dials, dials[rand.IntN(3)])
		}
		return dials, nil
	})
	sites := func(version int) string {
		return fmt.Sprintf("http:// {\nheader Version %d\n", version) +
			strings.TrimPrefix(testkit.DynamicSite(s.Name(), "check http /healthz {\ninterval 50ms\nfast_interval 20ms\ntimeout 5s\npasses 1\nfails 1\n}"), "http:// {\n")
	}
	c := testkit.StartCaddyWith(t, "", sites(0))
	client := c.Client()
	clients := testkit.StartTraffic(t, 8, func() testkit.Answer {
		a, n := testkit.AskPastReloads(client, c.URL(), reloads)
		dropped.Add(n)
		return a
	})
	var over atomic.Bool
	var observing sync.WaitGroup
	stop := func() {
		over.Store(true)
		observing.Wait()
	}
	defer stop() // also after a fatal error
	observing.Go(func() {
		down := false
		for !over.Load() {
			if down = !down; down {
				backends[2].Set(testkit.Sick)
			} else {
				backends[2].Set(testkit.Well)
			}
			time.Sleep(70 * time.Millisecond)
		}
	})
	observing.Go(func() {
		before := make(map[string]float64)
		for !over.Load() {
			now, err := c.TryMetrics()
			if err != nil {
				continue // a reload has closed the admin endpoint
			}
			for name, n := range now {
				if strings.HasPrefix(name, "selections_total") && n < before[name] {
					t.Errorf("%s went from %v to %v", name, before[name], n)
				}
			}
			before = now
			_, _ = c.TryList(nil)
		}
	})
	probing := c.Client()
	for version := 1; version <= reloads; version++ {
		c.ReloadInTraffic(sites(version), version, probing, clients)
	}
	clients.Stop()
	stop()
	if err := clients.Err(); err != nil {
		t.Errorf("of %d requests: %v", clients.Answered(), err)
	}
	var counted uint64
	for name, n := range c.Metrics() {
		if strings.HasPrefix(name, "selections_total") {
			counted += uint64(n)
		}
	}
	if want := brought.Load(); counted > want || counted+dropped.Load() < want {
		t.Errorf("%d picks counted, want %d, less at most %d of dropped connections", counted, want, dropped.Load())
	}
}

// A source can have any number of addresses. Requests are answered soon, and the pools of
// many orders of the addresses take a bounded amount of memory.
func TestDynamic_HugeAnswersStayCheap(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("127.0.0.2 and so on belong to the loopback interface on Linux only")
	}
	const size, orders = 20_000, 260 // more orders than are kept ready
	dials := testkit.ManyAddresses(testkit.FreePort(t), size)
	s := testkit.NewSource(t, dials...)
	c := testkit.StartCaddy(t, testkit.DynamicSite(s.Name(), "check tcp {\ninterval 10m\n}"))
	client := c.Client()
	var took []time.Duration
	requests := func(n int, dials func() []string) {
		t.Helper()
		took = took[:0]
		for range n {
			s.Set(dials()...)
			began := time.Now()
			if got := testkit.Ask(client, c.URL()); got.Status != http.StatusBadGateway {
				t.Fatalf("an upstream that refuses: got %v, want 502", got)
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		if median, most := took[n/2], 2*time.Second; median > most {
			t.Errorf("a request takes %s, want %s at most", median, most)
		}
	}
	memory := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	requests(9, func() []string { return dials })
	same := took[len(took)/2]
	before := memory()
	requests(orders, func() []string {
		i := rand.IntN(size)
		return slices.Concat(dials[i:], dials[:i])
	})
	grown := memory() - before
	t.Logf("%d addresses: a request takes %s, one with another order of them %s; %d orders take %d MiB", size, same, took[orders/2], orders, grown>>20)
	if most := int64(128 << 20); grown > most {
		t.Errorf("memory for pools that are kept ready: got %d MiB, want %d MiB at most", grown>>20, most>>20)
	}
	if got := c.Logged("too many upstreams from a dynamic source"); got != 1 {
		t.Errorf("warnings of too many: got %d, want 1", got)
	}
}
