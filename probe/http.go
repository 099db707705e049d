// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/dustin/go-humanize"
	"golang.org/x/net/http/httpguts"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

const (
	defaultMaxSize = 64 << 10
	maxMaxSize     = 64 << 20

	onlyGlobal = "; only global placeholders, such as {env.*}, can be used in a check"
)

// HTTP checks that an upstream answers a request as it should. The request
// travels as proxied ones do: same scheme, TLS trust and HTTP version.
// Redirects are not followed.
//
// Global placeholders such as `{env.*}` are resolved when the config is
// loaded; placeholders of a request are errors, for there is none.
type HTTP struct {
	// The path, with a query if need be, to ask for. Required.
	URI string `json:"uri,omitempty"`

	// The request method. Default: `GET`.
	Method string `json:"method,omitempty"`

	// Header fields to send. `Host` replaces the host, which by default is the
	// upstream's address.
	Header http.Header `json:"header,omitempty"`

	// The answers that mean alive: codes (`204`), classes (`2xx`) and ranges
	// (`200-399`). Default: `2xx`.
	Status []string `json:"status,omitempty"`

	// A regular expression (RE2) that has to match somewhere in the body. By
	// default, the body is read but not looked at.
	ExpectBody string `json:"expect_body,omitempty"`

	// How many bytes of the body to read at most; `expect_body` sees no more.
	// Default: 65536 (64 KiB), at most 67108864 (64 MiB).
	MaxSize int64 `json:"max_size,omitempty"`

	request *http.Request // what every probe sends, but for the upstream
	status  []statusRange
	body    *regexp.Regexp
}

// CaddyModule returns the Caddy module information.
func (HTTP) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "alive.probes.http",
		New: func() caddy.Module { return new(HTTP) },
	}
}

