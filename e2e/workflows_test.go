// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// What the files below .github name exists. .ci/run checks their form with actionlint, and
// TestReadmeTestCommands their tests and flags.

// workflow is what the tests look at in a workflow.
type workflow struct {
	On          yaml.Node         `yaml:"on"`
	Permissions map[string]string `yaml:"permissions"`
	Jobs        map[string]struct {
		Permissions map[string]string `yaml:"permissions"`
		Uses        string            `yaml:"uses"`
		Timeout     int               `yaml:"timeout-minutes"`
		Steps       []struct {
			Uses yaml.Node         `yaml:"uses"`
			Run  string            `yaml:"run"`
			With map[string]string `yaml:"with"`
		} `yaml:"steps"`
	} `yaml:"jobs"`
}

// readYAML reads the files that match a pattern, from the root of the repository.
func readYAML[T any](t *testing.T, pattern string) map[string]T {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(pattern)))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no files %s: %v", pattern, err)
	}
	found := make(map[string]T)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var content T
		if err := yaml.Unmarshal(text, &content); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		found[filepath.Base(path)] = content
	}
	return found
}

// namedPath finds the files and folders that a command names.
var namedPath = regexp.MustCompile(`(?:-C |-modfile=|--file |bash )([\w./-]+)|(?:^|\s)(\./?[a-z][\w./-]*[\w-])`)

// Every path that a step names exists, and so does each step of the script of releases.
func TestWorkflows_NameWhatExists(t *testing.T) {
	script, err := os.ReadFile("../.github/release")
	if err != nil {
		t.Fatal(err)
	}
	steps := make(map[string]bool) // of the script, and whether one was found
	for _, m := range regexp.MustCompile(`(?m)^#   \.github/release (\w+)`).FindAllStringSubmatch(string(script), -1) {
		steps[m[1]] = false
	}
	named := 0
	for file, w := range readYAML[workflow](t, ".github/workflows/*.yml") {
		for job, j := range w.Jobs {
			var paths []string
			if j.Uses != "" {
				paths = append(paths, j.Uses)
			}
			for _, step := range j.Steps {
				for _, m := range namedPath.FindAllStringSubmatch(step.Run, -1) {
					paths = append(paths, m[1]+m[2])
				}
				if path := step.With["go-version-file"]; path != "" {
					paths = append(paths, path)
				}
				if called, ok := strings.CutPrefix(step.Run, ".github/release "); ok {
					called, _, _ = strings.Cut(called, " ")
					if _, ok := steps[called]; !ok {
						t.Errorf("%s: %s: .github/release has no step %s", file, job, called)
					}
					steps[called] = true
				}
			}
			for _, path := range paths {
				named++
				if _, err := os.Stat(filepath.Join("..", filepath.FromSlash(path))); err != nil {
					t.Errorf("%s: %s: %v", file, job, err)
				}
			}
		}
	}
	if named < 10 {
		t.Errorf("%d paths are named, want 10 or more", named)
	}
	for step, found := range steps {
		if !found && step != "notes" { // which is a part of others
			t.Errorf("no workflow calls .github/release %s", step)
		}
	}
}

// Actions are named by the hash of a commit with its version beside it, the same one in all
// workflows. Jobs end. Nothing may write, except the two jobs that publish.
func TestWorkflows_HaveFewPermissionsAndPinnedActions(t *testing.T) {
	pinned := regexp.MustCompile(`^[\w-]+/[\w-]+@[0-9a-f]{40}$`)
	version := regexp.MustCompile(`^# v\d+\.\d+\.\d+$`)
	mayWrite := map[string]string{"release.yml publish": "contents", "release.yml image": "packages"}
	hashes := make(map[string]string)
	for file, w := range readYAML[workflow](t, ".github/workflows/*.yml") {
		if w.Permissions == nil || len(w.Permissions) > 0 && !maps.Equal(w.Permissions, map[string]string{"contents": "read"}) {
			t.Errorf("%s: the permissions are %v, want {} or contents: read", file, w.Permissions)
		}
		for name, job := range w.Jobs {
			where := file + " " + name
			for scope, access := range job.Permissions {
				if access != "read" && mayWrite[where] != scope {
					t.Errorf("%s may %s %s", where, access, scope)
				}
			}
			if job.Timeout == 0 && job.Uses == "" {
				t.Errorf("%s has no time limit", where)
			}
			for _, step := range job.Steps {
				if step.Uses.Value == "" {
					continue
				}
				action, hash, _ := strings.Cut(step.Uses.Value, "@")
				if !pinned.MatchString(step.Uses.Value) || !version.MatchString(step.Uses.LineComment) {
					t.Errorf("%s: %s %s, want the hash of a commit and # v with the version", where, step.Uses.Value, step.Uses.LineComment)
				} else if other, ok := hashes[action]; ok && other != hash+step.Uses.LineComment {
					t.Errorf("%s: %s is another one elsewhere", where, step.Uses.Value)
				}
				hashes[action] = hash + step.Uses.LineComment
				if action == "actions/checkout" && step.With["persist-credentials"] != "false" {
					t.Errorf("%s keeps the credentials of the checkout", where)
				}
			}
		}
	}
}

// link is an entry of config.yml.
type link struct {
	Name  string `yaml:"name"`
	URL   string `yaml:"url"`
	About string `yaml:"about"`
}

// issueForm is a form of .github/ISSUE_TEMPLATE.
type issueForm struct {
	Name        string `yaml:"name"`
	Description string `yaml:"description"`
	Links       []link `yaml:"contact_links"`
	Body        []struct {
		Type       string `yaml:"type"`
		ID         string `yaml:"id"`
		Attributes struct {
			Label       string `yaml:"label"`
			Description string `yaml:"description"`
			Value       string `yaml:"value"`
		} `yaml:"attributes"`
	} `yaml:"body"`
}

// The forms have what GitHub demands of them. That of bugs asks for what finds them, and
// vulnerabilities are sent to the private form.
func TestIssueForms_AskForWhatIsNeeded(t *testing.T) {
	forms := readYAML[issueForm](t, ".github/ISSUE_TEMPLATE/*.yml")
	for file, form := range forms {
		if file == "config.yml" {
			continue
		}
		if form.Name == "" || form.Description == "" || len(form.Body) == 0 {
			t.Errorf("%s lacks its name, description or body", file)
		}
		var ids []string
		for _, field := range form.Body {
			switch field.Type {
			case "markdown":
				if field.Attributes.Value == "" {
					t.Errorf("%s: a text is empty", file)
				}
			case "textarea", "input":
				if field.ID == "" || field.Attributes.Label == "" || slices.Contains(ids, field.ID) {
					t.Errorf("%s: the field %q has no label, or its ID twice", file, field.ID)
				}
				ids = append(ids, field.ID)
			default:
				t.Errorf("%s: the type %q is not used here", file, field.Type)
			}
		}
	}
	text, err := os.ReadFile("../.github/ISSUE_TEMPLATE/bug.yml")
	if err != nil {
		t.Fatal(err)
	}
	const private = "https://github.com/caddy-alive/caddy-alive/security/advisories/new"
	for _, want := range []string{"Caddyfile", "`caddy version`", "`caddy alive status --json`", private} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the form of bugs lacks %q", want)
		}
	}
	if !slices.ContainsFunc(forms["config.yml"].Links, func(l link) bool { return l.URL == private && l.Name != "" && l.About != "" }) {
		t.Errorf("config.yml has no link to %s", private)
	}
}
