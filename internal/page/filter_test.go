// SPDX-License-Identifier: Apache-2.0

package page

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// filterRows are those of two pools.
var filterRows = []view.Upstream{
	{Pool: "shop", Upstream: "a:80", Status: "up", Serving: true, Why: "gets requests"},
	{Pool: "shop", Upstream: "b:80", Status: "down", Why: "status 503", Checks: []view.Check{{Check: "http /ready", LastFailed: &view.Result{Reason: "Database gone"}}}},
	{Pool: "shop", Upstream: "c:80", Status: "down", Idle: true, Stale: true},
	{Pool: "blog", Upstream: "a:80", Status: "up", Serving: true, Suspect: true},
	{Pool: "blog", Upstream: "d:80", Mode: "maintenance"},
	{Pool: "blog", Upstream: "e:80", Status: "up", Group: 1, Backup: true},
	{Pool: "blog", Upstream: "z:80", Mode: "drain", Gone: true},
}

// The filters of the URL apply together, and the page says what it shows, also if that is
// nothing.
func TestFilter_OfTheURL(t *testing.T) {
	for query, want := range map[string]struct {
		rows []string
		said string
	}{
		"":                          {[]string{"b:80", "a:80", "c:80", "a:80", "d:80", "e:80", "blog\nz:80"}, ""},
		"q=shop":                    {[]string{"b:80", "a:80", "c:80"}, "3 of 7: upstreams with “shop”. Show all"},
		"q=A:8":                     {[]string{"a:80", "a:80"}, "2 of 7: upstreams with “A:8”. Show all"},
		"q=+503+":                   {[]string{"b:80"}, "1 of 7: upstreams with “503”. Show all"},
		"q=database":                {[]string{"b:80"}, "1 of 7: upstreams with “database”. Show all"},
		"q=/ready":                  {[]string{"b:80"}, "1 of 7: upstreams with “/ready”. Show all"},
		"state=down":                {[]string{"b:80", "c:80"}, "2 of 7: upstreams that are down. Show all"},
		"state=trouble":             {[]string{"b:80", "a:80", "d:80", "blog\nz:80"}, "4 of 7: upstreams that need a look. Show all"},
		"pool=blog":                 {[]string{"a:80", "d:80", "e:80"}, "3 of 7: upstreams in the pool “blog”. Show all"},
		"pool=blog&state=up":        {[]string{"e:80"}, "1 of 7: upstreams that are up in the pool “blog”. Show all"},
		"pool=blog&state=down":      {nil, "Nothing matches: there are no upstreams that are down in the pool “blog”. Show all"},
		"pool=none":                 {nil, "Nothing matches: there are no upstreams in the pool “none”. Show all"},
		"pool=shop&q=x&state=down":  {nil, "Nothing matches: there are no upstreams that are down in the pool “shop” with “x”. Show all"},
		"state=nonsense":            {[]string{"b:80", "a:80", "c:80", "a:80", "d:80", "e:80", "blog\nz:80"}, ""},
		"q=%3Cscript%3Ealert(1)%22": {nil, "Nothing matches: there are no upstreams with “&lt;script&gt;alert(1)&#34;”. Show all"},
	} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		f := ParseFilter(values)
		html := filteredPage(t, f, filterRows, view.Pools(filterRows))
		got := keysOf(html)
		slices.Sort(got)
		slices.Sort(want.rows)
		if !slices.Equal(got, want.rows) {
			t.Errorf("%s: got %q, want %q", query, got, want.rows)
		}
		said := ""
		if strings.Contains(html, `class="filter"`) {
			said = textOf(between(t, html, `<p class="filter" data-key="filter" role="status">`, "</p>"))
		}
		if said != want.said {
			t.Errorf("%s: the page says %q, want %q", query, said, want.said)
		}
		if again := ParseFilter(mustParse(t, f.URL())); again != f {
			t.Errorf("%s: the filter of its own URL is %+v, want %+v", query, again, f)
		}
		for _, name := range []string{f.Pool, f.State} {
			if name != "" && !strings.Contains(html, " selected>"+map[bool]string{true: "needs a look", false: name}[name == Trouble]+"</option>") {
				t.Errorf("%s: %s is not selected", query, name)
			}
		}
	}
}