// Provision resolves placeholders and compiles what Probe needs.
func (h *HTTP) Provision(_ caddy.Context) error {
	repl := caddy.NewReplacer()
	resolve := func(option, value string) (string, error) {
		resolved, err := repl.ReplaceOrErr(value, true, true)
		if err != nil {
			return "", fmt.Errorf("%s: %v%s", option, err, onlyGlobal)
		}
		return resolved, nil
	}

	uri, err := resolve("uri", h.URI)
	if err != nil {
		return err
	}
	target, err := parseURI(uri)
	if err != nil {
		return err
	}
	if h.Method == "" {
		h.Method = http.MethodGet
	}
	if h.Method, err = resolve("method", h.Method); err != nil {
		return err
	}
	if err := checkMethod(h.Method); err != nil {
		return err
	}
	header := make(http.Header)
	for name, values := range h.Header {
		for _, value := range values {
			if _, given := header["Host"]; given && strings.EqualFold(name, "Host") {
				return errors.New("header Host can be given once only")
			}
			if value, err = resolve("header "+name, value); err != nil {
				return err
			}
			if err := checkHeader(name, value); err != nil {
				return err
			}
			header.Add(name, value)
		}
	}
	if _, given := header["User-Agent"]; !given {
		header.Set("User-Agent", "caddy-alive")
	}
	h.request = &http.Request{
		Method: h.Method, URL: target, Header: header, Host: header.Get("Host"),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	header.Del("Host")

	if len(h.Status) == 0 {
		h.Status = []string{"2xx"}
	}
	for i, text := range h.Status {
		if h.Status[i], err = resolve("status", text); err != nil {
			return err
		}
		r, err := parseStatus(h.Status[i])
		if err != nil {
			return err
		}
		h.status = append(h.status, r)
	}
	if err := h.checkBody(); err != nil {
		return err
	}
	// A regular expression may well contain braces, so what is not known as a
	// placeholder stays as it is, and so do the backslashes before them, which
	// the replacer would take for its own.
	if h.ExpectBody != "" {
		escaped := strings.NewReplacer(`\{`, `\\{`, `\}`, `\\}`).Replace(h.ExpectBody)
		resolved := repl.ReplaceKnown(escaped, "")
		if resolved == "" {
			return errors.New("expect_body must not be empty: it would match any body")
		}
		if _, placeholder, found := strings.Cut(resolved, "{http."); found {
			name, _, _ := strings.Cut(placeholder, "}")
			return fmt.Errorf("expect_body: unrecognized placeholder {http.%s}%s", name, onlyGlobal)
		}
		if h.body, err = compileBody(resolved); err != nil {
			return err
		}
	}
	if h.MaxSize == 0 {
		h.MaxSize = defaultMaxSize
	}
	return checkMaxSize(h.MaxSize)
}

// ValidateUpstream rejects proxies that do not speak HTTP.
func (h *HTTP) ValidateUpstream(up Upstream) error {
	if up.Transport == nil {
		return fmt.Errorf("an http check needs an HTTP transport, which %s is not reached by; use a tcp check", up.Address)
	}
	return nil
}

// Probe sends the request and judges the answer.
func (h *HTTP) Probe(ctx context.Context, up Upstream) error {
	req := h.request.WithContext(ctx)
	req.Header = h.request.Header.Clone() // a transport may add to it
	target := *h.request.URL
	target.Scheme, target.Host = up.Scheme, up.Host
	req.URL = &target
	if req.Host == "" {
		req.Host = up.Host
	}
	resp, err := up.Transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()

	if !matches(h.status, resp.StatusCode) {
		return fmt.Errorf("status %d, want %s", resp.StatusCode, strings.Join(h.Status, " "))
	}
	// The body is read even if nobody looks at it: an upstream that dies in the
	// middle of an answer is not alive.
	limited := io.LimitReader(resp.Body, h.MaxSize)
	if h.body == nil {
		_, err = io.Copy(io.Discard, limited)
	} else {
		var body []byte
		if body, err = io.ReadAll(limited); err == nil && !h.body.Match(body) {
			return fmt.Errorf("body does not match '%s' in its first %s", h.body, humanize.IBytes(uint64(h.MaxSize)))
		}
	}
	if err != nil {
		return fmt.Errorf("reading the body: %w", err)
	}
	return nil
}

// String returns the check as it is shown.
func (h *HTTP) String() string { return "http " + h.URI }

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	http <uri> {
//		method      <method>
//		header      <name> <value>
//		status      <codes...>
//		expect_body <regexp>
//		max_size    <size>
//	}
func (h *HTTP) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the kind
	if !d.NextArg() {
		return d.Err("an http check needs the URI to ask for, like http /healthz")
	}
	h.URI = d.Val()
	// what a placeholder stands for is only known when the config is loaded
	if literal, _, _ := strings.Cut(h.URI, "{"); literal != "" || h.URI == "" {
		if _, err := parseURI(literal); err != nil {
			return d.WrapErr(err)
		}
	}
	if d.NextArg() {
		return d.Errf("an http check takes one URI; got '%s' too", d.Val())
	}
	seen := make(map[string]bool)
	for d.NextBlock(0) {
		option := d.Val()
		if seen[option] && option != "header" {
			return d.Errf("option '%s' is given twice", option)
		}
		seen[option] = true
		if err := h.unmarshalOption(d, option); err != nil {
			return err
		}
	}
	return wrap(d, h.checkBody())
}

// unmarshalOption reads the option that d is at.
func (h *HTTP) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	switch option {
	case "method":
		if !d.AllArgs(&h.Method) {
			return d.Err("method takes one HTTP method, like HEAD")
		}
		if hasPlaceholder(h.Method) {
			return nil
		}
		return wrap(d, checkMethod(h.Method))

	case "header":
		var name, value string
		if !d.AllArgs(&name, &value) {
			return d.Err("header takes a name and a value, like header Host app.internal")
		}
		if _, given := h.Header["Host"]; given && strings.EqualFold(name, "Host") {
			return d.Err("header Host can be given once only")
		}
		if h.Header == nil {
			h.Header = make(http.Header)
		}
		h.Header.Add(name, value)
		if hasPlaceholder(value) {
			value = ""
		}
		return wrap(d, checkHeader(name, value))

	case "status":
		h.Status = d.RemainingArgs()
		if len(h.Status) == 0 {
			return d.Err("status takes codes, classes and ranges, like 204 2xx 200-399")
		}
		for _, text := range h.Status {
			if _, err := parseStatus(text); err != nil && !hasPlaceholder(text) {
				return d.WrapErr(err)
			}
		}

	case "expect_body":
		if !d.AllArgs(&h.ExpectBody) {
			return d.Err("expect_body takes one regular expression; put it into quotes if it has spaces")
		}
		if h.ExpectBody == "" {
			return d.Err("expect_body must not be empty: it would match any body")
		}
		_, err := compileBody(h.ExpectBody)
		return wrap(d, err)

	case "max_size":
		var text string
		if !d.AllArgs(&text) {
			return d.Err("max_size takes one size from 1 byte to 64MiB, like 64KiB")
		}
		size, err := humanize.ParseBytes(text)
		if err != nil || size > maxMaxSize {
			size = 0 // what checkMaxSize reports as out of range
		}
		h.MaxSize = int64(size)
		if err := checkMaxSize(h.MaxSize); err != nil {
			return d.Errf("%v; got '%s'", err, text)
		}

	default:
		return d.Errf("unrecognized option '%s': an http check has method, header, status, expect_body and max_size besides the options of every check", option)
	}
	return nil
}

