// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
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
			warnings, err := validateCaddyfile(t, file, string(text))
			if err != nil {
				t.Error(err)
			}
			for _, w := range warnings {
				t.Errorf("%s:%d: %s", w.File, w.Line, w.Message)
			}
		})
	}
}

// validateCaddyfile adapts a Caddyfile and loads what comes of it, without running it.
func validateCaddyfile(t *testing.T, name, text string) ([]caddyconfig.Warning, error) {
	t.Helper()
	adapted, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": name})
	if err != nil {
		return nil, err
	}
	var config *caddy.Config
	if err := json.Unmarshal(adapted, &config); err != nil {
		return nil, err
	}
	return warnings, validateConfig(t, config)
}

// validateConfig loads a config without running it.
func validateConfig(t *testing.T, config *caddy.Config) error {
	t.Helper()
	// keep what a config loads by itself away from the user's own files
	config.StorageRaw = caddyconfig.JSONModuleObject(map[string]string{"root": t.TempDir()}, "module", "file_system", nil)
	return caddy.Validate(config)
}

// What the alerts ask for is what there is.
func TestExampleAlerts(t *testing.T) {
	text, err := os.ReadFile("examples/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	descs := make(chan *prometheus.Desc, 100)
	telemetry.Collector{}.Describe(descs)
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

// Prometheus itself has nothing to say against its config and the rules.
func TestExamplePrometheusConfig(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("skipped, for promtool (Debian package prometheus) is not installed")
	}
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"check", "rules", "alerts.yml"}} {
		command := exec.CommandContext(t.Context(), promtool, args...)
		command.Dir = filepath.Join("examples", "prometheus")
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("%v: %v: %s", args, err, out)
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
	return strings.NewReplacer(append(replace, "\nexample.com {", "\nhttp:// {")...).Replace(string(text))
}

// With one of two upstreams that is broken in any way, and passes its check, no GET
// request fails. Others are only sent again if no connection was made, as Caddy does by
// itself.
func TestCaddyExamplePublicHTTPS(t *testing.T) {
	var mu sync.Mutex
	fault := ""
	broken := startRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case r.URL.Path == "/healthz":
		case fault == "no answer":
			panic(http.ErrAbortHandler)
		default:
			status, _ := strconv.Atoi(fault)
			w.WriteHeader(status)
		}
	})
	all := startBackends(t, "a", "refuses")
	for _, test := range []struct {
		fault      string
		get, other int // how many of 20 fail
	}{{"502", 0, 10}, {"503", 0, 10}, {"504", 0, 10}, {"500", 10, 10}, {"no answer", 0, 10}, {"no connection", 0, 0}} {
		t.Run(test.fault, func(t *testing.T) {
			mu.Lock()
			fault = test.fault
			mu.Unlock()
			address := broken.addr
			if test.fault == "no connection" {
				address = all[1].addr
			}
			c := startCaddy(t, exampleOf(t, "public-https", "app1:8080", all[0].addr, "app2:8080", address))
			eventually(t, patience, "both pass", func() bool { return statuses(all[0].addr, address)[health.Up] == 2 })
			if address == all[1].addr {
				all[1].set(refusing)
			}
			for method, want := range map[string]int{http.MethodGet: test.get, http.MethodPost: test.other} {
				client, failed := c.plain(), 0
				for range 20 {
					request, err := http.NewRequestWithContext(t.Context(), method, c.url(), nil)
					if err != nil {
						t.Fatal(err)
					}
					response, err := client.Do(request)
					if err != nil {
						t.Fatal(err)
					}
					response.Body.Close()
					if response.StatusCode != http.StatusOK {
						failed++
					}
				}
				if failed != want {
					t.Errorf("%s: got %d failed of 20, want %d", method, failed, want)
				}
			}
			if got := c.lines("error matching"); len(got) > 0 {
				t.Errorf("what is to be retried cannot be told: %+v", got[0])
			}
			if n := c.logged("no such overload"); n > 0 {
				t.Errorf("an expression fails %d times", n)
			}
		})
	}
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
		b.set(refusing) // it is replaced, which takes long enough to be noticed
		eventually(t, patience, "it is gone", func() bool { return is(health.Down, b.addr) })
		b.set(well)
		if _, _, err := command(t.Context(), c.admin, "check", b.addr, "--wait", "10s"); err != nil {
			t.Fatal(err)
		}
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

