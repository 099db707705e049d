// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
)

// A weight is a number in JSON, or a text with a placeholder, and stays what it was.
func TestWeight_JSON(t *testing.T) {
	for text, want := range map[string]string{
		`3`: `3`, `0`: `0`, `256`: `256`, `"{env.W}"`: `"{env.W}"`, `"1{env.W}"`: `"1{env.W}"`,
		`-1`: `-1`, `257`: `257`, // rejected by Provision
	} {
		var w Weight
		if err := json.Unmarshal([]byte(text), &w); err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := encode(t, w); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
	for _, text := range []string{`1.5`, `1e2`, `"3"`, `"heavy"`, `""`, `null`, `true`, `[]`, `{}`, `99999999999999999999`} {
		want := `a weight must be a whole number from 0 to 256, or a text with a placeholder, like "{env.WEIGHT}"; got ` + text
		if err := json.Unmarshal([]byte(text), new(Weight)); err == nil || err.Error() != want {
			t.Errorf("%s: got error %v, want %s", text, err, want)
		}
	}
}

// provisionedMembers returns the weight of each member of a config by its address, and
// those that are backups.
func provisionedMembers(t *testing.T, proxy string) (weights map[string]int, backups []string, err error) {
	t.Helper()
	weights = make(map[string]int)
	err = validate(t, proxy, func() error {
		shared.PoolCounters.Range(func(_, counters any) bool {
			for _, source := range counters.(*telemetry.PoolCounters).Sources() {
				s := (*Selection)(source.(*picks))
				for _, m := range s.members {
					weights[m.address] = m.weight
					if m.backup {
						backups = append(backups, m.address)
					}
				}
			}
			return true
		})
		return nil
	})
	return weights, backups, err
}

// Upstreams are named as they are written, by what their placeholders stand for, and
// by placeholders; weights can be placeholders.
func TestWeight_Placeholders(t *testing.T) {
	t.Setenv("ALIVE_TEST_APP", "127.0.0.1:1")
	t.Setenv("ALIVE_TEST_HOST", "127.0.0.1")
	t.Setenv("ALIVE_TEST_WEIGHT", "5")
	for _, test := range []struct {
		upstreams, options string
		weight             int
		backup             string
	}{
		{`{"dial":"{env.ALIVE_TEST_APP}"},{"dial":"127.0.0.1:2"}`, `"weights":{"{env.ALIVE_TEST_APP}":3}`, 3, ""},
		{`{"dial":"{env.ALIVE_TEST_APP}"},{"dial":"127.0.0.1:2"}`, `"weights":{"127.0.0.1:1":3}`, 3, ""},
		{`{"dial":"{env.ALIVE_TEST_HOST}:1"},{"dial":"127.0.0.1:2"}`, `"weights":{"http://127.0.0.1:1":3}`, 3, ""},
		{`{"dial":"127.0.0.1:1"},{"dial":"127.0.0.1:2"}`, `"weights":{"{env.ALIVE_TEST_APP}":3}`, 3, ""},
		{`{"dial":"127.0.0.1:1"},{"dial":"127.0.0.1:2"}`, `"weights":{"{env.ALIVE_TEST_HOST}:1":3}`, 3, ""},
		{`{"dial":"127.0.0.1:1"},{"dial":"127.0.0.1:2"}`, `"weights":{"127.0.0.1:1":"{env.ALIVE_TEST_WEIGHT}"}`, 5, ""},
		{`{"dial":"127.0.0.1:1"},{"dial":"127.0.0.1:2"}`, `"weights":{"127.0.0.1:1":"1{env.ALIVE_TEST_WEIGHT}"}`, 15, ""},
		{`{"dial":"{env.ALIVE_TEST_APP}"},{"dial":"127.0.0.1:2"}`, `"backups":["127.0.0.1:1"]`, 1, "127.0.0.1:1"},
		{`{"dial":"127.0.0.1:1"},{"dial":"127.0.0.1:2"}`, `"backups":["{env.ALIVE_TEST_APP}"]`, 1, "127.0.0.1:1"},
		{`{"dial":"127.0.0.1:1"},{"dial":"127.0.0.1:2"}`, `"weights":{"127.0.0.1:1":"{env.ALIVE_TEST_ZERO}"},"select":{"policy":"first"}`, 0, ""},
	} {
		t.Setenv("ALIVE_TEST_ZERO", "0")
		weights, backups, err := provisionedMembers(t, `"upstreams":[`+test.upstreams+`],`+alive(test.options))
		want := map[string]int{"127.0.0.1:1": test.weight, "127.0.0.1:2": 1}
		if err != nil || !maps.Equal(weights, want) || strings.Join(backups, " ") != test.backup {
			t.Errorf("%s %s\n got %v, backups %v, error %v\nwant %v, backups %s", test.upstreams, test.options, weights, backups, err, want, test.backup)
		}
	}
}

// What a weight cannot be is rejected with the option, the known names and a close one,
// and without what a placeholder stands for.
func TestWeight_Errors(t *testing.T) {
	t.Setenv("ALIVE_TEST_SECRET", "hunter2")
	t.Setenv("ALIVE_TEST_APP", "127.0.0.1:1")
	const (
		one = `"upstreams":[{"dial":"127.0.0.1:1"}],`
		two = `"upstreams":[{"dial":"app1:8080"},{"dial":"app2:8080"}],`
		all = "every upstream has the weight 0, so none would ever get a request; leave out at least one, or give it another weight"
	)
	for _, test := range []struct{ proxy, want string }{
		{two + alive(`"weights":{"app1:808":1}`), "weights: app1:808 is not one of the upstreams, which are app1:8080, app2:8080; did you mean 'app1:8080'?"},
		{two + alive(`"weights":{"app2":1}`), "weights: app2 is not one of the upstreams, which are app1:8080, app2:8080; did you mean 'app2:8080'?"},
		{two + alive(`"weights":{"elsewhere:9":1}`), "weights: elsewhere:9 is not one of the upstreams, which are app1:8080, app2:8080"},
		{two + alive(`"backups":["ap2:8080"]`), "backups: ap2:8080 is not one of the upstreams, which are app1:8080, app2:8080; did you mean 'app2:8080'?"},
		{two + alive(`"backups":["app2:8080","http://app2:8080"]`), "backups: app2:8080 and http://app2:8080 are the same upstream"},
		{one + alive(`"weights":{"{env.ALIVE_TEST_APP}":1,"127.0.0.1:1":1}`), "weights: 127.0.0.1:1 and {env.ALIVE_TEST_APP} are the same upstream"},
		{one + alive(`"weights":{"{env.ALIVE_TEST_UNSET}":1}`), "weights: {env.ALIVE_TEST_UNSET}: its placeholders are empty"},
		{one + alive(`"weights":{"127.0.0.1:1":"{env.ALIVE_TEST_SECRET}"}`), "weights: 127.0.0.1:1: a weight must be a whole number from 0 to 256; got what {env.ALIVE_TEST_SECRET} stands for"},
		{one + alive(`"weights":{"127.0.0.1:1":"9{env.ALIVE_TEST_SECRET}"}`), "weights: 127.0.0.1:1: a weight must be a whole number from 0 to 256; got what 9{env.ALIVE_TEST_SECRET} stands for"},
		{one + alive(`"weights":{"127.0.0.1:1":"{env.ALIVE_TEST_UNSET}"}`), "weights: 127.0.0.1:1: evaluated placeholder {env.ALIVE_TEST_UNSET} is empty; only global placeholders, such as {env.*}, can stand for a weight"},
		{one + alive(`"weights":{"127.0.0.1:1":"{http.request.host}"}`), "weights: 127.0.0.1:1: unrecognized placeholder {http.request.host}; only global placeholders, such as {env.*}, can stand for a weight"},
		{one + alive(`"weights":{"127.0.0.1:1":"3"}`), `a weight must be a whole number from 0 to 256, or a text with a placeholder, like "{env.WEIGHT}"; got "3"`},
		{one + alive(`"weights":{"127.0.0.1:1":0}`), "weights: " + all},
		{two + alive(`"weights":{"app1:8080":0,"app2:8080":0}`), "weights: " + all},
		{two + alive(`"weights":{"app1:8080":0,"app2:8080":0},"backups":["app1:8080"]`), "weights: " + all},
		{`"upstreams":[{"dial":"app1 :8080"}],` + alive(``), "upstream app1 :8080: an address has no spaces in it"},
		{`"upstreams":[{"dial":"127.0.0.1:1"},{"dial":"app1:8080\t"}],` + alive(``), "upstream app1:8080\t: an address has no spaces in it"},
	} {
		if err := validate(t, test.proxy, nil); err == nil || !strings.HasSuffix(err.Error(), test.want) {
			t.Errorf("%s\n got error %v\nwant one that ends in %s", test.proxy, err, test.want)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s\nthe error has the secret: %v", test.proxy, err)
		}
	}
	// others have a weight
	if err := validate(t, `"upstreams":[{"dial":"127.0.0.1:1"}],"dynamic_upstreams":{"source":"a","name":"x"},`+alive(`"weights":{"127.0.0.1:1":0}`), nil); err != nil {
		t.Errorf("beside a dynamic source: %v", err)
	}
	// a path can have spaces
	if err := validate(t, `"upstreams":[{"dial":"unix//run/my app.sock"}],`+alive(`"weights":{"unix//run/my app.sock":3}`), nil); err != nil {
		t.Errorf("a unix socket: %v", err)
	}
}

// An upstream whose address can change while Caddy runs is not checked, and is named
// as it is written: what its file has at the start says nothing of what it has later.
func TestProvision_AddressInAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "address")
	if err := os.WriteFile(file, []byte("127.0.0.1:1"), 0o600); err != nil {
		t.Fatal(err)
	}
	dial := "{file." + file + "}"
	proxy := `"upstreams":[{"dial":` + encode(t, dial) + `},{"dial":"127.0.0.1:2"}],` + alive(`"weights":{`+encode(t, dial)+`:3}`)
	targets, _ := 0, 0
	weights, _, err := provisionedMembers(t, proxy)
	if want := map[string]int{dial: 3, "127.0.0.1:2": 1}; err != nil || !maps.Equal(weights, want) {
		t.Errorf("got %v, error %v, want %v", weights, err, want)
	}
	if err := validate(t, proxy, func() error { targets, _ = countTargets(); return nil }); err != nil || targets != 1 {
		t.Errorf("targets: got %d, error %v, want 1", targets, err)
	}
	if got := monitor.DisplayAddress("{time.now.unix}:80"); got != "{time.now.unix}:80" {
		t.Errorf("an address of the time is shown as %s", got)
	}
	if got := monitor.DisplayAddress("{system.os}:80"); strings.Contains(got, "{") {
		t.Errorf("an address of the system is shown as %s", got)
	}
	// what a file has at the load names no upstream
	proxy = `"upstreams":[{"dial":"127.0.0.1:1"}],` + alive(`"weights":{`+encode(t, dial)+`:3}`)
	if err := validate(t, proxy, nil); err == nil || !strings.Contains(err.Error(), "is not one of the upstreams") {
		t.Errorf("a name in a file: got error %v", err)
	}
}

// A Caddyfile can have placeholders for upstreams and their weights.
func TestCaddyfile_WeightPlaceholders(t *testing.T) {
	for input, want := range map[string]string{
		"alive {\nweight {env.APP} 3\n}":               `{"weights":{"{env.APP}":3}}`,
		"alive {\nweight app1:80 {env.W}\n}":           `{"weights":{"app1:80":"{env.W}"}}`,
		"alive {\nweight app1:80 +3\n}":                `{"weights":{"app1:80":3}}`,
		"alive {\nweight {env.A} 1\nbackup {env.B}\n}": `{"weights":{"{env.A}":1},"backups":["{env.B}"]}`,
	} {
		s := new(Selection)
		if err := s.UnmarshalCaddyfile(caddyfile.NewTestDispenser(input)); err != nil {
			t.Errorf("%s: %v", input, err)
		} else if got := encode(t, s); got != want {
			t.Errorf("%s\n got %s\nwant %s", input, got, want)
		}
	}
}
