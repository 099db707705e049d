// SPDX-License-Identifier: Apache-2.0

package page

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// rendered returns the page that shows rows.
func rendered(t *testing.T, rows ...view.Upstream) string {
	t.Helper()
	html, err := Render(rows, view.Pools(rows), time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	return string(html)
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
	for _, name := range []string{"pool", "upstream", "why", "check", "reason"} {
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

// A row says at how many members of the fleet it is down, also if it is up here.
func TestRender_ShowsWhatTheFleetSees(t *testing.T) {
	down, none := 3, 0
	html := rendered(t,
		view.Upstream{Pool: "a", Upstream: "a:80", Status: "up", Serving: true, EffectiveWeight: 1, DownAt: &down, Members: 12},
		view.Upstream{Pool: "a", Upstream: "b:80", Status: "up", Serving: true, EffectiveWeight: 1, DownAt: &none, Members: 12},
	)
	if part := between(t, html, `data-key="a:80">`, "</li>"); !strings.Contains(part, `<span class="fleet">down at 3 of 12 members</span>`) {
		t.Errorf("it lacks at how many members it is down:\n%s", part)
	}
	if part := between(t, html, `data-key="b:80">`, "</li>"); strings.Contains(part, "members") {
		t.Errorf("it is down at no member:\n%s", part)
	}
}

// The title and the first line are the summary, and each pool that has an alarm shows it.
func TestRender_ShowsSummaryAndAlarms(t *testing.T) {
	html := rendered(t,
		view.Upstream{Pool: "a", Upstream: "a:80", Serving: true, EffectiveWeight: 1},
		view.Upstream{Pool: "b", Upstream: "b:80"},
		view.Upstream{Pool: "c", Upstream: "c:80", EffectiveWeight: 1, FailOpen: true},
	)
	const summary = "No upstream serves in 1 of 3 pools. Fail-open in 1 of 3 pools: 1 of 3 upstreams serve"
	for _, want := range []string{"<title>" + summary + "</title>", `<p id="summary" role="status">` + summary + "</p>", "as of <time>2030-01-02 03:04:05 UTC</time>"} {
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
		if part := between(t, html, `<section data-key="`+pool+`">`, "</section>"); strings.Contains(part, "role=") {
			alarm = between(t, part, `<p class="alarm" role="alert" data-key="alarm">`, "</p>")
		}
		if alarm != want {
			t.Errorf("pool %s: alarm %q, want %q", pool, alarm, want)
		}
	}
}

// Without upstreams the page says so.
func TestRender_SaysThatThereAreNoUpstreams(t *testing.T) {
	if html := rendered(t); !strings.Contains(html, `<main id="pools"><p>No reverse_proxy uses lb_policy alive.</p></main>`) {
		t.Errorf("the page is:\n%s", html)
	}
}

// A row says the share of requests, the state, and since when it holds.
func TestRender_FactsOfARow(t *testing.T) {
	since := time.Date(2030, 1, 2, 4, 4, 5, 0, time.FixedZone("", 3600))
	html := rendered(t,
		view.Upstream{Pool: "a", Upstream: "a:80", Status: "up", Mode: "ready", Weight: 2, EffectiveWeight: 2, Serving: true, Group: 1, Backup: true, Requests: 7, Since: &since},
		view.Upstream{Pool: "a", Upstream: "b:80", Status: "up", Mode: "ready", Weight: 1, EffectiveWeight: 1, Serving: true},
		view.Upstream{Pool: "a", Upstream: "c:80", Status: "unknown", Mode: "drain", Weight: 1},
	)
	for key, want := range map[string]string{
		`<li class="upstream up serving" data-key="a:80">`:        "up ready share 66.7 % weight 2 backup 7 in flight since 2030-01-02 03:04:05 UTC",
		`<li class="upstream up serving" data-key="b:80">`:        "up ready share 33.3 % weight 1 0 in flight since —",
		`<li class="upstream draining troubled" data-key="c:80">`: "draining drain share 0 % weight 1 0 in flight since —",
	} {
		facts := between(t, between(t, html, key, "</li>"), `<p class="facts">`, "</p>")
		facts = strings.NewReplacer(`<b class="state">`, "", "</b>", "", "<span>", "", "</span>", "").Replace(facts)
		if facts != want {
			t.Errorf("%s: got %q, want %q", key, facts, want)
		}
	}
}

// A row says by a word, not only by a colour, that an upstream is suspect or ejected, and
// until when. The filter finds both by their class.
func TestRender_SuspectAndEjected(t *testing.T) {
	later, before := time.Date(2030, 1, 2, 3, 5, 0, 0, time.UTC), time.Date(2030, 1, 2, 3, 4, 0, 0, time.UTC)
	html := rendered(t,
		view.Upstream{Pool: "a", Upstream: "a:80", Status: "up", Mode: "ready", Serving: true, EffectiveWeight: 1},
		view.Upstream{Pool: "a", Upstream: "b:80", Status: "up", Mode: "ready", Serving: true, Suspect: true},
		view.Upstream{Pool: "a", Upstream: "c:80", Status: "up", Mode: "ready", EjectedUntil: &later},
		view.Upstream{Pool: "a", Upstream: "d:80", Status: "up", Mode: "ready", EjectedUntil: &before},
		view.Upstream{Pool: "a", Upstream: "e:80", Status: "down", Mode: "ready", EjectedUntil: &later},
	)
	for key, want := range map[string]string{
		`<li class="upstream up serving" data-key="a:80">`:               `<b class="state">up</b> <span>ready`,
		`<li class="upstream suspect serving troubled" data-key="b:80">`: `<b class="state">suspect</b> <span>ready`,
		`<li class="upstream ejected troubled" data-key="c:80">`:         `<b class="state">ejected</b> <span class="until">until 2030-01-02 03:05:00 UTC</span> <span>ready`,
		`<li class="upstream ejected troubled" data-key="d:80">`:         `<b class="state">ejected</b> <span class="until">on trial</span> <span>ready`,
		`<li class="upstream down troubled" data-key="e:80">`:            `<b class="state">down</b> <span>ready`,
	} {
		if facts := between(t, between(t, html, key, "</li>"), `<p class="facts">`, "</p>"); !strings.HasPrefix(facts, want) {
			t.Errorf("%s: got %q, want %q", key, facts, want)
		}
	}
	if want := `role="status">2 of 5 upstreams serve, 1 is suspect, 2 are ejected</p>`; !strings.Contains(html, want) {
		t.Errorf("the page lacks %q", want)
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
		for _, row := range strings.Split(section, "<li ")[1:] {
			row = title + "/" + between(t, row, `data-key="`, `"`)
			if seen[row] {
				t.Errorf("two rows have the key %q", row)
			}
			seen[row] = true
		}
	}
	if len(sections) != 3 || len(seen) != 6 {
		t.Errorf("%d sections and %d rows, want 3 and 6", len(sections), len(seen))
	}
	for _, tags := range []string{"</section><section ", "</li><li ", "</p><div class=\"check\" ", "</div><div class=\"check\" ", "</div></li>", "</section></main>"} {
		if !strings.Contains(html, tags) {
			t.Errorf("the page lacks %s", tags)
		}
	}
}

// A pool has a line of its own: how many serve, what the others are, and its queue. Rows say
// which group a backup is of, the limit, and requests of bound clients. What is in no pool has
// no such line.
func TestRender_PoolsGroupsAndLimits(t *testing.T) {
	rows := []view.Upstream{
		{Pool: "shop", Upstream: "a:80", Status: "up", Mode: "ready", Weight: 1, EffectiveWeight: 1, Serving: true, Requests: 3, Limit: 4, Bound: 12},
		{Pool: "shop", Upstream: "b:80", Status: "down", Mode: "ready", Weight: 1, Group: 1, Backup: true},
		{Pool: "shop", Upstream: "c:80", Status: "up", Mode: "ready", Weight: 1, Group: 2, Backup: true},
		{Upstream: "d:80", Mode: "drain", Gone: true},
	}
	pools := append(view.Pools(rows), view.NewPool("zoo"))
	pools[0].Queue = &view.Queue{Waiting: 3, Limit: 1000}
	page, err := Render(rows, pools, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	html := string(page)
	for title, want := range map[string]string{
		"shop": `<b>1 of 3 serve</b> <span>1 down</span> <span>3 in flight</span> <span>3 of 1000 wait</span>`,
		"zoo":  `<b>no upstreams at present</b> <span>0 in flight</span>`,
	} {
		section := between(t, html, `<section data-key="`+title+`">`, "</section>")
		if got := between(t, section, `</h2><p class="facts" data-key="facts">`, "</p>"); got != want {
			t.Errorf("%s: got %s, want %s", title, got, want)
		}
	}
	if section := between(t, html, `<section data-key="Set at run time, but in no pool">`, "</section>"); strings.Contains(section, `data-key="facts"`) {
		t.Error("what is in no pool has the line of a pool")
	}
	for key, want := range map[string]string{
		"a:80":   "<span>weight 1</span> <span>3 of 4 in flight</span> <span>12 requests in the last minute of clients bound to it</span> <span>since —</span>",
		"b:80":   "<span>weight 1</span> <span>backup 1</span> <span>0 in flight</span> <span>since —</span>",
		"c:80":   "<span>weight 1</span> <span>backup 2</span> <span>0 in flight</span> <span>since —</span>",
		"\nd:80": "<span>weight 0</span> <span>0 in flight</span> <span>since —</span>",
	} {
		if facts := between(t, between(t, html, `data-key="`+key+`">`, "</li>"), `<p class="facts">`, "</p>"); !strings.HasSuffix(facts, want) {
			t.Errorf("%s: got %q, want it to end with %q", key, facts, want)
		}
	}
}
