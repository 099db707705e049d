// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// answering has the app of a policy answer operators until the test ends.
func answering(t *testing.T, p *policy) {
	t.Helper()
	running.Lock()
	running.apps = append(running.apps, p.app)
	running.Unlock()
	t.Cleanup(func() {
		running.Lock()
		running.apps = slices.DeleteFunc(running.apps, func(a *App) bool { return a == p.app })
		running.Unlock()
		listings.drop(p.app)
	})
}

// builds returns how many listings were built so far.
func builds() int {
	listings.mu.Lock()
	defer listings.mu.Unlock()
	return listings.builds
}

// look asks for the page, the list, or a part of the list, and returns the answer.
func look(t *testing.T, method, url, accept string) string {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, url, nil)
	r.Header.Set("Accept", accept)
	var err error
	if strings.HasPrefix(url, "/alive/") {
		err = Admin{}.upstreams(w, r)
	} else {
		err = Status{}.ServeHTTP(w, r, nil)
	}
	if err != nil || w.Code != http.StatusOK {
		t.Errorf("%s %s: %d, %v", method, url, w.Code, err)
	}
	return w.Body.String()
}

// However many look at a time, the list is built once a second; for HEAD, and for one
// upstream, it is not built at all.
func TestListing_OneBuildForAllViewers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "uuu", following(t))
		answering(t, p)
		before := builds()
		for range 10 {
			look(t, http.MethodHead, "/alive/upstreams", "")
			look(t, http.MethodHead, "/", "text/html")
			look(t, http.MethodHead, "/", "*/*")
			look(t, http.MethodGet, "/alive/upstreams?upstream="+p.members[0].address, "")
		}
		if n := builds() - before; n != 0 {
			t.Errorf("%d builds for HEAD and for one upstream", n)
		}
		for second := range 3 {
			var viewers sync.WaitGroup
			for range 50 {
				viewers.Go(func() { look(t, http.MethodGet, "/", "text/html") })
				viewers.Go(func() { look(t, http.MethodGet, "/", "*/*") })
				viewers.Go(func() { look(t, http.MethodGet, "/alive/upstreams", "") })
				viewers.Go(func() { look(t, http.MethodGet, "/alive/upstreams?pool=shop", "") })
			}
			viewers.Wait()
			if n := builds() - before; n != second+1 {
				t.Errorf("second %d: %d builds", second, n)
			}
			time.Sleep(listingLasts)
		}
	})
}

// What an operator changes shows at once, however new the list is.
func TestListing_ShowsAChangeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "uuu", following(t))
		answering(t, p)
		for i, m := range []settings.Mode{settings.Drain, settings.Maintenance, settings.Ready} {
			for url, accept := range map[string]string{"/alive/upstreams": "", "/alive/upstreams?pool=shop": "", "/": "text/html"} {
				look(t, http.MethodGet, url, accept) // it is as new as can be
			}
			p.set(0, settings.Change{Mode: new(m)})
			for _, url := range []string{"/alive/upstreams", "/alive/upstreams?pool=shop", "/"} {
				entries, err := parseEntries([]byte(look(t, http.MethodGet, url, "")))
				if err != nil || len(entries) != 3 || entries[0].Mode != string(m) {
					t.Errorf("change %d: %s shows %+v, %v", i, url, entries, err)
				}
			}
			if page := look(t, http.MethodGet, "/", "text/html"); m != settings.Ready && !strings.Contains(page, "<span>"+string(m)+"</span>") {
				t.Errorf("change %d: the page does not show %s", i, m)
			}
		}
	})
}

// Another config has another list at once, and the one of a config that ended is freed.
func TestListing_FollowsTheConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newPolicy(t, "uuu", following(t))
		answering(t, one)
		look(t, http.MethodGet, "/alive/upstreams", "")
		two := newPolicy(t, "uu", following(t))
		answering(t, two)
		entries, err := parseEntries([]byte(look(t, http.MethodGet, "/alive/upstreams", "")))
		if err != nil || len(entries) != 2 {
			t.Errorf("the list is %+v, %v", entries, err)
		}
		listings.drop(two.app)
		if listings.newest != nil {
			t.Error("the list of a config that ended is kept")
		}
	})
}

