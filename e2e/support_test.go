// SPDX-License-Identifier: Apache-2.0

// Package e2e has the tests that need several processes, or a browser: Caddy as it is
// built, its commands, and its page. It knows only what users know: it imports nothing
// of the plugin. The tests of fleets run on real storage engines, by the storages of the
// package storages.
package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// patience is how long to wait for anything that has to happen.
const patience = 20 * time.Second

// built is the folder with the build, "" if there is none.
var built string

// build builds Caddy with this plugin, and buildWithStorages with the storages of the tests,
// too. Each builds once for all tests.
var (
	build             = sync.OnceValues(func() (string, error) { return buildIn("..", "./cmd/caddy") })
	buildWithStorages = sync.OnceValues(func() (string, error) { return buildIn(".", "./caddy") })
)

// buildFolder makes the folder for what is built.
var buildFolder = sync.OnceValues(func() (folder string, err error) {
	built, err = os.MkdirTemp("", "e2e")
	return built, err
})

// buildIn builds a package of the module in a folder.
func buildIn(module, name string) (caddy string, err error) {
	folder, err := buildFolder()
	if err != nil {
		return "", err
	}
	caddy = filepath.Join(folder, strings.ReplaceAll(name, "/", "-")[2:])
	args := []string{"build", "-o", caddy}
	if *race {
		args = append(args, "-race")
	}
	command := exec.Command("go", append(args, name)...)
	command.Dir = module
	if out, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %s", err, out)
	}
	return caddy, nil
}

// servers are the main functions of processes of tests: by the variable of the environment
// that makes the test binary one, and has its address.
var servers = map[string]func(address string) error{workerAddress: work}

func TestMain(m *testing.M) {
	for variable, serve := range servers {
		if address := os.Getenv(variable); address != "" {
			fmt.Fprintln(os.Stderr, serve(address))
			os.Exit(1)
		}
	}
	status := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	tellSkipped(os.Stderr)
	os.Exit(status)
}

// eventually fails the test unless cond becomes true in time.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	if !poll(cond) {
		t.Fatalf("not in %v: %s", patience, what)
	}
}

// poll reports whether cond becomes true in time.
func poll(cond func() bool) bool {
	for began := time.Now(); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > patience {
			return false
		}
	}
	return true
}

// backend is an upstream that can be made sick, with a reason in its answer.
type backend struct {
	addr string
	sick atomic.Bool
}

func startBackend(t *testing.T) *backend { return startBackendAt(t, "127.0.0.1:0") }

// startBackendAt starts a backend that listens at an address.
func startBackendAt(t *testing.T, address string) *backend {
	t.Helper()
	b := new(backend)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b.sick.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprint(w, b.addr)
	}))
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	b.addr = listener.Addr().String()
	return b
}

// taken are the ports that were returned.
var taken sync.Map

// freePort returns a port that is free and that no other call returned. It is below the
// ports that systems assign themselves, so that it stays free while its server is
// restarted.
func freePort(t *testing.T) int {
	t.Helper()
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		if _, again := taken.LoadOrStore(port, true); again {
			continue
		}
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		listener.Close()
		return port
	}
	t.Fatal("no free port")
	return 0
}

// instance is a Caddy process.
type instance struct {
	t           *testing.T
	caddy       string
	config      string
	text        string // the config, with %s for the site
	folder      string // has the config and the log
	data        string // where Caddy keeps what is not in the storage: "" is the folder
	admin, site string
	client      *http.Client              // for the admin API
	inside      func(*exec.Cmd) *exec.Cmd // runs the process elsewhere if it is not nil
	pid         int
	stop        func()
}

// startCaddy runs Caddy with an admin API, further global options, and a site.
func startCaddy(t *testing.T, storage, global, site string) *instance {
	t.Helper()
	c := prepare(t, build, fmt.Sprintf("file_system %q", storage), global, site)
	c.start()
	return c
}

// prepare returns a Caddy of a build that is yet to be started. It stops with the test.
func prepare(t *testing.T, build func() (string, error), storage, global, site string) *instance {
	t.Helper()
	caddy, err := build()
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	c := &instance{t: t, caddy: caddy, client: http.DefaultClient, folder: folder, admin: fmt.Sprintf("127.0.0.1:%d", freePort(t)), site: fmt.Sprintf("127.0.0.1:%d", freePort(t)), stop: func() {}}
	c.config = filepath.Join(c.folder, "Caddyfile")
	c.text = fmt.Sprintf("{\n\tadmin %s\n\tpersist_config off\n\tauto_https off\n\tstorage %s\n\t%s\n}\nhttp://%s {\n\t%%s\n}\n", c.admin, storage, global, c.site)
	if err := os.WriteFile(c.config, fmt.Appendf(nil, c.text, site), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.stop() })
	return c
}

