// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// Every config and command of a document is read by a test. A block that none of them reads
// fails here, so that each new one is covered.

// pagesThatRun are those with commands that TestDocuments_CommandsRun runs.
var pagesThatRun = []string{"docs/recipes.md", "docs/troubleshooting.md"}

// languages are those of blocks, and what reads them all.
var languages = map[string]string{
	"caddyfile": "TestReadmeCaddyfiles", "json": "by its beginning", "sh": "by its programs", "console": "by its programs",
	"text": "output of a command that cannot be repeated", "ini": "the options of another program", "go": "TestDocuments_GoIsThatOfABuild",
}

// further are languages and programs that one page alone may have, and what reads them there.
var further = map[string]map[string]string{"docs/deploying.md": {
	"dockerfile": "TestDockerfile_BuildsAsTheReadmeDoes", "yaml": "TestDeploying_ShowsTheFiles",
	"docker": "checkPaths and TestDeploying_CommandsExist", "export": "checkPaths", "kubectl": "checkPaths and TestDeploying_CommandsExist", "sudo": "checkPaths",
}}

// objects are the beginnings of the JSON that a test reads.
var objects = map[string]string{
	"{\n\t\"handler\"": "TestReadmeJSON", `{"level"`: "TestCaddyReadme", "{\n  \"pool\"": "TestCaddyReadme", `{"pool"`: "TestCaddyReadme",
	"{\n  \"fleet\"": "TestDocuments_FleetIsAsListed", `{"apps"`: "TestRecipes_JSONIsWhatCaddyAdapts",
}

// programs are those that a command of the other pages may begin with, and what reads it.
var programs = map[string]string{
	"caddy": "checkCaddy and TestReadmeCommands", "./caddy": "checkCaddy", "go": "checkPaths and TestReadmeTestCommands",
	"for": "TestCaddyReadme", "touch": "TestCaddyReadme", "rm": "TestCaddyReadme", "curl": "TestCaddyReadme",
	"git": "the build of the README", "cd": "the build of the README", "xcaddy": "the build of the README", `"$(go`: "the build of the README",
}

// A block of any document is in a language that a test reads. JSON begins as one that is
// compared with what Caddy prints, and a command with a program that is checked.
func TestDocuments_EveryBlockIsRead(t *testing.T) {
	blocks, _ := testkit.Documentation(t)
	for _, d := range testkit.Documents(t, "*.md", "bench/results/README.md") {
		if d.Path != "README.md" && strings.Contains(d.Text, "\n```") {
			t.Errorf("%s: no test reads its blocks", d.Path)
		}
	}
	for _, b := range blocks {
		switch {
		case languages[b.Language] == "" && further[b.Path][b.Language] == "":
			t.Errorf("%s: no test reads blocks of the language %q", b, b.Language)
		case b.Language == "json" && !slices.ContainsFunc(slices.Collect(maps.Keys(objects)), func(begins string) bool { return strings.HasPrefix(b.Text, begins) }):
			t.Errorf("%s: no test reads JSON that begins like this: %.20q", b, b.Text)
		case b.Language == "sh" && slices.Contains(pagesThatRun, b.Path):
			// TestDocuments_CommandsRun runs it
		case b.Language == "sh" || b.Language == "console":
			for _, command := range commandsOf(b) {
				words := strings.Fields(command)
				if programs[words[0]] == "" && further[b.Path][words[0]] == "" {
					t.Errorf("%s: no test reads commands like this: %s", b, command)
				}
				if strings.TrimPrefix(words[0], "./") == "caddy" {
					checkCaddy(t, b, words[1:])
				}
				checkPaths(t, b, words)
			}
		}
	}
}

// commandsOf returns the commands of a block: all lines of a script, and those with a prompt
// where output is shown.
func commandsOf(b testkit.Block) (commands []string) {
	for line := range strings.Lines(strings.ReplaceAll(b.Text, "\\\n", " ")) {
		command, prompted := strings.CutPrefix(strings.TrimSpace(line), "$ ")
		if command != "" && !strings.HasPrefix(command, "#") && (prompted || b.Language == "sh") {
			commands = append(commands, command)
		}
	}
	return commands
}

