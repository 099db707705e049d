// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// The quickstart gives the answers, the log lines, the output of commands, the list and
// the metrics that README.md and docs show. Times and the first upstream may differ.
func TestReadme_QuickstartIsAsShown(t *testing.T) {
	_, blocks, tables := testkit.README(t)
	ports := make(map[string]string)
	var there, here []string // addresses as in the README, and those of this test
	for _, port := range []string{"9001", "9002", "9003"} {
		ports[port] = fmt.Sprint(testkit.FreePort(t))
		there, here = append(there, port, ports[port]), append(here, ports[port], port)
	}
	dir := t.TempDir()
	site := testkit.Example(t, "quickstart", append(there, "root .", "root `"+dir+"`", "interval 2s", "interval 200ms")...)
	_, site, _ = strings.Cut(site, "\n}\n") // its global options
	c := testkit.StartCaddyWith(t, "", site)
	asShown := strings.NewReplacer(here...)
	client := c.ClientOf(2)
	testkit.Eventually(t, testkit.Patience, "the site has its certificate", func() bool { return testkit.Ask(client, c.SecureURL()).Err == nil })
	address := testkit.Loopback(0)
	second := strings.TrimSuffix(address, "0") + ports["9002"]
	allUp := func() bool {
		return c.Up(second) && c.Statuses(strings.TrimSuffix(address, "0")+ports["9001"], strings.TrimSuffix(address, "0")+ports["9003"])["up"] == 2
	}
	testkit.Eventually(t, testkit.Patience, "all are up", allUp)

	logged := func(msg string) string {
		t.Helper()
		var line string
		testkit.Eventually(t, testkit.Patience, "the log says "+msg, func() bool {
			text, err := os.ReadFile(c.LogFile())
			if err != nil {
				t.Fatal(err)
			}
			for of := range strings.Lines(string(text)) {
				if strings.Contains(of, fmt.Sprintf("%q", msg)) && strings.Contains(of, second) && !strings.Contains(of, `"unknown"`) {
					line = of
					return true
				}
			}
			return false
		})
		return asShown.Replace(line)
	}
	sick := filepath.Join(dir, "app2.sick")
	var metrics []string
	for _, b := range blocks {
		switch {
		case strings.HasPrefix(b.Text, "$ for i in 1 2 3 4 5 6; do curl -sk https://localhost:8443/; done\n"):
			want := strings.Split(strings.TrimSpace(b.Text), "\n")[1:]
			var got []string
			// the first upstream is random, and a verdict takes effect a moment later
			if !testkit.Poll(testkit.Patience, func() bool {
				for range want {
					if testkit.Ask(client, c.SecureURL()).Body == want[len(want)-1]+"\n" {
						break
					}
				}
				got = nil
				for range want {
					got = append(got, strings.TrimSpace(testkit.Ask(client, c.SecureURL()).Body))
				}
				return slices.Equal(got, want)
			}) {
				t.Errorf("%s: got %q, want %q", b, got, want)
			}
		case b.Text == "$ touch app2.sick\n":
			if err := os.WriteFile(sick, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, testkit.Patience, "it is down", func() bool { return c.Down(second) })
		case b.Text == "$ rm app2.sick\n":
			if err := os.Remove(sick); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(second) })
		case strings.HasPrefix(b.Text, `{"level"`):
			var want map[string]any
			if err := json.Unmarshal([]byte(b.Text), &want); err != nil {
				t.Fatal(err)
			}
			sameKeys(t, b.String(), logged(want["msg"].(string)), b.Text, "ts", "previous_duration")
		case strings.HasPrefix(b.Text, "$ caddy alive "):
			if err := os.WriteFile(sick, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, testkit.Patience, "it is down, and nothing is in flight", func() bool {
				return c.Down(second) && !slices.ContainsFunc(c.List(nil), func(e testkit.Upstream) bool { return e.Requests != 0 })
			})
			var got strings.Builder
			for line := range strings.Lines(b.Text) {
				args, isCommand := strings.CutPrefix(line, "$ caddy alive ")
				if !isCommand {
					continue
				}
				got.WriteString(line)
				stdout, stderr, _ := testkit.Command(t.Context(), c.Admin, strings.Fields(strings.NewReplacer(there...).Replace(args))...)
				got.WriteString(asShown.Replace(stdout + stderr))
			}
			if got, want := withoutTimes(got.String()), withoutTimes(b.Text); got != want {
				t.Errorf("%s: got\n%s\nwant\n%s", b, got, want)
			}
		case strings.HasPrefix(b.Text, "{\n  \"pool\""):
			var text string
			testkit.Eventually(t, testkit.Patience, "no probe is in flight", func() bool {
				_, text = c.Call(http.MethodGet, "/alive/upstreams", url.Values{"upstream": {second}}, "")
				return !strings.Contains(text, `"next":null`)
			})
			sameKeys(t, b.String(), asShown.Replace(strings.Trim(strings.TrimSpace(text), "[]")), b.Text,
				"since", "checks")
			var got, want struct{ Checks []json.RawMessage }
			if err := json.Unmarshal([]byte(strings.Trim(strings.TrimSpace(text), "[]")), &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(b.Text), &want); err != nil {
				t.Fatal(err)
			}
			sameKeys(t, b.String(), string(got.Checks[0]), string(want.Checks[0]),
				"consecutive_fails", "last", "last_failed", "recent_ms", "next")
		case strings.HasPrefix(b.Text, "$ curl -s localhost:2019/metrics"):
			_, text := c.Call(http.MethodGet, "/metrics", nil, "")
			wantMetrics(t, text, tables)
			for line := range strings.Lines(asShown.Replace(text)) {
				metrics = append(metrics, line[:strings.LastIndex(line, " ")])
			}
			for _, line := range strings.Split(strings.TrimSpace(b.Text), "\n")[1:] {
				if line == "…" {
					continue
				}
				if series := line[:strings.LastIndex(line, " ")]; !slices.Contains(metrics, series) {
					t.Errorf("%s: there is no %s", b, series)
				}
			}
		}
	}
	if metrics == nil {
		t.Error("no metrics are shown")
	}
}

