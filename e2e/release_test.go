// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The script of releases, on a copy of what it reads. .ci/run builds with it for the platform
// that it runs on.

// changelog is one of three versions, and of one that is no match for 0.2.0.
const changelog = `# Changelog

What is above the versions is in no notes.

## Unreleased

- not yet

## 0.2.0-rc.1 - 2027-02-01

- a candidate

## 0.2.0 - 2027-02-15

### Breaking

- something

### Added

- something else

## 0.1.0 - 2027-01-15

- the first

## 0.0.9 - soon

- without a day

## 0.0.8 - 2027-01-01

## 0.0.7 - 2027-01-01

- last
`

// released is a repository with a changelog, and with programs that the script must not really
// run: these write their arguments and what they read into a file.
type released struct {
	t      *testing.T
	folder string
	called string // the file
}

// newReleased copies the script and what it reads.
func newReleased(t *testing.T) *released {
	t.Helper()
	if _, err := exec.LookPath("bash"); err != nil {
		skip(t, "bash is not installed")
	}
	r := &released{t, t.TempDir(), filepath.Join(t.TempDir(), "called")}
	for _, name := range []string{".github/release", "go.mod", "go.sum", "LICENSE", "README.md"} {
		content, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		r.write(name, string(content))
	}
	r.write("CHANGELOG.md", changelog)
	for _, name := range []string{"gh", "docker"} {
		r.write("bin/"+name, "#!/bin/sh\n{ echo "+name+" \"$@\"; [ -t 0 ] || cat; } >>'"+r.called+"'\n")
	}
	return r
}

// write writes a file of the repository, which can be run.
func (r *released) write(name, content string) {
	r.t.Helper()
	path := filepath.Join(r.folder, filepath.FromSlash(name))
	err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o755))
	if err != nil {
		r.t.Fatal(err)
	}
}

// git runs git in the repository.
func (r *released) git(args ...string) {
	r.t.Helper()
	command := exec.Command("git", args...)
	command.Dir = r.folder
	command.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@localhost", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@localhost")
	if out, err := command.CombinedOutput(); err != nil {
		r.t.Fatalf("git %v: %v: %s", args, err, out)
	}
}

// run runs a step, and returns what it printed and whether it succeeded.
func (r *released) run(args ...string) (out string, ok bool) {
	r.t.Helper()
	command := exec.Command("bash", append([]string{".github/release"}, args...)...)
	command.Dir = r.folder
	command.Env = append(os.Environ(), "PATH="+filepath.Join(r.folder, "bin")+string(os.PathListSeparator)+os.Getenv("PATH"))
	text, err := command.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	return string(text), err == nil
}

// Notes are what the changelog says of exactly that version.
func TestRelease_NotesAreTheSectionOfTheVersion(t *testing.T) {
	r := newReleased(t)
	for version, want := range map[string]string{
		"v0.2.0":      "### Breaking\n\n- something\n\n### Added\n\n- something else\n",
		"v0.2.0-rc.1": "- a candidate\n",
		"v0.1.0":      "- the first\n",
		"v0.0.7":      "- last\n",
	} {
		if got, ok := r.run("notes", version); !ok || strings.TrimRight(got, "\n") != strings.TrimRight(want, "\n") {
			t.Errorf("%s: succeeded %t, got\n%s\nwant\n%s", version, ok, got, want)
		}
	}
	for version, want := range map[string]string{
		"v0.0.8":  "CHANGELOG.md says nothing of 0.0.8",
		"v0.3.0":  "CHANGELOG.md says nothing of 0.3.0",
		"v0.2":    "'v0.2' is not a version such as v0.1.0",
		"0.2.0":   "'0.2.0' is not a version such as v0.1.0",
		"v0.2.00": "'v0.2.00' is not a version such as v0.1.0",
		"v0.2.0-": "'v0.2.0-' is not a version such as v0.1.0",
		"v0.2.0;": "'v0.2.0;' is not a version such as v0.1.0",
		"v.*.*":   "'v.*.*' is not a version such as v0.1.0",
	} {
		if got, ok := r.run("notes", version); ok || !strings.Contains(got, want) {
			t.Errorf("%s: succeeded %t, got %q, want an error with %q", version, ok, got, want)
		}
	}
}

