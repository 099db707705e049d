// SPDX-License-Identifier: Apache-2.0

package test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// An upstream that accepts connections and resets them passes a check by TCP. Requests that
// cannot be retried fail there until it is ejected, and no longer.
func TestEjection_ResetsPassTheCheck(t *testing.T) {
	const clients = 4
	r := route{path: "plain", upstreams: three(t)}
	c := testkit.StartCaddy(t, "http:// {\nreverse_proxy "+testkit.Addresses(r.upstreams...)+" {\nlb_policy alive\n}\n}")
	awaitUp(t, c, r)
	load := testkit.ClosedLoop(t, clients, asks(c, http.MethodPost, "", "form"))
	load.Await(t, 50)
	bad := r.upstreams[0]
	bad.Set(testkit.Resetting)
	testkit.Eventually(t, testkit.Patience, "it is ejected", func() bool { return c.One(bad.Addr).EjectedUntil != nil })
	load.Await(t, 300)
	// a reset of a connection that was used before does not count, and each client has one
	wantRounds(t, "resets", load.Stop(), 6+clients)
	if until := c.One(bad.Addr).EjectedUntil; until == nil || time.Until(*until) < 10*time.Second || time.Until(*until) > 30*time.Second {
		t.Errorf("ejected until %v, want about 30 s from now", until)
	}
}

// An upstream whose checks are too shallow is ejected, which is shown in all places, and
// tried again after a time, which is longer each time. Once it is mended it serves again.
func TestEjection_IsShownTriedAndEnds(t *testing.T) {
	testkit.RecordEvents(t, nil)
	r := route{path: "shop", upstreams: three(t), policy: burstCheck + "\nretries off\neject 5 {\nfor 500ms 1m\n}"}
	c := testkit.StartCaddyWith(t, testkit.EventsOption, sites(r)+"\nhttps://localhost {\nalive_status /status\n}")
	awaitUp(t, c, r)
	bad := r.upstreams[0]
	load := testkit.OpenLoop(t, 10*time.Millisecond, asks(c, http.MethodPost, r.path, "form"))
	load.Await(t, 20)
	bad.Answer(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusGatewayTimeout)
		return true
	})
	// it stays ejected until a trial goes well
	testkit.Eventually(t, testkit.Patience, "it is ejected", func() bool { return c.One(bad.Addr).EjectedUntil != nil })
	wantEjected(t, c, bad)

	testkit.Eventually(t, testkit.Patience, "it is ejected for the second time", func() bool { return len(ejections(bad)) == 2 })
	before := bad.History().Requests
	testkit.Stays(t, 200*time.Millisecond, "it gets nothing meanwhile", func() bool { return bad.History().Requests == before })
	for i, e := range ejections(bad) {
		lasts, _ := time.ParseDuration(e["duration"].(string))
		if want := time.Duration(i+1) * 500 * time.Millisecond; e["in_a_row"] != i+1 || lasts > want || lasts < want-250*time.Millisecond {
			t.Errorf("the ejection %d is %v, want one of %s", i+1, e, want)
		}
		if text := e["reason"].(string); !strings.Contains(text, "status 504") {
			t.Errorf("the reason of ejection %d is %q, want one with the status", i+1, text)
		}
	}
	bad.Answer(nil)
	testkit.Eventually(t, testkit.Patience, "it is back", func() bool {
		row := c.One(bad.Addr)
		return row.EjectedUntil == nil && row.Serving && row.Status == "up"
	})
	back := time.Now()
	testkit.Eventually(t, testkit.Patience, "that is logged", func() bool { return len(c.Lines("upstream is no longer ejected")) == 1 })
	load.Await(t, 60)
	sent := load.Stop()
	for _, f := range failures(sent) {
		if f.Began.After(back) {
			t.Errorf("failed after it was back: %v", f)
		}
	}
	if n := rounds(failures(sent)); n > 5+1+2 {
		t.Errorf("%d requests failed one after the other, want at most 5 and one for each trial", n)
	}
	testkit.Settles(t, "all serve", c.Client(), c.URL()+"/"+r.path, map[string]int{"a": 3, "b": 3, "c": 3})
	c.WantMetrics("at the end", map[string]float64{
		`ejections_total{pool="shop",upstream="` + bad.Addr + `"}`: 2, `pool_upstreams{pool="shop",state="ejected"}`: 0,
		`pool_upstreams{pool="shop",state="up"}`: 3,
	})
	if n := len(c.Lines("upstream is down")); n != 0 {
		t.Errorf("%d upstreams went down, but all checks pass", n)
	}
}

