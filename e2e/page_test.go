// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// browse opens the page of an instance in a new browser, after the given actions. The
// returned function returns the URLs that the browser requested, and the problems in
// the page.
func browse(t *testing.T, c *instance, before ...chromedp.Action[chromedp.Void]) (tab context.Context, told func() (urls, problems []string)) {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		skip(t, "chromium (Debian package chromium) is not installed")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	ctx, cancelBrowser := chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancelBrowser)
	tab, cancelTab := chromedp.NewContext(ctx)
	t.Cleanup(cancelTab)
	if err := chromedp.Do(tab, before...); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var urls, problems []string
	err = chromedp.Listen(tab, func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch event := event.(type) {
		case *network.EventRequestWillBeSent:
			urls = append(urls, event.Request.URL)
		case *runtime.EventExceptionThrown:
			problems = append(problems, event.ExceptionDetails.Text)
		case *runtime.EventConsoleAPICalled:
			problems = append(problems, string(event.Type))
		case *log.EventEntryAdded:
			if event.Entry.Source == log.EntrySourceSecurity { // the policy of the page forbids it
				problems = append(problems, event.Entry.Text)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := chromedp.Do(tab, chromedp.Navigate("http://"+c.site+"/")); err != nil {
		t.Fatal(err)
	}
	return tab, func() ([]string, []string) {
		mu.Lock()
		defer mu.Unlock()
		return urls, problems
	}
}

// text returns the visible text of the page.
func text(t *testing.T, tab context.Context) string {
	t.Helper()
	return evaluate[string](t, tab, "document.body.innerText")
}

// evaluate runs a script in the page.
func evaluate[T any](t *testing.T, tab context.Context, script string, options ...chromedp.EvaluateOption) T {
	t.Helper()
	result, err := chromedp.Run(tab, chromedp.Evaluate[T](script, options...))
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// calling makes an action of a command of the browser's protocol.
func calling[P, R any](command cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, command, params)
		return err
	})
}

// shownRows is a script that lists the rows.
const shownRows = "[...document.querySelectorAll('tr.upstream')]"

// setFilter enters a value in a field of the filters: q, state or pool.
func setFilter(t *testing.T, tab context.Context, field, value string) {
	t.Helper()
	evaluate[bool](t, tab, fmt.Sprintf("(() => { const f = document.querySelector('[name=%s]'); f.value = %q; f.dispatchEvent(new Event('input', { bubbles: true })); return true })()", field, value))
}

// shows waits until the page shows exactly these upstreams, the first one at the top.
func shows(t *testing.T, tab context.Context, what string, upstreams ...string) {
	t.Helper()
	want := strings.Join(upstreams, " ")
	eventually(t, what, func() bool {
		return evaluate[string](t, tab, shownRows+".map((r) => r.dataset.key).join(' ')") == want
	})
}

// paged is a site that balances over upstreams and shows the status page at its root.
func paged(name string, addresses ...string) string {
	return fmt.Sprintf("alive_status /\n\treverse_proxy /app %s {\n\t\tlb_policy alive {\n\t\t\tname `%s`\n\t\t\tcheck http / {\n\t\t\t\tinterval 200ms\n\t\t\t}\n\t\t}\n\t}", strings.Join(addresses, " "), name)
}

