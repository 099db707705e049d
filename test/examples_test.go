// SPDX-License-Identifier: Apache-2.0

package test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// Caddy loads every example without a warning, not even of formatting.
func TestExamples_Load(t *testing.T) {
	files, err := filepath.Glob("../examples/*/Caddyfile")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples found: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			warnings, err := testkit.Validate(t, file, string(text))
			if err != nil {
				t.Error(err)
			}
			for _, w := range warnings {
				t.Errorf("%s:%d: %s", w.File, w.Line, w.Message)
			}
		})
	}
}

// Prometheus accepts its config and the rules.
func TestExamplePrometheus_ConfigIsValid(t *testing.T) {
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"check", "rules", "alerts.yml"}} {
		promtool(t, filepath.Join("..", "examples", "prometheus"), args...)
	}
}

// No GET request fails while one of two upstreams passes its check and is broken in any
// way. Requests of other methods are sent again only if no connection was made, as Caddy
// does by default.
func TestExamplePublicHTTPS_HidesFaults(t *testing.T) {
	var mu sync.Mutex
	fault := ""
	broken := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
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
	all := testkit.StartBackends(t, "a", "refuses")
	for _, test := range []struct {
		fault      string
		other, get [2]int // how many of 20 fail, at least and at most
	}{ // an upstream that fails five requests in a row is ejected
		{"502", [2]int{1, 5}, [2]int{}},
		{"503", [2]int{1, 5}, [2]int{}},
		{"504", [2]int{1, 5}, [2]int{}},
		{"500", [2]int{10, 10}, [2]int{10, 10}},
		{"no answer", [2]int{1, 5}, [2]int{}},
		{"no connection", [2]int{}, [2]int{}},
	} {
		t.Run(test.fault, func(t *testing.T) {
			mu.Lock()
			fault = test.fault
			mu.Unlock()
			address := broken.Addr
			if test.fault == "no connection" {
				address = all[1].Addr
			}
			c := testkit.StartCaddy(t, testkit.Example(t, "public-https", "app1:8080", all[0].Addr, "app2:8080", address))
			testkit.Eventually(t, testkit.Patience, "both pass", func() bool { return c.Up(all[0].Addr, address) })
			if address == all[1].Addr {
				all[1].Set(testkit.Refusing)
			}
			for _, method := range []string{http.MethodPost, http.MethodGet} {
				client, failed, want := c.Client(), 0, test.other
				if method == http.MethodGet {
					want = test.get
				}
				for range 20 {
					request, err := http.NewRequestWithContext(t.Context(), method, c.URL(), nil)
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
				if failed < want[0] || failed > want[1] {
					t.Errorf("%s: got %d failed of 20, want %d to %d", method, failed, want[0], want[1])
				}
			}
			if got := c.Lines("error matching"); len(got) > 0 {
				t.Errorf("what is to be retried cannot be told: %+v", got[0])
			}
			if n := c.Logged("no such overload"); n > 0 {
				t.Errorf("an expression fails %d times", n)
			}
		})
	}
}

// The canary gets one request of twenty, and another share when its weight is changed at
// run time.
func TestExampleCanary_GetsItsShare(t *testing.T) {
	all := testkit.StartBackends(t, "stable", "canary")
	c := testkit.StartCaddyWith(t, "", testkit.Example(t, "canary", "stable:8080", all[0].Addr, "canary:8080", all[1].Addr))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	testkit.Shares(t, "as it is", testkit.Tally(c.Client(), c.URL(), 100), map[string]int{"stable": 95, "canary": 5})
	if _, _, err := testkit.Command(t.Context(), c.Admin, "weight", all[1].Addr, "19"); err != nil {
		t.Fatal(err)
	}
	testkit.Shares(t, "with more", testkit.Tally(c.Client(), c.URL(), 100), map[string]int{"stable": 50, "canary": 50})
}

// The backup serves when no primary can serve. When it is down, too, clients get an error
// page, and no upstream gets requests.
func TestExampleBackups_ServeBeforeThePage(t *testing.T) {
	all := testkit.StartBackends(t, "app1", "app2", "standby")
	c := testkit.StartCaddy(t, testkit.Example(t, "backups", "app1:8080", all[0].Addr, "app2:8080", all[1].Addr, "standby:8080", all[2].Addr,
		"check http /healthz", "check http /healthz {\n interval 50ms\n}"))
	testkit.Eventually(t, testkit.Patience, "all are up", func() bool { return c.Up(all[0].Addr, all[1].Addr, all[2].Addr) })
	testkit.Shares(t, "primaries", testkit.Tally(c.Client(), c.URL(), 10), map[string]int{"app1": 5, "app2": 5})
	for i, want := range []map[string]int{{"app2": 10}, {"standby": 10}} {
		all[i].Set(testkit.Sick)
		testkit.Eventually(t, testkit.Patience, "one more is down", func() bool { return c.Down(all[i].Addr) })
		testkit.Shares(t, "one more is down", testkit.Tally(c.Client(), c.URL(), 10), want)
	}
	all[2].Set(testkit.Sick)
	testkit.Eventually(t, testkit.Patience, "all are down", func() bool { return c.Down(all[2].Addr) })
	if got := testkit.Ask(c.Client(), c.URL()); got.Status != http.StatusServiceUnavailable || got.Body != "We will be back in a moment." {
		t.Errorf("without any: %v", got)
	}
}

// The steps of the script, one upstream after the other, fail no request under traffic.
func TestExampleBlueGreen_FailsNoRequest(t *testing.T) {
	blue, green := testkit.StartBackend(t, "blue", nil), testkit.StartBackend(t, "green", nil)
	c := testkit.StartCaddyWith(t, "", testkit.Example(t, "blue-green", "blue:8080", blue.Addr, "green:8080", green.Addr))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(blue.Addr, green.Addr) })
	client := c.Client()
	clients := testkit.StartTraffic(t, 16, func() testkit.Answer { return testkit.Ask(client, c.URL()) })
	for _, b := range []*testkit.Backend{blue, green} {
		if _, _, err := testkit.Command(t.Context(), c.Admin, "drain", b.Addr, "--wait", "10s"); err != nil {
			t.Fatal(err)
		}
		b.Set(testkit.Refusing) // it is replaced, which takes long enough to be noticed
		testkit.Eventually(t, testkit.Patience, "it is gone", func() bool { return c.Down(b.Addr) })
		b.Set(testkit.Well)
		if _, _, err := testkit.Command(t.Context(), c.Admin, "check", b.Addr, "--wait", "10s"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := testkit.Command(t.Context(), c.Admin, "ready", b.Addr); err != nil {
			t.Fatal(err)
		}
		n := clients.Answered()
		testkit.Eventually(t, testkit.Patience, "it serves again", func() bool { return clients.Answered() > n+200 })
	}
	clients.Stop()
	if err := clients.Err(); err != nil {
		t.Error(err)
	}
}

