// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// caddyVersion returns the version of Caddy that go.mod requires, without a v.
func caddyVersion(t *testing.T) string {
	t.Helper()
	m := regexp.MustCompile(`github\.com/caddyserver/caddy/v2 v(\S+)`).FindStringSubmatch(testkit.Documents(t, "go.mod")[0].Text)
	if m == nil {
		t.Fatal("go.mod does not require Caddy")
	}
	return m[1]
}

var (
	officialImage = regexp.MustCompile(`[^/\w]caddy:([^\s"` + "`" + `,]+)`)
	buildArgument = regexp.MustCompile(`(?m)^ARG (\w+)=(\S+)$`)
	xcaddyLine    = regexp.MustCompile(`xcaddy"? (build .*)`)
)

// Official images have the version that go.mod requires, and every line of xcaddy is one of the
// README.
func TestDockerfile_BuildsAsTheReadmeDoes(t *testing.T) {
	var known []string
	for _, m := range xcaddyLine.FindAllStringSubmatch(testkit.Documents(t, "README.md")[0].Text, -1) {
		known = append(known, m[1])
	}
	images, lines := 0, 0
	for _, d := range testkit.Documents(t, "examples/docker/Dockerfile", "examples/docker/compose.yml", "examples/kubernetes/*.yaml", "docs/deploying.md") {
		text := strings.ReplaceAll(d.Text, "\\\n", "")
		for _, m := range buildArgument.FindAllStringSubmatch(text, -1) {
			text = strings.NewReplacer("${"+m[1]+"}", m[2], "$"+m[1], m[2]).Replace(text)
		}
		for _, m := range officialImage.FindAllStringSubmatch(text, -1) {
			images++
			if version := strings.TrimSuffix(m[1], "-builder"); version != caddyVersion(t) {
				t.Errorf("%s: image caddy:%s, but go.mod has %s", d.Path, m[1], caddyVersion(t))
			}
		}
		for _, m := range xcaddyLine.FindAllStringSubmatch(text, -1) {
			lines++
			line, _, _ := strings.Cut(strings.ReplaceAll(m[1], `"`, ""), " --output ")
			if !slices.Contains(known, line) {
				t.Errorf("%s: README.md has no %q, but %q", d.Path, line, known)
			}
		}
	}
	if images < 8 || lines != 2 {
		t.Errorf("found %d images and %d lines of xcaddy", images, lines)
	}
}

// The pages show the lines of the files that they speak of.
func TestDeploying_ShowsTheFiles(t *testing.T) {
	blocks, _ := testkit.Documentation(t)
	comment := regexp.MustCompile(`(?m)^\s*#.*\n`)
	config := comment.ReplaceAllString(testkit.Documents(t, "examples/kubernetes/caddy.yaml")[0].Text, "")
	unit := comment.ReplaceAllString(testkit.Documents(t, "examples/systemd/alive.conf")[0].Text, "")
	shown := 0
	for _, b := range blocks {
		switch {
		case b.Path != "docs/deploying.md":
		case b.Language == "ini":
			shown++
			if b.Text != strings.TrimLeft(unit, "\n") {
				t.Errorf("%s: examples/systemd/alive.conf has\n%s", b, unit)
			}
		case strings.Contains(b.Text, "http.shutting_down"):
			shown++
			for line := range strings.Lines(b.Text) {
				if !strings.Contains(config, strings.TrimRight(line, "\n")) {
					t.Errorf("%s: examples/kubernetes/caddy.yaml has no line %q", b, line)
				}
			}
		}
	}
	if shown != 2 {
		t.Errorf("found %d blocks, want 2", shown)
	}
}

var elsewhere = regexp.MustCompile(`(?:exec \S+(?: --)?|compose .*exec caddy|sudo -u caddy) caddy (.*)$`)

