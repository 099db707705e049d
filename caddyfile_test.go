// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-alive/caddy-alive/internal/kinds"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/redact"
	"github.com/caddy-alive/caddy-alive/internal/selector"
	"github.com/caddy-alive/caddy-alive/internal/suggest"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/probe"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// policies are ways to write the policy, and the JSON that each stands for.
// What is not written stays out of the JSON, so that defaults can improve.
var policies = []struct{ name, input, want string }{
	{"nothing", `alive`, `{}`},
	{"empty block", "alive {\n}", `{}`},
	{"inline URI", `alive /healthz?deep=1`, `{"checks":[{"probe":{"kind":"http","uri":"/healthz?deep=1"}}]}`},
	{"inline URI and hold", "alive /healthz {\nhold 2s\n}", `{"checks":[{"probe":{"kind":"http","uri":"/healthz"}}],"hold":2000000000}`},
	{"hold off", "alive {\nhold off\n}", `{"hold":0}`},
	{"tcp", "alive {\ncheck tcp\n}", `{"checks":[{"probe":{"kind":"tcp"}}]}`},
	{"tcp, empty block", "alive {\ncheck tcp {\n}\n}", `{"checks":[{"probe":{"kind":"tcp"}}]}`},
	{"http", "alive {\ncheck http /healthz\n}", `{"checks":[{"probe":{"kind":"http","uri":"/healthz"}}]}`},
	{
		"common options", `alive {
			check tcp {
				interval      10s
				fast_interval 500ms
				down_interval 1m
				timeout       3s
				passes        4
				fails         1
				jitter        12.5%
			}
		}`,
		`{"checks":[{"probe":{"kind":"tcp"},"interval":10000000000,"fast_interval":500000000,` +
			`"down_interval":60000000000,"timeout":3000000000,"passes":4,"fails":1,"jitter":"12.5%"}]}`,
	},
	{
		"limits", `alive {
			check http / {
				interval      1d
				fast_interval 1d
				passes        1
				jitter        100%
				status        200 599 200-599 5xx
				max_size      64MiB
			}
			check http / {
				jitter   0%
				max_size 1
			}
		}`,
		`{"checks":[{"probe":{"kind":"http","max_size":67108864,"status":["200","599","200-599","5xx"],"uri":"/"},` +
			`"interval":86400000000000,"fast_interval":86400000000000,"passes":1,"jitter":"100%"},` +
			`{"probe":{"kind":"http","max_size":1,"uri":"/"},"jitter":"0%"}]}`,
	},
	{
		// common lines are taken out from wherever they stand
		"options of http and common ones mixed", `alive {
			check http /healthz {
				timeout 1s
				method  HEAD
				fails   2
				passes  3
				status  200
				jitter  5%
			}
			hold 1s
			check http /ready {
				status   204
				interval 3s
				header   A b
			}
		}`,
		`{"checks":[{"probe":{"kind":"http","method":"HEAD","status":["200"],"uri":"/healthz"},"timeout":1000000000,"passes":3,"fails":2,"jitter":"5%"},` +
			`{"probe":{"header":{"A":["b"]},"kind":"http","status":["204"],"uri":"/ready"},"interval":3000000000}],"hold":1000000000}`,
	},
	{
		"which upstreams get requests", "alive /healthz {\nweight app1 5\nweight https://app2 0\nweight unix//run/app.sock 256\nbackup app3 app4:8080\nbackup app5\n" +
			"slow_start 30s 35%\nfail_open 50%\nhold 1s\n}",
		`{"checks":[{"probe":{"kind":"http","uri":"/healthz"}}],"hold":1000000000,` +
			`"weights":{"app1":5,"https://app2":0,"unix//run/app.sock":256},"backups":[["app3","app4:8080"],["app5"]],` +
			`"fail_open":"50%","slow_start":{"window":30000000000,"floor":"35%"}}`,
	},
	{
		"one group, and spill", "alive {\nbackup app3 app4:8080\nspill 70%\nfail_open 2\n}",
		`{"backups":["app3","app4:8080"],"spill":"70%","fail_open":"2"}`,
	},
	{
		"ranges of addresses", "alive {\nweight 10.2.0.0/16 3\nweight 10.2.0.5/32 0\nspill 100%\nbackup 10.3.0.0/16 2001:db8::/32\nbackup {env.NET}\nbackup 0.0.0.0/0\nmax_requests 3 10.2.0.0/16\n}",
		`{"weights":{"10.2.0.0/16":3,"10.2.0.5/32":0},"backups":[["10.3.0.0/16","2001:db8::/32"],["{env.NET}"],["0.0.0.0/0"]],"spill":"100%","max_requests":{"upstreams":{"10.2.0.0/16":3}}}`,
	},
	{"a limit of all", "alive {\nmax_requests 20\nqueue 10s\n}", `{"max_requests":{"default":20},"queue":{"timeout":10000000000}}`},
	{
		"limits, and a queue with its length", "alive {\nmax_requests 5 app2:80 app3\nmax_requests 1000000\nqueue 1ms 100000\nmax_requests 1 {env.APP} 10.2.0.0/16\n}",
		`{"max_requests":{"default":1000000,"upstreams":{"10.2.0.0/16":1,"app2:80":5,"app3":5,"{env.APP}":1}},"queue":{"timeout":1000000,"length":100000}}`,
	},
	{"a queue without a limit of its own", "alive {\nqueue 1d 1\n}", `{"queue":{"timeout":86400000000000,"length":1}}`},
	{"sticky", "alive {\nsticky\n}", `{"sticky":{}}`},
	{"sticky, empty block", "alive {\nsticky {\n}\n}", `{"sticky":{}}`},
	{
		"sticky with all of it", "alive {\nsticky shop_1 {\nmax_age 30d\nsecret \"{env.LB_SECRET} and \\{more\\}\"\n}\nweight app1 2\n}",
		`{"weights":{"app1":2},"sticky":{"cookie":"shop_1","secret":"{env.LB_SECRET} and \\{more\\}","max_age":2592000000000000}}`,
	},
	{
		"placeholders of upstreams and weights", "alive {\nweight {env.APP} 3\nweight app2:80 {env.W}\nbackup {env.SPARE}:80\n}",
		`{"weights":{"app2:80":"{env.W}","{env.APP}":3},"backups":["{env.SPARE}:80"]}`,
	},
	{"retries", "alive {\nretries 3\n}", `{"retries":3}`},
	{"stale", "alive {\nstale 90m\n}", `{"stale":5400000000000}`},
	{"stale off", "alive {\nstale off\n}", `{"stale":0}`},
	{"retries off", "alive {\nretries off\n}", `{"retries":-1}`},
	{"observe off", "alive {\nobserve off\n}", `{"observe":{"off":true}}`},
	{"observe off, empty block", "alive {\nobserve off {\n}\n}", `{"observe":{"off":true}}`},
	{
		"observe and eject", "alive {\nobserve {\nstatus 502 5xx 500-599 {env.STATUS}\nstall 500ms\n}\neject 3 {\nfor 1m 1h\nshare 50.5%\n}\n}",
		`{"observe":{"status":["502","5xx","500-599","{env.STATUS}"],"stall":"500ms"},"eject":{"after":3,"for":60000000000,"longest":3600000000000,"share":"50.5%"}}`,
	},
	{"eject beside statuses that are off", "alive {\neject 5\nobserve {\nstall off\nstatus off\n}\n}", `{"observe":{"status":["off"],"stall":"off"},"eject":{"after":5}}`},
	{"what is off twice", "alive {\nobserve off\neject off\n}", `{"observe":{"off":true},"eject":{"after":-1}}`},
	{
		"limits of observe and eject", "alive {\nretries 100\nobserve {\nstall 10ms\n}\neject 1000 {\nfor 1d\nshare 100%\n}\n}",
		`{"retries":100,"observe":{"stall":"10ms"},"eject":{"after":1000,"for":86400000000000,"share":"100%"}}`,
	},
	{"stall auto", "alive {\nobserve {\nstall auto\n}\neject 1 {\nfor 10ms 10ms\n}\n}", `{"observe":{"stall":"auto"},"eject":{"after":1,"for":10000000,"longest":10000000}}`},
	{"a weight with a sign", "alive {\nweight app1:80 +3\n}", `{"weights":{"app1:80":3}}`},
	{
		"ports", "alive {\ncheck tcp {\nport +1000\n}\ncheck tcp {\nport 081\n}\ncheck tcp {\nport {env.PORT}\n}\ncheck tcp {\nport +082\naddress {http.reverse_proxy.upstream.host}\n}\n}",
		`{"checks":[{"probe":{"kind":"tcp"},"port":"+1000"},{"probe":{"kind":"tcp"},"port":81},{"probe":{"kind":"tcp"},"port":"{env.PORT}"},` +
			`{"probe":{"kind":"tcp"},"port":"+82","address":"{http.reverse_proxy.upstream.host}"}]}`,
	},
	{
		"version and metadata", "alive {\ncheck http /a {\nversion 1.1\nport 8081\n}\ncheck grpc {\nheader X-Token {env.TOKEN}\n}\n}",
		`{"checks":[{"probe":{"kind":"http","uri":"/a","version":"1.1"},"port":8081},{"probe":{"header":{"X-Token":["{env.TOKEN}"]},"kind":"grpc"}}]}`,
	},
	{
		"names of checks", "alive {\ncheck tcp {\nname \"all ports\"\n}\ncheck tcp {\nport 81\nname other\nfails 1\n}\n}",
		`{"checks":[{"probe":{"kind":"tcp"},"name":"all ports"},{"probe":{"kind":"tcp"},"name":"other","fails":1,"port":81}]}`,
	},
	{
		"shortest times", "alive {\ncheck tcp {\ninterval 10ms\nfast_interval 10ms\ndown_interval 10ms\ntimeout 1ms\n}\nhold 1ms\nslow_start 10ms\n}",
		`{"checks":[{"probe":{"kind":"tcp"},"interval":10000000,"fast_interval":10000000,"down_interval":10000000,"timeout":1000000}],` +
			`"hold":1000000,"slow_start":{"window":10000000}}`,
	},
	{
		"another policy selects", "alive {\nselect cookie lb secret {\nfallback first\n}\nfail_open off\n}",
		`{"fail_open":"off","select":{"fallback":{"policy":"first"},"name":"lb","policy":"cookie","secret":"secret"}}`,
	},
	{"two checks", "alive {\ncheck tcp\ncheck http /healthz\n}", `{"checks":[{"probe":{"kind":"tcp"}},{"probe":{"kind":"http","uri":"/healthz"}}]}`},
	{
		// what is quoted is text, also a brace or an option's name
		"quoted", "alive {\ncheck \"http\" `/a%20b` {\nheader X \"{\"\n\"timeout\" \"1s\"\nexpect_body `\"status\": ?\"ok\"`\nmethod \"GET\"\n}\n}",
		`{"checks":[{"probe":{"expect_body":"\"status\": ?\"ok\"","header":{"X":["{"]},"kind":"http","method":"GET","uri":"/a%20b"},"timeout":1000000000}]}`,
	},
	{
		"heredoc", "alive {\ncheck http /healthz {\ntimeout 1s\nexpect_body <<RE\n  ^interval\n  timeout$\n  RE\npasses 3\nstatus 200\n}\n}",
		`{"checks":[{"probe":{"expect_body":"^interval\ntimeout$","kind":"http","status":["200"],"uri":"/healthz"},"timeout":1000000000,"passes":3}]}`,
	},
	{
		// placeholders are for Provision to resolve
		"placeholders", "alive {\ncheck http {env.URI}?{http.reverse_proxy.upstream.hostport} {\nheader X-Token {env.TOKEN}\nheader Host {env.HOST}\nmethod {env.METHOD}\nstatus {env.STATUS}\nexpect_body ^a{2}{env.BODY}\n}\n}",
		`{"checks":[{"probe":{"expect_body":"^a{2}{env.BODY}","header":{"Host":["{env.HOST}"],"X-Token":["{env.TOKEN}"]},"kind":"http","method":"{env.METHOD}","status":["{env.STATUS}"],"uri":"{env.URI}?{http.reverse_proxy.upstream.hostport}"}}]}`,
	},
	{
		// port, address and proxy_protocol apply to every kind
		"where to probe", `alive {
			check tcp {
				port           1
				proxy_protocol v1
			}
			check tls {
				address        app1:65535
				proxy_protocol v2
			}
			check grpc {
				address unix//run/{env.NAME}.sock
			}
			check http / {
				address        [::1]
				port           65535
				proxy_protocol off
			}
		}`,
		`{"checks":[{"probe":{"kind":"tcp"},"port":1,"proxy_protocol":"v1"},` +
			`{"probe":{"kind":"tls"},"address":"app1:65535","proxy_protocol":"v2"},` +
			`{"probe":{"kind":"grpc"},"address":"unix//run/{env.NAME}.sock"},` +
			`{"probe":{"kind":"http","uri":"/"},"port":65535,"address":"[::1]","proxy_protocol":"off"}]}`,
	},
	{
		"where to probe, in between options of the kind", `alive {
			check http / {
				scheme       http
				port         81
				request_body "{ }"
				address      app1
				header       A b
			}
		}`,
		`{"checks":[{"probe":{"header":{"A":["b"]},"kind":"http","request_body":"{ }","scheme":"http","uri":"/"},"port":81,"address":"app1"}]}`,
	},
	{
		"more options of http", `alive {
			check http /healthz {
				request_body  ` + "`{\"a\":{\"b\":\"{env.TOKEN}\"}}`" + `
				scheme        https
				follow_redirects
				drain_status  503 429-431
				expect_header x-role ^primary$
				expect_header Content-Type ^application/json
				expression    "status == 200 && json.db == 'ok'"
				tls_server_name app.internal
				tls_insecure_skip_verify
				fresh_connection
				timeout       1s
			}
		}`,
		`{"checks":[{"probe":{"drain_status":["503","429-431"],"expect_header":{"Content-Type":"^application/json","X-Role":"^primary$"},` +
			`"expression":"status == 200 \u0026\u0026 json.db == 'ok'","follow_redirects":true,"fresh_connection":true,"kind":"http",` +
			`"request_body":"{\"a\":{\"b\":\"{env.TOKEN}\"}}","scheme":"https","tls_insecure_skip_verify":true,"tls_server_name":"app.internal",` +
			`"uri":"/healthz"},"timeout":1000000000}]}`,
	},
	{
		"options of other kinds", "alive {\ncheck tcp {\nsend `PING\\r\\n`\nfails 1\nexpect ^\\+PONG\n}\ncheck tls {\ntls_server_name a\npasses 1\ntls_insecure_skip_verify\n}\n" +
			"check grpc app.Service {\nauthority a\nscheme http\njitter 0%\n}\n}",
		`{"checks":[{"probe":{"expect":"^\\+PONG","kind":"tcp","send":"PING\\r\\n"},"fails":1},` +
			`{"probe":{"kind":"tls","tls_insecure_skip_verify":true,"tls_server_name":"a"},"passes":1},` +
			`{"probe":{"authority":"a","kind":"grpc","scheme":"http","service":"app.Service"},"jitter":"0%"}]}`,
	},
}