// A version is released if the changelog has it with its day, its tag is on main, and Go
// accepts it for the path of the module.
func TestRelease_CheckRefusesWhatIsNotReady(t *testing.T) {
	r := newReleased(t)
	r.git("init", "-q", "-b", "main")
	r.git("add", "go.mod")
	r.git("commit", "-q", "-m", "main")
	for _, tag := range []string{"v0.1.0", "v0.0.9", "v0.3.0", "v0.2.0-rc.1"} {
		r.git("tag", tag)
	}
	r.git("update-ref", "refs/remotes/origin/main", "main")
	r.git("commit", "-q", "--allow-empty", "-m", "beside main")
	r.git("tag", "v0.2.0")
	r.git("tag", "v2.0.0")
	for version, want := range map[string]string{
		"v0.1.0":      "",
		"v0.2.0-rc.1": "",
		"v0.0.9":      "'## 0.0.9 - soon' must be '## 0.0.9 - ' and a day",
		"v0.3.0":      "CHANGELOG.md says nothing of 0.3.0",
		"v0.0.7":      "there is no tag v0.0.7",
		"v0.2.0":      "the tag v0.2.0 is not on the branch main",
	} {
		if got, ok := r.run("check", version); ok != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: succeeded %t, got %q, want %q", version, ok, got, want)
		}
	}
	r.write("CHANGELOG.md", changelog+"\n## 2.0.0 - 2030-01-01\n\n- a new path\n")
	if got, ok := r.run("check", "v2.0.0"); ok || !strings.Contains(got, "Go does not accept the module path github.com/caddy-alive/caddy-alive for v2.0.0") {
		t.Errorf("v2.0.0: succeeded %t, got %q", ok, got)
	}
}