// Every command of Caddy that runs in a container, or as another user, exists with its flags.
func TestDeploying_CommandsExist(t *testing.T) {
	root := &cobra.Command{Use: "alive"}
	caddycmd.Commands()["alive"].CobraFunc(root)
	blocks, _ := testkit.Documentation(t)
	found := 0
	for _, b := range testkit.BlocksIn("sh", blocks) {
		for line := range strings.Lines(b.Text) {
			m := elsewhere.FindStringSubmatch(strings.TrimSpace(line))
			if m == nil {
				continue
			}
			found++
			args := strings.Fields(m[1])
			if _, known := caddycmd.Commands()[args[0]]; !known {
				t.Errorf("%s: Caddy has no command %s", b, args[0])
			}
			if args[0] != "alive" {
				continue
			}
			command, _, err := root.Find(args[1:2])
			if err != nil || command == root {
				t.Errorf("%s: there is no command %s: %v", b, args[1], err)
				continue
			}
			for _, arg := range args[2:] {
				if name, isFlag := strings.CutPrefix(arg, "--"); isFlag && command.Flag(name) == nil {
					t.Errorf("%s: %s has no %s", b, args[1], arg)
				}
			}
		}
	}
	if found < 8 {
		t.Errorf("found only %d commands", found)
	}
}

// labelsOf are the labels of each metric, and valuesOf what the table says of each: values of
// labels are in it as code. TestReadmeMetrics holds the table to what the collector has.
func documentedMetrics(t *testing.T) (labelsOf map[string][]string, valuesOf map[string][]string) {
	t.Helper()
	labelsOf = map[string][]string{"up": {"instance", "job"}}
	valuesOf = map[string][]string{"up": nil}
	_, tables := testkit.Documentation(t)
	for _, table := range testkit.TablesOf(t, "metric", tables) {
		for _, row := range table.Rows {
			name, labels, _ := strings.Cut(strings.TrimSuffix(testkit.InCode(row[0])[0], "}"), "{")
			names := []string{name}
			if strings.HasPrefix(row[1], "a histogram") {
				names = []string{name + "_bucket", name + "_sum", name + "_count"}
			}
			for _, n := range names {
				labelsOf[n] = append(strings.Split(labels, ","), "instance", "job")
				if strings.HasSuffix(n, "_bucket") {
					labelsOf[n] = append(labelsOf[n], "le")
				}
				valuesOf[n] = testkit.InCode(row[1])
				if name == "caddy_alive_transitions_total" {
					valuesOf[n] = []string{"up", "down"}
				}
			}
		}
	}
	return labelsOf, valuesOf
}

var (
	selector    = regexp.MustCompile(`([a-z_]+)\{([^}]*)\}`)
	matcher     = regexp.MustCompile(`(\w+)\s*(?:=~|!=|!~|=)\s*"([^"]*)"`)
	grouping    = regexp.MustCompile(`\b(by|on|group_left) \(([^)]*)\)`)
	ranges      = regexp.MustCompile(`\[[^]]*\]`)
	words       = regexp.MustCompile(`[a-zA-Z_][a-zA-Z0-9_]*`)
	ofPromQL    = strings.Fields("absent and by count histogram_quantile increase max min_over_time on or rate sort_desc sum avg vector")
	labelInText = regexp.MustCompile(`\{\{ ?(?:or )?(?:\$labels\.)?(\w+)`)
	variables   = strings.NewReplacer("$__rate_interval", "1m", "$instance", ".+", "$pool", ".+", "${datasource}", "prometheus")
)

