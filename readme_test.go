// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/suggest"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// What README.md and the pages of docs say is so, as far as a program can tell.

// Caddy loads every Caddyfile, and every part of one. TestReadmeOptions reads the one
// that shows the grammar.
func TestReadmeCaddyfiles(t *testing.T) {
	t.Setenv("LB_SECRET", "as an operator sets it")
	blocks, _ := testkit.Documentation(t)
	for _, b := range testkit.BlocksIn("caddyfile", blocks) {
		if strings.HasPrefix(b.Text, "lb_policy") {
			continue
		}
		text := strings.ReplaceAll(b.Text, "<hash>", "$2a$14$iRgAspVBf.1L1155YkKnOOM26uDHGXID5i5C9jYyy3LPzqkAcY33e")
		if strings.HasPrefix(text, "reverse_proxy ") {
			text = "example.com {\n" + text + "}\n"
		}
		if _, err := testkit.Validate(t, b.String(), text); err != nil {
			t.Errorf("%s: %v", b, err)
		}
	}
}

// Caddy loads the config in JSON. TestCaddyReadme compares all other JSON with what Caddy
// prints.
func TestReadmeJSON(t *testing.T) {
	blocks, _ := testkit.Documentation(t)
	for _, b := range testkit.BlocksIn("json", blocks) {
		var value map[string]any
		if err := json.Unmarshal([]byte(b.Text), &value); err != nil {
			t.Errorf("%s: %v", b, err)
			continue
		}
		if value["handler"] == nil {
			continue
		}
		var config *caddy.Config
		err := json.Unmarshal([]byte(`{"apps": {"http": {"servers": {"site": {"routes": [{"handle": [`+b.Text+`]}]}}}}}`), &config)
		if err != nil {
			t.Fatal(err)
		}
		if err := testkit.ValidateConfig(t, config); err != nil {
			t.Errorf("%s: %v", b, err)
		}
	}
}

var (
	firstWord = regexp.MustCompile(`(?m)^\t([a-z_]+)`)
	allowed   = regexp.MustCompile(`unrecognized option 'nonsense': .*?(?: has |exec check has )(.*?)(?:, at |$)`)
)

// optionsOf returns the options that an error of a parser lists.
func optionsOf(t *testing.T, err error) []string {
	t.Helper()
	m := allowed.FindStringSubmatch(fmt.Sprint(err))
	if m == nil {
		t.Fatalf("no list of options in the error: %v", err)
	}
	return slices.Sorted(slices.Values(strings.Split(strings.ReplaceAll(m[1], " and ", ", "), ", ")))
}