// mustParse returns the query of a relative URL.
func mustParse(t *testing.T, text string) url.Values {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query()
}

// many returns the rows of a pool of which the first ones are down.
func many(pool string, down, up int) (rows []view.Upstream) {
	for i := range down + up {
		row := view.Upstream{Pool: pool, Upstream: fmt.Sprintf("%s-%04d:80", pool, i), Status: "down"}
		if i >= down {
			row.Status, row.Serving, row.EffectiveWeight = "up", true, 1
		}
		rows = append(rows, row)
	}
	return rows
}

// What is wrong gets the room that there is, of all pools; what is well is summed up, and the
// page says where the rest is. A filter makes room for more.
func TestRender_FitsOnAScreen(t *testing.T) {
	for name, test := range map[string]struct {
		rows   []view.Upstream
		filter Filter
		shown  int
		said   []string
	}{
		"one pool":                      {many("a", 3, 6), Filter{}, 9, nil},
		"well, and large":               {many("a", 0, 200), Filter{}, 0, []string{`and 200 up</p><p class="more" data-key="all"><a href="?pool=a">Show the whole pool</a></p>`}},
		"a few are down":                {many("a", 3, 197), Filter{}, 3, []string{"and 197 up</p>"}},
		"many are down":                 {many("a", 46, 154), Filter{}, 24, []string{"and 176: 22 down, 154 up</p>"}},
		"each pool has a few":           {append(many("a", 46, 0), append(many("b", 46, 0), many("c", 46, 1)...)...), Filter{}, 40, []string{"and 22 down</p>", "and 35 down</p>", "and 42: 41 down, 1 up</p>"}},
		"a small pool fits":             {append(many("a", 30, 170), many("b", 0, 9)...), Filter{}, 33, []string{"and 176: 6 down, 170 up</p>"}},
		"trouble comes first":           {append(many("a", 10, 25), many("b", 10, 0)...), Filter{}, 20, []string{"and 25 up</p>"}},
		"the whole pool":                {many("a", 46, 154), Filter{Pool: "a"}, 200, nil},
		"a state":                       {many("a", 46, 154), Filter{State: "up"}, 154, nil},
		"more than fits at all":         {many("a", 0, 2000), Filter{Pool: "a"}, 1000, []string{"and 1000 up</p>"}},
		"more trouble than fits at all": {many("a", 2000, 0), Filter{Pool: "a"}, 1000, []string{"and 1000 down</p>"}},
	} {
		html := filteredPage(t, test.filter, test.rows, view.Pools(test.rows))
		if n := len(keysOf(html)); n != test.shown {
			t.Errorf("%s: %d rows, want %d", name, n, test.shown)
		}
		for _, want := range test.said {
			if !strings.Contains(html, want) {
				t.Errorf("%s: the page lacks %q", name, want)
			}
		}
		if test.said == nil && strings.Contains(html, `class="more"`) {
			t.Errorf("%s: something is left out", name)
		}
	}
}

// Of many pools the first ones are shown, and the rest is summed up.
func TestRender_ManyPools(t *testing.T) {
	var rows []view.Upstream
	for i := range 100 {
		rows = append(rows, many(fmt.Sprintf("p%03d", i), i/99, 2)...)
	}
	html := rendered(t, rows...)
	if n := strings.Count(html, "<section "); n != poolsOfOverview {
		t.Errorf("%d pools, want %d", n, poolsOfOverview)
	}
	if keys := keysOf(html); len(keys) == 0 || keys[0] != "p099-0000:80" {
		t.Errorf("the first is not the one that is down: %q", keys)
	}
	if want := `and 70 more pools, in which 140 of 140 upstreams serve <a href="?rows=all">Show all</a>`; !strings.Contains(html, want) {
		t.Errorf("the page lacks %q", want)
	}
	if n := strings.Count(filteredPage(t, Filter{All: true}, rows, view.Pools(rows)), "<section "); n != 100 {
		t.Errorf("with all, %d pools, want 100", n)
	}
}