// checkExpression fails the test if an expression names a metric, a label, or a value of a label
// that does not exist, or if a text names a label that the result does not have.
func checkExpression(t *testing.T, where, expr, text string, labelsOf, valuesOf map[string][]string) {
	t.Helper()
	all := make(map[string]bool) // the labels of all its metrics
	rest := selector.ReplaceAllStringFunc(expr, func(part string) string {
		m := selector.FindStringSubmatch(part)
		for _, pair := range matcher.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(labelsOf[m[1]], pair[1]) {
				t.Errorf("%s: %s has no label %s, but %v", where, m[1], pair[1], labelsOf[m[1]])
			}
			if pair[1] == "instance" || pair[1] == "pool" || pair[1] == "job" {
				continue
			}
			for value := range strings.SplitSeq(pair[2], "|") {
				if !slices.Contains(valuesOf[m[1]], value) {
					t.Errorf("%s: %s{%s} is never %q", where, m[1], pair[1], value)
				}
			}
		}
		return m[1]
	})
	var kept []string
	rest = grouping.ReplaceAllStringFunc(rest, func(part string) string {
		m := grouping.FindStringSubmatch(part)
		for label := range strings.SplitSeq(m[2], ", ") {
			kept = append(kept, label)
		}
		return m[1]
	})
	rest = ranges.ReplaceAllString(rest, "")
	for _, word := range words.FindAllString(rest, -1) {
		labels, known := labelsOf[word]
		if !known && !slices.Contains(ofPromQL, word) {
			t.Errorf("%s: there is no metric %s in %s", where, word, expr)
		}
		for _, label := range labels {
			all[label] = true
		}
	}
	if len(all) == 0 {
		t.Errorf("%s: no metric in %s", where, expr)
	}
	for _, label := range kept {
		if !all[label] {
			t.Errorf("%s: no metric of %s has the label %s", where, expr, label)
		}
	}
	if !strings.Contains(expr, " by (") {
		kept = slices.Collect(maps.Keys(all))
	}
	for _, m := range labelInText.FindAllStringSubmatch(text, -1) {
		if m[1] != "value" && !slices.Contains(kept, m[1]) {
			t.Errorf("%s: %s has no label %s", where, expr, m[1])
		}
	}
}

// All metrics, labels and states in the alerts exist.
func TestExampleAlerts_NameWhatExists(t *testing.T) {
	labelsOf, valuesOf := documentedMetrics(t)
	parts := regexp.MustCompile(`(?s)- alert: (\w+)\n\s+expr: (?:\|\n)?(.*?)\n\s+(?:for|labels):.*?summary: (.*?)\n`).FindAllStringSubmatch(testkit.Documents(t, "examples/prometheus/alerts.yml")[0].Text+"\n", -1)
	if len(parts) < 10 {
		t.Fatalf("found only %d alerts", len(parts))
	}
	for _, m := range parts {
		checkExpression(t, m[1], m[2], strings.ReplaceAll(m[3], "$value", "value"), labelsOf, valuesOf)
	}
}

// Each alert fires when it is to, and not before: testdata/alerts_test.yml has both for each.
func TestExampleAlerts_FireWhenTheyAreTo(t *testing.T) {
	cases := testkit.Documents(t, "test/testdata/alerts_test.yml")[0].Text
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(testkit.Documents(t, "examples/prometheus/alerts.yml")[0].Text, -1) {
		if !strings.Contains(cases, "{alertname: "+m[1]+",") || !regexp.MustCompile(`alertname: `+m[1]+`\n\s+eval_time: \w+\n\s+exp_alerts:`).MatchString(cases) {
			t.Errorf("there are no cases in which %s fires and in which it does not", m[1])
		}
	}
	promtool(t, "testdata", "test", "rules", "alerts_test.yml")
}

// promtool runs the program of that name in a folder.
func promtool(t *testing.T, folder string, args ...string) {
	t.Helper()
	program, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool (Debian package prometheus) is not installed")
	}
	command := exec.CommandContext(t.Context(), program, args...)
	command.Dir = folder
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v: %v: %s", args, err, out)
	}
}

// Prometheus accepts the configurations in the documents.
func TestDeploying_PrometheusAcceptsTheConfig(t *testing.T) {
	blocks, _ := testkit.Documentation(t)
	found, folder := 0, t.TempDir()
	for _, b := range testkit.BlocksIn("yaml", blocks) {
		if !strings.HasPrefix(b.Text, "scrape_configs:") {
			continue
		}
		found++
		if err := os.WriteFile(filepath.Join(folder, "prometheus.yml"), []byte(b.Text), 0o600); err != nil {
			t.Fatal(err)
		}
		promtool(t, folder, "check", "config", "prometheus.yml")
	}
	if found == 0 {
		t.Error("the documents have no configuration of Prometheus")
	}
}

