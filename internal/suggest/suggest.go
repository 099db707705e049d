// SPDX-License-Identifier: Apache-2.0

// Package suggest says what to write in place of a mistyped or misplaced option of a
// Caddyfile, and which upstream may be meant by a name that none has.
//
// It must not read a configuration: it works on texts. It has no state and no locks.
package suggest

import (
	"fmt"
	"strings"
)

// maxLength bounds the names that are compared, in bytes, because the time grows with
// the product of the two lengths.
const maxLength = 256

// shortestPrefix is how many characters a name needs to count as the beginning of a
// longer one.
const shortestPrefix = 3

// Close returns the known name that is closest to a name, or "" if none is close. Case,
// hyphens, underscores and spaces do not count, and two adjacent characters in the
// wrong order count as one mistake. Close means one mistake in a name of up to 4
// characters, two in one of up to 8, and three in a longer one. A known name that
// begins with the given one is close, too. Among equals, the first wins. A known name
// is its own closest one.
func Close(name string, known []string) string {
	given := normalize(name)
	if len(given) == 0 || len(name) > maxLength {
		return ""
	}
	allowed := 3
	switch {
	case len(given) <= 4:
		allowed = 1
	case len(given) <= 8:
		allowed = 2
	}
	best, least := "", allowed+1
	prefixed, shortest := "", maxLength+1
	for _, candidate := range known {
		if candidate == name {
			return candidate
		}
		if len(candidate) > maxLength {
			continue
		}
		other := normalize(candidate)
		if d := distance(given, other); d < least && d < len(other) {
			best, least = candidate, d
		}
		if len(given) >= shortestPrefix && len(other) < shortest && strings.HasPrefix(string(other), string(given)) {
			prefixed, shortest = candidate, len(other)
		}
	}
	if best == "" {
		return prefixed
	}
	return best
}

// normalize returns the characters of a name that count.
func normalize(name string) []rune {
	return []rune(strings.NewReplacer("-", "", "_", "", " ", "").Replace(strings.ToLower(name)))
}

// distance counts the mistakes that turn one text into the other: characters added,
// left out or replaced, and adjacent characters exchanged.
func distance(a, b []rune) int {
	older, old, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range old {
		old[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replaced := old[j-1]
			if a[i-1] != b[j-1] {
				replaced++
			}
			row[j] = min(replaced, old[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], older[j-2]+1)
			}
		}
		older, old, row = old, row, older
	}
	return old[len(b)]
}

// DidYouMean returns the end of an error that asks for the known name that is close to
// one. It is empty if none is close.
func DidYouMean(name string, known []string) string {
	if meant := Close(name, known); meant != "" && meant != name {
		return fmt.Sprintf("; did you mean '%s'?", meant)
	}
	return ""
}

// Enumerate joins names in a sentence.
func Enumerate(names []string) string {
	last := len(names) - 1
	if last < 1 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:last], ", ") + " and " + names[last]
}
