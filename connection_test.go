// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// keep_connection is an option of every check, and fresh_connection still one of http.
func TestKeepConnection_Caddyfile(t *testing.T) {
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

// The same in JSON, when the config is loaded.
func TestKeepConnection_JSON(t *testing.T) {
	const upstream = `"upstreams":[{"dial":"127.0.0.1:1"}],`
	for _, ok := range []string{
		`{"probe":{"kind":"http","uri":"/"},"keep_connection":true}`,
		`{"probe":{"kind":"grpc"},"keep_connection":true}`,
		`{"probe":{"kind":"http","uri":"/","fresh_connection":true}}`,
		`{"probe":{"kind":"http","uri":"/","fresh_connection":true},"keep_connection":false}`,
		`{"probe":{"kind":"tcp"},"keep_connection":false}`,
	} {
		if err := validate(t, upstream+alive(`"checks":[`+ok+`]`), nil); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
	for bad, want := range map[string]string{
		`{"probe":{"kind":"tcp"},"keep_connection":true}`:                                    "keep_connection has no meaning for a check of the kind tcp, which sends no requests",
		`{"probe":{"kind":"tls"},"keep_connection":true}`:                                    "keep_connection has no meaning for a check of the kind tls, which sends no requests",
		`{"probe":{"kind":"http","uri":"/","fresh_connection":true},"keep_connection":true}`: errKeepFresh.Error(),
	} {
		if err := validate(t, upstream+alive(`"checks":[`+bad+`]`), nil); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: got %v, want an error that ends in %s", bad, err, want)
		}
	}
}

// A check that keeps its connection is another one than a check that does not.
func TestKeepConnection_MakesAnotherCheck(t *testing.T) {
	keeps, closes := &HealthCheck{KeepConnection: true}, new(HealthCheck)
	if keeps.equal(closes) || !closes.equal(new(HealthCheck)) {
		t.Error("checks that differ in it are equal, or equal ones are not")
	}
}
