// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"net/http"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// Only a constant that is set, and nothing else done to the header, is the Host.
func TestConstantHost_IsSetAndNothingElse(t *testing.T) {
	set := http.Header{"Host": {"app.internal"}}
	for name, test := range map[string]struct {
		ops  *headers.HeaderOps
		want string
	}{
		"none":                {nil, ""},
		"set":                 {&headers.HeaderOps{Set: set}, "app.internal"},
		"set in lower case":   {&headers.HeaderOps{Set: http.Header{"host": {"app.internal:81"}}}, "app.internal:81"},
		"set twice":           {&headers.HeaderOps{Set: http.Header{"Host": {"a", "b"}}}, ""},
		"set in two cases":    {&headers.HeaderOps{Set: http.Header{"Host": {"a"}, "host": {"b"}}}, ""},
		"nothing":             {&headers.HeaderOps{Set: http.Header{"Host": {""}}}, ""},
		"placeholder":         {&headers.HeaderOps{Set: http.Header{"Host": {"{env.HOST}"}}}, ""},
		"no host":             {&headers.HeaderOps{Set: http.Header{"Host": {"a b"}}}, ""},
		"another":             {&headers.HeaderOps{Set: http.Header{"X-Host": {"a"}}}, ""},
		"added":               {&headers.HeaderOps{Set: set, Add: http.Header{"host": {"b"}}}, ""},
		"deleted":             {&headers.HeaderOps{Set: set, Delete: []string{"host"}}, ""},
		"deleted by a prefix": {&headers.HeaderOps{Set: set, Delete: []string{"Ho*"}}, ""},
		"deleted by a suffix": {&headers.HeaderOps{Set: set, Delete: []string{"*st"}}, ""},
		"deleted by a part":   {&headers.HeaderOps{Set: set, Delete: []string{"*os*"}}, ""},
		"deleted with all":    {&headers.HeaderOps{Set: set, Delete: []string{"*"}}, ""},
		"others deleted":      {&headers.HeaderOps{Set: set, Delete: []string{"X-*", "*-Host", "Hos"}}, "app.internal"},
		"replaced":            {&headers.HeaderOps{Set: set, Replace: map[string][]headers.Replacement{"HOST": nil}}, ""},
		"replaced with all":   {&headers.HeaderOps{Set: set, Replace: map[string][]headers.Replacement{"*": nil}}, ""},
		"others replaced":     {&headers.HeaderOps{Set: set, Replace: map[string][]headers.Replacement{"X": nil}}, "app.internal"},
	} {
		if got := ConstantHost(&reverseproxy.Handler{Headers: &headers.Handler{Request: test.ops}}); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
	if got := ConstantHost(new(reverseproxy.Handler)); got != "" {
		t.Errorf("a handler without headers: got %q", got)
	}
}