// The Caddyfile is another way to write the JSON.
func TestCaddyfile_IsAnotherWayToWriteTheJSON(t *testing.T) {
	for _, test := range policies {
		t.Run(test.name, func(t *testing.T) {
			s := new(Selection)
			if err := s.UnmarshalCaddyfile(caddyfile.NewTestDispenser(test.input)); err != nil {
				t.Fatal(err)
			}
			if got := encode(t, s); got != test.want {
				t.Errorf("JSON:\n got %s\nwant %s", got, test.want)
			}
		})
	}
}

// In a whole Caddyfile, snippets, their arguments and the environment are
// filled in before the policy is read.
func TestCaddyfile_IsReadAfterSnippetsAndEnvironment(t *testing.T) {
	t.Setenv("ALIVE_TEST_URI", "/from-env")
	const snippets = "(policy) {\n\tlb_policy alive {args[0]}\n}\n" +
		"(check) {\n\tcheck {args[0]} {args[1]} {\n\t\ttimeout {args[2]}\n\t\tmethod HEAD\n\t}\n}\n" +
		"(header) {\n\theader X-Token {args[0]}\n}\n"
	for _, test := range []struct{ name, policy, want string }{
		{"alone", "lb_policy alive", `{"policy":"alive"}`},
		{"inline URI", "lb_policy alive /healthz", `{"checks":[{"probe":{"kind":"http","uri":"/healthz"}}],"policy":"alive"}`},
		{"block, and options of the proxy round it", "lb_retries 2\nlb_policy alive {\ncheck tcp\nhold off\n}\nlb_try_duration 1s", `{"checks":[{"probe":{"kind":"tcp"}}],"hold":0,"policy":"alive"}`},
		{"imported policy", "import policy /healthz", `{"checks":[{"probe":{"kind":"http","uri":"/healthz"}}],"policy":"alive"}`},
		{"imported checks", "lb_policy alive {\nimport check http /a 1s\nimport check http /b 2s\n}", `{"checks":[` +
			`{"probe":{"kind":"http","method":"HEAD","uri":"/a"},"timeout":1000000000},` +
			`{"probe":{"kind":"http","method":"HEAD","uri":"/b"},"timeout":2000000000}],"policy":"alive"}`},
		{"imported options", "lb_policy alive {\ncheck http /a {\nimport header one\ntimeout 1s\nimport header two\n}\n}", `{"checks":[` +
			`{"probe":{"header":{"X-Token":["one","two"]},"kind":"http","uri":"/a"},"timeout":1000000000}],"policy":"alive"}`},
		{"what the traffic says", "lb_policy alive {\nretries {$ALIVE_TEST_UNSET:off}\nobserve {\nstatus 502\nstall auto\n}\neject 3 {\nshare 10%\n}\n}", `{"eject":{"after":3,"share":"10%"},"observe":{"stall":"auto","status":["502"]},"policy":"alive","retries":-1}`},
		{"groups, limits and sessions", "lb_policy alive {\nbackup app3\nbackup app4\nspill {$ALIVE_TEST_UNSET:70%}\nmax_requests 4\nmax_requests 2 app1\nqueue 10s\nsticky {\nsecret {$ALIVE_TEST_UNSET:hunter2}\n}\n}", `{"backups":[["app3"],["app4"]],"max_requests":{"default":4,"upstreams":{"app1":2}},"policy":"alive","queue":{"timeout":10000000000},"spill":"70%","sticky":{"secret":"hunter2"}}`},
		{"name", "lb_policy alive {\nname shop\n}", `{"name":"shop","policy":"alive"}`},
		{"environment", "lb_policy alive {$ALIVE_TEST_URI} {\nhold {$ALIVE_TEST_UNSET:3s}\n}", `{"checks":[{"probe":{"kind":"http","uri":"/from-env"}}],"hold":3000000000,"policy":"alive"}`},
		{"placeholder", "lb_policy alive /{env.ALIVE_TEST_URI}", `{"checks":[{"probe":{"kind":"http","uri":"/{env.ALIVE_TEST_URI}"}}],"policy":"alive"}`},
		{"fallback of another policy", "lb_policy cookie {\nfallback alive /healthz\n}", `{"fallback":{"checks":[{"probe":{"kind":"http","uri":"/healthz"}}],"policy":"alive"},"policy":"cookie"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			adapted, err := adapt(snippets + "http:// {\nreverse_proxy app1:8080 app2:8080 {\n" + test.policy + "\n}\n}")
			if err != nil {
				t.Fatal(err)
			}
			_, policy, _ := strings.Cut(string(adapted), `"selection_policy":`)
			var got json.RawMessage
			if err := json.NewDecoder(strings.NewReader(policy)).Decode(&got); err != nil {
				t.Fatalf("%v in %s", err, adapted)
			}
			if string(got) != test.want {
				t.Errorf("selection_policy:\n got %s\nwant %s", got, test.want)
			}
		})
	}
}

// Whatever is wrong is rejected, with what is wrong, what is allowed and where
// it is: `Testfile:2` is the first line of the block.
func TestCaddyfile_ErrorsSayWhatIsAllowedAndWhere(t *testing.T) {
	const (
		ofAlive  = "lb_policy alive has name, check, weight, backup, spill, slow_start, fail_open, hold, retries, observe, eject, max_requests, queue, sticky, stale and select"
		weight   = "weight takes an upstream and a whole number from 0 to 256, like weight app1:8080 3, at Testfile:2"
		slow     = "slow_start takes a window and perhaps a floor, like slow_start 30s 10%%, at Testfile:2"
		ofEvery  = "besides the options of every check (name, interval, fast_interval, down_interval, timeout, passes, fails, jitter, port, address, proxy_protocol, keep_connection), "
		ofHTTP   = ofEvery + "an http check has method, header, request_body, scheme, version, follow_redirects, status, drain_status, expect_header, expect_body, expression, max_size, tls_server_name and tls_insecure_skip_verify"
		ofTCP    = ofEvery + "a tcp check has send and expect"
		args     = "%s takes %s, at Testfile:%d"
		twice    = "option '%s' is given twice, at Testfile:%d"
		uri      = "uri must be a path that begins with one '/', optionally with a query; got '%s', at Testfile:%d"
		jitter   = "jitter must be a percentage from 0%% to 100%%, like 10%%; got '%s', at Testfile:3"
		duration = "%s must be a duration above 0, like 5s; got '%s', at Testfile:3"
		count    = "%s must be a whole number of at least 1; got '%s', at Testfile:3"
		hold     = "hold must be off or a duration above 0, like 2s; got '%s', at Testfile:2"
	)
	rejects := func(input, format string, a ...any) {
		t.Helper()
		err := new(Selection).UnmarshalCaddyfile(caddyfile.NewTestDispenser(input))
		if want := fmt.Sprintf(format, a...); err == nil || err.Error() != want {
			t.Errorf("%s\n got error %v\nwant error %s", input, err, want)
		}
	}
	inPolicy := func(body, format string, a ...any) {
		t.Helper()
		rejects("alive {\n"+body+"\n}", format, a...)
	}
	inCheck := func(kind, body, format string, a ...any) {
		t.Helper()
		inPolicy("check "+kind+" {\n"+body+"\n}", format, a...)
	}

	// The inline URI.
	rejects("alive /a /b", "lb_policy alive takes one URI at most; got '/b' too, at Testfile:1")
	rejects("alive /a {\nhold 1s\ncheck tcp\n}", "lb_policy alive takes a URI or check blocks, not both; write the URI as check http <uri>, at Testfile:3")
	for _, bad := range []string{"healthz", "", "?a=b", "//host/x", "/a b", "/a?b c", "/a#b"} {
		rejects("alive `"+bad+"`", uri, bad, 1)
		inPolicy("check http `"+bad+"`", uri, bad, 2)
	}
	full := "uri must be a path that begins with one '/', optionally with a query; give only the path, like /healthz: the request always goes to the upstream; got 'http://app/healthz', at Testfile:%d"
	rejects("alive http://app/healthz", full, 1)

	// The name.
	inPolicy("name", args, "name", "a label, like shop", 2)
	inPolicy("name a b", args, "name", "a label, like shop", 2)
	inPolicy("name \"\"", "name must not be empty, at Testfile:2")
	inPolicy("name a\nname b", twice, "name", 3)

	// Options that are not known, here or there.
	for _, option := range []string{"colour", "limit", "X"} {
		inPolicy("hold 1s\n"+option+" x", "unrecognized option '%s': %s, at Testfile:3", option, ofAlive)
	}
	for _, option := range []string{"authority", "uri"} {
		inCheck("http /a", "timeout 1s\n"+option+" x", "unrecognized option '%s': %s, at Testfile:4", option, ofHTTP)
		inCheck("tcp", "timeout 1s\n"+option+" x", "unrecognized option '%s': %s, at Testfile:4", option, ofTCP)
	}
	for _, kind := range []string{"quic", ""} {
		inPolicy("check `"+kind+"`", "unknown kind of check '%s'; this build has %s, at Testfile:2", kind, kinds.List())
	}
	for _, kind := range []string{"http", "tcp", "tls", "grpc"} {
		if !strings.Contains(kinds.List(), kind) {
			t.Errorf("known kinds: got %s, want %s among them", kinds.List(), kind)
		}
	}

	// Arguments too few or too many, and options given twice.
	inPolicy("check", "check needs a kind: %s, at Testfile:2", kinds.List())
	inPolicy("check {\n}", "check needs a kind: %s, at Testfile:2", kinds.List())
	inPolicy("hold", args, "hold", "off, or one duration above 0, like 2s", 2)
	inPolicy("hold 1s 2s", args, "hold", "off, or one duration above 0, like 2s", 2)
	inPolicy("hold 1s\nhold off", twice, "hold", 3)
	for _, option := range []struct{ name, value, takes string }{
		{"interval", "5s", "one duration above 0, like 5s"},
		{"fast_interval", "1s", "one duration above 0, like 5s"},
		{"down_interval", "5s", "one duration above 0, like 5s"},
		{"timeout", "5s", "one duration above 0, like 5s"},
		{"passes", "1", "one whole number of at least 1"},
		{"fails", "1", "one whole number of at least 1"},
		{"jitter", "1%", "one percentage from 0% to 100%"},
		{"port", "81", "one port, like 8081 or +1000"},
		{"address", "app1:81", "one address, like 127.0.0.1:8081"},
		{"proxy_protocol", "v2", "off, v1 or v2"},
	} {
		line := option.name + " " + option.value
		inCheck("http /a", option.name, args, option.name, option.takes, 3)
		inCheck("http /a", line+" x", args, option.name, option.takes, 3)
		inCheck("http /a", line+"\nheader A b\n"+line, twice, option.name, 5)
	}

	// Values out of range, or of another type.
	for _, bad := range []string{"0", "0s", "-1s", "5", "soon", "", "{env.TIME}", "9999999h"} {
		inPolicy("hold `"+bad+"`", hold, bad)
		for _, option := range []string{"interval", "fast_interval", "down_interval", "timeout"} {
			inCheck("tcp", option+" `"+bad+"`", duration, option, bad)
		}
	}
	for _, option := range []string{"interval", "fast_interval", "down_interval", "timeout"} {
		inCheck("tcp", option+" off", duration, option, "off") // as only hold can be
	}
	for _, bad := range []string{"0", "-1", "1.5", "1e3", "three", "", "99999999999999999999"} {
		inCheck("tcp", "passes `"+bad+"`", count, "passes", bad)
		inCheck("tcp", "fails `"+bad+"`", count, "fails", bad)
	}
	for _, bad := range []string{"10", "0.1", "101%", "-1%", "100.1%", "NaN%", "Inf%", "ten%", "%", "10%%", ""} {
		inCheck("tcp", "jitter `"+bad+"`", jitter, bad)
	}
	for _, kind := range []string{"tcp", "tls", "grpc", "http /a"} {
		for _, bad := range []string{"0", "-1", "65536", "70000", "80-81", "8e1", "http", "+", "+0", "+65536", "++1", "99999999999999999999", ""} {
			inCheck(kind, "port `"+bad+"`", "port must be a %s; got '%s', at Testfile:3", limits.PortRange, bad)
		}
		for _, bad := range []string{":81", "app1:80-81", "app1:x", "app1:65536", "http://app1:81", "udp/app1:81", "unixgram//run/app.sock", "unix/", "fd/3", ""} {
			inCheck(kind, "address `"+bad+"`", "address must be a host, optionally with a port, or a unix socket, like 127.0.0.1:8081 or unix//run/app.sock; got '%s', at Testfile:3", bad)
		}
		for _, bad := range []string{"v3", "V1", "1", "on", "{env.VERSION}", ""} {
			inCheck(kind, "proxy_protocol `"+bad+"`", "proxy_protocol must be off, v1 or v2; got '%s', at Testfile:3", bad)
		}
		for _, line := range []string{"port 81", "address app1", "proxy_protocol off"} {
			option, _, _ := strings.Cut(line, " ")
			inCheck(kind, line+"\ntimeout 1s\n"+line, twice, option, 5)
			inCheck(kind, option, args, option, map[string]string{
				"port": "one port, like 8081 or +1000", "address": "one address, like 127.0.0.1:8081", "proxy_protocol": "off, v1 or v2",
			}[option], 3)
		}
	}
	inCheck("http /a", "timeout 1s\nexpect_header A (", "expect_header A must be a regular expression in RE2 syntax: error parsing regexp: missing closing ): `(`, at Testfile:4")
	inCheck("http /a", "header Host ``\nheader Host b", "header Host is given twice, at Testfile:4")
	inCheck("http /a", "method HEAD\ntimeout 1s\nexpression json.ok", "expression: an answer to HEAD has no body to look at, at Testfile:6")

	// Which upstreams get requests.
	for _, line := range []string{"weight", "weight app1", "weight app1 1 2"} {
		inPolicy(line, weight)
	}
	for _, bad := range []string{"-1", "257", "1.5", "heavy", ""} {
		inPolicy("weight app1 `"+bad+"`", "weight must be a whole number from 0 to 256; got '%s', at Testfile:2", bad)
	}
	inPolicy("weight app1 1\nweight app2 1\nweight app1 2", "the weight of app1 is given twice, at Testfile:4")
	inPolicy("backup", "backup takes upstreams, as reverse_proxy accepts them, at Testfile:2")
	inPolicy("backup app1 app2\nbackup app1", "backup app1 is given twice, at Testfile:3")
	inPolicy("slow_start", slow)
	inPolicy("slow_start 1s 2% 3", slow)
	inPolicy("slow_start 1s\nslow_start 1s", twice, "slow_start", 3)
	for _, bad := range []string{"0", "-1s", "soon", ""} {
		inPolicy("slow_start `"+bad+"`", "slow_start: window must be a duration from 10ms to 24h, like 30s; got '%s', at Testfile:2", bad)
	}
	inPolicy("slow_start 25h", "slow_start: window must be a duration from 10ms to 24h, like 30s; got '25h', at Testfile:2")
	for _, bad := range []string{"10", "101%", "-1%", "NaN%"} {
		inPolicy("slow_start 1s "+bad, "slow_start: floor must be a percentage from 0%% to 100%%, like 10%%; got '%s', at Testfile:2", bad)
	}
	inPolicy("slow_start 1s ``", "the floor of slow_start must not be empty, at Testfile:2")
	const open = "none_up, off, a percentage from 0%% to 100%%, like 50%%, or a whole number of at least 1, like 2"
	inPolicy("fail_open", "fail_open takes "+open+", at Testfile:2")
	inPolicy("fail_open off on", "fail_open takes "+open+", at Testfile:2")
	inPolicy("fail_open off\nfail_open off", twice, "fail_open", 3)
	for _, bad := range []string{"0", "-2", "1.5", "101%", "-1%", "on", "none", ""} {
		inPolicy("fail_open `"+bad+"`", "fail_open must be "+open+"; got '%s', at Testfile:2", bad)
	}

	// Groups, ranges of addresses, limits and the queue.
	const (
		spill   = "a percentage above 0%% and up to 100%%, like 70%%"
		limit   = "max_requests must be a whole number from 1 to 1000000, like 20; got '%s', at Testfile:2"
		queue   = "queue takes a timeout and perhaps how many requests can wait, like queue 10s 1000, at Testfile:2"
		timeout = "queue: timeout must be a duration from 1ms to 24h, like 10s; got '%s', at Testfile:2"
		length  = "queue: length must be a whole number from 1 to 100000, like 1000; got '%s', at Testfile:2"
		form    = ": a range of addresses is like 10.2.0.0/16 or 2001:db8::/32, without a port, at Testfile:2"
		host    = "10.2.0.7/16: write 10.2.0.0/16 for the whole range, or 10.2.0.7/32 for the one address, at Testfile:2"
	)
	inPolicy("backup app1\nbackup app2 app1", "backup app1 is given twice, at Testfile:3")
	inPolicy("backup app1\nbackup", "backup takes upstreams, as reverse_proxy accepts them, at Testfile:3")
	inPolicy("backup 10.2.0.0/16\nbackup app1 10.2.0.0/16", "backup 10.2.0.0/16 is given twice, at Testfile:3")
	inPolicy("backup 2001:db8::/32\nbackup 2001:DB8::/32", "backup: 2001:db8::/32 and 2001:DB8::/32 are the same range of addresses, at Testfile:3")
	inPolicy("weight 10.2.0.0/16 1\nweight 10.2.0.0/16 2", "the weight of 10.2.0.0/16 is given twice, at Testfile:3")
	for _, option := range []string{"weight %s 3", "backup %s", "max_requests 3 %s"} {
		name, _, _ := strings.Cut(option, " ")
		inPolicy(fmt.Sprintf(option, "10.2.0.7/16"), "%s: %s", name, host)
		for _, bad := range []string{"10.2.0.0/33", "10.2.0.0/16:80", "10.2/16", "[2001:db8::]/32"} {
			inPolicy(fmt.Sprintf(option, bad), "%s: %s%s", name, bad, form)
		}
		inPolicy(fmt.Sprintf(option, "ftp://app1"), "%s: ftp://app1: not an address that reverse_proxy accepts, at Testfile:2", name)
	}
	inPolicy("spill", "spill takes "+spill+", at Testfile:2")
	inPolicy("spill 1% 2%", "spill takes "+spill+", at Testfile:2")
	inPolicy("backup app1\nspill 1%\nspill 1%", twice, "spill", 4)
	for _, bad := range []string{"0%", "-1%", "101%", "70", "0.7", "off", "NaN%", "{env.P}", ""} {
		inPolicy("spill `"+bad+"`\nbackup app1", "spill must be "+spill+"; got '%s', at Testfile:2", bad)
	}
	inPolicy("hold 1s\nspill 70%\nhold_ 1s", "unrecognized option 'hold_': %s; did you mean 'hold'?, at Testfile:4", ofAlive)
	inPolicy("hold 1s\nspill 70%\nretries 1", "spill has no meaning without backup, since there is no group that could help, at Testfile:3")
	inPolicy("max_requests", "max_requests takes a whole number from 1 to 1000000, and the upstreams that it is for if it is not for all, like max_requests 20 or max_requests 5 app1:8080, at Testfile:2")
	for _, bad := range []string{"0", "-1", "1.5", "1000001", "off", "{env.N}", "app1:80", ""} {
		inPolicy("max_requests `"+bad+"`", limit, bad)
		inPolicy("max_requests `"+bad+"` app1", limit, bad)
	}
	inPolicy("max_requests app1 5", "the limit comes first: write max_requests 5 app1, at Testfile:2")
	inPolicy("hold 1s\nmax_requests app1 app2:80 5", "the limit comes first: write max_requests 5 app1 app2:80, at Testfile:3")
	inPolicy("max_requests app1 app2", limit, "app1")
	inPolicy("max_requests 1\nmax_requests 2 app1\nmax_requests 3", "max_requests of all upstreams is given twice, at Testfile:4")
	inPolicy("max_requests 1 app1 app2\nmax_requests 2 app2", "max_requests of app2 is given twice, at Testfile:3")
	inPolicy("max_requests 1 app1 app1", "max_requests of app1 is given twice, at Testfile:2")
	inPolicy("max_requests 1 app1\nmax_requests 2 http://app1", "max_requests: app1 and http://app1 are the same upstream, at Testfile:3")
	inPolicy("max_requests 1 app1:80-82\nmax_requests 2 app1:81", "max_requests: app1:80-82 and app1:81 are the same upstream, at Testfile:3")
	for _, line := range []string{"queue", "queue 1s 2 3", "queue {\ntimeout 1s\n}"} {
		inPolicy(line, queue)
	}
	inPolicy("queue 1s\nqueue 1s", twice, "queue", 3)
	for _, bad := range []string{"0", "0s", "-1s", "999us", "25h", "soon", "10", "off", "{env.T}", ""} {
		inPolicy("queue `"+bad+"`", timeout, bad)
	}
	for _, bad := range []string{"0", "-1", "100001", "1.5", "10s", "all", ""} {
		inPolicy("queue 1s `"+bad+"`", length, bad)
	}

	// Sessions.
	const (
		name    = "sticky: the name of the cookie must be of letters, digits and !#$%%&'*+-.^_`|~ only, and of 200 bytes at most, like lb; got '%s', at Testfile:2"
		prefix  = "sticky: the name of the cookie must not begin with %s: browsers would drop such a cookie wherever it is set without TLS; got '%s', at Testfile:2"
		age     = "sticky: max_age must be a duration from 1s to 400d, like 24h; got '%s', at Testfile:3"
		empty   = "sticky: secret must not be empty, at Testfile:3"
		exclude = "sticky cannot be combined with select, which decides by itself where a client goes; remove one of them, or write select cookie, at Testfile:%d"
	)
	for _, bad := range []string{"", "a b", "a=b", "a;b", "a/b", "a\"b", "bücher", "{env.N}", strings.Repeat("x", 201)} {
		inPolicy("sticky `"+bad+"`", name, bad)
	}
	inPolicy("sticky __Host-lb", prefix, "__Host-", "__Host-lb")
	inPolicy("sticky __secure-lb {\nsecret x\n}", prefix, "__Secure-", "__secure-lb")
	inPolicy("sticky off", "sticky: off would be the name of the cookie; leave sticky out to bind no clients, or use another name, at Testfile:2")
	inPolicy("sticky lb hunter2", "sticky takes one argument at most, the name of a cookie; write a secret in its block: sticky lb { secret <text> }, at Testfile:2")
	inPolicy("sticky\nsticky lb", twice, "sticky", 3)
	inPolicy("sticky {\nsecret\n}", args, "secret", "one text, in quotes if it has spaces", 3)
	inPolicy("sticky {\nsecret hunter2 hunter2\n}", args, "secret", "one text, in quotes if it has spaces", 3)
	inPolicy("sticky {\nsecret a\nsecret b\n}", twice, "secret", 4)
	inPolicy("sticky {\nsecret ``\n}", empty)
	inPolicy("sticky {\nsecret ` `\n}", empty)
	inPolicy("sticky {\nsecret \"hunter2\t\"\n}", "sticky: secret must be one line without control characters; only what a placeholder such as {file.*} stands for may have them, at Testfile:3")
	inPolicy("sticky {\nmax_age\n}", args, "max_age", "one duration, like 24h", 3)
	inPolicy("sticky {\nmax_age 1h 2h\n}", args, "max_age", "one duration, like 24h", 3)
	inPolicy("sticky {\nmax_age 1h\nmax_age 1h\n}", twice, "max_age", 4)
	for _, bad := range []string{"0", "999ms", "401d", "-1s", "soon", "3600", "off", ""} {
		inPolicy("sticky {\nmax_age `"+bad+"`\n}", age, bad)
	}
	inPolicy("sticky {\nname shop\n}", "the name of the cookie is the argument of sticky: write sticky <cookie>, at Testfile:3")
	inPolicy("hold 1s\nsticky\nselect first", exclude, 3)
	inPolicy("select first\nsticky lb {\nsecret x\n}\nhold 1s", exclude, 3)

	// What the traffic says.
	const (
		retries = "off, or one whole number from 1 to 100, like 2"
		eject   = "off, or one whole number from 1 to 1000, like 5"
		observe = "observe takes off, or a block with status and stall"
		status  = "observe: status must be off alone, or a code from 200 to 599, a class like 2xx or a range like 200-399; got '%s', at Testfile:%d"
		stall   = "auto, off or a duration from 10ms to 24h, like 500ms"
		both    = "eject cannot be combined with observe off: what happens to requests ejects, and then nothing of it counts; with status off in observe, stalls and requests without an answer still eject, at Testfile:%d"
	)
	inPolicy("retries", args, "retries", retries, 2)
	inPolicy("retries 1 2", args, "retries", retries, 2)
	inPolicy("retries 1\nretries off", twice, "retries", 3)
	for _, bad := range []string{"0", "-1", "101", "1.5", "on", "{env.N}", ""} {
		inPolicy("retries `"+bad+"`", "retries must be off or a whole number from 1 to 100, like 2; got '%s', at Testfile:2", bad)
	}
	inPolicy("stale", args, "stale", "off, or one duration from 1s to 24h, like 1h", 2)
	inPolicy("stale 1h 2h", args, "stale", "off, or one duration from 1s to 24h, like 1h", 2)
	inPolicy("hold 1s\nstale 1h\nstale off", twice, "stale", 4)
	for _, bad := range []string{"0", "999ms", "25h", "-1s", "soon", "3600", "{env.T}", ""} {
		inPolicy("hold 1s\nstale `"+bad+"`", "stale must be off or a duration from 1s to 24h, like 1h; got '%s', at Testfile:3", bad)
	}
	inPolicy("observe", observe+", at Testfile:2")
	inPolicy("hold 1s\nobserve {\n}", observe+", at Testfile:3")
	inPolicy("observe on", observe+"; got 'on', at Testfile:2")
	inPolicy("observe off 502", observe+"; got '502', at Testfile:2")
	inPolicy("observe off {\nstall off\n}", "observe off has no options, at Testfile:3")
	inPolicy("observe off\nobserve {\nstall off\n}", twice, "observe", 3)
	inPolicy("observe {\nstatus 502\nstatus 504\n}", twice, "status", 4)
	inPolicy("observe {\nstall off\nstall off\n}", twice, "stall", 4)
	inPolicy("observe {\nstatus\n}", "status takes off, or codes, classes and ranges, like 502 5xx 500-599, at Testfile:3")
	for _, bad := range []string{"on", "199", "600", "1xx", "500-499", "50", "502,504", "off"} {
		inPolicy("observe {\nstatus 502 "+bad+"\n}", status, bad, 3)
	}
	inPolicy("observe {\nstatus ``\n}", status, "", 3)
	inPolicy("observe {\nstall\n}", args, "stall", stall, 3)
	inPolicy("observe {\nstall 1s 2s\n}", args, "stall", stall, 3)
	for _, bad := range []string{"0", "9ms", "25h", "-1s", "soon", "500", "{env.T}", ""} {
		inPolicy("observe {\nstall `"+bad+"`\n}", "observe: stall must be "+stall+"; got '%s', at Testfile:3", bad)
	}
	inPolicy("observe {\nstatus 502 {\nx\n}\n}", "unrecognized option '{': observe has status and stall, at Testfile:3")
	inPolicy("eject", args, "eject", eject, 2)
	inPolicy("eject {\nfor 1s\n}", args, "eject", eject, 2)
	inPolicy("eject 1 2", args, "eject", eject, 2)
	inPolicy("eject 1\neject off", twice, "eject", 3)
	inPolicy("eject off {\nfor 1s\n}", "eject off has no options, at Testfile:3")
	for _, bad := range []string{"0", "-1", "1001", "1.5", "never", "{env.N}", ""} {
		inPolicy("eject `"+bad+"`", "eject must be off or a whole number from 1 to 1000, like 5; got '%s', at Testfile:2", bad)
	}
	for _, line := range []string{"for", "for 1s 2s 3s"} {
		inPolicy("eject 5 {\n"+line+"\n}", "for takes a duration and perhaps the longest one, like for 30s 5m, at Testfile:3")
	}
	for _, bad := range []string{"0", "9ms", "25h", "-1s", "soon", ""} {
		inPolicy("eject 5 {\nfor `"+bad+"`\n}", "eject: for must be a duration from 10ms to 24h, like 30s; got '%s', at Testfile:3", bad)
		inPolicy("eject 5 {\nfor 10ms `"+bad+"`\n}", "eject: longest must be a duration from 10ms to 24h, like 5m; got '%s', at Testfile:3", bad)
	}
	inPolicy("eject 5 {\nfor 1m 30s\n}", "eject: for (1m0s) must not be longer than longest (30s), at Testfile:3")
	inPolicy("eject 5 {\nfor 1s\nfor 1s\n}", twice, "for", 4)
	inPolicy("eject 5 {\nshare 1% 2%\n}", args, "share", "a percentage above 0% and up to 100%, like 30%", 3)
	for _, bad := range []string{"30", "0%", "101%", "-1%", "NaN%", "", "half"} {
		inPolicy("eject 5 {\nshare `"+bad+"`\n}", "eject: share must be a percentage above 0%% and up to 100%%, like 30%%; got '%s'; eject off ejects none, at Testfile:3", bad)
	}
	inPolicy("observe off\nhold 1s\neject 5 {\nfor 1s\n}", both, 4)
	inPolicy("eject 5\nobserve off", both, 3)

	inPolicy("select", "select takes a selection policy, like least_conn, at Testfile:2")
	inPolicy("select first\nselect first", twice, "select", 3)
	for _, bad := range []string{"alive", "weighted_round_robin", "nosuch", ""} {
		inPolicy("select `"+bad+"` 1", "%s, at Testfile:2", selector.ErrCannot(bad))
	}
	inPolicy("select random_choose", "wrong argument count or unexpected line ending after 'random_choose', at Testfile:2")
	inPolicy("select random_choose two", "invalid choice value 'two': strconv.Atoi: parsing \"two\": invalid syntax, at Testfile:2")

	inPolicy("select cookie weighted_round_robin {\nfallback weighted_round_robin 1 2\n}", "select: %s, at Testfile:3", selector.ErrPositional)
	inPolicy("select query a {\nfallback header b {\nfallback cookie {\nfallback weighted_round_robin 1 2\n}\n}\n}", "select: %s, at Testfile:5", selector.ErrPositional)

	// What contradicts each other is reported where the block begins.
	inCheck("tcp", "fast_interval 6s", "fast_interval (6s) must not be longer than interval (5s), at Testfile:2")
	inCheck("tcp", "fast_interval 2s\ninterval 1s", "fast_interval (2s) must not be longer than interval (1s), at Testfile:2")
	inCheck("http /a", "method GET\ninterval 1s\nfast_interval 2s", "fast_interval (2s) must not be longer than interval (1s), at Testfile:2")

	// Blocks where there are none.
	const block = "a block cannot begin here: it begins on the line of its option, and of the options of lb_policy alive only check, observe, eject, sticky and select have one, at Testfile:%d"
	inPolicy("hold 1s {\n}", block, 2)
	inPolicy("sticky\n{\nsecret hunter2\n}", block, 3)
	inCheck("tcp", "timeout 1s {\n}", "unrecognized option '{': %s, at Testfile:3", ofTCP)
	inCheck("http /a", "method GET {\nx\n}", "unrecognized option '{': %s, at Testfile:3", ofHTTP)
}

// Errors inside a snippet name the place in the snippet and that of its import.
func TestCaddyfile_ErrorsNameSnippetAndImport(t *testing.T) {
	const snippets = "(hold) {\n\thold {args[0]}\n}\n(check) {\n\tcheck http /a {\n\t\ttimeout 1s\n\t\t{args[0]} {args[1]}\n\t}\n}\n"
	for _, test := range []struct{ policy, want string }{
		{"lb_policy alive {\n\nhold 0\n}", "hold must be off or a duration above 0, like 2s; got '0', at Caddyfile:14"},
		{"lb_policy alive {\nimport hold 0\n}", "hold must be off or a duration above 0, like 2s; got '0', at Caddyfile:2 import chain ['Caddyfile:13 (import hold)']"},
		{"lb_policy alive {\nimport check interval 0\n}", "interval must be a duration above 0, like 5s; got '0', at Caddyfile:7 import chain ['Caddyfile:13 (import check)']"},
		{"lb_policy alive {\nimport check status 0\n}", "status must be a code from 200 to 599, a class like 2xx or a range like 200-399; got '0', at Caddyfile:7 import chain ['Caddyfile:13 (import check)']"},
		{"lb_policy alive {\nimport check interval 10ms\nimport check fast_interval 1m\n}", "fast_interval (1m0s) must not be longer than interval (5s), at Caddyfile:5 import chain ['Caddyfile:14 (import check)']"},
	} {
		_, err := adapt(snippets + "http:// {\nreverse_proxy app1:8080 {\n" + test.policy + "\n}\n}")
		if want := "parsing caddyfile tokens for 'reverse_proxy': " + test.want; err == nil || err.Error() != want {
			t.Errorf("%s\n got error %v\nwant error %s", test.policy, err, want)
		}
	}
}

// Whatever the block says, it is read without a panic, and what is accepted
// survives the way through JSON.
func FuzzCaddyfile(f *testing.F) {
	for _, policy := range policies {
		if body, ok := strings.CutPrefix(policy.input, "alive {\n"); ok {
			f.Add(strings.TrimSuffix(body, "}"))
		}
	}
	f.Add("hold 1s {\n}")
	f.Add("check tcp {\n{\n}\n} x\ncheck http /a {\nmethod GET {\ntimeout 1s")
	f.Fuzz(func(t *testing.T, body string) {
		tokens, err := caddyfile.Tokenize([]byte("alive {\n"+body+"\n}"), "Testfile")
		if err != nil {
			return // no Caddyfile at all
		}
		before := new(Selection)
		if err := before.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)); err != nil {
			return
		}
		want, after := encode(t, before), new(Selection)
		if err := caddy.StrictUnmarshalJSON([]byte(want), after); err != nil {
			t.Fatalf("%s: %v", want, err)
		}
		if got := encode(t, after); got != want {
			t.Errorf("JSON:\n got %s\nwant %s", got, want)
		}
		_, err = resolveRetries(after.Retries)
		if _, invalid := resolveWitness(after.Observe, after.Eject); errors.Join(err, invalid) != nil && (after.Observe == nil || !redact.HasPlaceholder(strings.Join(after.Observe.Status, ""))) {
			t.Errorf("accepted by the parser, but not by Provision: %v", errors.Join(err, invalid))
		}
		_, _, badFailOpen := limits.FailOpen(cmp.Or(after.FailOpen, "off"))
		_, badSpill := resolveSpill(after)
		_, _, badLimits := after.MaxRequests.resolve()
		_, badQueue := after.Queue.resolve()
		if err := errors.Join(badFailOpen, badSpill, badLimits, badQueue); err != nil {
			t.Errorf("accepted by the parser, but not by Provision: %v", err)
		}
		if _, err := after.Sticky.resolve(); err != nil && !redact.HasPlaceholder(after.Sticky.Secret) {
			t.Errorf("accepted by the parser, but not by Provision: %v", err)
		}
		for name, weight := range after.Weights {
			if _, err := weight.resolve(); err != nil && !redact.HasPlaceholder(string(weight)) {
				t.Errorf("accepted by the parser, but not by Provision: weight of %s: %v", name, err)
			}
		}
		if after.Stale != nil && limits.Stale(time.Duration(*after.Stale)) != nil {
			t.Errorf("accepted by the parser, but not by Provision: stale %d", *after.Stale)
		}
		for _, check := range after.Checks {
			if _, err := check.resolve(); err != nil {
				t.Errorf("accepted by the parser, but not by Provision: %v", err)
			}
			var options map[string]any
			if err := json.Unmarshal(check.ProbeRaw, &options); err != nil {
				t.Fatalf("probe %s: %v", check.ProbeRaw, err)
			}
			kind, _ := options["kind"].(string)
			info, err := caddy.GetModule("alive.probes." + kind)
			if err != nil {
				t.Fatalf("probe %s: %v", check.ProbeRaw, err)
			}
			delete(options, "kind")
			if err := caddy.StrictUnmarshalJSON([]byte(encode(t, options)), info.New()); err != nil {
				t.Errorf("probe %s: %v", check.ProbeRaw, err)
			}
			if check.Port.check() != nil || limits.Name(check.Name) != nil || (check.ProxyProtocol != "" && limits.ProxyProtocol(check.ProxyProtocol) != nil) {
				t.Errorf("accepted by the parser, but not by Provision: port %s, name %q, proxy_protocol '%s'", check.Port, check.Name, check.ProxyProtocol)
			}
		}
	})
}