// Of two gRPC upstreams, the one whose service does not serve gets no requests.
func TestCaddyExampleGRPC(t *testing.T) {
	service := grpchealth.NewServer()
	service.SetServingStatus("shop.v1.Orders", grpc_health_v1.HealthCheckResponse_SERVING)
	serving, without := startGRPC(t, service), startGRPC(t, grpchealth.NewServer())
	c := startOperated(t, "", exampleOf(t, "grpc", "app1:50051", serving, "app2:50051", without, "grpc.example.com {", "http:// {"))
	eventually(t, patience, "a verdict on both", func() bool { return is(health.Up, serving) && is(health.Down, without) })
	if e := c.one(without); e.Serving || !strings.Contains(e.Why, "does not know the service 'shop.v1.Orders'") {
		t.Errorf("%+v", e)
	}
	for range 4 {
		ask(c.plain(), c.url())
	}
	c.wantMetrics("picks", map[string]float64{
		`selections_total{pool="` + serving + " " + without + `",upstream="` + serving + `"}`: 4,
		`selections_total{pool="` + serving + " " + without + `",upstream="` + without + `"}`: 0,
	})
}

// The page asks for a password, and then shows the upstreams of the other site.
func TestCaddyExampleStatusPage(t *testing.T) {
	all := startBackends(t, "a", "b")
	c := startOperated(t, "", exampleOf(t, "status-page", "app1:8080", all[0].addr, "app2:8080", all[1].addr, "status.example.com {", "http://localhost {"))
	eventually(t, patience, "both are up", func() bool { return statuses(all[0].addr, all[1].addr)[health.Up] == 2 })
	for _, tc := range []struct {
		password string
		status   int
	}{{"", http.StatusUnauthorized}, {"guess", http.StatusUnauthorized}, {"change me", http.StatusOK}} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url(), nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Host = "localhost"
		request.Header.Set("Accept", "text/html")
		if tc.password != "" {
			request.SetBasicAuth("operator", tc.password)
		}
		response, err := c.plain().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		page, err := io.ReadAll(response.Body)
		response.Body.Close()
		if shown := strings.Contains(string(page), all[1].addr); err != nil || response.StatusCode != tc.status || shown != (tc.status == http.StatusOK) {
			t.Errorf("password %q: status %d, want %d, upstreams shown: %v, %v", tc.password, response.StatusCode, tc.status, shown, err)
		}
	}
}

// Metrics are at a port of their own, where the admin API is not.
func TestCaddyExamplePrometheus(t *testing.T) {
	all := startBackends(t, "a", "b")
	scraped := loopback(freePort(t))
	c := startOperated(t, "", exampleOf(t, "prometheus", "app1:8080", all[0].addr, "app2:8080", all[1].addr, "http://:2020 {", "http://"+scraped+" {"))
	eventually(t, patience, "both are up", func() bool { return statuses(all[0].addr, all[1].addr)[health.Up] == 2 })
	if got := ask(c.plain(), "http://"+scraped+"/metrics"); got.status != http.StatusOK || !strings.Contains(got.body, `caddy_alive_pool_upstreams{pool="app",state="up"} 2`) {
		t.Errorf("scraped: status %d: %s", got.status, got.body)
	}
	if got := ask(c.plain(), "http://"+scraped+"/alive/upstreams"); strings.Contains(got.body, all[0].addr) {
		t.Errorf("the admin API answers there: %s", got.body)
	}
}

// Who is dead of the addresses of a name gets no requests, and an address that the
// name has from now on gets some.
func TestCaddyExampleDynamicDNS(t *testing.T) {
	port, all := startLoopbacks(t, well, refusing, well)
	n, name := startNameServer(t), newName()
	n.set(name, nameAnswer{a: []string{"127.0.0.1", "127.0.0.2"}})
	c := startOperated(t, "", exampleOf(t, "dynamic-dns", "name app.internal", "name "+name, "port 8080", "port "+strconv.Itoa(port),
		"refresh 10s", "refresh 100ms\nversions ipv4\nresolvers "+n.conn.LocalAddr().String()))
	ask(c.plain(), c.url())
	eventually(t, patience, "a verdict on both", func() bool { return is(health.Up, all[0].addr) && is(health.Down, all[1].addr) })
	shares(t, "one is dead", tally(c.plain(), c.url(), 10), map[string]int{"a": 10})
	n.set(name, nameAnswer{a: []string{"127.0.0.1", "127.0.0.3"}})
	eventually(t, patience, "the new one serves", func() bool { return ask(c.plain(), c.url()).body == "c" })
}
