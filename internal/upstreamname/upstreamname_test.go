// SPDX-License-Identifier: Apache-2.0

package upstreamname

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

// listOf returns the upstreams of a handler with these dial addresses, of which "dynamic"
// stands for a dynamic source.
func listOf(t *testing.T, dials ...string) Listed {
	t.Helper()
	var h reverseproxy.Handler
	for _, dial := range dials {
		if dial == "dynamic" {
			h.DynamicUpstreamsRaw = json.RawMessage(`{"source":"a","name":"app"}`)
			continue
		}
		h.Upstreams = append(h.Upstreams, &reverseproxy.Upstream{Dial: dial})
	}
	listed, err := List(&h)
	if err != nil {
		t.Fatal(err)
	}
	return listed
}

// say returns the text of an error, and "" if there is none.
func say(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// A range gives its number to all addresses in it, on any port. The narrowest one wins,
// in whichever order they are given, and a name wins over all of them.
func TestNumbers_NameThenNarrowestRange(t *testing.T) {
	t.Setenv("ALIVE_TEST_APP", "10.2.0.9:80")
	t.Setenv("ALIVE_TEST_NET", "10.9.0.0/16")
	listed := listOf(t, "10.2.0.1:80", "10.2.0.2:80", "app1:80", "{env.ALIVE_TEST_APP}", "unix//run/app.sock", "dynamic")
	numbers, err := listed.Numbers(map[string]int{
		"10.0.0.0/8": 8, "10.2.0.0/16": 16, "10.2.3.0/24": 24, "10.2.3.4/32": 32, "10.2.0.1": 1, "app1": 2,
		"2001:db8::/32": 132, "2001:db8:1::/48": 148, "{env.ALIVE_TEST_NET}": 9,
	})
	if err != nil {
		t.Fatal(err)
	}
	for dial, want := range map[string]int{
		"10.2.0.1:80":             1, // listed, and named
		"10.2.0.2:80":             16,
		"10.2.0.1:81":             16, // another upstream than the one that is named
		"{env.ALIVE_TEST_APP}":    16,
		"app1:80":                 2,
		"10.1.2.3:80":             8,
		"10.2.255.255:8080":       16,
		"10.2.3.5:80":             24,
		"10.2.3.4:80":             32,
		"10.9.0.1:80":             9,
		"tcp/10.2.3.4:80":         32,
		"tcp4/10.2.3.4:80":        32,
		"[::ffff:10.2.3.4]:80":    32,
		"[2001:db8::1]:80":        132,
		"[2001:db8:1::1]:80":      148,
		"[2001:db8:1::1%eth0]:80": 148,
		"11.0.0.1:80":             0,
		"[2001:db9::1]:80":        0,
		"app2:80":                 0,
		"unix//run/app.sock":      0,
		"unix//10.2.3.4":          0,
		"{http.request.host}:80":  0,
		"10.2.3.4.example.com:80": 0,
		"10.2.3.4":                32,
		"":                        0,
		"fd/3":                    0,
	} {
		if got, given := numbers.Of(dial); got != want || given != (want != 0) {
			t.Errorf("%s: got %d, given %t, want %d", dial, got, given, want)
		}
	}
	if number, given := (Numbers{}).Of("10.2.0.1:80"); number != 0 || given {
		t.Errorf("without any: got %d, given %t", number, given)
	}
}

// Without a dynamic source, a range stands for those in the list.
func TestNumbers_RangesOfTheList(t *testing.T) {
	numbers, err := listOf(t, "10.2.0.1:80", "10.2.0.2:80", "10.3.0.1:80").Numbers(map[string]int{"10.2.0.0/16": 5, "10.2.0.2": 0})
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for _, dial := range []string{"10.2.0.1:80", "10.2.0.2:80", "10.3.0.1:80"} {
		number, given := numbers.Of(dial)
		if !given {
			number = -1
		}
		got = append(got, number)
	}
	if want := []int{5, 0, -1}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// What an option cannot name is rejected, with what it can.
func TestNumbers_ErrorsSayWhatCanBeNamed(t *testing.T) {
	t.Setenv("ALIVE_TEST_NET", "10.2.0.0/16")
	t.Setenv("ALIVE_TEST_SECRET", "10.2.0.7/hunter2")
	const (
		form   = ": a range of addresses is like 10.2.0.0/16 or 2001:db8::/32, without a port"
		ranges = "a range of addresses, like 10.2.0.0/16, or 10.2.0.5/32 for one"
		unused = ": no upstream in the list of reverse_proxy has an address in this range, and there is no dynamic source that could bring one"
	)
	static := []string{"10.2.0.5:80", "app1:80"}
	dynamic := []string{"dynamic"}
	both := append(static, "dynamic")
	for _, test := range []struct {
		list  []string
		names []string
		want  string
	}{
		{dynamic, []string{"10.2.0.0/16"}, ""},
		{dynamic, []string{"10.2.0.0/16", "2001:db8::/32", "0.0.0.0/0", "::/0"}, ""},
		{static, []string{"10.2.0.0/16"}, ""},
		{static, []string{"10.2.0.5", "10.2.0.5/32"}, ""},
		{both, []string{"10.3.0.0/16", "app1"}, ""},

		{static, []string{"10.3.0.0/16"}, "10.3.0.0/16" + unused},
		{static, []string{"2001:db8::/32"}, "2001:db8::/32" + unused},
		{nil, []string{"10.2.0.0/16"}, "10.2.0.0/16" + unused},
		{nil, []string{"app1"}, "app1: only upstreams in the list of reverse_proxy can be named, and it is empty"},
		{static, []string{"app2:80"}, "app2:80 is not one of the upstreams, which are 10.2.0.5:80, app1:80; did you mean 'app1:80'?"},

		{dynamic, []string{"app1"}, "app1: upstreams of a dynamic source are named by " + ranges},
		{dynamic, []string{"10.2.0.5"}, "10.2.0.5: upstreams of a dynamic source are named by a range of addresses: write 10.2.0.5/32 for this one, whatever its port"},
		{dynamic, []string{"[2001:db8::1]:80"}, "[2001:db8::1]:80: upstreams of a dynamic source are named by a range of addresses: write 2001:db8::1/128 for this one, whatever its port"},
		{both, []string{"10.2.0.6:80"}, "10.2.0.6:80 is not one of the upstreams, which are 10.2.0.5:80, app1:80; did you mean '10.2.0.5:80'?; those of the dynamic source are named by a range of addresses: write 10.2.0.6/32 for this one, whatever its port"},
		{both, []string{"elsewhere.example.com"}, "elsewhere.example.com is not one of the upstreams, which are 10.2.0.5:80, app1:80; those of the dynamic source are named by " + ranges},

		{dynamic, []string{"10.2.0.7/16"}, "10.2.0.7/16: write 10.2.0.0/16 for the whole range, or 10.2.0.7/32 for the one address"},
		{dynamic, []string{"2001:db8::7/32"}, "2001:db8::7/32: write 2001:db8::/32 for the whole range, or 2001:db8::7/128 for the one address"},
		{dynamic, []string{"10.2.0.0/33"}, "10.2.0.0/33" + form},
		{dynamic, []string{"10.2/16"}, "10.2/16" + form},
		{dynamic, []string{"10.2.0.0/"}, "10.2.0.0/" + form},
		{dynamic, []string{"10.2.0.0/255.255.0.0"}, "10.2.0.0/255.255.0.0" + form},
		{dynamic, []string{"10.2.0.0/16:80"}, "10.2.0.0/16:80" + form},
		{dynamic, []string{"[2001:db8::]/32"}, "[2001:db8::]/32" + form},
		{dynamic, []string{"fe80::%eth0/64"}, "fe80::%eth0/64" + form},
		{dynamic, []string{"::ffff:10.2.0.0/112"}, "::ffff:10.2.0.0/112: write a range of IPv4 addresses as one, like 10.2.0.0/16"},
		{dynamic, []string{"{env.ALIVE_TEST_SECRET}"}, "{env.ALIVE_TEST_SECRET}: what its placeholders stand for is no range of addresses, like 10.2.0.0/16 or 2001:db8::/32"},

		{dynamic, []string{"10.2.0.0/16", "{env.ALIVE_TEST_NET}"}, "10.2.0.0/16 and {env.ALIVE_TEST_NET} are the same range of addresses"},
		{dynamic, []string{"2001:DB8::/32", "2001:db8::/32"}, "2001:DB8::/32 and 2001:db8::/32 are the same range of addresses"},
		{static, []string{"app1", "http://app1"}, "app1 and http://app1 are the same upstream"},
	} {
		configured := make(map[string]int)
		for i, name := range test.names {
			configured[name] = i + 1
		}
		if _, err := listOf(t, test.list...).Numbers(configured); say(err) != test.want {
			t.Errorf("%v of %v\n got error %v\nwant error %s", test.names, test.list, err, test.want)
		}
	}
}

// Groups are numbered in their order. An upstream is in one of them once, also if it is
// named in another way, and one at least is in none.
func TestGroups_HaveEachUpstreamOnce(t *testing.T) {
	list := []string{"10.2.0.1:80", "10.2.0.2:80", "app1:80", "app2:80"}
	const all = "every upstream is a backup; at least one must be a primary"
	for _, test := range []struct {
		list   []string
		groups [][]string
		want   []int // by position
		err    string
	}{
		{list, nil, []int{0, 0, 0, 0}, ""},
		{list, [][]string{{"app1"}, {"10.2.0.2", "app2"}}, []int{0, 2, 1, 2}, ""},
		{list, [][]string{{"10.2.0.0/16"}, {"10.2.0.1:80"}, {"app1"}}, []int{2, 1, 3, 0}, ""},
		{append([]string{"dynamic"}, list...), [][]string{{"10.2.0.0/16", "app1", "app2"}}, []int{1, 1, 1, 1}, ""},

		{list, [][]string{{"app1", "app1"}}, nil, "app1 is given twice"},
		{list, [][]string{{"app1"}, {"app2", "app1"}}, nil, "app1 is given twice"},
		{list, [][]string{{"app1"}, {"app1:80"}}, nil, "app1 and app1:80 are the same upstream"},
		{list, [][]string{{"10.2.0.0/16"}, {"10.2.0.0/16"}}, nil, "10.2.0.0/16 is given twice"},
		{list, [][]string{{"app1", "app2"}, {"10.2.0.1", "10.2.0.2"}}, nil, all},
		{list, [][]string{{"10.0.0.0/8"}, {"app1", "app2"}}, nil, all},
		{list[:1], [][]string{{"10.2.0.1"}}, nil, all},
		{list, [][]string{{"app3:80"}}, nil, "app3:80 is not one of the upstreams, which are 10.2.0.1:80, 10.2.0.2:80, app1:80, app2:80; did you mean 'app1:80'?"},
	} {
		groups, err := listOf(t, test.list...).Groups(test.groups)
		if say(err) != test.err {
			t.Errorf("%v\n got error %v\nwant error %s", test.groups, err, test.err)
			continue
		}
		for i, want := range test.want {
			if got, _ := groups.Of(list[i]); got != want {
				t.Errorf("%v: %s is in group %d, want %d", test.groups, list[i], got, want)
			}
		}
	}
}

// All weights 0 is an error, however the upstreams are named, as far as all are known.
func TestWeights_OneIsAboveZero(t *testing.T) {
	const zero = "every upstream has the weight 0, so none would ever get a request; give at least one a weight above 0"
	for _, test := range []struct {
		list    []string
		weights map[string]int
		want    string
	}{
		{[]string{"10.2.0.1:80", "10.2.0.2:80"}, map[string]int{"10.2.0.0/16": 0}, zero},
		{[]string{"10.2.0.1:80", "10.2.0.2:80"}, map[string]int{"10.2.0.0/16": 0, "10.2.0.1": 1}, ""},
		{[]string{"10.2.0.1:80", "10.3.0.2:80"}, map[string]int{"10.2.0.0/16": 0}, ""},
		{[]string{"10.2.0.1:80", "dynamic"}, map[string]int{"10.2.0.0/16": 0}, ""},
		{[]string{"dynamic"}, map[string]int{"0.0.0.0/0": 0}, ""},
	} {
		if _, err := listOf(t, test.list...).Weights(test.weights); say(err) != test.want {
			t.Errorf("%v of %v: got error %v, want %q", test.weights, test.list, err, test.want)
		}
	}
}

// Primaries are the upstreams in no group that can get requests at all.
func TestPrimaries_AreKnownWithoutADynamicSource(t *testing.T) {
	weights, groups := NumbersOf(map[string]int{"a:80": 0, "b:80": 3}), NumbersOf(map[string]int{"d:80": 1})
	for _, test := range []struct {
		list  []string
		count int
		known bool
	}{
		{[]string{"a:80", "b:80", "c:80", "d:80"}, 2, true},
		{[]string{"b:80", "b:80", "c:80"}, 3, true},
		{[]string{"b:80", "dynamic"}, 1, false},
		{nil, 0, true},
	} {
		if count, known := listOf(t, test.list...).Primaries(weights, groups); count != test.count || known != test.known {
			t.Errorf("%v: got %d, known %t, want %d, known %t", test.list, count, known, test.count, test.known)
		}
	}
}

// A name is noted once, and so is a range, however it is written.
func TestNote_SameInAnotherWay(t *testing.T) {
	for _, test := range []struct {
		names []string
		want  string
	}{
		{[]string{"app1", "app2", "10.2.0.0/16", "10.2.0.0/24", "10.2.0.0", "{env.NET}/16"}, ""},
		{[]string{"app1", "app1:80"}, "app1 and app1:80 are the same upstream"},
		{[]string{"2001:DB8::/32", "2001:db8::/32"}, "2001:DB8::/32 and 2001:db8::/32 are the same range of addresses"},
		{[]string{"10.2.0.7/16"}, "10.2.0.7/16: write 10.2.0.0/16 for the whole range, or 10.2.0.7/32 for the one address"},
		{[]string{"ftp://app1"}, "ftp://app1: not an address that reverse_proxy accepts"},
	} {
		var given Given
		var err error
		for _, name := range test.names {
			if err = given.Note(name); err != nil {
				break
			}
		}
		if say(err) != test.want {
			t.Errorf("%v: got error %v, want %q", test.names, err, test.want)
		}
	}
}

// Addresses are those of dials, and a range in one form.
func TestAddresses_OfARange(t *testing.T) {
	t.Setenv("ALIVE_TEST_NET", "2001:DB8::/32")
	for name, want := range map[string][]string{
		"app1": {"app1:80"}, "app1:80-81": {"app1:80", "app1:81"}, "10.2.0.0/16": {"10.2.0.0/16"},
		"2001:DB8::/32": {"2001:db8::/32"}, "{env.ALIVE_TEST_NET}": {"2001:db8::/32"},
	} {
		if got := Addresses(name); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}