// Of two gRPC upstreams, the one with a service that does not serve gets no requests.
func TestExampleGRPC_ServiceDecides(t *testing.T) {
	service := grpchealth.NewServer()
	service.SetServingStatus("shop.v1.Orders", grpc_health_v1.HealthCheckResponse_SERVING)
	serving, without := startGRPC(t, service), startGRPC(t, grpchealth.NewServer())
	c := testkit.StartCaddyWith(t, "", testkit.Example(t, "grpc", "app1:50051", serving, "app2:50051", without, "grpc.example.com {", "http:// {"))
	testkit.Eventually(t, testkit.Patience, "a verdict on both", func() bool { return c.Up(serving) && c.Down(without) })
	if e := c.One(without); e.Serving || !strings.Contains(e.Why, "does not know the service 'shop.v1.Orders'") {
		t.Errorf("%+v", e)
	}
	for range 4 {
		testkit.Ask(c.Client(), c.URL())
	}
	c.WantMetrics("picks", map[string]float64{
		`selections_total{pool="` + serving + " " + without + `",upstream="` + serving + `"}`: 4,
		`selections_total{pool="` + serving + " " + without + `",upstream="` + without + `"}`: 0,
	})
}

// The page asks for a password, and then shows the upstreams of the other site.
func TestExampleStatusPage_AsksForAPassword(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	c := testkit.StartCaddyWith(t, "", testkit.Example(t, "status-page", "app1:8080", all[0].Addr, "app2:8080", all[1].Addr, "status.example.com {", "http://localhost {"))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	client := c.Client()
	client.Timeout = 4 * testkit.Patience // a password takes long on a busy machine, above all under the race detector
	for _, tc := range []struct {
		password string
		status   int
	}{{"", http.StatusUnauthorized}, {"guess", http.StatusUnauthorized}, {"change me", http.StatusOK}} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.URL(), nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Host = "localhost"
		request.Header.Set("Accept", "text/html")
		if tc.password != "" {
			request.SetBasicAuth("operator", tc.password)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		page, err := io.ReadAll(response.Body)
		response.Body.Close()
		if shown := strings.Contains(string(page), all[1].Addr); err != nil || response.StatusCode != tc.status || shown != (tc.status == http.StatusOK) {
			t.Errorf("password %q: status %d, want %d, upstreams shown: %v, %v", tc.password, response.StatusCode, tc.status, shown, err)
		}
	}
}

