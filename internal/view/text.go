// SPDX-License-Identifier: Apache-2.0

package view

import (
	"fmt"
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