// The global option is the app, and what is wrong with it is rejected with its place.
func TestGlobalOption_IsTheApp(t *testing.T) {
	for _, tc := range []struct{ option, want, err string }{
		{"alive", "{}", ""},
		{"alive {\n}", "{}", ""},
		{"alive {\nfleet shops\n}", `{"fleet":"shops"}`, ""},
		{"alive {\nsync_interval 5s\nfleet shops\n}", `{"fleet":"shops","sync_interval":5000000000}`, ""},
		{"alive shops", "", "alive takes a block with fleet, member, sync_interval and probers, at Testfile:1"},
		{"alive {\nfleet\n}", "", "fleet takes the name of a fleet, like shops, at Testfile:2"},
		{"alive {\nfleet a/b\n}", "", "fleet must be a name of up to 64 letters, digits, dots, dashes and underscores that begins with a letter or digit; got 'a/b', at Testfile:2"},
		{"alive {\nfleet a\nfleet b\n}", "", "option 'fleet' is given twice, at Testfile:3"},
		{"alive {\nfleet a\nsync_interval soon\n}", "", "sync_interval must be a duration from 100ms to 24h, like 2s; got 'soon', at Testfile:3"},
		{"alive {\nfleet a\nsync_interval 1ms\n}", "", "sync_interval must be a duration from 100ms to 24h, like 2s; got '1ms', at Testfile:3"},
		{"alive {\nfleet a\nsync_interval 1s\nsync_interval 1s\n}", "", "option 'sync_interval' is given twice, at Testfile:4"},
		{"alive {\nsync_interval 1s\n}", "", "sync_interval has no meaning without fleet, at Testfile:3"},
		{"alive {\nmember edge-1\nprobers 3\nfleet shops\n}", `{"fleet":"shops","member":"edge-1","probers":3}`, ""},
		{"alive {\nfleet shops\nprobers off\n}", `{"fleet":"shops","probers":-1}`, ""},
		{"alive {\nfleet a\nmember\n}", "", "member takes the name of this Caddy in the fleet, like edge-1, at Testfile:3"},
		{"alive {\nfleet a\nmember edge 1\n}", "", "member takes the name of this Caddy in the fleet, like edge-1, at Testfile:3"},
		{"alive {\nfleet a\nmember -1\n}", "", "member must be a name of up to 64 letters, digits, dots, dashes and underscores that begins with a letter or digit; got '-1', at Testfile:3"},
		{"alive {\nfleet a\nmember \"\"\n}", "", "member must be a name of up to 64 letters, digits, dots, dashes and underscores that begins with a letter or digit; got '', at Testfile:3"},
		{"alive {\nfleet a\nmember b\nmember b\n}", "", "option 'member' is given twice, at Testfile:4"},
		{"alive {\nmember edge-1\n}", "", "member has no meaning without fleet, at Testfile:3"},
		{"alive {\nfleet a\nprobers\n}", "", "probers takes off, or one whole number from 1 to 1000, like 3, at Testfile:3"},
		{"alive {\nfleet a\nprobers 0\n}", "", "probers must be off or a whole number from 1 to 1000, like 3; got '0', at Testfile:3"},
		{"alive {\nfleet a\nprobers 1001\n}", "", "probers must be off or a whole number from 1 to 1000, like 3; got '1001', at Testfile:3"},
		{"alive {\nfleet a\nprobers 30%\n}", "", "probers must be off or a whole number from 1 to 1000, like 3; got '30%', at Testfile:3"},
		{"alive {\nprobers 3\n}", "", "probers has no meaning without fleet, at Testfile:3"},
		{"alive {\nprobers off\n}", "", "probers has no meaning without fleet, at Testfile:3"},
		{"alive {\nsize 3\n}", "", "unrecognized option 'size': alive has fleet, member, sync_interval and probers, at Testfile:2"},
	} {
		got, err := parseGlobalOption(caddyfile.NewTestDispenser(tc.option), nil)
		if tc.err != "" {
			if err == nil || err.Error() != tc.err {
				t.Errorf("%q: error %v, want %s", tc.option, err, tc.err)
			}
			continue
		}
		if app, _ := got.(httpcaddyfile.App); err != nil || app.Name != "alive" || string(app.Value) != tc.want {
			t.Errorf("%q: got %+v, %v, want %s", tc.option, got, err, tc.want)
		}
	}
	if _, err := parseGlobalOption(caddyfile.NewTestDispenser("alive"), httpcaddyfile.App{}); err == nil {
		t.Error("given twice, it is no error")
	}
	for directive, want := range map[string]string{
		"alive_status now":     "wrong argument count",
		"alive_status {\nx\n}": "alive_status has no options",
	} {
		if _, err := adapt("http:// {\n" + directive + "\n}"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %s", directive, err, want)
		}
	}
}

