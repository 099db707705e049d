// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"encoding/json"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/page"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// newestListing returns the listing that was built last, nil if there is none.
func newestListing() *Listing {
	listings.mu.Lock()
	defer listings.mu.Unlock()
	return listings.newest
}

// However many read at a time, the list is built and rendered once a second. For one
// upstream it is not built at all.
func TestListing_OneBuildForAllViewers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "uuu")
		answering(t, p.registry)
		for range 10 {
			List(Filter{Upstream: address(0)})
			List(Filter{Brief: true})
		}
		if newestListing() != nil {
			t.Error("a listing was built for one upstream, or for metrics")
		}
		var before *Listing
		for second := range 3 {
			var mu sync.Mutex // guards what follows
			built, texts := make(map[*Listing]bool), make(map[*byte]bool)
			var viewers sync.WaitGroup
			for range 50 {
				for _, render := range []func(*Listing) ([]byte, error){plainPage, (*Listing).JSON, (*Listing).PoolsJSON} {
					viewers.Go(func() {
						l := CurrentListing()
						text, err := render(l)
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						defer mu.Unlock()
						built[l], texts[&text[0]] = true, true
					})
				}
				viewers.Go(func() {
					l := CurrentListing()
					if _, err := l.JSONOf(Filter{Pool: "shop"}); err != nil {
						t.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					built[l] = true
				})
			}
			viewers.Wait()
			if len(built) != 1 || built[before] || len(texts) != 3 {
				t.Errorf("second %d: %d listings and %d texts, want a new one, once as a page and once as JSON, and once its pools", second, len(built), len(texts))
			}
			for before = range built {
			}
			time.Sleep(listingLasts)
		}
	})
}

// A listing that took long to build and to render serves for longer.
func TestListing_LastsForWhatItCosts(t *testing.T) {
	for _, tc := range []struct{ took, lasts time.Duration }{
		{0, listingLasts},
		{listingLasts / 10, listingLasts},
		{400 * time.Millisecond, 2 * time.Second},
		{time.Minute, maxListing},
	} {
		l := &Listing{at: time.Now()}
		l.took.Store(int64(tc.took))
		for _, age := range []time.Duration{0, tc.lasts - 1, tc.lasts} {
			now := &Listing{at: l.at.Add(age)}
			if got, want := l.servesFor(now), age < tc.lasts; got != want {
				t.Errorf("one that took %s serves %s later: %v, want %v", tc.took, age, got, want)
			}
		}
	}
}

// What an operator changes shows at once, however new the list is.
func TestListing_ShowsAChangeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "uuu")
		answering(t, p.registry)
		forms := map[string]func(*Listing) ([]byte, error){
			"list": (*Listing).JSON,
			"pool": func(l *Listing) ([]byte, error) { return l.JSONOf(Filter{Pool: "shop"}) },
			"page": plainPage,

			"pools":    (*Listing).PoolsJSON,
			"the pool": func(l *Listing) ([]byte, error) { return l.PoolJSON("shop") },
		}
		read := func(form string) string {
			text, err := forms[form](CurrentListing())
			if err != nil {
				t.Error(err)
			}
			return string(text)
		}
		for i, m := range []settings.Mode{settings.Drain, settings.Maintenance, settings.Ready} {
			for form := range forms {
				read(form) // it is as new as can be
			}
			p.set(0, settings.Change{Mode: new(m)})
			for _, form := range []string{"list", "pool"} {
				var rows []view.Upstream
				if err := json.Unmarshal([]byte(read(form)), &rows); err != nil || len(rows) != 3 || rows[0].Mode != string(m) {
					t.Errorf("change %d: %s shows %+v, %v", i, form, rows, err)
				}
			}
			states := map[settings.Mode]string{settings.Drain: "draining", settings.Maintenance: "maintenance", settings.Ready: "up"}
			for _, form := range []string{"pools", "the pool"} {
				var pools []view.Pool
				if err := json.Unmarshal([]byte(read(form)), &pools); err != nil || len(pools) != 1 || pools[0].Upstreams != 3 || pools[0].States[states[m]] == 0 {
					t.Errorf("change %d: %s shows %+v, %v", i, form, pools, err)
				}
			}
			if page := read("page"); !strings.Contains(page, "<b>"+states[m]+"</b>") {
				t.Errorf("change %d: the page does not show %s", i, m)
			}
		}
	})
}

// Another config has another list at once, and the one of a config that ended is freed,
// also if it was being built at the end.
func TestListing_FollowsTheConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newPolicy(t, "uuu")
		answering(t, one.registry)
		CurrentListing()
		two := newPolicy(t, "uu")
		answering(t, two.registry)
		if rows := CurrentListing().rows; len(rows) != 2 {
			t.Errorf("the list is %+v", rows)
		}

		two.set(0, settings.Change{Mode: new(settings.Mode(settings.Drain))}) // so that the next read builds one
		two.registry.mu.Lock()                                                // and does not get to its end
		looked := make(chan *Listing)
		go func() { looked <- CurrentListing() }()
		for building := false; !building; runtime.Gosched() {
			listings.mu.Lock()
			building = listings.building != nil
			listings.mu.Unlock()
		}
		two.registry.mu.Unlock()
		two.end(t)
		<-looked
		if l := newestListing(); l != nil && l.registry == two.registry {
			t.Error("the list of a config that ended is kept")
		}
	})
}