// Metrics are at a port of their own, where the admin API is not.
func TestExamplePrometheus_HasAPortOfItsOwn(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	scraped := testkit.Loopback(testkit.FreePort(t))
	c := testkit.StartCaddyWith(t, "", testkit.Example(t, "prometheus", "app1:8080", all[0].Addr, "app2:8080", all[1].Addr, "http://:2020 {", "http://"+scraped+" {"))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	if got := testkit.Ask(c.Client(), "http://"+scraped+"/metrics"); got.Status != http.StatusOK || !strings.Contains(got.Body, `caddy_alive_pool_upstreams{pool="app",state="up"} 2`) {
		t.Errorf("scraped: status %d: %s", got.Status, got.Body)
	}
	if got := testkit.Ask(c.Client(), "http://"+scraped+"/alive/upstreams"); strings.Contains(got.Body, all[0].Addr) {
		t.Errorf("the admin API answers there: %s", got.Body)
	}
}

// A dead address of a name gets no requests, and an address that the name has from now
// on gets some.
func TestExampleDynamicDNS_FollowsTheName(t *testing.T) {
	port, all := testkit.StartLoopbacks(t, testkit.Well, testkit.Refusing, testkit.Well)
	n, name := testkit.StartNameServer(t), testkit.NewName()
	n.Set(name, testkit.Records{A: []string{"127.0.0.1", "127.0.0.2"}})
	c := testkit.StartCaddyWith(t, "", testkit.Example(t, "dynamic-dns", "name app.internal", "name "+name, "port 8080", "port "+strconv.Itoa(port),
		"refresh 10s", "refresh 100ms\nversions ipv4\nresolvers "+n.Addr()))
	testkit.Ask(c.Client(), c.URL())
	testkit.Eventually(t, testkit.Patience, "a verdict on both", func() bool { return c.Up(all[0].Addr) && c.Down(all[1].Addr) })
	testkit.Shares(t, "one is dead", testkit.Tally(c.Client(), c.URL(), 10), map[string]int{"a": 10})
	n.Set(name, testkit.Records{A: []string{"127.0.0.1", "127.0.0.3"}})
	testkit.Eventually(t, testkit.Patience, "the new one serves", func() bool { return testkit.Ask(c.Client(), c.URL()).Body == "c" })
}