// A mistake in the Caddyfile is answered with its place, and with what to write.
func TestCaddyfile_MistakesAreAnsweredWithWhatToWrite(t *testing.T) {
	const ofAlive = "lb_policy alive has name, check, weight, backup, spill, slow_start, fail_open, hold, retries, observe, eject, max_requests, queue, sticky, stale and select"
	kinds := kinds.List()
	for _, test := range []struct{ input, want string }{
		// a name that is close to a known one
		{"alive {\nweigth app1 3\n}", "unrecognized option 'weigth': " + ofAlive + "; did you mean 'weight'?, at Testfile:2"},
		{"alive {\nslowstart 30s\n}", "unrecognized option 'slowstart': " + ofAlive + "; did you mean 'slow_start'?, at Testfile:2"},
		{"alive {\nbackups app1\n}", "unrecognized option 'backups': " + ofAlive + "; did you mean 'backup'?, at Testfile:2"},
		{"alive {\ncheck htp /a\n}", "unknown kind of check 'htp'; this build has " + kinds + "; did you mean 'http'?, at Testfile:2"},
		{"alive {\ncheck HTTP /a\n}", "unknown kind of check 'HTTP'; this build has " + kinds + "; did you mean 'http'?, at Testfile:2"},
		{"alive {\nselect least-con\n}", "select takes one of the selection policies " + strings.Join(selector.Known(), ", ") + "; got 'least-con'; did you mean 'least_conn'?, at Testfile:2"},

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

		// options of observe and eject elsewhere, and others there
		{"alive {\nstall 1s\n}", "'stall' is an option of observe; write it in its block: observe { stall }, at Testfile:2"},
		{"alive {\nshare 30%\n}", "'share' is an option of eject; write it in its block: eject 5 { share }, at Testfile:2"},
		{"alive {\nsecret hunter2\n}", "'secret' is an option of sticky; write it in its block: sticky { secret }, at Testfile:2"},
		{"alive {\nmax_age 1h\n}", "'max_age' is an option of sticky; write it in its block: sticky { max_age }, at Testfile:2"},
		{"alive {\nsticky {\nsecrte hunter2\n}\n}", "unrecognized option 'secrte': sticky has secret and max_age; did you mean 'secret'?, at Testfile:3"},
		{"alive {\nsticky {\nqueue 10s\n}\n}", "'queue' is an option of lb_policy alive; write it beside sticky, not in its block, at Testfile:3"},
		{"alive {\nmax_request 3\n}", "unrecognized option 'max_request': " + ofAlive + "; did you mean 'max_requests'?, at Testfile:2"},
		{"alive {\nstick\n}", "unrecognized option 'stick': " + ofAlive + "; did you mean 'sticky'?, at Testfile:2"},
		{"alive {\nqueu 10s\n}", "unrecognized option 'queu': " + ofAlive + "; did you mean 'queue'?, at Testfile:2"},
		{"alive {\nspil 70%\n}", "unrecognized option 'spil': " + ofAlive + "; did you mean 'spill'?, at Testfile:2"},
		{"alive {\nunhealthy_request_count 3\n}", "'unhealthy_request_count' is an option of reverse_proxy; write it beside lb_policy, outside of the block of lb_policy alive, at Testfile:2"},
		{"alive {\nretires 3\n}", "unrecognized option 'retires': " + ofAlive + "; did you mean 'retries'?, at Testfile:2"},
		{"alive {\nobserve {\nstatsu 502\n}\n}", "unrecognized option 'statsu': observe has status and stall; did you mean 'status'?, at Testfile:3"},
		{"alive {\neject 5 {\nlongest 5m\n}\n}", "unrecognized option 'longest': eject has for and share, at Testfile:3"},
		{"alive {\nobserve {\neject 5\n}\n}", "'eject' is an option of lb_policy alive; write it beside observe, not in its block, at Testfile:3"},
		{"alive {\neject 5 {\nfail_duration 1s\n}\n}", "'fail_duration' is an option of reverse_proxy; write it beside lb_policy, outside of the block of eject, at Testfile:3"},
		{"alive {\nobserve {\nstale 1h\n}\n}", "'stale' is an option of lb_policy alive; write it beside observe, not in its block, at Testfile:3"},
		{"alive {\ncheck tcp {\nretries 2\n}\n}", "'retries' is an option of lb_policy alive; write it beside the check, not in its block, at Testfile:3"},

		// what reverse_proxy has
		{"alive {\nlb_retries 2\n}", "'lb_retries' is an option of reverse_proxy; write it beside lb_policy, outside of the block of lb_policy alive, at Testfile:2"},
		{"alive {\nfail_duration 30s\n}", "'fail_duration' is an option of reverse_proxy; write it beside lb_policy, outside of the block of lb_policy alive, at Testfile:2"},
		{"alive {\ncheck http /a {\ntimeout 1s\nlb_try_duration 2s\n}\n}", "'lb_try_duration' is an option of reverse_proxy; write it beside lb_policy, outside of the block of a check, at Testfile:4"},
		{"alive {\nhealth_uri /status\n}", "'health_uri' is an option of Caddy's own health checks; lb_policy alive makes its own, so write check http <uri>, at Testfile:2"},
		{"alive {\ncheck http /a {\nhealth_interval 5s\n}\n}", "'health_interval' is an option of Caddy's own health checks; lb_policy alive makes its own, so write interval in the block of a check, at Testfile:3"},

		// wrong arguments
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
		{"alive {\nweight \"app1 :80\" 3\n}", "weight: app1 :80: an address must not contain spaces, at Testfile:2"},
		{"alive {\nbackup app1 \"app 2\"\n}", "backup: app 2: an address must not contain spaces, at Testfile:2"},
		{"alive {\nweight ftp://app1 3\n}", "weight: ftp://app1: not an address that reverse_proxy accepts, at Testfile:2"},
		{"alive {\ncheck tcp {\naddress \"app 1\"\n}\n}", "address must be a host, optionally with a port, or a unix socket, like 127.0.0.1:8081 or unix//run/app.sock; got 'app 1', at Testfile:3"},

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
		"alive {\nflet shops\n}":          "unrecognized option 'flet': alive has fleet, member, sync_interval and probers; did you mean 'fleet'?, at Testfile:2",
		"alive {\nsync-interval 1s\n}":    "unrecognized option 'sync-interval': alive has fleet, member, sync_interval and probers; did you mean 'sync_interval'?, at Testfile:2",
		"alive {\nfleet a\nprober 3\n}":   "unrecognized option 'prober': alive has fleet, member, sync_interval and probers; did you mean 'probers'?, at Testfile:3",
		"alive {\nfleet a\ncolour red\n}": "unrecognized option 'colour': alive has fleet, member, sync_interval and probers, at Testfile:3",
	} {
		if _, err := parseGlobalOption(caddyfile.NewTestDispenser(input), nil); err == nil || err.Error() != want {
			t.Errorf("%s\n got error %v\nwant error %s", input, err, want)
		}
	}
}