// A backend goes down, and the page shows it with the reason, without being loaded
// again. It sends requests to its own server only, and has no errors. Names are shown
// as text.
func TestPage_FollowsChanges(t *testing.T) {
	a, b := startBackend(t), startBackend(t)
	const hostile = "<img src=x onerror=alert(1)>"
	c := startCaddy(t, t.TempDir(), "", paged(hostile, a.addr, b.addr))
	eventually(t, "both are up", func() bool { return c.modes()[a.addr] == "ready up" && c.modes()[b.addr] == "ready up" })
	tab, told := browse(t, c)
	for _, want := range []string{"2 of 2 upstreams serve", hostile, a.addr, "50 %"} {
		if got := text(t, tab); !strings.Contains(got, want) {
			t.Errorf("the page lacks %q:\n%s", want, got)
		}
	}
	evaluate[bool](t, tab, "document.querySelector('[name=q]').focus(), window.mark = true")
	b.sick.Store(true)
	eventually(t, "the page shows that one is down", func() bool {
		got := text(t, tab)
		return strings.Contains(got, "1 down; 1 of 2 upstreams serve") && strings.Contains(got, "failed: status 503, want 2xx")
	})
	if !evaluate[bool](t, tab, "window.mark === true && document.activeElement.name === 'q'") {
		t.Error("the page was loaded again, or lost the focus")
	}
	// the selection stays while new results come in
	evaluate[bool](t, tab, fmt.Sprintf("(() => { window.row = "+shownRows+".find((r) => r.dataset.key === %q); getSelection().selectAllChildren(row.querySelector('th bdi')); return true })()", a.addr))
	path := evaluate[string](t, tab, "window.row.querySelector('path.pass').getAttribute('d')")
	eventually(t, "the chart goes on", func() bool {
		return evaluate[string](t, tab, "document.contains(window.row) ? window.row.querySelector('path.pass').getAttribute('d') : 'gone'") != path
	})
	if selected := evaluate[string](t, tab, "getSelection().toString()"); selected != a.addr {
		t.Errorf("%q is still selected, want %q", selected, a.addr)
	}
	for upstream, want := range map[string]string{a.addr: "100 %", b.addr: "0 %"} {
		if got := evaluate[string](t, tab, fmt.Sprintf(shownRows+".find((r) => r.dataset.key === %q).querySelector('.share').innerText", upstream)); strings.TrimSpace(got) != want {
			t.Errorf("%s: the share is %q, want %q", upstream, got, want)
		}
	}
	a.sick.Store(true)
	eventually(t, "the page says that health is ignored", func() bool {
		return strings.Contains(text(t, tab), "Fail-open: no upstream serves") && strings.HasPrefix(evaluate[string](t, tab, "document.title"), "Fail-open in 1 of 1 pool: 2 down")
	})
	setFilter(t, tab, "state", "trouble")
	a.sick.Store(false)
	shows(t, tab, "only the one that does not serve is shown", b.addr)
	setFilter(t, tab, "state", "")
	if n := evaluate[int](t, tab, "document.images.length"); n != 0 {
		t.Error("a name became an image")
	}
	// old reports whether the page says, in red, that it shows an old state
	old := func() bool {
		said := strings.Contains(text(t, tab), "This is an old state: Caddy does not answer")
		return said && evaluate[string](t, tab, "document.getElementById('live').className") == "old"
	}
	if err := syscall.Kill(c.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the page says that it is out of date while Caddy hangs", old)
	if err := syscall.Kill(c.pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the page follows again", func() bool { return !old() })
	c.load("alive_status /")
	eventually(t, "it shows that there are none", func() bool { return strings.Contains(text(t, tab), "No reverse_proxy uses") })
	c.load(paged(hostile, a.addr, b.addr))
	eventually(t, "and that there are some again", func() bool {
		got := text(t, tab)
		return strings.Contains(got, b.addr) && !strings.Contains(got, "No reverse_proxy uses")
	})
	c.stop()
	eventually(t, "the page says that it is out of date", old)
	urls, problems := told()
	for _, url := range urls {
		if !strings.HasPrefix(url, "http://"+c.site+"/") {
			t.Errorf("the browser asked for %s", url)
		}
	}
	if len(problems) > 0 {
		t.Errorf("problems in the page: %v", problems)
	}
}

// An update changes only what differs. The row that the reader looks at stays in place
// with the selection in it, also if another upstream leaves, and rows that the filters exclude
// never appear.
func TestPage_UpdatesKeepTheReadersPlace(t *testing.T) {
	all := []*backend{startBackend(t), startBackend(t), startBackend(t)}
	slices.SortFunc(all, func(a, b *backend) int { return strings.Compare(a.addr, b.addr) })
	leaves, hidden, read := all[0].addr, all[1].addr, all[2].addr
	c := startCaddy(t, t.TempDir(), "", paged("shop", leaves, hidden, read))
	eventually(t, "all are up", func() bool {
		modes := c.modes()
		return modes[leaves] == "ready up" && modes[hidden] == "ready up" && modes[read] == "ready up"
	})
	tab, told := browse(t, c)
	setFilter(t, tab, "q", read)
	shows(t, tab, "only the one that is read is shown", read)
	evaluate[bool](t, tab, `(() => {
		window.row = `+shownRows+`[0];
		window.appeared = 0;
		new MutationObserver((records) => { appeared += `+shownRows+`.length > 1 }).observe(document.getElementById("pools"), { subtree: true, childList: true, attributes: true });
		getSelection().selectAllChildren(row.querySelector("th bdi"));
		return true;
	})()`)
	path := func() string {
		return evaluate[string](t, tab, "document.contains(row) ? row.querySelector('path.pass').getAttribute('d') : 'gone'")
	}
	check := func(when string) {
		t.Helper()
		before := path()
		eventually(t, "the chart goes on", func() bool { return path() != before })
		if selected := evaluate[string](t, tab, "getSelection().toString()"); selected != read {
			t.Errorf("%s: %q is selected, want %q", when, selected, read)
		}
		if !evaluate[bool](t, tab, "document.contains(row) && appeared === 0") {
			t.Errorf("%s: the row was replaced, or other rows appeared", when)
		}
	}
	check("with new results")
	c.load(paged("shop", hidden, read))
	eventually(t, "the upstream has left", func() bool { return strings.Contains(text(t, tab), "2 of 2 upstreams serve") })
	check("after a reload")
	if _, problems := told(); len(problems) > 0 {
		t.Errorf("problems in the page: %v", problems)
	}
}

// The page follows changes also where its address has a fragment, or a user with a password. It
// says so where the server redirects instead, such as to a site to log in.
func TestPage_FollowsChangesAtAnyAddress(t *testing.T) {
	a := startBackend(t)
	c := startCaddy(t, t.TempDir(), "", paged("shop", a.addr))
	tab, told := browse(t, c)
	for _, address := range []string{"http://user:secret@" + c.site + "/", "http://" + c.site + "/?q=shop#shop"} {
		if err := chromedp.Do(tab, chromedp.Navigate(address)); err != nil {
			t.Fatal(err)
		}
		for _, sick := range []bool{true, false} {
			a.sick.Store(sick)
			want := map[bool]string{true: "0 of 1 upstreams serve", false: "1 of 1 upstreams serve"}[sick]
			eventually(t, address+" shows "+want, func() bool { return strings.Contains(text(t, tab), want) })
		}
	}
	c.load("redir https://127.0.0.1:1/login")
	eventually(t, "it says that the server redirects", func() bool {
		return strings.Contains(text(t, tab), "This is an old state: the server redirects. Load the page again.")
	})
	if _, problems := told(); len(problems) > 0 {
		t.Errorf("problems in the page: %v", problems)
	}
}

// Without JavaScript the page is complete, and so are its filters.
func TestPage_IsCompleteWithoutScript(t *testing.T) {
	a := startBackend(t)
	a.sick.Store(true)
	c := startCaddy(t, t.TempDir(), "", paged("shop", a.addr))
	eventually(t, "it is down", func() bool { return c.modes()[a.addr] == "ready down" })
	tab, _ := browse(t, c, calling(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}))
	got := text(t, tab)
	for _, want := range []string{"0 of 1 upstreams serve", "shop", a.addr, "Fail-open", "check 'http /' failed: status 503, want 2xx"} {
		if !strings.Contains(got, want) {
			t.Errorf("the page lacks %q:\n%s", want, got)
		}
	}
	// while the next page loads, there is no text to read
	if _, err := chromedp.RunResponse(tab, chromedp.SendKeys("[name=q]", "nothing like it\r")); err != nil {
		t.Fatal(err)
	}
	if got, want := text(t, tab), "Nothing matches: there are no upstreams with “nothing like it”."; !strings.Contains(got, want) {
		t.Errorf("the page lacks %q:\n%s", want, got)
	}
}

// deadAmong returns n addresses of a backend that listens on all. At one of each so many, nothing
// listens.
func deadAmong(b *backend, n, dead int) (addresses []string) {
	port := b.addr[strings.LastIndex(b.addr, ":")+1:]
	for i := range n {
		to := "1" // nothing listens there
		if i%dead != 0 {
			to = port
		}
		addresses = append(addresses, fmt.Sprintf("127.1.%d.%d:%s", i/250, i%250+1, to))
	}
	return addresses
}

// With two hundred upstreams, what is wrong is on the first screen, all fits on a few, and a
// refresh is small. Filters are in the URL, also after a reload, and say when nothing matches.
func TestPage_IsUsableWithTwoHundredUpstreams(t *testing.T) {
	one := startBackendAt(t, "0.0.0.0:0")
	addresses := deadAmong(one, 200, 4)
	c := startCaddy(t, t.TempDir(), "", paged("shop", addresses...))
	eventually(t, "all are known", func() bool {
		modes := c.modes()
		count := make(map[string]int)
		for _, mode := range modes {
			count[mode]++
		}
		return count["ready down"] == 50 && count["ready up"] == 150
	})
	for _, screen := range []struct{ width, height int }{{1280, 800}, {390, 844}} {
		tab, told := browse(t, c, chromedp.EmulateViewport(int64(screen.width), int64(screen.height)))
		if title := evaluate[string](t, tab, "document.title"); !strings.HasPrefix(title, "50 down; 150 of 200 upstreams serve") {
			t.Errorf("the title is %q", title)
		}
		if top := evaluate[float64](t, tab, "document.querySelector('tr.upstream.down').getBoundingClientRect().bottom"); top > float64(screen.height) {
			t.Errorf("on a screen of %d by %d the first that is down ends at %v", screen.width, screen.height, top)
		}
		if tall := evaluate[int](t, tab, "document.documentElement.scrollHeight"); tall > 4000 {
			t.Errorf("on a screen of %d the page is %d tall", screen.width, tall)
		}
		if wide := evaluate[int](t, tab, "document.documentElement.scrollWidth"); wide > screen.width {
			t.Errorf("on a screen of %d the page is %d wide", screen.width, wide)
		}
		setFilter(t, tab, "q", addresses[77])
		shows(t, tab, "the search finds one", addresses[77])
		if err := chromedp.Do(tab, chromedp.Reload()); err != nil {
			t.Fatal(err)
		}
		shows(t, tab, "the filter is in the URL", addresses[77])
		if value := evaluate[string](t, tab, "document.querySelector('[name=q]').value"); value != addresses[77] {
			t.Errorf("after a reload the search is %q", value)
		}
		setFilter(t, tab, "state", "maintenance")
		eventually(t, "the page says that nothing matches", func() bool {
			return strings.Contains(text(t, tab), "Nothing matches: there are no upstreams in maintenance with “"+addresses[77]+"”.")
		})
		setFilter(t, tab, "q", "")
		setFilter(t, tab, "state", "up")
		eventually(t, "all that are up are shown", func() bool { return evaluate[int](t, tab, shownRows+".length") == 150 })
		if _, problems := told(); len(problems) > 0 {
			t.Errorf("problems in the page: %v", problems)
		}
	}
	if size := len(refresh(t, c)); size > 40<<10 {
		t.Errorf("a refresh is %d bytes compressed, want 40 KiB at most", size)
	}
}

// refresh returns the page as it is sent, compressed.
func refresh(t *testing.T, c *instance) []byte {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.site+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "text/html")
	request.Header.Set("Accept-Encoding", "gzip") // so it stays compressed
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.Header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("%v %v", response.Header, err)
	}
	return text
}