// start starts the process, and returns when its admin API answers and its site is
// open. Caddy opens the admin API first, so it says nothing about the site.
func (c *instance) start() {
	c.t.Helper()
	log, err := os.OpenFile(filepath.Join(c.folder, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	const serves = `"msg":"serving initial configuration"`
	before := strings.Count(c.log(), serves)
	command := exec.Command(c.caddy, "run", "--config", c.config)
	if c.inside != nil {
		command = c.inside(command)
	}
	command.Env = append(os.Environ(), "XDG_DATA_HOME="+cmp.Or(c.data, c.folder), "XDG_CONFIG_HOME="+c.folder)
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.pid = command.Process.Pid
	c.stop = sync.OnceFunc(func() {
		_ = command.Process.Signal(os.Interrupt)
		_ = command.Wait()
		log.Close()
		if c.t.Failed() {
			text := c.log()
			c.t.Logf("the log of Caddy:\n%s", text[max(0, len(text)-4000):])
		}
	})
	eventually(c.t, "Caddy serves", func() bool {
		if strings.Count(c.log(), serves) == before {
			return false
		}
		response, err := c.client.Get("http://" + c.admin + "/alive/upstreams")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
}

// kill ends the process at once, as kill -9 does.
func (c *instance) kill() {
	_ = syscall.Kill(c.pid, syscall.SIGKILL)
	c.stop()
}

// log returns what Caddy logged, without the requests to its admin API.
func (c *instance) log() string {
	text, err := os.ReadFile(filepath.Join(c.folder, "log"))
	if err != nil {
		c.t.Error(err)
	}
	var log strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, `"msg":"received request"`) {
			log.WriteString(line)
		}
	}
	return log.String()
}

// load replaces the site.
func (c *instance) load(site string) {
	c.t.Helper()
	request, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, "http://"+c.admin+"/load", strings.NewReader(fmt.Sprintf(c.text, site)))
	if err != nil {
		c.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "text/caddyfile")
	request.Close = true // the admin endpoint is replaced, and closes its connections
	response, err := c.client.Do(request)
	if err != nil {
		c.t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK {
		c.t.Fatalf("status %d: %s, %v", response.StatusCode, body, err)
	}
}

// run runs a command of Caddy, and returns what it prints and its exit status.
func (c *instance) run(args ...string) (stdout, stderr string, status int) {
	c.t.Helper()
	return c.runFor(patience, args...)
}

// runFor is run for a command that may take this time.
func (c *instance) runFor(most time.Duration, args ...string) (stdout, stderr string, status int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), most)
	defer cancel()
	command := exec.CommandContext(ctx, c.caddy, append([]string{"alive"}, args...)...)
	command.Env = append(os.Environ(), "XDG_DATA_HOME="+cmp.Or(c.data, c.folder), "XDG_CONFIG_HOME="+c.folder)
	var out, errs strings.Builder
	command.Stdout, command.Stderr = &out, &errs
	if err := command.Run(); err != nil && command.ProcessState == nil {
		c.t.Fatal(err)
	}
	return out.String(), errs.String(), command.ProcessState.ExitCode()
}

// modes returns the mode of each upstream.
func (c *instance) modes() map[string]string {
	c.t.Helper()
	out, errs, status := c.run("status", "--json", "--address", c.admin)
	if status != 0 {
		c.t.Fatalf("status %d: %s", status, errs)
	}
	var entries []struct{ Upstream, Mode, Status string }
	if err := json.Unmarshal([]byte(out), &entries); err != nil {
		c.t.Fatalf("%v: %s", err, out)
	}
	modes := make(map[string]string)
	for _, e := range entries {
		modes[e.Upstream] = e.Mode + " " + e.Status
	}
	return modes
}

// answers sends n requests, and counts the answers of each upstream.
func (c *instance) answers(n int) map[string]int {
	c.t.Helper()
	counts := make(map[string]int)
	for range n {
		response, err := http.Get("http://" + c.site)
		if err != nil {
			c.t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		counts[string(body)]++
	}
	return counts
}