// The error for an unknown option that a kind of another plugin words by itself is shown as
// it is, whatever its words. One that it makes by the helper of package probe tells where
// the option belongs.
func TestCheck_ErrorsOfOtherKindsStayAsTheyAre(t *testing.T) {
	for input, want := range map[string]string{
		"alive {\ncheck own {\nweight app1 3\n}\n}":  "unrecognized option 'weight': this kind weighs nothing, at Testfile:3",
		"alive {\ncheck own {\ncolour red\n}\n}":     "unrecognized option 'colour': besides the options of every check (" + strings.Join(suggest.CheckOptions, ", ") + "), a check of the kind own has no other, at Testfile:3",
		"alive {\ncheck own {\nhold 1s\n}\n}":        "'hold' is an option of lb_policy alive; write it beside the check, not in its block, at Testfile:3",
		"alive {\ncheck own {\nhealth_port 81\n}\n}": "'health_port' is an option of Caddy's own health checks; lb_policy alive makes its own, so write port in the block of a check, at Testfile:3",
	} {
		err := new(Selection).UnmarshalCaddyfile(caddyfile.NewTestDispenser(input))
		if err == nil || err.Error() != want {
			t.Errorf("%s\n got error %v\nwant error %s", input, err, want)
		}
	}
}

// ownKind is a kind of check as other plugins have it. It knows no option, and has its own
// words for weight.
type ownKind struct{}