// ejections returns the data of the events of an upstream that say that it is ejected.
func ejections(b *testkit.Backend) (all []map[string]any) {
	for _, e := range testkit.RecordedEvents() {
		if e.Name() == "ejected" && e.Data["upstream"] == b.Addr {
			all = append(all, e.Data)
		}
	}
	return all
}

// wantEjected fails the test unless the ejection of an upstream of the pool shop is shown.
func wantEjected(t *testing.T, c *testkit.Caddy, bad *testkit.Backend) {
	t.Helper()
	if row := c.One(bad.Addr); row.Serving || row.Status != "up" || !strings.Contains(row.Why, "eject") {
		t.Errorf("the list has %+v, want that it is ejected, up, and does not serve", row)
	}
	out, _, err := testkit.Command(t.Context(), c.Admin, "status", "--not-serving")
	if err != nil || !strings.Contains(out, "ejected (") || !strings.Contains(out, bad.Addr) {
		t.Errorf("the command prints %q, error %v; want that it is ejected", out, err)
	}
	secure := c.ClientOf(1)
	testkit.Eventually(t, testkit.Patience, "the page has it", func() bool {
		page := testkit.AskHost(secure, c.SecureURL()+"/status", "", http.Header{"Accept": {"text/html"}})
		return strings.Contains(page.Body, "1 ejected; 2 of 3 upstreams serve") && strings.Contains(page.Body, bad.Addr)
	})
	c.WantMetrics("while it is ejected", map[string]float64{
		`pool_upstreams{pool="shop",state="ejected"}`: 1, `pool_upstreams{pool="shop",state="up"}`: 2,
	})
	if n := metric(c, "ejections_total", "pool", "shop", "upstream", bad.Addr); n < 1 {
		t.Errorf("the metrics count %v ejections, want at least 1", n)
	}
	if n := accusations(c, "shop", bad.Addr, "outcome"); n < 5 {
		t.Errorf("the metrics count %v accusations, want at least 5", n)
	}
	testkit.Eventually(t, testkit.Patience, "it is logged, and there is an event", func() bool {
		logged := slices.ContainsFunc(c.Lines("upstream is ejected"), func(l testkit.LogLine) bool {
			return l.Upstream == bad.Addr && l.Level == "warn" && strings.Contains(l.Reason, "requests in a row failed")
		})
		return logged && len(ejections(bad)) > 0
	})
}

// At most a share of a group is ejected, however many of it fail, and none while they all do:
// then the trouble is not theirs.
func TestEjection_SparesTheGroup(t *testing.T) {
	single := route{path: "single", upstreams: testkit.StartBackends(t, "a")}
	all := route{path: "all", upstreams: three(t)}
	most := route{path: "most", upstreams: testkit.StartBackends(t, "a", "b", "c", "d", "e", "f", "g", "h", "i", "j")}
	routes := []route{single, all, most}
	for i := range routes {
		routes[i].policy = burstCheck + "\nretries off\neject 3"
	}
	c := startRoutes(t, "", routes...)
	together(t, routes, routePath, func(t *testing.T, r route) {
		c := c.For(t)
		bad := r.upstreams
		if r.path == "most" {
			bad = bad[:2] // more would be common trouble
		}
		for _, b := range bad {
			b.Set(testkit.Shallow)
		}
		load := testkit.ClosedLoop(t, 2, asks(c, http.MethodGet, r.path, ""))
		load.Await(t, 300)
		if r.path == "most" {
			testkit.Eventually(t, testkit.Patience, "both are ejected", func() bool {
				return rowOf(c, r.path, bad[0].Addr).EjectedUntil != nil && rowOf(c, r.path, bad[1].Addr).EjectedUntil != nil
			})
			load.Stop()
			return
		}
		load.Stop()
		ejected := 0
		for _, b := range bad {
			if rowOf(c, r.path, b.Addr).EjectedUntil != nil {
				ejected++
			}
		}
		if ejected > 1 || r.path == "single" && ejected > 0 {
			t.Errorf("%d of %d are ejected", ejected, len(bad))
		}
	})
}
