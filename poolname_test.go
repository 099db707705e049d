// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// poolsOf returns the names of the pools of a config, by the name of the first check of
// each policy. The last handler of each server has to be the inspector.
func poolsOf(t *testing.T, servers string) map[string]string {
	t.Helper()
	names := make(map[string]string)
	inspect = func() error {
		shared.PoolCounters.Range(func(pool, tally any) bool {
			for s := range tally.(*poolTally).policies {
				names[s.Checks[0].Name] = pool.(string)
			}
			return true
		})
		return nil
	}
	var cfg *caddy.Config
	if err := json.Unmarshal([]byte(`{
		"admin": {"disabled": true}, "logging": {"logs": {"default": {"writer": {"output": "discard"}}}},
		"apps": {"http": {"servers": {`+servers+`}}}
	}`), &cfg); err != nil {
		t.Fatal(err)
	}
	cfg.StorageRaw = caddyconfig.JSONModuleObject(map[string]string{"root": t.TempDir()}, "module", "file_system", nil)
	if err := caddy.Validate(cfg); err != nil {
		t.Fatal(err)
	}
	return names
}

// proxying returns a handler over two upstreams, with a check of that name and further
// options of the policy.
func proxying(name, options string) string {
	if options != "" {
		options = "," + options
	}
	return `{"handler":"reverse_proxy","upstreams":[{"dial":"127.0.0.1:1"},{"dial":"127.0.0.1:2"}],` +
		alive(`"checks":[{"probe":{"kind":"tcp"},"name":"`+name+`"}]`+options) + `}`
}