// hasPlaceholder reports whether a value is known only when the config is
// loaded.
func hasPlaceholder(value string) bool {
	_, after, open := strings.Cut(value, "{")
	return open && strings.Contains(after, "}")
}

// wrap adds the place to an error, if there is one.
func wrap(d *caddyfile.Dispenser, err error) error {
	if err == nil {
		return nil
	}
	return d.WrapErr(err)
}

func parseURI(uri string) (*url.URL, error) {
	if !strings.HasPrefix(uri, "/") || strings.HasPrefix(uri, "//") || strings.ContainsAny(uri, " #") {
		return nil, fmt.Errorf("uri must be a path that begins with one '/', with a query if need be; got '%s'", uri)
	}
	u, err := url.ParseRequestURI(uri)
	if err != nil {
		return nil, fmt.Errorf("uri must be a path that begins with one '/', with a query if need be: %v", err)
	}
	return u, nil
}

// checkBody rejects a check that could never pass.
func (h *HTTP) checkBody() error {
	if h.ExpectBody != "" && h.Method == http.MethodHead {
		return errors.New("expect_body needs a body, and an answer to HEAD has none")
	}
	return nil
}

func checkMethod(method string) error {
	if !httpguts.ValidHeaderFieldName(method) { // both are tokens, RFC 9110, section 9.1
		return fmt.Errorf("method must be an HTTP method, like GET or HEAD; got '%s'", method)
	}
	return nil
}

func checkHeader(name, value string) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return fmt.Errorf("header takes a field name of letters, digits and hyphens; got '%s'", name)
	}
	if !httpguts.ValidHeaderFieldValue(value) {
		return fmt.Errorf("header %s must not have line breaks or other control characters in its value", name)
	}
	if strings.EqualFold(name, "Host") && !httpguts.ValidHostHeader(value) {
		return fmt.Errorf("header Host must be a host, with a port if need be; got '%s'", value)
	}
	return nil
}

func compileBody(expr string) (*regexp.Regexp, error) {
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, fmt.Errorf("expect_body must be a regular expression in RE2 syntax: %v", err)
	}
	return re, nil
}

func checkMaxSize(size int64) error {
	if size < 1 || size > maxMaxSize {
		return errors.New("max_size must be a size from 1 byte to 64MiB, like 64KiB")
	}
	return nil
}

// Interface guards
var (
	_ Prober                = (*HTTP)(nil)
	_ UpstreamValidator     = (*HTTP)(nil)
	_ caddy.Provisioner     = (*HTTP)(nil)
	_ caddyfile.Unmarshaler = (*HTTP)(nil)
)