// The list as it is shared is what encoding the entries gives, and a pool is the part
// of it that it was.
func TestListing_IsTheEntriesAsJSON(t *testing.T) {
	entries := []view.Upstream{
		{Pool: "a<b>", Upstream: "x:80", Checks: []view.Check{{Check: "tcp", Recent: []float64{1, -2}}}},
		{Pool: "b", Upstream: "y:80"},
		{Upstream: "z:80", Gone: true},
		{Pool: "b", Upstream: "w:80", Gone: true},
	}
	for n := range len(entries) + 1 {
		l := &listing{entries: entries[:n]}
		list, err := l.jsonList()
		if err != nil {
			t.Fatal(err)
		}
		want, err := json.Marshal(entries[:n])
		if err != nil {
			t.Fatal(err)
		}
		if got := string(list); got != string(want)+"\n" {
			t.Errorf("%d entries: got %s, want %s", n, got, want)
		}
		for pool, members := range map[string][]view.Upstream{"a<b>": entries[:1], "b": {entries[1], entries[3]}, "c": {}} {
			if n < len(entries) {
				continue
			}
			part, err := l.jsonPool(pool)
			if err != nil {
				t.Fatal(err)
			}
			want, _ := json.Marshal(members)
			if got := string(part); got != string(want)+"\n" {
				t.Errorf("pool %s: got %s, want %s", pool, got, want)
			}
		}
	}
}

// A scrape does not copy what it does not show.
func TestMetrics_LeaveOutRecentResults(t *testing.T) {
	p := newPolicy(t, "ud", following(t))
	answering(t, p)
	for i, e := range overview(filter{brief: true}) {
		if e.Why != "" || len(e.Checks) != 1 || cap(e.Checks[0].Recent) != 0 || e.Status != map[int]string{0: "up", 1: "down"}[i] {
			t.Errorf("%d: %+v", i, e)
		}
	}
	if e := overview(filter{})[0]; e.Why == "" || len(e.Checks[0].Recent) != 1 {
		t.Errorf("not brief: %+v", e)
	}
}

// Bytes that are not UTF-8 are shown, and those that differ are told apart.
func TestValidText(t *testing.T) {
	for text, want := range map[string]string{
		"app:80": "app:80", "": "", `C:\x`: `C:\x`, "漢": "漢", "\ufffd": "\ufffd",
		"a\xff:80": `a\xff:80`, "\xfe\xff": `\xfe\xff`, "a\\\xff": `a\\\xff`, "\xe6\xbc": `\xe6\xbc`,
	} {
		if got := view.ValidText(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// So can those of a dynamic source be named and set.
func TestDynamicAddressesThatAreNotUTF8(t *testing.T) {
	p := newPolicy(t, "u", following(t))
	pool := reverseproxy.UpstreamPool{
		{Host: new(reverseproxy.Host), Dial: "\xff.invalid:80"}, {Host: new(reverseproxy.Host), Dial: "\xfe.invalid:80"},
	}
	p.snapshotOf(pool)
	for i, shown := range []string{`\xff.invalid:80`, `\xfe.invalid:80`} {
		if m := p.byAddress(shown); m == nil || m.address != shown || p.byAddress(pool[i].Dial) != nil {
			t.Fatalf("%s is %+v", shown, m)
		}
		p.app.operations.Change(shown, settings.Change{Mode: new(settings.Mode(settings.Drain))})
		if now := p.snapshotOf(pool); p.situation(now, pool).gets.weights[i] != 0 && i == 0 {
			t.Errorf("%s gets requests while it drains", shown)
		}
	}
	for _, e := range p.entries(filter{})[1:] {
		if !strings.HasPrefix(e.Upstream, `\xf`) || e.Mode != settings.Drain {
			t.Errorf("shown as %+v", e)
		}
	}
}