// Each platform has an archive with the program, built by xcaddy for the Caddy of go.mod, and a
// checksum. A program in the place of xcaddy writes what it was asked for.
func TestRelease_BuildsAnArchiveForEachPlatform(t *testing.T) {
	r := newReleased(t)
	r.write("bin/go", `#!/bin/sh
case "$*" in
"list -m") echo example.com/alive ;;
"list -m -f {{.Version}} github.com/caddyserver/caddy/v2") echo v2.99.1 ;;
"tool -modfile=tools/go.mod -n xcaddy") echo "`+filepath.ToSlash(r.folder)+`/bin/xcaddy" ;;
"env GOHOSTOS") echo plan9 ;;
"env GOHOSTARCH") echo mips ;;
*) echo "go $*" >&2; exit 1 ;;
esac
`)
	r.write("bin/xcaddy", "#!/bin/sh\necho \"$GOOS $GOARCH $GOARM $CGO_ENABLED $1 $2 $3 $5 $6\" >\"$4\"\n")
	r.git("init", "-q")
	r.git("add", "go.mod")
	r.git("commit", "-q", "-m", "first")
	for _, into := range []string{"dist", "again"} {
		if out, ok := r.run("build", "v0.2.0", into); !ok {
			t.Fatalf("build: %s", out)
		}
		if out, ok := r.run("sums", into); !ok {
			t.Fatalf("sums: %s", out)
		}
	}
	sums, err := os.ReadFile(filepath.Join(r.folder, "dist", "checksums.txt"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := os.ReadFile(filepath.Join(r.folder, "again", "checksums.txt"))
	if err != nil || string(again) != string(sums) {
		t.Errorf("the same input makes other archives, error %v:\n%s\n%s", err, sums, again)
	}
	wanted := map[string]string{ // the program and its platform
		"linux_amd64": "caddy linux amd64 ", "linux_arm64": "caddy linux arm64 ", "linux_armv7": "caddy linux arm 7",
		"darwin_amd64": "caddy darwin amd64 ", "darwin_arm64": "caddy darwin arm64 ", "freebsd_amd64": "caddy freebsd amd64 ",
		"windows_amd64": "caddy.exe windows amd64 ", "windows_arm64": "caddy.exe windows arm64 ",
	}
	var lines []string
	for platform, want := range wanted {
		program, want, _ := strings.Cut(want, " ")
		name := "caddy-alive_0.2.0_" + platform + ".tar.gz"
		archive, err := os.ReadFile(filepath.Join(r.folder, "dist", name))
		if err != nil {
			t.Error(err)
			continue
		}
		lines = append(lines, fmt.Sprintf("%x  %s", sha256.Sum256(archive), name))
		files := unpack(t, archive)
		if len(files) != 3 || files["LICENSE"] == "" || files["README.md"] == "" {
			t.Errorf("%s has %d files, want %s, LICENSE and README.md", name, len(files), program)
		}
		if want += " 0 build v2.99.1 --output --with example.com/alive@v0.2.0\n"; files[program] != want {
			t.Errorf("%s: %s is %q, want %q", name, program, files[program], want)
		}
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[66:], b[66:]) })
	if want := strings.Join(lines, "\n") + "\n"; string(sums) != want {
		t.Errorf("the checksums are\n%s\nwant\n%s", sums, want)
	}
	called := func(args ...string) string {
		t.Helper()
		if out, ok := r.run(args...); !ok {
			t.Fatalf("%v: %s", args, out)
		}
		text, err := os.ReadFile(r.called)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(r.called); err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	var names []string
	for _, line := range lines {
		names = append(names, "dist/"+line[66:])
	}
	names = append(names, "dist/checksums.txt")
	for version, option := range map[string]string{"v0.1.0": "", "v0.2.0-rc.1": " --prerelease"} {
		notes, _ := r.run("notes", version)
		want := "gh release create " + version + " --verify-tag --title " + version + " --notes-file -" + option + " " + strings.Join(names, " ") + "\n" + notes
		if got := called("publish", version, "dist"); strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("publish called\n%s\nwant\n%s", got, want)
		}
	}
	if out, ok := r.run("publish", "v0.0.8", "dist"); ok {
		t.Errorf("a version without notes was published: %s", out)
	}
	if _, err := os.Stat(r.called); err == nil {
		t.Error("a version without notes was published")
	}
	for version, tags := range map[string]string{"v0.1.0": "--tag reg/alive:0.1.0 --tag reg/alive:latest --push .", "v0.2.0-rc.1": "--tag reg/alive:0.2.0-rc.1 --push ."} {
		got := called("image", version, "reg/alive")
		for _, want := range []string{"docker buildx create --use\n", "--file examples/docker/Dockerfile --platform linux/amd64,linux/arm64 ", "--build-arg CADDY_VERSION=2.99.1 --build-arg MODULE=example.com/alive@" + version + " ", tags} {
			if !strings.Contains(got, want) {
				t.Errorf("image called\n%s\nwant %q in it", got, want)
			}
		}
	}
}

// unpack returns the files of an archive.
func unpack(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	unzipped, err := gzip.NewReader(strings.NewReader(string(archive)))
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for reader := tar.NewReader(unzipped); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		if header.Uid != 0 || header.Gid != 0 {
			t.Errorf("%s belongs to %d:%d, want 0:0", header.Name, header.Uid, header.Gid)
		}
		files[header.Name] = string(content)
	}
}

// The image is built of the Caddy that go.mod names, and of the module that the release names. What
// runs while it is built runs on the platform of the machine: programs of others do not run there.
func TestRelease_DockerfileHasTheCaddyOfTheModule(t *testing.T) {
	text, err := os.ReadFile("../examples/docker/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	module, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`caddyserver/caddy/v2 v(\S+)`).FindSubmatch(module)[1]
	for _, want := range []string{
		"ARG CADDY_VERSION=" + string(version) + "\n", "FROM caddy:${CADDY_VERSION}\n", "caddy:${CADDY_VERSION}-builder",
		"ARG MODULE", `--with "$MODULE"`, "XCADDY_SETCAP=1",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the Dockerfile lacks %q", want)
		}
	}
	for stage := range strings.SplitSeq("\n"+string(text), "\nFROM ") {
		if strings.Contains(stage, "\nRUN ") && !strings.HasPrefix(stage, "--platform=$BUILDPLATFORM ") {
			t.Errorf("the Dockerfile runs programs of another platform in %q", stage)
		}
	}
}
