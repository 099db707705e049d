// SPDX-License-Identifier: Apache-2.0

// Package redact replaces the values of placeholders in texts that are shown.
//
// It must not know what the texts are about. It has no locks: [Values] are learned while
// a config is loaded, and only read after that.
package redact

import (
	"cmp"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// shortest is the number of bytes that a value must have to be replaced: shorter values
// occur in any text by chance, and are no secrets.
const shortest = 4

// secretive matches the placeholders that can stand for a secret. The other global ones
// are of the system and the time.
var secretive = regexp.MustCompile(`\{(?:env|file)\.[^{}]+\}`)

// HasPlaceholder reports whether a text has what looks like a placeholder, so that its
// value is known only when the config is loaded.
func HasPlaceholder(text string) bool {
	_, after, open := strings.Cut(text, "{")
	return open && strings.Contains(after, "}")
}

// Values replaces the values of placeholders in a text by the placeholders. The zero
// value knows none. Learn must not be called at the same time as another method.
type Values struct {
	written  map[string]string // the placeholder for each form of its value
	longest  int               // the length of the longest form
	replacer *strings.Replacer // nil if there is no value
}

// Learn records the values of the placeholders in an option.
func (v *Values) Learn(option string) {
	repl := caddy.NewReplacer()
	for _, placeholder := range secretive.FindAllString(option, -1) {
		value, found := repl.GetString(strings.Trim(placeholder, "{}"))
		if !found || len(value) < shortest {
			continue
		}
		if v.written == nil {
			v.written = make(map[string]string)
		}
		quoted := strconv.Quote(value)
		escaped := url.URL{Path: value}
		for _, form := range []string{
			value, quoted[1 : len(quoted)-1], strings.TrimSpace(value),
			url.QueryEscape(value), url.PathEscape(value), escaped.EscapedPath(),
		} {
			if len(form) >= shortest {
				v.written[form] = placeholder
				v.longest = max(v.longest, len(form))
			}
		}
	}
	if len(v.written) == 0 {
		return
	}
	forms := make([]string, 0, len(v.written))
	for form := range v.written {
		forms = append(forms, form)
	}
	slices.SortFunc(forms, func(a, b string) int { // of two with the same beginning, the longer one first
		return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b))
	})
	pairs := make([]string, 0, 2*len(forms))
	for _, form := range forms {
		pairs = append(pairs, form, v.written[form])
	}
	v.replacer = strings.NewReplacer(pairs...)
}

// Text returns the text with values replaced by their placeholders.
func (v *Values) Text(text string) string {
	if v.replacer == nil {
		return text
	}
	return v.replacer.Replace(text)
}

// Cut returns the first bytes of the text, at most that many, without values of
// placeholders, and whether there are more. It reads no more of the text than needed.
func (v *Values) Cut(text []byte, most int) (begin string, more bool) {
	for size := most + v.longest; ; size *= 2 {
		size = min(size, len(text))
		begin = v.Text(string(text[:size]))
		// The end can be inside a value. A placeholder is often shorter than its value, so
		// more of the text is needed until the end is past what is returned.
		if size == len(text) || len(begin)-v.longest >= most {
			more = len(begin) > most || size < len(text)
			return begin[:min(len(begin), most)], more
		}
	}
}

// Error returns an error whose text has values replaced by their placeholders. It stays
// the same error for errors.Is and errors.As.
func (v *Values) Error(err error) error {
	if err == nil || v.replacer == nil {
		return err
	}
	text := err.Error()
	if shown := v.replacer.Replace(text); shown != text {
		return &redacted{text: shown, err: err}
	}
	return err
}

// redacted is an error with another text.
type redacted struct {
	text string
	err  error
}

// Error returns the text without values.
func (r *redacted) Error() string { return r.text }

// Unwrap returns the error itself.
func (r *redacted) Unwrap() error { return r.err }
