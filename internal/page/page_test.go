// SPDX-License-Identifier: Apache-2.0

package page

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// at is when the rows of tests are shown.
var at = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// rendered returns the page that shows rows.
func rendered(t *testing.T, rows ...view.Upstream) string {
	t.Helper()
	return filteredPage(t, Filter{}, rows, view.Pools(rows))
}

// filteredPage returns the page that shows what a filter wants.
func filteredPage(t *testing.T, f Filter, rows []view.Upstream, pools []view.Pool) string {
	t.Helper()
	site := Site{Host: "edge-1", Caddy: "v2.11.9", Module: "v1.2.3"}
	html, err := Render(Data{Site: site, Rows: rows, Pools: pools, At: at}, f)
	if err != nil {
		t.Fatal(err)
	}
	return string(html)
}

// tags matches what is not text.
var tags = regexp.MustCompile(`<[^>]*>`)

// textOf returns the text of a part of a page.
func textOf(part string) string {
	return strings.Join(strings.Fields(tags.ReplaceAllString(part, " ")), " ")
}

// rowOf returns the row of an upstream.
func rowOf(t *testing.T, html, key string) string {
	t.Helper()
	return between(t, html, `role="row" data-key="`+key+`">`, "</tr>")
}

// keysOf returns the keys of all rows, in their order.
func keysOf(html string) (keys []string) {
	for _, part := range strings.Split(html, `role="row" data-key="`)[1:] {
		key, _, _ := strings.Cut(part, `"`)
		keys = append(keys, key)
	}
	return keys
}

// between returns what is between the first begin and the next end.
func between(t *testing.T, text, begin, end string) string {
	t.Helper()
	_, rest, found := strings.Cut(text, begin)
	inside, _, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("there is no %s...%s", begin, end)
	}
	return inside
}

// Names and reasons can be anything; on the page they are text.
func TestRender_HostileTextStaysText(t *testing.T) {
	const hostile = `</script><script>alert(1)</script>"'><img src=x onerror=alert(1)>`
	html := rendered(t, view.Upstream{
		Pool: "pool " + hostile, Upstream: "upstream " + hostile, Status: "down", Mode: "ready", Why: "why " + hostile, FailOpen: true,
		Checks: []view.Check{{Check: "check " + hostile, Status: "down", LastFailed: &view.Result{Reason: "reason " + hostile}, Recent: []float64{1, -2}}},
	})
	if strings.Contains(html, "<img") || strings.Contains(html, "<script>alert") {
		t.Errorf("it is not escaped:\n%s", html)
	}
	if n := strings.Count(html, "</script>"); n != 1 {
		t.Errorf("%d scripts end, want the one of the page", n)
	}
	for _, name := range []string{"pool", "upstream", "why", "check"} {
		if !strings.Contains(html, "<bdi>"+name+" &lt;/script&gt;") {
			t.Errorf("%s is not isolated", name)
		}
	}
}

// The policy names the style and the script as they are in the page.
func TestPolicy_AllowsStyleAndScriptOfThePage(t *testing.T) {
	html := rendered(t)
	for directive, source := range map[string]string{
		"style-src":  between(t, html, "<style>", "</style>"),
		"script-src": between(t, html, "<script>", "</script>"),
	} {
		if want := fmt.Sprintf("%s '%s';", directive, sourceHash(source)); !strings.Contains(Policy, want) {
			t.Errorf("the policy %q lacks %q", Policy, want)
		}
	}
}

