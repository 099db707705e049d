// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Durations that are too short to be meant are rejected. In JSON, where a number
// without a unit is in nanoseconds, the error says what to write.
func TestDurationsHaveAShortest(t *testing.T) {
	const (
		one  = `"upstreams":[{"dial":"127.0.0.1:1"}],`
		unit = "; a number without a unit is in nanoseconds in JSON: write "
	)
	for _, test := range []struct{ proxy, want string }{
		{one + check("tcp", `"interval":5`), "interval must be at least 10ms; got 5ns" + unit + `"5s"`},
		{one + check("tcp", `"fast_interval":1`), "fast_interval must be at least 10ms; got 1ns" + unit + `"1s"`},
		{one + check("tcp", `"down_interval":5000`), "down_interval must be at least 10ms; got 5µs" + unit + `"5000ms"`},
		{one + check("tcp", `"timeout":2`), "timeout must be at least 1ms; got 2ns" + unit + `"2s"`},
		{one + check("tcp", `"interval":"9ms"`), "interval must be at least 10ms; got 9ms"},
		{one + check("tcp", `"timeout":"25h"`), "timeout must not be longer than 24h0m0s"},
		{one + alive(`"hold":5`), "hold must be at least 1ms; got 5ns" + unit + `"5s"`},
		{one + alive(`"slow_start":{"window":30}`), "slow_start: window must be at least 10ms; got 30ns" + unit + `"30s"`},
		{one + alive(`"slow_start":{"window":"9ms"}`), "slow_start: window must be at least 10ms; got 9ms"},
	} {
		if err := validate(t, test.proxy, nil); err == nil || !strings.HasSuffix(err.Error(), test.want) {
			t.Errorf("%s\n got error %v\nwant one that ends in %s", test.proxy, err, test.want)
		}
	}
	if _, err := (&App{Fleet: "a", SyncInterval: 5}).validate(); err == nil || err.Error() != "sync_interval must be from 100ms to 24h0m0s; got 5ns"+unit+`"5s"` {
		t.Errorf("sync_interval of 5: got error %v", err)
	}
	for _, proxy := range []string{
		one + check("tcp", `"interval":"10ms","fast_interval":"10ms","down_interval":"10ms","timeout":"1ms"`),
		one + alive(`"hold":0`), one + alive(`"hold":"1ms"`), one + alive(`"slow_start":{"window":"10ms"}`),
	} {
		if err := validate(t, proxy, nil); err != nil {
			t.Errorf("%s\n got error %v, want none", proxy, err)
		}
	}

	for body, want := range map[string]string{
		"check tcp {\ninterval 9ms\n}":        "interval must be at least 10ms; got '9ms', at Testfile:3",
		"check tcp {\nfast_interval 5us\n}":   "fast_interval must be at least 10ms; got '5us', at Testfile:3",
		"check tcp {\ndown_interval 5ns\n}":   "down_interval must be at least 10ms; got '5ns', at Testfile:3",
		"check tcp {\ntimeout 999us\n}":       "timeout must be at least 1ms; got '999us', at Testfile:3",
		"check tcp {\nfails 1\ntimeout 2d\n}": "timeout must not be longer than 24h0m0s, at Testfile:4",
		"hold 1us":                            "hold must be at least 1ms; got '1us', at Testfile:2",
		"slow_start 9ms":                      "slow_start: window must be at least 10ms; got 9ms, at Testfile:2",
	} {
		err := new(Selection).UnmarshalCaddyfile(caddyfile.NewTestDispenser("alive {\n" + body + "\n}"))
		if err == nil || err.Error() != want {
			t.Errorf("%s\n got error %v\nwant error %s", body, err, want)
		}
	}
}