// checkCaddy fails the test unless Caddy has the command, with these flags.
func checkCaddy(t *testing.T, where fmt.Stringer, words []string) {
	t.Helper()
	if words[0] == "completion" { // that of cobra, which is made when Caddy runs
		if len(words) < 2 || !slices.Contains([]string{"bash", "zsh", "fish", "powershell"}, words[1]) {
			t.Errorf("%s: caddy completion knows no such shell: %v", where, words[1:])
		}
		return
	}
	command, known := caddycmd.Commands()[words[0]]
	if !known {
		t.Errorf("%s: Caddy has no command %s", where, words[0])
		return
	}
	if words[0] == "alive" {
		return // TestReadmeCommands
	}
	parsed := &cobra.Command{Use: words[0]}
	if command.CobraFunc != nil {
		command.CobraFunc(parsed)
	}
	if command.Flags != nil {
		parsed.Flags().AddGoFlagSet(command.Flags)
	}
	for _, word := range words[1:] {
		if name, _, _ := strings.Cut(strings.TrimPrefix(word, "--"), "="); strings.HasPrefix(word, "--") && parsed.Flag(name) == nil {
			t.Errorf("%s: caddy %s has no --%s", where, words[0], name)
		}
	}
}

// written are the packages that the reader of a page writes.
var written = map[string]bool{"cmd/caddy-exec": true}

// checkPaths fails the test unless the files and packages that a command names exist.
func checkPaths(t *testing.T, where fmt.Stringer, words []string) {
	t.Helper()
	for _, word := range words[1:] {
		if _, value, isSet := strings.Cut(word, "="); isSet && !strings.HasPrefix(word, "-") {
			word = value // of a variable
		}
		if !strings.HasPrefix(word, "./") && !strings.HasPrefix(word, "examples/") {
			continue
		}
		file := filepath.FromSlash(strings.TrimSuffix(word, "/..."))
		if _, err := os.Stat(filepath.Join(testkit.Repository(t), file)); word != "./..." && err != nil && !written[strings.TrimPrefix(word, "./")] {
			t.Errorf("%s: %v", where, err)
		}
	}
}

var (
	hostAndPort = regexp.MustCompile(`\b([a-z][a-z0-9]*):([0-9]{4,5})\b`)
	anExample   = regexp.MustCompile(`\(\.\./examples/([a-z-]+)/`)
	globalBlock = regexp.MustCompile(`(?s)^\{\n.*?\n\}\n`)
	publicSite  = regexp.MustCompile(`(?m)^example\.com \{`)
)