// A pool without a name has those of all its upstreams. The page shows the beginning, and finds the
// pool by a short key, which is also that of the whole name.
func TestRender_LongNamesOfPools(t *testing.T) {
	name := strings.Repeat("127.0.0.1:8080 ", 5000)
	rows := append(many("a", 1, 100), many("b", 1, 100)...)
	for i := range rows {
		rows[i].Pool = name + rows[i].Pool
	}
	html := rendered(t, rows...)
	if len(html) > 100<<10 || strings.Contains(html, strings.Repeat("127.0.0.1:8080 ", 20)) {
		t.Errorf("the page has %d bytes", len(html))
	}
	f := ParseFilter(url.Values{"pool": {name + "b"}})
	html = filteredPage(t, f, rows, view.Pools(rows))
	if keys := keysOf(html); len(keys) != 101 || keys[0] != "b-0000:80" {
		t.Errorf("%d rows", len(keys))
	}
	if again := ParseFilter(mustParse(t, f.URL())); again != f || len(f.Pool) > maxKey {
		t.Errorf("the filter of its own URL is %+v, want %+v", again, f)
	}
}

// A pool without a name is called as its upstreams are. A text that one of them has means that one,
// and a text of the heading alone means all.
func TestFilter_OfAPoolWithoutAName(t *testing.T) {
	const pool = "app1:80 app2:80 dynamic x"
	rows := []view.Upstream{
		{Pool: pool, Upstream: "app1:80", Status: "up", Serving: true},
		{Pool: pool, Upstream: "app2:80", Status: "up", Serving: true},
	}
	for text, want := range map[string][]string{
		"app2": {"app2:80"}, "app": {"app1:80", "app2:80"}, "app1:80 app2:80": {"app1:80", "app2:80"}, "Dynamic": {"app1:80", "app2:80"}, "app3": nil,
	} {
		if got := keysOf(filteredPage(t, Filter{Text: text}, rows, view.Pools(rows))); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// The page is valid UTF-8 whatever a URL has.
func TestFilter_IsValidText(t *testing.T) {
	f := ParseFilter(url.Values{"q": {"a\xff"}, "pool": {"\xfe" + strings.Repeat("b", maxKey)}, "state": {"\xff"}})
	if html := filteredPage(t, f, filterRows, nil); !utf8.ValidString(html) || !utf8.ValidString(f.URL()) {
		t.Errorf("%+v makes a page that is not valid", f)
	}
}

// A browser takes the text of an option without its spaces, so its value is an attribute.
func TestFilter_NamesOfPoolsKeepTheirSpaces(t *testing.T) {
	rows := append(many("a  b", 1, 0), many(" c", 1, 0)...)
	html := filteredPage(t, Filter{Pool: "a  b"}, rows, view.Pools(rows))
	for _, want := range []string{`<option value="a  b" selected>a  b</option>`, `<option value=" c"> c</option>`} {
		if !strings.Contains(html, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
}

// A link to all of it is there only where that page shows more.
func TestRender_LinksToMore(t *testing.T) {
	var rows []view.Upstream
	for i := range poolsOfFilter + 1 {
		rows = append(rows, many(fmt.Sprintf("p%04d", i), 1, 0)...)
	}
	for f, want := range map[Filter]bool{{}: true, {All: true}: false, {State: "down"}: false} {
		html := filteredPage(t, f, rows, view.Pools(rows))
		if got := strings.Contains(html, `<a href="?rows=all">`); got != want || !strings.Contains(html, " more pool") {
			t.Errorf("%+v: the link is there: %v, want %v", f, got, want)
		}
	}
}