// Each table of options has exactly the options that the code knows, and so has the
// grammar. Defaults are those of the code.
func TestReadmeOptions(t *testing.T) {
	blocks, tables := testkit.Documentation(t)
	parse := func(text string) error {
		return new(Selection).UnmarshalCaddyfile(caddyfile.NewTestDispenser("alive {\n" + text + "\n}"))
	}
	policy := optionsOf(t, parse("nonsense"))
	var common []string
	for field := range reflect.TypeFor[HealthCheck]().Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" && name != "probe" {
			common = append(common, name)
		}
	}
	const everyCheck, everyMember = "## Options of every check", "## The global option"
	of := map[string][]string{ // by the line before the table
		"## Options":               policy,
		"## Options of the policy": policy,
		everyCheck:                 slices.Sorted(slices.Values(common)),
		everyMember:                slices.Sorted(slices.Values(suggest.GlobalOptions)),
		"## HTTP":                  optionsOf(t, parse("check http / {\nnonsense\n}")),
		"## TCP":                   optionsOf(t, parse("check tcp {\nnonsense\n}")),
		"## TLS":                   optionsOf(t, parse("check tls {\nnonsense\n}")),
		"## gRPC":                  optionsOf(t, parse("check grpc {\nnonsense\n}")),
	}
	defaults, err := new(HealthCheck).resolve()
	if err != nil {
		t.Fatal(err)
	}
	byDefault := map[string]string{
		"interval": defaults.Interval.String(), "timeout": defaults.Timeout.String(),
		"sync_interval": limits.DefaultSyncInterval.String(), "passes": fmt.Sprint(defaults.Passes), "fails": fmt.Sprint(defaults.Fails), "jitter": fmt.Sprintf("%.0f%%", 100*defaults.Jitter),
	}

	missing := maps.Clone(of)
	for _, table := range tables {
		if !strings.HasPrefix(table.Head[0], "option") {
			continue
		}
		want, known := of[table.About]
		if !known {
			t.Errorf("%s: what has these options is unknown: %q", table, table.About)
			continue
		}
		delete(missing, table.About)
		var got []string
		for _, row := range table.Rows {
			for _, option := range testkit.InCode(row[0]) {
				if option, _, _ = strings.Cut(option, " "); option != "<uri>" {
					got = append(got, option)
				}
				if value := byDefault[option]; (table.About == everyCheck || table.About == everyMember) && value != "" && row[1] != value {
					t.Errorf("%s: default of %s: got %s, want %s", table, option, row[1], value)
				}
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s: options: got %v, want %v", table, got, want)
		}
	}
	for about := range missing {
		t.Errorf("there is no table of options after %q", about)
	}

	for _, b := range testkit.BlocksIn("caddyfile", blocks) {
		if !strings.HasPrefix(b.Text, "lb_policy") {
			continue
		}
		var got []string
		for _, m := range firstWord.FindAllStringSubmatch(b.Text, -1) {
			got = append(got, m[1])
		}
		if slices.Sort(got); !slices.Equal(got, policy) {
			t.Errorf("%s: options: got %v, want %v", b, got, policy)
		}
	}
}

// Every kind of check is a module.
func TestReadmeKinds(t *testing.T) {
	_, tables := testkit.Documentation(t)
	for _, table := range testkit.TablesOf(t, "kind", tables) {
		for _, row := range table.Rows {
			kind, _, _ := strings.Cut(testkit.InCode(row[0])[0], " ")
			if _, err := caddy.GetModule("alive.probes." + kind); err != nil && kind != "exec" { // which is not compiled in
				t.Error(err)
			}
		}
	}
}

var metricDesc = regexp.MustCompile(`^Desc\{fqName: "([^"]*)".* variableLabels: \{(.*)\}\}$`)

