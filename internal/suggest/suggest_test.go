// SPDX-License-Identifier: Apache-2.0

package suggest

import (
	"strings"
	"testing"
)

func TestClose_FindsTheMistypedName(t *testing.T) {
	known := []string{
		"name", "interval", "fast_interval", "down_interval", "timeout", "passes", "fails", "jitter", "port", "address",
		"proxy_protocol", "keep_connection", "method", "header", "request_body", "scheme", "status", "drain_status",
		"expect_header", "expect_body", "expression", "max_size", "tls_server_name", "tls_insecure_skip_verify",
	}
	for name, want := range map[string]string{
		"intervall":       "interval", // one character too many
		"intrval":         "interval", // one too few
		"imterval":        "interval", // a wrong one
		"inetrval":        "interval", // two in the wrong order
		"Interval":        "interval",
		"expect_bdy":      "expect_body",
		"expect-body":     "expect_body",
		"expectBody":      "expect_body",
		"expect":          "expect_body", // the shortest with this prefix
		"keep":            "keep_connection",
		"keep_connexion":  "keep_connection",
		"keepconnection":  "keep_connection",
		"timout":          "timeout",
		"pasess":          "passes",
		"fail":            "fails",
		"prot":            "port",
		"headers":         "header",
		"tls_skip_verify": "",
		"host":            "", // two mistakes away from port, and four characters allow one
		"uri":             "",
		"po":              "",
		"-_ ":             "",
		"":                "",
		"unrelated":       "",
		"interval":        "interval",
	} {
		if got := Close(name, known); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}

func TestClose_FindsAddresses(t *testing.T) {
	known := []string{"app1:8080", "app2:8080", "unix//run/app.sock", "bücher:80"}
	for name, want := range map[string]string{
		"app3:8080":          "app1:8080", // the first of equals
		"app2:808":           "app2:8080",
		"app2":               "app2:8080",
		"unix/run/app.sock":  "unix//run/app.sock",
		"bucher:80":          "bücher:80",
		"db.internal:5432":   "",
		"app1.example:12345": "",
	} {
		if got := Close(name, known); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}

// The length of a name from a client has no limit.
func TestClose_LongNamesAreNotCompared(t *testing.T) {
	long := strings.Repeat("a", maxLength+1)
	if got := Close(long, []string{long + "b"}); got != "" {
		t.Errorf("got a suggestion of %d bytes, want none", len(got))
	}
	if got := Close("aaa", []string{long}); got != "" {
		t.Errorf("got a suggestion of %d bytes, want none", len(got))
	}
}
