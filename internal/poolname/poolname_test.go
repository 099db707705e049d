// SPDX-License-Identifier: Apache-2.0

package poolname

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/limits"
)

// Policies are found wherever a config can have them, also as the fallback of another
// one, each with its handler: what a server does first comes first.
func TestFindAll_InTheOrderOfTheConfig(t *testing.T) {
	proxy := func(name, policy string) string {
		return `{"handler":"reverse_proxy","name":"` + name + `","load_balancing":{"selection_policy":` + policy + `}}`
	}
	alive := func(name string) string { return proxy(name, `{"policy":"alive","name":"`+name+`"}`) }
	config := `{"servers":{
		"s2":{"errors":{"routes":[{"handle":[` + alive("five") + `]}]},"routes":[{"handle":[` + alive("four") + `]}]},
		"s1":{"routes":[
			{"handle":[{"handler":"subroute","routes":[{"handle":[` + alive("one") + `,` + proxy("other", `{"policy":"first"}`) + `]}]}]},
			{"handle":[` + proxy("two", `{"policy":"cookie","fallback":{"policy":"alive","name":"two"}}`) + `]},
			{"handle":[` + alive("three") + `]}
		]}
	}}`
	var got []string
	findAll(Decode([]byte(config)), func(policy, handler any, _ place) {
		name, _ := policy.(map[string]any)["name"].(string)
		if of := handler.(map[string]any)["name"]; of != name {
			t.Errorf("the policy %s comes with the handler %v", name, of)
		}
		got = append(got, name)
	})
	if want := []string{"one", "two", "three", "four", "five"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Dynamic sources are named by what they ask for, and else by a hash that tells nothing.
func TestDefault_DynamicSources(t *testing.T) {
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
		got := Default(nil, json.RawMessage(test.source))
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

// A name that is too long is cut at a whole character, and ends in a hash of all of it.
func TestShorten_DifferentTextsStayDifferent(t *testing.T) {
	longest := strings.Repeat("x", limits.MaxName)
	for _, name := range []string{"", "app1:80", longest} {
		if got := shorten(name); got != name {
			t.Errorf("%d bytes: got %q, want it as it is", len(name), got)
		}
	}
	names := make(map[string]string)
	for _, name := range []string{longest + "a", longest + "b", longest + "ab", strings.Repeat("ü", limits.MaxName), "x" + strings.Repeat("ü", limits.MaxName)} {
		got := shorten(name)
		if err := limits.Name(got); err != nil || !strings.HasPrefix(name, got[:100]) || !strings.Contains(got, "… #") {
			t.Errorf("%.20q…: got %q, error %v; want its beginning and a hash", name, got, err)
		}
		if before, known := names[got]; known {
			t.Errorf("%q and %q: both are %q", before, name, got)
		}
		names[got] = name
	}
}
