// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"testing"
	"time"
)

// A status is a code, a class or a range. A range includes both ends, and no code below
// 200 is a final answer.
func TestParseStatus_AcceptsCodeClassAndRange(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]StatusRange{
		"200":     {200, 200},
		"204":     {204, 204},
		"599":     {599, 599},
		"2xx":     {200, 299},
		"3xx":     {300, 399},
		"5xx":     {500, 599},
		"200-399": {200, 399},
		"200-200": {200, 200},
		"200-599": {200, 599},
	} {
		if got, err := ParseStatus("status", text); err != nil || got != want {
			t.Errorf("ParseStatus(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
}

// Any other text is an error that names all three forms, instead of a check that never
// passes.
func TestParseStatus_ErrorNamesTheForms(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "ok", "x", "xx", "-", "--", "-200", "200-", "-xx", "2x", "2xxx", "xx2", "2XX", "2xx ", " 200",
		"0", "99", "100", "101", "199", "600", "1000", "1xx", "6xx", "0xx", "20xx", "-2xx",
		"100-299", "199-299", "200-600", "299-200", "2xx-3xx", "200-3xx", "2xx-399", "200-299-399", "200--299",
		"200,204", "200 204", "+204", "+2xx", "0204", "02xx", "200-+299", "+200-299", "2e2", "0xc8", "200.0", "99999999999999999999", "200-99999999999999999999",
		"{env.STATUS}",
	} {
		want := "status must be a code from 200 to 599, a class like 2xx or a range like 200-399; got '" + text + "'"
		if got, err := ParseStatus("status", text); err == nil || err.Error() != want {
			t.Errorf("ParseStatus(%q) = %v, %v; want the error %q", text, got, err, want)
		}
	}
}

// A status that accuses has the forms of ParseStatus; off stands alone, in a list of its own.
func TestParseObserved_HasTheFormsOfStatus(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]StatusRange{"502": {502, 502}, "5xx": {500, 599}, "500-504": {500, 504}} {
		if got, err := ParseObserved(text); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "off", "1xx", "600", "504-502"} {
		want := "observe: status must be off alone, or a code from 200 to 599, a class like 2xx or a range like 200-399; got '" + text + "'"
		if got, err := ParseObserved(text); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, %v, want the error %q", text, got, err, want)
		}
	}
}

// Auto is 0, off is below 0, and all else is a duration of the range.
func TestParseStall_AutoOffOrDuration(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"auto": 0, "off": -1, "10ms": 10 * time.Millisecond, "1.5s": 1500 * time.Millisecond, "24h": 24 * time.Hour, "1d": 24 * time.Hour,
	} {
		if got, err := ParseStall(text); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "9ms", "24h1ns", "-1s", "Auto", "500"} {
		want := "observe: stall must be auto, off or a duration from 10ms to 24h0m0s, like 500ms; got '" + text + "'"
		if got, err := ParseStall(text); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, %v, want the error %q", text, got, err, want)
		}
	}
}

// A count that can be off is -1 for it in JSON, and the word in a Caddyfile, but never 0.
func TestCounts_CanBeOff(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		check func(int) error
		parse func(string) (int, error)
		most  int
	}{{Retries, ParseRetries, 100}, {EjectAfter, ParseEjectAfter, 1000}} {
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

// A share is a number from above 0 to 1.
func TestEjectShare_IsAboveZero(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]float64{"100%": 1, "50%": 0.5, "0.5%": 0.005} {
		if got, err := EjectShare(text); err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"0%", "-1%", "100.1%", "30", "NaN%"} {
		if got, err := EjectShare(text); err == nil {
			t.Errorf("%s: got %v, want an error", text, got)
		}
	}
}
