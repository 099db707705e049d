// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// The screen has the time of what it shows. What is old has a line that says so, and why, and no
// colours. The screen is cleared once, and then changes in place.
func TestWatch_MarksWhatIsOld(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	last := listed(poolOf("shop", 1, 2)...)
	w := &watcher{client: &client{address: "localhost:2019"}, last: &last, at: at}
	s := screen{columns: 80, lines: 24, colours: true}
	for _, tc := range []struct {
		rule    string
		age     time.Duration
		problem error
		want    string
		colours int
	}{
		{"new", time.Second, nil, clearScreen + red + "03:04:05 UTC  2 upstreams in 1 pool, 1 down, 1 up, 0 in flight" + plain + clearLine + "\n", 3},
		{"waiting", oldAfter - 1, nil, home + red + "03:04:05 UTC  2 ", 3},
		{"no answer", 14 * time.Second, nil, home + boldRed + "!! this is how it was 14s ago, at 03:04:05 UTC: Caddy at localhost:2019 does not" + plain + clearLine + "\n" + boldRed + "answer", 2},
		{"an error", time.Second, errors.New("refused"), home + boldRed + "!! this is how it was 1s ago, at 03:04:05 UTC: refused" + plain + clearLine + "\n03:04:05 UTC  2 upstreams", 1},
		{"new again", 0, nil, home + red + "03:04:05 UTC  2 ", 3},
	} {
		w.problem = tc.problem
		got := string(w.frame(s, at.Add(tc.age)))
		if !strings.HasPrefix(got, tc.want) || !strings.HasSuffix(got, clearLine+"\n"+clearBelow) || strings.Count(got, plain) != tc.colours {
			t.Errorf("%s: got %q, want %q and %d colours", tc.rule, got, tc.want, tc.colours)
		}
	}
}

// The screen never has more lines than the terminal, with the warning too, and says how many do
// not fit.
func TestWatch_FitsTheScreen(t *testing.T) {
	last := listed(append(poolOf("big", 46, 200), poolOf("many", 100, 200)...)...)
	for i := range last.rows {
		last.rows[i].Why += strings.Repeat("!", i) // no two are equal
	}
	w := &watcher{client: &client{}, last: &last, at: time.Now(), problem: errors.New(strings.Repeat("long ", 30))}
	for _, lines := range []int{1, 2, 5, 24, 50} {
		for _, all := range []bool{false, true} {
			w.all = all
			got := string(w.frame(screen{columns: 80, lines: lines}, time.Now()))
			if n := strings.Count(got, "\n"); n > max(1, lines-1) || !strings.Contains(got, "more lines do not fit") {
				t.Errorf("%d lines: shows %d:\n%s", lines, n, got)
			}
		}
	}
}

// A terminal is what the environment says: a dumb one has neither colours nor a cursor that can be
// moved.
func TestScreen_IsWhatTheEnvironmentSays(t *testing.T) {
	for env, want := range map[[2]string]screen{
		{"xterm", ""}:  {80, 24, true, true},
		{"xterm", "1"}: {80, 24, false, true},
		{"dumb", ""}:   {80, 24, false, false},
		{"", ""}:       {80, 24, true, true},
	} {
		t.Setenv("TERM", env[0])
		t.Setenv("NO_COLOR", env[1])
		if got := newScreen(80, 24); got != want {
			t.Errorf("TERM=%q NO_COLOR=%q: %+v, want %+v", env[0], env[1], got, want)
		}
	}
}