// The title and the first line begin with what is wrong, the icon has its colour, and each pool
// that has an alarm shows it, the worst first.
func TestRender_ShowsSummaryAndAlarms(t *testing.T) {
	html := rendered(t,
		view.Upstream{Pool: "a", Upstream: "a:80", Status: "up", Serving: true, EffectiveWeight: 1},
		view.Upstream{Pool: "b", Upstream: "b:80", Status: "down"},
		view.Upstream{Pool: "c", Upstream: "c:80", Status: "down", EffectiveWeight: 1, FailOpen: true},
	)
	const summary = "No upstream serves in 1 of 3 pools. Fail-open in 1 of 3 pools: 2 down; 1 of 3 upstreams serve"
	for _, want := range []string{
		"<title>" + summary + " · edge-1</title>", `<p id="summary" role="status">` + summary + "</p>", "Upstreams of <bdi>edge-1</bdi>", "Caddy v2.11.9, caddy-alive v1.2.3",
		`<time id="at" datetime="2030-01-02T03:04:05Z">2030-01-02 03:04:05 UTC</time>`, "fill=%27%23cf222e",
	} {
		if !strings.Contains(html, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for pool, want := range map[string]string{
		"a": "",
		"b": "No upstream serves, and none gets requests: they are answered 503.",
		"c": "Fail-open: no upstream serves, so requests go to upstreams whatever their health.",
	} {
		alarm := ""
		if part := between(t, html, `<section data-key="`+pool+`">`, "</section>"); strings.Contains(part, "role=\"alert\"") {
			alarm = between(t, part, `<p class="alarm" role="alert" data-key="alarm">`, "</p>")
		}
		if alarm != want {
			t.Errorf("pool %s: alarm %q, want %q", pool, alarm, want)
		}
	}
	if keys := keysOf(html); !slices.Equal(keys, []string{"b:80", "c:80", "a:80"}) {
		t.Errorf("the order is %q", keys)
	}
	if totals := textOf(between(t, html, `aria-label="States">`, "</nav>")); totals != "✖ 2 down ● 1 up" {
		t.Errorf("the totals are %q", totals)
	}
	well := view.Upstream{Pool: "a", Upstream: "a:80", Status: "up", Serving: true}
	for _, icon := range []struct {
		colour string
		row    view.Upstream
	}{
		{"2da44e", view.Upstream{Status: "up", Serving: true}},
		{"2da44e", view.Upstream{Status: "up", Mode: "drain"}},
		{"d4a72c", view.Upstream{Status: "up", Serving: true, Suspect: true}},
		{"d4a72c", view.Upstream{Status: "unknown"}},
		{"cf222e", view.Upstream{Status: "down"}},
	} {
		icon.row.Pool, icon.row.Upstream = "a", "b:80"
		if html := rendered(t, well, icon.row); !strings.Contains(html, "fill=%27%23"+icon.colour) {
			t.Errorf("%+v: the icon is not %s", icon.row, icon.colour)
		}
	}
}

// Without upstreams the page says so.
func TestRender_SaysThatThereAreNoUpstreams(t *testing.T) {
	if html := rendered(t); !strings.Contains(html, `<main id="pools"><p data-key="empty">No reverse_proxy uses lb_policy alive.</p></main>`) {
		t.Errorf("the page is:\n%s", html)
	}
}

// A row says the state by a word and a sign, the share, what is in flight and fails, how long
// checks take, since when the state holds, and why.
func TestRender_FactsOfARow(t *testing.T) {
	since, until, before := at.Add(-3*time.Hour), at.Add(90*time.Second), at.Add(-time.Second)
	down, none := 3, 0
	slow := slices.Repeat([]float64{1}, 20)
	slow[3], slow[4] = 9, -1200
	failed := &view.Result{At: at.Add(-time.Minute), Reason: "timeout"}
	rows := []view.Upstream{
		{
			Pool: "a", Upstream: "a:80", Status: "up", Mode: "ready", Weight: 2, ConfiguredWeight: 2, EffectiveWeight: 2, Serving: true, Group: 1, Backup: true, Requests: 3, Limit: 4, Bound: 12, Since: &since, RequestsPerSecond: 12.5, Why: "w", DownAt: &down, Members: 12,
			Checks: []view.Check{{Check: "tcp", Status: "up", Recent: slow, Last: &view.Result{DurationMS: 1.234}, LastFailed: failed}, {Check: "http /", Status: "unknown"}},
		},
		{Pool: "a", Upstream: "b:80", Status: "up", Mode: "ready", Weight: 1, ConfiguredWeight: 3, EffectiveWeight: 1, Serving: true, RecentFailures: 7, DownAt: &none, Members: 12},
		{Pool: "a", Upstream: "c:80", Status: "unknown", Mode: "drain", Weight: 1, ConfiguredWeight: 1},
		{Pool: "a", Upstream: "d:80", Status: "unknown", Mode: "maintenance", Weight: 1, ConfiguredWeight: 1},
		{Pool: "a", Upstream: "e:80", Status: "up", Mode: "ready", Weight: 1, ConfiguredWeight: 1, Serving: true, Suspect: true},
		{Pool: "a", Upstream: "f:80", Status: "up", Mode: "ready", Weight: 1, ConfiguredWeight: 1, EjectedUntil: &until},
		{Pool: "a", Upstream: "g:80", Status: "up", Mode: "ready", Weight: 1, ConfiguredWeight: 1, EjectedUntil: &before},
		{Pool: "a", Upstream: "h:80", Status: "down", Mode: "ready", Weight: 1, ConfiguredWeight: 1, Checks: []view.Check{{Check: "tcp", Status: "down", Recent: []float64{-2}, LastFailed: failed}}},
		{Pool: "a", Upstream: "i:80", Status: "unknown", Mode: "ready", Weight: 1, ConfiguredWeight: 1},
	}
	html := rendered(t, rows...)
	for key, want := range map[string]string{
		"a:80": "● up a:80 backup weight 2 down at 3 of 12 members 66.7 % 3 of 4 12.5 – tcp 1.23 ms p50 1, p95 9 ms 20 results, 1 failed http / no result 0 results, 0 failed 3 h ago w 12 requests in the last minute of clients bound to it last failure of tcp, 2030-01-02 03:03:05 UTC : timeout",
		"b:80": "● up b:80 weight 1, in the config 3 33.3 % 0 0 7 –",
		"c:80": "◐ draining unknown c:80 0 % 0 0 – –",
		"d:80": "‖ maintenance d:80 0 % 0 0 – –",
		"e:80": "▲ suspect e:80 0 % 0 0 – –",
		"f:80": "⏏ ejected for 1 min f:80 0 % 0 0 – –",
		"g:80": "⏏ ejected on trial g:80 0 % 0 0 – –",
		"h:80": "✖ down h:80 0 % 0 0 – tcp no result 1 result, 1 failed –",
		"i:80": "? unknown i:80 0 % 0 0 – –",
	} {
		if got := textOf(rowOf(t, html, key)); got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
	for _, want := range []string{`<time datetime="2030-01-02T00:04:05Z" title="2030-01-02 00:04:05 UTC">3 h ago</time>`, `<rect width="66.7" height="1"/>`, `<span class="scale">0 to 1.2 s</span>`} {
		if !strings.Contains(html, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

// A pool has a line of its own: how many serve, what the others are, its queue, its traffic and
// the trend of that. What is in no pool has none.
func TestRender_LineOfAPool(t *testing.T) {
	rows := []view.Upstream{
		{Pool: "shop", Upstream: "a:80", Status: "up", Mode: "ready", Weight: 1, EffectiveWeight: 1, Serving: true, Requests: 3},
		{Pool: "shop", Upstream: "b:80", Status: "down", Mode: "ready", Weight: 1, Group: 1, Backup: true},
		{Pool: "shop", Upstream: "c:80", Status: "up", Mode: "ready", Weight: 1, Group: 2, Backup: true},
		{Upstream: "d:80", Mode: "drain", Gone: true},
	}
	pools := append(view.Pools(rows), view.NewPool("zoo"))
	pools[0].Queue = &view.Queue{Waiting: 3, Limit: 1000}
	pools[0].SetTraffic(view.Traffic{PerSecond: 120.34, Picks: 7000, Failures: 35}, []view.TrendPoint{{Requests: 60}, {Requests: 120, Failures: 2}})
	html := filteredPage(t, Filter{}, rows, pools)
	for title, want := range map[string]string{
		"shop": "shop 1 of 3 serve 1 down 3 in flight 3 of 1000 wait 120.3 requests/s 0.5 % of the last minute failed requests a second in the last five minutes: 120 at most, 2 failed at most",
		"zoo":  "zoo no upstreams at present 0 in flight 0 requests/s",
	} {
		section := between(t, html, `<section data-key="`+title+`">`, "</section>")
		if got := textOf(between(t, section, `<div class="pool">`, "</div>")); got != want {
			t.Errorf("%s: got %q, want %q", title, got, want)
		}
	}
	if want := `<path class="pass" d="M232 0v-12M236 0v-24"/><path class="fail" d="M236 0v-2"/>`; !strings.Contains(html, want) {
		t.Errorf("the page lacks the trend %s", want)
	}
	section := between(t, html, `<section data-key="Set at run time, but in no pool">`, "</section>")
	if got := textOf(between(t, section, `<div class="pool">`, "</div>")); got != "Set at run time, but in no pool" {
		t.Errorf("what is in no pool has the line %q", got)
	}
	for key, want := range map[string]string{"b:80": "backup 1", "c:80": "backup 2"} {
		if got := textOf(rowOf(t, html, key)); !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q in it", key, got, want)
		}
	}
}

// The script finds sections, rows and checks again by their keys: they differ among
// siblings, and there is no space between these.
func TestRender_KeysDiffer(t *testing.T) {
	check := []view.Check{{Check: "tcp"}, {Check: "http /"}}
	html := rendered(t,
		view.Upstream{Pool: "a", Upstream: "x:80", Checks: check},
		view.Upstream{Pool: "a", Upstream: "y:80", Checks: check},
		view.Upstream{Pool: "b", Upstream: "x:80", Checks: check},
		view.Upstream{Pool: "a", Upstream: "z:80", Gone: true},
		view.Upstream{Pool: "b", Upstream: "z:80", Gone: true},
		view.Upstream{Upstream: "z:80", Gone: true},
	)
	seen := make(map[string]bool)
	sections := strings.Split(between(t, html, "<main", "</main>"), "<section ")[1:]
	for _, section := range sections {
		title := between(t, section, `data-key="`, `"`)
		for _, key := range keysOf(section) {
			if seen[title+"/"+key] {
				t.Errorf("two rows have the key %q", title+"/"+key)
			}
			seen[title+"/"+key] = true
		}
	}
	if len(sections) != 3 || len(seen) != 6 {
		t.Errorf("%d sections and %d rows, want 3 and 6", len(sections), len(seen))
	}
	for _, tags := range []string{"</section><section ", "</tr><tr ", "<td role=\"cell\" class=\"checks\"><div class", "</div><div class=\"check\" data-key", "</div></td>", "</section></main>", "<tbody role=\"rowgroup\"><tr", "</tr></tbody></table>"} {
		if !strings.Contains(html, tags) {
			t.Errorf("the page lacks %s", tags)
		}
	}
}