// The list as it is shared is what encoding the rows gives, and a pool is the part of it
// that it was.
func TestListing_IsTheRowsAsJSON(t *testing.T) {
	rows := []view.Upstream{
		{Pool: "a<b>", Upstream: "x:80", Checks: []view.Check{{Check: "tcp", Recent: []float64{1, -2}}}},
		{Pool: "b", Upstream: "y:80"},
		{Upstream: "z:80", Gone: true},
		{Pool: "b", Upstream: "w:80", Gone: true},
	}
	want := func(rows []view.Upstream) string {
		text, err := json.Marshal(rows)
		if err != nil {
			t.Fatal(err)
		}
		return string(text) + "\n"
	}
	for n := range len(rows) + 1 {
		got, err := (&Listing{rows: rows[:n]}).JSON()
		if err != nil || string(got) != want(rows[:n]) {
			t.Errorf("%d rows: got %s, %v, want %s", n, got, err, want(rows[:n]))
		}
	}
	l := &Listing{rows: rows}
	for pool, part := range map[string][]view.Upstream{"a<b>": rows[:1], "b": {rows[1], rows[3]}, "c": {}} {
		got, err := l.JSONOf(Filter{Pool: pool})
		if err != nil || string(got) != want(part) {
			t.Errorf("pool %s: got %s, %v, want %s", pool, got, err, want(part))
		}
	}
}

// The pools are rendered as encoding them gives, and one pool is the part of it that it was.
func TestListing_IsThePoolsAsJSON(t *testing.T) {
	l := &Listing{pools: []view.Pool{view.NewPool("a<b>"), view.NewPool("b")}}
	l.pools[1].Queue = &view.Queue{Waiting: 3, Limit: 1000}
	want := func(pools []view.Pool) string {
		text, err := json.Marshal(pools)
		if err != nil {
			t.Fatal(err)
		}
		return string(text) + "\n"
	}
	if got, err := l.PoolsJSON(); err != nil || string(got) != want(l.pools) {
		t.Errorf("got %s, %v, want %s", got, err, want(l.pools))
	}
	for name, part := range map[string][]view.Pool{"a<b>": l.pools[:1], "b": l.pools[1:], "c": {}} {
		if got, err := l.PoolJSON(name); err != nil || string(got) != want(part) {
			t.Errorf("pool %s: got %s, %v, want %s", name, got, err, want(part))
		}
	}
}

// The page of each filter is another one, and is rendered once.
func TestListing_HasAPageOfEachFilter(t *testing.T) {
	rows := []view.Upstream{{Pool: "shop", Upstream: "a:80", Status: "down"}, {Pool: "shop", Upstream: "b:80", Status: "up", Serving: true}}
	l := &Listing{rows: rows, pools: view.Pools(rows)}
	pages := make(map[*Page]bool)
	for range 2 {
		for _, f := range []page.Filter{{}, {State: "down"}, {State: "up"}, {Text: "up"}, {Pool: "shop"}} {
			p, err := l.Page(page.Site{}, f)
			if err != nil {
				t.Fatal(err)
			}
			pages[p] = true
			for _, row := range rows {
				if got, want := strings.Contains(string(p.Plain), `data-key="`+row.Upstream+`"`), f.Text == "" && f.State == "" || f.State == row.Status || f.Text == row.Status; got != want {
					t.Errorf("%+v: shows %s: %v, want %v", f, row.Upstream, got, want)
				}
			}
		}
	}
	if len(pages) != 5 {
		t.Errorf("%d pages, want 5", len(pages))
	}
	for i := range 2 * maxPages { // clients choose the filters
		if _, err := l.Page(page.Site{}, page.Filter{Text: strings.Repeat("x", i+1)}); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.pages) != maxPages {
		t.Errorf("%d pages are kept, want %d", len(l.pages), maxPages)
	}
}

// A config that runs measures what its requests do, and the lists show it.
func TestListing_ShowsTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, settings.NewSet())
		p := newPolicy(t, "uu", in(r), idle)
		r.Start()
		answering(t, r)
		defer r.Close()
		synctest.Wait() // the first sample
		p.picks(testkit.Get, 100)
		p.counters.CountAccusation(address(1), "connect")
		time.Sleep(2 * view.TrendInterval)
		synctest.Wait()
		l := CurrentListing()
		for i, want := range []view.Upstream{{RequestsPerSecond: 5}, {RequestsPerSecond: 5, RecentFailures: 1}} {
			if got := l.rows[i]; got.RequestsPerSecond != want.RequestsPerSecond || got.RecentFailures != want.RecentFailures {
				t.Errorf("%s: %v requests a second and %d failures, want %v and %d", got.Upstream, got.RequestsPerSecond, got.RecentFailures, want.RequestsPerSecond, want.RecentFailures)
			}
		}
		if got := l.pools[0]; got.RequestsPerSecond != 10 || got.RecentFailures != 1 || got.FailureShare != .01 || len(got.Trend) != 2 || got.Trend[0].Requests != 20 {
			t.Errorf("the pool is %+v", got)
		}
	})
}

// plainPage returns the page without a filter.
func plainPage(l *Listing) ([]byte, error) {
	p, err := l.Page(page.Site{}, page.Filter{})
	if err != nil {
		return nil, err
	}
	return p.Plain, nil
}