// dashboard is what a dashboard of Grafana has that matters here.
type dashboard struct {
	UID           string `json:"uid"`
	Title         string
	SchemaVersion int
	Templating    struct {
		List []struct {
			Name, Type string
			Query      any
		}
	}
	Panels []panel
}

type panel struct {
	ID                       int
	Type, Title, Description string
	Repeat                   string
	Datasource               struct{ UID string }
	GridPos                  struct{ X, Y, W, H int }
	Targets                  []struct {
		RefID, Expr, LegendFormat string
		Datasource                struct{ UID string }
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	if err := json.Unmarshal([]byte(testkit.Documents(t, "examples/prometheus/dashboard.json")[0].Text), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// The dashboard can be imported beside others, at any data source, and its panels do not cover
// each other.
func TestDashboard_IsWellFormed(t *testing.T) {
	d := readDashboard(t)
	if d.UID == "" || d.Title == "" || d.SchemaVersion < 36 {
		t.Errorf("uid %q, title %q, schemaVersion %d", d.UID, d.Title, d.SchemaVersion)
	}
	known := map[string]bool{"__rate_interval": true}
	for _, v := range d.Templating.List {
		known[v.Name] = true
	}
	if len(d.Templating.List) == 0 || d.Templating.List[0].Type != "datasource" || d.Templating.List[0].Query != "prometheus" {
		t.Error("the first variable is not the data source")
	}
	for _, m := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(testkit.Documents(t, "examples/prometheus/dashboard.json")[0].Text, -1) {
		if !known[m[1]] && m[1] != "__all" {
			t.Errorf("there is no variable %s", m[1])
		}
	}
	ids, cells := make(map[int]bool), make(map[[2]int]string)
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID == 0 {
			t.Errorf("%s: the id %d is not its own", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s covers %s, or is too wide", p.Title, other)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		if p.Repeat != "" && !known[p.Repeat] {
			t.Errorf("%s: there is no variable %s", p.Title, p.Repeat)
		}
		if p.Type == "row" {
			continue
		}
		if p.Title == "" || p.Description == "" || len(p.Targets) == 0 || p.Datasource.UID != "${datasource}" {
			t.Errorf("panel %d: no title, description, query or data source: %+v", p.ID, p)
		}
		refs := make(map[string]bool)
		for _, q := range p.Targets {
			if q.RefID == "" || refs[q.RefID] || q.Datasource.UID != "${datasource}" {
				t.Errorf("%s: the query %q has no name of its own, or no data source", p.Title, q.RefID)
			}
			refs[q.RefID] = true
		}
	}
	if first := d.Panels[0]; first.Title != "What is wrong" || first.GridPos.Y != 0 {
		t.Errorf("the dashboard begins with %s", first.Title)
	}
}

// All metrics, labels and states in the dashboard exist, Prometheus accepts each query, and each
// metric of the collector is shown.
func TestDashboard_NamesWhatExists(t *testing.T) {
	labelsOf, valuesOf := documentedMetrics(t)
	var rules strings.Builder
	rules.WriteString("groups:\n- name: dashboard\n  rules:\n")
	shown, n := "", 0
	for _, p := range readDashboard(t).Panels {
		for _, q := range p.Targets {
			n++
			expr := variables.Replace(q.Expr)
			checkExpression(t, p.Title, expr, q.LegendFormat, labelsOf, valuesOf)
			fmt.Fprintf(&rules, "  - {record: 'panel%d', expr: '%s'}\n", n, strings.ReplaceAll(expr, "'", "''"))
			shown += q.Expr
		}
	}
	for name := range labelsOf {
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		if !strings.Contains(shown, base+"{") && !strings.Contains(shown, base+"_bucket{") {
			t.Errorf("no panel shows %s", name)
		}
	}
	if n < 20 {
		t.Errorf("found only %d queries", n)
	}
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "rules.yml"), []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, folder, "check", "rules", "rules.yml")
}
