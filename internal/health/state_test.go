// SPDX-License-Identifier: Apache-2.0

package health

import (
	"testing"
	"time"
)

func settings() Settings {
	return Settings{
		Interval:     5 * time.Second,
		FastInterval: time.Second,
		DownInterval: 10 * time.Second,
		Timeout:      2 * time.Second,
		Passes:       2,
		Fails:        3,
	}
}

// Each letter is a result, P a pass and F a fail; want has the status after
// each: u for up, d for down.
func TestState_OnlyResultsInARowChangeTheStatus(t *testing.T) {
	for _, tc := range []struct {
		rule          string
		results, want string
		passes, fails int
	}{
		{"the first result decides: a pass", "P", "u", 2, 3},
		{"the first result decides: a fail", "F", "d", 2, 3},
		{"three in a row take it down", "PFFF", "uuud", 2, 3},
		{"a pass in between starts the count anew", "PFPPFPPPF", "uuuuuuuuu", 2, 3},
		{"fails that are not in a row never add up", "PFFPFFPFFP", "uuuuuuuuuu", 2, 3},
		{"one pass is enough while it was never up", "FFP", "ddu", 2, 3},
		{"later it takes passes in a row", "PFFFPFPP", "uuuddddu", 2, 3},
		{"a fail in between starts the passes anew", "PFFFPFPFPP", "uuuddddddu", 2, 3},
		{"after a flip the streak begins at zero", "PFFFPPFFPFFF", "uuudduuuuuud", 2, 3},
		{"one of each flips at once", "PFPFP", "ududu", 1, 1},
		{"fails go on being counted while down", "PFFFFFFFP", "uuudddddd", 2, 3},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			set := settings()
			set.Passes, set.Fails = tc.passes, tc.fails
			var s state
			var got []byte
			for _, r := range tc.results {
				before := s.status
				changed := s.record(r == 'P', false, &set)
				if changed != (s.status != before) {
					t.Fatalf("after %q: record says changed %v, status went from %v to %v", got, changed, before, s.status)
				}
				got = append(got, s.status.String()[0])
			}
			if string(got) != tc.want {
				t.Errorf("%s: got %s, want %s", tc.results, got, tc.want)
			}
		})
	}
}