// Handlers of the same upstreams that differ in which get requests are pools of their
// own, numbered in the order of the config whatever order Caddy provisions them in.
// Those that do not differ are one pool.
func TestPoolName_NumberedInTheOrderOfTheConfig(t *testing.T) {
	const name = "127.0.0.1:1 127.0.0.1:2"
	nested := func(handler string) string {
		return `{"handler":"subroute","routes":[{"handle":[` + handler + `]}]}`
	}
	server := func(port int, routes, more string) string {
		return fmt.Sprintf(`"s%d":{"listen":["127.0.0.1:%[1]d"],%s"routes":[%s,{"handle":[{"handler":"alive_inspector"}]}]}`, port, more, routes)
	}
	route := func(handler string) string { return `{"handle":[` + handler + `]}` }
	servers := strings.Join([]string{
		server(1, route(nested(proxying("one", "")))+","+route(proxying("two", `"weights":{"127.0.0.1:1":2}`)), ""),
		server(2, route(proxying("like two", `"weights":{"127.0.0.1:1":2}`)), ""),
		server(3, route(proxying("three", `"backups":["127.0.0.1:2"]`)), `"errors":{"routes":[`+route(proxying("four", `"fail_open":"off"`))+`]},`),
		server(4, route(nested(nested(proxying("five", `"fail_open":"off","backups":["127.0.0.1:2"]`))))+","+route(proxying("named", `"name":"shop"`)), ""),
		server(5, route(proxying("like one", `"weights":{"127.0.0.1:1":1},"fail_open":"none_up","hold":0`)), ""),
		server(6, route(`{"handler":"reverse_proxy","upstreams":[{"dial":"127.0.0.1:1"},{"dial":"127.0.0.1:2"}],"load_balancing":{"selection_policy":{"policy":"cookie","fallback":{"policy":"alive","checks":[{"probe":{"kind":"tcp"},"name":"six","fails":1}]}}}}`), ""),
	}, ",")
	want := map[string]string{
		"one": name, "two": name + " #2", "like two": name + " #2", "three": name + " #3", "four": name + " #4",
		"five": name + " #5", "named": "shop", "like one": name, "six": name + " #6",
	}
	// Caddy provisions servers in the order of a map, so often enough in others
	for range 30 {
		got := poolsOf(t, servers)
		// the inspector of the last server may come before error routes of it
		for key, pool := range got {
			if want[key] != pool {
				t.Fatalf("%s: got %q, want %q", key, pool, want[key])
			}
		}
		if len(got) < len(want)-1 {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
}

// A number that a name has already is left out.
func TestPoolName_GivenNamesAreLeftOut(t *testing.T) {
	const name = "127.0.0.1:1 127.0.0.1:2"
	got := poolsOf(t, `"s":{"listen":["127.0.0.1:1"],"routes":[{"handle":[`+
		strings.Join([]string{proxying("one", ""), proxying("two", `"fail_open":"off"`), proxying("three", `"name":"`+name+` #2"`), `{"handler":"alive_inspector"}`}, ",")+`]}]}`)
	want := map[string]string{"one": name, "two": name + " #3", "three": name + " #2"}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// What decides which upstreams get requests makes pools of their own, each by itself.
func TestPoolName_WhatDiffers(t *testing.T) {
	handler := func(proxy, policy string) poolKey {
		t.Helper()
		if policy != "" {
			policy = "," + policy
		}
		var found []*Selection
		findPools(decode([]byte(`{"handler":"reverse_proxy",`+proxy+`"load_balancing":{"selection_policy":{"policy":"alive"`+policy+`}}}`)), &found)
		if len(found) != 1 {
			t.Fatalf("%s %s: found %d policies, want 1", proxy, policy, len(found))
		}
		return found[0].poolKey()
	}
	const two = `"upstreams":[{"dial":"127.0.0.1:1"},{"dial":"app2:80"}],`
	plain := handler(two, "")
	for _, same := range [][2]string{
		{two, `"checks":[{"probe":{"kind":"tcp"}}]`},
		{two, `"checks":[{"probe":{"kind":"tcp"},"interval":"5s","name":"a"}]`},
		{two, `"weights":{"127.0.0.1:1":1},"fail_open":"none_up"`},
		{two, `"hold":0,"slow_start":{"window":"1s"}`},
		{two + `"load_balancing_":1,"flush_interval":-1,`, ""},
	} {
		if handler(same[0], same[1]) != plain {
			t.Errorf("%s %s: another pool, want the same", same[0], same[1])
		}
	}
	seen := map[poolKey]string{plain: "the plain one"}
	for _, other := range [][2]string{
		{two, `"checks":[{"probe":{"kind":"http","uri":"/"}}]`},
		{two, `"checks":[{"probe":{"kind":"tcp"},"fails":1}]`},
		{two, `"checks":[{"probe":{"kind":"tcp"},"port":2}]`},
		{two, `"weights":{"app2":2}`},
		{two, `"weights":{"127.0.0.1:1":2}`},
		{two, `"backups":["app2"]`},
		{two, `"fail_open":"off"`},
		{two, `"select":{"policy":"first"}`},
		{two + `"health_checks":{"passive":{"fail_duration":"30s"}},`, ""},
		{two + `"circuit_breaker":{"type":"x"},`, ""},
		{`"upstreams":[{"dial":"127.0.0.1:1","max_requests":3},{"dial":"app2:80"}],`, ""},
	} {
		key := handler(other[0], other[1])
		if before, known := seen[key]; known {
			t.Errorf("%s %s: the same pool as %s", other[0], other[1], before)
		}
		seen[key] = other[0] + other[1]
	}
	if handler(two, `"weights":{"app2":2},"backups":["app2"]`) != handler(two, `"backups":["http://app2"],"weights":{"app2:80":2}`) {
		t.Error("the same in two spellings: two pools, want one")
	}
	if handler(two, `"checks":[{"probe":{"kind":"tcp"}},{"probe":{"kind":"tls"}}]`) != handler(two, `"checks":[{"probe":{"kind":"tls"}},{"probe":{"kind":"tcp"}}]`) {
		t.Error("the same checks in another order: two pools, want one")
	}
}

// Dynamic sources are named by what they ask for, and else by a hash that tells nothing.
func TestPoolName_DynamicSources(t *testing.T) {
	t.Setenv("ALIVE_TEST_NAME", "app.internal")
	names := make(map[string]string)
	for _, test := range []struct{ source, want string }{
		{`{"source":"a","name":"app1","port":"80"}`, "dynamic a app1 80"},
		{`{"source":"a","name":"{env.ALIVE_TEST_NAME}"}`, "dynamic a app.internal"},
		{`{"source":"srv","service":"api","proto":"tcp","name":"example.com"}`, "dynamic srv api tcp example.com"},
		{`{"source":"multi","sources":[{"source":"a","name":"app1","port":"80"},{"source":"srv","name":"_api._tcp.x"}]}`, "dynamic multi (a app1 80, srv _api._tcp.x)"},
		{`{"source":"multi","sources":[{"source":"a","name":"app2","port":"80"},{"source":"srv","name":"_api._tcp.x"}]}`, "dynamic multi (a app2 80, srv _api._tcp.x)"},
		{`{"source":"multi","sources":[{"source":"multi","sources":[{"source":"a","name":"x"}]}]}`, "dynamic multi (multi (a x))"},
		{`{"source":"registry"}`, "dynamic registry"},
		{`{"source":"registry","token":"secret"}`, "dynamic registry #"},
		{`{"source":"registry","token":"other"}`, "dynamic registry #"},
		{`{"source":"multi","sources":[{"source":"registry","token":"third"}]}`, "dynamic multi (registry #"},
	} {
		got := sourceName(json.RawMessage(test.source))
		if open := strings.HasSuffix(test.want, "#"); got != test.want && !open || open && !strings.HasPrefix(got, test.want) {
			t.Errorf("%s: got %q, want %q", test.source, got, test.want)
		}
		if before, known := names[got]; known {
			t.Errorf("%s and %s: both are %q", before, test.source, got)
		}
		names[got] = test.source
		if strings.Contains(got, "secret") {
			t.Errorf("%s: the name %q has the secret", test.source, got)
		}
	}
}
