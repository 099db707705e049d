// SPDX-License-Identifier: Apache-2.0

package poolname

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// readTest reads a pool from a policy that has all of it.
func readTest(policy, _ []byte) (Pool, error) {
	var options struct{ Name, Upstreams, Cookie, Secret, Key string }
	if err := json.Unmarshal(policy, &options); err != nil {
		return Pool{}, err
	}
	p := Pool{Given: options.Name, Default: options.Upstreams, Key: sha256.Sum256([]byte(options.Key + options.Secret))}
	if options.Cookie != "" {
		p.Cookie = Cookie{options.Cookie, sha256.Sum256([]byte(options.Secret))}
	}
	return p, nil
}

// proxying returns a handler over upstreams, with further options of its policy in JSON.
func proxying(upstreams, options string) string {
	if options != "" {
		options = "," + options
	}
	return `{"handler":"reverse_proxy","load_balancing":{"selection_policy":{"policy":"alive","upstreams":"` + upstreams + `"` + options + `}}}`
}

// route returns a route for sets of matchers in JSON, or for all requests without any.
func route(matchers, handlers string) string {
	if matchers != "" {
		matchers = `"match":[` + matchers + `],`
	}
	return `{` + matchers + `"handle":[` + handlers + `]}`
}

// in returns a handler with a route of its own.
func in(route string) string { return `{"handler":"subroute","routes":[` + route + `]}` }

func host(names ...string) string {
	encoded, _ := json.Marshal(names)
	return fmt.Sprintf(`{"host":%s}`, encoded)
}

// Pools of one server share a cookie if a client can send it to both, and one does not
// understand what the other has set: its upstreams differ, or its secret does.
func TestSharedCookies_OfOneServerAndHost(t *testing.T) {
	const lb = `"cookie":"lb"`
	one, two := proxying("one", lb), proxying("two", lb)
	for _, test := range []struct {
		name   string
		routes []string
		want   []string // pools
	}{
		{"other upstreams", []string{route("", one), route("", two)}, []string{"one", "two"}},
		{"in one route", []string{route("", one+","+two)}, []string{"one", "two"}},
		{"other names of the cookie", []string{route("", one), route("", proxying("two", `"cookie":"LB"`))}, nil},
		{"without a cookie", []string{route("", one), route("", proxying("two", ""))}, nil},
		{"the same upstreams", []string{route("", one), route("", one)}, nil},
		{"the same upstreams with other checks", []string{route("", one), route("", proxying("one", lb+`,"key":"x"`))}, nil},
		{"the same upstreams with another secret", []string{route("", one), route("", proxying("one", lb+`,"secret":"x"`))}, []string{"one", "one #2"}},
		{"the same name", []string{route("", proxying("one", lb+`,"name":"shop"`)), route("", proxying("two", lb+`,"name":"shop"`))}, []string{"shop (one)", "shop (two)"}},
		{
			"only those that do not understand each other",
			[]string{route("", one), route("", proxying("three", `"cookie":"x"`)), route("", two), route("", one), route("", proxying("four", ""))},
			[]string{"one", "two"},
		},
		{"a fallback", []string{route("", one), route("", `{"handler":"reverse_proxy","load_balancing":{"selection_policy":{"policy":"header","fallback":{"policy":"alive","upstreams":"two",`+lb+`}}}}`)}, []string{"one", "two"}},

		{"paths of one host", []string{route(host("a.example"), in(route(`{"path":["/x"]}`, one))), route(host("a.example"), in(route(`{"path":["/y"]}`, two)))}, []string{"one", "two"}},
		{"other hosts", []string{route(host("a.example"), in(route("", one))), route(host("b.example"), in(route("", two)))}, nil},
		{"hosts in inner routes", []string{route("", in(route(host("a.example"), one))), route("", in(route(host("b.example"), two)))}, nil},
		{"one of two hosts", []string{route(host("a.example", "b.example"), one), route(host("c.example", "B.example"), two)}, []string{"one", "two"}},
		{"one of two sets", []string{route(host("a.example")+","+host("b.example"), one), route(host("b.example"), two)}, []string{"one", "two"}},
		{"a set for all hosts", []string{route(host("a.example")+`,{"path":["/x"]}`, one), route(host("b.example"), two)}, []string{"one", "two"}},
		{"all hosts", []string{route("", one), route(host("b.example"), two)}, []string{"one", "two"}},
		{"a wildcard", []string{route(host("*.example"), one), route(host("b.example"), two)}, []string{"one", "two"}},
		{"a wildcard of another domain", []string{route(host("*.example"), one), route(host("b.other", "b.c.example"), two)}, nil},
		{"two wildcards", []string{route(host("*.*.example"), one), route(host("b.*.example"), two)}, []string{"one", "two"}},
		{"a placeholder", []string{route(host("{env.HOST}"), one), route(host("b.example"), two)}, []string{"one", "two"}},
		{"hosts within a wildcard", []string{route(host("*.example"), in(route(host("a.example"), one)+","+route(host("b.example"), two)))}, nil},
		{"hosts within the same host", []string{route(host("a.example"), in(route(host("*.example"), one)+","+route("", two)))}, []string{"one", "two"}},
	} {
		var n Names
		n.init()
		n.readApp(Decode([]byte(`{"servers":{"s":{"routes":[`+strings.Join(test.routes, ",")+`]}}}`)), readTest)
		var want []SharedCookie
		if test.want != nil {
			want = []SharedCookie{{"s", "lb", test.want}}
		}
		if !reflect.DeepEqual(n.shared, want) {
			t.Errorf("%s: got %+v, want %+v", test.name, n.shared, want)
		}
	}
}

// Servers are apart, since sites of several servers seldom have the same host. Each shared
// cookie is one entry. Error routes and named routes belong to their server.
func TestSharedCookies_OfEachServer(t *testing.T) {
	pool := func(upstreams, cookie string) string {
		return route("", proxying(upstreams, `"cookie":"`+cookie+`"`))
	}
	config := `{"grace_period":1,"servers":{
		"s2":{"routes":[` + pool("one", "x") + `],"errors":{"routes":[` + pool("two", "x") + `]},"named_routes":{"n":` + pool("three", "x") + `}},
		"s1":{"routes":[` + strings.Join([]string{pool("four", "y"), pool("one", "x"), pool("five", "y"), pool("six", "x"), pool("seven", "z")}, ",") + `]},
		"s3":{"routes":[` + pool("eight", "z") + `]}
	}}`
	var n Names
	n.init()
	n.readApp(Decode([]byte(config)), readTest)
	want := []SharedCookie{
		{"s1", "x", []string{"one", "six"}},
		{"s1", "y", []string{"four", "five"}},
		{"s2", "x", []string{"one", "two", "three"}},
	}
	if !reflect.DeepEqual(n.shared, want) {
		t.Errorf("got %+v, want %+v", n.shared, want)
	}
}