// siteOf returns the config that the commands of a block are for: the last one above them in
// their section, or the example that the section links to, or the smallest one over the
// upstreams that they name.
func siteOf(t *testing.T, commands testkit.Block) string {
	t.Helper()
	blocks, _ := testkit.Documentation(t)
	site := ""
	for _, b := range testkit.BlocksIn("caddyfile", blocks) {
		if b.Path == commands.Path && b.Section == commands.Section && b.Line < commands.Line {
			site = b.Text
		}
	}
	_, section, _ := strings.Cut(testkit.Documents(t, commands.Path)[0].Text, "\n## "+commands.Section+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	if m := anExample.FindStringSubmatch(section); m != nil && site == "" {
		site = testkit.Documents(t, "examples/"+m[1]+"/Caddyfile")[0].Text
	}
	if site == "" {
		names := hostAndPort.FindAllString(commands.Text, -1)
		slices.Sort(names)
		site = "example.com {\nreverse_proxy " + strings.Join(slices.Compact(names), " ") + " other:8080 {\nlb_policy alive /healthz\n}\n}\n"
	}
	if strings.HasPrefix(site, "reverse_proxy") {
		site = "example.com {\n" + site + "}\n"
	}
	return site
}

// The commands of the recipes succeed one after the other, as they are written, at a Caddy
// with the config of their recipe and with upstreams that work.
func TestDocuments_CommandsRun(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the commands are those of a POSIX shell")
	}
	t.Setenv("LB_SECRET", "as an operator sets it")
	blocks, _ := testkit.Documentation(t)
	for _, b := range testkit.BlocksIn("sh", blocks) {
		if !slices.Contains(pagesThatRun, b.Path) {
			continue
		}
		t.Run(b.String(), func(t *testing.T) {
			config := siteOf(t, b)
			c := startEmpty(t)
			names := []string{"localhost:2019", c.Admin, "<hash>", hashOfTest}
			known := make(map[string]bool)
			for _, name := range hostAndPort.FindAllString(config+b.Text, -1) {
				if !known[name] && !strings.HasPrefix(name, "localhost:") {
					known[name] = true
					names = append(names, name, testkit.StartBackend(t, name, nil).Addr)
				}
			}
			here := strings.NewReplacer(names...)
			c.Load(here.Replace(publicSite.ReplaceAllString(globalBlock.ReplaceAllString(config, ""), "http:// {")))
			testkit.Eventually(t, testkit.Patience, "all are up", func() bool {
				return !slices.ContainsFunc(c.List(nil), func(row testkit.Upstream) bool { return row.Status != "up" })
			})
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "Caddyfile"), []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := runScript(t, c, dir, here.Replace(b.Text)); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// startEmpty runs a Caddy without upstreams, for a config that names its admin API.
func startEmpty(t *testing.T) *testkit.Caddy {
	t.Helper()
	c := testkit.StartCaddy(t, "http:// {\n}\n")
	if rows := c.List(nil); len(rows) > 0 { // the admin API answers before the next config comes
		t.Fatalf("there are upstreams: %v", rows)
	}
	return c
}

// hashOfTest is a hash of the password "change me" that is quickly compared, as caddy
// hash-password --bcrypt-cost 4 makes it.
const hashOfTest = "$2a$04$WbmQmTIbCKGhnDaJ/LfDUeb0xw2i7CRUtBWSJs09ODjWqh8aT5D7G"

// runScript runs commands in a folder, until one fails. The program caddy is this one, whose
// admin API is that of the Caddy under test. With curl, the public sites are those of that
// Caddy, and a status of 400 or more is a failure.
func runScript(t *testing.T, c *testkit.Caddy, dir, script string) (string, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write("caddy", asCaddy+"=1 exec '"+self+"' \"$@\"")
	if strings.Contains(script, "curl ") {
		curl, err := exec.LookPath("curl")
		if err != nil {
			t.Skip("curl is not installed")
		}
		secure := strings.TrimPrefix(c.SecureURL(), "https://localhost")
		write("curl", "exec '"+curl+"' --silent --show-error --fail --insecure --retry 20 --retry-all-errors --retry-delay 1 --connect-to admin.example.com:443:127.0.0.1"+secure+" \"$@\"")
	}
	command := exec.CommandContext(t.Context(), "sh", "-e", "-u", "-c", script)
	command.Dir = dir
	command.Env = append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"), "CADDY_ADMIN="+c.Admin,
		"HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir, "PASSWORD=change me")
	out, err := command.CombinedOutput()
	return string(out), err
}

// The JSON of the recipe is what Caddy makes of the Caddyfile above it.
func TestRecipes_JSONIsWhatCaddyAdapts(t *testing.T) {
	const page, section = "docs/recipes.md", "JSON configuration"
	shown := testkit.BlocksUnder(t, page, section, "json")[0]
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(testkit.BlocksUnder(t, page, section, "caddyfile")[0].Text), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := json.Unmarshal([]byte(shown.Text), &got); err != nil {
		t.Fatalf("%s: %v", shown, err)
	}
	if err := json.Unmarshal(adapted, &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %v, want %s", shown, got, adapted)
	}
}

// The fleet that is shown has exactly the fields of the list.
func TestDocuments_FleetIsAsListed(t *testing.T) {
	shown := testkit.BlocksUnder(t, "docs/operating.md", "Admin API", "json")
	text := shown[len(shown)-1].Text
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	var fleet view.Fleet
	if err := decoder.Decode(&fleet); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(fleet)
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := errors.Join(json.Unmarshal(again, &got), json.Unmarshal([]byte(text), &want)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", want, got)
	}
}

// The program that is shown imports what that of the repository does, and the package that the
// page is about.
func TestDocuments_GoIsThatOfABuild(t *testing.T) {
	blocks, _ := testkit.Documentation(t)
	for _, b := range testkit.BlocksIn("go", blocks) {
		importsOf := func(text string) (paths []string) {
			file, err := parser.ParseFile(token.NewFileSet(), b.String(), text, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range file.Imports {
				if strings.Contains(spec.Path.Value, ".") { // none of the standard library
					paths = append(paths, spec.Path.Value)
				}
			}
			return paths
		}
		want := append(importsOf(testkit.Documents(t, "cmd/caddy/main.go")[0].Text), `"github.com/caddy-alive/caddy-alive/probe/exec"`)
		if got := importsOf(b.Text); !slices.Equal(got, want) {
			t.Errorf("%s: imports %v, want %v", b, got, want)
		}
	}
}
