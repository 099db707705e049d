// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
)

// labels returns the labels of the checks of the first policy in a config, in its order.
func labels(t *testing.T, policy string) (labels []string, err error) {
	t.Helper()
	s := new(Selection)
	if err := s.UnmarshalCaddyfile(caddyfile.NewTestDispenser(policy)); err != nil {
		t.Fatalf("%s: %v", policy, err)
	}
	_, options, _ := strings.Cut(strings.TrimSuffix(encode(t, s), "}"), "{")
	err = validate(t, `"transport":{"protocol":"http","tls":{}},"upstreams":[{"dial":"127.0.0.1:1"}],`+alive(options), func() error {
		shared.PoolCounters.Range(func(_, counters any) bool {
			for _, source := range counters.(*telemetry.PoolCounters).Sources() {
				s := (*Selection)(source.(*picks))
				for _, c := range s.Checks {
					labels = append(labels, c.resolved.Label)
				}
			}
			return true
		})
		return nil
	})
	return labels, err
}

// A default label tells checks of one upstream apart, as they are written.
func TestLabel_TellsChecksApart(t *testing.T) {
	t.Setenv("ALIVE_TEST_HOST", "app.internal")
	t.Setenv("ALIVE_TEST_ADDRESS", "127.0.0.1:9")
	t.Setenv("ALIVE_TEST_URI", "/healthz")
	for _, test := range []struct {
		policy string
		want   []string
	}{
		// plain ones are short
		{"alive", []string{"tcp"}},
		{"alive /healthz", []string{"http /healthz"}},
		{"alive {\ncheck http /healthz {\nmethod HEAD\ninterval 1s\nstatus 204\n}\ncheck tls\ncheck grpc a.Service\n}", []string{"http /healthz", "tls", "grpc a.Service"}},

		{"alive {\ncheck http /healthz {\nport 8081\n}\ncheck http /healthz\n}", []string{"http /healthz port 8081", "http /healthz"}},
		{"alive {\ncheck tcp {\naddress 127.0.0.1:9\n}\ncheck tcp {\naddress 127.0.0.2\nport 9\n}\n}", []string{"tcp address 127.0.0.1:9", "tcp address 127.0.0.2 port 9"}},
		{"alive {\ncheck http / {\nheader host app.internal\n}\ncheck http / {\nheader Host other.internal\nport 81\n}\n}", []string{"http / Host app.internal", "http / Host other.internal port 81"}},
		{"alive {\ncheck grpc {\nauthority a\n}\ncheck grpc {\nauthority b\n}\n}", []string{"grpc authority a", "grpc authority b"}},
		{"alive {\ncheck tls {\ntls_server_name a\n}\ncheck tls {\ntls_server_name b\n}\n}", []string{"tls tls_server_name a", "tls tls_server_name b"}},

		// as they are written
		{
			"alive {\ncheck http {env.ALIVE_TEST_URI} {\nheader Host {env.ALIVE_TEST_HOST}\naddress {env.ALIVE_TEST_ADDRESS}\n}\ncheck grpc {env.ALIVE_TEST_HOST} {\nauthority {env.ALIVE_TEST_HOST}\ntls_server_name {env.ALIVE_TEST_HOST}\n}\n}",
			[]string{"http {env.ALIVE_TEST_URI} Host {env.ALIVE_TEST_HOST} address {env.ALIVE_TEST_ADDRESS}", "grpc {env.ALIVE_TEST_HOST} authority {env.ALIVE_TEST_HOST} tls_server_name {env.ALIVE_TEST_HOST}"},
		},

		// nothing that may be secret
		{"alive {\ncheck http / {\nheader X-Token secret\nheader Authorization secret\nheader X-Token more-secret\nrequest_body secret\nexpect_body secret\n}\n}", []string{"http / header Authorization header X-Token"}},

		// what differs in something else is numbered, in the order of the config
		{"alive {\ncheck http / {\nmethod HEAD\n}\ncheck http /\ncheck http / {\nexpect_body ok\n}\ncheck tcp\n}", []string{"http /", "http / #2", "http / #3", "tcp"}},

		// a name is the label, and a number leaves it alone
		{"alive {\ncheck http / {\nname web\nport 81\n}\ncheck http / {\nname \"http / #2\"\nport 82\n}\ncheck http /\ncheck http / {\nmethod HEAD\n}\n}", []string{"web", "http / #2", "http /", "http / #3"}},
	} {
		if got, err := labels(t, test.policy); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s\n got %q, error %v\nwant %q", test.policy, got, err, test.want)
		}
	}
}

// Names of checks are checked in JSON as they are in a Caddyfile.
func TestLabel_NamesAreUnique(t *testing.T) {
	const one = `"upstreams":[{"dial":"127.0.0.1:1"}],`
	for _, test := range []struct{ checks, want string }{
		{`{"probe":{"kind":"tcp"},"name":"a"},{"probe":{"kind":"tcp"},"port":2,"name":"a"}`, "checks: position 1 has the name of position 0: a"},
		{`{"probe":{"kind":"tcp"},"name":"a"},{"probe":{"kind":"tcp"},"name":"b"}`, "checks: position 1 is the same as position 0"},
		{`{"probe":{"kind":"tcp"},"name":"a\nb"}`, "checks: position 0: name must be one line of 200 bytes at most"},
		{`{"probe":{"kind":"tcp"},"name":"` + strings.Repeat("x", 201) + `"}`, "checks: position 0: name must be one line of 200 bytes at most"},
	} {
		if err := validate(t, one+alive(`"checks":[`+test.checks+`]`), nil); err == nil || !strings.HasSuffix(err.Error(), test.want) {
			t.Errorf("%s: got error %v, want one that ends in %s", test.checks, err, test.want)
		}
	}
}
