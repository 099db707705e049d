// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/redact"
	"github.com/caddy-alive/caddy-alive/internal/suggest"
)

const onlyGlobal = "; only global placeholders, such as {env.*}, can be used in a check"

// TLSOptions are the options of kinds that can use TLS.
type TLSOptions struct {
	// The server name: it is sent to the upstream (SNI), and its certificate has to be
	// valid for it. Default: the server name of the proxy.
	TLSServerName string `json:"tls_server_name,omitempty"`

	// Whether to accept any certificate. Proxied requests are not affected. Default: the
	// setting of the proxy.
	TLSInsecureSkipVerify bool `json:"tls_insecure_skip_verify,omitempty"`

	serverName string // with its placeholders replaced
}

// provision resolves placeholders. Labels show the option as written.
func (o *TLSOptions) provision() (err error) {
	o.serverName, err = resolve("tls_server_name", o.TLSServerName)
	return err
}

// overrides returns the overrides that the options ask for.
func (o *TLSOptions) overrides() Overrides {
	return Overrides{ServerName: o.serverName, InsecureSkipVerify: o.TLSInsecureSkipVerify}
}

// unmarshalOption reads the option that d is at, if it is a TLS option.
func (o *TLSOptions) unmarshalOption(d *caddyfile.Dispenser) (known bool, err error) {
	switch d.Val() {
	case "tls_server_name":
		if !d.AllArgs(&o.TLSServerName) || o.TLSServerName == "" {
			return true, d.Err("tls_server_name takes one name, like app.internal")
		}
	case "tls_insecure_skip_verify":
		o.TLSInsecureSkipVerify = true
		return true, noArg(d)
	default:
		return false, nil
	}
	return true, nil
}

// resolve replaces global placeholders in the value of an option.
func resolve(option, value string) (string, error) {
	resolved, err := caddy.NewReplacer().ReplaceOrErr(value, true, true)
	if err != nil {
		return "", fmt.Errorf("%s: %v%s", option, err, onlyGlobal)
	}
	return resolved, nil
}

// resolveText replaces global placeholders in a text that can contain braces, such as a
// regular expression or JSON. Braces that are no known placeholder stay as they are,
// and so do backslashes before braces, which the replacer would remove.
func resolveText(option, value string) (string, error) {
	escaped := strings.NewReplacer(`\{`, `\\{`, `\}`, `\\}`).Replace(value)
	resolved := caddy.NewReplacer().ReplaceKnown(escaped, "")
	if _, placeholder, found := strings.Cut(resolved, "{http."); found {
		name, _, _ := strings.Cut(placeholder, "}")
		return "", fmt.Errorf("%s: unrecognized placeholder {http.%s}%s", option, name, onlyGlobal)
	}
	if resolved == "" && value != "" { // also if there are more open braces than the replacer accepts
		return "", fmt.Errorf("%s must not be empty, as it is with its placeholders replaced", option)
	}
	return resolved, nil
}

// pattern is a compiled regular expression. It is shown as written.
type pattern struct {
	*regexp.Regexp
	written string
	secret  bool // it has placeholders, so text that it is compared with is not shown
}

// String returns the beginning of the expression as written.
func (p *pattern) String() string { return brief(p.written) }

// brief shortens the text of an option for use in a reason.
func brief(text string) string {
	const most = 160
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// resolvePattern replaces global placeholders in a regular expression and compiles it.
// Errors show it as written.
func resolvePattern(option, written string) (*pattern, error) {
	resolved, err := resolveText(option, written)
	if err != nil {
		return nil, err
	}
	re, err := compile(option, resolved)
	if err != nil && resolved != written {
		reason := "placeholders replaced"
		if invalid, ok := errors.AsType[*syntax.Error](err); ok {
			reason += ": " + invalid.Code.String()
		}
		return nil, fmt.Errorf("%s must be a regular expression in RE2 syntax, also with its %s; got '%s'", option, reason, written)
	}
	return &pattern{Regexp: re, written: written, secret: resolved != written}, err
}

// compile compiles a regular expression.
func compile(option, expr string) (*regexp.Regexp, error) {
	if expr == "" {
		return nil, fmt.Errorf("%s must not be empty: it would match anything", option)
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, fmt.Errorf("%s must be a regular expression in RE2 syntax: %w", option, err)
	}
	return re, nil
}

// maxShown is how many bytes of a value from an upstream a reason shows.
const maxShown = 64

// quote returns the beginning of a text from an upstream for use in a reason: in
// quotes, with invisible characters escaped, and without values of placeholders.
func quote(secrets *redact.Values, value []byte) string {
	begin, more := secrets.Cut(value, maxShown)
	if more {
		return strconv.Quote(begin) + "…"
	}
	return strconv.Quote(begin)
}

// visible returns a text from an upstream with invisible characters escaped.
func visible(text string) string {
	var out strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&out, `\x%02x`, text[0])
		case strconv.IsPrint(r):
			out.WriteRune(r)
		default:
			out.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
		text = text[size:]
	}
	return out.String()
}

func checkScheme(scheme string) error {
	if scheme != "" && scheme != "http" && scheme != "https" {
		return fmt.Errorf("scheme must be http or https; got '%s'", scheme)
	}
	return nil
}

// noArg rejects arguments of the option that d is at.
func noArg(d *caddyfile.Dispenser) error {
	option := d.Val()
	if d.NextArg() {
		return d.Errf("%s takes no argument; got '%s'", option, d.Val())
	}
	return nil
}

// UnrecognizedOption returns the error of a kind for the option that d is at, if the
// kind does not have it. The error suggests the closest name and lists all names. The
// check is described as in "an http check"; own are the options of its kind.
func UnrecognizedOption(d *caddyfile.Dispenser, check string, own ...string) error {
	return d.Err(suggest.InKind(d.Val(), check, own))
}

// ReadBlock reads a block, and calls read for each option, with d at it. Each option can
// be given once, except those that repeat. Without a block it does nothing.
func ReadBlock(d *caddyfile.Dispenser, read func(option string) error, repeats func(option string) bool) error {
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] && (repeats == nil || !repeats(option)) {
			return GivenTwice(d)
		}
		seen[option] = true
		if err := read(option); err != nil {
			return err
		}
	}
	return nil
}

// GivenTwice returns the error for the option that d is at, if it was given before.
func GivenTwice(d *caddyfile.Dispenser) error {
	return d.Errf("option '%s' is given twice", d.Val())
}

// wrap adds file and line to an error, if there is one.
func wrap(d *caddyfile.Dispenser, err error) error {
	if err == nil {
		return nil
	}
	return d.WrapErr(err)
}

// errHTTP is the error of a kind that speaks HTTP, for an upstream that it cannot
// probe.
func errHTTP(kind string, up Upstream) error {
	return fmt.Errorf("%s check needs HTTP, and %s is not reached over HTTP; use a tcp check, or set scheme and port of an HTTP port", kind, up.Address)
}

// errConnect is the error of a kind that connects, for an upstream that it cannot
// probe.
func errConnect(kind string, up Upstream) error {
	return fmt.Errorf("a %s check needs a direct connection, and %s has none; use an http check", kind, up.Address)
}

var errHEAD = errors.New("an answer to HEAD has no body to look at")
