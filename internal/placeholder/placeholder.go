// SPDX-License-Identifier: Apache-2.0

// Package placeholder has the placeholders of the upstream that a check probes: which
// there are, their values, and texts in which they stand beside global ones. Global
// placeholders are replaced once, when the config is loaded, and those of the upstream
// for each upstream.
//
// It must not know what the texts are for. It has no locks: a [Text] does not change.
package placeholder

import (
	"crypto/rand"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// The placeholders of the upstream that is probed, by Caddy's names.
const (
	hostPort = "http.reverse_proxy.upstream.hostport"
	host     = "http.reverse_proxy.upstream.host"
	port     = "http.reverse_proxy.upstream.port"
	target   = "http.reverse_proxy.active.target_upstream"
)

var names = []string{hostPort, host, port, target}

// Of returns the value of a placeholder of an upstream, and whether it is one.
func Of(upstream reverseproxy.DialInfo, name string) (value string, known bool) {
	switch name {
	case hostPort:
		return upstream.Address, true
	case host:
		return upstream.Host, true
	case port:
		return upstream.Port, true
	case target:
		return strings.TrimPrefix(upstream.String(), "tcp/"), true
	}
	return "", false
}

// Text is a text with placeholders of the upstream that is probed. The zero value is
// empty.
type Text struct {
	written string
	// At even positions are literal texts, at odd ones names of placeholders.
	parts []string
}

// mark is what stands around the name of a placeholder while a text is parsed. No other
// text has it.
var mark = "\x00" + rand.Text() + "\x00"

// replacer replaces global placeholders, and marks those of the upstream.
func replacer() *caddy.Replacer {
	r := caddy.NewReplacer()
	r.Map(func(name string) (any, bool) { return mark + name + mark, slices.Contains(names, name) })
	return r
}

// Parse replaces the global placeholders of an option. Placeholders that are unknown or
// empty are errors.
func Parse(option, written string) (Text, error) {
	if err := Check(option, written); err != nil {
		return Text{}, err
	}
	known := replacer()
	text, err := known.ReplaceOrErr(written, false, true)
	if err != nil {
		return Text{}, fmt.Errorf("%s: %v%s", option, err, allowed)
	}
	if _, err := known.ReplaceOrErr(written, true, false); err != nil {
		return Text{}, fmt.Errorf("%s: %v", option, err)
	}
	return Text{written, strings.Split(text, mark)}, nil
}

// ParseKnown replaces the global placeholders of an option whose text can contain braces,
// such as JSON. Braces that are no known placeholder stay as they are, and so do
// backslashes before braces, which the replacer would remove.
func ParseKnown(option, written string) (Text, error) {
	if err := Check(option, written); err != nil {
		return Text{}, err
	}
	text := replacer().ReplaceKnown(escaper.Replace(written), "")
	if text == "" && written != "" { // also if there are more open braces than the replacer accepts
		return Text{}, fmt.Errorf("%s must not be empty, as it is with its placeholders replaced", option)
	}
	return Text{written, strings.Split(text, mark)}, nil
}

var escaper = strings.NewReplacer(`\{`, `\\{`, `\}`, `\\}`)

// ofRequest matches what stands for something of a request or of an upstream.
var ofRequest = regexp.MustCompile(`(?:^|[^\\])\{(http\.[^{}]*)\}`)

// Check returns an error if an option has a placeholder of a request, which a check does
// not have.
func Check(option, written string) error {
	for _, found := range ofRequest.FindAllStringSubmatch(written, -1) {
		if name := found[1]; !slices.Contains(names, name) {
			return fmt.Errorf("%s: unrecognized placeholder {%s}%s", option, name, allowed)
		}
	}
	return nil
}

// allowed is what errors say of placeholders.
var allowed = "; only global placeholders, such as {env.*}, and those of the upstream that is probed can be used here: " + strings.Join(braced(), ", ")

func braced() []string {
	all := make([]string, 0, len(names))
	for _, name := range names {
		all = append(all, "{"+name+"}")
	}
	return all
}

// String returns the text as it is written.
func (t Text) String() string { return t.written }

// Constant returns the text if it is the same for all upstreams.
func (t Text) Constant() (text string, constant bool) {
	switch len(t.parts) {
	case 0:
		return "", true
	case 1:
		return t.parts[0], true
	}
	return "", false
}

// IsEmpty reports whether nothing is written.
func (t Text) IsEmpty() bool { return t.written == "" }

// For returns the text with the placeholders of an upstream replaced.
func (t Text) For(value caddy.ReplacerFunc) (string, error) {
	if text, constant := t.Constant(); constant {
		return text, nil
	}
	if value == nil {
		return "", errors.New("the upstream has no placeholders")
	}
	var out strings.Builder
	for i, part := range t.parts {
		if i%2 == 1 {
			found, known := value(part)
			if !known {
				return "", fmt.Errorf("the upstream has no placeholder {%s}", part)
			}
			part = caddy.ToString(found)
		}
		out.WriteString(part)
	}
	return out.String(), nil
}

// HasOfUpstream reports whether a text has a placeholder of the upstream.
func HasOfUpstream(text string) bool {
	return slices.ContainsFunc(braced(), func(name string) bool { return strings.Contains(text, name) })
}
