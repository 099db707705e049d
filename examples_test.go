// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// Every example is a config that Caddy loads, without a warning: not even of
// formatting.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("examples/*/Caddyfile")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples found: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			adapted, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt(text, map[string]any{"filename": file})
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range warnings {
				t.Errorf("%s:%d: %s", w.File, w.Line, w.Message)
			}
			var cfg *caddy.Config
			if err := json.Unmarshal(adapted, &cfg); err != nil {
				t.Fatal(err)
			}
			// keep what a config loads by itself away from the user's own files
			cfg.StorageRaw = caddyconfig.JSONModuleObject(map[string]string{"root": t.TempDir()}, "module", "file_system", nil)
			if err := caddy.Validate(cfg); err != nil {
				t.Error(err)
			}
		})
	}
}

// What the alerts ask for is what there is.
func TestExampleAlerts(t *testing.T) {
	text, err := os.ReadFile("examples/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	descs := make(chan *prometheus.Desc, 100)
	collector{}.Describe(descs)
	close(descs)
	var known []string
	for d := range descs {
		known = append(known, d.String())
	}
	names := regexp.MustCompile(`caddy_alive_\w+`).FindAllString(string(text), -1)
	if len(names) == 0 {
		t.Error("there are no alerts")
	}
	for _, name := range names {
		if !slices.ContainsFunc(known, func(d string) bool { return strings.Contains(d, `"`+name+`"`) }) {
			t.Errorf("there is no metric %s", name)
		}
	}
}

// exampleOf returns an example as it can be run here: with these upstreams in place
// of those in it, and at a site of a test.
func exampleOf(t *testing.T, name string, replace ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("examples", name, "Caddyfile"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer(append(replace, "example.com {", "http:// {")...).Replace(string(text))
}

// The canary gets one request of twenty, and what it is given at run time.
func TestCaddyExampleCanary(t *testing.T) {
	all := startBackends(t, "stable", "canary")
	c := startOperated(t, "", exampleOf(t, "canary", "stable:8080", all[0].addr, "canary:8080", all[1].addr))
	eventually(t, patience, "both are up", func() bool { return statuses(all[0].addr, all[1].addr)[health.Up] == 2 })
	shares(t, "as it is", tally(c.plain(), c.url(), 100), map[string]int{"stable": 95, "canary": 5})
	if _, _, err := command(t.Context(), c.admin, "weight", all[1].addr, "19"); err != nil {
		t.Fatal(err)
	}
	shares(t, "with more", tally(c.plain(), c.url(), 100), map[string]int{"stable": 50, "canary": 50})
}

// The backup is asked when no primary can serve; when it is gone, too, visitors see
// the page that says so, and no upstream is bothered.
func TestCaddyExampleBackups(t *testing.T) {
	all := startBackends(t, "app1", "app2", "standby")
	c := startCaddy(t, exampleOf(t, "backups", "app1:8080", all[0].addr, "app2:8080", all[1].addr, "standby:8080", all[2].addr,
		"check http /healthz", "check http /healthz {\n interval 50ms\n}"))
	eventually(t, patience, "all are up", func() bool { return statuses(all[0].addr, all[1].addr, all[2].addr)[health.Up] == 3 })
	shares(t, "primaries", tally(c.plain(), c.url(), 10), map[string]int{"app1": 5, "app2": 5})
	for i, want := range []map[string]int{{"app2": 10}, {"standby": 10}} {
		all[i].set(sick)
		eventually(t, patience, "one more is down", func() bool { return is(health.Down, all[i].addr) })
		shares(t, "one more is down", tally(c.plain(), c.url(), 10), want)
	}
	all[2].set(sick)
	eventually(t, patience, "all are down", func() bool { return is(health.Down, all[2].addr) })
	if got := ask(c.plain(), c.url()); got.status != http.StatusServiceUnavailable || got.body != "We will be back in a moment." {
		t.Errorf("without any: %v", got)
	}
}

// The steps of the script, one upstream after the other, while clients ask all the
// time: not one request fails.
func TestCaddyExampleBlueGreen(t *testing.T) {
	blue, green := startBackend(t, "blue", nil), startBackend(t, "green", nil)
	c := startOperated(t, "", exampleOf(t, "blue-green", "blue:8080", blue.addr, "green:8080", green.addr))
	eventually(t, patience, "both are up", func() bool { return statuses(blue.addr, green.addr)[health.Up] == 2 })
	client := c.plain()
	clients := startTraffic(t, 16, func() answer { return ask(client, c.url()) })
	for _, b := range []*backend{blue, green} {
		if _, _, err := command(t.Context(), c.admin, "drain", b.addr, "--wait", "10s"); err != nil {
			t.Fatal(err)
		}
		b.set(refusing) // it is replaced
		eventually(t, patience, "it is gone", func() bool { return is(health.Down, b.addr) })
		b.set(well)
		eventually(t, patience, "it is back", func() bool {
			_, _, err := command(t.Context(), c.admin, "check", b.addr)
			return err == nil && is(health.Up, b.addr)
		})
		if _, _, err := command(t.Context(), c.admin, "ready", b.addr); err != nil {
			t.Fatal(err)
		}
		n := clients.answered()
		eventually(t, patience, "it serves again", func() bool { return clients.answered() > n+200 })
	}
	clients.stop()
	if err := clients.err(); err != nil {
		t.Error(err)
	}
}
