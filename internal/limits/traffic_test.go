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
		want := "observe: stall must be auto, off or a duration from 10ms to 24h, like 500ms; got '" + text + "'"
		if got, err := ParseStall(text); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, %v, want the error %q", text, got, err, want)
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
