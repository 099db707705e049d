// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

const onlyGlobal = "; only global placeholders, such as {env.*}, can be used in a check"

// TLSOptions are the options of kinds that can use TLS.
type TLSOptions struct {
	// The name that the certificate of the upstream has to be for, and that it is
	// asked for (SNI). Default: as the proxy has it.
	TLSServerName string `json:"tls_server_name,omitempty"`

	// Whether to accept any certificate. This says nothing of what the proxy
	// accepts. Default: as the proxy has it.
	TLSInsecureSkipVerify bool `json:"tls_insecure_skip_verify,omitempty"`
}

// provision resolves placeholders.
func (o *TLSOptions) provision() (err error) {
	o.TLSServerName, err = resolve("tls_server_name", o.TLSServerName)
	return err
}

// overrides is what the options come to.
func (o *TLSOptions) overrides() Overrides {
	return Overrides{ServerName: o.TLSServerName, InsecureSkipVerify: o.TLSInsecureSkipVerify}
}

// unmarshalOption reads the option that d is at, if it is one of these.
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

// resolveText replaces global placeholders in text of which braces may be a part,
// such as a regular expression or JSON. What is not known as a placeholder stays
// as it is, and so do the backslashes before braces, which the replacer would take
// for its own.
func resolveText(option, value string) (string, error) {
	escaped := strings.NewReplacer(`\{`, `\\{`, `\}`, `\\}`).Replace(value)
	resolved := caddy.NewReplacer().ReplaceKnown(escaped, "")
	if _, placeholder, found := strings.Cut(resolved, "{http."); found {
		name, _, _ := strings.Cut(placeholder, "}")
		return "", fmt.Errorf("%s: unrecognized placeholder {http.%s}%s", option, name, onlyGlobal)
	}
	if resolved == "" && value != "" { // also of what has more open braces than the replacer takes
		return "", fmt.Errorf("%s must not be empty, as it is with its placeholders replaced", option)
	}
	return resolved, nil
}

// resolvePattern replaces global placeholders in a regular expression and
// compiles it.
func resolvePattern(option, expr string) (*regexp.Regexp, error) {
	resolved, err := resolveText(option, expr)
	if err != nil {
		return nil, err
	}
	return compile(option, resolved)
}

// compile compiles a regular expression.
func compile(option, expr string) (*regexp.Regexp, error) {
	if expr == "" {
		return nil, fmt.Errorf("%s must not be empty: it would match anything", option)
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, fmt.Errorf("%s must be a regular expression in RE2 syntax: %v", option, err)
	}
	return re, nil
}

func checkScheme(scheme string) error {
	if scheme != "" && scheme != "http" && scheme != "https" {
		return fmt.Errorf("scheme must be http or https; got '%s'", scheme)
	}
	return nil
}

// hasPlaceholder reports whether a value is known only when the config is
// loaded.
func hasPlaceholder(value string) bool {
	_, after, open := strings.Cut(value, "{")
	return open && strings.Contains(after, "}")
}

// noArg rejects arguments of the option that d is at.
func noArg(d *caddyfile.Dispenser) error {
	option := d.Val()
	if d.NextArg() {
		return d.Errf("%s takes no argument; got '%s'", option, d.Val())
	}
	return nil
}

// options reads a block whose options can be given once each, but for those that
// repeat. read gets one after the other.
func options(d *caddyfile.Dispenser, read func(option string) error, repeat ...string) error {
	seen := make(map[string]bool)
	for _, option := range repeat {
		seen[option] = false
	}
	for d.NextBlock(0) {
		option := d.Val()
		again, repeats := seen[option]
		if again {
			return d.Errf("option '%s' is given twice", option)
		}
		seen[option] = !repeats
		if err := read(option); err != nil {
			return err
		}
	}
	return nil
}

// wrap adds the place to an error, if there is one.
func wrap(d *caddyfile.Dispenser, err error) error {
	if err == nil {
		return nil
	}
	return d.WrapErr(err)
}

// errHTTP is why a kind that speaks HTTP cannot probe an upstream.
func errHTTP(kind string, up Upstream) error {
	return fmt.Errorf("%s check needs an HTTP transport, which %s is not reached by; use a tcp check, or set scheme, and port, if HTTP is spoken beside", kind, up.Address)
}

// errConnect is why a kind that connects cannot probe an upstream.
func errConnect(kind string, up Upstream) error {
	return fmt.Errorf("a %s check cannot tell whether %s is alive, which is not reached by connecting to it; use an http check", kind, up.Address)
}

var errHEAD = errors.New("an answer to HEAD has no body to look at")
