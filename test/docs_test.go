// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// What README.md and the pages of docs say is so, as far as a program can tell.

// Caddy loads every Caddyfile, and every part of one. TestReadmeOptions reads the one
// that shows the grammar.
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

// Caddy loads the config in JSON. TestReadme_QuickstartIsAsShown compares all other JSON with what Caddy
// prints.
func TestReadmeJSON(t *testing.T) {
	_, blocks, _ := testkit.README(t)
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
// grammar.
func TestReadmeOptions(t *testing.T) {
	_, blocks, tables := testkit.README(t)
	parse := func(text string) error {
		_, err := testkit.Validate(t, "Caddyfile", "http:// {\nreverse_proxy 127.0.0.1:1 {\nlb_policy alive {\n"+text+"\n}\n}\n}")
		return err
	}
	policy := optionsOf(t, parse("nonsense"))
	var common []string
	module, err := caddy.GetModule("http.reverse_proxy.selection_policies.alive")
	if err != nil {
		t.Fatal(err)
	}
	checks, _ := reflect.TypeOf(module.New()).Elem().FieldByName("Checks")
	for field := range checks.Type.Elem().Elem().Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" && name != "probe" {
			common = append(common, name)
		}
	}
	of := map[string][]string{ // by the line before the table
		"## Options":                policy,
		"## Options of the policy":  policy,
		"## Options of every check": slices.Sorted(slices.Values(common)),
		"## HTTP":                   optionsOf(t, parse("check http / {\nnonsense\n}")),
		"## TCP":                    optionsOf(t, parse("check tcp {\nnonsense\n}")),
		"## TLS":                    optionsOf(t, parse("check tls {\nnonsense\n}")),
		"## gRPC":                   optionsOf(t, parse("check grpc {\nnonsense\n}")),
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

// Every command and every flag exists, and so does every part of the admin API. No
// other command does.
func TestReadmeCommands(t *testing.T) {
	_, blocks, tables := testkit.README(t)
	root := testkit.AliveCommand()
	named := make(map[string]bool)
	check := func(where fmt.Stringer, text string) {
		name, _, _ := strings.Cut(text, " ")
		cmd, _, err := root.Find([]string{name})
		if err != nil || cmd == root {
			t.Errorf("%s: there is no command %s: %v", where, name, err)
			return
		}
		named[name] = true
		for _, flag := range regexp.MustCompile(`--([a-z]+)`).FindAllStringSubmatch(text, -1) {
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
	api, err := caddy.GetModule("admin.api.alive")
	if err != nil {
		t.Fatal(err)
	}
	for _, route := range api.New().(caddy.AdminRouter).Routes() {
		paths = append(paths, route.Pattern)
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

var markdownLink = regexp.MustCompile(`\]\(([^)]*)\)`)

// Every link within the repository leads to a file or a heading. README.md is short. It
// links to every page of docs, and the recipes link to every example.
func TestReadmeLinks(t *testing.T) {
	t.Chdir(testkit.Repository(t))
	linked := make(map[string]bool)
	for _, d := range testkit.Documents(t, "*.md", "docs/*.md", "bench/results/README.md") {
		for _, m := range markdownLink.FindAllStringSubmatch(d.Prose(), -1) {
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
			} else if anchor != "" && !testkit.Documents(t, target)[0].HasAnchor(anchor) {
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
	testCommand = regexp.MustCompile("go (?:-C ([a-z0-9]+) )?test ([^`\n]+)")
	ownFlag     = regexp.MustCompile(`flag\.\w+\("(\w+)"`)
	testName    = regexp.MustCompile(`\b(?:Test|Benchmark|Fuzz)[A-Z]\w*`)
	comparison  = regexp.MustCompile(`t\.Run\("[^"]*", beside`) // a part of TestCaddyBesideCore
	goTestFlags = []string{"count", "run", "timeout", "v", "race", "bench", "benchtime"}
)

// testCode returns the tests of a package; those of all packages below it for "./...".
func testCode(t *testing.T, dir, pattern string) string {
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
		case !strings.HasSuffix(path, "_test.go"):
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

// Every test that is named exists. A command that runs tests finds them in the package
// that it names, with its flags. The README compares as many problems as are measured.
func TestReadmeTestCommands(t *testing.T) {
	t.Chdir(testkit.Repository(t))
	all := testCode(t, ".", "./...")
	commands := 0
	for _, d := range testkit.Documents(t, "*.md", "docs/*.md", "bench/results/README.md") {
		for _, name := range testName.FindAllString(d.Text, -1) {
			if !strings.Contains(all, "func "+name) {
				t.Errorf("%s: there is no %s", d.Path, name)
			}
		}
		for _, m := range testCommand.FindAllStringSubmatch(d.Text, -1) {
			commands++
			args := strings.Fields(m[2])
			code := testCode(t, m[1], args[len(args)-1])
			for i, arg := range args {
				flag, isFlag := strings.CutPrefix(arg, "-")
				flag, _, _ = strings.Cut(flag, "=")
				switch {
				case flag == "run":
					if !regexp.MustCompile(`func Test\w*` + strings.TrimPrefix(strings.Trim(args[i+1], "'^$"), "Test")).MatchString(code) {
						t.Errorf("%s: %q: no such test there", d.Path, m[0])
					}
				case isFlag && !slices.Contains(goTestFlags, flag) && !slices.ContainsFunc(ownFlag.FindAllStringSubmatch(code, -1), func(m []string) bool { return m[1] == flag }):
					t.Errorf("%s: %q: no flag -%s there", d.Path, m[0], flag)
				}
			}
		}
	}
	if commands == 0 {
		t.Error("no command that runs tests was found")
	}
	_, _, tables := testkit.README(t)
	if got, want := len(testkit.TablesOf(t, "problem", tables)[0].Rows), len(comparison.FindAllString(all, -1)); got != want {
		t.Errorf("problems of Caddy alone: got %d, want %d", got, want)
	}
}

// Every option is documented, in sentences that do not begin with its Go name, because
// they become part of Caddy's own documentation.
func TestFieldDocs(t *testing.T) {
	t.Chdir(testkit.Repository(t))
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