func init() { caddy.RegisterModule(ownKind{}) }

func (ownKind) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "alive.probes.own", New: func() caddy.Module { return new(ownKind) }}
}

func (*ownKind) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.NextBlock(0) {
		return nil
	}
	if d.Val() == "weight" {
		return d.Err("unrecognized option 'weight': this kind weighs nothing")
	}
	return probe.UnrecognizedOption(d, "a check of the kind own")
}

// All options of a check that the block of the policy refuses with a hint are ones
// that the parser of a check takes.
func TestCaddyfile_HintsNameOptionsOfAParser(t *testing.T) {
	for option, kind := range suggest.KindOptions {
		if option == "uri" { // an argument in a Caddyfile
			continue
		}
		err := new(Selection).UnmarshalCaddyfile(caddyfile.NewTestDispenser("alive {\ncheck " + kind + " {\n" + option + "\n}\n}"))
		if err != nil && strings.HasPrefix(err.Error(), "unrecognized option") {
			t.Errorf("check %s: %v", kind, err)
		}
	}
	for _, option := range slices.Concat(suggest.ProxyOptions, []string{"method"}) {
		_, err := adapt("http:// {\nreverse_proxy app1 {\n" + option + "\n}\n}")
		if err != nil && strings.Contains(err.Error(), "unrecognized subdirective") {
			t.Errorf("reverse_proxy: %v", err)
		}
	}
	for option := range suggest.CoreChecks {
		_, err := adapt("http:// {\nreverse_proxy app1 {\n" + option + "\n}\n}")
		if err != nil && strings.Contains(err.Error(), "unrecognized subdirective") {
			t.Errorf("reverse_proxy: %v", err)
		}
	}
}

