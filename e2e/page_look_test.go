// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"image"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// screenshots is the folder for pictures of the page, "" for none.
var screenshots = flag.String("screenshots", "", "write pictures of the page into this folder")

// look is how a reader sees the page.
type look struct {
	name          string
	width, height int64
	scheme        string // of colors: light or dark
	mobile        bool
}

// looks are a desktop and a phone, each light and dark.
var looks = []look{
	{"desktop-light", 1280, 800, "light", false},
	{"desktop-dark", 1280, 800, "dark", false},
	{"phone-light", 390, 844, "light", true},
	{"phone-dark", 390, 844, "dark", true},
}

// at shows the page, as it is, in a look.
func (l look) at(t *testing.T, tab context.Context) {
	t.Helper()
	var options []chromedp.EmulateViewportOption
	if l.mobile {
		options = append(options, chromedp.EmulateMobile, chromedp.EmulateTouch)
	}
	err := chromedp.Do(tab, chromedp.EmulateViewport(l.width, l.height, options...), calling(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: l.scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	evaluate[bool](t, tab, "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))", awaited)
}

// awaited makes evaluate wait for a promise.
func awaited(p *runtime.EvaluateParams) { p.AwaitPromise = new(true) }

// troubledSite is a site with three pools: one with an upstream in each mode and status, one that
// is down, and one that is well. The last five upstreams are well.
func troubledSite(upstreams []string) string {
	pool := func(path, name, more string, upstreams ...string) string {
		return fmt.Sprintf("\treverse_proxy %s %s {\n\t\tlb_policy alive {\n\t\t\tname %s\n\t\t\tcheck http / {\n\t\t\t\tinterval 200ms\n\t\t\t}\n%s\t\t}\n\t}\n", path, strings.Join(upstreams, " "), name, more)
	}
	return "alive_status /\n" +
		pool("/shop", "shop", "\t\t\tbackup "+upstreams[4]+"\n\t\t\tweight "+upstreams[0]+" 3\n", upstreams[:5]...) +
		pool("/search", "search", "\t\t\tmax_requests 20\n", upstreams[5:7]...) +
		pool("/static", "static", "", upstreams[7:]...)
}

// startTroubled runs Caddy with the pools of troubledSite, and opens its page.
func startTroubled(t *testing.T) (c *instance, tab context.Context) {
	t.Helper()
	var addresses []string
	sick := []int{1, 5, 6}
	for i := range 12 {
		b := startBackend(t)
		b.sick.Store(slices.Contains(sick, i))
		addresses = append(addresses, b.addr)
	}
	c = startCaddy(t, t.TempDir(), "", troubledSite(addresses))
	for i, mode := range map[int]string{2: "drain", 3: "maintenance"} {
		if _, stderr, status := c.run(mode, addresses[i], "--address", c.admin); status != 0 {
			t.Fatalf("%s: %s", mode, stderr)
		}
	}
	eventually(t, "the pools are in trouble", func() bool {
		modes := c.modes()
		return modes[addresses[0]] == "ready up" && modes[addresses[1]] == "ready down" && strings.HasPrefix(modes[addresses[2]], "drain ") &&
			strings.HasPrefix(modes[addresses[3]], "maintenance ") && modes[addresses[5]] == "ready down" && modes[addresses[6]] == "ready down"
	})
	tab, _ = browse(t, c)
	eventually(t, "the page shows it", func() bool {
		shown := text(t, tab)
		return strings.Contains(shown, addresses[1]) && strings.Contains(shown, "maintenance")
	})
	return c, tab
}

// violation is a rule of axe-core that the page breaks.
type violation struct {
	ID     string `json:"id"`
	Impact string `json:"impact"`
	Help   string `json:"help"`
	Nodes  []struct {
		Target  json.RawMessage `json:"target"`
		Summary string          `json:"failureSummary"`
	} `json:"nodes"`
}

// String returns the rule and the first places where it is broken.
func (v violation) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s: %s: %s, at %d places", v.Impact, v.ID, v.Help, len(v.Nodes))
	for _, n := range v.Nodes[:min(len(v.Nodes), 5)] {
		fmt.Fprintf(&s, "\n\t%s: %s", n.Target, strings.Join(strings.Fields(n.Summary), " "))
	}
	return s.String()
}

// isGrave reports whether a violation keeps people from using the page.
func (v violation) isGrave() bool { return v.Impact == "serious" || v.Impact == "critical" }

// injectAxe brings axe-core into the page, through the protocol of the browser: the policy of
// the page allows no foreign script. The test is skipped where there is no axe-core.
func injectAxe(t *testing.T, tab context.Context) {
	t.Helper()
	const file = "axe.min.js"
	folders := []string{os.Getenv("ALIVE_AXE"), "node_modules/axe-core", "/usr/share/javascript/axe-core", "/usr/share/nodejs/axe-core"}
	for _, folder := range folders {
		if folder == "" {
			continue
		}
		script, err := os.ReadFile(filepath.Join(folder, file))
		if err != nil {
			if folder == folders[0] {
				t.Fatalf("ALIVE_AXE: %v", err)
			}
			continue
		}
		evaluate[bool](t, tab, string(script)+"\n;typeof axe.run === 'function'")
		return
	}
	skip(t, "axe-core (npm package axe-core) is not installed; the environment variable ALIVE_AXE names the folder with its %s", file)
}

// violations returns what axe-core finds in the page as it is.
func violations(t *testing.T, tab context.Context) []violation {
	t.Helper()
	result := evaluate[struct {
		Violations []violation `json:"violations"`
		Passed     int         `json:"passed"`
	}](t, tab, `axe.run(document, { resultTypes: ["violations"] }).then((r) => ({ violations: r.violations, passed: r.passes.length }))`, awaited)
	if result.Passed < 10 {
		t.Fatalf("axe-core passed %d rules, want 10 or more: it has not seen the page", result.Passed)
	}
	return result.Violations
}

// axe-core finds nothing serious or critical in the page, in any look: with pools in trouble,
// with filters that match nothing, after the connection is lost, and without any pool.
func TestPage_IsAccessible(t *testing.T) {
	c, tab := startTroubled(t)
	injectAxe(t, tab)
	check := func(state string) {
		t.Helper()
		for _, l := range looks {
			l.at(t, tab)
			for _, v := range violations(t, tab) {
				if v.isGrave() {
					t.Errorf("%s, %s: %v", state, l.name, v)
				} else {
					t.Logf("%s, %s: %v", state, l.name, v)
				}
			}
		}
	}
	check("in trouble")
	setFilter(t, tab, "q", "no upstream has this name")
	eventually(t, "nothing matches", func() bool { return strings.Contains(text(t, tab), "Nothing matches") })
	check("nothing matches")
	setFilter(t, tab, "q", "")
	c.load("alive_status /")
	eventually(t, "no pool is left", func() bool { return strings.Contains(text(t, tab), "No reverse_proxy uses") })
	check("without pools")
	c.stop()
	eventually(t, "the connection is lost", func() bool { return strings.Contains(text(t, tab), "This is an old state") })
	check("out of date")

	// what has no name is found
	evaluate[bool](t, tab, "document.body.append(document.createElement('button')), true")
	if !slices.ContainsFunc(violations(t, tab), func(v violation) bool { return v.ID == "button-name" && v.isGrave() }) {
		t.Error("axe-core does not find a button without a name")
	}
}

// picture takes a picture of what is on the screen, and writes it into the folder of
// -screenshots.
func picture(t *testing.T, tab context.Context, name string) image.Image {
	t.Helper()
	data, err := chromedp.Run(tab, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	if *screenshots != "" {
		err := os.MkdirAll(*screenshots, 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(*screenshots, name+".png"), data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	picture, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return picture
}

// sendTraffic sends requests to the pools for a while, at a pace that changes.
func sendTraffic(t *testing.T, c *instance, lasts time.Duration) {
	t.Helper()
	began := time.Now()
	for i := 0; time.Since(began) < lasts; i++ {
		if response, err := c.client.Get("http://" + c.site + "/" + []string{"shop", "static", "shop", "search"}[i%4]); err == nil {
			_, _ = io.Copy(io.Discard, response.Body)
			response.Body.Close()
		}
		time.Sleep(time.Duration(10+8*math.Sin(float64(i)/150)) * time.Millisecond) // the pace of the load
	}
}

// brightness returns how bright a picture is on average, from 0 to 1.
func brightness(of image.Image) float64 {
	var sum, n float64
	for y := of.Bounds().Min.Y; y < of.Bounds().Max.Y; y += 4 {
		for x := of.Bounds().Min.X; x < of.Bounds().Max.X; x += 4 {
			r, g, b, _ := of.At(x, y).RGBA()
			sum += float64(r+g+b) / (3 * 0xffff)
			n++
		}
	}
	return sum / n
}

// In every look, the page is as wide as the screen, and light or dark as the reader wants it.
// With -screenshots, the pictures are written: page-desktop-light.png and so on.
func TestPage_FitsEveryLook(t *testing.T) {
	c, tab := startTroubled(t)
	if *screenshots != "" {
		sendTraffic(t, c, time.Minute)
	}
	for _, l := range looks {
		l.at(t, tab)
		if wide := evaluate[int64](t, tab, "document.documentElement.scrollWidth"); wide > l.width {
			t.Errorf("%s: on a screen of %d the page is %d wide", l.name, l.width, wide)
		}
		shown := picture(t, tab, "page-"+l.name)
		if size := shown.Bounds().Size(); int64(size.X) != l.width || int64(size.Y) != l.height {
			t.Errorf("%s: the picture has %v, want %d x %d", l.name, size, l.width, l.height)
		}
		if bright := brightness(shown); (l.scheme == "light") != (bright > 0.5) {
			t.Errorf("%s: brightness %.2f", l.name, bright)
		}
	}
}