var (
	histogram = regexp.MustCompile(`(?m)^# TYPE (caddy_alive_\w+) histogram$`)
	series    = regexp.MustCompile(`(?m)^(caddy_alive_\w+)\{(.*)\} `)
	labelName = regexp.MustCompile(`(\w+)="`)
	ofTable   = regexp.MustCompile(`^(\w+)\{(.*)\}$`)
)

// wantMetrics fails the test unless the tables have exactly the metrics of an answer of
// Caddy, with their labels.
func wantMetrics(t *testing.T, answer string, tables []testkit.Table) {
	t.Helper()
	for _, m := range histogram.FindAllStringSubmatch(answer, -1) {
		answer = regexp.MustCompile(m[1]+`_(bucket|sum|count)\b`).ReplaceAllString(answer, m[1])
	}
	var want, got []string
	for _, m := range series.FindAllStringSubmatch(answer, -1) {
		var labels []string
		for _, label := range labelName.FindAllStringSubmatch(m[2], -1) {
			if label[1] != "le" {
				labels = append(labels, label[1])
			}
		}
		want = append(want, fmt.Sprint(m[1], labels))
	}
	for _, table := range testkit.TablesOf(t, "metric", tables) {
		for _, row := range table.Rows {
			m := ofTable.FindStringSubmatch(testkit.InCode(row[0])[0])
			if m == nil {
				t.Fatalf("%s: not a metric with labels: %s", table, row[0])
			}
			labels := strings.Split(m[2], ",")
			slices.Sort(labels)
			got = append(got, fmt.Sprint(m[1], labels))
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if want = slices.Compact(want); !slices.Equal(got, want) {
		t.Errorf("metrics: got %q, want %q", got, want)
	}
}

var aTime = regexp.MustCompile(`\b[0-9.]+( ms|s)\b`)

// withoutTimes returns a text whose times are all the same, and with one space for many.
func withoutTimes(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, line := range lines {
		lines[i] = strings.Join(strings.Fields(aTime.ReplaceAllString(line, "N$1")), " ")
	}
	return strings.Join(lines, "\n")
}

// sameKeys fails the test unless two objects in JSON have the same keys, with the same
// values unless they are named.
func sameKeys(t *testing.T, what, got, want string, but ...string) {
	t.Helper()
	var g, w map[string]any
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Fatalf("%s: %v: %s", what, err, got)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for _, key := range but {
		if g[key] != nil && w[key] != nil {
			g[key], w[key] = "", ""
		}
	}
	if !maps.EqualFunc(g, w, func(a, b any) bool { return reflect.DeepEqual(a, b) }) {
		t.Errorf("%s: got %v, want %v", what, g, w)
	}
}
