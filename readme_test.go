// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// What the README says is so, as far as a program can tell.

// Every Caddyfile, and every piece of one, is a config that Caddy loads. The one that
// shows the grammar is looked at below.
func TestReadmeCaddyfiles(t *testing.T) {
	_, blocks, _ := testkit.README(t)
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

// The config in JSON is loaded, and every other piece of JSON has the keys that it says.
func TestReadmeJSON(t *testing.T) {
	_, blocks, _ := testkit.README(t)
	for _, b := range testkit.BlocksIn("json", blocks) {
		var value map[string]any
		if err := json.Unmarshal([]byte(b.Text), &value); err != nil {
			t.Errorf("%s: %v", b, err)
			continue
		}
		if value["handler"] == nil {
			continue // compared with the real one by TestCaddyReadme
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

// optionsOf returns the options that a parser says that there are.
func optionsOf(t *testing.T, err error) []string {
	t.Helper()
	m := allowed.FindStringSubmatch(fmt.Sprint(err))
	if m == nil {
		t.Fatalf("which options there are is not said: %v", err)
	}
	return slices.Sorted(slices.Values(strings.Split(strings.ReplaceAll(m[1], " and ", ", "), ", ")))
}

// Every option of the tables exists, with its default, and no other one does. The same
// goes for the grammar.
func TestReadmeOptions(t *testing.T) {
	_, blocks, tables := testkit.README(t)
	parse := func(text string) error {
		return new(Selection).UnmarshalCaddyfile(caddyfile.NewTestDispenser("alive {\n" + text + "\n}"))
	}
	of := map[string][]string{ // by the line before the table
		"":                 optionsOf(t, parse("nonsense")),
		"Of `check http`:": optionsOf(t, parse("check http / {\nnonsense\n}")),
	}
	var common []string
	for field := range reflect.TypeFor[HealthCheck]().Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" && name != "probe" {
			common = append(common, name)
		}
	}
	of["Of every `check`:"] = slices.Sorted(slices.Values(common))

	for _, table := range testkit.TablesOf(t, "option", tables) {
		want, special := of[table.About]
		if !special {
			want = of[""]
		}
		var got []string
		for _, row := range table.Rows {
			for _, option := range testkit.InCode(row[0]) {
				if option, _, _ = strings.Cut(option, " "); option != "<uri>" {
					got = append(got, option)
				}
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("README.md:%d: options: got %v, want %v", table.Line, got, want)
		}
	}
	for _, b := range testkit.BlocksIn("caddyfile", blocks) {
		if !strings.HasPrefix(b.Text, "lb_policy") {
			continue
		}
		var got []string
		for _, m := range firstWord.FindAllStringSubmatch(b.Text, -1) {
			got = append(got, m[1])
		}
		if slices.Sort(got); !slices.Equal(got, of[""]) {
			t.Errorf("%s: options: got %v, want %v", b, got, of[""])
		}
	}

	defaults, err := new(HealthCheck).resolve()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"interval": defaults.Interval.String(), "timeout": defaults.Timeout.String(),
		"passes": fmt.Sprint(defaults.Passes), "fails": fmt.Sprint(defaults.Fails), "jitter": fmt.Sprintf("%.0f%%", 100*defaults.Jitter),
	}
	for _, table := range testkit.TablesOf(t, "option", tables) {
		for _, row := range table.Rows {
			if name := strings.Trim(row[0], "`"); want[name] != "" && table.About == "Of every `check`:" && row[1] != want[name] {
				t.Errorf("default of %s: got %s, want %s", name, row[1], want[name])
			}
		}
	}
}

// Every kind of check is a module.
func TestReadmeKinds(t *testing.T) {
	_, _, tables := testkit.README(t)
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

// Every metric exists, with its labels, and no other one does.
func TestReadmeMetrics(t *testing.T) {
	_, _, tables := testkit.README(t)
	descs := make(chan *prometheus.Desc, 100)
	collector{}.Describe(descs)
	checkDuration.Describe(descs)
	close(descs)
	var want, got []string
	for d := range descs {
		m := metricDesc.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("not understood: %s", d)
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

// Every command and every flag exists, and so does every part of the admin API; no
// other command does.
func TestReadmeCommands(t *testing.T) {
	_, _, tables := testkit.README(t)
	root := testkit.AliveCommand()
	named := make(map[string]bool)
	for _, table := range testkit.TablesOf(t, "command", tables) {
		for _, row := range table.Rows {
			text := strings.TrimPrefix(testkit.InCode(row[0])[0], "caddy alive ")
			name, _, _ := strings.Cut(text, " ")
			cmd, _, err := root.Find([]string{name})
			if err != nil || cmd == root {
				t.Errorf("there is no command %s: %v", name, err)
				continue
			}
			named[name] = true
			for _, flag := range regexp.MustCompile(`--([a-z]+)`).FindAllStringSubmatch(text, -1) {
				if cmd.Flag(flag[1]) == nil {
					t.Errorf("%s has no --%s", name, flag[1])
				}
			}
		}
	}
	for _, cmd := range root.Commands() {
		if !named[cmd.Name()] {
			t.Errorf("the command %s is not named", cmd.Name())
		}
	}
	var paths []string
	for _, route := range (Admin{}).Routes() {
		paths = append(paths, route.Pattern)
	}
	for _, table := range testkit.TablesOf(t, "request", tables) {
		for _, row := range table.Rows {
			_, path, _ := strings.Cut(testkit.InCode(row[0])[0], " ")
			if path, _, _ = strings.Cut(path, "?"); !slices.Contains(paths, strings.TrimSuffix(path, "[")) {
				t.Errorf("the admin API has no %s, but %v", path, paths)
			}
		}
	}
}

// Every link within the repository leads somewhere, and every test that is named is there.
func TestReadmeReferences(t *testing.T) {
	text, _, tables := testkit.README(t)
	for _, m := range regexp.MustCompile(`\]\(([^)]*)\)`).FindAllStringSubmatch(text, -1) {
		file, anchor, _ := strings.Cut(m[1], "#")
		switch {
		case strings.HasPrefix(file, "https://"):
		case file != "":
			if _, err := os.Stat(filepath.FromSlash(file)); err != nil {
				t.Error(err)
			}
		case !slices.ContainsFunc(regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1), func(heading []string) bool {
			return strings.ReplaceAll(strings.ToLower(heading[1]), " ", "-") == anchor
		}):
			t.Errorf("there is no heading for #%s", anchor)
		}
	}

	var code strings.Builder
	for _, pattern := range []string{"*_test.go", "test/*_test.go", "probe/exec/*_test.go", "e2e/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			read, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			code.Write(read)
		}
	}
	for _, name := range regexp.MustCompile(`\b(?:Test|Benchmark)[A-Z]\w*`).FindAllString(text, -1) {
		if !strings.Contains(code.String(), "func "+name) {
			t.Errorf("there is no %s", name)
		}
	}
	for _, table := range testkit.TablesOf(t, "problem", tables) {
		for _, row := range table.Rows {
			part := strings.ReplaceAll(testkit.InCode(row[len(row)-1])[0], "_", " ")
			if !strings.Contains(code.String(), fmt.Sprintf("t.Run(%q, beside", part)) {
				t.Errorf("TestCaddyBesideCore has no part %q", part)
			}
		}
	}
}

// Every option says what it is, in words that do not begin with a name of the code: they
// become a part of Caddy's own documentation.
func TestFieldDocs(t *testing.T) {
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