// The options that errors list as those of every check are the fields of a check, and
// the parser takes each of them itself.
func TestCommonOptions_AreThoseOfEveryCheck(t *testing.T) {
	var want []string
	for field := range reflect.TypeFor[HealthCheck]().Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" && name != "probe" {
			want = append(want, name)
		}
	}
	if got := suggest.CheckOptions; !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, option := range suggest.CheckOptions {
		err := new(Selection).UnmarshalCaddyfile(caddyfile.NewTestDispenser("alive {\ncheck tcp {\n" + option + " a b\n}\n}"))
		if err == nil || strings.Contains(err.Error(), "unrecognized") || strings.Contains(err.Error(), "takes , at") {
			t.Errorf("%s: got %v, want an error of its own", option, err)
		}
	}
}

// keep_connection is an option of every check, and fresh_connection still one of http.
func TestKeepConnection_ExcludesFreshConnection(t *testing.T) {
	for input, want := range map[string]string{
		"alive {\ncheck http /a {\nkeep_connection\n}\n}":                            `{"checks":[{"probe":{"kind":"http","uri":"/a"},"keep_connection":true}]}`,
		"alive {\ncheck grpc {\ntimeout 1s\nkeep_connection\n}\n}":                   `{"checks":[{"probe":{"kind":"grpc"},"timeout":1000000000,"keep_connection":true}]}`,
		"alive {\ncheck http /a {\nfresh_connection\nport 81\n}\n}":                  `{"checks":[{"probe":{"fresh_connection":true,"kind":"http","uri":"/a"},"port":81}]}`,
		"alive {\ncheck http /a {\nheader A fresh_connection\nkeep_connection\n}\n}": `{"checks":[{"probe":{"header":{"A":["fresh_connection"]},"kind":"http","uri":"/a"},"keep_connection":true}]}`,
	} {
		s := new(Selection)
		if err := s.UnmarshalCaddyfile(caddyfile.NewTestDispenser(input)); err != nil {
			t.Errorf("%s: %v", input, err)
		} else if got := encode(t, s); got != want {
			t.Errorf("%s\n got %s\nwant %s", input, got, want)
		}
	}
	const both = "keep_connection and fresh_connection exclude each other; without either, every probe has a connection of its own, at Testfile:"
	for input, want := range map[string]string{
		"alive {\ncheck http / {\nkeep_connection on\n}\n}":                "keep_connection takes no argument; got 'on', at Testfile:3",
		"alive {\ncheck http / {\nkeep_connection\nkeep_connection\n}\n}":  "option 'keep_connection' is given twice, at Testfile:4",
		"alive {\ncheck http / {\nkeep_connection\nfresh_connection\n}\n}": both + "4",
		"alive {\ncheck http / {\nfresh_connection\nkeep_connection\n}\n}": both + "4",
		"alive {\ncheck tcp {\nkeep_connection\n}\n}":                      "keep_connection has no meaning for a check of the kind tcp, which sends no requests, at Testfile:2",
		"alive {\ncheck tls {\ntimeout 1s\nkeep_connection\n}\n}":          "keep_connection has no meaning for a check of the kind tls, which sends no requests, at Testfile:2",
	} {
		if err := new(Selection).UnmarshalCaddyfile(caddyfile.NewTestDispenser(input)); err == nil || err.Error() != want {
			t.Errorf("%s\n got error %v\nwant error %s", input, err, want)
		}
	}
}

