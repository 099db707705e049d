// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"strings"
	"testing"
	"time"
)

// What a percent sign ends is a share. A number without it is a number of upstreams.
func TestFailOpen_ShareOrNumber(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		percent float64
		number  int
	}{"none_up": {}, "off": {}, "50%": {percent: 50}, "0%": {}, "12.5%": {percent: 12.5}, "1": {number: 1}, "50": {number: 50}} {
		if percent, number, err := FailOpen(text); err != nil || percent != want.percent || number != want.number {
			t.Errorf("%q: got %v and %d, error %v, want %+v", text, percent, number, err, want)
		}
	}
	for _, text := range []string{"", "on", "none", "-1%", "101%", "NaN%", "0", "-1", "1.5", "2 ", "{env.N}", "99999999999999999999"} {
		want := "fail_open must be none_up, off, a percentage from 0% to 100%, like 50%, or a whole number of at least 1, like 2; got '" + text + "'"
		if percent, number, err := FailOpen(text); err == nil || err.Error() != want {
			t.Errorf("%q: got %v and %d, error %v, want the error %q", text, percent, number, err, want)
		}
	}
}

// Below 0 % there is nothing, so a group would never join.
func TestSpill_IsAboveZero(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]float64{"70%": 70, "100%": 100, "0.5%": 0.5} {
		if got, err := Spill(text); err != nil || got != want {
			t.Errorf("%q: got %v, error %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0%", "-1%", "100.1%", "70", "0.7", "off", "NaN%", "{env.P}"} {
		want := "spill must be a percentage above 0% and up to 100%, like 70%; got '" + text + "'"
		if got, err := Spill(text); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, error %v, want the error %q", text, got, err, want)
		}
	}
}

// The times of queue and sticky have a shortest and a longest one.
func TestTimes_OfQueueAndSticky(t *testing.T) {
	t.Parallel()
	const (
		timeout = "queue: timeout must be a duration from 1ms to 24h, like 10s; got "
		age     = "sticky: max_age must be a duration from 1s to 400d, like 24h; got "
		unit    = "; a number without a unit is in nanoseconds in JSON: write "
	)
	for _, test := range []struct{ call, got, want string }{
		{"QueueTimeout of the shortest", say(QueueTimeout(MinQueueTimeout)), ""},
		{"QueueTimeout of the longest", say(QueueTimeout(MaxDuration)), ""},
		{"QueueTimeout of nothing", say(QueueTimeout(0)), timeout + "'0s'"},
		{"QueueTimeout without a unit", say(QueueTimeout(10)), timeout + "'10ns'" + unit + `"10s"`},
		{"QueueTimeout too long", say(QueueTimeout(25 * time.Hour)), timeout + "'25h0m0s'"},
		{"ParseQueueTimeout of the shortest", sayOf(ParseQueueTimeout("1ms")), ""},
		{"ParseQueueTimeout of off", sayOf(ParseQueueTimeout("off")), timeout + "'off'"},
		{"ParseQueueTimeout too short", sayOf(ParseQueueTimeout("999us")), timeout + "'999us'"},
		{"ParseQueueTimeout below 0", sayOf(ParseQueueTimeout("-1s")), timeout + "'-1s'"},
		{"MaxAge of the shortest", say(MaxAge(MinMaxAge)), ""},
		{"MaxAge of the longest", say(MaxAge(400 * 24 * time.Hour)), ""},
		{"MaxAge without a unit", say(MaxAge(3600)), age + "'3.6µs'" + unit + `"3600ms"`},
		{"ParseMaxAge of days", sayOf(ParseMaxAge("400d")), ""},
		{"ParseMaxAge too short", sayOf(ParseMaxAge("999ms")), age + "'999ms'"},
		{"ParseMaxAge too long", sayOf(ParseMaxAge("401d")), age + "'401d'"},
		{"ParseMaxAge without a unit", sayOf(ParseMaxAge("3600")), age + "'3600'"},
	} {
		if test.got != test.want {
			t.Errorf("%s: got %q, want %q", test.call, test.got, test.want)
		}
	}
}

// The name of a cookie is a token of RFC 6265. Names with a meaning for browsers would not
// work everywhere.
func TestCookieName_IsATokenWithoutAMeaning(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"lb", "x", "LB_2", "a.b-c~d", "!#$%&'*+-.^_`|~", "__Hos", "_Secure-lb", "a__Host-", strings.Repeat("x", MaxName)} {
		if err := CookieName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "a b", "a=b", "a;b", "a,b", `"a"`, "a\tb", "a\n", "a/b", "a@b", "a[b]", "{env.N}", "bücher", "a\x00", "a\x7f", strings.Repeat("x", MaxName+1)} {
		want := "sticky: the name of the cookie must be of letters, digits and !#$%&'*+-.^_`|~ only, and of 200 bytes at most, like lb; got '" + name + "'"
		if err := CookieName(name); say(err) != want {
			t.Errorf("%q: got %v, want %s", name, err, want)
		}
	}
	for name, prefix := range map[string]string{"__Host-lb": "__Host-", "__host-lb": "__Host-", "__SECURE-": "__Secure-", "__Http-lb": "__Http-", "__Host-Http-lb": "__Host-"} {
		want := "sticky: the name of the cookie must not begin with " + prefix + ": browsers would drop such a cookie wherever it is set without TLS; got '" + name + "'"
		if err := CookieName(name); say(err) != want {
			t.Errorf("%q: got %v, want %s", name, err, want)
		}
	}
}
