// SPDX-License-Identifier: Apache-2.0

package suggest

import (
	"strings"
	"testing"
)

// An upstream that is not quite written as it is listed is found, and several are named where
// several may be meant.
func TestUpstream_FindsWhatIsMeant(t *testing.T) {
	known := []string{
		"127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003", "app1.internal:8080", "app2.internal:8080", "app2.internal:8081",
		"[::1]:7000", "unix//run/app.sock", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80", "10.0.0.5:80", "127.0.0.1:9001",
	}
	for name, want := range map[string]string{
		"9003":                            "'127.0.0.1:9003'",
		":9003":                           "'127.0.0.1:9003'",
		"8080":                            "'app1.internal:8080' or 'app2.internal:8080'",
		"80":                              "'10.0.0.1:80', '10.0.0.2:80', '10.0.0.3:80' or one of 2 more",
		"127.0.0.1":                       "'127.0.0.1:9001', '127.0.0.1:9002' or '127.0.0.1:9003'",
		"localhost":                       "'127.0.0.1:9001', '127.0.0.1:9002', '127.0.0.1:9003' or one of 1 more",
		"localhost:9002":                  "'127.0.0.1:9002'",
		"127.0.0.1:7000":                  "'[::1]:7000'",
		"::1":                             "'[::1]:7000'",
		"app1.internal":                   "'app1.internal:8080'",
		"app1":                            "'app1.internal:8080'",
		"app2":                            "'app2.internal:8080' or 'app2.internal:8081'",
		"app2:8081":                       "'app2.internal:8081'",
		"http://app1.internal:8080":       "'app1.internal:8080'",
		"https://App1.Internal:8080/shop": "'app1.internal:8080'",
		"http://app1":                     "'app1.internal:8080'",
		"app1.intrenal:8080":              "'app1.internal:8080'",
		"http://app1.intrenal:8080":       "'app1.internal:8080'",
		"10.0.0.6:80":                     "",
		"127.0.0.1:9004":                  "'127.0.0.1:9001', '127.0.0.1:9002' or '127.0.0.1:9003'", // which one is not known
		"app3.internal:8080":              "'app1.internal:8080' or 'app2.internal:8080'",
		"unix:///run/app.sock":            "'unix//run/app.sock'",
		"unix:/run/app.sock":              "'unix//run/app.sock'",
		"/run/app.sock":                   "'unix//run/app.sock'",
		"unix":                            "'unix//run/app.sock'", // the beginning of one
		"app.sock":                        "'unix//run/app.sock'",
		"1234":                            "",
		"db.example:5432":                 "",
		"":                                "",
		strings.Repeat("9", maxLength+1):  "",
	} {
		if want != "" {
			want = "; did you mean " + want + "?"
		}
		if got := Upstream(name, known); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}
