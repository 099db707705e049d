// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// prometheus is a process of Prometheus that scrapes a Caddy each second.
type prometheus struct {
	t       *testing.T
	address string
}

// startPrometheus starts it with the configuration and the rules of the example.
func startPrometheus(t *testing.T, target string) *prometheus {
	t.Helper()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		skip(t, "prometheus is not installed")
	}
	folder := t.TempDir()
	config := strings.Replace(example(t, "prometheus/prometheus.yml"), "caddy:2020", target, 1)
	for name, text := range map[string]string{
		"prometheus.yml": "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\n" + config,
		"alerts.yml":     example(t, "prometheus/alerts.yml"),
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := &prometheus{t, fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	log, err := os.Create(filepath.Join(folder, "log"))
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(program, "--config.file="+filepath.Join(folder, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(folder, "data"), "--web.listen-address="+p.address)
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Signal(os.Interrupt)
		_ = command.Wait()
		log.Close()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("the log of Prometheus:\n%s", text[max(0, len(text)-4000):])
		}
	})
	eventually(t, "Prometheus is ready", func() bool {
		_, err := get(http.DefaultClient, "http://"+p.address+"/-/ready")
		return err == nil
	})
	return p
}

// ask reads the data of an answer of its API.
func (p *prometheus) ask(path string, data any) {
	p.t.Helper()
	text, err := get(http.DefaultClient, "http://"+p.address+"/api/v1/"+path)
	if err == nil {
		err = json.Unmarshal([]byte(text), &struct{ Data any }{data})
	}
	if err != nil {
		p.t.Fatalf("%s: %v", path, err)
	}
}

// query returns the labels of the series that an expression has now.
func (p *prometheus) query(expr string) (found []map[string]string) {
	p.t.Helper()
	var data struct {
		Result []struct{ Metric map[string]string }
	}
	p.ask("query?query="+url.QueryEscape(expr), &data)
	for _, r := range data.Result {
		found = append(found, r.Metric)
	}
	return found
}

// troubled is a site in which everything happens that the metrics show. Its paths choose the
// pool.
const troubled = `metrics /metrics
	handle /busy/* {
		reverse_proxy %[1]s {
			lb_policy alive {
				name busy
				max_requests 1
				queue 100ms 1
			}
		}
	}
	handle /failing/* {
		reverse_proxy %[1]s %[2]s {
			lb_policy alive {
				name failing
				check http /healthz {
					interval 100ms
				}
				eject 3 {
					for 500ms 500ms
				}
				retries off
			}
		}
	}
	handle /gone/* {
		reverse_proxy %[3]s %[4]s {
			lb_policy alive {
				name gone
				check tcp {
					interval 100ms
					fast_interval 50ms
				}
			}
		}
	}
	handle /flapping/* {
		reverse_proxy %[5]s {
			lb_policy alive {
				name flapping
				check http /healthz {
					interval 100ms
					fast_interval 50ms
				}
			}
		}
	}`

// With a Caddy in trouble, every query of the dashboard has series with the labels that its
// legend names, every variable has values, and every rule can be evaluated.
func TestDashboard_ShowsACaddyInTrouble(t *testing.T) {
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/busy") {
			time.Sleep(200 * time.Millisecond)
		}
	}))
	t.Cleanup(slow.Close)
	failing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	t.Cleanup(failing.Close)
	flapping := startBackend(t)
	c := startCaddy(t, t.TempDir(), "", fmt.Sprintf(troubled, slow.Listener.Addr(), failing.Listener.Addr(),
		fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t)), flapping.addr))
	p := startPrometheus(t, c.site)

	end := make(chan struct{})
	var clients sync.WaitGroup
	for _, path := range []string{"/busy/", "/busy/", "/busy/", "/busy/", "/failing/", "/gone/"} {
		clients.Go(func() {
			for {
				select {
				case <-end:
					return
				case <-time.After(50 * time.Millisecond):
					_, _ = get(http.DefaultClient, "http://"+c.site+path)
				}
			}
		})
	}
	clients.Go(func() {
		for {
			select {
			case <-end:
				return
			case <-time.After(time.Second):
				flapping.sick.Store(!flapping.sick.Load())
			}
		}
	})
	t.Cleanup(func() {
		close(end)
		clients.Wait()
	})

	var dashboard struct {
		Templating struct {
			List []struct {
				Name, Type, Definition string
			}
		}
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal([]byte(example(t, "prometheus/dashboard.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	legend := regexp.MustCompile(`\{\{(\w+)\}\}`)
	asked := 0
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			asked++
			expr := strings.NewReplacer("$__rate_interval", "10s", "$instance", ".+", `pool="$pool"`, `pool=~".+"`, "$pool", ".+").Replace(target.Expr)
			var found []map[string]string
			if !poll(func() bool { found = p.query(expr); return len(found) > 0 }) {
				t.Errorf("%s: nothing is found by %s", panel.Title, expr)
			}
			for _, m := range legend.FindAllStringSubmatch(target.LegendFormat, -1) {
				for _, labels := range found {
					if labels[m[1]] == "" {
						t.Errorf("%s: no label %s in %v", panel.Title, m[1], labels)
					}
				}
			}
		}
	}
	if asked < 20 {
		t.Errorf("the dashboard has %d queries", asked)
	}
	values := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)
	for _, v := range dashboard.Templating.List {
		if v.Type != "query" {
			continue
		}
		m := values.FindStringSubmatch(v.Definition)
		if m == nil {
			t.Errorf("the variable %s is not one of labels: %s", v.Name, v.Definition)
			continue
		}
		found := p.query(strings.ReplaceAll(m[1], "$instance", ".+"))
		if len(found) == 0 || found[0][m[2]] == "" {
			t.Errorf("the variable %s has no values", v.Name)
		}
	}

	fires := func(alert string) bool {
		return len(p.query(fmt.Sprintf("ALERTS{alertname=%q}", alert))) > 0
	}
	for _, alert := range []string{"UpstreamDown", "UpstreamEjected", "PoolFailsOpen", "NoUpstreamServes", "PoolHalfGone", "QueueRefuses"} {
		eventually(t, alert+" is pending or fires", func() bool { return fires(alert) })
	}
	// pending it may be, if Caddy was too busy for one scrape
	if len(p.query(`ALERTS{alertname="CaddyGone",alertstate="firing"}`)) > 0 {
		t.Error("CaddyGone fires")
	}
	for _, alert := range []string{"ChecksVoid", "LeftInDrain", "LeftInMaintenance"} {
		if fires(alert) {
			t.Errorf("%s fires", alert)
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
	p.ask("rules", &rules)
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			if rule.Health != "ok" {
				t.Errorf("the rule %s is %s: %s", rule.Name, rule.Health, rule.LastError)
			}
		}
	}
	if len(rules.Groups) != 1 || len(rules.Groups[0].Rules) < 10 {
		t.Errorf("Prometheus has the rules %+v", rules)
	}
}
