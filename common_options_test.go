// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/probe"
)

// The options that errors list as those of every check are the fields of a check, and
// the parser takes each of them itself.
func TestCommonOptions_AreThoseOfEveryCheck(t *testing.T) {
	var want []string
	for field := range reflect.TypeFor[HealthCheck]().Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" && name != "probe" {
			want = append(want, name)
		}
	}
	if got := probe.CommonOptions(); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, option := range probe.CommonOptions() {
		err := new(Selection).UnmarshalCaddyfile(caddyfile.NewTestDispenser("alive {\ncheck tcp {\n" + option + " a b\n}\n}"))
		if err == nil || strings.Contains(err.Error(), "unrecognized") {
			t.Errorf("%s: got %v, want an error of its own", option, err)
		}
	}
}
