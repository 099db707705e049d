// SPDX-License-Identifier: Apache-2.0

package limits

import "testing"

// A count that can be off is -1 for it in JSON, and the word in a Caddyfile, but never 0.
func TestCounts_CanBeOff(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		check func(int) error
		parse func(string) (int, error)
		most  int
	}{{Retries, ParseRetries, 100}, {EjectAfter, ParseEjectAfter, 1000}, {Probers, ParseProbers, MaxProbers}} {
		for _, count := range []int{Off, 1, test.most} {
			if err := test.check(count); err != nil {
				t.Errorf("%d: %v", count, err)
			}
		}
		for _, count := range []int{-2, 0, test.most + 1} {
			if test.check(count) == nil {
				t.Errorf("%d of %d at most: no error", count, test.most)
			}
		}
		if got, err := test.parse("off"); err != nil || got != Off {
			t.Errorf("off: got %d, %v, want %d", got, err, Off)
		}
		for _, text := range []string{"-1", "0", "", "1.0"} {
			if got, err := test.parse(text); err == nil {
				t.Errorf("%q: got %d, want an error", text, got)
			}
		}
	}
}

// Other counts have no off: neither the word nor the number is one. The error names the
// option and the range.
func TestCounts_WithoutOff(t *testing.T) {
	t.Parallel()
	const (
		limits  = "max_requests must be a whole number from 1 to 1000000, like 20; got "
		lengths = "queue: length must be a whole number from 1 to 100000, like 1000; got "
	)
	of := func(count int) error { return Limit("max_requests: default", count) }
	for _, test := range []struct{ call, got, want string }{
		{"Limit of 1", say(of(1)), ""},
		{"Limit of the largest", say(of(MaxLimit)), ""},
		{"Limit of 0", say(of(0)), "max_requests: default must be a whole number from 1 to 1000000, like 20; got 0"},
		{"Limit of off", say(of(Off)), "max_requests: default must be a whole number from 1 to 1000000, like 20; got -1"},
		{"Limit too large", say(of(MaxLimit + 1)), "max_requests: default must be a whole number from 1 to 1000000, like 20; got 1000001"},
		{"ParseLimit of 1", sayOf(ParseLimit("1")), ""},
		{"ParseLimit of the largest", sayOf(ParseLimit("1000000")), ""},
		{"ParseLimit of 0", sayOf(ParseLimit("0")), limits + "'0'"},
		{"ParseLimit below 0", sayOf(ParseLimit("-1")), limits + "'-1'"},
		{"ParseLimit of off", sayOf(ParseLimit("off")), limits + "'off'"},
		{"ParseLimit of an upstream", sayOf(ParseLimit("app1:80")), limits + "'app1:80'"},
		{"ParseLimit too large", sayOf(ParseLimit("1000001")), limits + "'1000001'"},

		{"QueueLength of 1", say(QueueLength(1)), ""},
		{"QueueLength of the default", say(QueueLength(DefaultQueueLength)), ""},
		{"QueueLength of the longest", say(QueueLength(MaxQueueLength)), ""},
		{"QueueLength of 0", say(QueueLength(0)), lengths + "0"},
		{"QueueLength too long", say(QueueLength(MaxQueueLength + 1)), lengths + "100001"},
		{"ParseQueueLength of the longest", sayOf(ParseQueueLength("100000")), ""},
		{"ParseQueueLength of 0", sayOf(ParseQueueLength("0")), lengths + "'0'"},
		{"ParseQueueLength of a duration", sayOf(ParseQueueLength("10s")), lengths + "'10s'"},
	} {
		if test.got != test.want {
			t.Errorf("%s: got %q, want %q", test.call, test.got, test.want)
		}
	}
}
