// SPDX-License-Identifier: Apache-2.0

// Package redact keeps the values of placeholders out of texts that people see.
// It knows nothing of what the texts are about.
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

// shortest is how many bytes a value needs to be looked for: a shorter one would be
// found everywhere, and hides nothing.
const shortest = 4

// secretive are the placeholders that can stand for a secret. The other global ones
// are of the system and the time.
var secretive = regexp.MustCompile(`\{(?:env|file)\.[^{}]+\}`)

// HasPlaceholder reports whether a text has what looks like a placeholder, so that its
// value is known only when the config is loaded.
func HasPlaceholder(text string) bool {
	_, after, open := strings.Cut(text, "{")
	return open && strings.Contains(after, "}")
}

// Values knows what placeholders stand for, and puts the placeholder back where a
// text has its value. The zero value knows none. It is not safe to call Learn
// together with the other methods.
type Values struct {
	written  map[string]string // the placeholder, by each form of its value
	longest  int               // the length of the longest form
	replacer *strings.Replacer // nil while there is none
}

// Learn takes note of the placeholders in the value of an option.
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
	slices.SortFunc(forms, func(a, b string) int { // of two that begin alike, the longer one first
		return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b))
	})
	pairs := make([]string, 0, 2*len(forms))
	for _, form := range forms {
		pairs = append(pairs, form, v.written[form])
	}
	v.replacer = strings.NewReplacer(pairs...)
}

// Text returns the text with the placeholders in place of their values.
func (v *Values) Text(text string) string {
	if v.replacer == nil {
		return text
	}
	return v.replacer.Replace(text)
}

// Cut returns the first most bytes of the text, without values of placeholders,
// and whether there were more. It looks at no more of the text than it needs.
func (v *Values) Cut(text []byte, most int) (begin string, more bool) {
	for size := most + v.longest; ; size *= 2 {
		size = min(size, len(text))
		begin = v.Text(string(text[:size]))
		// The end can be a part of a value. A placeholder is often shorter than its
		// value, so more of the text may be needed until that is past what is returned.
		if size == len(text) || len(begin)-v.longest >= most {
			more = len(begin) > most || size < len(text)
			return begin[:min(len(begin), most)], more
		}
	}
}

// Error returns an error whose text has the placeholders in place of their values.
// For errors.Is and errors.As it is still the same.
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
