// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// A mistake in the Caddyfile is answered with its place, and with what to write.
func TestCaddyfileMistakes(t *testing.T) {
	const ofAlive = "lb_policy alive has name, check, weight, backup, slow_start, fail_open, hold and select"
	kinds := knownKinds()
	for _, test := range []struct{ input, want string }{
		// a name that is close to a known one
		{"alive {\nweigth app1 3\n}", "unrecognized option 'weigth': " + ofAlive + "; did you mean 'weight'?, at Testfile:2"},
		{"alive {\nslowstart 30s\n}", "unrecognized option 'slowstart': " + ofAlive + "; did you mean 'slow_start'?, at Testfile:2"},
		{"alive {\nbackups app1\n}", "unrecognized option 'backups': " + ofAlive + "; did you mean 'backup'?, at Testfile:2"},
		{"alive {\ncheck htp /a\n}", "unknown kind of check 'htp'; this build has " + kinds + "; did you mean 'http'?, at Testfile:2"},
		{"alive {\ncheck HTTP /a\n}", "unknown kind of check 'HTTP'; this build has " + kinds + "; did you mean 'http'?, at Testfile:2"},
		{"alive {\nselect least-con\n}", "select takes one of the selection policies " + strings.Join(selectable(), ", ") + "; got 'least-con'; did you mean 'least_conn'?, at Testfile:2"},

		// options of a check in the block of the policy
		{"alive /healthz {\ninterval 2s\n}", "'interval' is an option of a check; in place of the URI after lb_policy alive, write check http /healthz { interval 2s }, at Testfile:2"},
		{"alive /a?b=c {\nhold 1s\nport 8081\n}", "'port' is an option of a check; in place of the URI after lb_policy alive, write check http /a?b=c { port 8081 }, at Testfile:3"},
		{"alive /healthz {\nheader X-Token secret\n}", "'header' is an option of a check; in place of the URI after lb_policy alive, write check http /healthz { header }, at Testfile:2"},
		{"alive {\ninterval 2s\n}", "'interval' is an option of a check; write it in the block of one: check tcp { interval 2s }, at Testfile:2"},
		{"alive {\nuri /a\n}", "'uri' is an option of a check; write it in the block of one: check http /healthz { uri }, at Testfile:2"},
		{"alive {\nsend PING\n}", "'send' is an option of a check; write it in the block of one: check tcp { send }, at Testfile:2"},

		// a mistyped one of a check, in the block of the policy
		{"alive {\nintervall 2s\n}", "unrecognized option 'intervall': " + ofAlive + "; did you mean 'interval'?, at Testfile:2"},

		// options of the policy in the block of a check
		{"alive {\ncheck tcp {\ntimeout 1s\nhold 1s\n}\n}", "'hold' is an option of lb_policy alive; write it beside the check, not in its block, at Testfile:4"},
		{"alive {\ncheck http /a {\nmethod GET\nweight app1 3\n}\n}", "'weight' is an option of lb_policy alive; write it beside the check, not in its block, at Testfile:4"},

		// what reverse_proxy has
		{"alive {\nlb_retries 2\n}", "'lb_retries' is an option of reverse_proxy; write it beside lb_policy, outside of the block of lb_policy alive, at Testfile:2"},
		{"alive {\nfail_duration 30s\n}", "'fail_duration' is an option of reverse_proxy; write it beside lb_policy, outside of the block of lb_policy alive, at Testfile:2"},
		{"alive {\ncheck http /a {\ntimeout 1s\nlb_try_duration 2s\n}\n}", "'lb_try_duration' is an option of reverse_proxy; write it beside lb_policy, outside of the block of a check, at Testfile:4"},
		{"alive {\nhealth_uri /status\n}", "'health_uri' is an option of Caddy's own health checks; lb_policy alive makes its own, so write check http <uri>, at Testfile:2"},
		{"alive {\ncheck http /a {\nhealth_interval 5s\n}\n}", "'health_interval' is an option of Caddy's own health checks; lb_policy alive makes its own, so write interval in the block of a check, at Testfile:3"},

		// arguments that are not what stands there
		{"alive {\ncheck https\n}", "unknown kind of check 'https'; this build has " + kinds + "; a check http uses TLS where the proxy does, and elsewhere with the option scheme https, at Testfile:2"},
		{"alive {\ncheck /healthz\n}", "unknown kind of check '/healthz'; this build has " + kinds + "; a check begins with its kind: check http /healthz, at Testfile:2"},
		{"alive {\ncheck https://app1:8080/a?b=c\n}", "unknown kind of check 'https://app1:8080/a?b=c'; this build has " + kinds + "; every upstream is asked, so a check has the path only: check http /a, at Testfile:2"},
		{"alive {\ncheck http://app1\n}", "unknown kind of check 'http://app1'; this build has " + kinds + "; every upstream is asked, so a check has the path only: check http /, at Testfile:2"},
		{"alive tcp", "lb_policy alive takes a URI, like /healthz; write a check of a kind in its block: check tcp, at Testfile:1"},
		{"alive http /healthz", "lb_policy alive takes a URI, like /healthz; write a check of a kind in its block: check http, at Testfile:1"},

		// the same twice
		{"alive {\ncheck tcp\ncheck http /a\ncheck tcp {\ninterval 5s\n}\n}", "this check is the same as the one at Testfile:2, at Testfile:4"},
		{"alive {\ncheck tcp {\nname a\n}\ncheck tcp {\nname b\n}\n}", "this check is the same as the one at Testfile:2, at Testfile:5"},
		{"alive {\ncheck tcp {\nname a\n}\ncheck http /a {\nname a\n}\n}", "this check has the name of the one at Testfile:2: a, at Testfile:5"},
		{"alive {\nweight app1 1\nweight http://app1 2\n}", "weight: app1 and http://app1 are the same upstream, at Testfile:3"},
		{"alive {\nweight app1:8080-8082 1\nweight app1:8081 2\n}", "weight: app1:8080-8082 and app1:8081 are the same upstream, at Testfile:3"},
		{"alive {\nbackup app1\nbackup app2 app1:80\n}", "backup: app1 and app1:80 are the same upstream, at Testfile:3"},

		// addresses that are none
		{"alive {\nweight \"app1 :80\" 3\n}", "weight: app1 :80: an address has no spaces in it, at Testfile:2"},
		{"alive {\nbackup app1 \"app 2\"\n}", "backup: app 2: an address has no spaces in it, at Testfile:2"},
		{"alive {\nweight ftp://app1 3\n}", "weight: ftp://app1: not an address as reverse_proxy names upstreams, at Testfile:2"},
		{"alive {\ncheck tcp {\naddress \"app 1\"\n}\n}", "address must be a host, with a port if need be, or a unix socket, like 127.0.0.1:8081 or unix//run/app.sock; got 'app 1', at Testfile:3"},

		// names
		{"alive {\nname \"a\tb\"\n}", "name must be one line of 200 bytes at most, at Testfile:2"},
		{"alive {\ncheck tcp {\nname\n}\n}", "name takes a label, like web, at Testfile:3"},
		{"alive {\ncheck tcp {\nname \"\"\n}\n}", "name must not be empty, at Testfile:3"},
		{"alive {\ncheck tcp {\nname " + strings.Repeat("x", 201) + "\n}\n}", "name must be one line of 200 bytes at most, at Testfile:3"},
		{"alive {\ncheck tcp {\nname a\nname b\n}\n}", "option 'name' is given twice, at Testfile:4"},
	} {
		err := new(Selection).UnmarshalCaddyfile(caddyfile.NewTestDispenser(test.input))
		if err == nil || err.Error() != test.want {
			t.Errorf("%s\n got error %v\nwant error %s", test.input, err, test.want)
		}
	}
	for input, want := range map[string]string{
		"alive {\nflet shops\n}":          "unrecognized option 'flet': alive has fleet and sync_interval; did you mean 'fleet'?, at Testfile:2",
		"alive {\nsync-interval 1s\n}":    "unrecognized option 'sync-interval': alive has fleet and sync_interval; did you mean 'sync_interval'?, at Testfile:2",
		"alive {\nfleet a\ncolour red\n}": "unrecognized option 'colour': alive has fleet and sync_interval, at Testfile:3",
	} {
		if _, err := parseGlobalOption(caddyfile.NewTestDispenser(input), nil); err == nil || err.Error() != want {
			t.Errorf("%s\n got error %v\nwant error %s", input, err, want)
		}
	}
}

