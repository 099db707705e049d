// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"testing"
	"time"
)

// Off is 0, and all else is a duration of the range.
func TestParseStale_OffOrDuration(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{"off": 0, "1s": time.Second, "90m": 90 * time.Minute, "1d": 24 * time.Hour} {
		if got, err := ParseStale(text); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "0s", "999ms", "24h1ns", "-1s", "Off", "3600"} {
		want := "stale must be off or a duration from 1s to 24h, like 1h; got '" + text + "'"
		if got, err := ParseStale(text); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, %v, want the error %q", text, got, err, want)
		}
	}
}

// In JSON, 0 is off. A number without a unit is explained.
func TestStale_ErrorsHaveRangeAndValue(t *testing.T) {
	t.Parallel()
	const outside = "stale must be a duration from 1s to 24h, like 1h, or 0 for off; got "
	for value, want := range map[time.Duration]string{
		0: "", time.Second: "", MaxDuration: "",
		-1:                     outside + "'-1ns'",
		999 * time.Millisecond: outside + "'999ms'",
		MaxDuration + 1:        outside + "'24h0m0.000000001s'",
		60:                     outside + `'60ns'; a number without a unit is in nanoseconds in JSON: write "60s"`,
	} {
		if got := say(Stale(value)); got != want {
			t.Errorf("%s: got %q, want %q", value, got, want)
		}
	}
}
