// SPDX-License-Identifier: Apache-2.0

package exec

import (
	"encoding/json"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// The kind is registered when the package is imported.
func TestExec_IsRegisteredByImport(t *testing.T) {
	t.Parallel()
	info, err := caddy.GetModule("alive.probes.exec")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := info.New().(*Exec); !ok {
		t.Errorf("got %T, want *Exec", info.New())
	}
}

// The JSON has the arguments as written: parsing neither expands nor splits them.
// Errors have file and line.
func TestExec_CaddyfileKeepsArgumentsAsWritten(t *testing.T) {
	t.Parallel()
	const needs = "an exec check needs a command, like exec /usr/local/bin/check-app --quick, at Testfile:1"
	for _, test := range []struct{ input, want, err string }{
		{"exec /bin/check", `{"command":"/bin/check"}`, ""},
		{"exec check {\n}", `{"command":"check"}`, ""},
		{"exec check --quick -n 3", `{"command":"check","args":["--quick","-n","3"]}`, ""},
		{"exec check \"a b\" `c \"d\"` \"\" $HOME *", `{"command":"check","args":["a b","c \"d\"","","$HOME","*"]}`, ""},
		{"exec {env.EXEC_COMMAND} {env.EXEC_ARG}", `{"command":"{env.EXEC_COMMAND}","args":["{env.EXEC_ARG}"]}`, ""},
		{"exec check a {\n}", `{"command":"check","args":["a"]}`, ""},

		{"exec", "", needs},
		{"exec \"\"", "", needs},
		{"exec {\n\tcommand /bin/check\n}", "", needs},
		{"exec check {\n\tenv A b\n}", "", "unrecognized option 'env': besides the options of every check (name, interval, fast_interval, down_interval, timeout, passes, fails, jitter, port, address, proxy_protocol, keep_connection), an exec check has no other, at Testfile:2"},
		{"exec check a {\n\n\tcommand b\n}", "", "unrecognized option 'command': besides the options of every check (name, interval, fast_interval, down_interval, timeout, passes, fails, jitter, port, address, proxy_protocol, keep_connection), an exec check has no other, at Testfile:3"},
	} {
		p := new(Exec)
		if got := text(p.UnmarshalCaddyfile(caddyfile.NewTestDispenser(test.input))); got != test.err {
			t.Errorf("%q:\n got the error %q\nwant the error %q", test.input, got, test.err)
		}
		if test.err != "" {
			continue
		}
		if got, err := json.Marshal(p); err != nil || string(got) != test.want {
			t.Errorf("%q: got %s, %v; want %s", test.input, got, err, test.want)
		}
	}
}

// The label has the arguments, as written.
func TestExec_LabelShowsArgumentsAsWritten(t *testing.T) {
	t.Parallel()
	for want, p := range map[string]Exec{
		"exec check":                 {Command: "check"},
		"exec check -a {env.SECRET}": {Command: "check", Args: []string{"-a", "{env.SECRET}"}},
	} {
		if got := p.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// text returns the text of an error, and "" if there is none.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
