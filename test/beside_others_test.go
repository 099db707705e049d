// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// What docs/benchmarks.md says about the features of other proxies, as far as their configs
// show it. With another version than that page names, a difference skips the test.
func TestBesideOthers(t *testing.T) {
	_, tables := testkit.Documentation(t)
	var named []string // what nginx refuses, by the page
	var versions string
	for _, table := range testkit.TablesOf(t, "feature", tables) {
		if column := slices.IndexFunc(table.Head, func(head string) bool { return strings.HasPrefix(head, "nginx ") }); column > 0 {
			versions = strings.Join(table.Head, ", ")
			for _, row := range table.Rows {
				named = append(named, testkit.InCode(row[column])...)
			}
		}
	}
	// what makes a whole config of a line
	nginx := func(upstream, location string) string {
		return "pid nginx.pid;\nevents {}\nhttp {\n\taccess_log off;\n\tclient_body_temp_path a;\n\tproxy_temp_path b;\n\tfastcgi_temp_path c;\n\tuwsgi_temp_path d;\n\tscgi_temp_path e;\n" +
			"\tupstream all {\n\t\tserver 127.0.0.1:1;\n\t\tserver 127.0.0.1:2 " + upstream + ";\n\t}\n" +
			"\tserver {\n\t\tlisten " + testkit.Loopback(testkit.FreePort(t)) + ";\n\t\tlocation / {\n\t\t\tproxy_pass http://all;\n\t\t\t" + location + "\n\t\t}\n\t}\n}\n"
	}
	haproxy := func(global, backend, server string) string {
		return "global\n\t" + global + "\ndefaults\n\tmode http\n\ttimeout connect 1s\n\ttimeout client 1s\n\ttimeout server 1s\n" +
			"frontend in\n\tbind " + testkit.Loopback(testkit.FreePort(t)) + "\n\tdefault_backend all\nbackend all\n\t" + backend + "\n\tserver a 127.0.0.1:1 " + server + "\n"
	}
	caddy := func(option string) string {
		return "example.com {\n\treverse_proxy app1:8080 app2:8080 {\n\t\t" + option + "\n\t}\n}\n"
	}
	for _, test := range []struct {
		peer, directive string
		config          string
		refused         string // what it says then; else it takes the config
	}{
		{"nginx", "weight", nginx("weight=5", ""), ""},
		{"nginx", "backup", nginx("backup", ""), ""},
		{"nginx", "health_check", nginx("", "health_check;"), `unknown directive "health_check"`},
		{"nginx", "slow_start", nginx("slow_start=30s", ""), `invalid parameter "slow_start=30s"`},
		{"nginx", "drain", nginx("drain", ""), `invalid parameter "drain"`},
		{"nginx", "max_fails", nginx("max_fails=3 fail_timeout=1s", ""), ""},
		{"nginx", "max_conns", nginx("max_conns=20", ""), ""},
		{"nginx", "queue", nginx("max_conns=20;\n\t\tqueue 100", ""), `unknown directive "queue"`},
		{"nginx", "sticky", nginx("weight=5;\n\t\tsticky cookie lb", ""), `unknown directive "sticky"`},
		{"nginx", "stub_status", nginx("", "stub_status;"), ""},

		{"haproxy", "weight", haproxy("", "", "weight 5"), ""},
		{"haproxy", "backup", haproxy("", "", "backup"), ""},
		{"haproxy", "a check by HTTP", haproxy("", "option httpchk GET /healthz", "check"), ""},
		{"haproxy", "a check by TCP", haproxy("", "option tcp-check", "check"), ""},
		{"haproxy", "a check by a command", haproxy("external-check", "option external-check\n\texternal-check command /bin/true", "check"), ""},
		{"haproxy", "a check by an agent", haproxy("", "", "agent-check agent-port 4"), ""},
		{"haproxy", "slowstart", haproxy("", "", "check slowstart 30s"), ""},
		{"haproxy", "a state that is saved", haproxy("server-state-file state", "load-server-state-from-file global", "check"), ""},
		{"haproxy", "a socket", haproxy("stats socket unix@admin.sock level admin", "", ""), ""},
		{"haproxy", "observe", haproxy("", "", "check observe layer7 error-limit 5 on-error mark-down"), ""},
		{"haproxy", "maxconn and a queue", haproxy("", "timeout queue 10s", "maxconn 20"), ""},
		{"haproxy", "a cookie", haproxy("", "cookie lb insert indirect nocache", "cookie a"), ""},
		{"haproxy", "the page", haproxy("", "stats enable", ""), ""},

		{"caddy", "weighted_round_robin", caddy("lb_policy weighted_round_robin 1 5"), ""},
		{"caddy", "health_uri", caddy("health_uri /healthz"), ""},
		{"caddy", "slow_start", caddy("slow_start 30s"), "unrecognized subdirective slow_start"},
		{"caddy", "drain", caddy("drain app1:8080"), "unrecognized subdirective drain"},
		{"caddy", "fail_duration", caddy("fail_duration 10s"), ""},
		{"caddy", "unhealthy_request_count", caddy("unhealthy_request_count 20"), ""},
		{"caddy", "queue", caddy("queue 10s"), "unrecognized subdirective queue"},
		{"caddy", "cookie", caddy("lb_policy cookie lb"), ""},
		{"caddy", "backup", caddy("backup app1:8080"), "unrecognized subdirective backup"},
	} {
		t.Run(test.peer+" "+test.directive, func(t *testing.T) {
			// it is looked at, even where the peer is not installed and this ends in a skip
			named = slices.DeleteFunc(named, func(name string) bool { return test.peer == "nginx" && name == test.directive })
			said, version := "", ""
			switch test.peer {
			case "caddy":
				if _, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(test.config), nil); err != nil {
					said = err.Error()
				}
			case "nginx":
				said, version = otherTakes(t, "nginx", test.config, "-t", "-p", ".", "-e", "error.log", "-c")
			case "haproxy":
				said, version = otherTakes(t, "haproxy", test.config, "-c", "-f")
			}
			if (test.refused == "") != (said == "") || !strings.Contains(said, test.refused) {
				if version != "" && !strings.Contains(strings.ToLower(versions), test.peer+" "+version) {
					t.Skipf("this is %s %s, where it is otherwise: %q", test.peer, version, said)
				}
				t.Errorf("it says %q, want %q", said, test.refused)
			}
		})
	}
	if len(named) > 0 {
		t.Errorf("not looked at: %v", named)
	}
}

// majorMinor is where a version says 1.22.1 or so, first.
var majorMinor = regexp.MustCompile(`(\d+\.\d+)\.\d+`)

// otherTakes asks a program of others for its version, 1.22 for instance, and what it
// says against a config, nothing if it takes it.
func otherTakes(t *testing.T, name, config string, args ...string) (said, version string) {
	t.Helper()
	path, err := exec.LookPath(name)
	for _, folder := range []string{"/usr/sbin", "/usr/local/sbin"} { // not in the path of every user
		if err != nil {
			path, err = exec.LookPath(filepath.Join(folder, name))
		}
	}
	if err != nil {
		t.Skipf("%s (Debian package %[1]s) is not installed", name)
	}
	dir := t.TempDir()
	run := func(args ...string) (string, error) {
		command := exec.CommandContext(t.Context(), path, args...)
		command.Dir = dir
		out, err := command.CombinedOutput()
		return string(out), err
	}
	file := filepath.Join(dir, "config")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	about, err := run("-v")
	if err != nil {
		t.Fatalf("%v: %s", err, about)
	}
	if m := majorMinor.FindStringSubmatch(about); m != nil {
		version = m[1]
	}
	if out, err := run(append(args, file)...); err != nil {
		return out, version
	}
	return "", version
}