// All options of a check that the block of the policy refuses with a hint are ones
// that the parser of a check takes.
func TestCaddyfileHintsNameOptions(t *testing.T) {
	for _, option := range commonOptions {
		d := caddyfile.NewTestDispenser(option)
		d.Next()
		if common, _ := new(HealthCheck).unmarshalOption(d); !common {
			t.Errorf("'%s' is not an option of every check", option)
		}
	}
	for field := range reflect.TypeFor[HealthCheck]().Fields() {
		option, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if option != "" && option != "probe" && !slices.Contains(commonOptions, option) {
			t.Errorf("commonOptions lacks '%s'", option)
		}
	}
	for option, kind := range kindOptions {
		if option == "uri" { // an argument in a Caddyfile
			continue
		}
		_, err := parseCheck(caddyfile.NewTestDispenser("check " + kind + " {\n" + option + "\n}"))
		if err != nil && strings.HasPrefix(err.Error(), "unrecognized option") {
			t.Errorf("check %s: %v", kind, err)
		}
	}
	for _, option := range append(proxyOptions, "method") {
		_, err := adapt("http:// {\nreverse_proxy app1 {\n" + option + "\n}\n}")
		if err != nil && strings.Contains(err.Error(), "unrecognized subdirective") {
			t.Errorf("reverse_proxy: %v", err)
		}
	}
	for option := range coreChecks {
		_, err := adapt("http:// {\nreverse_proxy app1 {\n" + option + "\n}\n}")
		if err != nil && strings.Contains(err.Error(), "unrecognized subdirective") {
			t.Errorf("reverse_proxy: %v", err)
		}
	}
}