// The table has exactly the metrics that exist, with their labels.
func TestReadmeMetrics(t *testing.T) {
	_, tables := testkit.Documentation(t)
	descs := make(chan *prometheus.Desc, 100)
	telemetry.Collector{}.Describe(descs)
	close(descs)
	var want, got []string
	for d := range descs {
		m := metricDesc.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("not a description of a metric: %s", d)
		}
		want = append(want, m[1]+"{"+m[2]+"}")
	}
	for _, table := range testkit.TablesOf(t, "metric", tables) {
		for _, row := range table.Rows {
			got = append(got, testkit.InCode(row[0])...)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if want = slices.Compact(want); !slices.Equal(got, want) {
		t.Errorf("metrics: got %q, want %q", got, want)
	}
}

// Every command and every flag exists, and so does every part of the admin API. No
// other command does.
func TestReadmeCommands(t *testing.T) {
	blocks, tables := testkit.Documentation(t)
	root := &cobra.Command{Use: "alive"}
	caddycmd.Commands()["alive"].CobraFunc(root)
	named := make(map[string]bool)
	check := func(where fmt.Stringer, text string) {
		name, _, _ := strings.Cut(text, " ")
		cmd, _, err := root.Find([]string{name})
		if err != nil || cmd == root {
			t.Errorf("%s: there is no command %s: %v", where, name, err)
			return
		}
		named[name] = true
		for _, flag := range regexp.MustCompile(`--([a-z-]+)`).FindAllStringSubmatch(text, -1) {
			if cmd.Flag(flag[1]) == nil {
				t.Errorf("%s: %s has no --%s", where, name, flag[1])
			}
		}
	}
	for _, b := range slices.Concat(testkit.BlocksIn("sh", blocks), testkit.BlocksIn("console", blocks)) {
		for line := range strings.Lines(b.Text) {
			if text, found := strings.CutPrefix(strings.TrimPrefix(line, "$ "), "caddy alive "); found {
				check(b, strings.TrimSpace(text))
			}
		}
	}
	clear(named) // the table has all of them
	for _, table := range testkit.TablesOf(t, "command", tables) {
		for _, row := range table.Rows {
			check(table, strings.TrimPrefix(testkit.InCode(row[0])[0], "caddy alive "))
		}
	}
	for _, cmd := range root.Commands() {
		if !named[cmd.Name()] {
			t.Errorf("the command %s is not named", cmd.Name())
		}
	}
	var paths []string
	for _, module := range caddy.GetModules("admin.api") {
		for _, route := range module.New().(caddy.AdminRouter).Routes() {
			paths = append(paths, route.Pattern)
		}
	}
	for _, table := range testkit.TablesOf(t, "request", tables) {
		for _, row := range table.Rows {
			_, path, _ := strings.Cut(testkit.InCode(row[0])[0], " ")
			if path, _, _ = strings.Cut(path, "?"); !slices.Contains(paths, strings.TrimSuffix(path, "[")) {
				t.Errorf("%s: the admin API has no %s, but %v", table, path, paths)
			}
		}
	}
}

// The table has exactly the error codes of the admin API.
func TestReadmeErrorCodes(t *testing.T) {
	_, tables := testkit.Documentation(t)
	var want, got []string
	for _, m := range regexp.MustCompile(`NewKind\("(\w+)"`).FindAllStringSubmatch(codeOf(t, ".", "./...", isNoTest), -1) {
		want = append(want, m[1])
	}
	for _, table := range testkit.TablesOf(t, "code", tables) {
		for _, row := range table.Rows {
			got = append(got, testkit.InCode(row[0])...)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("codes: got %q, want %q", got, want)
	}
}

// Every alarm line and log line exists in the code, and every alert in the example. No other
// alert does.
func TestReadmeLines(t *testing.T) {
	_, tables := testkit.Documentation(t)
	code := codeOf(t, ".", "./...", isNoTest)
	for _, title := range []string{"line", "line begins with"} {
		for _, table := range testkit.TablesOf(t, title, tables) {
			for _, row := range table.Rows {
				for _, line := range testkit.InCode(row[0]) {
					if !strings.Contains(code, `"`+strings.TrimSuffix(line, "…")) {
						t.Errorf("%s: the code has no line %q", table, line)
					}
				}
			}
		}
	}
	var want, got []string
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(testkit.Documents(t, "examples/prometheus/alerts.yml")[0].Text, -1) {
		want = append(want, m[1])
	}
	for _, table := range testkit.TablesOf(t, "alert", tables) {
		for _, row := range table.Rows {
			got = append(got, testkit.InCode(row[0])...)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("alerts: got %q, want %q", got, want)
	}
}

var (
	markdownLink = regexp.MustCompile(`\]\(([^)]*)\)`)
	fenced       = regexp.MustCompile("(?ms)^```.*?^```$")
	heading      = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notInAnchor  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// hasAnchor reports whether a heading of a document can be linked to by that name.
func hasAnchor(d testkit.Document, name string) bool {
	return slices.ContainsFunc(heading.FindAllStringSubmatch(fenced.ReplaceAllString(d.Text, ""), -1), func(m []string) bool {
		return strings.ReplaceAll(notInAnchor.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-") == name
	})
}

// Every link within the repository leads to a file or a heading. README.md is short. It
// links to every page of docs, and the recipes link to every example.
func TestReadmeLinks(t *testing.T) {
	linked := make(map[string]bool)
	for _, d := range testkit.Documents(t, "*.md", "docs/*.md", "bench/results/README.md") {
		for _, m := range markdownLink.FindAllStringSubmatch(fenced.ReplaceAllString(d.Text, ""), -1) {
			if strings.HasPrefix(m[1], "https://") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := d.Path
			if file != "" {
				target = path.Join(path.Dir(d.Path), file)
			}
			linked[d.Path+" "+target] = true
			if _, err := os.Stat(filepath.FromSlash(target)); err != nil {
				t.Errorf("%s: %v", d.Path, err)
			} else if anchor != "" && !hasAnchor(testkit.Documents(t, target)[0], anchor) {
				t.Errorf("%s: %s has no heading for #%s", d.Path, target, anchor)
			}
		}
	}
	for _, page := range testkit.Documents(t, "docs/*.md") {
		if !linked["README.md "+page.Path] {
			t.Errorf("README.md has no link to %s", page.Path)
		}
	}
	examples, err := filepath.Glob("examples/*/Caddyfile")
	if err != nil || len(examples) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, example := range examples {
		if !linked["docs/recipes.md "+filepath.ToSlash(example)] {
			t.Errorf("docs/recipes.md has no link to %s", example)
		}
	}
	if lines := strings.Count(testkit.Documents(t, "README.md")[0].Text, "\n"); lines > 300 {
		t.Errorf("README.md has %d lines, want 300 at most", lines)
	}
}

var (
	testCommand = regexp.MustCompile("go (?:-C ([a-z0-9]+) )?test ([^`|\n]*-run '?\\^?(?:Test)?(\\w+)[^`|\n]*)")
	ownFlag     = regexp.MustCompile(`flag\.\w+\("([\w-]+)"`)
	testName    = regexp.MustCompile(`\b(?:Test|Benchmark|Fuzz)[A-Z]\w*`)
	comparison  = regexp.MustCompile(`t\.Run\("[^"]*", beside`) // a part of TestCaddyBesideCore
	goTestFlags = []string{"count", "run", "timeout", "v", "race", "bench", "benchtime"}
)

func isTest(path string) bool   { return strings.HasSuffix(path, "_test.go") }
func isNoTest(path string) bool { return strings.HasSuffix(path, ".go") && !isTest(path) }

// codeOf returns the wanted files of a package; those of all packages below it for "./...".
func codeOf(t *testing.T, dir, pattern string, isWanted func(path string) bool) string {
	t.Helper()
	pattern, below := strings.CutSuffix(pattern, "/...")
	root := filepath.Join(dir, pattern)
	var code strings.Builder
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != root && !below:
			return fs.SkipDir
		case !isWanted(path):
			return nil
		}
		text, err := os.ReadFile(path)
		code.Write(text)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return code.String()
}

// Every test that is named exists. A command that names a test finds it in the package that
// it names, with its flags. Go takes a package for an argument of the test if it comes after
// a flag of the test. The README compares as many problems as are measured.
func TestReadmeTestCommands(t *testing.T) {
	all := codeOf(t, ".", "./...", isTest)
	commands := 0
	for _, d := range testkit.Documents(t, "*.md", "docs/*.md", "bench/results/README.md", ".ci/run", ".github/workflows/*.yml") {
		for _, name := range testName.FindAllString(d.Text, -1) {
			if !strings.Contains(all, "func "+name) {
				t.Errorf("%s: there is no %s", d.Path, name)
			}
		}
		for _, m := range testCommand.FindAllStringSubmatch(d.Text, -1) {
			commands++
			args := strings.Fields(m[2])
			pattern := "."
			if i := slices.IndexFunc(args, func(arg string) bool { return strings.HasPrefix(arg, ".") }); i >= 0 {
				pattern = args[i]
			}
			code := codeOf(t, m[1], pattern, isTest)
			if !regexp.MustCompile(`func Test\w*` + m[3]).MatchString(code) {
				t.Errorf("%s: %q: no such test there", d.Path, m[0])
			}
			own := "" // a flag that Go does not have
			for _, arg := range args {
				flag, isFlag := strings.CutPrefix(arg, "-")
				flag, _, _ = strings.Cut(flag, "=")
				if own != "" && strings.HasPrefix(arg, ".") {
					t.Errorf("%s: %q: the package has to be before -%s", d.Path, m[0], own)
				}
				if !isFlag || slices.Contains(goTestFlags, flag) {
					continue
				}
				own = flag
				if !slices.ContainsFunc(ownFlag.FindAllStringSubmatch(code, -1), func(m []string) bool { return m[1] == flag }) {
					t.Errorf("%s: %q: no flag -%s there", d.Path, m[0], flag)
				}
			}
		}
	}
	if commands == 0 {
		t.Error("no command that names a test was found")
	}
	_, tables := testkit.Documentation(t)
	if got, want := len(testkit.TablesOf(t, "problem", tables)[0].Rows), len(comparison.FindAllString(all, -1)); got != want {
		t.Errorf("problems of Caddy alone: got %d, want %d", got, want)
	}
}

// Every option is documented, in sentences that do not begin with its Go name, because
// they become part of Caddy's own documentation.
func TestFieldDocs_AreSentencesForUsers(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"probe/*.go", "probe/exec/*.go"} {
		more, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	set, options := token.NewFileSet(), 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		code, err := parser.ParseFile(set, file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(code, func(node ast.Node) bool {
			if spec, ok := node.(*ast.TypeSpec); ok && !spec.Name.IsExported() {
				return false
			}
			field, ok := node.(*ast.Field)
			if !ok || field.Tag == nil || len(field.Names) != 1 || !strings.Contains(field.Tag.Value, ",omitempty") {
				return true
			}
			options++
			doc, name := field.Doc.Text(), field.Names[0].Name
			if doc == "" || strings.HasPrefix(doc, name+" ") || !strings.HasSuffix(doc, ".\n") {
				t.Errorf("%s: %s is documented as %q, want sentences that do not begin with its name", set.Position(field.Pos()), name, doc)
			}
			return true
		})
	}
	if options < 30 {
		t.Errorf("found only %d options: nothing was tested", options)
	}
}

// The quickstart gives the answers, the log lines, the output of commands, the list and
// the metrics that README.md and docs show. Times and the first upstream may differ.
func TestCaddyReadme(t *testing.T) {
	blocks, _ := testkit.Documentation(t)
	ports := make(map[string]int)
	var there, here []string // ports as documented, and those of this test
	for _, port := range []string{"9001", "9002", "9003"} {
		ports[port] = testkit.FreePort(t)
		own := strconv.Itoa(ports[port])
		there, here = append(there, port, own), append(here, own, port)
	}
	dir := t.TempDir()
	site := testkit.Example(t, "quickstart", append(there, "root .", "root `"+dir+"`", "interval 2s", "interval 200ms")...)
	_, site, _ = strings.Cut(site, "\n}\n") // its global options
	c := testkit.StartCaddyWith(t, "", site)
	asShown := strings.NewReplacer(here...)
	client := c.ClientOf(2)
	testkit.Eventually(t, testkit.Patience, "the site has its certificate", func() bool { return testkit.Ask(client, c.SecureURL()).Err == nil })
	second := testkit.Loopback(ports["9002"])
	allUp := func() bool {
		return c.Up(testkit.Loopback(ports["9001"]), second, testkit.Loopback(ports["9003"]))
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
		case strings.HasPrefix(b.Text, `{"pool"`):
			testkit.Eventually(t, testkit.Patience, "the list has what the commands have changed", func() bool { return c.Pools("")[0].States["draining"] == 1 })
			_, text := c.Call(http.MethodGet, "/alive/pools", nil, "")
			sameKeys(t, b.String(), asShown.Replace(strings.Trim(strings.TrimSpace(text), "[]")), b.Text)
		case strings.HasPrefix(b.Text, "$ curl -s localhost:2019/metrics"):
			_, text := c.Call(http.MethodGet, "/metrics", nil, "")
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
func sameKeys(t *testing.T, what, got, want string, except ...string) {
	t.Helper()
	var g, w map[string]any
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Fatalf("%s: %v: %s", what, err, got)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for _, key := range except {
		if g[key] != nil && w[key] != nil {
			g[key], w[key] = "", ""
		}
	}
	if !maps.EqualFunc(g, w, func(a, b any) bool { return reflect.DeepEqual(a, b) }) {
		t.Errorf("%s: got %v, want %v", what, g, w)
	}
}
