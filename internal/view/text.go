// SPDX-License-Identifier: Apache-2.0

package view

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// ValidText returns text that is valid UTF-8, as labels and JSON must be. Invalid bytes
// are written like \xff, so that addresses that differ are still told apart.
func ValidText(text string) string {
	if utf8.ValidString(text) {
		return text
	}
	var valid strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&valid, `\x%02x`, text[0])
		case r == '\\':
			valid.WriteString(`\\`)
		default:
			valid.WriteString(text[:size])
		}
		text = text[size:]
	}
	return valid.String()
}

// Few returns the first names, and how many more there are, so that they fit into a line.
func Few(names []string) []string {
	const most = 10
	if len(names) <= most {
		return names
	}
	return append(slices.Clone(names[:most]), fmt.Sprintf("and %d more", len(names)-most))
}

// Cut returns at most so many bytes of a text, as valid UTF-8, and says so by dots.
func Cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	end := most - len("…")
	if end <= 0 {
		return ""
	}
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}

// count returns a number of things in words, such as "1 member" or "12 members".
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
