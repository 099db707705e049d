// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
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
func evaluate[T any](t *testing.T, tab context.Context, script string) T {
	t.Helper()
	result, err := chromedp.Run(tab, chromedp.Evaluate[T](script))
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

// shownRows is a script that lists the rows that are not hidden.
const shownRows = "[...document.querySelectorAll('li.upstream:not([hidden])')]"

// typeSearch enters text in the search field.
func typeSearch(t *testing.T, tab context.Context, text string) {
	t.Helper()
	evaluate[bool](t, tab, fmt.Sprintf("(() => { const s = document.getElementById('search'); s.value = %q; s.dispatchEvent(new Event('input')); return true })()", text))
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
	for _, want := range []string{"2 of 2 upstreams serve", hostile, a.addr, "share 50 %"} {
		if got := text(t, tab); !strings.Contains(got, want) {
			t.Errorf("the page lacks %q:\n%s", want, got)
		}
	}
	evaluate[bool](t, tab, "document.getElementById('search').focus(), window.mark = true")
	b.sick.Store(true)
	eventually(t, "the page shows that one is down", func() bool {
		got := text(t, tab)
		return strings.Contains(got, "1 of 2 upstreams serve") && strings.Contains(got, "last failure: status 503, want 2xx")
	})
	if !evaluate[bool](t, tab, "window.mark === true && document.activeElement.id === 'search'") {
		t.Error("the page was loaded again, or lost the focus")
	}
	// the selection stays while new results come in
	evaluate[bool](t, tab, fmt.Sprintf("(() => { const h = [...document.querySelectorAll('h3')].find((h) => h.textContent === %q); getSelection().selectAllChildren(h); window.row = h.closest('li'); return true })()", a.addr))
	path := evaluate[string](t, tab, "window.row.querySelector('path.pass').getAttribute('d')")
	eventually(t, "the chart goes on", func() bool {
		return evaluate[string](t, tab, "document.contains(window.row) ? window.row.querySelector('path.pass').getAttribute('d') : 'gone'") != path
	})
	if selected := evaluate[string](t, tab, "getSelection().toString()"); selected != a.addr {
		t.Errorf("%q is still selected, want %q", selected, a.addr)
	}
	for _, e := range []string{a.addr, b.addr} {
		want := map[string]string{a.addr: "share 100 %", b.addr: "share 0 %"}[e]
		if got := evaluate[string](t, tab, fmt.Sprintf("[...document.querySelectorAll('li')].find((l) => l.querySelector('h3').textContent === %q).innerText", e)); !strings.Contains(got, want) {
			t.Errorf("%s: want %q:\n%s", e, want, got)
		}
	}
	a.sick.Store(true)
	eventually(t, "the page says that health is ignored", func() bool {
		return strings.Contains(text(t, tab), "Fail-open: no upstream serves") && strings.HasPrefix(evaluate[string](t, tab, "document.title"), "Fail-open in 1 of 1 pools")
	})
	evaluate[bool](t, tab, "document.getElementById('troubled').click(), true")
	a.sick.Store(false)
	eventually(t, "only the one that does not serve is shown", func() bool {
		got := text(t, tab)
		return !strings.Contains(got, a.addr) && strings.Contains(got, b.addr)
	})
	if n := evaluate[int](t, tab, "document.images.length"); n != 0 {
		t.Error("a name became an image")
	}
	lost := func() bool { return strings.Contains(text(t, tab), "connection lost") }
	if err := syscall.Kill(c.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the page says that it is out of date while Caddy hangs", lost)
	if err := syscall.Kill(c.pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the page follows again", func() bool { return !lost() })
	c.load("alive_status /")
	eventually(t, "it shows that there are none", func() bool { return strings.Contains(text(t, tab), "No reverse_proxy uses") })
	c.load(paged(hostile, a.addr, b.addr))
	eventually(t, "and that there are some again", func() bool {
		got := text(t, tab)
		return strings.Contains(got, b.addr) && !strings.Contains(got, "No reverse_proxy uses")
	})
	c.stop()
	eventually(t, "the page says that it is out of date", lost)
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
// with the selection in it, also if an upstream above it leaves, and rows that the
// filters hide never appear.
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
	typeSearch(t, tab, read)
	evaluate[bool](t, tab, `(() => {
		window.row = `+shownRows+`[0];
		window.appeared = 0;
		new MutationObserver((records) => { appeared += `+shownRows+`.length > 1 }).observe(document.getElementById("pools"), { subtree: true, childList: true, attributes: true });
		getSelection().selectAllChildren(row.querySelector("h3"));
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
		if !evaluate[bool](t, tab, "document.contains(row) && !row.hidden && appeared === 0") {
			t.Errorf("%s: the row was replaced, or other rows appeared", when)
		}
	}
	check("with new results")
	c.load(paged("shop", hidden, read))
	eventually(t, "the upstream has left", func() bool { return evaluate[int](t, tab, "document.querySelectorAll('li.upstream').length") == 2 })
	check("after a reload")
	if _, problems := told(); len(problems) > 0 {
		t.Errorf("problems in the page: %v", problems)
	}
}

// Without JavaScript the page is complete.
func TestPage_IsCompleteWithoutScript(t *testing.T) {
	a := startBackend(t)
	a.sick.Store(true)
	c := startCaddy(t, t.TempDir(), "", paged("shop", a.addr))
	eventually(t, "it is down", func() bool { return c.modes()[a.addr] == "ready down" })
	tab, _ := browse(t, c, calling(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}))
	got := text(t, tab)
	for _, want := range []string{"0 of 1 upstreams serve", "shop", a.addr, "Fail-open", "check 'http /' failed: status 503, want 2xx", "last failure: status 503"} {
		if !strings.Contains(got, want) {
			t.Errorf("the page lacks %q:\n%s", want, got)
		}
	}
}

// With two hundred upstreams the page stays usable: it is no wider than a phone, the
// search finds one upstream, and the page soon shows what changes.
func TestPage_IsUsableWithTwoHundredUpstreams(t *testing.T) {
	one := startBackend(t)
	addresses := []string{one.addr}
	for i := range 199 {
		addresses = append(addresses, fmt.Sprintf("127.1.%d.%d:%s", i/250, i%250+1, one.addr[strings.LastIndex(one.addr, ":")+1:]))
	}
	c := startCaddy(t, t.TempDir(), "", paged("shop", addresses...))
	eventually(t, "all are known", func() bool { return len(c.modes()) == 200 && c.modes()[one.addr] == "ready up" })
	tab, told := browse(t, c, chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile))
	if n := evaluate[int](t, tab, "document.querySelectorAll('li.upstream').length"); n != 200 {
		t.Errorf("%d upstreams are shown, want 200", n)
	}
	if wide := evaluate[int](t, tab, "document.documentElement.scrollWidth"); wide > 360 {
		t.Errorf("on a screen of 360 the page is %d wide", wide)
	}
	typeSearch(t, tab, "127.1.0.77")
	if n := evaluate[int](t, tab, shownRows+".length"); n != 1 {
		t.Errorf("the search shows %d, want 1", n)
	}
	typeSearch(t, tab, "")
	if n := evaluate[int](t, tab, shownRows+".length"); n != 200 {
		t.Errorf("without a search %d are shown, want 200", n)
	}
	one.sick.Store(true)
	eventually(t, "the page follows", func() bool {
		return evaluate[bool](t, tab, fmt.Sprintf("[...document.querySelectorAll('li.upstream.down h3')].some((h) => h.textContent === %q)", one.addr))
	})
	if _, problems := told(); len(problems) > 0 {
		t.Errorf("problems in the page: %v", problems)
	}
}