// Durations that are too short to be meant are rejected.
func TestCaddyfile_DurationsHaveAShortest(t *testing.T) {
	for body, want := range map[string]string{
		"check tcp {\ninterval 9ms\n}":        "interval must be at least 10ms; got '9ms', at Testfile:3",
		"check tcp {\nfast_interval 5us\n}":   "fast_interval must be at least 10ms; got '5us', at Testfile:3",
		"check tcp {\ndown_interval 5ns\n}":   "down_interval must be at least 10ms; got '5ns', at Testfile:3",
		"check tcp {\ntimeout 999us\n}":       "timeout must be at least 1ms; got '999us', at Testfile:3",
		"check tcp {\nfails 1\ntimeout 2d\n}": "timeout must not be longer than 24h, at Testfile:4",
		"hold 1us":                            "hold must be at least 1ms; got '1us', at Testfile:2",
		"slow_start 9ms":                      "slow_start: window must be a duration from 10ms to 24h, like 30s; got '9ms', at Testfile:2",
	} {
		err := new(Selection).UnmarshalCaddyfile(caddyfile.NewTestDispenser("alive {\n" + body + "\n}"))
		if err == nil || err.Error() != want {
			t.Errorf("%s\n got error %v\nwant error %s", body, err, want)
		}
	}
}

// adapt returns the JSON of a whole Caddyfile.
func adapt(text string) ([]byte, error) {
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	return adapted, err
}

func encode(tb testing.TB, value any) string {
	tb.Helper()
	encoded, err := json.Marshal(value)
	if err != nil {
		tb.Fatal(err)
	}
	return string(encoded)
}
